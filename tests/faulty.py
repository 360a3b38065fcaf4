"""Environments in JAX that keep the protocol, or break it in one way that is asked for."""

import itertools
from typing import NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax.custom_batching import custom_vmap

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.masks import ActionMask


class Place(NamedTuple):
    x: jax.Array
    steps: jax.Array


@custom_vmap
def _wrong_under_vmap(x):
    return x


@_wrong_under_vmap.def_vmap
def _(size, batched, x):
    return x + 0.1, True


_counter = itertools.count()


class Walk(JaxEnv):
    """Walk on a line from around 0; beyond ±2 the episode terminates. `flaw` names what is wrong."""

    flaw: str = eqx.field(static=True, default="")
    time_limit: int = eqx.field(static=True, kw_only=True, default=20)

    @property
    def observation_space(self):
        bound = 1.0 if self.flaw == "bounds" else 3.0
        return spaces.Box(-bound, bound, (1,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, key):
        start = jax.random.uniform(key, minval=-0.5, maxval=0.5)
        steps = jnp.asarray(0) if self.flaw == "weak" else jnp.int32(0)
        return Place(start, 0.0 * steps if self.flaw == "dtype" else steps), start[None]

    def step(self, state, action, key):
        move = action[0]
        if self.flaw == "random":
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            draw = lambda _: np.float32(next(_counter) % 7 / 10)  # noqa: E731
            move += jax.pure_callback(draw, shape, state.x, vmap_method="sequential")
        x, steps = state.x + move, state.steps + 1
        if self.flaw == "vmap":
            x = _wrong_under_vmap(x)
        out, limit = jnp.abs(x) > 2, steps >= self.time_limit
        if self.flaw == "limit":
            out = limit
        x = jnp.clip(x, -3, 3)
        reward = jnp.where(jnp.abs(x) > 1.9, jnp.nan, x) if self.flaw == "nan" else -jnp.abs(x)
        truncated = {"early": steps >= 5, "never": limit & False, "mixed": limit | out}.get(self.flaw, limit)
        seen = x[None].astype(jnp.float16) if self.flaw == "half" else x[None]
        return Place(x, steps.astype(state.steps.dtype)), Outcome(seen, reward, out, truncated, out & False)


def make(flaw: str = "") -> JaxEnv:
    return Walk(flaw)


def make_limited(longer: int = 0) -> gym.Env:
    """A Gymnasium environment whose time limit may be longer than that of its `JaxEnv`."""
    native = Walk()
    return gym.wrappers.TimeLimit(GymnasiumEnv(native), native.time_limit + longer)


class Keyed(NamedTuple):
    x: jax.Array
    key: jax.Array
    steps: jax.Array


class KeepsAKey(Walk):
    """Keeps a typed key in its state."""

    def reset(self, key):
        place, seen = super().reset(key)
        return Keyed(place.x, key, place.steps), seen

    def step(self, state, action, key):
        place, outcome = super().step(Place(state.x, state.steps), action, key)
        return Keyed(place.x, key, place.steps), outcome


class Product(JaxEnv):
    """Discrete actions with two factors, of which one value is valid in turn; others lead to NaN."""

    sets: str = eqx.field(static=True, default="binary")
    time_limit: int = eqx.field(static=True, kw_only=True, default=20)

    @property
    def observation_space(self):
        return spaces.Box(0.0, 20.0, (1,), np.float32)

    @property
    def action_space(self):
        known = {
            "binary": spaces.MultiBinary(2),
            "multi": spaces.MultiDiscrete([2, 3], start=[1, -1]),
            "one": spaces.Discrete(3, start=1),
        }
        return known[self.sets]

    @property
    def mask(self):
        sizes = {"binary": (2, 2), "multi": (2, 3), "one": ()}[self.sets]
        return ActionMask(sum(sizes) or 3, factors=sizes)

    def valid(self, steps):
        """Of each factor the values that do not have the parity of the step; all false at the limit."""
        value = jnp.concatenate([jnp.arange(n) for n in self.mask.factors or (3,)])
        return ((value + steps) % 2 == 1) & (steps < self.time_limit)

    def see(self, steps):
        return jnp.concatenate([steps[None].astype(jnp.float32), self.mask.pack(self.valid(steps))])

    def reset(self, key):
        return jnp.int32(0), self.see(jnp.int32(0))

    def step(self, state, action, key):
        index = jnp.atleast_1d(action - np.asarray(getattr(self.action_space, "start", 0)))
        ends = np.cumsum((0, *self.mask.factors[:-1]))
        kept = self.valid(state)[ends + index].all()
        reward = jnp.where(kept, 1.0, jnp.nan).astype(jnp.float32)
        steps = state + 1
        over = steps >= self.time_limit
        return steps, Outcome(self.see(steps), reward, over, over, over & False)


def unannotated():
    return Walk()


class Careless(gym.Env):
    """A Gymnasium environment without a `JaxEnv`."""

    def __init__(self, flaw: str = ""):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.flaw = flaw

    def _see(self):
        kind = np.float64 if self.flaw == "dtype" else np.float32
        number = next(_counter) % 7 / 10 if self.flaw == "random" else self.np_random.uniform(-1, 1)
        return np.array([number + 2 * (self.flaw == "bounds")], kind)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._see(), {}

    def step(self, action):
        if self.flaw == "error":
            raise ZeroDivisionError("no wheel")
        return self._see(), float("nan") if self.flaw == "nan" else 0.0, False, False, {}


class Gated(gym.Env):
    """A Gymnasium environment that refuses actions that are not valid; `how` it says which ones are."""

    def __init__(self, how: str = "action_mask"):
        self.action_space = spaces.MultiDiscrete([3, 2]) if how == "action_mask" else spaces.Discrete(5)
        seen = spaces.Box(0.0, 1.0, (1,), np.float32)
        both = spaces.Dict(action_mask=spaces.MultiBinary(5), place=seen)
        self.observation_space = both if how == "observation" else seen
        self.how, self.valid = how, np.zeros(5, np.int8)
        self.masks_actions = how == "action_mask"
        self.max_candidates = 2 if how == "candidates" else None

    def _see(self):
        self.valid[:] = 0  # in the same array, as an environment may
        self.valid[[self.np_random.integers(3), 3 + self.np_random.integers(2)]] = 1
        place = np.zeros(1, np.float32)
        info = {"action_mask": self.valid} if self.how == "action_mask" else {}
        info |= {"candidates": np.flatnonzero(self.valid)} if self.how == "candidates" else {}
        return {"action_mask": self.valid, "place": place} if self.how == "observation" else place, info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._see()

    def step(self, action):
        if not self.valid[np.array([0, 3]) + action if self.how == "action_mask" else action].all():
            raise ValueError(f"{action} is not valid")
        seen, info = self._see()
        return seen, 0.0, False, False, info
