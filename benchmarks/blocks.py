"""Tables of the documentation; those of the ledger are between `<!-- ledger:NAME -->` and its end."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- ledger:([A-Za-z0-9-]+) -->\n).*?(<!-- ledger end -->)", re.DOTALL)


def strip_places(command: str) -> str:
    """Leave only the names of a command's absolute paths: where a folder lies is its machine's matter."""
    return re.sub(r"(?<= )/\S*/(?=[^/\s])", "", command)


def table(names: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def renew(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """Renew the tables of a page."""
    return BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]()}{m[3]}", text)


def write_table(page: Path, name: str, text: str) -> None:
    """Write a table into its place on a page, between `<!-- table:NAME -->` and `<!-- table end -->`."""
    place = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- table end -->)", re.DOTALL)
    whole, found = place.subn(lambda m: m[1] + text + m[2], page.read_text(encoding="utf-8"))
    assert found, f"{page} has no place for {name}"
    page.write_text(whole, encoding="utf-8")


def show(x: float, *, like: float | None = None, sign: bool = False) -> str:
    """Format a number with about four digits, and a true minus.

    Args:
        x: the number.
        like: take as many decimals as for this number.
        sign: write a plus, too.
    """
    if math.isnan(x):
        return "–"
    size = abs(x if like is None else like)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{x:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def spread(values: np.ndarray) -> str:
    """Format the mean and the standard deviation over seeds; of a single seed its mean."""
    means = values.mean(1)
    if len(means) == 1:
        return f"{show(means[0])} (1 seed)"
    return f"{show(means.mean())} ± {show(means.std(ddof=1), like=means.mean())}"
