"""What was experienced, as arrays under jit: uniform and loss-adjusted replay."""

from qscape.replay.lap import LAP
from qscape.replay.memory import Index, Layout, Memory, Priorities, Rows, rows_at
from qscape.replay.uniform import Uniform

__all__ = ["LAP", "Index", "Layout", "Memory", "Priorities", "Rows", "Uniform", "rows_at"]
