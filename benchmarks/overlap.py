"""Measure what `--overlap` gains where an environment is as slow as an update: environment steps per second.

    NPROC=1 python benchmarks/overlap.py
    NPROC=1 python benchmarks/overlap.py td3 --kinds sleeps --rounds 2 --seconds 1   # a quick test

The environment takes 5 ms a step (`--milliseconds`) and releases the interpreter: it sleeps, or it computes
in C. Its spaces are those of HalfCheetah-v5, and each step brings one update: batch size 256, networks
256-256.

- `environment` steps it by random actions, and learns nothing.
- `learner` trains in one that answers at once.
- `in turn` trains in it as every run does: an action waits for the update before it.
- `overlap` trains in it with `--overlap`.

All arms live in one process. A round gives each of them one turn of so many seconds, in an order that
rotates. The script prints medians over rounds, and what `overlap` reaches of the slower of `environment` and
`learner`. Every turn, with the load of other processes during it, goes to benchmarks/results/overlap.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from throughput import QUIET, busy_seconds, machine

from qscape.envs import EnvAdapter, make
from qscape.run import Plan
from qscape.run.plan import prepare
from qscape.run.training import make_session, set_up_jax

RESULTS = Path(__file__).resolve().parent / "results" / "overlap"
RECIPES = ("td3", "sac", "td3+sale+lap+periodic+value_clip")  # the last is td7 without checkpoints
KINDS = ("sleeps", "computes")
WARM_UP, FIRST, LONGEST = 300, 600, 10**9


class Slow(gym.Env):
    """Takes some time for a step, in which Python may go on; episodes have 1,000 steps.

    Args:
        wait: what takes the time.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

    def __init__(self, wait: Callable[[], object]) -> None:
        self.wait, self.now = wait, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.now = 0
        return self.np_random.normal(size=17), {}

    def step(self, action: np.ndarray) -> tuple:
        self.wait()
        self.now += 1
        reward = -float(np.square(action).sum())
        return self.np_random.normal(size=17), reward, False, self.now == 1_000, {}


def hash_for(rounds: int) -> None:
    """Compute in C, in little memory and without the interpreter."""
    hashlib.pbkdf2_hmac("sha256", b"environment", b"step", rounds)


def find_wait(kind: str, seconds: float) -> Callable[[], object]:
    """Return what takes so many seconds: "nothing" (none of them), "sleeps" or "computes"."""
    if kind == "nothing":
        return int
    if kind == "sleeps":
        return partial(time.sleep, seconds)
    rounds, took = 1_000, 0.0
    for _ in range(20):  # the least time is that of an undisturbed call
        begun = time.perf_counter()
        hash_for(rounds)
        took = min(took or 1.0, time.perf_counter() - begun)
    return partial(hash_for, max(1, round(rounds * seconds / took)))


class Environment:
    """The environment alone."""

    def __init__(self, adapter: EnvAdapter) -> None:
        self.adapter, self.random = adapter, np.random.default_rng(0)
        adapter.reset()

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.adapter.step(self.random.uniform(-1, 1, (1, 6)).astype(np.float32))


class Training:
    """A run without evaluations and run folder, past its random steps and with everything compiled."""

    def __init__(self, recipe: str, adapter: EnvAdapter, overlap: bool) -> None:
        settings = {"base": {"warmup": WARM_UP}}
        plan = Plan(recipe, "Slow", LONGEST, settings=settings, eval_every=0, overlap=overlap)
        plan, agent, _ = prepare(plan)
        self.session = make_session(plan, agent, adapter)
        self.advance(FIRST)

    def advance(self, steps: int) -> None:
        for _ in self.session.events(self.session.env_steps + steps):
            pass
        self.session.learner.state.updates.block_until_ready()


def take_turn(arm: Any, seconds: float, steps: int) -> dict[str, Any]:
    """Advance an arm by so many steps at a time until the seconds have passed."""
    arm.advance(max(1, steps // 10))  # its pages and caches are cold
    made, busy, own, begun = 0, busy_seconds(), time.process_time(), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        arm.advance(steps)
        made += steps
    took, now = time.perf_counter() - begun, busy_seconds()
    others = None if busy is None or now is None else max(0.0, now - busy - time.process_time() + own) / took
    return {"steps": made, "seconds": took, "steps_per_second": made / took, "cores_used_by_others": others}


def measure(recipe: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return all turns of one recipe in one kind of environment, and the ratios of medians."""
    slow = find_wait(kind, options.milliseconds / 1e3)
    open_slow, at_once = (partial(make, partial(Slow, wait)) for wait in (slow, find_wait("nothing", 0.0)))
    arms = {
        "environment": Environment(open_slow()),
        "learner": Training(recipe, at_once(), False),
        "in turn": Training(recipe, open_slow(), False),
        "overlap": Training(recipe, open_slow(), True),
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for number in range(options.rounds):
        names = [*arms]
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            turns[name].append(take_turn(arms[name], options.seconds, steps=50))
    medians = {name: statistics.median(t["steps_per_second"] for t in made) for name, made in turns.items()}
    slower = min(medians["environment"], medians["learner"])
    reached = {name: medians[name] / slower for name in ("in turn", "overlap")}
    disturbed = sum((t["cores_used_by_others"] or 0) > QUIET for made in turns.values() for t in made)
    shown = ", ".join(f"{name} {rate:.0f}" for name, rate in medians.items())
    print(
        f"{recipe}, {kind}: {shown}; of the slower: " + ", ".join(f"{n} {r:.2f}" for n, r in reached.items())
    )
    if disturbed:
        print(f"  disturbed turns: {disturbed} of {4 * options.rounds}", flush=True)
    return {"recipe": recipe, "kind": kind, "medians": medians, "of_the_slower": reached, "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--milliseconds", type=float, default=5.0, help="of a step of the environment")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    options = parser.parse_args()
    set_up_jax()
    about: dict[str, Any] = {"command": ["benchmarks/overlap.py", *sys.argv[1:]], "task": vars(options)}
    about["machine"] = machine(int(os.environ.get("NPROC", os.cpu_count() or 1)))
    about["cases"] = [measure(recipe, kind, options) for recipe in options.recipes for kind in options.kinds]
    about["machine"]["load_after"] = os.getloadavg()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(about, indent=1) + "\n")
    print(f"raw data: {file}")


if __name__ == "__main__":
    main()
