"""Policies as files: ONNX, plain arrays, model cards, and policies of other libraries."""
