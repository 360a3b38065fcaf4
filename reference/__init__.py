"""The algorithms as straight-line code. The assembled agents equal them to the bit; see README.md."""
