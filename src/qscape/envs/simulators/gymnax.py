"""`gymnax/CartPole-v1` and the others: the environments of gymnax (Lange 2022)."""

import importlib
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PyTree

from qscape.envs.native import JaxEnv, Outcome
from qscape.envs.simulators.base import Layout, Simulated, explain_failure
from qscape.types import Key

LIMIT = "max_steps_in_episode"


class GymnaxEnv(JaxEnv):
    """An environment of gymnax. Its own step limit is lifted, so that its `done` is a real end.

    Attributes:
        params: its parameters as arrays, which are arguments of a compiled program.
        sim: the environment.
        limit: name of the parameter that is its step limit.
        layout: of its state.
        observation_space, action_space: its spaces; observations are flat.
    """

    params: PyTree
    sim: Any = eqx.field(static=True)
    limit: str = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)
    bounds: tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)
    actions: int | tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)

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
        return Simulated(self.layout.pack(state), jnp.int32(0)), _flat(seen)

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
        outcome = Outcome(_flat(seen[0]), reward, ended, steps >= self.time_limit, jnp.bool_(False))
        return Simulated(self.layout.pack(inner), steps), outcome


def list_names() -> list[str]:
    """Names in gymnax's registry."""
    return [*importlib.import_module("gymnax").registered_envs]


def list_arguments(name: str) -> list[str]:
    """Parameters of an environment, and arguments of its constructor."""
    sim, params = importlib.import_module("gymnax").make(name)
    return sorted({*vars(params), *inspect.signature(type(sim)).parameters} - {LIMIT})


def load(name: str, args: dict[str, Any]) -> GymnaxEnv:
    """The environment of this name; `args` are parameters of it or arguments of its constructor."""
    gymnax: Any = importlib.import_module("gymnax")
    sim, params = gymnax.make(name)
    own = {k: v for k, v in args.items() if k not in vars(params)}
    if own:
        sim, params = gymnax.make(name, **own)
    params = params.replace(**{k: v for k, v in args.items() if k not in own})
    return wrap(sim, params, LIMIT)


def wrap(sim: Any, params: Any, limit: str) -> GymnaxEnv:
    """The adapter of an environment with gymnax's interface; `limit` is the parameter of its step limit."""
    arrays = jax.tree.map(jnp.asarray, params)
    seen, actions = sim.observation_space(params), sim.action_space(params)
    with explain_failure(sim):
        _, state = jax.eval_shape(sim.reset_env, jax.random.key_data(jax.random.key(0)), arrays)
    return GymnaxEnv(
        params=arrays,
        sim=sim,
        limit=limit,
        layout=Layout.of(state),
        bounds=_bounds(seen),
        actions=int(actions.n) if hasattr(actions, "n") else _bounds(actions),
        time_limit=int(getattr(params, limit)),
    )


def _bounds(space: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper bounds of a flat Box."""
    low, high = (np.broadcast_to(np.asarray(bound), space.shape) for bound in (space.low, space.high))
    return tuple(low.ravel().tolist()), tuple(high.ravel().tolist())


def _flat(seen: Any) -> Float[Array, " S"]:
    return jax.lax.convert_element_type(jnp.ravel(jnp.asarray(seen)), jnp.float32)
