"""Networks: Equinox modules whose leaves are all arrays. They are called on whole batches."""

from qscape.nets.heads import Deterministic, Gaussian, Head, Projected
from qscape.nets.layers import concatenate_inputs, dense, fold_batch_norm
from qscape.nets.mlp import ACTIVATIONS, MLP, Actor, Body, Conditioning, Critic, Features, InputStage, Torso

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Actor",
    "Body",
    "Conditioning",
    "Critic",
    "Deterministic",
    "Features",
    "Gaussian",
    "Head",
    "InputStage",
    "Projected",
    "Torso",
    "concatenate_inputs",
    "dense",
    "fold_batch_norm",
]
