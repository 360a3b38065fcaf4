"""Write the tables of published numbers beside what the recorded runs measured.

python benchmarks/ledger.py

It renews the tables between `<!-- ledger:NAME -->` and `<!-- ledger end -->` in README.md and docs, from
published.csv and the runs in results/ alone. Nothing is trained.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from blocks import BLOCK, PAGES, ROOT, renew, show, spread, table
from published import Row
from recorded import at, read_runs
from verdicts import LENGTH, VERDICTS, Effect, Entry, interval, ledger

Judged = TypeVar("Judged", Entry, Effect)

PAPERS = ("TD7", "PAVE", "SAVGO", "SAVO", "ACPG")


def share_text(share: float) -> str:
    """Format a share of the paper's steps."""
    return f"{100 * share:.0f}%"


def entries_of(paper: str, name: str) -> list[Entry]:
    """Return the entries of a table of a paper."""
    return [e for e in ledger()[0] if (e.row.paper, e.row.table) == (paper, name)]


def at_horizon(row: Row) -> str:
    """Return the metric of a published number with the steps at which it was measured."""
    return f"{row.metric} at {row.steps // 1000:,}k" if row.steps else row.metric


def nearest(entries: Iterable[Judged]) -> list[Judged]:
    """Leave out what is published for longer training than our runs come near.

    Of the horizons of a number that our runs do not reach, the one stays of which they make the largest
    share; of an effect, only if there is no nearer one with numbers of both agents.
    """
    entries, best = [*entries], {}
    for e in [*ledger()[0], *entries]:
        if e.share < LENGTH:
            best[_about(e)] = max(e.share, best.get(_about(e), 0.0))

    def is_near(e: Judged) -> bool:
        least = best[_about(e)]
        if isinstance(e, Effect):
            alone = [best.get((*_about(e)[:2], agent, e.row.metric), 0.0) for agent in (e.agent, e.base)]
            least = max(least, min(alone))
        return e.share >= least

    return [e for e in entries if e.share >= LENGTH or is_near(e)]


def _about(e: Entry | Effect) -> tuple[str, ...]:
    """Return what the entries of all horizons of one number or effect share."""
    agents = (e.agent, e.base) if isinstance(e, Effect) else (e.row.agent,)
    return e.row.table, e.row.task, *agents, e.row.metric


# --- docs/results.md ------------------------------------------------------------------------------------


def block_verdicts() -> str:
    """Return the number of verdicts on the numbers of each paper."""
    rows = []
    for paper in PAPERS:
        of = Counter(e.verdict for e in ledger()[0] if e.row.paper == paper)
        rows.append([paper, str(of.total()), *(str(of[verdict] or "") for verdict in VERDICTS)])
    return table(["paper", "numbers", *VERDICTS], rows)


def block_numbers(paper: str) -> str:
    """Return all numbers of a paper that have runs."""

    def line(e: Entry) -> list[str]:
        distance = show(e.distance, sign=True) if e.ours.seeds > 1 else ""
        ours = [interval(e.ours), str(e.ours.seeds), share_text(e.share), distance, e.verdict]
        return [e.row.table, e.row.task, e.row.agent, at_horizon(e.row), e.row.text, *ours]

    names = ["table", "task", "agent", "metric", "published", "ours [95%]", "seeds", "steps", "distance"]
    of_paper = nearest(e for e in ledger()[0] if e.row.paper == paper and e.ours)
    return table([*names, "verdict"], map(line, of_paper))


def block_effects(paper: str) -> str:
    """Return all differences between a paper's method and a baseline that have runs."""

    def line(e: Effect) -> list[str]:
        ours, low, high = (show(x, sign=True) for x in (e.ours, e.low, e.high))
        ours += "" if e.low != e.low else f" [{low}, {high}]"
        seeds = f"{e.seeds[0]}, {e.seeds[1]}"
        about = [e.row.task, f"{e.agent} over {e.base}", at_horizon(e.row), e.published]
        return [*about, ours, seeds, share_text(e.share), e.verdict]

    names = ["task", "effect", "metric", "published", "ours [95%]", "seeds", "steps", "verdict"]
    return table(names, map(line, nearest(e for e in ledger()[1] if e.row.paper == paper)))


# --- the pages of methods -------------------------------------------------------------------------------


def block_td7_table(agent: str) -> str:
    """Return published returns of an agent in TD7's Table 1, and ours at the end of every run."""
    entries = [e.row for e in entries_of("TD7", "Table 1") if e.row.agent == agent]
    text = {(row.task, row.steps): row.text for row in entries}
    lengths, rows = sorted({row.steps for row in entries}), []
    for task in dict.fromkeys(row.task for row in entries):
        arm = "mujoco", f"{task}-v5", agent.lower()
        tables = [r.evaluations for r in read_runs() if (r.study, r.env, r.label) == arm]
        ours = []
        for end in sorted({int(of["step"][-1]) for of in tables}):
            values = np.array([of["return"][at(of, end)] for of in tables if of["step"][-1] >= end])
            seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""  # of one, `spread` says so
            ours.append(f"at {end // 1000}k: {spread(values)}{seeds}")
        rows.append([task, *(text.get((task, n), "") for n in lengths), "; ".join(ours) or "not measured"])
    return table(["task", *(f"published {n // 1000:,}k" for n in lengths), "ours"], rows)


def block_savgo() -> str:
    """Return the whole Table 1 of the SAVGO paper, with ours."""
    entries = entries_of("SAVGO", "Table 1")
    agents = [*dict.fromkeys(e.row.agent for e in entries)]
    rows = []
    for task in dict.fromkeys(e.row.task for e in entries):
        of = {e.row.agent: e for e in entries if e.row.task == task}
        best = max(e.row.mean for e in of.values())
        cells = [f"**{of[a].row.text}**" if of[a].row.mean == best else of[a].row.text for a in agents]
        ours = [f"{a} {show(e.ours.mean)} at {share_text(e.share)}" for a, e in of.items() if e.ours]
        rows.append([task, *cells, "; ".join(ours) or "not measured"])
    return table(["task", *agents, "ours, at a share of the steps"], rows)


def block_savgo_curves() -> str:
    """Return the published learning curves of SAVGO's figure, and ours at the same steps."""
    entries = entries_of("SAVGO", "Figure: learning curves")
    steps = sorted({e.row.steps for e in entries if e.row.steps != 600_000})  # which REDQ's curve alone has
    rows = []
    for task, agent in dict.fromkeys((e.row.task, e.row.agent) for e in entries):
        of = {e.row.steps: e for e in entries if (e.row.task, e.row.agent) == (task, agent)}
        if {*of} & {*steps}:
            rows.append([task, agent, *(of[k].row.text if k in of else "" for k in steps)])
        if ours := {k: show(e.ours.mean) for k, e in of.items() if e.ours and e.share >= LENGTH}:
            seeds = max(e.ours.seeds for e in of.values() if e.ours)
            rows.append([task, f"{agent}, ours ({seeds})", *(ours.get(k, "") for k in steps)])
    return table(["task", "agent", *(f"{k // 1000:,}k" for k in steps)], rows)


def block_acpg() -> str:
    """Return the whole table of scores of the ACPG paper, with ours."""
    entries = entries_of("ACPG", "Table: scores")
    cell = {(e.row.task, e.row.agent, e.row.metric): e for e in entries}
    rows = []
    for task, agent in dict.fromkeys((e.row.task, e.row.agent) for e in entries if "+" not in e.row.agent):
        cells, ours = [], []
        for metric in ("best return", "final return", "epoch solved"):
            pair = [cell.get((task, name, metric)) for name in (agent, f"{agent}+ACPG")]
            cells.append(" → ".join(e.row.text for e in pair if e))
            if any(e and e.ours for e in pair):
                ours.append(f"{metric} " + " → ".join(show(e.ours.mean) for e in pair if e and e.ours))
        rows.append([agent, task, *cells, "; ".join(ours) or "not measured"])
    return table(["algorithm", "task, network", "best", "final", "epoch solved", "ours"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "verdicts": block_verdicts,
    **{f"numbers-{paper}": functools.partial(block_numbers, paper) for paper in PAPERS if paper != "SAVO"},
    **{f"effects-{paper}": functools.partial(block_effects, paper) for paper in PAPERS},
    "td3": functools.partial(block_td7_table, "TD3"),
    "td7": functools.partial(block_td7_table, "TD7"),
    "savgo": block_savgo,
    "savgo-curves": block_savgo_curves,
    "acpg": block_acpg,
}

if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if BLOCK.search(text) and (new := renew(text, BLOCKS)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
