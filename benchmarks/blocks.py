"""The generated parts of the documentation, between `<!-- ledger:NAME -->` and `<!-- ledger end -->`."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

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
    """Renew the blocks of a page; those that `blocks` does not name stay."""
    return BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]()}{m[3]}" if m[2] in blocks else m[0], text)


def base_of(name: str) -> str:
    """Return the agent that the cost of another one's update is compared with."""
    base = name.split("+")[0].split(",")[0]
    return base if base in ("td3", "td7") else "sac"
