"""RecSim as SAVO's authors released it: users with a budget of attention, and items of a hidden quality.

The recommendation tasks of the released code of Jain et al., arXiv 2410.11833. They share no number with
`envs/recsim.py`, which follows the paper's text: a click has no softmax, a strong taste moves most, and a
session ends when its budget is spent. Clicks on items of good quality give some of it back, so they pay
later; what the agent sees of an item does not tell its quality, and its vector only through noise.

The generators of qualities, noise, further dimensions and β are not in the release; here they are ours.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qscape.envs.native import GymnasiumEnv, Outcome
from qscape.envs.recsim import Recommendations
from qscape.errors import OutOfRange
from qscape.types import Key

CLUSTERS, SPREAD, SEED, USERS = 30, 0.35, 2022, 20
BUDGET, NO_CLICK, CLICK = 20.0, 0.5, 4.0
SKIP = 2.0  # the score of skipping
LEAST, MOST = CLUSTERS, 500_000  # items
# The mean quality of the items of each cluster.
QUALITIES = np.concatenate([np.linspace(-3, 0, 21), np.linspace(0, 3, 9)])


def draw_blobs(count: int, seed: int) -> tuple[Float[np.ndarray, "N 30"], Int[np.ndarray, " N"]]:
    """Return points around ±e_k and the cluster k of each: the numbers of scikit-learn's `make_blobs`.

    The centres are e_k for k < 15 and -e_k from there on, and the points are spread evenly over them.
    """
    random = np.random.RandomState(seed)
    centres = np.diag(np.where(np.arange(CLUSTERS) < CLUSTERS // 2, 1.0, -1.0))
    sizes = np.full(CLUSTERS, count // CLUSTERS) + (np.arange(CLUSTERS) < count % CLUSTERS)
    blobs = [random.normal(centre, SPREAD, (n, CLUSTERS)) for centre, n in zip(centres, sizes, strict=True)]
    order = np.arange(count)
    random.shuffle(order)
    return np.concatenate(blobs)[order], np.repeat(np.arange(CLUSTERS), sizes)[order]


def scale_columns(x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N d"]:
    """Return columns scaled to [-1, 1]."""
    low, high = x.min(0), x.max(0)
    return 2 * (x - low) / (high - low) - 1


def draw_users() -> tuple[Float[np.ndarray, "20 30"], Float[np.ndarray, " 20"]]:
    """Return the tastes of the users, each the one point of a seed, and their β."""
    tastes = np.concatenate([draw_blobs(1, SEED + k)[0] for k in range(USERS)])
    return np.clip(tastes, -1, 1), np.random.RandomState(SEED).random_sample(USERS)


def click_probability(score: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return the probability of a click on an item with the score ⟨e_u, e_i⟩."""
    positive = jax.nn.softplus(jnp.where(score < 0, score - 1.5, score))
    return positive / (positive + SKIP)


def drift_taste(
    taste: Float[Array, " d"], item: Float[Array, " d"], towards: Bool[Array, ""]
) -> Float[Array, " d"]:
    """Return the taste after a click: e_u ± α (e_i - e_u), clipped to [-1, 1], α from 0 at the entry of the
    least size to 1 at that of the greatest.

    `towards`: is the sign +?
    """
    size = jnp.abs(taste)
    spread = size.max() - size.min()
    delta = (size - size.min()) / jnp.where(spread > 0, spread, 1.0) * (item - taste)
    return jnp.clip(taste + jnp.where(towards, delta, -delta), -1, 1)


class Visitor(NamedTuple):
    """State of a session. Snapshots store it under this name.

    Attributes:
        taste: e_u.
        budget: what is left of the user's attention.
        patience: β, the share of an item's quality that the budget gets back.
        steps: recommendations made.
    """

    taste: Float[Array, "30"]
    budget: Float[Array, ""]
    patience: Float[Array, ""]
    steps: Int[Array, ""]


class BudgetRecSim(Recommendations):
    """Recommend to one of 20 users until the budget is spent, for 20 steps at most; a click has reward 1.

    Observation [30]: the user's taste.

    Attributes:
        items: `[N, 30]` vectors e_i, which the user sees.
        quality: `[N]`.
        seen: `[N, d]` what the agent sees of the items.
        users, patience: tastes `[20, 30]` and β `[20]` of the users.
    """

    quality: Float[Array, " N"]
    seen: Float[Array, "N d"]
    users: Float[Array, "20 30"]
    patience: Float[Array, " 20"]

    @classmethod
    def of(cls, items: int = 10_000, extra_dims: int = 5) -> "BudgetRecSim":
        """Return the task with N items.

        Raises:
            UsageError: there are fewer items than clusters, or too many; or a negative number of dimensions.
        """
        if not LEAST <= items <= MOST:
            raise OutOfRange(f"items is {items}: choose from {LEAST} to {MOST:,}", field="env_args")
        if extra_dims < 0:
            raise OutOfRange(f"extra_dims is {extra_dims}: it has to be 0 or more", field="env_args")
        return cls(*_make_items(items, extra_dims), *map(_single, draw_users()))

    @property
    def action_table(self) -> Float[np.ndarray, "N d"]:
        return np.asarray(self.seen)

    def reset(self, key: Key) -> tuple[Visitor, Float[Array, "30"]]:
        """Return a session with one of the users."""
        user = (USERS * jax.random.uniform(key)).astype(jnp.int32)
        taste = self.users[user]
        return Visitor(taste, jnp.float32(BUDGET), self.patience[user], jnp.int32(0)), taste

    def step(self, state: Visitor, action: Int[Array, ""], key: Key) -> tuple[Visitor, Outcome]:
        """Recommend item `action`."""
        item, (draw_click, draw_sign) = self.items[action], jax.random.uniform(key, (2,))
        score = state.taste @ item
        click = draw_click < click_probability(score)
        moved = drift_taste(state.taste, item, draw_sign < jax.nn.sigmoid(score))
        taste = jnp.where(click, moved, state.taste)
        spent = jnp.where(click, jnp.minimum(CLICK, state.budget), NO_CLICK)
        gain = jnp.where(click, state.patience * CLICK * self.quality[action], 0.0)
        after = Visitor(taste, state.budget - spent + gain, state.patience, state.steps + 1)
        ends, limit = after.budget <= 0, after.steps >= self.time_limit
        return after, Outcome(taste, click.astype(jnp.float32), ends, limit, jnp.bool_(False))


def greedy(env: BudgetRecSim, state: Visitor, observation: Array, key: Key) -> Int[Array, ""]:
    """Return the myopic policy for `play`: recommends the item with the highest score ⟨e_u, e_i⟩."""
    return jnp.argmax(env.items @ observation)


def careful(env: BudgetRecSim, state: Visitor, observation: Array, key: Key) -> Int[Array, ""]:
    """Return the same among items that do not cost budget: those of quality 0 or more."""
    return jnp.argmax(jnp.where(env.quality >= 0, env.items @ observation, -jnp.inf))


def _single(x: np.ndarray) -> Array:
    return jnp.asarray(x, jnp.float32)


@lru_cache(maxsize=4)
def _make_items(items: int, extra_dims: int) -> tuple[Array, Array, Array]:
    """Return the vectors of the items, their qualities, and what the agent sees of them."""
    blobs, cluster = draw_blobs(items, SEED)
    vectors = scale_columns(blobs)
    quality = np.random.RandomState(0).normal(QUALITIES[cluster], 0.1)
    noisy = vectors + np.random.default_rng(SEED).normal(size=vectors.shape)
    extra = np.random.default_rng(1234).uniform(-1, 1, (items, extra_dims))
    return _single(vectors), _single(quality), _single(np.concatenate([scale_columns(noisy), extra], 1))


class BudgetRecSimEnv(GymnasiumEnv):
    """`recsim/500-v1`, `recsim/10k-v1`: `BudgetRecSim` as a Gymnasium environment, of any size."""

    metadata = GymnasiumEnv.metadata | {"render_modes": []}

    def __init__(self, items: int = 10_000, extra_dims: int = 5, render_mode: str | None = None):
        super().__init__(BudgetRecSim.of(items, extra_dims), render_mode)
