"""Logged experience: Minari datasets and D4RL-style HDF5 files, checked, as arrays.

Importing this package registers `qscape/Recorded-v0`, the environment of a dataset that has none.
"""

import gymnasium as gym

from qscape.data.dataset import Dataset, normalised_score
from qscape.data.sources import Home, home, read

__all__ = ["RECORDED", "Dataset", "Home", "home", "normalised_score", "read"]

RECORDED = "qscape/Recorded-v0"

if RECORDED not in gym.registry:
    gym.register(RECORDED, "qscape.data.recorded:Recorded")
