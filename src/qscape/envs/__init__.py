"""Environments, as the rest of the house sees them: through one edge.

`make` gives an `EnvAdapter` for any Gymnasium environment. Importing this package also registers the
project's own environments (`registered.py`) and the probes (`qscape/Probe...-v0`).
"""

from qscape.envs import probes, registered
from qscape.envs.adapter import EnvAdapter, Episode, Step, make

__all__ = ["EnvAdapter", "Episode", "Step", "make"]

probes.register()
registered.register()
