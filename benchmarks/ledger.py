"""Write docs/results.md: every number that the five papers publish, beside what the recorded runs measured.

python benchmarks/ledger.py

The page is made from two things alone: published.csv and the runs in results/. The same command renews the
blocks between `<!-- ledger:NAME -->` and `<!-- ledger end -->` in README.md and docs. Nothing is trained.
"""

import csv
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from blocks import BLOCK, PAGES, RESULTS, ROOT, renew, table
from collect import read_archive
from scipy.stats import fisher_exact, mannwhitneyu
from scipy.stats import t as student

HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "results.md"

SEEDS = 3  # fewer seeds than this have no verdict
LENGTH = 0.9  # nor has a run that is shorter than this share of the paper's
NEAR, FAR = 2.0, 3.0  # combined standard errors: up to NEAR is equal, from FAR on is different
WIDE = 0.2  # a number whose 95% interval reaches further than this share of it shows nothing
EPISODES = 10  # of an evaluation in the PAVE paper, whose spread is over the episodes of all runs
POLICIES = ("kept", "current")
VERDICTS = ("reproduced", "not seen", "contradicted", "too short", "not run")


# --- the rules ----------------------------------------------------------------------------------------


class Ours(NamedTuple):
    """What we measured for one published number.

    Attributes:
        mean: mean over seeds.
        error: its standard error; NaN for one seed.
        half: half the width of its 95% interval; NaN for one seed.
        seeds: number of runs.
        steps: environment steps of the runs that went into the number.
    """

    mean: float
    error: float
    half: float
    seeds: int
    steps: int


def judge(ours: Ours | None, share: float, distance: float, *, same: bool) -> str:
    """Return the verdict on a number.

    Args:
        ours: our measurement; None if nothing is recorded.
        share: our steps as a share of the paper's.
        distance: our mean less the published one, in combined standard errors.
        same: whether our protocol is the paper's. Only then can a different number contradict the paper.
    """
    if ours is None:
        return "not run"
    if ours.seeds < SEEDS or share < LENGTH:
        return "too short"
    if abs(distance) <= NEAR and ours.half <= WIDE * abs(ours.mean):
        return "reproduced"
    return "contradicted" if abs(distance) >= FAR and same else "not seen"


def judge_effect(low: float, high: float, sign: float, *, seeds: int, share: float, same: bool) -> str:
    """Return the verdict on a difference between two agents.

    Args:
        low: lower end of the 95% interval of our difference.
        high: its upper end.
        sign: sign of the published difference.
        seeds: the smaller number of seeds of the two.
        share: our steps as a share of the paper's.
        same: as in `judge`.
    """
    if seeds < SEEDS or share < LENGTH:
        return "too short"
    if low <= 0 <= high:
        return "not seen"
    if (low > 0) == (sign > 0):
        return "reproduced"
    return "contradicted" if same else "not seen"


def summarise(values: np.ndarray, steps: int) -> Ours:
    """Summarise one number for each seed, or for each seed and episode.

    All runs are evaluated from the same first states. So the error of the mean has two sources: the seeds,
    and the choice of first states.

    Args:
        values: array [seeds] or [seeds, episodes].
        steps: environment steps of the runs.
    """
    seeds = len(values)
    means = values.reshape(seeds, -1).mean(1)
    variances, halves = [0.0], [0.0]
    if values.ndim == 2 and values.shape[1] > 1 and seeds > 1:
        episodes = values.shape[1]
        variances.append(float(values.mean(0).var(ddof=1)) / episodes)
        halves.append(float(student.ppf(0.975, episodes - 1)) ** 2 * variances[-1])
    variances.append(float(means.var(ddof=1)) / seeds if seeds > 1 else math.nan)
    halves.append(float(student.ppf(0.975, max(seeds - 1, 1))) ** 2 * variances[-1])
    return Ours(float(means.mean()), math.sqrt(sum(variances)), math.sqrt(sum(halves)), seeds, steps)


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two means and its 95% interval, by Welch's t; one number for each seed."""
    parts = [x.var(ddof=1) / len(x) for x in (a, b)]
    error, gap = math.sqrt(sum(parts)), float(a.mean() - b.mean())
    if error == 0:
        return gap, gap, gap
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    half = float(student.ppf(0.975, freedom)) * error
    return gap, gap - half, gap + half


# --- what the papers say ------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of published.csv. `mean` is NaN where the paper states only an order ("higher")."""

    paper: str
    table: str
    task: str
    agent: str
    metric: str
    mean: float
    spread: float
    spread_is: str
    seeds: int
    steps: int
    text: str  # the published number as it is printed

    @property
    def error(self) -> float:
        """The standard error of the published mean: of its spread, if that is published, and of rounding."""
        rounding = 10.0 ** -len(self.text.split(" ")[0].partition(".")[2]) / math.sqrt(12)
        if math.isnan(self.spread):
            return rounding
        runs = self.seeds * (EPISODES if "episodes" in self.spread_is else 1)
        of_spread = self.spread / (1.96 if self.spread_is.startswith("half of the 95%") else math.sqrt(runs))
        return math.hypot(of_spread, rounding)

    @property
    def agents(self) -> list[str]:
        """The agents of the row: two where it states an order."""
        return self.agent.split(" over ")


@functools.cache
def read_published() -> list[Row]:
    """Read published.csv."""
    rows = []
    with (HERE / "published.csv").open(newline="") as file:
        for r in csv.DictReader(file):
            mean = float("nan" if r["mean"] == "higher" else r["mean"])
            text = r["mean"] + (f" ± {r['spread']}" if r["spread"] else "")
            numbers = (
                float(r["spread"] or "nan"),
                r["spread_is"],
                int(r["seeds"] or 0),
                int(r["steps"] or 0),
            )
            named = (r["paper"], r["table"], r["task"], r["agent"], r["metric"])
            rows.append(Row(*named, mean, *numbers, text.replace("-", "−")))
    return rows


# --- the recorded runs --------------------------------------------------------------------------------


class Run(NamedTuple):
    """A recorded run.

    Attributes:
        study: archive of results/learning.
        env: environment id.
        label: recipe with the settings that differ from its defaults.
        seed: random seed.
        evaluations: column -> array [evaluations, episodes], of the policy that the run keeps, if it keeps
            one; "step" is [evaluations].
        current: the same of the current policy.
        seconds: wall seconds of training.
    """

    study: str
    env: str
    label: str
    seed: int
    evaluations: dict[str, np.ndarray]
    current: dict[str, np.ndarray]
    seconds: float


def read_evaluations(text: str, policy: str) -> dict[str, np.ndarray]:
    """Read evaluations.csv; rows of another policy are left out, unless the run has no such policy."""
    rows = [*csv.DictReader(text.splitlines())]
    rows = [r for r in rows if r["policy"] == policy] or rows
    steps = sorted({int(r["step"]) for r in rows})
    found: dict[str, np.ndarray] = {"step": np.array(steps)}
    for name in ("return", "sm", "action_change"):
        if name in rows[0]:
            of = {step: [float(r[name]) for r in rows if int(r["step"]) == step] for step in steps}
            found[name] = np.array([of[step] for step in steps])
    return found


def read_seconds(text: str) -> float:
    """Return the wall seconds of training, from the lines of metrics.jsonl."""
    seconds, before = 0.0, 0
    for entry in map(json.loads, text.splitlines()):
        if entry.get("steps_per_second"):
            seconds += (entry["step"] - before) / entry["steps_per_second"]
        before = entry["step"]
    return seconds


@functools.cache
def read_runs() -> list[Run]:
    """Read all recorded runs, in a fixed order."""
    runs = []
    for archive in sorted((RESULTS / "learning").glob("*.tar.xz")):
        contents = {name: data.decode() for name, data in read_archive(archive).items()}
        for name in (name for name in contents if name.endswith("/run.json")):
            plan, folder = json.loads(contents[name]), name.removesuffix("run.json")
            study = folder.split("/")[0]
            policies = [read_evaluations(contents[f"{folder}evaluations.csv"], which) for which in POLICIES]
            seconds = read_seconds(contents[f"{folder}metrics.jsonl"])
            runs.append(Run(study, plan["env"], plan["label"], plan["seed"], *policies, seconds))
    return runs


@functools.cache
def read_json(name: str) -> dict:
    """Read a file of results/."""
    return json.loads((RESULTS / name).read_text())


ENVIRONMENTS = {
    "Pendulum": "Pendulum-v1",
    "LunarLander": "LunarLander-v3",
    "RecSim": "recsim/10k-v0",
    "RecSim-Data": "recsim/DataSynthetic-v0",
    "MineWorld": "mineworld/MineWorld-v0",
}


def env_of(task: str) -> str:
    """Return the environment of a task of the papers."""
    if task.startswith("restricted "):
        return f"restricted/{task.split()[1]}-v0"
    return ENVIRONMENTS.get(task, f"{task}-v5")


def label_of(paper: str, agent: str) -> str | None:
    """Return the label of an agent of a paper's tables in our runs; None if qscape does not have it.

    A label that ends in * stands for all labels that begin so.
    """
    plain = {"TD3": "td3", "SAC": "sac", "TD7": "td7", "TQC": "tqc", "REDQ": "redq", "PPO": "ppo"}
    if paper == "PAVE":
        return None if "," in agent and "PAVE" not in agent else f"{agent.lower()}[preset=paper]"
    if paper == "SAVO":
        agents = {"TD3": "td3+ou", "Wolpertinger": "td3+wolpertinger", "SAVO": "td3+savo"}
        return f"{agents[agent.split(',')[0]]}[preset=paper*"
    if paper == "SAVGO" and agent.startswith("SAVGO"):
        return "sac+savgo+normalise[preset=paper]" if agent == "SAVGO" else f"sac+savgo ({agent[7:]})"
    if paper == "ACPG":
        algorithm, *rest = agent.split(", ")[0].split("+")
        return {"A3C": "a2c"}.get(algorithm, algorithm.lower()) + ("+etf" if rest else "")
    offline = {"TD3+BC": "td3+bc", "IQL": "iql"}
    return (plain | offline).get(agent)


def runs_of(paper: str, task: str, agent: str) -> list[Run]:
    """Return the recorded runs of an agent in a task, of one study and with one label.

    That is the label with the most seeds, and among these the shortest: it has no settings of a control.
    """
    label = label_of(paper, agent)
    if label is None:
        return []
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in read_runs():
        fits = run.label.startswith(label[:-1]) if label.endswith("*") else run.label == label
        if fits and run.env == env_of(task):
            groups.setdefault((run.study, run.label), []).append(run)
    return max(groups.values(), key=lambda runs: (len(runs), -len(runs[0].label)), default=[])


def at(evaluations: dict[str, np.ndarray], steps: int = 0) -> int:
    """Return the index of the last evaluation at or before a step; 0 steps: the last one of all."""
    index = int(np.searchsorted(evaluations["step"], steps or np.inf, side="right")) - 1
    if index < 0:
        raise ValueError(f"no evaluation at or before step {steps}")
    return index


def smooth(values: np.ndarray) -> np.ndarray:
    """Smooth a curve as the SAVGO paper does: 0.85 of the past and 0.15 of the present."""
    made = values.copy()
    for k in range(1, len(made)):
        made[k] = 0.85 * made[k - 1] + 0.15 * values[k]
    return made


METRICS: dict[
    str, Callable[[Run, int], np.ndarray]
] = {  # of a run up to an evaluation: a number or [episodes]
    "return": lambda run, k: run.evaluations["return"][k],
    "sm": lambda run, k: run.evaluations["sm"][k],
    "highest evaluation of a run": lambda run, k: run.evaluations["return"][: k + 1].mean(1).max(),
    "smoothed return": lambda run, k: smooth(run.evaluations["return"].mean(1))[k],
}
GEOMETRY = {
    "sup of the mixed derivative": "mixed_norm_sup",
    "share of negative definite H": "negative_definite",
    "mean gradient cosine": "gradient_cosine",
    "gradient flip rate": "gradient_flips",
}
HEADS = {"REINFORCE": "learnable", "REINFORCE+ACPG": "etf"}  # of results/action_collapse


def values_of(row: Row) -> tuple[np.ndarray, int] | None:
    """Return our values for a number, [seeds] or [seeds, episodes], and their steps; None: no run."""
    if row.metric in GEOMETRY:
        return geometry_of(row)
    if row.paper == "ACPG" and row.task == "CartPole (MLP)":
        return cartpole_of(row.agent, row.metric, row.steps)
    task = "ALE/Pong-v5" if row.paper == "ACPG" and row.task == "Pong (CNN)" else row.task
    runs = runs_of(row.paper, task, row.agent) if task == row.task else pong(row.agent)
    metric = METRICS.get("highest evaluation of a run" if row.metric == "best return" else row.metric)
    if not runs or metric is None:
        return None
    index = [at(run.evaluations, row.steps) for run in runs]
    steps = min(int(run.evaluations["step"][k]) for run, k in zip(runs, index, strict=True))
    return np.array([metric(run, k) for run, k in zip(runs, index, strict=True)]), steps


def pong(agent: str) -> list[Run]:
    """Return the runs on Pong: there is one, of plain PPO."""
    return [run for run in read_runs() if run.study == "pong" and agent == "PPO"]


def geometry_of(row: Row) -> tuple[np.ndarray, int] | None:
    """Return a measure of the geometry of Q at the end, from results/smoothness."""
    label = f"{row.agent.lower()}[preset=paper]"
    found = [
        measured["geometry_environment_units"][GEOMETRY[row.metric]]
        for measured in read_json("smoothness/pave-effect-200-episodes.json")["runs"]
        if (measured["label"], measured["env"]) == (label, env_of(row.task)) and measured["step"] == row.steps
    ]
    return (np.array(found), row.steps) if found else None


def cartpole_of(agent: str, metric: str, until: int) -> tuple[np.ndarray, int] | None:
    """Return a measure of REINFORCE on CartPole by seed, up to a step, which is when unsolved seeds end."""
    rows = cartpole_rows("reinforce", HEADS.get(agent, ""))
    return (np.array([CARTPOLE[metric](r, until) for r in rows]), until) if rows else None


def cartpole_rows(algorithm: str, head: str) -> list[dict]:
    """Return the recorded seeds of an algorithm and a head."""
    names = (f"action_collapse/cartpole-{of}.json" for of in ("50", "10", "ppo"))
    rows = [row for name in names for row in read_json(name)["rows"]]
    return [row for row in rows if (row["algorithm"], row["head"]) == (algorithm, head)]


def cut(row: dict, until: int) -> np.ndarray:
    """Return the mean returns of the rollouts of a seed up to a step."""
    curve = row["curve"]
    return np.array(curve["return"])[np.array(curve["steps"]) <= until]


CARTPOLE: dict[str, Callable[[dict, int], float]] = {  # of a seed up to a step; a rollout has eight episodes
    "best return": lambda r, until: float(((cut(r, until)[1:] + cut(r, until)[:-1]) / 2).max()),
    "final return": lambda r, until: float(cut(r, until)[-3:].mean()),
    "epoch solved": lambda r, until: min(r["solved_at"] or until, until) / 1000,
}


def same_protocol(row: Row) -> bool:
    """Whether our runs follow the paper's protocol: its versions of the tasks, settings and measure.

    TD7's tasks are of another version, SAVGO's baselines are of another library and are evaluated half as
    often, and ACPG's paper defines neither an epoch nor "solved". A supremum over our 200 episodes is greater
    than one over PAVE's ten.
    """
    if row.metric.startswith("sup "):
        return False
    return row.paper == "PAVE" or (row.paper == "SAVGO" and row.agent.startswith("SAVGO"))


# --- what a row would cost ----------------------------------------------------------------------------

STEP = 3e-4  # seconds of an environment step with the choice of its action, MuJoCo, one core
CAR = 2e-2  # the same of CarRacing, four frames: assumed, not measured
FRAMES = 10_000_000  # steps of a run on images whose length the paper does not state: assumed
SEEDS_UNSTATED = 5
CANDIDATES = {
    "HalfCheetah": 128,
    "Humanoid": 256,
    "Ant": 256,
    "Swimmer": 128,
    "Reacher": 128,
    "InvertedDoublePendulum": 32,
}
UPDATES_PER_STEP = {"MineWorld": 0.01, "RecSim": 0.02, "RecSim-Data": 0.02}


@functools.cache
def update_seconds() -> dict[str, float]:
    """Return the median seconds of an update by agent, on one core of the slower machine, idle."""
    measured = read_json("updates/20261121-100318.json")["seconds an update"]
    return {name: float(np.median(times)) for name, times in measured.items()}


def cost_of_update(paper: str, task: str, agent: str) -> float | None:
    """Return the seconds of one update of an agent; None if it is not measured."""
    known = update_seconds()
    name = agent.lower()
    if paper == "SAVGO" and name.startswith("savgo"):
        per_candidate = (known["sac+savgo, K 128"] - known["sac+savgo, K 32"]) / 96
        candidates = int(name.split("k = ")[1]) if "k = " in name else CANDIDATES.get(task, 64)
        candidates = 256 if "λ" in name else candidates
        return known["sac+savgo, K 32"] + (candidates - 32) * per_candidate
    if paper == "SAVO":
        return known["td3+savo" if name.startswith("savo") else "td3"]
    if name in known:
        return known[name]
    base, *parts = re.split(r"\+|, ", name)
    if (
        paper == "PAVE"
        and base in ("td3", "sac")
        and parts[0] in ("caps", "grad", "asap", "pave", "mpr", "vfc")
    ):
        return known[base] + known[f"td3+{parts[0]}"] - known["td3"]
    return {"td3+bc": known["td3"], "iql": known["td3"]}.get(name)


@functools.cache
def on_policy_seconds(task: str) -> float:
    """Return the seconds of an environment step of an on-policy agent, with its share of the updates."""
    if task.startswith("CarRacing"):
        return CAR
    if re.match("Pong|Enduro|Qbert", task):
        return sum(float(np.median(s)) for s in read_json("on_policy/atari.json")["seconds_a_step"].values())
    name = "CartPole-v1" if task.startswith("CartPole") else "HalfCheetah-v5"
    lines = map(json.loads, (RESULTS / "on_policy" / "returns.jsonl").read_text().splitlines())
    ours = [r["cpu_seconds"] / r["steps"] for r in lines if (r["library"], r["task"]) == ("qscape", name)]
    return float(np.median(ours))


FLAGS = {  # of variants in the papers' tables, beside the recipe
    "MPR": "--pave.vector-field 0 --pave.curvature 0",
    "VFC": "--pave.mixed-partial 0 --pave.curvature 0",
    "MPR+VFC": "--pave.curvature 0",
    "Curv": "--pave.mixed-partial 0 --pave.vector-field 0",
    "MPR+Curv": "--pave.vector-field 0",
    "VFC+Curv": "--pave.mixed-partial 0",
    "K": "--savgo.candidates",
    "λ": "--savgo.candidates 256 --savgo.exponent",
    "ε": "--base.exploration",
    "fixed τ": "--savgo.tau-end",
    "β": "--savgo.gap-scale",
    "random frozen encoder": "--savgo.frozen",
    "uniform weights": "--savgo.uniform 1",
}
ENVS = {"MineWorld": 20, "RecSim": 16, "RecSim-Data": 16}


def command_of(row: Row, agent: str) -> str:
    """Return the command that makes the runs of an agent of a row; "" if qscape does not have it."""
    label = label_of(row.paper, agent)
    unnamed = row.task.startswith(("sum", "mean of", "a "))
    no_network = row.paper == "ACPG" and row.task.endswith("(MLP)") != row.task.startswith("CartPole")
    if label is None or unnamed or no_network:
        return ""
    _, _, variant = agent.partition(", ")
    field, _, value = variant.partition(" = ")
    recipe = re.split(r"\[| \(|, ", label)[0]
    if row.paper == "SAVGO" and agent.startswith("SAVGO"):
        recipe = "sac+savgo" if row.task == "Ant" else "sac+savgo+normalise"
    words = ["qscape train", recipe, f"--env {env_of(row.task)}", f"--steps {row.steps or FRAMES}"]
    if row.paper == "SAVO":
        words.append(f"--envs {ENVS.get(row.task, 10)}")
    if row.paper == "ACPG":
        words[2] = f"--env {on_policy_env(row.task)}"
    if "D4RL" in row.table:
        words[2:2] = [f"--dataset {row.task.lower().replace(' ', '_').replace('-', '_')}-v2.hdf5"]
        words[3] = f"--env {row.task.split()[0]}-v5"
    if row.task == "LunarLander":
        words.append("--env-args continuous=True")
    on_images = row.paper == "ACPG" and row.task.endswith("(CNN)") and recipe.startswith(("ppo", "trpo"))
    if "[preset" in label or "savgo" in recipe or on_images or (row.paper, agent) == ("TD7", "TQC"):
        words.append("--preset paper")
    return " ".join([*words, *filter(None, [FLAGS.get(field, ""), value])])


def on_policy_env(task: str) -> str:
    """Return the environment of a task of the ACPG paper, with its flags."""
    name = task.split(" ")[0]
    if name == "CartPole":
        return "CartPole-v1 --envs 10"
    return (
        "CarRacing-v3 --env-args continuous=False --envs 10"
        if name == "CarRacing"
        else f"ALE/{name}-v5 --envs 10"
    )


def hours(row: Row) -> dict[str, float] | None:
    """Return the core-hours of all runs behind a row, by agent; None: an agent or its cost is unknown."""
    found = {}
    for agent in row.agents:
        seconds = seconds_of_run(row, agent) if command_of(row, agent) else None
        if seconds is None:
            return None
        found[agent] = (row.seeds or SEEDS_UNSTATED) * seconds / 3600
    return found


def seconds_of_run(row: Row, agent: str) -> float | None:
    """Return the core-seconds of one run of an agent of a row; None if the cost of its update is unknown."""
    if row.paper == "ACPG" or agent == "PPO":
        return (row.steps or FRAMES) * on_policy_seconds(row.task)
    update = cost_of_update(row.paper, row.task, agent)
    step = 0.0 if "D4RL" in row.table else STEP
    updates = UPDATES_PER_STEP.get(row.task, 0.133 if row.paper == "SAVO" else 1.0)
    return None if update is None else row.steps * (step + updates * update)


# --- the ledger ---------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A published number with our measurement, the distance in combined standard errors, and the verdict."""

    row: Row
    ours: Ours | None
    share: float
    distance: float
    verdict: str


class Effect(NamedTuple):
    """A difference between two agents, as published and as measured, and the verdict."""

    paper: str
    table: str
    task: str
    metric: str
    agent: str
    base: str
    published: str
    ours: float
    low: float
    high: float
    seeds: tuple[int, int]
    share: float
    verdict: str


def enter(row: Row) -> Entry:
    """Compare one published number with the recorded runs."""
    if math.isnan(row.mean):
        effects = [
            e for e in effects_of([row]) if (e.task, f"{e.agent} over {e.base}") == (row.task, row.agent)
        ]
        share = effects[0].share if effects else math.nan
        return Entry(row, None, share, math.nan, effects[0].verdict if effects else "not run")
    found = values_of(row)
    if found is None:
        return Entry(row, None, math.nan, math.nan, judge(None, 0.0, 0.0, same=True))
    ours = summarise(*found)
    share = ours.steps / (row.steps or FRAMES)
    error = math.hypot(ours.error, row.error)
    gap = ours.mean - row.mean
    return Entry(row, ours, share, gap / error, judge(ours, share, gap / error, same=same_protocol(row)))


METHODS = {"TD7": ["TD7"], "PAVE": ["TD3+PAVE", "SAC+PAVE"], "SAVGO": ["SAVGO"], "ACPG": ["REINFORCE+ACPG"]}


def effects_of(rows: Iterable[Row]) -> list[Effect]:
    """Compare each paper's method with its baselines wherever the paper shows a difference and both ran.

    A paper shows a difference if it is more than two combined standard errors, or if it prints no spread.
    """
    rows, found = [*rows], []
    for row in rows:
        if math.isnan(row.mean):
            agent, base = row.agent.split(" over ")
            found += compare(row, row._replace(agent=agent), row._replace(agent=base), "higher", 1.0)
        elif row.agent in METHODS.get(row.paper, []):
            for other in rows:
                same = (*row[:3], row.metric, row.steps) == (*other[:3], other.metric, other.steps)
                gap = row.mean - other.mean
                if (
                    same
                    and other.agent not in METHODS[row.paper]
                    and abs(gap) > NEAR * math.hypot(row.error, other.error)
                ):
                    found += compare(row, row, other, show(gap, sign=True), gap)
    return found


def compare(row: Row, one: Row, two: Row, published: str, sign: float) -> list[Effect]:
    """Return the effect of agent `one` over agent `two`, if both have two seeds or more."""
    pair = [values_of(one), values_of(two)]
    if pair[0] is None or pair[1] is None or min(len(found[0]) for found in pair if found) < 2:
        return []
    (a, steps), (b, others) = pair[0], pair[1]
    a, b = a.reshape(len(a), -1).mean(1), b.reshape(len(b), -1).mean(1)
    gap, low, high = welch(a, b)
    share = min(steps, others) / row.steps
    same = same_protocol(one) and same_protocol(two)
    verdict = judge_effect(low, high, sign, seeds=min(len(a), len(b)), share=share, same=same)
    names = (row.paper, row.table, row.task, row.metric, one.agent, two.agent)
    return [Effect(*names, published, gap, low, high, (len(a), len(b)), share, verdict)]


@functools.cache
def ledger() -> tuple[list[Entry], list[Effect]]:
    """Return all entries, in the order of published.csv, and all effects."""
    return [enter(row) for row in read_published()], effects_of(read_published())


# --- the page -----------------------------------------------------------------------------------------


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


def interval(ours: Ours | None) -> str:
    """Format a mean with its 95% interval."""
    if ours is None:
        return ""
    if math.isnan(ours.half):
        return show(ours.mean)
    low, high = (show(ours.mean + way * ours.half, like=ours.mean) for way in (-1, 1))
    return f"{show(ours.mean)} [{low}, {high}]"


def share_text(share: float) -> str:
    """Format a share of the paper's steps."""
    return "" if math.isnan(share) else f"{100 * share:.0f}%"


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


# The study of each table. Budget `paper` repeats the table, `short` is what a machine of two cores affords.
STUDIES = {
    ("TD7", "Table 1"): "td7",
    ("TD7", "abstract"): "td7",
    ("TD7", "run time"): "td7",
    ("TD7", "Table 2 (D4RL)"): "td7-d4rl",
    ("PAVE", "Table: TD3"): "pave",
    ("PAVE", "Table: SAC"): "pave",
    ("PAVE", "Table: geometry (TD3)"): "pave",
    ("PAVE", "Table: geometry during training (TD3)"): "pave",
    ("PAVE", "Table: ablation"): "pave-ablation",
    ("PAVE", "Table: other regularisers"): "pave-ablation",
    ("SAVGO", "Table 1"): "savgo",
    ("SAVGO", "Figure: learning curves"): "savgo",
    ("SAVGO", "Figure: K"): "savgo-ablations",
    ("SAVGO", "Figure: λ"): "savgo-ablations",
    ("SAVGO", "Figure: components"): "savgo-ablations",
    ("SAVO", "Table 1"): "savo-actors",
    ("SAVO", "Figure 8 (order of the curves)"): "savo",
    ("ACPG", "Table: scores"): "acpg",
    ("ACPG", "Table: exploration"): "acpg-atari",
}
PAPERS = {
    "TD7": "arXiv 2306.02451. Returns of 10 runs on Gym's -v4 tasks; ours are on -v5, with the kept policy.",
    "PAVE": "arXiv 2601.22970. 5 runs of 10 episodes; the spread is over all 50. For the ablation and the "
    "other regularisers the number of runs is not stated.",
    "SAVGO": "arXiv 2605.00787. The highest of 200 evaluations of a run. Figures are read from plots.",
    "SAVO": "arXiv 2410.11833. The paper prints one table, of a task that it does not name. Of its "
    "curves, the ledger has the order that the text states. On the restricted pendulums TD3 and Wolpertinger "
    "bootstrap with target smoothing here, as they do by default, and SAVO without; what is left of the "
    "effects without this difference is [measured too](methods/savo.md#restricted-pendulums).",
    "ACPG": "arXiv 2509.02737. No spread is printed. An epoch is read as 1,000 steps. A run of the paper "
    "has 100 or 500 epochs; ours on CartPole are cut at 100, and a seed that is not solved counts 100.",
}
MISSING = {
    "TD7": "Not in the ledger, because the numbers are not at hand: TD3's column at 300,000 steps, and the "
    "percentages of the design study and of the ablations (study `td7-design`).",
    "PAVE": "Not in the ledger, because the numbers are not at hand: the tables of robustness and cost "
    "(study `pave`), sensitivity (`pave-sweeps`) and LipsNet (`pave-lipsnet`).",
    "SAVO": "These studies repeat its figures: `savo`, `savo-discrete`, `savo-actors`, `savo-adroit`, "
    "`savo-items`, `savo-noise`, `savo-resets`, `savo-summarisers` and `savo-unrestricted`.",
}
RULES = f"""## How to read it

A row of a table is a number that a paper publishes.

- *Ours* is the mean over seeds of the recorded runs, with a 95% interval: t over the seeds, and over the
  first states, which all runs share.
- *Steps* is the length of our runs as a share of the paper's.
- *Distance* is ours less the published number, in combined standard errors. A number that is published
  without a spread counts as exact up to rounding. PAVE's spread is over the 50 episodes of
  5 runs, which count as independent here; where runs differ more than episodes do, its error is greater.
- *Command* makes one run of the row, with seed 0; `--seeds 0 1 2` makes more.
- *Core-h* is what all runs of the row take, estimated from the recorded costs of updates, on one core of the
  slower machine of [Performance](performance.md). "–": qscape does not have the agent, or its cost is not
  measured. Where a paper does not state them, {SEEDS_UNSTATED} seeds are assumed, and on images
  {FRAMES // 10**6}M steps. CarRacing's {1000 * CAR:.0f} ms a step are a guess.

| verdict on a number | rule |
| --- | --- |
| not run | no run is recorded |
| too short | fewer than {SEEDS} seeds, or less than {LENGTH:.0%} of the paper's steps |
| reproduced | {NEAR:.0f} standard errors away or less, and our interval is {WIDE:.0%} at most to a side |
| contradicted | {FAR:.0f} standard errors away or more, under the paper's own protocol |
| not seen | everything else: our runs neither show the number nor rule it out |

An *effect* is the difference between a paper's method and a baseline, wherever the paper shows one (more than
{NEAR:.0f} standard errors, or no spread printed) and both ran here.

| verdict on an effect | rule |
| --- | --- |
| too short | as above |
| reproduced | our 95% interval (Welch, over seeds, for these first states) excludes 0, on the paper's side |
| contradicted | it excludes 0, on the other side, under the paper's own protocol |
| not seen | everything else |

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
    lines = [
        f"**In all** {len(entries)} published numbers of five papers: {count(e.verdict for e in entries)}.",
        f"**Reproduced** numbers: {named(numbers['reproduced']) or nothing}.",
        f"**Reproduced** effects: {named_effects(of['reproduced']) or nothing}.",
        f"**Not seen**: {named(numbers['not seen']) or nothing}; effects: "
        f"{named_effects(of['not seen']) or nothing}.",
        f"**Contradicted**: {named(numbers['contradicted']) or nothing}; effects: "
        f"{named_effects(of['contradicted']) or nothing}.",
        f"**Open**: all else. {spent:.0f} hours of training by the clock are recorded; all tables at the "
        f"papers' length would take about {round(total_hours(entries), -2):,.0f} core-hours.",
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
        study = f"`qscape study run {STUDIES[paper, name]} --budget"
        counts = count(e.verdict for e in of)
        parts += [
            f"<details markdown>\n<summary>{name}: {len(of)} numbers, {counts}</summary>\n",
            f"The whole table: {study} paper`. What a small machine affords: {study} short`.\n",
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


# --- blocks of other pages ----------------------------------------------------------------------------


def ends(study: str, env: str, label: str, *, metric: str = "return", steps: int = 0, current: bool = False):
    """Return the evaluation at a step (0: the last one) of all runs of a study, [seeds, episodes].

    Args:
        study: archive of results/learning.
        env: environment id.
        label: label of the runs.
        metric: column of the evaluations.
        steps: environment steps.
        current: take the current policy, not the kept one.
    """
    of = [r for r in read_runs() if (r.study, r.env, r.label) == (study, env, label)]
    tables = [r.current if current else r.evaluations for r in sorted(of, key=lambda r: r.seed)]
    return np.array([t[metric][at(t, steps)] for t in tables])


def spread(values: np.ndarray) -> str:
    """Format the mean and the standard deviation over seeds."""
    means = values.mean(1)
    return f"{show(means.mean())} ± {show(means.std(ddof=1), like=means.mean())}"


def span(values: np.ndarray, scale: float = 1.0) -> str:
    """Format the mean over seeds with the least and the greatest seed."""
    means = scale * values.mean(1)
    return f"{show(means.mean())} ({show(means.min())} to {show(means.max())})"


def by_seed(values: np.ndarray) -> str:
    """Format the mean of each seed."""
    return ", ".join(show(mean) for mean in values.mean(1))


def labels(study: str, env: str) -> list[str]:
    """Return the labels of a study's recorded runs in an environment, in alphabetical order."""
    return sorted({r.label for r in read_runs() if (r.study, r.env) == (study, env)})


SINGLE, DOUBLE = "restricted/InvertedPendulum-v0", "restricted/InvertedDoublePendulum-v0"
ITEMS = "recsim/10k-v0"
CHEETAH, HOPPER, WALKER = "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"


def short(label: str) -> str:
    """Shorten the label of an agent of a study to its recipe and what is special in it."""
    recipe, _, rest = label.partition("[")
    usual = ("preset=paper", "base.updates_per_step=0.133", "base.epsilon_decay=0.25", "base.warmup=1000")
    special = [field for field in rest.rstrip("]").split(",") if field and field not in usual]
    return f"`{recipe}`" + (f", {', '.join(special)}" if special else "")


def arms(study: str, env: str, metric: str = "return") -> str:
    """Format the last evaluations of all recorded arms of a study in an environment."""
    cells = [f"{short(of)} {spread(ends(study, env, of, metric=metric))}" for of in labels(study, env)]
    return "; ".join(cells)


def seeds_of(study: str, env: str, label: str = "") -> str:
    """Return the numbers of seeds of a study's recorded arms (or of one arm): 5, or 3 to 5."""
    found = [r.label for r in read_runs() if (r.study, r.env) == (study, env) and label in ("", r.label)]
    counts = Counter(found).values()
    return f"{min(counts)} to {max(counts)}" if len({*counts}) > 1 else str(min(counts))


def block_learning() -> str:
    """Final returns of the recorded runs."""
    current = spread(ends("pendulum", "Pendulum-v1", "td7[base.warmup=1000]", current=True))
    tasks = [
        ("Pendulum-v1", "pendulum", "Pendulum-v1", "20k", "return"),
        ("Pendulum-v1, PAVE's settings", "pave-effect", "Pendulum-v1", "100k", "return"),
        ("the same: oscillation `sm`", "pave-effect", "Pendulum-v1", "100k", "sm"),
        ("the same with SAC, 50 initial states", "pave", "Pendulum-v1", "100k", "return"),
        ("the same: oscillation `sm`", "pave", "Pendulum-v1", "100k", "sm"),
        ("restricted InvertedPendulum, 0.133 updates per step", "savo-effect", SINGLE, "100k", "return"),
        (
            "restricted InvertedDoublePendulum, 0.133 updates per step",
            "savo-effect",
            DOUBLE,
            "100k",
            "return",
        ),
        ("10,000 recommendations, 0.02 updates per step: clicks", "savo-recsim", ITEMS, "1M", "return"),
        ("HalfCheetah-v5", "mujoco", CHEETAH, "100k", "return"),
        ("Hopper-v5", "mujoco", HOPPER, "100k", "return"),
        ("Walker2d-v5", "mujoco", WALKER, "100k", "return"),
    ]
    rows = [
        [task, steps, seeds_of(study, env), arms(study, env, metric)]
        for task, study, env, steps, metric in tasks
    ]
    rows[0][-1] += f"; `td7`, current policy {current}"
    return table(["task", "steps", "seeds", "end of training, mean ± std over seeds"], rows)


def block_pave() -> str:
    """The last evaluation of every arm on Pendulum, with the settings of the PAVE paper."""
    rows = []
    for label in labels("pave-effect", "Pendulum-v1"):
        cells = [
            ends("pave-effect", "Pendulum-v1", label, metric=m) for m in ("return", "sm", "action_change")
        ]
        rows.append([short(label), str(len(cells[0])), *map(span, cells)])
    return table(["agent", "seeds", "return", "`sm`", "mean change of the action, share of its range"], rows)


def block_pave_of_sac() -> str:
    """The last evaluation of SAC's arms on Pendulum, on all first states and on the first ten."""
    study, env, rows = "pave", "Pendulum-v1", []
    for label in (of for of in labels(study, env) if of.startswith("sac")):
        values = [ends(study, env, label, metric=m) for m in ("return", "sm", "action_change")]
        rows.append(
            [short(label), str(len(values[0])), *map(span, [*values, *(v[:, :10] for v in values[:2])])]
        )
    names = ["return", "`sm`", "mean change of the action, share of its range"]
    return table(["agent", "seeds", *names, "return, first 10 starts", "`sm`, first 10 starts"], rows)


def block_savo(env: str, *studies: str) -> str:
    """The last evaluation of every recorded arm of some SAVO studies, with the ledger's interval."""
    rows = []
    for study, label in [(of, label) for of in studies for label in labels(of, env)]:
        values = ends(study, env, label)
        rows.append([short(label), interval(summarise(values, 0)), by_seed(values)])
    return table(["agent", "return [95%]", "by seed"], rows)


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
        values = ends("mujoco", f"{task}-v5", agent.lower())
        ours = f"at 100k: {spread(values)} ({len(values)} seeds)" if len(values) else "not measured"
        rows.append([task, *(cells.get((task, n), "") for n in lengths), ours])
    names = [f"published {n // 1000:,}k" for n in lengths]
    return table(["task", *names, "ours"], rows)


def block_sac() -> str:
    """Points of SAC's published curve, and ours at the same steps."""
    curves = {(c.task, c.step): c for c in read_curves() if c.agent == "SAC"}
    rows = []
    for task in ("HalfCheetah", "Hopper", "Walker2d"):
        cells = []
        for steps in (50_000, 100_000):
            theirs, ours = curves[task, steps], ends("mujoco", f"{task}-v5", "sac", steps=steps)
            cells += [f"{show(theirs.mean)} ± {show(theirs.sd, like=theirs.mean)} ({theirs.seeds})"]
            cells += [f"{spread(ours)} ({len(ours)})"]
        rows.append([task, *cells])
    return table(["task", "published 50k", "ours 50k", "published 100k", "ours 100k"], rows)


def block_td7_curves() -> str:
    """Learning curves of TD7's kept and current policy."""
    rows = []
    for env in (CHEETAH, HOPPER, WALKER):
        for current in (False, True):
            means = [
                show(ends("mujoco", env, "td7", steps=steps, current=current).mean())
                for steps in (50_000, 75_000, 100_000)
            ]
            rows.append([env, "current" if current else "kept", *means])
    return table(["task", "policy", "50k", "75k", "100k"], rows)


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


def block_savgo_pendulum() -> str:
    """Every recorded arm on InvertedDoublePendulum at the steps where they differ, by seed."""
    study, env, rows = "savgo-effect", "InvertedDoublePendulum-v5", []
    for label in labels(study, env):
        cells = [by_seed(ends(study, env, label, steps=steps)) for steps in (10_000, 15_000, 20_000, 0)]
        rows.append([short(label), seeds_of(study, env, label), *cells])
    return table(["agent", "seeds", "10,000 steps, by seed", "15,000", "20,000", "last evaluation"], rows)


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
        if head != "etf" and len(of[head]) == len(of["etf"]):
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
    """Pendulum with every recipe: returns half-way and at the end, with the least and the greatest seed."""
    study, env, rows = "pendulum-recipes", "Pendulum-v1", []
    for label in labels(study, env):
        cells = [span(ends(study, env, label, steps=steps)) for steps in (2_500, 5_000)]
        rows.append([f"`{label.partition('[')[0]}`", seeds_of(study, env, label), *cells])
    return table(["agent", "seeds", "2,500 steps", "5,000 steps"], rows)


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


class Curve(NamedTuple):
    """A row of published_curves.csv: the last evaluation at or before a step, over the seeds."""

    agent: str
    task: str
    step: int
    seeds: int
    mean: float
    sd: float


@functools.cache
def read_curves() -> list[Curve]:
    """Read published_curves.csv."""
    with (HERE / "published_curves.csv").open(newline="") as file:
        return [
            Curve(r["agent"], r["task"], int(r["step"]), int(r["seeds"]), float(r["mean"]), float(r["sd"]))
            for r in csv.DictReader(file)
        ]


def measured_record(task: str, label: str, steps: int, *, current: bool) -> np.ndarray:
    """Return the evaluations at a step of the runs of `record` that reached it, [seeds, episodes]."""
    env = f"{task}-v5"
    of = [r for r in read_runs() if (r.study, r.env, r.label) == ("record", env, label)]
    tables = [r.current if current else r.evaluations for r in sorted(of, key=lambda r: r.seed)]
    found = [t["return"][at(t, steps)] for t in tables if t["step"][-1] >= steps]
    return np.array(found).reshape(-1, EPISODES)


def labels_of_record() -> list[str]:
    """Return the labels of the study `record`, in alphabetical order."""
    return sorted({r.label for r in read_runs() if r.study == "record"})


def block_record(steps: int) -> str:
    """Published agents and ours at one step of four MuJoCo tasks."""
    curves = {(c.agent, c.task): c for c in read_curves() if c.step == steps}
    tasks = [*dict.fromkeys(task for _, task in curves)]

    def cell(mean: float, sd: float, seeds: int) -> str:
        return show(mean) + (f" ± {show(sd, like=mean)}" if seeds > 1 else "") + f" ({seeds})"

    rows = [
        [agent, *(cell(c.mean, c.sd, c.seeds) if (c := curves.get((agent, t))) else "–" for t in tasks)]
        for agent in dict.fromkeys(agent for agent, _ in curves)
    ]
    for label in labels_of_record():
        for current in (True, False):
            cells = []
            for task in tasks:
                means = measured_record(task, label, steps, current=current).mean(1)
                sd = means.std(ddof=1) if len(means) > 1 else math.nan
                cells.append(cell(means.mean(), sd, len(means)) if len(means) else "not run")
            rows.append([f"**qscape {named_in_record(label)}, {POLICIES[current]} policy**", *cells])
    return table(["agent", *tasks], rows)


def block_record_differences(steps: int) -> str:
    """What separates our current policy from every published agent at a step, in combined standard errors."""
    curves = {(c.agent, c.task): c for c in read_curves() if c.step == steps}
    tasks, rows = [*dict.fromkeys(task for _, task in curves)], []
    for label in labels_of_record():
        ours = {task: measured_record(task, label, steps, current=True).mean(1) for task in tasks}
        for agent in dict.fromkeys(agent for agent, _ in curves):
            cells = []
            for task in tasks:
                c, means = curves[agent, task], ours[task]
                error = math.hypot(means.std(ddof=1) / len(means) ** 0.5, c.sd / c.seeds**0.5)
                cells.append(f"{(means.mean() - c.mean) / error:+.1f}".replace("-", "−"))
            rows.append([agent, *cells])
    return table(["agent", *tasks], rows)


def named_in_record(label: str) -> str:
    """Name an arm of the study `record` by what differs from the settings that all arms share."""
    shared = ("base.warmup=5000", "base.updates_per_step=2.0", "checkpoints.early_episodes=3")
    recipe, _, rest = label.partition("[")
    special = [field for field in rest.rstrip("]").split(",") if field and field not in shared]
    return f"`{recipe}`" + (f" ({', '.join(special)})" if special else "")


def block_record_seeds() -> str:
    """Every run of the study `record`: its current policy at some steps, and the kept one at the end."""
    rows = []
    for label in labels_of_record():
        for task in dict.fromkeys(c.task for c in read_curves()):
            cells = [
                by_seed(measured_record(task, label, k, current=True))
                for k in (25_000, 50_000, 75_000, 100_000)
            ]
            if any(cells):
                kept = by_seed(measured_record(task, label, 100_000, current=False))
                rows.append([task, named_in_record(label), *cells, kept])
    return table(["task", "agent", "25k", "50k", "75k", "100k", "100k, kept"], rows)


CRITICS = [file.stem for file in sorted((RESULTS / "critics").glob("*.json"))]  # measured environments
BLOCKS: dict[str, Callable[[], str]] = {
    "summary": make_summary,
    "learning": block_learning,
    "pave": block_pave,
    "pave-of-sac": block_pave_of_sac,
    "savo-single": functools.partial(block_savo, SINGLE, "savo-effect", "savo-controls"),
    "savo-double": functools.partial(block_savo, DOUBLE, "savo-effect", "savo-controls"),
    "savo-items": functools.partial(block_savo, ITEMS, "savo-recsim"),
    "td3": functools.partial(block_mujoco, "TD3"),
    "td7": functools.partial(block_mujoco, "TD7"),
    "sac": block_sac,
    "td7-curves": block_td7_curves,
    "savgo": block_savgo,
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
    "record-50k": functools.partial(block_record, 50_000),
    "record-100k": functools.partial(block_record, 100_000),
    "record-differences": functools.partial(block_record_differences, 100_000),
    "record-seeds": block_record_seeds,
    "starts": block_starts,
    **report.BLOCKS,
}


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
