"""Networks: Equinox modules whose only leaves are arrays, called on whole batches."""

from qscape.nets.heads import Deterministic, Gaussian, Head, Projected, make_head
from qscape.nets.layers import dense, joined, standardised
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
    "dense",
    "joined",
    "make_head",
    "standardised",
]
