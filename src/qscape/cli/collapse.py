"""The command `qscape collapse RUN...`."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from qscape.cli import options
from qscape.cli.running import plain_console, print_notes, print_written, show_tracks, table
from qscape.errors import QscapeError
from qscape.types import setting

COLUMNS = (
    "equinorm_h",
    "equiangularity_h",
    "max_angle_h",
    "max_angle_w",
    "within_variation",
    "self_duality",
    "nearest_mean_agreement",
    "alignment",
)


@dataclasses.dataclass(frozen=True)
class CollapseOptions:
    """Flags of `qscape collapse`."""

    states: int = setting(10_000, "Number of states from evaluation rollouts.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    json: str | None = setting(None, "Write the results as JSON.")
    png: str | None = setting(
        None, "Plot file; None: inspect/collapse.png in the folder of the first run that was named."
    )


def main(argv: list[str]) -> int:
    """Measure action collapse over the saves of runs, and plot it."""
    from qscape.cli.output import refuse_same, save_figure, save_text
    from qscape.inspect import collapse, store
    from qscape.report import collapse as report
    from qscape.report.runs import find_runs, name_runs

    paths, rest = options.positionals(argv, "RUN", "qscape collapse")
    given: Any = options.parse(CollapseOptions(), rest, "qscape collapse RUN...")
    refuse_same(given.json, given.png)
    console, records, files, problems, picture = plain_console(), [], [], [], given.png
    folders = find_runs(paths)
    named, below = name_runs(paths, folders)
    print_notes(console, filter(None, [below]))
    for folder in folders:
        try:
            with show_tracks():
                findings = collapse.measure_collapse(folder, given.states, given.seed)
        except QscapeError as problem:  # one run that cannot be measured does not hide the others
            problems.append(problem)
            continue
        records.append(findings)
        rows = [
            [f"{row['step']:,}", *(_number(row[name]) for name in COLUMNS)] for row in findings["history"]
        ]
        title = (
            f"{findings['label']} {findings['env']} seed {findings['seed']}: {findings['states']:,} states, "
        )
        title += f"{findings['labels']} {' '.join(map(str, findings['counts']))}"
        names = [name.replace("_", " ") for name in COLUMNS]
        console.print(table(title, ["step", *names], rows))
        print_notes(console, filter(None, [report.note_trivial(findings)]))
        if folder in named:
            kept, notes = store.keep_findings(folder, "collapse", findings, needed=not picture)
            files += kept
            print_notes(console, notes)
            picture = picture or str(folder / "inspect" / "collapse.png")
    if not records:
        raise problems[0]
    print_notes(console, (f"left out: {problem}" for problem in problems))
    if given.json:
        save_text(store.to_json({"runs": records}), given.json)
        files.append(Path(given.json))
    if picture:
        save_figure(report.draw_collapse(records), picture)
    print_written(console, *files, picture)
    return 0


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else f"{x:.4f}"
