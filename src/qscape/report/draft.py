"""A report in the making: what is compared, and the charts and notes that its sections leave behind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from qscape.report import extra, interactive, page, records, references
from qscape.report.tables import Comparison

with extra("Pages"):
    import pandas as pd
    from plotly.graph_objects import Figure


@dataclasses.dataclass
class Draft:
    """What sections are written from.

    Attributes:
        made: the comparison. runs: the folders of its runs. published: curves of others. reps: resamples.
        styles: colour and dash of each label. notes: what a reader has to know. figures: the page's charts.
        sections: name, title and HTML of each.
    """

    made: Comparison
    runs: list[records.Run]
    published: pd.DataFrame | None
    reps: int
    styles: dict[str, interactive.Look]
    notes: list[str]
    figures: dict[str, Figure | dict[str, Any]] = dataclasses.field(default_factory=dict)
    sections: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    @property
    def envs(self) -> list[str]:
        """The environments, in order."""
        return sorted(self.made.rows["env"].unique())

    def section(self, name: str, title: str, *parts: str) -> None:
        """Add a section of HTML."""
        self.sections.append((name, title, page.section(name, title, *parts)))

    def figure(self, made: Figure | dict[str, Any], caption: str, title: str = "") -> str:
        """HTML of a chart's place; the chart itself is kept for the page."""
        name = str(len(self.figures) + 1)
        self.figures[name] = made
        return page.figure(name, caption, title)


def begin(made: Comparison, reference: Sequence[str], reps: int) -> Draft:
    """An empty report of a comparison."""
    runs, broken = records.read(made.rows["run"].unique())
    published = references.published(reference) if reference else None
    styles = interactive.looks(made.rows["label"].tolist())
    return Draft(made, runs, published, reps, styles, [*made.notes, *broken])
