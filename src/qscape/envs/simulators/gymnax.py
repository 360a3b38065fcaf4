"""`gymnax/CartPole-v1` and the others: the environments of gymnax (Lange 2022)."""

import dataclasses
import importlib
import importlib.metadata
import inspect
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

from qscape.envs.native import JaxEnv, Outcome
from qscape.envs.simulators.base import Simulated, StateLayout, explain_failure
from qscape.errors import UnfitEnv
from qscape.types import Key

LIMIT = "max_steps_in_episode"
OLDEST, BEYOND = (0, 0, 9), (2,)  # versions of gymnax that work, as in pyproject.toml
# Observations of these leave the bounds that gymnax declares, in both versions, so here they have none.
UNBOUNDED = ("MemoryChain-bsuite", "MetaMaze-misc", "GaussianBandit-misc", "MNISTBandit-bsuite")


class GymnaxEnv(JaxEnv):
    """An environment of gymnax, 0.0.9 or 1.0, or one with the interface of 0.0.9, as Craftax has it.

    The fourth value of `step_env` is `done` in 0.0.9, real ends and the step limit in one, and `terminated`
    in 1.0. The step limit is lifted, so that both are a real end, and the adapter counts the steps.

    Attributes:
        params: its parameters as arrays, which are arguments of a compiled program.
        sim: the environment.
        limit: name of the parameter that is its step limit.
        layout: of its state.
        categories: number of values of a Discrete observation, which becomes one-hot; None: it is a Box.
        observation_space, action_space: its spaces; observations are flat.
    """

    params: PyTree
    sim: Any = eqx.field(static=True)
    limit: str = eqx.field(static=True)
    layout: StateLayout = eqx.field(static=True)
    bounds: tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)
    actions: int | tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)
    categories: int | None = eqx.field(static=True)

    @property
    def observation_space(self) -> spaces.Box:
        low, high = np.asarray(self.bounds, np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        if isinstance(self.actions, int):
            return spaces.Discrete(self.actions)
        low, high = np.asarray(self.actions, np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    def reset(self, key: Key) -> tuple[Simulated, Float[Array, " S"]]:
        """A start state that gymnax draws."""
        # Numbers instead of a typed key, because Craftax keeps it in its state, and snapshots store numbers.
        with explain_failure(self.sim):
            seen, state = self.sim.reset_env(jax.random.key_data(key), self.params)
        return Simulated(self.layout.pack(state), jnp.int32(0)), self._flatten(seen)

    def step(self, state: Simulated, action: Array, key: Key) -> tuple[Simulated, Outcome]:
        """One step, without gymnax's own reset."""
        before, numbers = self.layout.unpack(state.leaves), jax.random.key_data(key)

        def step_under(limit: Array) -> tuple:
            return self.sim.step_env(numbers, before, action, self.params.replace(**{self.limit: limit}))[:4]

        # `DiscountingChain-bsuite` observes time / limit, so observations are those under its own limit.
        # `vmap` computes once what does not depend on the limit.
        own = getattr(self.params, self.limit)
        with explain_failure(self.sim):
            seen, *rest = jax.vmap(step_under)(jnp.stack([own, jnp.full_like(own, 2**31 - 1)]))
        inner, reward, done = jax.tree.map(lambda leaf: leaf[1], rest)
        steps, reward = state.steps + 1, jnp.asarray(reward, jnp.float32).reshape(())
        ended = jnp.asarray(done, bool).reshape(())
        outcome = Outcome(self._flatten(seen[0]), reward, ended, steps >= self.time_limit, jnp.bool_(False))
        return Simulated(self.layout.pack(inner), steps), outcome

    def _flatten(self, seen: Any) -> Float[Array, " S"]:
        """An observation as a vector."""
        if self.categories is not None:
            seen = jax.nn.one_hot(seen, self.categories)
        return jax.lax.convert_element_type(jnp.ravel(jnp.asarray(seen)), jnp.float32)


def list_names() -> list[str]:
    """Names in gymnax's registry.

    Raises:
        ImportError: the adapter does not know this version of gymnax.
    """
    found = importlib.metadata.version("gymnax")
    if not OLDEST <= tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < BEYOND:
        oldest, beyond = (".".join(map(str, version)) for version in (OLDEST, BEYOND))
        raise ImportError(f"gymnax is {found}, and qscape works with gymnax>={oldest},<{beyond}")
    return [*importlib.import_module("gymnax").registered_envs]


def list_arguments(name: str) -> list[str]:
    """Parameters of an environment, and arguments of its constructor."""
    sim, params = importlib.import_module("gymnax").make(name)
    return sorted({*vars(params), *inspect.signature(type(sim)).parameters} - {LIMIT})


def load(name: str, args: dict[str, Any]) -> GymnaxEnv:
    """The environment of this name; `args` are parameters of it or arguments of its constructor.

    Raises:
        UsageError: it truncates by a rule of its own. No built-in environment of gymnax 1.0 does, but
            environments that `gymnax.register` adds may.
    """
    gymnax: Any = importlib.import_module("gymnax")
    sim, params = gymnax.make(name)
    own = {k: v for k, v in args.items() if k not in vars(params)}
    if own:
        sim, params = gymnax.make(name, **own)
    params = params.replace(**{k: v for k, v in args.items() if k not in own})
    truncation = getattr(type(sim), "is_truncated", None)
    if truncation is not None and truncation.__module__ != "gymnax.environments.environment":
        raise UnfitEnv(
            f"{name} has its own is_truncated: environments of gymnax are truncated by {LIMIT} only"
        )
    env = wrap(sim, params, LIMIT)
    if name not in UNBOUNDED:
        return env
    size = len(env.bounds[0])
    return dataclasses.replace(env, bounds=((-np.inf,) * size, (np.inf,) * size))


def wrap(sim: Any, params: Any, limit: str) -> GymnaxEnv:
    """The adapter of an environment with gymnax's interface; `limit` is the parameter of its step limit.

    Raises:
        UsageError: observations or actions are no Box and not Discrete.
    """
    arrays = jax.tree.map(jnp.asarray, params)
    seen, actions = sim.observation_space(params), sim.action_space(params)
    for what, space in (("observations", seen), ("actions", actions)):
        if not hasattr(space, "n") and not hasattr(space, "low"):
            raise UnfitEnv(
                f"{what} of {sim.name} are a {type(space).__name__}: they must be a Box or Discrete"
            )
    categories = int(seen.n) if hasattr(seen, "n") else None
    with explain_failure(sim):
        _, state = jax.eval_shape(sim.reset_env, jax.random.key_data(jax.random.key(0)), arrays)
    return GymnaxEnv(
        params=arrays,
        sim=sim,
        limit=limit,
        layout=StateLayout.of(state),
        bounds=_bounds(seen) if categories is None else ((0.0,) * categories, (1.0,) * categories),
        actions=int(actions.n) if hasattr(actions, "n") else _bounds(actions),
        categories=categories,
        time_limit=int(getattr(params, limit)),
    )


def _bounds(space: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper bounds of a flat Box."""
    low, high = (np.broadcast_to(np.asarray(bound), space.shape) for bound in (space.low, space.high))
    return tuple(low.ravel().tolist()), tuple(high.ravel().tolist())
