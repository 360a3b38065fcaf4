"""On-policy training from rollouts, on environments of Gymnasium.

The current policy collects a rollout: a fixed number of steps or of whole episodes. One update learns from
the rollout, which is then discarded.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qscape.envs import EnvAdapter, snapshot
from qscape.onpolicy.agent import Agent
from qscape.onpolicy.state import State
from qscape.ops.finite import guard_names, watch
from qscape.run.engines.base import EndedEpisode, Learner, Limit, Progress, SavedSeed, copy_buffers
from qscape.run.engines.replay import restore_environments
from qscape.run.plan import Plan
from qscape.run.programs import Act
from qscape.run.seeds import Seeds
from qscape.types import Key, Transition


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

    def blank_metrics(self, state: State, rollout: Transition, key: Key) -> Array:
        """Set `metrics` by tracing an update, and return the metrics vector before the first one: all NaN."""
        metrics = jax.eval_shape(self.agent.update, state, rollout, np.float32(0), key)[1]
        self.metrics = sorted(metrics)
        return jnp.full(len(self.metrics), jnp.nan, jnp.float32)

    def _update(self, state: State, rollout: Transition, progress: Array, key: Key) -> tuple[State, Array]:
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

    def add(self, new: Transition) -> None:
        """Add one step of every environment."""
        ended = np.logical_or(new.terminated, new.truncated)
        new = new._replace(valid=np.logical_and(new.valid, self.left > 0))
        for name, column in self.columns.items():
            column[self.used] = getattr(new, name)
        self.used += 1
        if self.episodes:
            self.left -= ended & (self.left > 0)

    def rollout(self) -> Transition:
        """Return the collected rows [T, E, ...].

        Rollouts of whole episodes vary in length. Their length is rounded up to a power of two, so that few
        programs are compiled; the added rows are not valid.
        """
        used, rows = self.used, self.rows
        if self.episodes:
            rows = min(rows, 1 << max(used - 1, 15).bit_length())
            self.columns["valid"][used:rows] = False
        columns: dict[str, Any] = {name: column[:rows] for name, column in self.columns.items()}
        made = Transition(**columns)
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


class RolloutLearner(Learner):
    """What an on-policy agent learns: shared by the engines that collect rollouts.

    Attributes:
        agent: the agent, bound to its task.
        seeds: the axis of seeds.
        programs: the compiled functions of one seed, and the names of the metrics.
        state: networks, optimiser states and counters.
        env_steps, updates: made so far.
    """

    values: Array

    def __init__(self, agent: Agent, seeds: Seeds, state: State) -> None:
        """Set up the learner of an agent that is bound to its task; who makes it sets `values`."""
        self.agent, self.seeds, self.state = agent, seeds, state
        self.programs = RolloutPrograms(agent)
        self.env_steps = self.updates = 0

    def guard(self, seed: int = 0) -> dict[str, int]:
        state, values = self.seeds.take((self.state, self.values), seed)
        names = guard_names(state.optimisers)
        none = jnp.zeros(len(names), jnp.int32)
        found = watch(none, state.optimisers, self.programs.metrics, jnp.asarray(values), state.updates)
        return dict(zip(names, np.asarray(found).tolist(), strict=True))

    # --- saving and resuming ------------------------------------------------------------------------

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Return the trees of a save; the engine adds the tree "replay", and more to "loop"."""
        state, values, key = self.seeds.take((self.state, self.values, self.seeds.key), seed)
        loop = {"metrics": values, "key": key}
        return {"acting": self.policies(seed)["current"], "state": state, "replay": {}, "loop": loop}

    def restore(self, saves: Sequence[SavedSeed]) -> None:
        """Continue from a save of each seed."""
        for save in saves:
            self.agent.check_part_states(save.arrays["state"].part_states)
        restored = [(save.arrays["state"], save.arrays["loop"]["metrics"]) for save in saves]
        self.state, self.values = copy_buffers(self.seeds.join(restored))
        self.env_steps, self.updates = (saves[0].counters[name] for name in ("env_steps", "updates"))


class RolloutEngine:
    """An on-policy run whose environments step on the host, of one seed.

    Attributes:
        learner: networks and updates.
        envs: E, the number of environments side by side, in each seed.
        buffer: the rollout that is being collected.
        first: True where an episode begins with the next step [E].
    """

    def __init__(self, plans: Sequence[Plan], agent: Agent, adapters: Sequence[EnvAdapter]) -> None:
        """Set up a run before its first step."""
        (plan,), (self.adapter,) = plans, adapters
        self.envs = self.adapter.envs
        self.seeds = Seeds([plan.seed])
        bound = agent.on(self.adapter.spec)
        state = jax.jit(partial(bound.init, envs=self.envs))(self.seeds.key)
        self.learner = RolloutLearner(bound, self.seeds, state)
        self.first = np.ones(self.envs, bool)
        self.buffer = Buffer(bound, self.adapter)
        programs = self.learner.programs
        self.learner.values = programs.blank_metrics(state, self.buffer.rollout(), self.seeds.key)

    @property
    def ready(self) -> bool:
        return not self.buffer.full

    def notes(self, saves: bool) -> list[str]:
        return [describe_rollouts(self.learner.agent, self.buffer.rows * self.envs, self.envs)]

    def start(self) -> None:
        self.adapter.reset()

    def begin_again(self) -> None:
        self.adapter.reset()
        self.first = np.ones(self.envs, bool)
        self.buffer.cut()

    def advance(self, limit: Limit) -> Progress:
        learner = self.learner
        if self.buffer.full:
            self._learn(limit)
            return Progress()
        obs, steps, key = self.adapter.observation, np.int32(learner.env_steps), self.seeds.key
        chosen = learner.programs.act(learner.acting, None, obs, self.first, steps, key, mode="explore")
        step = self.adapter.step(np.asarray(chosen[0]))
        self.buffer.add(step.transition)
        learner.env_steps += int(np.count_nonzero(step.transition.valid))
        self.first = step.transition.starts_episode
        return Progress([EndedEpisode(0, learner.env_steps, episode) for episode in step.finished])

    def _learn(self, limit: Limit) -> None:
        """Learn from the rollout, and begin a new one."""
        learner = self.learner
        begun = max(learner.env_steps - self.buffer.steps, 0)  # the step at which this rollout began
        progress = np.float32(min(begun / limit.total, 1.0))
        state = learner.state._replace(env_steps=jnp.int32(learner.env_steps))
        update = learner.programs.update
        learner.state, learner.values = update(state, self.buffer.rollout(), progress, self.seeds.key)
        jax.block_until_ready(learner.values)  # the program may read the rows until it ends
        learner.updates += 1
        self.buffer.clear()
        if self.buffer.episodes and not self.first.all():  # rollouts of whole episodes begin with a reset
            self.adapter.reset()
            self.first = np.ones(self.envs, bool)

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        return {"used_rows": self.buffer.used}

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        def rows(x: np.ndarray) -> np.ndarray:
            return np.zeros((counters["used_rows"], *x.shape[1:]), x.dtype)

        replay = {name: rows(x) for name, x in self.buffer.columns.items()} | {"left": self.buffer.left}
        return self._arrays() | {"replay": replay}

    def _arrays(self) -> dict[str, Any]:
        arrays = self.learner.arrays()
        return arrays | {"replay": self.buffer.so_far(), "loop": arrays["loop"] | {"first": self.first}}

    def save(self, seed: int = 0) -> SavedSeed:
        return SavedSeed(self._arrays(), self.counters(), snapshot.take(self.adapter))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        (save,) = saves
        self.learner.restore(saves)
        self.first = np.asarray(save.arrays["loop"]["first"])
        if "replay" in save.arrays:
            self.buffer.restore(save.arrays["replay"])
        notes = restore_environments([self.adapter], saves)
        if notes:
            self.first = np.ones(self.envs, bool)
            self.buffer.cut()
        left_out = "the rollout that was being collected is left out"
        return notes + ([] if "replay" in save.arrays else [left_out])
