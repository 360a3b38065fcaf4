"""What the papers publish: the numbers of their tables and points of their learning curves."""

import csv
import functools
import math
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
EPISODES = 10  # of an evaluation in the PAVE paper, whose spread is over the episodes of all runs


class Row(NamedTuple):
    """A row of published.csv. `mean` is NaN where the paper states only an order ("higher")."""

    paper: str
    table: str
    task: str
    agent: str
    metric: str
    mean: float
    spread: float
    spread_is: str
    seeds: int
    steps: int
    text: str  # the published number as it is printed

    @property
    def error(self) -> float:
        """The standard error of the published mean: of its spread, if that is published, and of rounding."""
        return self._error(EPISODES if "episodes" in self.spread_is else 1)

    @property
    def largest_error(self) -> float:
        """As `error`, but a spread over the episodes of all runs is taken to be one of the runs alone."""
        return self._error(1)

    def _error(self, episodes: int) -> float:
        rounding = 10.0 ** -len(self.text.split(" ")[0].partition(".")[2]) / math.sqrt(12)
        if math.isnan(self.spread):
            return rounding
        is_interval = self.spread_is.startswith("half of the 95%")
        of_spread = self.spread / (1.96 if is_interval else math.sqrt(self.seeds * episodes))
        return math.hypot(of_spread, rounding)

    @property
    def agents(self) -> list[str]:
        """The agents of the row: two where it states an order."""
        return self.agent.split(" over ")


@functools.cache
def read_published() -> list[Row]:
    """Read published.csv."""
    rows = []
    with (HERE / "published.csv").open(newline="") as file:
        for r in csv.DictReader(file):
            mean = float("nan" if r["mean"] == "higher" else r["mean"])
            text = r["mean"] + (f" ± {r['spread']}" if r["spread"] else "")
            numbers = (
                float(r["spread"] or "nan"),
                r["spread_is"],
                int(r["seeds"] or 0),
                int(r["steps"] or 0),
            )
            named = (r["paper"], r["table"], r["task"], r["agent"], r["metric"])
            rows.append(Row(*named, mean, *numbers, text.replace("-", "−")))
    return rows


class Curve(NamedTuple):
    """A row of published_curves.csv: the last evaluation at or before a step, over the seeds."""

    agent: str
    task: str
    step: int
    seeds: int
    mean: float
    sd: float


@functools.cache
def read_curves() -> list[Curve]:
    """Read published_curves.csv."""
    with (HERE / "published_curves.csv").open(newline="") as file:
        return [
            Curve(r["agent"], r["task"], int(r["step"]), int(r["seeds"]), float(r["mean"]), float(r["sd"]))
            for r in csv.DictReader(file)
        ]
