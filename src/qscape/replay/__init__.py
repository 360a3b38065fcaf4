"""Replay under jit: storage, the interface of all replays, and uniform replay."""

from qscape.replay.base import Replay
from qscape.replay.storage import Layout, Priorities, ReplayState, Storage, rows_at
from qscape.replay.uniform import Uniform

__all__ = ["Layout", "Priorities", "Replay", "ReplayState", "Storage", "Uniform", "rows_at"]
