"""The tables that README and docs quote from the recorded runs, beside what the papers publish."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from blocks import RESULTS, by_seed, show, span, spread, table
from published import EPISODES, read_curves, read_published
from recorded import (
    POLICIES,
    Run,
    at,
    cartpole_rows,
    cut,
    ends,
    labels,
    length_of,
    lengths_of,
    read_json,
    read_runs,
    seeds_of,
)
from scipy.stats import PermutationMethod, fisher_exact, mannwhitneyu
from verdicts import CARTPOLE, LENGTH, interval, ledger, share_text, smoothed, summarise

from qscape.report.references import load_published, strip_version
from qscape.report.statistics import estimate_aggregates

SINGLE, DOUBLE = "restricted/InvertedPendulum-v0", "restricted/InvertedDoublePendulum-v0"
ITEMS, MINES = "recsim/10k-v0", "mineworld/MineWorld-v0"
EXACT = PermutationMethod()  # all ways to share out few seeds; with ties, SciPy would approximate
CHEETAH, HOPPER, WALKER = "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"


def short(label: str) -> str:
    """Shorten the label of an agent of a study to its recipe and what is special in it."""
    recipe, _, rest = label.partition("[")
    usual = ("preset=paper", "base.updates_per_step=0.133", "base.epsilon_decay=0.25", "base.warmup=1000")
    special = [field for field in rest.rstrip("]").split(",") if field and field not in usual]
    return f"`{recipe}`" + (f", {', '.join(special)}" if special else "")


def thousands(steps: int) -> str:
    """Format a number of steps: 20k or 1M."""
    return f"{steps // 1000}k" if steps < 1_000_000 else f"{steps // 1_000_000}M"


def arms(study: str, env: str, metric: str = "return") -> str:
    """Format all recorded arms of a study in an environment, at the end of the shortest run."""
    steps = length_of(study, env)
    cells = [
        f"{short(of)} {spread(ends(study, env, of, metric=metric, steps=steps))}" for of in labels(study, env)
    ]
    return "; ".join(cells)


def block_learning() -> str:
    """Final returns of the recorded runs."""
    current = spread(ends("pendulum", "Pendulum-v1", "td7[base.warmup=1000]", current=True))
    tasks = [
        ("Pendulum-v1, 100 initial states", "pendulum", "Pendulum-v1", "return"),
        ("Pendulum-v1, PAVE's settings, 10 initial states", "pave-effect", "Pendulum-v1", "return"),
        ("the same: oscillation `sm`", "pave-effect", "Pendulum-v1", "sm"),
        ("the same, 50 initial states", "pave", "Pendulum-v1", "return"),
        ("the same: oscillation `sm`", "pave", "Pendulum-v1", "sm"),
        ("restricted InvertedPendulum, 0.133 updates per step", "savo-effect", SINGLE, "return"),
        ("restricted InvertedDoublePendulum, 0.133 updates per step", "savo-effect", DOUBLE, "return"),
        ("10,000 recommendations, 0.02 updates per step: clicks", "savo-recsim", ITEMS, "return"),
        ("HalfCheetah-v5", "mujoco", CHEETAH, "return"),
        ("Hopper-v5", "mujoco", HOPPER, "return"),
        ("Walker2d-v5", "mujoco", WALKER, "return"),
    ]
    rows = [
        [task, thousands(length_of(study, env)), seeds_of(study, env), arms(study, env, metric)]
        for task, study, env, metric in tasks
    ]
    rows[0][-1] += f"; `td7`, current policy {current}"
    return table(["task", "steps", "seeds", "end of training, mean ± std over seeds"], rows)


def block_pave(study: str, env: str) -> str:
    """The last evaluation of every arm of a study with the settings of the PAVE paper."""
    rows = []
    for label in labels(study, env):
        cells = [ends(study, env, label, metric=m) for m in ("return", "sm", "action_change")]
        rows.append([short(label), str(len(cells[0])), *map(span, cells)])
    return table(["agent", "seeds", "return", "`sm`", "mean change of the action, share of its range"], rows)


def block_pave_of(base: str) -> str:
    """The last evaluation of a base's arms on Pendulum, on all first states and on the first ten."""
    study, env, rows = "pave", "Pendulum-v1", []
    for label in (of for of in labels(study, env) if of.startswith(base)):
        values = [ends(study, env, label, metric=m) for m in ("return", "sm", "action_change")]
        rows.append(
            [short(label), str(len(values[0])), *map(span, [*values, *(v[:, :10] for v in values[:2])])]
        )
    names = ["return", "`sm`", "mean change of the action, share of its range"]
    return table(["agent", "seeds", *names, "return, first 10 starts", "`sm`, first 10 starts"], rows)


def block_savo(env: str, *studies: str, metric: str = "return") -> str:
    """The last evaluation of every recorded arm of some SAVO studies, with the ledger's interval."""
    rows = []
    for study, label in [(of, label) for of in studies for label in labels(of, env)]:
        values = ends(study, env, label, metric=metric)
        rows.append([short(label), interval(summarise(values, 0)), by_seed(values)])
    return table(["agent", f"{metric} [95%]", "by seed"], rows)


def block_best_row(study: str) -> str:
    """How far agents act below the best row of their own Q, and what that row earns; of `best_item.py`."""
    measured: dict[str, list[dict]] = {}
    for r in read_json(f"best_item/{study}.json")["measured"]:
        measured.setdefault(r["which"].partition("/")[2], []).append(r)
    rows = [
        [short(label), *(f"{np.mean([r[name] for r in of]):.2f}" for name in ("share", "own", "best"))]
        for label, of in sorted(measured.items())
    ]
    return table(["agent", "below", "own", "best row"], rows)


def block_mujoco(agent: str) -> str:
    """Published returns of an agent after 300k, 1M and 5M steps, and ours."""
    cells = {
        (r.task, r.steps): r.text
        for r in read_published()
        if r[:2] == ("TD7", "Table 1") and r.agent == agent
    }
    lengths = [n for n in (300_000, 1_000_000, 5_000_000) if any(steps == n for _, steps in cells)]
    rows = []
    for task in dict.fromkeys(task for task, _ in cells if (task, 5_000_000) in cells):
        of = "mujoco", f"{task}-v5", agent.lower()
        ours = []
        for end in lengths_of(*of):
            values = ends(*of, steps=end)
            seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""  # of one, `spread` says so
            ours.append(f"at {thousands(end)}: {spread(values)}{seeds}")
        row = [task, *(cells.get((task, n), "") for n in lengths)]
        rows.append([*row, "; ".join(ours) or "not measured"])
    names = [f"published {n // 1000:,}k" for n in lengths]
    return table(["task", *names, "ours"], rows)


def block_curve(agent: str, also: str = "", settings: str = "") -> str:
    """Points of an agent's published curve, and ours at the same steps, from the runs that went so far.

    `also`: a study that has the agent with other settings, and what the table calls them.
    """
    published, rows, steps = load_published([agent]), [], (50_000, 100_000, 200_000)
    for task in ("HalfCheetah", "Hopper", "Walker2d"):
        env, points = f"{task}-v5", published[published["env"].map(strip_version) == task].set_index("step")
        means, sds = (points.loc[[*steps], name] for name in ("mean", "sd"))
        theirs = [f"{show(m)} ± {show(sd, like=m)}" for m, sd in zip(means, sds, strict=True)]
        arms = [("mujoco", agent, task)]
        arms += [(also, label, f"{task}, {settings}") for label in labels(also, env)]
        for study, label, name in arms:
            ours = [spread_of(ends(study, env, label, steps=k)) for k in steps]
            rows.append([name, *itertools.chain(*zip(theirs, ours, strict=True))])
    names = [f"{who} {k // 1000}k" for k in steps for who in ("published", "ours")]
    return table(["task", *names], rows)


def spread_of(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds, with the number of seeds in brackets; "" of none."""
    return f"{spread(values).removesuffix(' (1 seed)')} ({len(values)})" if len(values) else ""


def block_td7_curves() -> str:
    """Learning curves of TD7's kept and current policy, from the runs that went so far."""
    rows, steps = [], (50_000, 75_000, 100_000, 200_000, 300_000)
    for env in (CHEETAH, HOPPER, WALKER):
        for current in (False, True):
            values = [ends("mujoco", env, "td7", steps=k, current=current) for k in steps]
            means = [f"{show(v.mean())} ({len(v)})" if len(v) else "" for v in values]
            rows.append([env, "current" if current else "kept", *means])
    return table(["task", "policy", *(f"{k // 1000}k" for k in steps)], rows)


def block_savgo() -> str:
    """The whole Table 1 of the SAVGO paper, with ours."""
    entries = [e for e in ledger()[0] if (e.row.paper, e.row.table) == ("SAVGO", "Table 1")]
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
    """The published learning curves of SAVGO's figure, and ours at the same steps."""
    entries = [e for e in ledger()[0] if (e.row.paper, e.row.table) == ("SAVGO", "Figure: learning curves")]
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


def block_savgo_pendulum() -> str:
    """Every recorded arm on InvertedDoublePendulum at the steps where they differ, by seed."""
    study, env, rows = "savgo-effect", "InvertedDoublePendulum-v5", []
    for label in labels(study, env):
        cells = [by_seed(ends(study, env, label, steps=steps)) for steps in (10_000, 15_000, 20_000, 0)]
        rows.append([short(label), seeds_of(study, env, label), *cells])
    return table(["agent", "seeds", "10,000 steps, by seed", "15,000", "20,000", "last evaluation"], rows)


def block_savgo_controls() -> str:
    """SAVGO's controls on HalfCheetah and SAC of the study `mujoco`, by seed, beside the published curves.

    SAC is smoothed as if it was evaluated as often as SAVGO and, like the published SAC, half as often.
    """
    steps, curve, rows = (20_000, 50_000, 100_000), (50_000, 100_000), []
    controls = [("savgo-controls", label, 5_000) for label in labels("savgo-controls", CHEETAH)]
    for study, label, every in [("mujoco", "sac", 10_000), ("mujoco", "sac", 5_000), *controls]:
        runs = [r for r in read_runs() if (r.study, r.env, r.label) == (study, CHEETAH, label)]
        cells = [by_seed(ends(study, CHEETAH, label, steps=k)) for k in steps]
        means = [np.mean([smoothed(run, at(run.evaluations, k), every) for run in runs]) for k in curve]
        rows.append([short(label), str(len(runs)), *cells, f"{every:,}", *map(show, means)])
    figure = [r for r in read_published() if (r.table, r.task) == ("Figure: learning curves", "HalfCheetah")]
    for agent, every in (("SAC", 10_000), ("SAVGO", 5_000)):
        of = {r.steps: r for r in figure if r.agent == agent}
        texts = [of[k].text for k in curve]
        rows.append(
            [f"{agent}, published", str(of[curve[0]].seeds), *[""] * len(steps), f"{every:,}", *texts]
        )
    names = [*(f"{k:,}" for k in steps), "evaluated every", *(f"smoothed, {k:,}" for k in curve)]
    names[0] += " steps, by seed"
    return table(["agent", "seeds", *names], rows)


def block_pave_published(base: str) -> str:
    """Published returns and `sm` of the PAVE paper."""
    rows = [r for r in read_published() if (r.paper, r.table) == ("PAVE", f"Table: {base}")]
    tasks = dict.fromkeys(r.task for r in rows)
    text = {(r.agent, r.task, r.metric): r.text.split(" ")[0] for r in rows}
    lines = [
        [agent, *(f"{text[agent, task, 'return']}, {text[agent, task, 'sm']}" for task in tasks)]
        for agent in dict.fromkeys(r.agent for r in rows)
    ]
    return table(["return, `sm`", *tasks], lines)


def block_cliff() -> str:
    """Action collapse at the end on Ideal Cliff Walking: medians over the solved seeds, and their span."""
    recorded = read_json("action_collapse/cliff.json")
    rows = []
    for head in recorded["heads"]:
        of = [r for r in recorded["rows"] if (r["head"], r["update"]) == (head, recorded["updates"])]
        solved = [r for r in of if r["solved"]]
        cells = [f"{len(solved)} of {len(of)}", show(float(np.median([r["return"] for r in solved])))]
        for name in COLLAPSE.values():
            found = np.array([r["samples"][name] for r in solved])
            cells.append(f"{np.median(found):.3f} [{found.min():.3f}, {found.max():.3f}]")
        rows.append([head, *cells])
    return table(["head", "solved", "return of the sampled policy", *COLLAPSE], rows)


COLLAPSE = {
    "alignment": "alignment",
    "self-duality": "self_duality",
    "equinorm of features": "equinorm_h",
    "equiangularity of features": "equiangularity_h",
    "max angle of features": "max_angle_h",
    "within-action variation": "within_variation",
    "nearest-mean agreement": "nearest_mean_agreement",
}


def block_cartpole(algorithm: str) -> str:
    """CartPole by head at the paper's length, and how far chance explains what separates each from ETF."""
    heads = [*read_json("action_collapse/cliff.json")["heads"]]
    of = {head: rows for head in heads if (rows := cartpole_rows(algorithm, head))}
    until = {h: np.array([1000 * CARTPOLE["epoch solved"](r, UNTIL) for r in rows]) for h, rows in of.items()}
    solved = {h: np.array([(r["solved_at"] or math.inf) <= UNTIL for r in rows]) for h, rows in of.items()}
    held = {h: np.array([cut(r, UNTIL)[-3:].mean() >= 475 for r in rows]) for h, rows in of.items()}

    def exact(counted: dict[str, np.ndarray], head: str) -> str:
        pair = [[counted[name].sum(), (~counted[name]).sum()] for name in ("etf", head)]
        return f"{fisher_exact(pair).pvalue:.3f}"

    rows = []
    for head in of:
        counts = [f"{each[head].sum()} of {len(each[head])}" for each in (solved, held)]
        chance = ["–"] * 3
        if head != "etf":
            by_step = mannwhitneyu(until["etf"], until[head]).pvalue
            chance = [f"{by_step:.3f}", exact(solved, head), exact(held, head)]
        rows.append([head, interval(summarise(until[head], 0)), *counts, *chance])
    names = ["steps", "solved", "at the end"]
    return table(["head", *names, *(f"p against ETF: {name}" for name in names)], rows)


UNTIL = 100_000  # steps of the paper's runs on CartPole


def block_acpg() -> str:
    """The whole table of scores of the ACPG paper, with ours."""
    entries = [e for e in ledger()[0] if (e.row.paper, e.row.table) == ("ACPG", "Table: scores")]
    cell = {(e.row.task, e.row.agent, e.row.metric): e for e in entries}
    rows = []
    for task, agent in dict.fromkeys((e.row.task, e.row.agent) for e in entries):
        if "+" in agent:
            continue
        cells, ours = [], []
        for metric in ("best return", "final return", "epoch solved"):
            pair = [cell.get((task, name, metric)) for name in (agent, f"{agent}+ACPG")]
            cells.append(" → ".join(e.row.text for e in pair if e))
            if any(e and e.ours for e in pair):
                ours.append(f"{metric} " + " → ".join(show(e.ours.mean) for e in pair if e and e.ours))
        rows.append([agent, task, *cells, "; ".join(ours) or "not measured"])
    return table(["algorithm", "task, network", "best", "final", "epoch solved", "ours"], rows)


def block_offline() -> str:
    """Returns after learning from the Pendulum dataset."""
    found: dict[str, list[list[float]]] = {}
    for r in read_json("offline/pendulum.json")["rows"]:
        found.setdefault(r["recipe"], []).append(r["returns"])
    ordered = sorted(found.items(), key=lambda item: -np.mean(item[1]))
    rows = [[f"`{name}`", spread(np.array(of)), by_seed(np.array(of))] for name, of in ordered]
    return table(["agent", "return, mean ± std over seeds", "by seed"], rows)


def block_starts() -> str:
    """Return and `sm` of the same policies from the first ten, hundred and all recorded first states."""
    rows = []
    for measured in read_json("smoothness/pave-effect-200-episodes.json")["runs"]:
        cells = [
            show(float(np.mean(measured["per_episode"][metric][:n])))
            for metric in ("return", "sm")
            for n in (10, 100, 200)
        ]
        rows.append([short(measured["label"]), str(measured["seed"]), f"{measured['step'] // 1000}k", *cells])
    names = [f"{metric}, {n} starts" for metric in ("return", "`sm`") for n in (10, 100, 200)]
    return table(["agent", "seed", "step", *names], rows)


def block_recipes() -> str:
    """Pendulum with every recipe: returns at some steps, with the least and the greatest seed."""
    study, env, rows = "pendulum-recipes", "Pendulum-v1", []
    columns = 2_500, 5_000, 7_500, 10_000
    for label in labels(study, env):
        found = [ends(study, env, label, steps=steps) for steps in columns]
        cells = [span(of) if len(of) else "–" for of in found]
        rows.append([f"`{label.partition('[')[0]}`", seeds_of(study, env, label), *cells])
    return table(["agent", "seeds", *(f"{steps:,} steps" for steps in columns)], rows)


def critic_of(label: str) -> str:
    """Name the critic of an arm of the study `critics`, a higher rate, and SAVO if it searches on it."""
    recipe = label.partition("[")[0]
    kind = recipe.removeprefix("td3").removesuffix("+savo").removesuffix("+reward_scale").lstrip("+")
    kind = kind or ("LayerNorm" if "critic_norm=layer" in label else "plain")
    rate = ", rate 1e-3" if "critic_learning_rate=0.001" in label else ""
    return kind + rate + (", SAVO" if recipe.endswith("+savo") else "")


def block_critics(env: str) -> str:
    """The Q-landscapes of the study `critics` in one environment, at states that all of its agents visit."""
    names = ("optima", "several", "gap_share", "concave", "mixed", "curvature")
    rows = [
        [critic_of(label), str(len(of)), *(span(np.array([[r[n]] for r in of])) for n in names)]
        for label, of in measured_critics(env).items()
    ]
    names = ["local optima", "states with several", "gap", "concave", "M", "μ"]
    return table(["critic", "seeds", *names], rows)


def block_critics_agents(env: str) -> str:
    """Return, smoothness and bias of Q of the agents of the study `critics` in one environment."""
    rows = []
    for label, of in measured_critics(env).items():
        cells = [ends("critics", env, label, metric=m) for m in ("return", "sm", "action_change")]
        bias = np.array([[r["bias_share"]] for r in of])
        rows.append([critic_of(label), *map(span, [*cells, bias])])
    return table(["critic", "return", "`sm`", "mean change of the action", "bias of Q"], rows)


def measured_critics(env: str) -> dict[str, list[dict[str, Any]]]:
    """Return what benchmarks/critics.py measured in an environment, by label."""
    of: dict[str, list[dict[str, Any]]] = {}
    for r in read_json(f"critics/{env}.json")["rows"]:
        of.setdefault(r["label"], []).append(r)
    return of


COMBINED = {  # columns of the evaluations of the study `combinations`: name, and whether more is better
    "return": ("return", True),
    "sm": ("`sm`", False),
    "action_change": ("mean change of the action", False),
    "optimality_gap_share": ("gap", False),
    "local_optima": ("local optima", False),
}


def combined(env: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the last evaluations of current policies of `combinations`: recipe -> column -> seeds."""
    of = {}
    for label in labels("combinations", env):
        columns = {m: ends("combinations", env, label, metric=m, current=True).mean(1) for m in COMBINED}
        of[label.partition("[")[0]] = columns
    bases = ("td3", "sac", "td7")
    order = sorted(of, key=lambda recipe: (bases.index(recipe[:3]), recipe.count("+"), recipe))
    return {recipe: of[recipe] for recipe in order}


def estimated(values: np.ndarray) -> str:
    """Format the interquartile mean over seeds with its interval."""
    found = estimate_aggregates(values[:, None])["iqm"]
    low, high = (show(float(x), like=float(found.value)) for x in found[1:])
    return f"{show(float(found.value))} [{low}, {high}]"


def block_combinations(env: str) -> str:
    """Return, smoothness and landscape of every combination of methods in one environment."""
    rows = [
        [f"`{recipe}`", str(len(columns["return"])), *map(estimated, columns.values())]
        for recipe, columns in combined(env).items()
    ]
    return table(["agent", "seeds", *(name for name, _ in COMBINED.values())], rows)


def block_combination_effects(env: str) -> str:
    """The probability that a seed with a method is better than one without, and Mann-Whitney's p."""
    of, rows = combined(env), []
    for part in ("pave", "savo", "savgo"):
        for recipe in of:
            without = "+".join(name for name in recipe.split("+") if name != part)
            if without != recipe and without in of:
                cells = []
                for metric, (_, more) in COMBINED.items():
                    a, b = ((1 if more else -1) * of[name][metric] for name in (recipe, without))
                    share = np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b))
                    cells.append(f"{share:.2f} ({mannwhitneyu(a, b, method=EXACT).pvalue:.3f})")
                rows.append([f"+{part}", f"`{without}`", *cells])
    names = (("higher " if more else "lower ") + name for name, more in COMBINED.values())
    return table(["added", "to", *names], rows)


def record_runs() -> list[Run]:
    """Return the runs of the record and its controls, of which one is TD7 with its own settings, by seed."""
    studies = "record", "record-controls"
    of = [r for r in read_runs() if r.study in studies or (r.study, r.label) == ("mujoco", "td7")]
    return sorted(of, key=lambda r: r.seed)


def measured_record(env: str, label: str, steps: int, *, current: bool) -> np.ndarray:
    """Return the evaluations at a step of an arm's runs that reached it, [seeds, episodes]."""
    of = [r for r in record_runs() if (r.env, r.label) == (env, label)]
    tables = [r.current if current else r.evaluations for r in of]
    found = [t["return"][at(t, steps)] for t in tables if t["step"][-1] >= steps]
    return np.array(found).reshape(-1, EPISODES)


def envs_of_record() -> list[str]:
    """Return the environments of the record, those of the newest version first."""
    return sorted(sorted({r.env for r in record_runs()}), key=version_of, reverse=True)


def task_of(env: str) -> str:
    """Return the name of an environment without its version."""
    return env.rpartition("-")[0]


def version_of(env: str) -> int:
    """Return the version of an environment."""
    return int(env.rpartition("-v")[2])


def labels_of_record() -> list[str]:
    """Return the labels of all arms, in alphabetical order: the control first."""
    return sorted({r.label for r in record_runs()})


def block_record(steps: int) -> str:
    """Published agents, ours, and TD7 with its own settings, at one step of four MuJoCo tasks."""
    curves = {(c.agent, c.task): c for c in read_curves() if c.step == steps}
    tasks = [*dict.fromkeys(task for _, task in curves)]

    def cell(mean: float, sd: float, seeds: int) -> str:
        return show(mean) + (f" ± {show(sd, like=mean)}" if seeds > 1 else "") + f" ({seeds})"

    rows = [
        [agent, *(cell(c.mean, c.sd, c.seeds) if (c := curves.get((agent, t))) else "–" for t in tasks)]
        for agent in dict.fromkeys(agent for agent, _ in curves)
    ]
    versions = dict.fromkeys(map(version_of, envs_of_record()))
    for label, version, current in itertools.product(labels_of_record(), versions, (True, False)):
        cells = []
        for task in tasks:
            means = measured_record(f"{task}-v{version}", label, steps, current=current).mean(1)
            cells.append(cell(means.mean(), deviation(means), len(means)) if len(means) else "not run")
        if set(cells) != {"not run"}:
            name = f"qscape {named_in_record(label)} on -v{version}, {POLICIES[current]} policy"
            rows.append([f"**{name}**", *cells])
    return table(["agent", *tasks], rows)


def deviation(means: np.ndarray) -> float:
    """Return the standard deviation of returns over seeds; NaN for one seed."""
    return means.std(ddof=1) if len(means) > 1 else math.nan


def block_record_differences(steps: int) -> str:
    """What separates our current policy from every other agent at a step, in combined standard errors."""
    envs = envs_of_record()
    ours = {
        (named_in_record(label), env): (means.mean(), deviation(means), len(means))
        for label in labels_of_record()
        for env in envs
        if len(means := measured_record(env, label, steps, current=True).mean(1))
    }
    control = named_in_record("td7")
    others = {
        (c.agent, e): (c.mean, c.sd, c.seeds)
        for c in read_curves()
        if c.step == steps
        for e in envs
        if task_of(e) == c.task
    }
    others |= {(agent, env): of for (agent, env), of in ours.items() if agent == control}

    def cell(ours: tuple[float, float, int] | None, other: tuple[float, float, int] | None) -> str:
        if not ours or not other or math.isnan(ours[1] + other[1]):
            return "–"
        error = math.hypot(*(sd / seeds**0.5 for _, sd, seeds in (ours, other)))
        return f"{(ours[0] - other[0]) / error:+.1f}".replace("-", "−")

    rows = [
        [agent, *(cell(ours.get((arm, env)), others.get((agent, env))) for env in envs)]
        for arm in dict.fromkeys(arm for arm, _ in ours if arm != control)
        for agent in dict.fromkeys(agent for agent, _ in others)
    ]
    return table(["agent", *envs], rows)


def named_in_record(label: str) -> str:
    """Name an arm of the study `record` by what differs from the settings that all arms share."""
    shared = ("base.warmup=5000", "base.updates_per_step=2.0", "checkpoints.early_episodes=3")
    recipe, _, rest = label.partition("[")
    special = [field for field in rest.rstrip("]").split(",") if field and field not in shared]
    alone = "updates and random steps alone"
    return f"`{recipe}`" + (f" ({', '.join(special) or alone})" if rest else "")


def block_record_seeds() -> str:
    """Every run of the record and `record-controls`: its current policy at some steps, and the kept one."""
    columns = [(f"{k}k", 1_000 * k, True) for k in (10, 20, 25, 50, 75, 100, 150, 200)]
    columns += [(f"{k}k, kept", 1_000 * k, False) for k in (100, 200)]
    rows = []
    for run in sorted(record_runs(), key=lambda r: (-version_of(r.env), r.env, r.label)):
        if run.study != "mujoco":
            cells = []
            for _, steps, current in columns:
                of = run.current if current else run.evaluations
                reached = of["step"][-1] >= steps
                cells.append(show(of["return"][at(of, steps)].mean()) if reached else "–")
            rows.append([run.env, named_in_record(run.label), str(run.seed), *cells])
    return table(["task", "agent", "seed", *(name for name, *_ in columns)], rows)


GRID = {"pendulum": "Pendulum-v1", "double": DOUBLE}  # environments of the study `combinations`
CRITICS = [file.stem for file in sorted((RESULTS / "critics").glob("*.json"))]  # measured environments
BLOCKS: dict[str, Callable[[], str]] = {
    "learning": block_learning,
    "pave": functools.partial(block_pave, "pave-effect", "Pendulum-v1"),
    "pave-lander": functools.partial(block_pave, "pave-lander", "LunarLander-v3"),
    "pave-of-sac": functools.partial(block_pave_of, "sac"),
    "pave-of-td3": functools.partial(block_pave_of, "td3"),
    "savo-single": functools.partial(block_savo, SINGLE, "savo-effect", "savo-controls"),
    "savo-double": functools.partial(block_savo, DOUBLE, "savo-effect", "savo-controls"),
    "savo-items": functools.partial(block_savo, ITEMS, "savo-recsim"),
    "savo-items-best": functools.partial(block_best_row, "savo-recsim"),
    "savo-mineworld": functools.partial(block_savo, MINES, "savo-discrete", metric="success"),
    "savo-mineworld-best": functools.partial(block_best_row, "savo-discrete"),
    "td3": functools.partial(block_mujoco, "TD3"),
    "td7": functools.partial(block_mujoco, "TD7"),
    "sac": functools.partial(block_curve, "sac"),
    "td3-curve": functools.partial(block_curve, "td3", "td3-paper", "the paper's settings"),
    "td7-curves": block_td7_curves,
    "savgo": block_savgo,
    "savgo-controls": block_savgo_controls,
    "savgo-curves": block_savgo_curves,
    "acpg": block_acpg,
    "savgo-pendulum": block_savgo_pendulum,
    "pave-td3": functools.partial(block_pave_published, "TD3"),
    "pave-sac": functools.partial(block_pave_published, "SAC"),
    "cliff": block_cliff,
    "cartpole": functools.partial(block_cartpole, "reinforce"),
    "cartpole-ppo": functools.partial(block_cartpole, "ppo"),
    "offline": block_offline,
    "pendulum-recipes": block_recipes,
    **{f"critics-{env}": functools.partial(block_critics, env) for env in CRITICS},
    **{f"critics-{env}-agents": functools.partial(block_critics_agents, env) for env in CRITICS},
    **{f"combinations-{key}": functools.partial(block_combinations, env) for key, env in GRID.items()},
    **{
        f"combinations-{key}-effects": functools.partial(block_combination_effects, env)
        for key, env in GRID.items()
    },
    "record-50k": functools.partial(block_record, 50_000),
    "record-100k": functools.partial(block_record, 100_000),
    "record-200k": functools.partial(block_record, 200_000),
    "record-differences": functools.partial(block_record_differences, 100_000),
    "record-seeds": block_record_seeds,
    "starts": block_starts,
}
