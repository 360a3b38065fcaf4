"""Networks: Equinox modules whose only leaves are arrays, called on whole batches."""

from qscape.nets.heads import Deterministic, Gaussian, Head, Projected, make_head
from qscape.nets.layers import dense, joined, standardised
from qscape.nets.mlp import ACTIVATIONS, MLP, Actor, Context, Critic, Stage, Trunk
from qscape.nets.summary import SUMMARISERS, Conditioned

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "SUMMARISERS",
    "Actor",
    "Conditioned",
    "Context",
    "Critic",
    "Deterministic",
    "Gaussian",
    "Head",
    "Projected",
    "Stage",
    "Trunk",
    "dense",
    "joined",
    "make_head",
    "standardised",
]
