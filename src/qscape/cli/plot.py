"""`qscape plot RUNS... --png FILE`."""

import dataclasses
from pathlib import Path

from qscape.cli import options
from qscape.errors import RunError, UsageError
from qscape.report.curves import draw_curves, read_curve
from qscape.run.folder import run_folders
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `qscape plot`."""

    png: str = setting("curves.png", "The picture; its ending chooses the format (png, svg, pdf).")


def main(argv: list[str]) -> int:
    """Draw the learning curves of runs and groups."""
    first, rest = options.positional(argv, "RUNS", "qscape plot")
    at = next((k for k, a in enumerate(rest) if a.startswith("-")), len(rest))
    given = options.parse(options.flags_of(Options()), rest[at:], "qscape plot RUNS")
    curves = [read_curve(run) for path in (first, *rest[:at]) for run in run_folders(Path(path))]
    figure = draw_curves(curves)
    file = Path(given.png)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    except OSError as problem:
        raise RunError(f"{file} cannot be written ({problem.strerror}).") from problem
    except ValueError as problem:
        raise UsageError(f"--png {file}: {problem}.") from problem
    best = max(curves, key=lambda c: c.returns[-1])
    print(
        f"{file}: {len(curves)} run(s); best final return {best.returns[-1]:,.1f} "
        f"({best.label}, seed {best.seed})"
    )
    return 0
