"""A trained agent as an object to measure: policy, Q and episodes, from a run folder or memory."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.spaces import ActionBox
from qscape.errors import OutOfRange, UnfitAgent
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import PartState, bind_critics
from qscape.offpolicy.state import ActingState
from qscape.run import saves
from qscape.run.evaluation import SEED, ObservationFilter, Rollout, rollouts
from qscape.run.folder import one_run, read_plan, read_record
from qscape.run.policy import load_policy, make_programs, read_acting
from qscape.run.programs import Acts, evaluation_key
from qscape.run.training import set_up_jax
from qscape.types import QFn
from qscape.values import decode_args

SIDE_BY_SIDE = 10  # episodes run at a time, as in evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAgent:
    """An agent with its learned networks and the environment it acts in.

    Every measurement of `qscape.inspect` takes one. Made by `load_trained_agent` (a run folder),
    `make_trained_agent` (an agent in memory) or `qs.Model.trained_agent`.

    Attributes:
        name: the run folder, or the recipe of an agent in memory; used in titles and error messages.
        agent: the agent, bound to its task (`agent.task`).
        acting: the state that acting needs, critics included. That of the kept policy if the checkpoint
            schedule keeps one.
        make: `make(envs=1, seed=0, **env_args)` returns a fresh `EnvAdapter`; the caller closes it.
        step: environment steps of training.
        policy: "kept" or "current".
        record: the run's `run.json`; empty for an agent in memory.
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
        """The compiled programs that choose actions."""
        return make_programs(self.agent)

    def act(self, obs: Float[Array, "N S"]) -> Float[Array, "N A"]:
        """Choose deterministic actions in [-1, 1] for raw observations.

        Every row is treated as the first observation of its episode.
        """
        n = len(obs)
        noise_state, first = self.programs.init_noise(n), np.ones(n, bool)
        action, _, _ = self.programs.act(
            self.acting, noise_state, obs, first, np.int32(0), evaluation_key(), mode="evaluate"
        )
        return action

    @property
    def q(self) -> QFn | None:
        """Q as a function: (raw observations [N, S], actions [N, A] in [-1, 1]) -> a list of heads [N].

        None if the agent has no critic of state and action. The function can be differentiated and compiled.
        `critic_values` takes the networks as an argument, so that one compiled program serves several seeds
        and saves.
        """
        return partial(critic_values, self.agent, self.acting) if has_q(self.acting) else None

    def require_q(self, what: str) -> QFn:
        """Return `q`, or explain that the agent has none.

        Args:
            what: the measurement that needs Q, for the error message.

        Raises:
            UsageError: the agent has no Q.
        """
        if self.q is None:
            raise UnfitAgent(f"{self.name} has no Q(s, a), which {what} needs; choose an agent with critics.")
        return self.q

    def units(self, action: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n A"]:
        """Convert actions in [-1, 1] to the environment's units; rows of an action table stay scaled."""
        return to_env_units(self.agent, action)

    def rollouts(
        self, episodes: int = 10, seed: int = SEED, noise: "ObservationNoise | None" = None, **env_args: Any
    ) -> list[Rollout]:
        """Run whole episodes with the deterministic policy.

        With the same seed and number these are the episodes of `qscape evaluate`. An agent that draws in
        evaluations (`wolpertinger`, `cem`) draws by the number of episodes side by side, so fewer than 10
        episodes are not the first ones of 10.

        Args:
            episodes: number of episodes, at most 10 of them side by side.
            seed: sub-environment i is seeded with `seed + i`.
            noise: noise on the observations that the policy sees; None for no noise.
            env_args: further arguments of the environment; they win over the recorded ones.

        Raises:
            UsageError: `episodes` is below 1.
        """
        if episodes < 1:
            raise OutOfRange(f"--episodes is {episodes}; it must be at least 1.", field="episodes")
        adapter = self.make(envs=min(episodes, SIDE_BY_SIDE), seed=seed, **env_args)
        try:
            observation_filter = None if noise is None else noise.make_filter(adapter, seed)
            return rollouts(self.programs, self.acting, adapter, episodes, seed, observation_filter)
        finally:
            adapter.close()


@dataclasses.dataclass(frozen=True, eq=False)
class ObservationNoise:
    """Uniform observation noise, the protocol of PAVE (Lee et al., arXiv 2601.22970).

    The policy sees clip(s + u ⊙ scale, low, high) with u ~ U(-sigma, sigma), drawn for every step and
    dimension, and the bounds of the observation space.

    Attributes:
        sigma: amplitude, in units of `scale`.
        scale: standard deviation of each observation dimension (`smoothness.measure_observation_scale`).
    """

    sigma: float
    scale: Float[np.ndarray, " S"]

    def make_filter(self, adapter: EnvAdapter, seed: int) -> ObservationFilter:
        """Return a function that adds the noise to a batch of observations [E, S] of `adapter`."""
        rng, (low, high) = np.random.default_rng(seed), adapter.observation_bounds

        def perturb(obs: np.ndarray) -> np.ndarray:
            u = rng.uniform(-self.sigma, self.sigma, (len(obs), len(low)))
            changed = np.clip(obs[:, : len(low)] + u * self.scale, low, high).astype(np.float32)
            return changed if adapter.spec.mask is None else np.append(changed, obs[:, len(low) :], axis=1)

        return perturb


def load_trained_agent(folder: Path | str, current: bool = False) -> TrainedAgent:
    """Load the policy of a run's newest save.

    Args:
        folder: a run folder, or a group folder that holds one run.
        current: take the current policy even if the checkpoint schedule keeps a better one.

    Raises:
        UsageError: the folder holds several runs.
        RunError: the folder holds no run, or the run has no readable save.
    """
    set_up_jax()
    folder = one_run(Path(folder))
    record = read_record(folder)
    loaded = load_policy(folder, current=current)
    loaded.adapter.close()

    agent, lag = loaded.programs.agent, read_plan(folder).lag

    def make(envs: int = 1, seed: int = SEED, **more: Any) -> EnvAdapter:
        args = {**decode_args(record["env_args"]), **more}
        about: Any = {"index_actions": agent.index_actions, "lag": lag, "alone": "--episodes 1"}
        adapter = make_adapter(record["env"], envs, args, seed=seed, **about)
        adapter.arrange(loaded.adapter.spaces)
        return adapter

    return TrainedAgent(str(folder), agent, loaded.acting, make, loaded.step, loaded.policy, record)


def load_history(run: TrainedAgent, current: bool = False) -> list[TrainedAgent]:
    """Load a run's policy at each of its saves, oldest first.

    Used by `qscape landscape --over-training`. All saves share one agent, so programs compile once.

    Args:
        run: the result of `load_trained_agent`.
        current: see `load_trained_agent`.

    Raises:
        UsageError: the run has a single save.
        RunError: a save is unreadable.
    """
    history = [*load_saves(run, current)]
    if len(history) < 2:
        raise UnfitAgent(
            f"--over-training: {run.name} has one save only, of step {run.step:,}; "
            "train with more of them, e.g. --milestones 0.1.",
            field="over_training",
        )
    return history


def load_saves(run: TrainedAgent, current: bool = False) -> Iterator[TrainedAgent]:
    """Yield a run's policy at each of its saves, oldest first. Arguments and errors as in `load_history`."""
    place = Path(run.name) / "saves"  # not that of a group, which may have been named
    for path in (place / name for name in saves.names(place)):
        if "acting" in saves.tree_names(path):
            acting, step, policy = read_acting(path, run.agent, current)
            yield dataclasses.replace(run, acting=acting, step=step, policy=policy)


def make_trained_agent(
    agent: Any, state: Any, env: str | Callable[..., Any], step: int = 0, **env_args: Any
) -> TrainedAgent:
    """Wrap an agent in memory so that it can be measured.

    Args:
        agent: an agent; it is bound to the environment's task if it is not bound yet.
        state: its training state or its acting state.
        env: an environment id, or a function that makes an environment.
        step: environment steps of training, for titles.
        env_args: arguments of the environment.

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
    return TrainedAgent(agent.recipe, agent, acting, make, step)


def has_q(acting: Any) -> bool:
    """Return whether an acting state holds critics of observation and action."""
    return bool(getattr(acting, "critics", None))


def require_distances(agent: Any) -> None:
    """Refuse an agent whose actions have no distance.

    Raises:
        UsageError: the actions are indices of a discrete set.
    """
    if (sizes := agent.task.index_sizes) is not None:
        raise UnfitAgent(
            f"the actions of {agent.recipe} are choices among {' × '.join(map(str, sizes))}, which have no "
            "distance: smoothness and derivatives are defined for continuous actions and for action tables."
        )


def critic_values(
    agent: Agent, acting: ActingState, obs: Float[Array, "N S"], action: Float[Array, "N A"]
) -> list[Float[Array, " N"]]:
    """Compute the heads of the online critics at raw observations and actions in [-1, 1].

    Observations are normalised as in training and encoded by the representation's fixed view.
    """
    rep = agent.representation
    statistics = acting.part_states.get(agent.normaliser.name, PartState())
    obs = agent.normaliser.apply(statistics, agent.task.visible(jnp.asarray(obs)))
    view = rep.encoder_params(acting.part_states.get(rep.name, PartState()), "fixed")
    return bind_critics(rep, view, acting.critics)(obs, jnp.asarray(action))


def to_env_units(agent: Any, action: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n A"]:
    """Convert actions in [-1, 1] to the environment's units.

    Actions beyond the box are clipped to its bounds, as the environment receives them. Without bounds (an
    action table) the actions are returned scaled to [-1, 1].
    """
    low, high = agent.task.low, agent.task.high
    if low is None or high is None:
        return np.asarray(action, float)
    return ActionBox.from_bounds(low, high).to_env(np.asarray(action, float))
