"""A comparison in sentences: the ranking, the number of seeds, and whether the difference is significant."""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report import require_extra
from qscape.report.intervals import FEWEST
from qscape.report.numbers import digits_of
from qscape.report.records import NO_VALUE
from qscape.report.tables import Comparison, format_seeds

with require_extra("Pages"):
    import pandas as pd

Row = Mapping[Any, Any]


def format_number(x: float, digits: int | None = None) -> str:
    """Format a number as 1,020.3 or −0.123; a missing one as –."""
    if x != x:
        return NO_VALUE
    return f"{x:,.{digits_of(x) if digits is None else digits}f}".replace("-", "−")


def format_interval(low: float, high: float, digits: int) -> str:
    """Format an interval as 1,000.0 to 1,040.0; a missing one as –."""
    return NO_VALUE if low != low else f"{format_number(low, digits)} to {format_number(high, digits)}"


def summarise_comparison(comparison: Comparison) -> list[str]:
    """Write one sentence for each environment, and one over all of them."""
    sentences = [
        _describe_environment(str(env), group.to_dict("records"), comparison)
        for env, group in comparison.per_env.groupby("env")
    ]
    if len(comparison.aggregate) and comparison.per_env["env"].nunique() > 1:
        sentences.append(_describe_overall(comparison))
    return sentences


def _describe_environment(env: str, rows: Sequence[Row], comparison: Comparison) -> str:
    score = comparison.score
    ranked = sorted(rows, key=lambda row: -row[f"{score}_iqm"])
    first, *rest = ranked
    if not rest:
        return f"{env}: {first['label']} reaches {_format_score(first, score)}."
    second = rest[0]
    lead = f"{env}: {first['label']} has the highest score, {_format_score(first, score)}"
    lead += f"; next is {second['label']} with {_format_score(second, score)}. "
    leaders = comparison.leaders
    return lead + _describe_lead(first, second, leaders[leaders["env"] == env])


def _describe_overall(comparison: Comparison) -> str:
    rows = sorted(comparison.aggregate.to_dict("records"), key=lambda row: -row["iqm"])
    first, envs = rows[0], rows[0]["environments"]
    sentence = (
        f"Over all {envs} environments: {first['label']} has the highest normalised interquartile mean, "
    )
    sentence += f"{format_number(first['iqm'], 2)} ({_format_overall(first)})"
    if len(rows) == 1:
        return sentence + "."
    second = rows[1]
    sentence += f"; next is {second['label']} with {format_number(second['iqm'], 2)}"
    sentence += f" ({_format_overall(second)}). "
    leaders = comparison.leaders
    return sentence + _describe_lead(first, second, leaders[leaders["env"].isna()])


def _format_overall(row: Row) -> str:
    seeds, low, high = format_seeds(row["seeds"]), row["iqm_low"], row["iqm_high"]
    return f"{seeds}, no interval" if low != low else f"{seeds}, 95% interval {format_interval(low, high, 2)}"


def _format_score(row: Row, score: str) -> str:
    value, digits = row[f"{score}_iqm"], digits_of(row[f"{score}_iqm"])
    bounds = f"95% interval {format_interval(row[f'{score}_iqm_low'], row[f'{score}_iqm_high'], digits)}"
    if row["seeds"] < FEWEST:
        bounds = f"from {format_interval(row[f'{score}_min'], row[f'{score}_max'], digits)}"
    if row["seeds"] == 1:
        bounds = "no interval"
    return f"{format_number(value)} ({format_seeds(row['seeds'])}, {bounds})"


def _describe_lead(first: Row, second: Row, leaders: pd.DataFrame) -> str:
    """Say what the order of the two best agents means; `leaders`: the row that compares them."""
    seeds = min(first["seeds"], second["seeds"])
    if seeds < 2:
        return "A single seed does not predict the next one: no claim."
    if seeds < FEWEST:
        return f"Fewer than {FEWEST} seeds do not support a claim."
    (row,) = leaders.to_dict("records")
    share, between = row["probability"], format_interval(row["probability_low"], row["probability_high"], 2)
    chance = f"with probability {format_number(share, 2)} (95% interval {between})"
    if row["better"]:
        return f"It is better: a run of it scores higher {chance}."
    return f"These runs do not separate the two: a run of the first scores higher {chance}."
