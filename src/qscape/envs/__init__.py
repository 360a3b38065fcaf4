"""Environments, as the rest of the house sees them: through one edge.

`make` gives an `Edge` for any Gymnasium environment. Importing this package also registers the
project's own environments (`registered.py`) and the probes (`qscape/Probe...-v0`).
"""

from qscape.envs import probes, registered
from qscape.envs.edge import Edge, Episode, Step, make

__all__ = ["Edge", "Episode", "Step", "make"]

probes.register()
registered.register()
