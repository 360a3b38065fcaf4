"""The cost of a run, estimated from a short measurement on one core."""

import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from qscape.agents import build
from qscape.offpolicy.base import Base as OffPolicyBase
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run.adapters import open_adapter
from qscape.run.engines.replay import ReplayLearner
from qscape.run.engines.rollout import RolloutEngine
from qscape.run.engines.scan import ReplayScan
from qscape.run.events import Measured
from qscape.run.files import write_whole
from qscape.run.plan import Plan, prepare
from qscape.run.training import make_session, set_up_jax

STEPS = 300
FIRST = 20  # updates of the first, rough measurement
UPDATES = 300  # maximal number of updates of the second measurement
SECONDS = 2.0  # planned duration of the second measurement
EPISODE = 1_000  # assumed steps of an episode without a time limit


def measure_costs(plan: Plan) -> Measured:
    """Measure the cost of a run by a few hundred environment steps and updates. Writes no files.

    Called by a worker for a job of kind "measure", before a study starts.

    Raises:
        UsageError: the plan is impossible. RunError: the environment failed.
    """
    set_up_jax()
    start = time.perf_counter()
    plan, agent, _ = prepare(plan)  # applies the preset
    plan = dataclasses.replace(plan, dataset="")  # an update costs the same, wherever its rows are from
    if isinstance(agent, OnPolicyAgent):
        return _measure_on_policy(plan, agent)
    never = {**plan.settings, "base": {**plan.settings.get("base", {}), "warmup": 10**9}}
    adapter = open_adapter(plan, agent)
    session = make_session(plan, build(plan.recipe, never), adapter)
    learner, key = session.learner, session.learner.seeds.key
    assert isinstance(learner, ReplayLearner)
    compiled = isinstance(session.engine, ReplayScan)
    programs, spent = learner.programs, 0.0
    jax.block_until_ready(learner.storage)  # the first access allocates the storage

    def update(n: int) -> None:
        learner.carry = programs.learn(learner.carry, np.int32(n), steps, key)
        jax.block_until_ready(learner.carry.metrics)

    def act() -> None:
        chosen = programs.act(
            learner.acting,
            learner.carry.noise_state,
            adapter.observation,
            learner.carry.first,
            steps,
            key,
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

    exhaust(session.events(STEPS))
    made = session.env_steps
    step = seconds(lambda: exhaust(session.events(2 * max(STEPS, made)))) / (session.env_steps - made)
    steps = np.int32(session.env_steps)
    update(1)
    first = seconds(lambda: update(FIRST)) / FIRST
    more = int(np.clip(SECONDS / first, FIRST, UPDATES))
    once = seconds(lambda: update(more)) / more
    choice = 0.0  # a step of a compiled run includes it
    if not compiled:
        act()
        choice = seconds(lambda: [act() for _ in range(STEPS)]) / STEPS
    adapter.close()
    episode = (adapter.time_limit or EPISODE) * (step + choice)
    return Measured(time.perf_counter() - start - spent, step, once, episode)


def _measure_on_policy(plan: Plan, agent: OnPolicyAgent) -> Measured:
    """Measure the second rollout and its update; the first one compiles the programs.

    The cost of an update is part of the cost of a step, since rollouts of whole episodes have no fixed
    length.
    """
    start = time.perf_counter()
    adapter = open_adapter(plan, agent)
    session = make_session(plan, agent, adapter)

    def rollout() -> list[float]:
        """Run until the next update; return the seconds of each step, the last one with its update."""
        seconds, until = [], session.updates + 1
        while session.updates < until:
            begun = time.perf_counter()
            exhaust(session.events(session.env_steps + plan.envs))
            seconds.append(time.perf_counter() - begun)
        return seconds

    rollout()  # compiles
    first = session.env_steps
    spans = rollout()
    adapter.close()
    step = sum(spans) / (session.env_steps - first)
    spent = step * session.env_steps
    begin = max(time.perf_counter() - start - spent, 0.0)
    alone = min(spans) if isinstance(session.engine, RolloutEngine) else step  # without the update
    return Measured(begin, step, 0.0, (adapter.time_limit or EPISODE) * alone)


def exhaust(events: Iterator[object]) -> None:
    """Consume a run's events; a run proceeds only while its events are consumed."""
    for _ in events:
        pass


def estimate_seconds(plan: Plan, cost: Measured, made: int = 0) -> float:
    """Estimate the seconds that a run still needs on one core.

    Args:
        plan: the plan of the run.
        cost: its measured cost.
        made: environment steps made so far.
    """
    base = prepare(plan)[1].base
    left = plan.steps - made
    updates, step = 0.0, cost.step
    if plan.dataset:  # where a step is an update, and no environment is stepped
        updates, step = left, 0.0
    elif isinstance(base, OffPolicyBase):
        updates = base.updates_per_step * max(0, plan.steps - max(made, base.warmup))
    episodes = plan.eval_episodes * left / plan.evals_every if plan.evals_every else 0.0
    return cost.begin + left * step + updates * cost.update + episodes * cost.episode


class Costs:
    """The measured costs of a study's agents and environments on this machine, stored in measured.json.

    Args:
        folder: the folder of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "measured.json"
        self.known: dict[str, list[float]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(self.file.read_text())

    def of(self, group: Path) -> Measured | None:
        """Return the cost of a group of seeds, given by its folder; None if it was not measured yet."""
        cost = self.known.get(self._key(group))
        return Measured(*cost) if cost else None

    def add(self, group: Path, cost: Measured) -> None:
        """Store the cost of a group. If the file cannot be written, the next process measures it again."""
        self.known[self._key(group)] = [*cost]
        with contextlib.suppress(OSError):
            write_whole(self.file, (json.dumps(self.known, indent=1) + "\n").encode())

    def _key(self, group: Path) -> str:
        return f"{platform.node()}: {group.relative_to(self.file.parent)}"
