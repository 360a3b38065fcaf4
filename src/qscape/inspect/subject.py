"""A trained agent as a thing to look at: its policy, its Q and its episodes, of a run folder or in memory."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.spaces import ActionBox
from qscape.errors import UsageError
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import PartState, bind_critics
from qscape.offpolicy.state import ActingState
from qscape.run import saves
from qscape.run.evaluation import SEED, Rollout, Sense, rollouts
from qscape.run.folder import one_run, read_record
from qscape.run.policy import load_policy, programs_of, read_acting
from qscape.run.programs import Acts, evaluation_key
from qscape.run.training import set_up_jax
from qscape.types import QFn

SIDE_BY_SIDE = 10  # episodes run at a time, as in evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """An agent with what it has learned and the environment it acts in. Made by `of_run` or `of_state`.

    Attributes:
        name: what to call it: its run folder, or its recipe.
        agent: bound to its task, `agent.task`.
        acting: all that acting needs, the critics included: of the kept policy where a schedule keeps one.
        make: `make(envs=1, seed=0, **env_args)` gives a fresh `EnvAdapter`.
        step: environment steps it was trained for.
        policy: "kept" or "current".
        record: of a run its `run.json`, else empty.
    """

    name: str
    agent: Any
    acting: Any
    make: Callable[..., EnvAdapter]
    step: int = 0
    policy: str = "current"
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def programs(self) -> Acts:
        """The compiled programs to act with."""
        return programs_of(self.agent)

    def act(self, obs: Float[Array, "N S"]) -> Float[Array, "N A"]:
        """Deterministic actions in [-1, 1] for raw observations, each as if first in its episode."""
        n = len(obs)
        noise_state, first = self.programs.init_noise(n), np.ones(n, bool)
        action, _, _ = self.programs.act(
            self.acting, noise_state, obs, first, np.int32(0), evaluation_key(), mode="evaluate"
        )
        return action

    @property
    def q(self) -> QFn | None:
        """(raw observations [N, S], actions [N, A] in [-1, 1]) -> a list of heads [N]; None: it has no Q.

        To be differentiated and compiled at will. `values` is the same with the networks as an argument,
        so that a program compiled once serves other seeds and later states of training.
        """
        return partial(values, self.agent, self.acting) if has_q(self.acting) else None

    def need_q(self, what: str) -> QFn:
        """The Q.

        Raises:
            UsageError: it has none; `what` could not be measured.
        """
        if self.q is None:
            raise UsageError(
                f"{self.name} has no Q(s, a), which {what} needs; look at an agent with critics."
            )
        return self.q

    def units(self, action: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n A"]:
        """Actions in the environment's units; those of an action table stay as they are."""
        return in_units(self.agent, action)

    def rollouts(
        self, episodes: int = 10, seed: int = SEED, noise: "Noise | None" = None, **env_args: Any
    ) -> list[Rollout]:
        """Whole episodes with the deterministic policy: those of `qscape evaluate` with the same seed.

        `noise`: what disturbs the observations that the policy sees.

        Raises:
            UsageError: no episode is asked for.
        """
        if episodes < 1:
            raise UsageError(f"--episodes is {episodes}; it must be at least 1.")
        adapter = self.make(envs=min(episodes, SIDE_BY_SIDE), seed=seed, **env_args)
        try:
            sense = None if noise is None else noise.sense(adapter, seed)
            return rollouts(self.programs, self.acting, adapter, episodes, seed, sense)
        finally:
            adapter.close()


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Uniform noise on observations: the policy sees clip(s + u ⊙ scale), u ~ U(-sigma, sigma), fresh for
    each step and dimension; clipped to the bounds of the observation space (the PAVE paper's protocol)."""

    sigma: float
    scale: Float[np.ndarray, " S"]

    def sense(self, adapter: EnvAdapter, seed: int) -> Sense:
        """The noise as it falls on the observations of an edge."""
        rng, (low, high) = np.random.default_rng(seed), adapter.observation_bounds

        def disturbed(obs: np.ndarray) -> np.ndarray:
            u = rng.uniform(-self.sigma, self.sigma, obs.shape)
            return np.clip(obs + u * self.scale, low, high).astype(np.float32)

        return disturbed


def of_run(folder: Path | str, current: bool = False) -> Subject:
    """The policy of a run's newest save: the kept one where the schedule keeps one, unless `current`.

    Args:
        folder: of a run, or of a group that holds one.

    Raises:
        UsageError: a group of several. RunError: it is no run, or has no readable save.
    """
    set_up_jax()
    folder = one_run(Path(folder))
    record = read_record(folder)
    loaded = load_policy(folder, current=current)
    loaded.adapter.close()

    agent = loaded.programs.agent

    def make(envs: int = 1, seed: int = SEED, **more: Any) -> EnvAdapter:
        args = {**record["env_args"], **more}
        return make_adapter(record["env"], envs, args, seed=seed, index_actions=agent.index_actions)

    return Subject(str(folder), agent, loaded.acting, make, loaded.step, loaded.policy, record)


def history_of(run: Subject, current: bool = False) -> list[Subject]:
    """A run of `of_run` at each of its saves, oldest first: the same agent with what it had learned then.

    Raises:
        UsageError: it has one save only. RunError: a save is unreadable.
    """
    place = Path(run.name) / "saves"
    paths = [place / name for name in saves.names(place) if "acting" in saves.tree_names(place / name)]
    if len(paths) < 2:
        raise UsageError(
            f"--over-training: {run.name} has one save only, of step {run.step:,}; "
            "train with more of them, e.g. --milestones 0.1."
        )
    learned = (read_acting(path, run.agent, current) for path in paths)
    return [dataclasses.replace(run, acting=a, step=step, policy=policy) for a, step, policy in learned]


def of_state(
    agent: Any, state: Any, env: str | Callable[..., Any], step: int = 0, **env_args: Any
) -> Subject:
    """An agent in memory: its state (or acting state) and the id or the maker of its environment.

    Raises:
        UsageError: there is no such environment, or the agent does not fit it.
    """

    def make(envs: int = 1, seed: int = SEED, **more: Any) -> EnvAdapter:
        return make_adapter(env, envs, {**env_args, **more}, seed=seed, index_actions=agent.index_actions)

    if agent.spec is None:
        adapter = make()
        agent = agent.on(adapter.spec)
        adapter.close()
    acting = agent.acting(state) if hasattr(state, "optimisers") else state
    return Subject(agent.recipe, agent, acting, make, step)


def has_q(acting: Any) -> bool:
    """Does an acting state hold critics of observation and action?"""
    return bool(getattr(acting, "critics", None))


def values(
    agent: Agent, acting: ActingState, obs: Float[Array, "N S"], action: Float[Array, "N A"]
) -> list[Float[Array, " N"]]:
    """Heads of the online critics at raw observations and actions in [-1, 1], on acting's own view."""
    rep = agent.representation
    obs = agent.normaliser.apply(acting.part_states.get(agent.normaliser.name, PartState()), jnp.asarray(obs))
    view = rep.view(acting.part_states.get(rep.name, PartState()), "fixed")
    return bind_critics(rep, view, acting.critics)(obs, jnp.asarray(action))


def in_units(agent: Any, action: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n A"]:
    """Actions in [-1, 1] in the environment's units, what lies beyond the box at its bound, as it gets them;
    those of an action table stay scaled to [-1, 1]."""
    low, high = agent.task.low, agent.task.high
    if low is None or high is None:
        return np.asarray(action, float)
    return ActionBox.from_bounds(low, high).to_env(np.asarray(action, float))
