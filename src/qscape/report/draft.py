"""A report in the making: what is compared, and the charts and notes that its sections leave behind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from qscape.report import interactive, page, records, references, require_extra
from qscape.report.tables import Comparison

with require_extra("Pages"):
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

    comparison: Comparison
    runs: list[records.RunRecord]
    published: pd.DataFrame | None
    reps: int
    styles: dict[str, interactive.LineStyle]
    notes: list[str]
    figures: dict[str, Figure | dict[str, Any]] = dataclasses.field(default_factory=dict)
    sections: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    @property
    def envs(self) -> list[str]:
        """The environments, in order."""
        return sorted(self.comparison.rows["env"].unique())

    def add_section(self, name: str, title: str, *parts: str) -> None:
        """Add a section of HTML."""
        self.sections.append((name, title, page.section(name, title, *parts)))

    def add_figure(self, chart: Figure | dict[str, Any], caption: str, title: str = "") -> str:
        """HTML of a chart's place; the chart itself is kept for the page."""
        name = str(len(self.figures) + 1)
        self.figures[name] = chart
        return page.figure(name, caption, title)


def begin_draft(comparison: Comparison, reference: Sequence[str], reps: int) -> Draft:
    """An empty report of a comparison."""
    runs, broken = records.read_records(comparison.rows["run"].unique())
    published = references.load_published(reference) if reference else None
    styles = interactive.make_line_styles(comparison.rows["label"].tolist())
    return Draft(comparison, runs, published, reps, styles, [*comparison.notes, *broken])
