"""What a run will cost, from a short measurement on one core."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import jax
import numpy as np

from qscape.agents import build
from qscape.envs import make as make_adapter
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base as OffPolicyBase
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run.events import Measured
from qscape.run.plan import Plan, fitted
from qscape.run.rollouts import RolloutTrainer
from qscape.run.trainer import Trainer
from qscape.run.training import set_up_jax

STEPS = 300
FIRST = 20  # updates, to see how slow they are
UPDATES = 300  # at most
SECONDS = 2.0  # for those updates
EPISODE = 1_000  # steps of an episode where no time limit is known


def measure(plan: Plan) -> Measured:
    """Makes a few hundred environment steps and updates, in memory.

    Raises:
        UsageError: a plan that cannot be.
    """
    set_up_jax()
    start = time.perf_counter()
    plan, agent, _ = fitted(plan)  # with the settings of its preset
    if isinstance(agent, OnPolicyAgent):
        return _measure_rollouts(plan, agent)
    never = {**plan.settings, "base": {**plan.settings.get("base", {}), "warmup": 10**9}}
    adapter = make_adapter(plan.env, plan.envs, dict(plan.env_args), seed=plan.seed)
    trainer = Trainer(plan, cast(Agent, build(plan.recipe, never)), adapter)
    programs, spent = trainer.programs, 0.0

    def update(n: int) -> None:
        trainer.state, trainer.replay_state, trainer.metrics = programs.burst(
            trainer.state,
            trainer.storage,
            trainer.replay_state,
            trainer.metrics,
            steps,
            trainer.key,
            np.int32(n),
        )
        jax.block_until_ready(trainer.metrics)

    def act() -> None:
        chosen = programs.act(
            trainer.acting,
            trainer.noise_state,
            adapter.observation,
            trainer.first,
            steps,
            trainer.key,
            mode="explore",
        )
        jax.block_until_ready(chosen)

    def seconds(do: Callable[[], object]) -> float:
        nonlocal spent
        begun = time.perf_counter()
        do()
        took = time.perf_counter() - begun
        spent += took
        return took

    drain(trainer.events(STEPS))
    step = seconds(lambda: drain(trainer.events(2 * STEPS))) / STEPS
    steps = np.int32(trainer.env_steps)
    update(1)
    first = seconds(lambda: update(FIRST)) / FIRST
    more = int(np.clip(SECONDS / first, FIRST, UPDATES))
    once = seconds(lambda: update(more)) / more
    act()
    choice = seconds(lambda: [act() for _ in range(STEPS)]) / STEPS
    adapter.close()
    episode = (adapter.time_limit or EPISODE) * (step + choice)
    return Measured(time.perf_counter() - start - spent, step, once, episode)


def _measure_rollouts(plan: Plan, agent: OnPolicyAgent) -> Measured:
    """The same for an on-policy agent: a rollout and its update, once both are compiled. What an update costs
    is part of what a step costs, as rollouts of whole episodes have no fixed length."""
    start = time.perf_counter()
    adapter = make_adapter(plan.env, plan.envs, dict(plan.env_args), seed=plan.seed, index_actions=True)
    trainer = RolloutTrainer(plan, agent, adapter)

    def rollout() -> list[float]:
        """Seconds of each step until the next update, and of that as well in the last."""
        seconds, until = [], trainer.updates + 1
        while trainer.updates < until:
            begun = time.perf_counter()
            drain(trainer.events(trainer.env_steps + plan.envs))
            seconds.append(time.perf_counter() - begun)
        return seconds

    rollout()  # compiles
    first = trainer.env_steps
    spans = rollout()
    adapter.close()
    step = sum(spans) / (trainer.env_steps - first)
    spent = step * trainer.env_steps
    begin = max(time.perf_counter() - start - spent, 0.0)
    return Measured(begin, step, 0.0, (adapter.time_limit or EPISODE) * min(spans))


def drain(events: Iterator[object]) -> None:
    """Let a run go on without listening."""
    for _ in events:
        pass


def seconds(plan: Plan, cost: Measured, made: int = 0) -> float:
    """What is left of a run of which `made` steps are there, on one core."""
    base = fitted(plan)[1].base
    left = plan.steps - made
    updates = 0.0
    if isinstance(base, OffPolicyBase):
        updates = base.updates_per_step * max(0, plan.steps - max(made, base.warmup))
    episodes = plan.eval_episodes * left / plan.eval_every if plan.eval_every else 0.0
    return cost.begin + left * cost.step + updates * cost.update + episodes * cost.episode


class Costs:
    """What was measured of the agents and environments of a study on this machine, kept in its folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "measured.json"
        self.known: dict[str, list[float]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(self.file.read_text())

    def of(self, group: Path) -> Measured | None:
        """The costs of a group of seeds; None: they were not measured yet."""
        found = self.known.get(self._key(group))
        return Measured(*found) if found else None

    def add(self, group: Path, cost: Measured) -> None:
        """Note the costs of a group; where they cannot be written, they are measured again next time."""
        self.known[self._key(group)] = [*cost]
        with contextlib.suppress(OSError):
            aside = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            aside.write_text(json.dumps(self.known, indent=1) + "\n")
            aside.replace(self.file)

    def _key(self, group: Path) -> str:
        return f"{platform.node()}: {group.relative_to(self.file.parent)}"
