"""The numbers of the papers' tables and figures: published.csv."""

import csv
import functools
import math
from pathlib import Path
from typing import NamedTuple

EPISODES = 10  # of an evaluation in the PAVE paper, whose spread is over the episodes of all runs


class Row(NamedTuple):
    """A row of published.csv; `mean` is NaN where the paper states only an order of agents, "A over B"."""

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
    study: str  # has the run that gives the number; "": qscape has no such agent, or the paper names no task
    environment: str  # of that run, with its arguments and its dataset
    label: str  # of that run
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

    def sides(self) -> "list[Row]":
        """Return the row of each agent: two where the row states an order."""
        agents = self.agent.split(" over ")
        labels = self.label.split(" over ") if self.label else [""] * len(agents)
        return [self._replace(agent=a, label=b) for a, b in zip(agents, labels, strict=True)]


@functools.cache
def read_published() -> list[Row]:
    """Read published.csv."""
    rows = []
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            text = (r["mean"] + (f" ± {r['spread']}" if r["spread"] else "")).replace("-", "−")
            mean, spread = float(r["mean"].replace("higher", "nan")), float(r["spread"] or "nan")
            numbers = {
                "mean": mean,
                "spread": spread,
                "seeds": int(r["seeds"] or 0),
                "steps": int(r["steps"] or 0),
            }
            rows.append(Row(**r | numbers, text=text))
    return rows
