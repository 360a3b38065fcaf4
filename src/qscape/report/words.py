"""A comparison in sentences: the ranking, the number of seeds, and whether the difference is significant."""

from collections.abc import Mapping, Sequence
from typing import Any

from qscape.report.numbers import digits_of
from qscape.report.records import NO_VALUE
from qscape.report.tables import FEW_SEEDS, Comparison, format_seeds

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
        _describe_environment(str(env), group.to_dict("records"), f"{comparison.score}_iqm")
        for env, group in comparison.per_env.groupby("env")
    ]
    if len(comparison.aggregate) and comparison.per_env["env"].nunique() > 1:
        sentences.append(_describe_overall(comparison))
    return sentences


def _describe_environment(env: str, rows: Sequence[Row], score: str) -> str:
    ranked = sorted(rows, key=lambda row: -row[score])
    first, *rest = ranked
    if not rest:
        return f"{env}: {first['label']} reaches {_format_score(first, score)}."
    second = rest[0]
    lead = f"{env}: {first['label']} has the highest score, {_format_score(first, score)}"
    lead += f"; next is {second['label']} with {_format_score(second, score)}. "
    return lead + _describe_overlap(first, second, score)


def _describe_overall(comparison: Comparison) -> str:
    rows = sorted(comparison.aggregate.to_dict("records"), key=lambda row: -row["iqm"])
    first, envs = rows[0], rows[0]["environments"]
    sentence = (
        f"Over all {envs} environments: {first['label']} has the highest normalised interquartile mean, "
    )
    sentence += f"{format_number(first['iqm'], 2)}{_format_evidence(first, 'iqm', 2)}"
    if len(rows) == 1:
        return sentence + "."
    second = rows[1]
    sentence += f"; next is {second['label']} with {format_number(second['iqm'], 2)}"
    sentence += f"{_format_evidence(second, 'iqm', 2)}. "
    return sentence + _describe_overlap(first, second, "iqm")


def _format_score(row: Row, score: str) -> str:
    return format_number(row[score]) + _format_evidence(row, score, digits_of(row[score]))


def _format_evidence(row: Row, score: str, digits: int) -> str:
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    bounds = "no interval" if low != low else f"95% interval {format_interval(low, high, digits)}"
    return f" ({format_seeds(row['seeds'])}, {bounds})"


def _describe_overlap(first: Row, second: Row, score: str) -> str:
    """Say what the order of the two best agents means."""
    if min(first["seeds"], second["seeds"]) < 2:
        return "A single seed does not predict the next one: no claim."
    overlap = first[f"{score}_low"] <= second[f"{score}_high"]
    if overlap:
        return "Their intervals overlap: these runs do not separate the two."
    if min(first["seeds"], second["seeds"]) < FEW_SEEDS:
        return f"Their intervals do not overlap, but fewer than {FEW_SEEDS} seeds do not support a claim."
    return "Their intervals do not overlap."
