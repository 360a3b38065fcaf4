"""Write the tables of speed, of the environments' scores and of the nearest rows, from recorded data alone.

    python benchmarks/report.py speed           # docs/performance.md and the README's speed
    python benchmarks/report.py environments    # docs/reference/environments.md; nearest rows in savo.md

It reads results/throughput, results/updates, results/start and results/seeds, or results/environments.json,
results/planner and results/nearest.json, and measures nothing. Every recorded run is in the tables of speed,
with the range over rounds and machines; of updates those that have TD7.
"""

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
from blocks import BLOCK, PAGES, RESULTS, ROOT, base_of, renew, table

AGENTS = {
    "td3": "TD3",
    "sac": "SAC",
    "td7": "TD7 without `checkpoints`",
    "td7-checkpoints": "TD7, episodes of 100 steps",
    "crossq": "CrossQ",
    "simba": "SAC with SimBa's networks",
}
LIBRARIES = {
    "sb3": "Stable-Baselines3",
    "sbx": "SBX",
    "cleanrl": "CleanRL's loop for JAX",
    "rlblox": "RL-BLOX",
    "torch": "eager PyTorch",
}
# Files before they named their machine.
MACHINES = {"2026-11-20": "v657", "2026-11-21": "v595", "20261121-100318": "v595"}


def read(kind: str, pattern: str = "*.json") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the recorded files of a kind, oldest first."""
    for file in sorted((RESULTS / kind).glob(pattern)):
        yield file.stem, json.loads(file.read_text())


def read_speeds() -> list[dict[str, Any]]:
    """Read the recorded runs of throughput.py beside other libraries, oldest first."""
    return [run for _, run in read("throughput", "*[0-9]-peers*.json")]


def machine_of(about: dict[str, Any]) -> str:
    """Return the short name of a machine, which its kernel has."""
    return about["system"].split("-")[3]


def between(values: Iterable[float]) -> str:
    """Format the least and the greatest of some numbers."""
    low, high = min(values := [*values]), max(values)
    digits = 0 if high >= 10 else 2
    low_text, high_text = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"


def newest(above: str, below: str) -> dict[str, Any] | None:
    """Return the newest long run with both contenders, or else the newest quick one; None: there is none."""
    runs = [run for run in read_speeds() if {above, below} <= run["contenders"].keys()]
    return max(runs, key=lambda run: ("quick" not in run["mode"], run["machine"]["started"]), default=None)


def pairs(above: str, below: str) -> tuple[list[tuple[float, float]], list[float]]:
    """Return the medians of two contenders in every run that has both, and their ratios in single rounds."""
    medians, rounds = [], []
    for run in read_speeds():
        both = [run["contenders"].get(name) for name in (above, below)]
        if None not in both:
            medians.append((both[0]["median"], both[1]["median"]))
            rates = [[turn["steps_per_second"] for turn in one["turns"]] for one in both]
            rounds += [a / b for a, b in zip(*rates, strict=True)]
    return medians, rounds


def block_speed() -> str:
    """Steps per second in the newest long run, beside each library, and the ratio in all recorded runs."""
    rows = []
    for agent, named in AGENTS.items():
        for library, title in LIBRARIES.items():
            above, below = f"qscape-{agent}", f"{library}-{agent}"
            if (run := newest(above, below)) is None:
                continue
            ours, theirs = (run["contenders"][name] for name in (above, below))
            rates = [[turn["steps_per_second"] for turn in one["turns"]] for one in (ours, theirs)]
            medians, _ = pairs(above, below)
            rows.append(
                [
                    named,
                    title,
                    f"{ours['median']:,.0f}",
                    f"{theirs['median']:,.0f}",
                    f"{ours['median'] / theirs['median']:.2f}",
                    between(a / b for a, b in zip(*rates, strict=True)),
                    f"{machine_of(run['machine'])}, {run['machine']['started'][:10]}",
                    f"{between(a / b for a, b in medians)} ({len(medians)})",
                ]
            )
    names = ["agent", "beside", "steps/s of qscape", "of the other", "ratio", "in single rounds"]
    return table([*names, "machine and date", "ratio in all recorded runs (their number)"], rows)


def block_speed_runs() -> str:
    """Every recorded run of the comparison of speed."""
    rows = []
    for run in read_speeds():
        made, about = {name: c["median"] for name, c in run["contenders"].items()}, run["machine"]
        cells = []
        for agent in AGENTS:
            ours = f"qscape-{agent}"
            ratios = [
                f"{library} {made[ours] / made[name]:.2f}"
                for library in LIBRARIES
                if (name := f"{library}-{agent}") in made and ours in made
            ]
            cells.append(f"{made[ours]:,.0f}: {', '.join(ratios)}" if ratios else "")
        started = about["started"][:16].replace("T", " ")
        kind = "quick" if "quick" in run["mode"] else "long"
        load = f"{about['load_before'][0]:.1f}"
        rows.append([started, machine_of(about), kind, about["commit"], load, *cells])
    return table(["started", "machine", "kind", "commit", "load", *AGENTS.values()], rows)


def block_speed_loop() -> str:
    """What the loop loses against a scan of bare updates with the time of the steps added."""
    rows = []
    for agent in ("td3", "sac", "td7"):
        for scan, title in (
            ("assembled-scan", "of the assembled agent"),
            ("scan", "of the straight-line file"),
        ):
            medians, rounds = pairs(f"qscape-{agent}", f"qscape-{agent}-{scan}")
            if medians:
                rows.append(
                    [
                        AGENTS[agent],
                        title,
                        between(a / b for a, b in medians),
                        between(rounds),
                        str(len(medians)),
                    ]
                )
    return table(["agent", "scan", "share of its speed", "in single rounds", "runs"], rows)


def block_speed_updates() -> str:
    """Milliseconds of an update of every method, on each machine, its share of the peak, and XLA's count."""
    counts = json.loads((RESULTS / "update_counts.json").read_text())["gflop with the actor's step"]
    files = [(name, run) for name, run in read("updates") if "td7" in run["seconds an update"]]
    names: dict[str, None] = {}
    for _, run in files:
        names |= dict.fromkeys(run["seconds an update"])
    names |= dict.fromkeys(counts)
    newest = files[-1][1]
    peak = max(statistics.median(rates) for rates in zip(*newest["GFLOP/s of the products"], strict=True))
    rows = []
    for name in names:
        cells = []
        for _, run in files:
            seconds = run["seconds an update"]
            base = base_of(name)
            if name in seconds:
                ms = 1e3 * statistics.median(seconds[name])
                ratio = ms / 1e3 / statistics.median(seconds[base]) if base in seconds else 1.0
                cells.append(f"{ms:,.1f}" + (f" ({ratio:.2f})" if base != name else ""))
            else:
                cells.append("")
        counted = [f"{counts[name][by]:.2f}" for by in ("products", "XLA")]
        gflop = newest["gflop"].get(name)
        if gflop is None:
            rows.append([name, *cells, "", "", "", *counted])
            continue
        rate = gflop / statistics.median(newest["seconds an update"][name])
        rows.append([name, *cells, f"{gflop:.2f}", f"{rate:,.0f}", f"{rate / peak:.0%}", *counted])
    heads = [f"{MACHINES.get(name) or machine_of(run['machine'])}, {day(name)}" for name, run in files]
    whole = "GFLOP with the actor's step", "all operations, by XLA"
    return table(
        ["update", *(f"{head}: ms" for head in heads), "GFLOP", "GFLOP/s", "of the peak", *whole], rows
    )


def day(name: str) -> str:
    """Return the date in a file's name, `2026-11-20` or `20261121-100318`."""
    return name if name[4] == "-" else f"{name[:4]}-{name[4:6]}-{name[6:8]}"


def block_speed_start() -> str:
    """Seconds from a command to its first update."""
    rows = []
    for _, run in read("start"):
        for case, kinds in run["starts"].items():
            for kind, made in kinds.items():
                medians = {phase: statistics.median(one[phase] for one in made) for phase in made[0]}
                cells = [f"{medians[phase]:.1f}" for phase in START]
                about = [machine_of(run["machine"]), run["machine"]["commit"]]
                rows.append([*about, case.replace(":", ", "), kind, *cells])
    return table(["machine", "commit", "agent and task", "cache", *START.values()], rows)


START = {
    "total": "seconds in all",
    "imports": "imports",
    "environment and agent": "environment, agent",
    "initial state": "initial state",
    "random steps": "256 random steps",
    "first update": "first update",
    "of it tracing": "of all, tracing",
    "of it compiling or reading the cache": "of all, compiling or reading the cache",
}


def block_speed_seeds() -> str:
    """Several seeds as processes."""
    rows = []
    for name, run in read("throughput", "*[0-9]-seeds*.json"):
        made = run["contenders"]
        for case, one in made.items():
            agent, count = case.split(" ", 1)
            first = made[f"{agent} 1 x 2 threads"]["median"]
            other = made.get(case.replace("qscape-", "sb3-")) if agent != "sb3-td3" else None
            rows.append(
                [
                    f"{machine_of(run['machine'])}, {day(name)}",
                    agent,
                    count,
                    f"{one['median']:,.0f} ({one['min']:,.0f} to {one['max']:,.0f})",
                    f"{one['median'] / first:.2f}",
                    f"{one['median'] / other['median']:.2f}" if other else "",
                    f"{one['peak_memory_mb_of_a_process']:,.0f}",
                ]
            )
    names = ["machine", "agent", "processes", "steps/s of all", "against one of two threads"]
    return table([*names, "against Stable-Baselines3", "MB a process"], rows)


def block_speed_accelerators() -> str:
    """Updates per second of several seeds in one program."""
    rows = []
    for name, run in read("seeds"):
        for case, values in run["seconds an update of a seed"].items():
            rate, size = 1 / statistics.median(values), run["bytes"][case] / 1e6
            rows.append([run["device"], day(name), case, f"{rate:,.0f} updates/s", f"{size:,.0f} MB"])
        for case, values in run["seconds an environment step"].items():
            rows.append([run["device"], day(name), case, f"{1 / statistics.median(values):,.0f} steps/s", ""])
    return table(["device", "date", "contender", "speed", "arrays"], rows)


def read_part(name: str, part: str) -> dict[str, Any]:
    """Read a part of results/NAME.json; empty if it was not measured."""
    return json.loads((RESULTS / f"{name}.json").read_text()).get(part, {})


Episodes = dict[str, np.ndarray]  # return, length and success: one value for each episode


@functools.cache
def read_scores() -> dict[str, dict[str, Episodes]]:
    """Read the recorded episodes of every task and policy, those of the planner included."""
    scores: dict[str, dict[str, Episodes]] = {}
    columns = ("return", "length", "success")
    for row in read_part("environments", "scores")["rows"]:
        episodes = {column: np.repeat(row[column], row["times"]) for column in columns}
        scores.setdefault(row["env"], {})[row["policy"]] = episodes
    for env_id, policies in scores.items():
        file = RESULTS / "planner" / f"{env_id.replace('/', '-')}.jsonl"
        if file.exists():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            policies["planner"] = {column: np.array([row[column] for row in rows]) for column in columns}
    return scores


def estimate(values: np.ndarray) -> str:
    """Format a mean and its standard error, which has two digits, but three decimals at most."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    digits = min(3, max(0, 1 - math.floor(math.log10(error)))) if error else 1
    decimal = Decimal(str(mean))  # the tie that a mean of whole numbers looks like
    return f"{decimal:,.{digits}f} ± {error:,.{digits}f}".replace("-", "−")


COLUMNS: dict[str, Callable[[np.ndarray], str]] = {
    "return": estimate,
    "success": lambda values: f"{values.mean():.2f}",
    "length": lambda values: f"{values.mean():.1f}",
}


def block_policies(env_id: str, *columns: str) -> str:
    """Scores of the policies of one task."""
    rows = [
        [policy, *(COLUMNS[column](of[column]) for column in columns), f"{len(of['return']):,}"]
        for policy, of in read_scores()[env_id].items()
    ]
    return table(["policy", *columns, "episodes"], rows)


CONTROLLERS = ("LQR, moved to valid actions", "LQR")


def block_restricted() -> str:
    """Scores of the restricted MuJoCo tasks."""
    rows = []
    for task in ("Hopper", "Walker2d", "InvertedPendulum", "InvertedDoublePendulum"):
        of = read_scores()[f"restricted/{task}-v0"]
        planned = ", ".join(f"{ret:,.0f}" for ret in of.get("planner", {}).get("return", []))
        controlled = [estimate(of[name]["return"]) if name in of else "" for name in CONTROLLERS]
        rows.append(
            [task, *(estimate(of[name]["return"]) for name in ("random", "zero")), planned, *controlled]
        )
    return table(["task", "random", "zero (invalid everywhere)", "planner, by episode", *CONTROLLERS], rows)


def block_recsim() -> str:
    """Clicks in RecSim, by the number of items."""
    rows = []
    for items, name in (("10,000", "10k"), ("100,000", "100k"), ("500,000", "500k")):
        random, myopic = (
            read_scores()[f"recsim/{name}-v0"][policy]["return"] for policy in ("random", "myopic")
        )
        rows.append([items, estimate(random), estimate(myopic), f"{len(random):,}"])
    return table(["items", "random", "item with the best immediate reward (myopic)", "episodes"], rows)


def block_adroit() -> str:
    """Returns and successes in Adroit."""
    rows, policies = [], ("random", "zero", "planner")
    for task in ("Door", "Hammer", "Pen"):
        of = read_scores()[f"AdroitHand{task}-v1"]
        cells = [
            [COLUMNS[column](of[policy][column]) for column in ("return", "success")] for policy in policies
        ]
        rows.append([task, *map(", ".join, cells)])
    return table(["task", *(f"{policy}: return, success" for policy in policies)], rows)


def block_environments_speed() -> str:
    """Environment steps per second of a batch of JAX-native environments."""
    speed = read_part("environments", "speed")
    rows, families = [], ("mineworld", "recsim", "cliff", "jax")
    for env_id in (env_id for env_id in read_scores() if env_id.split("/")[0] in families):
        rate = speed["environment steps"] / statistics.median(speed["seconds"][env_id]) if speed else None
        rows.append([f"`{env_id}`", f"{float(f'{rate:.3g}'):,.0f}" if rate else "–"])
    return table(["id", "steps/s"], rows)


def block_nearest() -> str:
    """Time and recall of the search for the nearest row, mean of both kinds of queries for the time."""

    def read_searches(part: str, value: str) -> dict[tuple, dict[str, list[float]]]:
        of: dict[tuple, dict[str, list[float]]] = {}
        for one in read_part("nearest", part).get("searches", []):
            of.setdefault((one["rows"], one["search"], one["probes"]), {})[one["queries"]] = one[value]
        return of

    seconds, rows = read_searches("speed", "seconds"), []
    for search, by_kind in read_searches("recall", "farther").items():
        n, name, probes = search
        found = [np.array(by_kind[kind]) for kind in ("near", "uniform")]
        turns = seconds.get(search, {})
        ms = f"{1e3 * statistics.mean(map(statistics.median, turns.values())):,.1f}" if turns else "–"
        recall = [f"{np.mean(farther == 0):.2f}" for farther in found]
        excess = [f"{farther.mean():.1%}" for farther in found]
        rows.append([f"{n:,}", f"{name}, {probes} probes" if probes else name, ms, *recall, *excess])
    kinds = [f"{value} {kind}" for value in ("recall", "farther,") for kind in ("near", "uniform")]
    return table(["rows", "search", "ms", *kinds], rows)


SPEED: dict[str, Callable[[], str]] = {
    "speed": block_speed,
    "speed-runs": block_speed_runs,
    "speed-loop": block_speed_loop,
    "speed-updates": block_speed_updates,
    "speed-start": block_speed_start,
    "speed-seeds": block_speed_seeds,
    "speed-accelerators": block_speed_accelerators,
}
ENVIRONMENTS: dict[str, Callable[[], str]] = {
    "environments-restricted": block_restricted,
    "environments-mineworld": functools.partial(
        block_policies, "mineworld/MineWorld-v0", "return", "success", "length"
    ),
    "environments-recsim": block_recsim,
    "environments-recsim-data": functools.partial(block_policies, "recsim/DataSynthetic-v0", "return"),
    "environments-adroit": block_adroit,
    "environments-cliff": functools.partial(block_policies, "cliff/IdealCliffWalking-v0", "return", "length"),
    "environments-cartpole": functools.partial(block_policies, "jax/CartPole-v1", "return"),
    "environments-speed": block_environments_speed,
    "nearest": block_nearest,
}
BLOCKS = SPEED | ENVIRONMENTS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = {"speed": SPEED, "environments": ENVIRONMENTS}
    parser.add_argument("what", choices=tables)
    asked = tables[parser.parse_args().what]
    for page in PAGES:
        text = page.read_text()
        if BLOCK.search(text) and (new := renew(text, asked)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
