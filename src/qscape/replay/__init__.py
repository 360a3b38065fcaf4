"""What was experienced, as arrays under jit: uniform and loss-adjusted replay."""

from qscape.replay.lap import LAP
from qscape.replay.storage import Layout, Priorities, ReplayState, Rows, Storage, rows_at
from qscape.replay.uniform import Uniform

__all__ = ["LAP", "Layout", "Priorities", "ReplayState", "Rows", "Storage", "Uniform", "rows_at"]
