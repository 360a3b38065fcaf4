"""RecSim-Data: users and items fitted to MovieLens ratings, or synthetic ones of the same kind.

After the recommendation task on real data of SAVO (arXiv 2410.11833). The paper says only that the user's
feedback is simulated from the data. Here a click has probability σ(b_0 + b_i + β⟨u, v_i⟩) and reward 5, so
that the return of 20 recommendations is the click rate in percent. This is not the axis of the paper's
figure: the authors' released environment counts the clicks of about 80 recommendations. The agent does not
see b_i.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qscape.envs.movielens import ClickModel, load
from qscape.envs.native import GymnasiumEnv, Outcome
from qscape.envs.recsim import Recommendations, User, draw_extra_dims
from qscape.errors import MissingArgument, OutOfRange
from qscape.ops.norm import unit
from qscape.types import Key

KEPT, PAY = 0.95, 5.0  # share of the old taste after a click; reward of a click


class RecSimData(Recommendations):
    """Recommend movies. The observation is the user's taste, a unit vector u [d].

    Attributes:
        items: `[N, d]` vectors v_i, which are the action table.
        extra: `[N, x]` noise that is appended to the action table only.
        bias: `[N]` popularity b_i.
        users: `[M, d]` unit vectors, of which an episode draws one; M = 0: uniform on the sphere.
        offset, strength: b_0 and β.
    """

    items: Float[Array, "N d"]
    extra: Float[Array, "N x"]
    bias: Float[Array, " N"]
    users: Float[Array, "M d"]
    offset: Float[Array, ""]
    strength: Float[Array, ""]

    @classmethod
    def from_model(cls, model: ClickModel, extra_dims: int = 0) -> "RecSimData":
        """Return the task of a model that was fitted to ratings."""
        arrays = model.items, model.bias, model.users, model.offset, model.strength
        return cls._from_arrays(*arrays, extra_dims)

    @classmethod
    def _from_arrays(
        cls,
        items: np.ndarray,
        bias: np.ndarray,
        users: np.ndarray,
        offset: float,
        strength: float,
        extra_dims: int,
    ) -> "RecSimData":
        def single(part: np.ndarray | float) -> Array:
            return jnp.asarray(part, jnp.float32)

        return cls(
            items=single(items),
            extra=draw_extra_dims(len(items), extra_dims),
            bias=single(bias),
            users=single(users),
            offset=single(offset),
            strength=single(strength),
        )

    @classmethod
    def synthetic(cls, items: int = 10_000, dims: int = 30, extra_dims: int = 0) -> "RecSimData":
        """Return synthetic data: item vectors around 30 random centres, popularity N(0, 0.3²), b_0 = -2.4, β
        = 3.

        Raises:
            UsageError: there are fewer than two items.
        """
        if items < 2:
            raise OutOfRange(f"items is {items}: there must be two at least to choose from")
        random = np.random.default_rng(0)
        centres = random.normal(0, 1 / np.sqrt(dims), (30, dims))
        vectors = centres[np.arange(items) % 30] + random.normal(0, 0.35 / np.sqrt(dims), (items, dims))
        bias, users = random.normal(0, 0.3, items), np.zeros((0, dims))
        return cls._from_arrays(vectors, bias, users, -2.4, 3.0, extra_dims)

    @property
    def action_table(self) -> Float[np.ndarray, "N d"]:
        return np.concatenate([self.items, self.extra], axis=1)

    def reset(self, key: Key) -> tuple[User, Float[Array, " d"]]:
        """Return a random user: one of `users`, or a random direction."""
        if len(self.users):
            taste = self.users[(len(self.users) * jax.random.uniform(key)).astype(jnp.int32)]
        else:
            taste = unit(jax.random.normal(key, self.items.shape[1:]))
        return User(taste, jnp.int32(0)), taste

    def step(self, state: User, action: Int[Array, ""], key: Key) -> tuple[User, Outcome]:
        """Recommend item `action`; a click turns the taste towards it: u ← unit(0.95 u + 0.05 v/‖v‖)."""
        item = self.items[action]
        click = jax.random.uniform(key) < jax.nn.sigmoid(self.logit(state.taste, action))
        turned = unit(KEPT * state.taste + (1 - KEPT) * unit(item))
        taste, steps = jnp.where(click, turned, state.taste), state.steps + 1
        never = jnp.bool_(False)
        return User(taste, steps), Outcome(taste, PAY * click, never, steps >= self.time_limit, never)

    def logit(self, taste: Float[Array, " d"], action: Int[Array, ""] | slice) -> Array:
        """Return log-odds of a click: b_0 + b_i + β⟨u, v_i⟩."""
        return self.offset + self.bias[action] + self.strength * (self.items[action] @ taste)


def oracle(env: RecSimData, state: User, observation: Array, key: Key) -> Int[Array, ""]:
    """Return the myopic policy for `play`: recommends the item most likely to be clicked. It sees b_i."""
    return jnp.argmax(env.logit(observation, slice(None)))


def popular(env: RecSimData, state: User, observation: Array, key: Key) -> Int[Array, ""]:
    """Return a policy for `play`: recommends the most popular item to every user."""
    return jnp.argmax(env.bias)


_synthetic = lru_cache(maxsize=2)(RecSimData.synthetic)


class RecSimDataEnv(GymnasiumEnv):
    """`recsim/Data-v0`: MovieLens-25M, from `path` (the archive, its folder, or a fitted `.npz`).

    `items` is the number of movies, the most rated ones; None: see `movielens.load`. `extra_dims` columns of
    noise are appended to the action table.
    """

    metadata = GymnasiumEnv.metadata | {"render_modes": []}

    def __init__(
        self,
        path: str = "",
        items: int | None = None,
        extra_dims: int = 0,
        render_mode: str | None = None,
    ):
        if not path:
            raise MissingArgument(
                "recsim/Data-v0 needs the MovieLens-25M archive: --env-args path=ml-25m.zip; "
                "without data there is recsim/DataSynthetic-v0",
                field="env_args",
            )
        super().__init__(RecSimData.from_model(load(path, items), extra_dims), render_mode)


class RecSimDataSyntheticEnv(GymnasiumEnv):
    """`recsim/DataSynthetic-v0`: synthetic data, see `RecSimData.synthetic`."""

    metadata = GymnasiumEnv.metadata | {"render_modes": []}

    def __init__(self, items: int = 10_000, extra_dims: int = 0, render_mode: str | None = None):
        super().__init__(_synthetic(items, extra_dims=extra_dims), render_mode)
