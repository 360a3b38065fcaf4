"""Training from rollouts: the loop of every on-policy agent.

The current policy collects a rollout: a fixed number of steps or of whole episodes. One update learns from
the rollout, which is then discarded.
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
    """`act` and `update`, jitted for one agent.

    Attributes:
        metrics: names of the entries of the metrics vector; empty before `blank_metrics` was called.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.metrics: list[str] = []
        self.act = Act(agent.act)
        self.update = jax.jit(self._update, donate_argnums=0)

    def init_noise(self, envs: int) -> None:
        """Return None: on-policy agents explore by sampling and need no noise state."""
        return None

    def blank_metrics(self, state: State, rollout: Rollout, key: Key) -> Array:
        """Set `metrics` by tracing an update, and return the metrics vector before the first one: all NaN."""
        metrics = jax.eval_shape(self.agent.update, state, rollout, np.float32(0), key)[1]
        self.metrics = sorted(metrics)
        return jnp.full(len(self.metrics), jnp.nan, jnp.float32)

    def _update(self, state: State, rollout: Rollout, progress: Array, key: Key) -> tuple[State, Array]:
        state, metrics = self.agent.update(state, rollout, progress, key)
        return state, jnp.stack([metrics[name] for name in self.metrics])


def describe_rollouts(agent: Agent, steps: int, envs: int) -> str:
    """Return a sentence for the user; `steps`: the environment steps of a rollout of a fixed length."""
    base = agent.base
    what = f"{base.episodes} episodes" if base.episodes else f"{steps:,} steps"
    return f"rollouts of {what} in {envs} environments, {base.passes} passes over each"


class Buffer:
    """The rollout that is being collected, on the host: T rows of E environments.

    If the agent learns from whole episodes, every environment collects a fixed share of them. Otherwise short
    episodes would be counted more often than long ones. Steps beyond an environment's share are not valid.

    Attributes:
        rows: T, the maximal number of rows.
        columns: the arrays of the rollout by name, [T, E, ...].
        used: rows filled so far.
        left: episodes that each environment still has to collect [E].
    """

    def __init__(self, agent: Agent, adapter: EnvAdapter) -> None:
        spec, envs = adapter.spec, adapter.envs
        self.episodes = agent.base.episodes
        self.rows = -(-agent.base.rollout // envs)
        shapes = {
            "observation": (spec.row_size,),
            "action": (spec.action_size,),
            "reward": (),
            "terminated": (),
            "truncated": (),
            "next_observation": (spec.row_size,),
            "valid": (),
        }
        seen = adapter.observation.dtype  # images stay uint8
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
        """Return the episodes that each environment has to collect [E]; the largest int64 means no limit."""
        if not self.episodes:
            return np.full(envs, np.iinfo(np.int64).max)
        return np.array([len(range(i, self.episodes, envs)) for i in range(envs)])

    @property
    def full(self) -> bool:
        """Whether the rollout is complete and an update is due."""
        return self.used == self.rows or not self.left.any()

    def add(self, observation: np.ndarray, action: np.ndarray, step: Step) -> None:
        """Add one step of every environment.

        Args:
            observation: the observations that were acted on [E, S].
            action: the actions in [-1, 1], or indices of discrete actions [E, A].
            step: the answer of the environments.
        """
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
        """Return the collected rows as a `Rollout`.

        Rollouts of whole episodes vary in length. Their length is rounded up to a power of two, so that few
        programs are compiled; the added rows are not valid.
        """
        used, rows = self.used, self.rows
        if self.episodes:
            rows = min(rows, 1 << max(used - 1, 15).bit_length())
            self.columns["valid"][used:rows] = False
        columns: dict[str, Any] = {name: column[:rows] for name, column in self.columns.items()}
        made = Rollout(**columns)
        return made if self.masked else made._replace(valid=None)

    @property
    def steps(self) -> int:
        """Number of steps that the environments made so far, those beyond a share too."""
        valid = self.columns["valid"][: self.used]
        return valid.size if self.episodes else int(np.count_nonzero(valid))

    def cut(self) -> None:
        """Truncate the running episodes at the last row, as a time limit does: the bootstrap is kept.

        Called when the environments could not be restored and start new episodes.
        """
        if self.used:
            last = self.used - 1
            self.columns["truncated"][last] |= ~self.columns["terminated"][last]

    def clear(self) -> None:
        """Begin a new rollout."""
        self.used, self.left = 0, self._share(len(self.left))

    def so_far(self) -> dict[str, np.ndarray]:
        """Return the rows in use and `left`, for a save."""
        return {name: column[: self.used] for name, column in self.columns.items()} | {"left": self.left}

    def restore(self, rows: dict[str, Any]) -> None:
        """Restore the rows and `left` that `so_far` returned."""
        self.left = np.array(rows["left"])
        self.used = len(rows["reward"])
        for name, column in self.columns.items():
            column[: self.used] = rows[name]


class RolloutTrainer(Loop):
    """A run of an on-policy agent in memory.

    Attributes:
        state: networks, optimiser states and counters.
        buffer: the rollout that is being collected.
        first: True where an episode begins with the next step [E].
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
        return [describe_rollouts(self.agent, self.buffer.rows * self.envs, self.envs)]

    def _prepare(self) -> bool:
        if not self.buffer.full:
            return True
        begun = max(self.env_steps - self.buffer.steps, 0)  # the step at which this rollout began
        progress = np.float32(min(begun / self.until, 1.0))
        state = self.state._replace(env_steps=jnp.int32(self.env_steps))
        self.state, self.metrics = self.programs.update(state, self.buffer.rollout(), progress, self.key)
        jax.block_until_ready(self.metrics)  # the program may read the rows until it ends
        self.updates += 1
        self.buffer.clear()
        if self.buffer.episodes and not self.first.all():  # rollouts of whole episodes begin with a reset
            self.adapter.reset()
            self.first = np.ones(self.adapter.envs, bool)
        return False

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Take one step of every sub-environment and add it to the rollout."""
        obs, steps = self.adapter.observation, np.int32(self.env_steps)
        chosen = self.programs.act(self.acting, None, obs, self.first, steps, self.key, mode="explore")
        action = np.asarray(chosen[0])
        step = self.adapter.step(action)
        self.buffer.add(obs, action, step)
        self.env_steps += int(np.count_nonzero(step.valid))
        self.first = step.starts_episode
        self.returns += [episode.ret for episode in step.finished]
        yield from self._episode_events(step.finished)

    # --- saving and resuming ------------------------------------------------------------------------

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
        if "replay" in arrays:
            self.buffer.restore(arrays["replay"])
        super().restore(arrays, counters)

    def on_empty_replay(self) -> list[str]:
        return ["the rollout that was being collected is left out"]

    def on_environment_restart(self) -> None:
        self.first = np.ones(self.adapter.envs, bool)
        self.buffer.cut()
