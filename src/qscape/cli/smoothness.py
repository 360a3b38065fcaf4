"""The command `qscape smoothness RUN...`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from qscape.cli import options
from qscape.cli.output import refuse_same, save_figure, save_text
from qscape.cli.running import (
    plain_console,
    print_notes,
    print_table,
    print_written,
    require_positive,
    show_tracks,
)
from qscape.errors import Conflict, QscapeError
from qscape.tracking import track
from qscape.types import setting

if TYPE_CHECKING:
    import pandas as pd

FORMS = {
    "geometry": "",
    "geometry_environment_units": ", fed actions in the environment's units as the paper's authors do",
}
GEOMETRY = {
    "mixed_norm_sup": "sup ‖H_sa‖",
    "mixed_norm_mean": "mean ‖H_sa‖",
    "negative_definite": "H_aa neg. definite",
    "trace_concave": "tr H_aa < -1",
    "gradient_cosine": "gradient cosine",
    "gradient_flips": "gradient flips",
}


@dataclasses.dataclass(frozen=True)
class SmoothnessOptions:
    """Flags of `qscape smoothness`."""

    episodes: int = setting(10, "Number of episodes for each run, with the deterministic policy.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")
    robustness: bool = setting(False, "Also evaluate with noise on the policy's observations.")
    sigmas: tuple[float, ...] = setting(
        (0.01, 0.05, 0.1), "Amplitudes of the noise, in standard deviations of the first run's observations."
    )
    noise_episodes: int = setting(20, "Number of episodes for each noise amplitude.")
    json: str | None = setting(None, "Write the results as JSON.")
    png: str | None = setting(None, "Plot actions and their spectra; the suffix selects png, svg or pdf.")


def main(argv: list[str]) -> int:
    """Measure how smooth the actions of runs are, and the geometry of Q at these actions."""
    from qscape.inspect import store
    from qscape.report import smoothness as report

    paths, rest = options.positionals(argv, "RUN", "qscape smoothness")
    given: Any = options.parse(SmoothnessOptions(), rest, "qscape smoothness RUN...")
    require_positive(given, "episodes", "noise_episodes")
    refuse_same(given.json, given.png)
    for name in ("sigmas", "noise_episodes"):
        if not given.robustness and getattr(given, name) != getattr(SmoothnessOptions, name):
            flag = name.replace("_", "-")
            raise Conflict(f"--{flag} needs --robustness: add that flag, or leave --{flag} out.", field=flag)
    records, notes, written = measure_runs(paths, given)
    of_runs, noisy = report.summarise(records), report.summarise_noise(records)
    notes += report.list_notes(records)
    console = plain_console()
    print_findings(console, of_runs, noisy, notes)
    if given.json:
        tables = {"summary": of_runs.to_dict("records"), "under_noise": noisy.to_dict("records")}
        save_text(store.to_json({"runs": records, **tables, "notes": notes}), given.json)
    if given.png:
        save_figure(report.draw_smoothness(records), given.png)
    print_written(console, *written, given.json, given.png)
    return 0


def measure_runs(paths: list[str], given: Any) -> tuple[list[dict[str, Any]], list[str], list[Path]]:
    """Measure every run at the paths, and write the result into its folder if it was named.

    Returns:
        A record for each run; a sentence for each run that was left out or whose folder cannot be written;
        the files that were written.

    Raises:
        UsageError: there is no run, or no run whose actions have a distance.
        RunError: no run has a save.
    """
    from qscape.inspect import smoothness, store
    from qscape.inspect.trained_agent import load_trained_agent
    from qscape.report import environment_label, runs

    records, problems, unwritten, written, scales = [], [], [], [], {}
    folders = runs.find_runs(paths)
    named, below = runs.name_runs(paths, folders)
    print_notes(plain_console(), filter(None, [below]))
    with show_tracks():
        for folder in track(folders, "runs"):
            try:
                trained = load_trained_agent(folder, given.current)
                findings = smoothness.measure_smoothness(trained, given.episodes, given.seed)
            except QscapeError as problem:
                problems.append(problem)
                continue
            if given.robustness:  # the first run in an environment sets the scale: name the base agent first
                env = environment_label(findings)
                if env not in scales:
                    scale = smoothness.measure_observation_scale(trained, given.noise_episodes, given.seed)
                    scales[env] = {"scale_from": trained.name, "scale": scale.tolist()}
                sigma = smoothness.measure_robustness(
                    trained, np.array(scales[env]["scale"]), given.sigmas, given.noise_episodes, given.seed
                )
                findings["robustness"] = {**scales[env], "sigma": sigma}
            records.append(findings)
            if folder in named:
                files, why = store.keep_findings(folder, "smoothness", findings)
                written, unwritten = written + files, unwritten + why
    if not records:
        raise problems[0]
    return records, [*(f"left out: {problem}" for problem in problems), *unwritten], written


def print_findings(
    console: Console, of_runs: "pd.DataFrame", noisy: "pd.DataFrame", notes: list[str]
) -> None:
    """Print, for each environment, the smoothness of actions, the geometry of Q and the effect of noise."""
    for env, rows in of_runs.groupby("env", sort=False):
        head = ["label", "policy", "seeds", "steps"]
        names = ["return", "sm", "action_change", "oscillation"]
        lines = [
            [row["label"], row["policy"], str(row["seeds"]), f"{row['steps']:,}",
             *(_estimate(row, name) for name in names),
             f"{_number(row['sm_mean'])} ± {_number(row['sm_std'])}"]
            for row in rows.to_dict("records")
        ]  # fmt: skip
        titles = [f"{name.replace('_', ' ')} [95%]" for name in names]
        print_table(
            console, f"{env}: smoothness of actions", [*head, *titles, "sm, mean ± std of episodes"], lines
        )
        for form, suffix in FORMS.items():
            _print_geometry(console, f"{env}: Q along the rollouts{suffix}", form, rows)
        if len(noisy):
            lines = [
                [row["label"], f"{row['sigma']:g}", *(_estimate(row, name) for name in names)]
                for row in noisy[noisy["env"] == env].to_dict("records")
            ]
            print_table(console, f"{env}: noise on the observations", ["label", "σ", *titles], lines)
    print_notes(console, notes)


def _print_geometry(console: Console, title: str, form: str, rows: "pd.DataFrame") -> None:
    lines = [
        [row["label"], *(_estimate(row, f"{form}.{name}") for name in GEOMETRY)]
        for row in rows.to_dict("records")
        if row[f"{form}.mixed_norm_sup"] == row[f"{form}.mixed_norm_sup"]  # NaN: the agent has no Q
    ]
    if lines:
        print_table(console, title, ["label", *GEOMETRY.values()], lines)


def _estimate(row: Mapping[Any, Any], name: str) -> str:
    """Return the cell of a mean with its interval, or with the range of runs (episodes) that are too few for
    one.
    """
    value, low, high, least, greatest = (row[f"{name}{end}"] for end in ("", "_low", "_high", "_min", "_max"))
    text = _number(value)
    if low == low:
        return f"{text} [{_number(low)}, {_number(high)}]"
    return f"{text} ({_number(least)} to {_number(greatest)})" if least < greatest else text


def _number(x: float) -> str:
    """Format three significant digits, without powers of ten where possible."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" if abs(x) >= 1e-4 or x == 0 else f"{x:.1e}"
