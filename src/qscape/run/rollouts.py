"""Training from rollouts: the loop of every on-policy agent.

The present policy makes a rollout, a fixed number of steps or of whole episodes; then one update learns from
it and it is thrown away.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qscape.envs import EnvAdapter, Step
from qscape.onpolicy.agent import Agent
from qscape.onpolicy.sockets import Rollout
from qscape.onpolicy.state import State
from qscape.run import events as ev
from qscape.run.loop import Loop, Saver, copy_buffers
from qscape.run.plan import Plan
from qscape.run.programs import Act
from qscape.types import Key


class RolloutPrograms:
    """act and update, jitted for one agent.

    Attributes:
        metrics: names of the entries of the metrics vector, known once an update was traced.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.metrics: list[str] = []
        self.act = Act(agent.act)
        self.update = jax.jit(self._update, donate_argnums=0)

    def init_noise(self, envs: int) -> None:
        """On-policy acting remembers nothing."""
        return None

    def blank_metrics(self, state: State, rollout: Rollout, key: Key) -> Array:
        """The metrics vector before the first update; finds out the names as well."""
        metrics = jax.eval_shape(self.agent.update, state, rollout, np.float32(0), key)[1]
        self.metrics = sorted(metrics)
        return jnp.full(len(self.metrics), jnp.nan)

    def _update(self, state: State, rollout: Rollout, progress: Array, key: Key) -> tuple[State, Array]:
        state, metrics = self.agent.update(state, rollout, progress, key)
        return state, jnp.stack([metrics[name] for name in self.metrics])


class Buffer:
    """A rollout while it is made, on the host: T rows of E environments.

    With `episodes` each environment makes a fixed share of them, so that short ones are not counted more
    often than long ones, and what it does beyond its share is not learned from.
    """

    def __init__(self, agent: Agent, adapter: EnvAdapter) -> None:
        spec, envs = adapter.spec, adapter.envs
        self.episodes = agent.base.episodes
        self.rows = -(-agent.base.rollout // envs)  # at most
        shapes = {
            "observation": (spec.observation_size,),
            "action": (spec.action_size,),
            "reward": (),
            "terminated": (),
            "truncated": (),
            "next_observation": (spec.observation_size,),
            "valid": (),
        }
        seen = adapter.observation.dtype  # bytes of images stay bytes
        kinds = {"observation": seen, "next_observation": seen}
        kinds |= dict.fromkeys(("terminated", "truncated", "valid"), np.bool_)
        self.columns = {
            name: np.zeros((self.rows, envs, *shape), kinds.get(name, np.float32))
            for name, shape in shapes.items()
        }
        self.masked = bool(self.episodes) or adapter.has_reset_rows
        self.used = 0
        self.left = self._share(envs)

    def _share(self, envs: int) -> np.ndarray:
        """Episodes that each environment has still to make; without a number of them: endlessly many."""
        if not self.episodes:
            return np.full(envs, np.iinfo(np.int64).max)
        return np.array([len(range(i, self.episodes, envs)) for i in range(envs)])

    @property
    def full(self) -> bool:
        """Is it time to learn?"""
        return self.used == self.rows or not self.left.any()

    def add(self, observation: np.ndarray, action: np.ndarray, step: Step) -> None:
        """One step of every environment."""
        ended = step.terminated | step.truncated
        row = {
            "observation": observation,
            "action": action,
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "next_observation": step.next_observation,
            "valid": step.valid & (self.left > 0),
        }
        for name, values in row.items():
            self.columns[name][self.used] = values
        self.used += 1
        if self.episodes:
            self.left -= ended & (self.left > 0)

    def rollout(self) -> Rollout:
        """What was made. A number of rows that varies is rounded up to a power of two, so that few programs
        are compiled; the further rows are not valid."""
        used, rows = self.used, self.rows
        if self.episodes:
            rows = min(rows, 1 << max(used - 1, 15).bit_length())
            self.columns["valid"][used:rows] = False
        columns: dict[str, Any] = {name: column[:rows] for name, column in self.columns.items()}
        made = Rollout(**columns)
        return made if self.masked else made._replace(valid=None)

    @property
    def steps(self) -> int:
        """Steps to learn from so far."""
        return int(np.count_nonzero(self.columns["valid"][: self.used]))

    def cut(self) -> None:
        """The episodes that are under way go on no further: as at a time limit, the bootstrap is not cut."""
        if self.used:
            last = self.used - 1
            self.columns["truncated"][last] |= ~self.columns["terminated"][last]

    def clear(self) -> None:
        """Begin a new rollout."""
        self.used, self.left = 0, self._share(len(self.left))

    def so_far(self) -> dict[str, np.ndarray]:
        """The rows there are, for a save."""
        return {name: column[: self.used] for name, column in self.columns.items()} | {"left": self.left}

    def restore(self, rows: dict[str, Any]) -> None:
        """Take over what `so_far` gave."""
        self.left = np.array(rows["left"])
        self.used = len(rows["reward"])
        for name, column in self.columns.items():
            column[: self.used] = rows[name]


class RolloutTrainer(Loop):
    """A run of an on-policy agent in memory.

    Attributes:
        state: what was learned.
        buffer: the rollout that is being made.
    """

    programs: RolloutPrograms

    def __init__(
        self,
        plan: Plan,
        agent: Agent,
        adapter: EnvAdapter,
        eval_adapter: EnvAdapter | None = None,
        saver: Saver | None = None,
    ):
        super().__init__(plan, agent, adapter, eval_adapter, saver)
        self.programs = RolloutPrograms(self.agent)
        self.first = np.ones(adapter.envs, bool)
        self.state = jax.jit(self.agent.init, static_argnums=1)(self.key, adapter.envs)
        self.buffer = Buffer(self.agent, adapter)
        self.metrics = self.programs.blank_metrics(self.state, self.buffer.rollout(), self.key)

    def _notes(self) -> list[str]:
        base = self.agent.base
        what = (
            f"{base.episodes} episodes"
            if base.episodes
            else f"{self.buffer.rows * self.adapter.envs:,} steps"
        )
        return [f"rollouts of {what} in {self.adapter.envs} environments, {base.passes} passes over each"]

    def _prepare(self) -> bool:
        if not self.buffer.full:
            return True
        begun = max(self.env_steps - self.buffer.steps, 0)  # when this rollout began
        progress = np.float32(min(begun / self.until, 1.0))
        state = self.state._replace(env_steps=jnp.int32(self.env_steps))
        self.state, self.metrics = self.programs.update(state, self.buffer.rollout(), progress, self.key)
        jax.block_until_ready(self.metrics)  # the rollout was read: its rows may be written again
        self.updates += 1
        self.buffer.clear()
        if self.buffer.episodes and not self.first.all():  # whole episodes only: all begin together
            self.adapter.reset()
            self.first = np.ones(self.adapter.envs, bool)
        return False

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """One step of every sub-environment, into the rollout."""
        obs, steps = self.adapter.observation, np.int32(self.env_steps)
        chosen = self.programs.act(self.acting, None, obs, self.first, steps, self.key, mode="explore")
        action = np.asarray(chosen[0])
        step = self.adapter.step(action)
        self.buffer.add(obs, action, step)
        self.env_steps += int(np.count_nonzero(step.valid))
        self.first = step.starts_episode
        self.returns += [episode.ret for episode in step.finished]
        yield from self._episode_events(step.finished)

    # --- saving and going on ------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        loop = {"metrics": self.metrics, "first": self.first, "key": self.key}
        return {"acting": self.acting, "state": self.state, "replay": self.buffer.so_far(), "loop": loop}

    def counters(self) -> dict[str, Any]:
        return super().counters() | {"used_rows": self.buffer.used}

    def templates(self, counters: dict[str, Any]) -> dict[str, Any]:
        def rows(x: np.ndarray) -> np.ndarray:
            return np.zeros((counters["used_rows"], *x.shape[1:]), x.dtype)

        replay = {name: rows(x) for name, x in self.buffer.columns.items()} | {"left": self.buffer.left}
        return self.arrays() | {"replay": replay}

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        self.agent.check_part_states(arrays["state"].part_states)
        self.state, self.metrics = copy_buffers(arrays["state"]), copy_buffers(arrays["loop"]["metrics"])
        self.first = np.asarray(arrays["loop"]["first"])
        self.buffer.restore(arrays["replay"])
        super().restore(arrays, counters)

    def on_environment_restart(self) -> None:
        self.first = np.ones(self.adapter.envs, bool)
        self.buffer.cut()
