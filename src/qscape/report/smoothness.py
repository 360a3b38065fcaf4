"""Smoothness of several runs: statistics over seeds and a plot. Never imports jax.

A record is one run: the result of `measure_smoothness`, as RUN/inspect/smoothness.json holds it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import intervals, require_extra, statistics, tables, task_label
from qscape.report.charts import COLOURS, GREYS
from qscape.report.figures import new_figure, style_axes
from qscape.report.statistics import Estimate

with require_extra("Smoothness over seeds"):
    import numpy as np
    import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPISODE = ("return", "sm", "action_change", "oscillation")
GEOMETRY = (
    "mixed_norm_sup",
    "mixed_norm_mean",
    "negative_definite",
    "trace_concave",
    "gradient_cosine",
    "gradient_flips",
)
FORMS = ("geometry", "geometry_environment_units")
SHOWN = 3  # action dimensions in a plot
FLOOR = 1e-3  # lowest amplitude in a plot, as a share of the highest

Record = Mapping[str, Any]


def group_by_agent(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Group records by environment and label: the seeds of one agent, in the given order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((task_label(record), record["label"]), []).append(record)
    return groups


def summarise(records: Sequence[Record]) -> pd.DataFrame:
    """Summarise records in one row for each environment and label.

    Several runs: each number is the interquartile mean over runs (of their means over episodes) with a 95%
    interval over runs. One run: the mean over its episodes, with an interval over episodes. Fewer than five
    runs, or episodes of one run: no interval.

    Returns:
        Columns env, label, policy, seeds, episodes, steps; NAME, its interval NAME_low and NAME_high, and the
        range NAME_min and NAME_max of the runs (of one run: of its episodes) for every name of `EPISODE`, and
        for every name of `GEOMETRY` behind "geometry." and "geometry_environment_units."; and,
        in the form of published tables, NAME_mean and NAME_std over all episodes of all runs (population
        std).

    Raises:
        UsageError: two records have the same agent, environment and seed.
    """
    tables.refuse_repeated(
        pd.DataFrame(
            [
                {"run": r["name"], "env": task_label(r), "label": r["label"], "seed": r["seed"]}
                for r in records
            ]
        )
    )
    rows = []
    for (env, label), runs in group_by_agent(records).items():
        row: dict[str, Any] = {
            "env": env,
            "label": label,
            "policy": " and ".join(sorted({r["policy"] for r in runs})),
            "seeds": len(runs),
            "episodes": sum(len(r["per_episode"]["sm"]) for r in runs),
            "steps": max(r["step"] for r in runs),
        }
        row |= _estimate_episodes([r["per_episode"] for r in runs], EPISODE)
        for form in FORMS:
            names = [f"{form}.{name}" for name in GEOMETRY]
            values = np.array([[(r[form] or {}).get(name) for name in GEOMETRY] for r in runs], dtype=float)
            row |= _flatten_estimate(names, statistics.estimate_columns(values), values)
        rows.append(row)
    return pd.DataFrame(rows)


def summarise_noise(records: Sequence[Record]) -> pd.DataFrame:
    """Summarise robustness in one row for each environment, label and noise amplitude.

    Returns:
        Columns env, label, seeds, sigma, and return, sm, action_change and oscillation as in `summarise`.
        Empty if robustness was not measured.
    """
    rows = []
    for (env, label), runs in group_by_agent(records).items():
        tested = [r["robustness"] for r in runs if r.get("robustness")]
        for sigma in tested[0]["sigma"] if tested else ():
            estimate = _estimate_episodes([t["sigma"][sigma] for t in tested], EPISODE)
            rows.append({"env": env, "label": label, "seeds": len(tested), "sigma": float(sigma), **estimate})
    return pd.DataFrame(rows)


def list_notes(records: Sequence[Record]) -> list[str]:
    """List sentences for the reader."""
    notes = []
    for (env, label), runs in group_by_agent(records).items():
        notes += [f"{label} on {env}: {note}" for note in dict.fromkeys(n for r in runs for n in r["notes"])]
    alone = pd.DataFrame(
        [{"env": env, "label": label} for (env, label), runs in group_by_agent(records).items() for _ in runs]
    )
    return notes + _note_unequal_steps(records) + tables.note_few_seeds(alone) + _note_single_seeds(records)


def _note_unequal_steps(records: Sequence[Record]) -> list[str]:
    notes = []
    for (env, label), runs in group_by_agent(records).items():
        steps = sorted({r["step"] for r in runs})
        if len(steps) > 1:
            notes.append(f"{label} on {env}: seeds of {steps[0]:,} to {steps[-1]:,} steps are mixed.")
    return notes


def _note_single_seeds(records: Sequence[Record]) -> list[str]:
    single = [f"{label} on {env}" for (env, label), runs in group_by_agent(records).items() if len(runs) == 1]
    return [f"{', '.join(single)}: one seed, so intervals are over its episodes."] if single else []


def _estimate_episodes(runs: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """Estimate `names` from runs that each hold lists over episodes, with mean and std of all episodes."""
    values = [
        np.array([run[name] for name in names], dtype=float).T for run in runs
    ]  # [episodes, names] each
    if len(runs) == 1:
        points = values[0]
        estimate = statistics.estimate_columns(points, of=intervals.mean)
    else:
        points = np.stack([x.mean(axis=0) for x in values])
        estimate = statistics.estimate_columns(points)
    pooled = np.concatenate(values)
    published = {f"{n}_mean": m for n, m in zip(names, pooled.mean(axis=0), strict=True)}
    published |= {f"{n}_std": s for n, s in zip(names, pooled.std(axis=0), strict=True)}
    return _flatten_estimate(names, estimate, points) | published


def _flatten_estimate(names: Sequence[str], estimate: Estimate, points: np.ndarray) -> dict[str, float]:
    """Name the estimates, their intervals, and the range of the points [runs or episodes, names]."""
    parts = (*estimate, points.min(axis=0), points.max(axis=0))
    ends = zip(("", "_low", "_high", "_min", "_max"), parts, strict=True)
    return {f"{name}{end}": float(part[k]) for end, part in ends for k, name in enumerate(names)}


# --- the plot -----------------------------------------------------------------------------------------


def draw_smoothness(records: Sequence[Record], steps: int = 200) -> "Figure":
    """Draw actions and spectra, a row of panels for each environment and label.

    Left: the first seed's actions over the first `steps` steps of its first episode. Right: the amplitude
    spectrum, the mean over episodes and seeds. At most three action dimensions are drawn, those that
    oscillate most in the environment's first label. Panels of one environment share their scales.
    """
    groups = group_by_agent(records)
    figure = new_figure((12.0, 5.0 * len(groups)))
    axes = figure.subplots(len(groups), 2, squeeze=False)
    shown: dict[str, list[int]] = {}
    peaks: dict[str, float] = {}
    for (env, _), runs in groups.items():
        shown.setdefault(env, _most_oscillating(runs[0]))
        peaks[env] = max(peaks.get(env, 0.0), *(np.max(_amplitude(run)[1:]) for run in runs))
    for ((env, label), runs), (left, right) in zip(groups.items(), axes, strict=True):
        _draw_traces(left, runs[0], shown[env], steps, f"{label} on {env}")
        _draw_spectra(right, runs, shown[env], peaks[env])
    return figure


def _amplitude(record: Record) -> np.ndarray:
    return np.asarray(record["spectrum"]["amplitude"])  # [K, A]


def _most_oscillating(record: Record) -> list[int]:
    """Return the action dimensions with the most high-frequency amplitude, at most `SHOWN`."""
    weighted = np.asarray(record["spectrum"]["frequency"])[:, None] * _amplitude(record)
    return sorted(np.argsort(-weighted.sum(0), kind="stable")[:SHOWN].tolist())


def _draw_traces(ax: "Axes", record: Record, dims: Sequence[int], steps: int, title: str) -> None:
    actions = np.asarray(record["trace"])[:steps]
    for k, dim in enumerate(dims):
        ax.plot(actions[:, dim], color=COLOURS[k], lw=1.1, label=f"action {dim}")
    low, high = record["action_low"], record["action_high"]
    if low is not None:
        least, most = min(low[d] for d in dims), max(high[d] for d in dims)
        ax.set_ylim(least - 0.04 * (most - least), most + 0.04 * (most - least))
    unit = _name_unit(record)
    style_axes(ax, f"{title}, seed {record['seed']}", "step of the first episode", f"action ({unit})")


def _name_unit(record: Record) -> str:
    """Return the unit of a run's actions; the rows of an action table have no bounds, and stay scaled."""
    return "scaled to [−1, 1]" if record["action_low"] is None else "environment's units"


def _draw_spectra(ax: "Axes", runs: Sequence[Record], dims: Sequence[int], peak: float) -> None:
    frequency = np.asarray(runs[0]["spectrum"]["frequency"][1:])  # without the mean, which is at 0
    amplitude = np.mean([_interpolate_spectrum(frequency, run) for run in runs], axis=0)
    for k, dim in enumerate(dims):
        ax.plot(frequency, amplitude[:, dim], color=COLOURS[k], lw=1.2, label=f"action {dim}")
    ax.axvline(0.5, color=GREYS[1], ls="--", lw=1.4, label="0.5: a flip at every step, which sm leaves out")
    ax.set_yscale("log")
    ax.set_ylim((peak or 1.0) * FLOOR, (peak or 1.0) * 2)
    ax.set_xlim(0.0, 0.51)
    sm, change = ([x for run in runs for x in run["per_episode"][name]] for name in ("sm", "action_change"))
    over = f"{len(sm)} episodes" + (f" of {len(runs)} seeds" if len(runs) > 1 else "")
    title = f"sm {np.mean(sm):.3g}, change {np.mean(change):.1%} of the range a step; mean over {over}"
    style_axes(ax, title, "cycles per step", f"amplitude ({_name_unit(runs[0])})")


def _interpolate_spectrum(frequency: np.ndarray, record: Record) -> np.ndarray:
    """Return a run's amplitudes [F, A] at the given frequencies, all of them above 0."""
    own, amplitude = record["spectrum"]["frequency"][1:], _amplitude(record)[1:]
    return np.stack([np.interp(frequency, own, column) for column in amplitude.T], axis=1)
