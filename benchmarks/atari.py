"""Measure the processor seconds of each part of a step of PPO on Atari, and frames per second.

    NPROC=1 python benchmarks/atari.py

The agent is PPO with the settings of `--preset paper` on ALE/Pong-v5: rollouts of 1,000 steps, four passes
in minibatches of 256. The parts are timed in turn, and the median of each is reported. The seconds are
processor seconds, which other work on the machine disturbs less than wall time. A step is four frames of
the game. Writes benchmarks/results/on_policy/atari.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from qscape.agents import build
from qscape.run.adapters import open_adapters
from qscape.run.folder import origin
from qscape.run.plan import Plan, prepare
from qscape.run.training import make_session

FILE = Path(__file__).parent / "results" / "on_policy" / "atari.json"
ENV, FRAMES, STEPS = "ALE/Pong-v5", 4, 200


def seconds(do: Callable[[], object]) -> float:
    begun = time.process_time()
    do()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    plan = prepare(Plan("ppo", ENV, steps=10**9, eval_every=0, preset="paper"))[0]
    agent = build(plan.recipe, plan.settings)
    trainer = make_session(plan, agent, *open_adapters(plan, agent))
    adapter, programs = trainer.adapter, trainer.learner.programs
    adapter.reset()
    action = np.zeros((1, 1), np.float32)

    def act() -> None:
        for n in range(STEPS):
            chosen = programs.act(
                trainer.learner.acting,
                None,
                adapter.observation,
                trainer.first,
                np.int32(n),
                trainer.learner.seeds.key,
                mode="explore",
            )
            np.asarray(chosen[0])

    def environment() -> None:
        for n in range(STEPS):
            action[:] = n % adapter.spec.choices
            step = adapter.step(action)
            trainer.engine.buffer.add(adapter.observation, action, step)
        trainer.engine.buffer.clear()

    def update() -> None:
        trainer.learner.state, trainer.metrics = programs.update(
            trainer.learner.state, trainer.engine.buffer.rollout(), np.float32(0), trainer.learner.seeds.key
        )
        jax.block_until_ready(trainer.metrics)

    parts = {
        "environment": (environment, STEPS),
        "acting": (act, STEPS),
        "update": (update, trainer.engine.buffer.rows),
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(given.turns + 1):
        for name, (do, steps) in parts.items():
            took = seconds(do) / steps
            if turn:  # the first turn compiles
                spent[name].append(took)
    medians = {name: float(np.median(took)) for name, took in spent.items()}
    whole = sum(medians.values())
    for name, median in medians.items():
        print(f"{name:12}{median * 1e3:8.2f} ms a step  {median / whole:6.1%}")
    print(f"{1 / whole:.0f} steps, {FRAMES / whole:.0f} frames a processor second")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"environment": ENV, "recipe": plan.recipe, "settings": plan.settings, **origin()}
    about["command"] = "python benchmarks/atari.py"
    given.out.write_text(json.dumps(about | {"seconds_a_step": spent}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
