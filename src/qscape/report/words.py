"""A comparison in plain words: who leads where, of how many seeds, and whether that means anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report.records import NO_VALUE
from qscape.report.tables import FEW_SEEDS, Comparison

Row = Mapping[Any, Any]


def format_number(x: float, digits: int | None = None) -> str:
    """1,020.3, −0.123 or, where there is none, –."""
    if x != x:
        return NO_VALUE
    return f"{x:,.{digits_of(x) if digits is None else digits}f}".replace("-", "−")


def digits_of(x: float) -> int:
    """Decimals of a number of that size, for all that stand beside it."""
    return 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3


def format_interval(low: float, high: float, digits: int) -> str:
    """1,000.0 to 1,040.0 or, where there is none, –."""
    return NO_VALUE if low != low else f"{format_number(low, digits)} to {format_number(high, digits)}"


def format_seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def summarise_comparison(made: Comparison) -> list[str]:
    """A few sentences: one for each environment, and one over all of them."""
    said = [
        _describe_environment(str(env), group.to_dict("records"), f"{made.score}_iqm")
        for env, group in made.per_env.groupby("env")
    ]
    if len(made.aggregate) and made.per_env["env"].nunique() > 1:
        said.append(_describe_overall(made))
    return said


def _describe_environment(env: str, rows: Sequence[Row], score: str) -> str:
    ranked = sorted(rows, key=lambda row: -row[score])
    first, *rest = ranked
    if not rest:
        return f"{env}: {first['label']} reaches {_format_score(first, score)}."
    second = rest[0]
    lead = f"{env}: {first['label']} has the highest score, {_format_score(first, score)}"
    lead += f"; next is {second['label']} with {_format_score(second, score)}. "
    return lead + _describe_overlap(first, second, score)


def _describe_overall(made: Comparison) -> str:
    rows = sorted(made.aggregate.to_dict("records"), key=lambda row: -row["iqm"])
    first, envs = rows[0], rows[0]["environments"]
    said = f"Over all {envs} environments: {first['label']} has the highest normalised interquartile mean, "
    said += f"{format_number(first['iqm'], 2)}{_format_evidence(first, 'iqm', 2)}"
    if len(rows) == 1:
        return said + "."
    second = rows[1]
    said += f"; next is {second['label']} with {format_number(second['iqm'], 2)}{_format_evidence(second, 'iqm', 2)}. "
    return said + _describe_overlap(first, second, "iqm")


def _format_score(row: Row, score: str) -> str:
    return format_number(row[score]) + _format_evidence(row, score, digits_of(row[score]))


def _format_evidence(row: Row, score: str, digits: int) -> str:
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    bounds = "no interval" if low != low else f"95% interval {format_interval(low, high, digits)}"
    return f" ({format_seeds(row['seeds'])}, {bounds})"


def _describe_overlap(first: Row, second: Row, score: str) -> str:
    """What the order of the two means."""
    if min(first["seeds"], second["seeds"]) < 2:
        return "One seed says nothing about the next: no claim."
    overlap = first[f"{score}_low"] <= second[f"{score}_high"]
    if overlap:
        return "Their intervals overlap: these runs do not tell the two apart."
    if min(first["seeds"], second["seeds"]) < FEW_SEEDS:
        return f"Their intervals do not overlap, but fewer than {FEW_SEEDS} seeds are no ground for a claim."
    return "Their intervals do not overlap."
