"""RecSim: recommend one of N items to a user who clicks or skips; the user's taste changes with every click.

The recommendation tasks of SAVO (Jain et al., arXiv 2410.11833). The user's drift has the form of Google's
RecSim (Ie et al., arXiv 1909.04847). The paper leaves scores, noise and drift open; the numbers here give
returns on its axes.
"""

from functools import lru_cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.errors import UsageError
from qscape.types import Key

CATEGORIES = 30
TEMPERATURE, SKIP, DRIFT = 0.5, 2.5, 0.3  # κ and c_skip of the click, scale of the drift


class User(NamedTuple):
    """State of a session: the user's taste, and the recommendations made. Snapshots store this name."""

    taste: Float[Array, " d"]
    steps: Int[Array, ""]


class RecSim(JaxEnv):
    """Items around the 30 unit vectors. The observation is the user's taste e_u [30]; a click has reward 1.

    Attributes:
        items: `[N, 30]` embeddings e_i.
        extra: `[N, x]` noise that is appended to the action table only.
    """

    items: Float[Array, "N 30"]
    extra: Float[Array, "N x"]
    time_limit: int = eqx.field(static=True, kw_only=True, default=20)

    @classmethod
    def of(cls, items: int = 10_000, extra_dims: int = 0) -> "RecSim":
        """The task with N fixed items: e_i = onehot(i mod 30) + N(0, 0.1 I).

        Raises:
            UsageError: there are fewer than two items.
        """
        if items < 2:
            raise UsageError(f"items is {items}: there must be two at least to choose from")
        embeddings, extra = _make_items(items, extra_dims)
        return cls(items=embeddings, extra=extra)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (CATEGORIES,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(len(self.items))

    @property
    def action_table(self) -> Float[np.ndarray, "N d"]:
        return np.concatenate([self.items, self.extra], axis=1)

    def reset(self, key: Key) -> tuple[User, Float[Array, "30"]]:
        """A user of a uniformly random category: taste clip(onehot + N(0, 0.1 I), -1, 1)."""
        key_category, key_noise = jax.random.split(key)
        category = (CATEGORIES * jax.random.uniform(key_category)).astype(jnp.int32)
        noise = np.sqrt(0.1) * jax.random.normal(key_noise, (CATEGORIES,))
        taste = jnp.clip(jax.nn.one_hot(category, CATEGORIES) + noise, -1, 1)
        return User(taste, jnp.int32(0)), taste

    def step(self, state: User, action: Int[Array, ""], key: Key) -> tuple[User, Outcome]:
        """Recommend item `action`: p(click) = σ(κ⟨e_u, e_i⟩ - c_skip); a click changes the taste."""
        item = self.items[action]
        score = state.taste @ item
        draw_click, draw_sign = jax.random.uniform(key, (2,))
        click = draw_click < jax.nn.sigmoid(TEMPERATURE * score - SKIP)
        taste = jnp.where(click, drift_taste(state.taste, item, draw_sign < (score + 1) / 2), state.taste)
        return self._finish_step(taste, state.steps + 1, click.astype(jnp.float32))

    def _finish_step(self, taste: Array, steps: Array, reward: Array) -> tuple[User, Outcome]:
        """The new state and the outcome; sessions are truncated, never terminated."""
        never = jnp.bool_(False)
        return User(taste, steps), Outcome(taste, reward, never, steps >= self.time_limit, never)


def drift_taste(taste: Float[Array, " d"], item: Float[Array, " d"], towards: Array) -> Float[Array, " d"]:
    """The taste after a click: e_u ± Δ, Δ = 0.3 (1 - |e_u|) ⊙ e_i ⊙ (e_i - e_u), clipped to [-1, 1].

    `towards`: is the sign +?
    """
    delta = DRIFT * (1 - jnp.abs(taste)) * item * (item - taste)
    return jnp.clip(taste + jnp.where(towards, delta, -delta), -1, 1)


def greedy(env: RecSim, state: User, observation: Array, key: Key) -> Int[Array, ""]:
    """The myopic policy for `play`: recommends the item with the highest score ⟨e_u, e_i⟩."""
    return jnp.argmax(env.items @ observation)


@lru_cache(maxsize=4)
def _make_items(items: int, extra_dims: int) -> tuple[Array, Array]:
    """Embeddings from numpy's generator 0, and noise columns from generator 1234."""
    noise = np.random.default_rng(0).normal(0, np.sqrt(0.1), (items, CATEGORIES))
    noise[np.arange(items), np.arange(items) % CATEGORIES] += 1
    return jnp.asarray(noise, jnp.float32), draw_extra_dims(items, extra_dims)


def draw_extra_dims(items: int, dims: int) -> Float[Array, "N x"]:
    """Noise columns of an action table, uniform in [-1, 1]."""
    return jnp.asarray(np.random.default_rng(1234).uniform(-1, 1, (items, dims)), jnp.float32)


class RecSimEnv(GymnasiumEnv):
    """`recsim/10k-v0`, `recsim/100k-v0`, `recsim/500k-v0`: `RecSim` as a Gymnasium environment."""

    metadata = GymnasiumEnv.metadata | {"render_modes": []}

    def __init__(self, items: int = 10_000, extra_dims: int = 0, render_mode: str | None = None):
        super().__init__(RecSim.of(items, extra_dims), render_mode)
