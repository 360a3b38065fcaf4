"""A comparison of runs as tables: per environment, over environments, and pairwise."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from qscape.errors import Conflict, Mismatch, NothingToDo
from qscape.report import references, require_extra, statistics
from qscape.report.intervals import FEWEST, INTERVAL
from qscape.report.labels import describe_shared, describe_shortened, shorten_labels
from qscape.report.numbers import digits_of
from qscape.tracking import track

with require_extra("Tables of runs"):
    import numpy as np
    import pandas as pd


class Comparison(NamedTuple):
    """The result of `compare`. Tables are pandas DataFrames."""

    rows: pd.DataFrame  # the evaluations that are compared
    per_env: pd.DataFrame  # raw returns: one row for each environment and label
    aggregate: pd.DataFrame  # normalised scores over all environments; empty if one has no reference score
    improvement: pd.DataFrame  # probability of improvement for each pair of labels
    leaders: pd.DataFrame  # the same of the best and the next: by environment, and over all (env None)
    published: pd.DataFrame  # published results, at the same number of steps
    score: str  # the scores that rank agents: "final" or "best" evaluations
    scores: dict[str, np.ndarray]  # normalised scores [R, T] by label
    notes: list[str]  # sentences for the reader
    metric: str = "return"  # the meaning of the column return: "return", or "success" in percent
    names: Mapping[str, str] = {}
    shared: Sequence[str] = ()  # after `shorten`: the settings that all agents share


def compare(
    runs: pd.DataFrame,
    *,
    policy: str = "kept",
    final: int = 1,
    best: bool = False,
    unequal: bool = False,
    normalise: str = "td3",
    metric: str = "return",
    smooth: float = 0.0,
    reference: Sequence[str] = (),
    threshold: float | None = None,
) -> Comparison:
    """Compare the labels in a table of runs (from `load_runs`).

    Args:
        runs: evaluations.
        policy: "kept" (the current policy where a run keeps none) or "current".
        final: the final score of a run is the mean of its last `final` evaluations.
        best: rank by each run's best evaluation instead of its final score.
        unequal: also compare runs of unequal budgets and unfinished runs.
        normalise: table of reference scores ("td3", "d4rl" or "best").
        metric: "return", or "success": the share of successful episodes in percent, never normalised.
        smooth: weight of the past, see `statistics.smooth_returns`.
        reference: names of published curves of returns.
        threshold: an evaluation of this mean return is solved; `per_env` then has `stop_epoch`, the number of
            a run's first solved evaluation (the mean over runs that have one), and `stopped`, their number.

    Raises:
        UsageError: a run appears twice, budgets differ without `unequal`, no run can be compared, or an
            environment reports no success.
    """
    if reference and metric != "return":
        raise Conflict(
            "--reference with --metric success: published curves are of returns; leave one out.",
            field="reference",
        )
    curves = references.load_published(reference)
    runs = statistics.smooth_returns(statistics.select_metric(runs, metric), smooth)
    rows, notes = _select_comparable(statistics.select_policy(runs, policy), unequal)
    if smooth:
        notes.insert(0, statistics.smoothing_note(smooth))
    if final > 1:
        notes.insert(0, f"A final score is the mean of the last {final} evaluations.")
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
    published, more = _published_at(curves, rows, reference)
    per_env, aggregate = _per_env(rows, scores, threshold), _aggregate(matrices, of, normalise)
    return Comparison(
        rows,
        per_env,
        aggregate,
        _improvement(scores[of], of),
        _leaders(per_env, scores[of], aggregate, matrices, of),
        published,
        of,
        matrices,
        notes + more,
        metric,
    )


def shorten(comparison: Comparison) -> Comparison:
    """Take the settings that all agents share out of their labels, for tables and pictures that people read.

    `shared` holds these settings, and `names` the shown name of every label. Notes say what `…` stands for.
    """
    names, shared = shorten_labels(sorted(comparison.rows["label"].unique()))
    if all(label == name for label, name in names.items()):
        return comparison

    def rename(frame: pd.DataFrame) -> pd.DataFrame:
        columns = [name for name in ("label", "x", "y") if name in frame]
        return frame.assign(**{name: frame[name].map(names) for name in columns})

    def reword(note: str) -> str:
        for label in sorted(names, key=len, reverse=True):
            part_of_path = rf"(?<![\w/]){re.escape(label)}(?![\w/])"
            note = re.sub(part_of_path, lambda _, name=names[label]: name, note)
        return note

    return comparison._replace(
        rows=rename(comparison.rows),
        per_env=rename(comparison.per_env),
        aggregate=rename(comparison.aggregate),
        improvement=rename(comparison.improvement),
        leaders=rename(comparison.leaders),
        scores={names[label]: x for label, x in comparison.scores.items()},
        notes=[*map(reword, comparison.notes), *describe_shortened(names, shared)],
        names=names,
        shared=shared,
    )


def _select_comparable(rows: pd.DataFrame, unequal: bool) -> tuple[pd.DataFrame, list[str]]:
    """Select the rows that may be compared: each run once, finished, of one budget per environment."""
    if rows.empty:
        raise NothingToDo("There is no evaluation of that policy in these runs.")
    runs = rows.groupby("run", as_index=False).agg(
        **{name: (name, "first") for name in ("env", "label", "seed", "budget", "ended_by", "envs")},
        step=("step", "max"),
        evaluations=("step", "size"),
    )
    refuse_repeated(runs)
    notes = []
    if not unequal:
        short = runs[runs["step"] < runs["budget"]]
        notes = [
            f"left out {r.run}: {f'ended by {r.ended_by}' if r.ended_by else 'unfinished'}, at {r.step:,} of "
            f"{r.budget:,} steps (--unequal takes it)."
            for r in short.itertuples()
        ]
        runs = runs.drop(short.index)
        if runs.empty:
            early = "No run is finished" if not short["ended_by"].all() else "All runs ended early"
            raise NothingToDo(f"{early}, e.g. {short['run'].iloc[0]}; --unequal compares them as they are.")
    for env, group in runs.groupby("env"):
        if group["step" if unequal else "budget"].nunique() > 1:
            difference = f"Budgets in {env} differ ({_list_by_label(group, 'step', 'steps')})"
            if not unequal:
                raise Mismatch(f"{difference}: compare equal ones, or add --unequal.")
            cut = group.groupby("label")["step"].nunique()
            listed = ", ".join(cut.index[cut > 1])
            ends = f"; the curve of {listed} ends where the shortest of its runs does" if listed else ""
            notes.append(f"{difference}: longer runs have the advantage{ends}.")
        if group["evaluations"].nunique() > 1:
            listed = _list_by_label(group, "evaluations", "evaluations")
            notes.append(
                f"Runs in {env} are not evaluated equally often ({listed}): the best of more is higher, and "
                "--final and --threshold count them."
            )
    for (env, label), group in runs.groupby(["env", "label"]):
        if group["envs"].nunique() > 1:
            listed = ", ".join(map(str, sorted(group["envs"].unique())))
            notes.append(
                f"Runs of {label} in {env} count as seeds of one agent, and step {listed} environments side "
                "by side, which changes how an agent learns."
            )
    return rows[rows["run"].isin(runs["run"])], notes


def _list_by_label(runs: pd.DataFrame, column: str, unit: str) -> str:
    """List the different values of a column for each label: `td3 10 and 20 steps; td7 20 steps`."""
    values = runs.groupby("label")[column].agg(lambda x: " and ".join(f"{v:,}" for v in sorted(set(x))))
    return "; ".join(f"{label} {listed} {unit}" for label, listed in values.items())


def refuse_repeated(runs: pd.DataFrame) -> None:
    """Refuse a run that would count as two seeds; `runs`: a row (run, env, label, seed) for each run.

    Raises:
        UsageError: two runs have the same agent, environment and seed.
    """
    for _, same in runs.groupby(["env", "label", "seed"]):  # drops runs without a seed: agents in memory
        if len(same) > 1:
            a, b = same["run"].iloc[:2]
            raise Conflict(f"{a} and {b} are the same agent, environment and seed: leave one of them out.")


def note_few_seeds(scores: pd.DataFrame) -> list[str]:
    """Write a sentence for each environment with too few seeds; `scores`: a row (env, label) for each run."""
    counts = scores.groupby(["env", "label"], as_index=False).size()
    few = counts[counts["size"] < FEWEST]
    notes = []
    for env, group in few.groupby("env"):
        listed = ", ".join(
            f"{label} {format_seeds(n)}" for label, n in zip(group["label"], group["size"], strict=True)
        )
        notes.append(f"{env}: {listed}: no ranking claim (fewer than {FEWEST}).")
    return notes


def format_seeds(n: int) -> str:
    """Format "1 seed" or "3 seeds"."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def _per_env(rows: pd.DataFrame, scores: dict[str, pd.DataFrame], threshold: float | None) -> pd.DataFrame:
    lines = []
    stops = None if threshold is None else statistics.stop_epochs(rows, threshold)
    for key, group in track([*rows.groupby(["env", "label"])], "intervals"):
        env, label = map(str, cast(tuple, key))
        row: dict[str, Any] = {
            "env": env,
            "label": label,
            "policy": " and ".join(sorted(group["policy"].unique())),
            "seeds": group["run"].nunique(),
            "steps": group["step"].max(),
        }
        both = [statistics.score_matrix(frame, label, [env]) for frame in scores.values()]
        estimate = statistics.estimate_columns(np.concatenate(both, axis=1))
        for k, (name, x) in enumerate(zip(scores, both, strict=True)):
            row |= _estimate_columns(f"{name}_iqm", statistics.Estimate(*(part[k] for part in estimate)))
            row |= {f"{name}_mean": x.mean(), f"{name}_std": x.std(ddof=1) if len(x) > 1 else np.nan}
            row |= {f"{name}_median": np.median(x), f"{name}_min": x.min(), f"{name}_max": x.max()}
            row[f"{name}_runs"] = x[:, 0].tolist()
        if stops is not None:
            of_label = stops[(stops["env"] == env) & (stops["label"] == label)]["score"]
            row |= {"stop_epoch": of_label.mean(), "stopped": int(of_label.notna().sum())}
        lines.append(row)
    return pd.DataFrame(lines)


def _estimate_columns(name: str, estimate: statistics.Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _score_matrices(scores: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Collect the normalised scores of the labels that ran in every environment."""
    envs = sorted(scores["env"].unique())
    matrices, notes = {}, []
    for label, group in scores.groupby("label"):
        counts = group.groupby("env").size()
        if len(counts) < len(envs):
            absent = ", ".join(sorted({*envs} - {*counts.index}))
            notes.append(f"{label} is not in the aggregate: it has no run in {absent}.")
            continue
        matrices[str(label)] = statistics.score_matrix(scores, str(label), envs)
        if counts.nunique() > 1:
            notes.append(
                f"{label}: the aggregate takes {counts.min()} seeds of each environment, the fewest of any."
            )
    return matrices, notes


def _aggregate(matrices: dict[str, np.ndarray], of: str, table: str) -> pd.DataFrame:
    scores = references.reference_scores()
    scale = scores[scores["table"] == table]["high_is"].iloc[0]
    lines = []
    for label, x in track([*matrices.items()], "intervals over environments"):
        row: dict[str, Any] = {"label": label, "score": of, "one_is": scale}
        row |= {"seeds": x.shape[0], "environments": x.shape[1]}
        for name, estimate in statistics.estimate_aggregates(x).items():
            row |= _estimate_columns(name, estimate)
        lines.append(row)
    return pd.DataFrame(lines)


def _improvement(scores: pd.DataFrame, of: str) -> pd.DataFrame:
    """Compare pairs of labels over their common environments, where both have several seeds.

    Only the order counts: raw returns suffice.
    """
    lines = []
    where = scores.groupby("label")["env"].agg(set)
    for x, y in track([*itertools.combinations(sorted(where.index), 2)], "pairs of agents"):
        envs = sorted(where[x] & where[y])
        a, b = (statistics.scores_by_env(scores, label, envs) for label in (x, y))
        if envs and min(map(len, (*a, *b))) > 1:  # one seed says nothing about the next one
            estimate = statistics.probability_of_improvement(a, b)
            row = {"x": x, "y": y, "score": of, "environments": len(envs)}
            lines.append(row | _estimate_columns("probability", estimate))
    return pd.DataFrame(lines)


def _leaders(
    per_env: pd.DataFrame,
    scores: pd.DataFrame,
    aggregate: pd.DataFrame,
    matrices: Mapping[str, np.ndarray],
    of: str,
) -> pd.DataFrame:
    """Compare the best label with the next, in every environment and over all of them."""
    lines = []

    def add(env: str | None, ranked: pd.DataFrame, score: str, columns: Callable[[str], Any]) -> None:
        if len(ranked) > 1:
            x, y = ranked.sort_values(score, ascending=False, kind="stable")["label"].iloc[:2]
            estimate = statistics.probability_of_improvement(columns(x), columns(y))
            better = bool(statistics.is_better(estimate))
            row = {"env": env, "x": x, "y": y, "score": of, "better": better}
            lines.append(row | _estimate_columns("probability", estimate))

    for env, group in per_env.groupby("env"):
        one = str(env)
        add(one, group, f"{of}_iqm", lambda label, e=one: statistics.scores_by_env(scores, label, [e]))
    if per_env["env"].nunique() > 1:
        add(None, aggregate, "iqm", lambda label: [*matrices[label].T])
    return pd.DataFrame(lines)


def _published_at(
    curves: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Select the published results of our environments at or before the last step of our runs; and notes."""
    lines, notes = [], []
    for env, ours in rows.groupby("env"):
        steps = ours["step"].max()
        theirs = references.select_published(curves, str(env))
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
                lines.append({"our_env": env} | row)
    frame = pd.DataFrame(lines)
    if lines:
        notes.append("Published figures are of other environment versions and protocols: not like for like.")
        notes += [
            f"{row['method']}, published: {row['protocol']}; source {row['source']} ({row['licence']})."
            for row in frame.drop_duplicates("method").to_dict("records")
        ]
    return frame, notes


# --- files --------------------------------------------------------------------------------------------


def to_csv(comparison: Comparison) -> str:
    """Format the table per environment as CSV; published rows follow with the policy "published".

    The scores of all runs are one cell, with spaces between them; of fewer than five runs bounds are empty.

    `score`: the scores that rank agents, "final" or "best"; published ones are final. `metric`: "return", or
    "success" in percent.
    """
    frame = comparison.per_env.assign(score=comparison.score, metric=comparison.metric, source="")
    if not comparison.published.empty:
        theirs = comparison.published.rename(
            columns={"iqm": "final_iqm", "mean": "final_mean", "sd": "final_std"}
        )
        theirs = theirs.rename(columns={"method": "label", "step": "steps"}).assign(
            policy="published", score="final", metric="return"
        )
        frame = pd.concat([frame, theirs[[c for c in theirs if c in frame]]], ignore_index=True)
    for name in ("final_runs", "best_runs"):
        frame[name] = [" ".join(map(str, x)) if isinstance(x, list) else "" for x in frame[name]]
    return frame.to_csv(index=False)


def to_json(comparison: Comparison) -> str:
    """Format all tables, the scores that rank agents, their metric, and notes as JSON; missing are null."""
    tables = {
        name: getattr(comparison, name)
        for name in ("per_env", "aggregate", "improvement", "leaders", "published")
    }
    result: dict[str, Any] = {k: json.loads(t.to_json(orient="records")) for k, t in tables.items()}
    result |= {name: getattr(comparison, name) for name in ("score", "metric", "notes")}
    return json.dumps(result, indent=1) + "\n"


def to_latex(comparison: Comparison) -> str:
    """Format a booktabs table: labels × environments, interquartile mean of the score and its interval."""
    envs = sorted(comparison.per_env["env"].unique())
    ends = ("_iqm", "_iqm_low", "_iqm_high", "_min", "_max")
    columns = [f"{comparison.score}{end}" for end in ends]
    cells = {
        (row["label"], row["env"]): _latex_estimate(*(row[c] for c in columns))
        for row in comparison.per_env.to_dict("records")
    }
    labels = list(dict.fromkeys(comparison.per_env["label"]))
    lines = [[escape_latex(label), *(cells.get((label, env), "--") for env in envs)] for label in labels]
    lines += _latex_published(comparison.published, envs, comparison.score)
    return "\n".join(
        [
            *(
                f"% {' '.join(note.split())}"
                for note in filter(None, [describe_shared(comparison.shared), *comparison.notes])
            ),  # a line break in a label must not end the comment
            f"% {comparison.score.capitalize()} evaluation, interquartile mean over seeds [{INTERVAL}], of "
            f"fewer than {FEWEST} seeds (least to greatest).",
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


def _latex_estimate(value: float, low: float, high: float, least: float, greatest: float) -> str:
    digits = digits_of(value)
    text = f"${value:.{digits}f}$"
    if not np.isnan(low):
        return f"{text} [${low:.{digits}f}$, ${high:.{digits}f}$]"
    return text if least == greatest else f"{text} (${least:.{digits}f}$ to ${greatest:.{digits}f}$)"


def _latex_published(published: pd.DataFrame, envs: Sequence[str], score: str) -> list[list[str]]:
    """Return one line for each published method, with its environment versions;
    published are final scores.
    """
    lines, final = [], "" if score == "final" else ", final"
    for method, group in published.groupby("method", sort=False) if len(published) else ():
        figures = {
            row["our_env"]: f"${row['curve']:.{digits_of(row['curve'])}f}$ ({escape_latex(row['env'])}{final}"
            + (", mean)" if np.isnan(row["iqm"]) else ")")
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
    """Escape LaTeX's special characters."""
    return "".join(_SPECIAL.get(c, c) for c in text)
