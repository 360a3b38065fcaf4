"""Networks: Equinox modules whose only leaves are arrays, called on whole batches."""

from qscape.nets.heads import Deterministic, Gaussian, make_head
from qscape.nets.layers import dense
from qscape.nets.mlp import ACTIVATIONS, MLP, Actor, Context, Critic, Stage, Trunk

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Actor",
    "Context",
    "Critic",
    "Deterministic",
    "Gaussian",
    "Stage",
    "Trunk",
    "dense",
    "make_head",
]
