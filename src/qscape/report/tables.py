"""A comparison of runs as tables: per environment, over environments, and pair by pair."""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from qscape.errors import UsageError
from qscape.report import references, require_extra, statistics

with require_extra("Tables of runs"):
    import numpy as np
    import pandas as pd

FEW_SEEDS = 5


class Comparison(NamedTuple):
    """What `compare` finds. Tables are pandas; `scores` are normalised, [R, T] for each label."""

    rows: pd.DataFrame  # the evaluations that count
    per_env: pd.DataFrame  # raw returns: one row for each environment and label
    aggregate: pd.DataFrame  # normalised scores over all environments; empty where one has no reference score
    improvement: pd.DataFrame  # probability of improvement for each pair of labels
    published: pd.DataFrame  # of others, at the same number of steps
    score: str  # what is ranked: "final" or "best" evaluations
    scores: dict[str, np.ndarray]
    notes: list[str]  # what a reader has to know
    metric: str = "return"  # what returns are: "return", or "success" in percent


def compare(
    runs: pd.DataFrame,
    *,
    policy: str = "kept",
    final: int = 1,
    best: bool = False,
    unequal: bool = False,
    reps: int = 2000,
    normalise: str = "td3",
    metric: str = "return",
    smooth: float = 0.0,
    reference: Sequence[str] = (),
) -> Comparison:
    """Compare the labels in a table of runs (from `load_runs`).

    `policy`: "kept" (where checkpoints keep one, else the current one) or "current". `final`: the final score
    is the mean of so many last evaluations. `best`: rank by each run's best evaluation instead. `reps`:
    bootstrap resamples. `normalise`: table of reference scores. `metric`: "return", or "success": the share
    of successful episodes in percent, never normalised. `smooth`: see `statistics.smooth_returns`. `reference`:
    names of published curves of returns.

    Raises:
        UsageError: the same run twice, unequal budgets without `unequal`, no run to compare, or no success.
    """
    if reference and metric != "return":
        raise UsageError("--reference with --metric success: published curves are of returns; leave one out.")
    found = references.load_published(reference)
    runs = statistics.smooth_returns(statistics.select_metric(runs, metric), smooth)
    rows, notes = _select_comparable(statistics.select_policy(runs, policy), unequal)
    if smooth:
        notes.insert(0, statistics.smoothing_note(smooth))
    scores = {"final": statistics.final_scores(rows, final), "best": statistics.best_scores(rows)}
    notes += note_few_seeds(scores["final"])
    of = "best" if best else "final"
    if metric == "return":
        normalised = references.normalise(scores[of], normalise)
    else:
        notes.append("All scores are success rates in percent, not returns.")
        normalised = "No aggregate over environments: success rates are shown as they are."
    matrices: dict[str, np.ndarray] = {}
    if isinstance(normalised, str):
        notes.append(normalised)
    else:
        matrices, more = _score_matrices(normalised)
        notes += more
    published, more = _published_at(found, rows, reference)
    return Comparison(
        rows,
        _per_env(rows, scores, reps),
        _aggregate(matrices, of, normalise, reps),
        _improvement(scores[of], of, reps),
        published,
        of,
        matrices,
        notes + more,
        metric,
    )


def _select_comparable(rows: pd.DataFrame, unequal: bool) -> tuple[pd.DataFrame, list[str]]:
    """The rows that may be compared: each run once, finished, of one budget per environment."""
    if rows.empty:
        raise UsageError("There is no evaluation of that policy in these runs.")
    runs = rows.groupby("run", as_index=False).agg(
        {"env": "first", "label": "first", "seed": "first", "budget": "first", "step": "max"}
    )
    for _, same in runs.groupby(["env", "label", "seed"]):
        if len(same) > 1:
            a, b = same["run"].iloc[:2]
            raise UsageError(f"{a} and {b} are the same agent, environment and seed: leave one of them out.")
    notes = []
    if not unequal:
        short = runs[runs["step"] < runs["budget"]]
        notes = [
            f"left out {r.run}: unfinished, at {r.step:,} of {r.budget:,} steps (--unequal takes it)."
            for r in short.itertuples()
        ]
        runs = runs.drop(short.index)
        if runs.empty:
            raise UsageError(
                f"No run is finished, e.g. {short['run'].iloc[0]}; --unequal compares them as they are."
            )
    for env, group in runs.groupby("env"):
        reached = group.groupby("label")["step"].agg(lambda s: " and ".join(f"{x:,}" for x in sorted(set(s))))
        if group["step" if unequal else "budget"].nunique() > 1:
            listed = f"Budgets in {env} differ ({'; '.join(f'{k} {v} steps' for k, v in reached.items())})"
            if not unequal:
                raise UsageError(f"{listed}: compare equal ones, or add --unequal.")
            notes.append(f"{listed}: longer runs have the advantage.")
    return rows[rows["run"].isin(runs["run"])], notes


def note_few_seeds(scores: pd.DataFrame) -> list[str]:
    """A sentence for each environment with too few seeds; `scores` has a row (env, label) for each run."""
    counts = scores.groupby(["env", "label"], as_index=False).size()
    few = counts[counts["size"] < FEW_SEEDS]
    notes = []
    for env, group in few.groupby("env"):
        listed = ", ".join(
            f"{label} {_seeds(n)}" for label, n in zip(group["label"], group["size"], strict=True)
        )
        notes.append(f"{env}: {listed}: no ranking claim (fewer than {FEW_SEEDS}).")
    return notes


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def _per_env(rows: pd.DataFrame, scores: dict[str, pd.DataFrame], reps: int) -> pd.DataFrame:
    made = []
    for key, group in rows.groupby(["env", "label"]):
        env, label = map(str, cast(tuple, key))
        row: dict[str, Any] = {
            "env": env,
            "label": label,
            "policy": " and ".join(sorted(group["policy"].unique())),
            "seeds": group["run"].nunique(),
            "steps": group["step"].max(),
        }
        both = [statistics.score_matrix(frame, label, [env]) for frame in scores.values()]
        found = statistics.estimate_columns(np.concatenate(both, axis=1), reps)
        for k, (name, x) in enumerate(zip(scores, both, strict=True)):
            row |= _estimate_columns(f"{name}_iqm", statistics.Estimate(*(part[k] for part in found)))
            row |= {f"{name}_mean": x.mean(), f"{name}_std": x.std(ddof=1) if len(x) > 1 else np.nan}
            row[f"{name}_median"] = np.median(x)
        made.append(row)
    return pd.DataFrame(made)


def _estimate_columns(name: str, estimate: statistics.Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _score_matrices(scores: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Normalised scores of the labels that ran in every environment."""
    envs = sorted(scores["env"].unique())
    made, notes = {}, []
    for label, group in scores.groupby("label"):
        counts = group.groupby("env").size()
        if len(counts) < len(envs):
            absent = ", ".join(sorted({*envs} - {*counts.index}))
            notes.append(f"{label} is not in the aggregate: it has no run in {absent}.")
            continue
        made[str(label)] = statistics.score_matrix(scores, str(label), envs)
        if counts.nunique() > 1:
            notes.append(
                f"{label}: the aggregate takes {counts.min()} seeds of each environment, the fewest of any."
            )
    return made, notes


def _aggregate(matrices: dict[str, np.ndarray], of: str, table: str, reps: int) -> pd.DataFrame:
    scores = references.reference_scores()
    one = scores[scores["table"] == table]["high_is"].iloc[0]
    made = []
    for label, x in matrices.items():
        row: dict[str, Any] = {"label": label, "score": of, "one_is": one}
        row |= {"seeds": x.shape[0], "environments": x.shape[1]}
        for name, estimate in statistics.estimate_aggregates(x, reps).items():
            row |= _estimate_columns(name, estimate)
        made.append(row)
    return pd.DataFrame(made)


def _improvement(scores: pd.DataFrame, of: str, reps: int) -> pd.DataFrame:
    """Pairs of labels over the environments that both ran in. It counts order only: raw returns will do."""
    made = []
    where = scores.groupby("label")["env"].agg(set)
    for x, y in itertools.combinations(sorted(where.index), 2):
        envs = sorted(where[x] & where[y])
        if envs:
            a, b = (statistics.scores_by_env(scores, label, envs) for label in (x, y))
            found = statistics.probability_of_improvement(a, b, reps)
            row = {"x": x, "y": y, "score": of, "environments": len(envs)}
            made.append(row | _estimate_columns("probability", found))
    return pd.DataFrame(made)


def _published_at(
    found: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """For each of our environments the published final figures at or before the steps that our runs made."""
    made, notes = [], []
    for env, ours in rows.groupby("env"):
        steps = ours["step"].max()
        theirs = found[found["env"].map(references.strip_version) == references.strip_version(str(env))]
        for name in names:
            curve = theirs[theirs["name"] == name]
            if curve.empty:
                notes.append(f"No published curve of {name} for {env}.")
            elif curve["step"].min() > steps:
                first = curve["step"].min()
                notes.append(
                    f"No published figure of {name} for {env} at {steps:,} steps or before {first:,}."
                )
            else:
                row = curve[curve["step"] <= steps].sort_values("step").iloc[-1].to_dict()
                made.append({"our_env": env} | row)
    frame = pd.DataFrame(made)
    if made:
        notes.append("Published figures are of other environment versions and protocols: not like for like.")
        notes += [
            f"{row['method']}, published: {row['protocol']}; source {row['source']} ({row['licence']})."
            for row in frame.drop_duplicates("method").to_dict("records")
        ]
    return frame, notes


# --- files --------------------------------------------------------------------------------------------


def to_csv(made: Comparison) -> str:
    """The table per environment; published rows follow with the policy "published" and their source."""
    frame = made.per_env.assign(source="")
    if not made.published.empty:
        theirs = made.published.rename(columns={"iqm": "final_iqm", "mean": "final_mean", "sd": "final_std"})
        theirs = theirs.rename(columns={"method": "label", "step": "steps"}).assign(policy="published")
        frame = pd.concat([frame, theirs[[c for c in theirs if c in frame]]], ignore_index=True)
    return frame.to_csv(index=False)


def to_json(made: Comparison) -> str:
    """All tables and notes; what does not exist is null."""
    tables = {name: getattr(made, name) for name in ("per_env", "aggregate", "improvement", "published")}
    found: dict[str, Any] = {k: json.loads(t.to_json(orient="records")) for k, t in tables.items()}
    return json.dumps(found | {"notes": made.notes}, indent=1) + "\n"


def to_latex(made: Comparison) -> str:
    """A booktabs table: labels × environments, the interquartile mean of the score with its interval."""
    envs = sorted(made.per_env["env"].unique())
    columns = [f"{made.score}_iqm{end}" for end in ("", "_low", "_high")]
    cells = {
        (row["label"], row["env"]): _latex_estimate(*(row[c] for c in columns))
        for row in made.per_env.to_dict("records")
    }
    labels = list(dict.fromkeys(made.per_env["label"]))
    lines = [[escape_latex(label), *(cells.get((label, env), "--") for env in envs)] for label in labels]
    lines += _latex_published(made.published, envs)
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in made.notes),  # a label's line break ends no comment
            f"% {made.score.capitalize()} evaluation, interquartile mean over seeds, 95% bootstrap interval.",
            rf"\begin{{tabular}}{{l{'r' * len(envs)}}}",
            r"\toprule",
            " & ".join(["", *map(escape_latex, envs)]) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_estimate(value: float, low: float, high: float) -> str:
    return f"${value:.1f}$" + ("" if np.isnan(low) else f" [${low:.1f}$, ${high:.1f}$]")


def _latex_published(published: pd.DataFrame, envs: Sequence[str]) -> list[list[str]]:
    """One line a method, with the versions of its environments."""
    lines = []
    for method, group in published.groupby("method", sort=False) if len(published) else ():
        figures = {
            row["our_env"]: f"${row['curve']:.1f}$ ({escape_latex(row['env'])})"
            for row in group.to_dict("records")
        }
        lines.append([escape_latex(f"{method}, published"), *(figures.get(env, "--") for env in envs)])
    return lines


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {c: f"\\{c}" for c in "&%$#_"}


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(c, c) for c in text)
