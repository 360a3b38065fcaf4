"""The run: the training loop as a generator of events, evaluation, saves, folders, loggers."""

from qscape.run.plan import Plan
from qscape.run.training import resume, train

__all__ = ["Plan", "resume", "train"]
