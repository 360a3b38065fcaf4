"""Gymnasium environments behind one adapter, and the project's own environments.

`make` returns an `EnvAdapter` for any Gymnasium environment. Importing this package also registers the
project's own environments (`registered.py`) and the probe environments (`qscape/Probe...-v0`).
"""

from qscape.envs import probes, registered
from qscape.envs.adapter import EnvAdapter, Episode, Step, make

__all__ = ["EnvAdapter", "Episode", "Step", "make"]

probes.register()
registered.register()
