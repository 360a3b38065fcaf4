"""Offline datasets: Minari and D4RL-style HDF5 files, checked, as arrays of transitions.

Importing this package registers `qscape/Recorded-v0`, a stand-in for datasets that name no environment.
"""

import gymnasium as gym

from qscape.data.dataset import Dataset, normalised_score
from qscape.data.sources import Origin, read, read_origin

__all__ = ["RECORDED", "Dataset", "Origin", "normalised_score", "read", "read_origin"]

RECORDED = "qscape/Recorded-v0"

if RECORDED not in gym.registry:
    gym.register(RECORDED, "qscape.data.recorded:Recorded")
