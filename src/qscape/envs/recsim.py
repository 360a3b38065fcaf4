"""RecSim: recommend one of N items to a user who clicks or skips; the user's taste changes with every click.

The recommendation tasks of SAVO (Jain et al., arXiv 2410.11833). The user's drift has the form of Google's
RecSim (Ie et al., arXiv 1909.04847). The paper's click model has no factor κ, and it leaves the skip score,
the noise and the size of the drift open; the numbers here give returns on its axes.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int

from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome
from qscape.errors import OutOfRange
from qscape.masks import ActionMask
from qscape.types import Key, stream

CATEGORIES = 30


class User(NamedTuple):
    """State of a session: the user's taste, and the recommendations made. Snapshots store this name."""

    taste: Float[Array, " d"]
    steps: Int[Array, ""]


class Recommendations(JaxEnv):
    """A task in which an action recommends an item, and the observation begins with a user's taste [d].

    Attributes:
        items: `[N, d]` vectors of the items.
    """

    items: Float[Array, "N d"]
    time_limit: int = eqx.field(static=True, kw_only=True, default=20)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, self.items.shape[1:], np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(len(self.items))


class RecSim(Recommendations):
    """Items around the 30 unit vectors. The observation is the user's taste e_u [30]; a click has reward 1.

    Attributes:
        items: `[N, 30]` embeddings e_i.
        extra: `[N, x]` noise that is appended to the action table only.
        kappa: κ, the factor of the score in the click; 1 in the paper's equation.
        skip: c_skip, the score of skipping.
        drift: scale of the drift of the taste after a click.
        availability: probability with which each item may be recommended in a step; below 1 the observation
            ends with a mask (the paper has none).
    """

    items: Float[Array, "N 30"]
    extra: Float[Array, "N x"]
    kappa: float = eqx.field(static=True, kw_only=True, default=0.5)
    skip: float = eqx.field(static=True, kw_only=True, default=2.5)
    drift: float = eqx.field(static=True, kw_only=True, default=0.3)
    availability: float = eqx.field(static=True, kw_only=True, default=1.0)

    @classmethod
    def of(cls, items: int = 10_000, extra_dims: int = 0, **numbers: Any) -> "RecSim":
        """Return the task with N fixed items: e_i = onehot(i mod 30) + N(0, 0.1 I).

        Args:
            items: N.
            extra_dims: columns of noise that are appended to the action table.
            **numbers: `kappa`, `skip`, `drift` and `availability`.

        Raises:
            UsageError: there are fewer than two items, the availability is no probability above 0, or a
                number is not finite or is negative.
        """
        if items < 2:
            raise OutOfRange(f"items is {items}: there must be two at least to choose from", field="env_args")
        embeddings, extra = _make_items(items, extra_dims)
        return cls(items=embeddings, extra=extra, **numbers)

    def __check_init__(self) -> None:
        """Refuse numbers that make no sense. Equinox calls it when a task is made."""
        if not 0 < self.availability <= 1:
            raise OutOfRange(f"availability is {self.availability}; it must lie in (0, 1]", field="env_args")
        if not (0 <= self.kappa < np.inf and 0 <= self.drift < np.inf and np.isfinite(self.skip)):
            raise OutOfRange(
                f"kappa is {self.kappa}, skip {self.skip} and drift {self.drift}: give finite numbers, kappa "
                "and drift not below 0",
                field="env_args",
            )

    @property
    def action_table(self) -> Float[np.ndarray, "N d"]:
        return np.concatenate([self.items, self.extra], axis=1)

    @property
    def mask(self) -> ActionMask | None:
        return ActionMask(len(self.items)) if self.availability < 1 else None

    def _observe(self, taste: Float[Array, "30"], key: Key) -> Float[Array, " S"]:
        """Return the observation of a taste: itself, and the items that may be recommended next, at least
        one.
        """
        if self.mask is None:
            return taste
        draw = jax.random.uniform(stream(key, "availability"), (len(self.items),))
        valid = (draw < self.availability) | (draw == draw.min())
        return jnp.concatenate([taste, self.mask.pack(valid)])

    def reset(self, key: Key) -> tuple[User, Float[Array, " S"]]:
        """Return a user of a uniformly random category: taste clip(onehot + N(0, 0.1 I), -1, 1)."""
        key_category, key_noise = jax.random.split(key)
        category = (CATEGORIES * jax.random.uniform(key_category)).astype(jnp.int32)
        noise = np.sqrt(0.1) * jax.random.normal(key_noise, (CATEGORIES,))
        taste = jnp.clip(jax.nn.one_hot(category, CATEGORIES) + noise, -1, 1)
        return User(taste, jnp.int32(0)), self._observe(taste, key)

    def step(self, state: User, action: Int[Array, ""], key: Key) -> tuple[User, Outcome]:
        """Recommend item `action`; a click changes the taste.

        The softmax of the score κ⟨e_u, e_i⟩ against c_skip is p(click) = σ(κ⟨e_u, e_i⟩ - c_skip).
        """
        item = self.items[action]
        score = state.taste @ item
        draw_click, draw_sign = jax.random.uniform(key, (2,))
        click = draw_click < jax.nn.sigmoid(self.kappa * score - self.skip)
        moved = drift_taste(state.taste, item, draw_sign < (score + 1) / 2, self.drift)
        taste = jnp.where(click, moved, state.taste)
        return self._finish_step(taste, state.steps + 1, click.astype(jnp.float32), key)

    def _finish_step(self, taste: Array, steps: Array, reward: Array, key: Key) -> tuple[User, Outcome]:
        """Return the new state and the outcome; sessions are truncated, never terminated."""
        never, observation = jnp.bool_(False), self._observe(taste, key)
        return User(taste, steps), Outcome(observation, reward, never, steps >= self.time_limit, never)


def drift_taste(
    taste: Float[Array, " d"], item: Float[Array, " d"], towards: Array, size: float = 0.3
) -> Float[Array, " d"]:
    """Return the taste after a click: e_u ± Δ, Δ = size (1 - |e_u|) ⊙ e_i ⊙ (e_i - e_u), clipped to [-1, 1].

    `towards`: is the sign +?
    """
    delta = size * (1 - jnp.abs(taste)) * item * (item - taste)
    return jnp.clip(taste + jnp.where(towards, delta, -delta), -1, 1)


def greedy(env: RecSim, state: User, observation: Array, key: Key) -> Int[Array, ""]:
    """Return the myopic policy for `play`: recommends the available item with the highest score ⟨e_u,
    e_i⟩.
    """
    score = env.items @ observation[:CATEGORIES]
    return jnp.argmax(
        score if env.mask is None else jnp.where(env.mask.unpack(observation[CATEGORIES:]), score, -jnp.inf)
    )


@lru_cache(maxsize=4)
def _make_items(items: int, extra_dims: int) -> tuple[Array, Array]:
    """Return embeddings from numpy's generator 0, and noise columns from generator 1234."""
    noise = np.random.default_rng(0).normal(0, np.sqrt(0.1), (items, CATEGORIES))
    noise[np.arange(items), np.arange(items) % CATEGORIES] += 1
    return jnp.asarray(noise, jnp.float32), draw_extra_dims(items, extra_dims)


def draw_extra_dims(items: int, dims: int) -> Float[Array, "N x"]:
    """Return noise columns of an action table, uniform in [-1, 1]."""
    return jnp.asarray(np.random.default_rng(1234).uniform(-1, 1, (items, dims)), jnp.float32)


class RecSimEnv(GymnasiumEnv):
    """`recsim/10k-v0`, `recsim/100k-v0`, `recsim/500k-v0`: `RecSim` as a Gymnasium environment."""

    metadata = GymnasiumEnv.metadata | {"render_modes": []}

    def __init__(
        self,
        items: int = 10_000,
        extra_dims: int = 0,
        kappa: float = 0.5,
        skip: float = 2.5,
        drift: float = 0.3,
        availability: float = 1.0,
        render_mode: str | None = None,
    ):
        numbers = {"kappa": kappa, "skip": skip, "drift": drift, "availability": availability}
        super().__init__(RecSim.of(items, extra_dims, **numbers), render_mode)
