"""The whole cycle of a run in one compiled program, which calls the environment from within.

On the way from one program to the next a step loses time: leaves are handed over, threads wake up, caches are
cold. Here nothing is handed over but what the environment answers: on 2 cores that saves 0.4 of 2.5 ms a step
with TD3, and 1.3 of 13 ms with TD7. The numbers are those of `insert`, `burst` and `act` in turn.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, ArrayLike, Float, PyTree

from qscape.envs import EnvAdapter, Episode, Step
from qscape.offpolicy.state import State
from qscape.replay.storage import ReplayState, Rows, Storage
from qscape.run.programs import Programs
from qscape.types import Key

SLICE = 0.25  # seconds after which the program looks up: as long as a request to stop may wait


class Cycle(NamedTuple):
    """A run between two steps of the environment; the action for `observation` is chosen."""

    state: State
    replay: tuple[Storage, ReplayState]
    noise_state: PyTree
    metrics: Array
    observation: Float[ArrayLike, "E S"]
    action: Float[Array, "E A"]
    columns: dict[str, Array]


class Due(NamedTuple):
    """What is due after a step."""

    env_steps: int  # made so far
    updates: int  # to make before the next action
    stop: bool  # leave the program once they are made?


class Driver:
    """Takes steps, learns and chooses the next action, again and again, in one program."""

    def __init__(self, programs: Programs, adapter: EnvAdapter, count: Callable[[Step], Due]) -> None:
        """
        Args:
            edge: the environments; they are called in a thread of XLA's.
            count: is told of every step, in that thread.
        """
        self.adapter, self.count = adapter, count
        self.end = 0.0  # the time at which the program looks up
        self.episodes: list[Episode] = []  # those that ended in the last step
        self.error: Exception | None = None
        self.go = jax.jit(_program(programs, self._answer), donate_argnums=0)

    def __call__(self, cycle: Cycle, key: Key) -> Cycle:
        """At least one step. The last one is that in which episodes ended, or after which the program was to
        be left, or which failed. Takes over the buffers of the cycle."""
        self.end = time.perf_counter() + SLICE
        cycle = self.go(cycle, key)
        jax.block_until_ready(cycle.metrics)
        return cycle

    def finished(self) -> list[Episode]:
        """The episodes that ended in the last step.

        Raises:
            RunError: the environment failed in it; as it was raised there.
        """
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.episodes

    def _answer(self, out: "Answer", action: np.ndarray) -> None:
        """One step of the environments. An error must not pass through the program, so it is kept."""
        try:
            step = self.adapter.step(action)
            due = self.count(step)
        except Exception as error:
            self.error, seen = error, self.adapter.observation
            out.fill(Answer(0.0, False, False, seen, seen, False, 0, 0, False))
            return
        self.episodes = step.finished
        proceed = not (due.stop or step.finished or time.perf_counter() > self.end)
        ended = step.terminated, step.truncated
        seen = step.next_observation, step.observation
        out.fill(Answer(step.reward, *ended, *seen, step.valid, due.env_steps, due.updates, proceed))


class Answer(NamedTuple):
    """What the program is told of a step (see `envs.edge.Step`), and of what is due."""

    reward: Any  # [E]
    terminated: Any  # [E], bool
    truncated: Any  # [E], bool
    next_observation: Any  # [E, S]
    observation: Any  # [E, S]
    valid: Any  # [E], bool
    env_steps: Any
    updates: Any
    proceed: Any  # may the program take the next step by itself?

    def fill(self, values: "Answer") -> None:
        """Write into arrays that are XLA's."""
        for place, value in zip(self, values, strict=True):
            np.copyto(place, value)


def _program(
    programs: Programs, environments: Callable[[Answer, np.ndarray], None]
) -> Callable[[Cycle, Key], Cycle]:
    agent, layout = programs.agent, programs.layout

    def call(_: object, out: Answer, action: object) -> None:
        # The arrays are XLA's own memory, which it uses again: what the environment may keep is a copy.
        environments(Answer(*map(np.asarray, out)), np.asarray(action).copy())

    flag, count = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), np.int32)
    flags, numbers = (jax.ShapeDtypeStruct((layout.envs,), kind) for kind in (bool, np.float32))
    seen = jax.ShapeDtypeStruct((layout.envs, layout.observation_size), np.float32)
    answers = Answer(numbers, flags, flags, seen, seen, flags, count, count, flag)
    ask = buffer_callback(call, answers, has_side_effect=True)

    def step(now: Cycle, key: Key) -> tuple[Cycle, Array]:
        told: Any = ask(now.action)
        ended = told.terminated, told.truncated
        new = Rows(now.observation, now.action, told.reward, *ended, told.next_observation, now.columns)
        rows, replay_state = agent.replay.insert(layout, *now.replay, new, told.valid)
        # As without the program: a state knows of the steps before its last update.
        noted = jnp.where(told.updates > 0, told.env_steps, now.state.env_steps)
        state, replay_state, metrics = programs.burst(
            now.state, rows, replay_state, now.metrics, noted, key, told.updates
        )
        obs, first = told.observation, told.terminated | told.truncated | ~told.valid
        state = agent.see(state, obs)
        acting = agent.acting(state)
        action, columns, noise_state = agent.act(
            acting, now.noise_state, obs, first, told.env_steps, key, "explore"
        )
        return Cycle(state, (rows, replay_state), noise_state, metrics, obs, action, columns), told.proceed

    def go(cycle: Cycle, key: Key) -> Cycle:
        begin = cycle, jnp.array(True)
        return jax.lax.while_loop(lambda carry: carry[1], lambda carry: step(carry[0], key), begin)[0]

    return go
