"""Networks: Equinox modules whose leaves are all arrays. They are called on whole batches."""

from qscape.nets.heads import Deterministic, Gaussian, Head, Projected, make_head
from qscape.nets.layers import concatenate_inputs, dense, fold_batch_norm
from qscape.nets.mlp import ACTIVATIONS, MLP, Actor, Conditioning, Critic, Stage, Torso

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Actor",
    "Conditioning",
    "Critic",
    "Deterministic",
    "Gaussian",
    "Head",
    "Projected",
    "Stage",
    "Torso",
    "concatenate_inputs",
    "dense",
    "fold_batch_norm",
    "make_head",
]
