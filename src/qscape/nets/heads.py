"""Action heads of off-policy actors: the last layer, and the distribution that it parameterises."""

import dataclasses
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import Linear, dense
from qscape.ops.gaussian import LOG_STD_BOUNDS, squashed_log_prob
from qscape.ops.nearest import ActionTable
from qscape.types import Dist, Key


class Point(eqx.Module):
    """A deterministic action, with the interface of a distribution.

    `features` are the head's input.
    """

    features: Float[Array, "*b h"]
    action: Float[Array, "*b A"]

    def mode(self) -> Float[Array, "*b A"]:
        return self.action

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        return self.action, jnp.zeros(self.action.shape[:-1])

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        raise TypeError("a deterministic policy has no density")


class SquashedNormal(eqx.Module):
    """a = tanh(u) with u ~ N(mean, std²), independent over dimensions; `features` are the head's input."""

    features: Float[Array, "*b h"]
    mean: Float[Array, "*b A"]
    log_std: Float[Array, "*b A"]
    density: Literal["exact", "released"] = eqx.field(static=True, default="exact")

    def mode(self) -> Float[Array, "*b A"]:
        return jnp.tanh(self.mean)

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        u = self.mean + jnp.exp(self.log_std) * noise
        return jnp.tanh(u), squashed_log_prob(u, self.mean, self.log_std, self.density)

    def at(self, noise: Float[Array, "*b A"]) -> Float[Array, "*b A"]:
        """Return the action of a draw of N(0, I)."""
        return jnp.tanh(self.mean + jnp.exp(self.log_std) * noise)

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        u = jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))
        return squashed_log_prob(u, self.mean, self.log_std, self.density)


class Snapped(eqx.Module):
    """A distribution over R^d whose actions are rows of an action table: the nearest ones.

    The gradient of an action passes straight through to the proposal; log-probabilities are the proposal's.

    Attributes:
        raw: the distribution of proposals.
        table: the action table.
        mask: words of the state's `ActionMask`; only valid rows are actions. None: all rows are.
        row: the row nearest to the mode, if it has been searched for.
    """

    raw: Dist
    table: ActionTable = eqx.field(static=True)
    mask: Float[Array, "*c M"] | None = None
    row: Float[Array, "*b A"] | None = None

    @property
    def features(self) -> Float[Array, "*b h"]:
        return self.raw.features

    def mode(self) -> Float[Array, "*b A"]:
        return self.table.snap(self.raw.mode(), self.mask) if self.row is None else self.row

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        action, log_prob = self.raw.sample(key)
        is_mode = isinstance(self.raw, Point)  # whose row may be known
        return self.mode() if is_mode else self.table.snap(action, self.mask), log_prob

    def at(self, noise: Float[Array, "*b A"]) -> Float[Array, "*b A"]:
        """Return the row nearest to the proposal of a draw of N(0, I)."""
        raw: Any = self.raw
        return self.table.snap(raw.at(noise), self.mask)

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        return self.raw.log_prob(action)


def with_density(dist: Dist, density: Literal["exact", "released"]) -> Dist:
    """Return the distribution with log-densities as `squashed_log_prob` computes them; others stay as they
    are.

    Those inside it have them as well: the proposals that are snapped, and those among which one is chosen.
    """

    def is_normal(node: Any) -> bool:
        return isinstance(node, SquashedNormal)

    def replace(node: Any) -> Any:
        return dataclasses.replace(node, density=density) if is_normal(node) else node

    return jax.tree.map(replace, dist, is_leaf=is_normal)


def unsnap(dist: Dist) -> Dist:
    """Return the distribution of proposals, before actions are snapped to rows of an action table (if they
    are).
    """
    return dist.raw if isinstance(dist, Snapped) else dist


def with_row(dist: Dist) -> Dist:
    """Return the distribution with the row of its mode, which is then searched for only once; without an
    action table the same distribution.
    """
    # XLA merges equal sums and products, but not two equal searches, which are loops.
    return dataclasses.replace(dist, row=dist.mode()) if isinstance(dist, Snapped) else dist


class Deterministic(eqx.Module):
    """The action is tanh of a linear layer (DPG, TD3)."""

    out: Linear

    def __call__(self, features: Float[Array, "*b h"]) -> Point:
        return Point(features, jnp.tanh(dense(self.out, features)))


class Gaussian(eqx.Module):
    """Linear layers for mean and log standard deviation of a `SquashedNormal` (SAC).

    Attributes:
        mean, log_std: the layers.
        bound: how the log standard deviation is bounded, a key of `LOG_STD_BOUNDS`.
        low, high: its bounds.
    """

    mean: Linear
    log_std: Linear
    bound: str = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __call__(self, features: Float[Array, "*b h"]) -> SquashedNormal:
        mean = dense(self.mean, features)
        raw = dense(self.log_std, features)
        return SquashedNormal(features, mean, LOG_STD_BOUNDS[self.bound](raw, self.low, self.high))


class Projected(eqx.Module):
    """A linear layer without activation in front of another head (SAVGO)."""

    linear: eqx.nn.Linear
    head: Deterministic | Gaussian

    def __call__(self, features: Float[Array, "*b h"]) -> Point | SquashedNormal:
        return self.head(dense(self.linear, features))


Head: TypeAlias = Deterministic | Gaussian | Projected
