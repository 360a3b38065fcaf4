"""Write docs/results.md: every number that the five papers publish, beside what the recorded runs measured.

python benchmarks/ledger.py

The page is made from two things alone: published.csv and the runs in results/. The same command renews the
blocks between `<!-- ledger:NAME -->` and `<!-- ledger end -->` in README.md and docs. Nothing is trained.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import quotes
import report
from arms import CAR, FRAMES, SEEDS_UNSTATED, STUDIES, command_of, hours
from blocks import BLOCK, PAGES, ROOT, renew, show, table
from published import Row
from recorded import read_runs
from verdicts import FAR, LENGTH, MARGIN, NEAR, SEEDS, VERDICTS, Effect, Entry, interval, ledger, share_text

PAGE = ROOT / "docs" / "results.md"


COLUMNS = [
    "task",
    "agent",
    "metric",
    "published",
    "ours [95%]",
    "seeds",
    "steps",
    "distance",
    "verdict",
    "core-h",
]


def line_of(entry: Entry) -> list[str]:
    """Return the cells of an entry."""
    row, ours = entry.row, entry.ours
    metric = f"{row.metric} at {row.steps // 1000:,}k" if row.steps else row.metric
    needed = hours(row)
    measured = ours is not None and ours.seeds > 1
    return [
        row.task,
        row.agent,
        metric,
        row.text,
        interval(ours),
        str(ours.seeds) if ours else "",
        share_text(entry.share),
        show(entry.distance, sign=True) if measured else "",
        entry.verdict,
        "–" if needed is None else show(sum(needed.values())),
    ]


def commands_of(row: Row) -> str:
    """Return the commands of a row, as cells show them."""
    return ", ".join(f"`{command}`" for agent in row.agents if (command := command_of(row, agent)))


def line_of_effect(effect: Effect) -> list[str]:
    """Return the cells of an effect."""
    return [
        effect.task,
        f"{effect.agent} over {effect.base}",
        effect.metric,
        effect.published,
        f"{show(effect.ours, sign=True)} [{show(effect.low, sign=True)}, {show(effect.high, sign=True)}]",
        f"{effect.seeds[0]}, {effect.seeds[1]}",
        share_text(effect.share),
        effect.verdict,
    ]


PAPERS = {
    "TD7": "arXiv 2306.02451. Returns of 10 runs on Gym's -v4 tasks; ours are on -v5, with the kept policy.",
    "PAVE": "arXiv 2601.22970. 5 runs of 10 episodes; the spread is over all 50. For the ablation and the "
    "other regularisers the number of runs is not stated.",
    "SAVGO": "arXiv 2605.00787. The highest of 200 evaluations of a run. Figures are read from plots. "
    "The paper's baselines are another library's and are evaluated half as often; its TD3 does not explore.",
    "SAVO": "arXiv 2410.11833. The paper prints one table, of a task that it does not name. Of its "
    "curves, the ledger has the order that the text states. The recorded runs on MineWorld have the paper's "
    "20 environments, the others one, where the paper has 10 or 16. On the restricted pendulums TD3 and "
    "Wolpertinger bootstrap with target smoothing here, as they do by default, and SAVO without; what is "
    "left of the effects without this difference is [measured too](methods/savo.md#restricted-pendulums).",
    "ACPG": "arXiv 2509.02737. No spread is printed. An epoch is read as 1,000 steps. A run of the paper "
    "has 100 or 500 epochs; ours on CartPole are cut at 100, and a seed that is not solved counts 100.",
}
MISSING = {
    "TD7": "Not in the ledger, because the numbers are not at hand: TD3's column at 300,000 steps, and the "
    "percentages of the design study and of the ablations (study `td7-design`).",
    "PAVE": "Not in the ledger, because the numbers are not at hand: the tables of robustness and cost "
    "(study `pave`), sensitivity (`pave-sweeps`) and LipsNet (`pave-lipsnet`).",
    "SAVGO": "Not in the ledger: numbers of Table 1 in earlier versions of the paper's text, by version 1 "
    "of the method (HalfCheetah 9019 and 9165, Humanoid 7427 and 7260, Walker2d 5908, Ant 4615).",
    "SAVO": "What the text says of profiles over tasks, ablations, noise and landscapes is no row here. "
    "These studies repeat the figures: `savo`, `savo-discrete`, `savo-actors`, `savo-adroit`, "
    "`savo-items`, `savo-noise`, `savo-resets`, `savo-summarisers` and `savo-unrestricted`.",
}
RULES = f"""## How to read it

A row of a table is a number that a paper publishes.

- *Ours* is the mean over seeds of the recorded runs, with a 95% interval: t over the seeds, and over the
  first states, which all runs share.
- *Steps* is the length of our runs as a share of the paper's.
- A protocol is the paper's if the version of the task, the settings and the measure are. Those of PAVE and of
  SAVGO's own agent are; what differs for the others stands above their tables.
- *Distance* is ours less the published number, in combined standard errors. A number that is published
  without a spread counts as exact up to rounding. PAVE's spread is over the 50 episodes of
  5 runs, which count as independent here; where runs differ more than episodes do, its error is greater.
  A number is contradicted or not seen only if it is as far away with all of that spread between the runs.
- *Command* makes one run of the row, with seed 0; `--seeds 0 1 2` makes more.
- *Core-h* is what all runs of the row take, estimated from the recorded costs of updates, on one core of the
  slower machine of [Performance](performance.md). "–": qscape does not have the agent, or its cost is not
  measured. Where a paper does not state them, {SEEDS_UNSTATED} seeds are assumed, and on images
  {FRAMES // 10**6}M steps. CarRacing's {1000 * CAR:.0f} ms a step are a guess.

| verdict on a number | rule |
| --- | --- |
| not run | no run is recorded |
| too short | fewer than {SEEDS} seeds, or less than {LENGTH:.0%} of the paper's steps |
| reproduced | the 95% interval of the difference lies within {MARGIN:.0%} of the published number |
| contradicted | {FAR:.0f} standard errors away or more, under the paper's own protocol |
| not seen | {FAR:.0f} standard errors away or more, under a protocol that differs from the paper's |
| undecided | everything else: our runs neither show the number nor rule it out |

An *effect* is the difference between a paper's method and a baseline, wherever the paper shows one (more than
{NEAR:.0f} standard errors, or no spread printed) and both ran here, in one study (from the same states).
The table of numbers takes the study with the most seeds of each agent, so the two tables may differ.

| verdict on an effect | rule |
| --- | --- |
| too short | as above |
| reproduced | our 95% interval (Welch, over seeds, for these first states) excludes 0, on the paper's side |
| contradicted | it excludes 0, on the other side, under the paper's own protocol |
| not seen | it excludes 0, on the other side, under another protocol |
| undecided | it holds 0 |

No verdict is corrected for the number of comparisons. A verdict is about these runs, not about a method.
"""


def count(verdicts: Iterable[str]) -> str:
    """Count verdicts, in words."""
    counted = Counter(verdicts)
    return ", ".join(f"{counted[v]} {v}" for v in VERDICTS if counted[v])


def total_hours(entries: Iterable[Entry]) -> float:
    """Add the core-hours of all runs behind some entries; a run that serves several rows counts once."""
    longest: dict[tuple[str, str, str], float] = {}
    for entry in entries:
        row = entry.row
        for agent, needed in (hours(row) or {}).items():
            key = (row.paper, row.task, agent)
            longest[key] = max(longest.get(key, 0.0), needed)
    return sum(longest.values())


def named(entries: Iterable[Entry]) -> str:
    """Name entries: for each paper and task the metrics, and for each metric the agents."""
    groups: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        row = entry.row
        metrics = groups.setdefault(f"{row.paper} on {row.task}", {})
        metrics.setdefault(row.metric, []).append(row.agent)
    return "; ".join(
        f"{where}: " + ", ".join(f"{metric} of {_listed(agents)}" for metric, agents in metrics.items())
        for where, metrics in groups.items()
    )


def named_effects(effects: Iterable[Effect]) -> str:
    """Name effects: for each task and metric the agents over whom."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for e in effects:
        groups.setdefault((e.task, e.metric, e.agent), []).append(e.base)
    return "; ".join(
        f"{agent} over {_listed(bases)} on {task}: {metric}"
        for (task, metric, agent), bases in groups.items()
    )


def _listed(names: Iterable[str]) -> str:
    """List names once each: A, B and C."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def make_summary() -> str:
    """Make the summary in six lines."""
    entries, effects = ledger()
    numbers = {v: [e for e in entries if e.verdict == v] for v in VERDICTS}
    of = {v: [e for e in effects if e.verdict == v] for v in VERDICTS}
    spent = sum(run.seconds for run in read_runs()) / 3600
    nothing = "none"

    def both(verdict: str) -> str:
        return "; effects: ".join([named(numbers[verdict]) or nothing, named_effects(of[verdict]) or nothing])

    lines = [
        f"**In all** {len(entries)} published numbers of five papers: {count(e.verdict for e in entries)}.",
        f"**Reproduced**: {both('reproduced')}.",
        f"**Contradicted**: {both('contradicted')}.",
        f"**Not seen**, under another protocol: {both('not seen')}.",
        f"**Undecided**: {both('undecided')}.",
        f"**Open**: all else. {spent:.0f} hours of training by the clock are recorded. All tables at the "
        f"papers' length would take at least {round(total_hours(entries), -2):,.0f} core-hours.",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def make_paper(paper: str) -> list[str]:
    """Make the section of a paper."""
    entries = [e for e in ledger()[0] if e.row.paper == paper]
    effects = [e for e in ledger()[1] if e.paper == paper]
    parts = [
        f"## {paper}\n",
        f"{PAPERS[paper]}\n",
        f"{len(entries)} numbers: {count(e.verdict for e in entries)}. All at the paper's length: about "
        f"{round(total_hours(entries)):,} core-hours.\n",
    ]
    if effects:
        names = ["task", "effect", "metric", "published", "ours [95%]", "seeds", "steps", "verdict"]
        parts += ["Effects:\n", table(names, map(line_of_effect, effects))]
    if measured := [e for e in entries if e.ours]:
        names = ["table", *COLUMNS]
        parts += ["Numbers with runs:\n", table(names, ([e.row.table, *line_of(e)] for e in measured))]
    for name in dict.fromkeys(e.row.table for e in entries):
        of = [e for e in entries if e.row.table == name]
        commands = [f"qscape study run {study} --budget" for study in STUDIES[paper, name]]
        paper_s, short = (" and ".join(f"`{c} {budget}`" for c in commands) for budget in ("paper", "short"))
        counts = count(e.verdict for e in of)
        parts += [
            f"<details markdown>\n<summary>{name}: {len(of)} numbers, {counts}</summary>\n",
            f"The whole table: {paper_s}. What a small machine affords: {short}.\n",
            table([*COLUMNS, "command"], ([*line_of(e), commands_of(e.row)] for e in of)),
            "</details>\n",
        ]
    return [*parts, *([f"{MISSING[paper]}\n"] if paper in MISSING else [])]


def make_page() -> str:
    """Make docs/results.md."""
    head = [
        "# Results: what the papers claim and what we measured\n",
        "Made by `python benchmarks/ledger.py` from `benchmarks/published.csv` and `benchmarks/results`; do "
        "not edit.\n",
        make_summary(),
        RULES,
    ]
    papers = dict.fromkeys(e.row.paper for e in ledger()[0])
    return "\n".join([*head, *(part for paper in papers for part in make_paper(paper))])


BLOCKS = {"summary": make_summary, **quotes.BLOCKS, **report.BLOCKS}


def outputs() -> dict[Path, str]:
    """Return what every file should hold: the page, and all pages with blocks."""
    made = {
        page: renew(page.read_text(), BLOCKS)
        for page in PAGES
        if page != PAGE and BLOCK.search(page.read_text())
    }
    return {PAGE: make_page(), **made}


if __name__ == "__main__":
    for file, content in outputs().items():
        file.write_text(content, encoding="utf-8")
        print(file.relative_to(ROOT))
