"""Hindsight experience replay (Andrychowicz et al. 2017, arXiv 1707.01495)."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from qscape.errors import OutOfRange
from qscape.offpolicy.sockets import Relabelling
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class HER(Relabelling):
    """Adds copies of each episode to replay, as if what was achieved in it had been its goal.

    Consecutive rows of a copy share a goal, so that sums of n rewards have rows of one goal to sum over.
    `future` draws a step of the rest of the episode, gives its goal to all rows up to it, and draws again
    behind it. A drawn step that is not before a row is uniform over the row's future: so each row gets its
    goals with the probabilities of the paper.
    """

    name: ClassVar[str] = "her"

    strategy: Literal["future", "final", "episode"] = setting(
        "future",
        "Which achieved goals: of a later step of the episode, of its last step, or of any of its steps.",
    )
    relabels: int = setting(
        4, "Relabelled copies of each row, beside the real one.", within=">= 1", tune=("choice", 1, 2, 4, 8)
    )
    ratio: float | None = setting(
        None,
        "Share of relabelled rows among those of an episode, at most relabels / (relabels + 1): some "
        "episodes then get a copy less than others. None: all copies.",
        within="[0, 1]",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.relabels / (self.relabels + 1)
        if self.ratio is not None and self.ratio > most + 1e-9:
            raise OutOfRange(
                f"her.ratio is {self.ratio}, and {self.relabels} relabelled copies beside each real row make "
                f"at most {most:.3g}; set her.relabels higher.",
                part=self.name,
                field="ratio",
            )

    def draw_goals(self, rng: np.random.Generator, length: int) -> list[Int[np.ndarray, " L"]]:
        return [self._draw_copy(rng, length) for _ in range(self._count_copies(rng))]

    def _count_copies(self, rng: np.random.Generator) -> int:
        """Return the number of copies of an episode, such that their share is `ratio` on average."""
        if self.ratio is None:
            return self.relabels
        wanted = self.ratio / (1 - self.ratio)
        whole = int(wanted + 1e-9)
        return min(whole + int(rng.random() < wanted - whole), self.relabels)

    def _draw_copy(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " L"]:
        """Return the steps that the goals of one copy come from."""
        if self.strategy == "final":
            return np.full(length, length - 1)
        if self.strategy == "episode":
            return np.full(length, rng.integers(length))
        steps, begin = np.empty(length, np.int64), 0
        while begin < length:
            drawn = rng.integers(begin, length)
            steps[begin : drawn + 1] = drawn
            begin = drawn + 1
        return steps
