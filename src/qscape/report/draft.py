"""The state of a report while it is written: the comparison, its charts and its sections."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from qscape.report import page, records, references, require_extra
from qscape.report.charts import Chart, Style, choose_styles
from qscape.report.interactive import render_chart
from qscape.report.runs import RunRecord
from qscape.report.tables import Comparison

with require_extra("Pages"):
    import pandas as pd
    from plotly.graph_objects import Figure


@dataclasses.dataclass
class Draft:
    """A report that sections add to.

    Attributes:
        comparison: the tables to present.
        runs: the compared runs.
        published: published learning curves; None if none were requested.
        styles: style of each label.
        notes: sentences for the reader, shown at the top.
        figures: the page's charts, by name.
        sections: name, title and HTML of each section.
    """

    comparison: Comparison
    runs: list[RunRecord]
    published: pd.DataFrame | None
    styles: dict[str, Style]
    notes: list[str]
    figures: dict[str, Figure | dict[str, Any]] = dataclasses.field(default_factory=dict)
    sections: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    @property
    def envs(self) -> list[str]:
        """The environments, sorted."""
        return sorted(self.comparison.rows["env"].unique())

    def add_section(self, name: str, title: str, *parts: str) -> None:
        """Add a section made of parts of HTML."""
        self.sections.append((name, title, page.section(name, title, *parts)))

    def add_figure(self, chart: Chart | dict[str, Any], caption: str, title: str = "") -> str:
        """Keep a chart for the page and return the HTML of its place."""
        name = str(len(self.figures) + 1)
        self.figures[name] = render_chart(chart) if isinstance(chart, Chart) else chart
        return page.figure(name, caption, title)


def begin_draft(comparison: Comparison, runs: Sequence[RunRecord], reference: Sequence[str]) -> Draft:
    """Read the inspection results of the compared runs and return an empty report of these."""
    by_folder = {run.folder: run for run in runs}
    runs, broken = records.read_findings(by_folder[folder] for folder in comparison.rows["run"].unique())
    labels, names = [run.label for run in runs], comparison.names
    runs = [run._replace(label=names.get(run.label, run.label)) for run in runs]
    published = references.load_published(reference) if reference else None
    styles = choose_styles(labels, names)
    return Draft(comparison, runs, published, styles, [*comparison.notes, *broken])
