"""Action heads: from a torso's features x to a distribution, by a projector, a bound and an action layer.

g = x, or a linear layer of x      h = bound(g)      z = h Wᵀ (+ b)      π = softmax(z)
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from qscape.errors import UsageError
from qscape.nets.distributions import Categorical, Normal
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import ActionHead, Distribution
from qscape.ops.bounds import BOUNDS
from qscape.types import Key, Spec, setting

GAIN = 0.01  # of the last trained layer: the first policy is nearly uniform


class Branch(NamedTuple):
    """What the feature branch and the action layer learn."""

    projector: eqx.nn.Linear | None
    layer: PyTree


@dataclasses.dataclass(frozen=True)
class FeatureHead(ActionHead):
    """The feature branch that all heads share. Abstract: a head says how its action layer is made."""

    projector: Literal["none", "linear"] = setting("linear", "What stands between torso and action layer.")
    width: int = setting(16, "d: features the projector makes.", tune=("choice", 8, 16, 32, 64))
    bound: Literal["none", "ball", "sphere", "l2"] = setting(
        "ball", "What holds the features' length: a ball, a sphere, an L2 term in the loss, or nothing."
    )
    feature_energy: float = setting(25.0, "E_H: bound on ‖h‖².", tune=(1.0, 100.0, "log"))
    l2: float = setting(5e-4, "λ_H: weight of mean ‖g‖² in the loss, with bound = l2.")

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UsageError(f"{self.name}.width is {self.width}; it must be at least 1.")
        for name in ("feature_energy", "l2"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{self.name}.{name} is {getattr(self, name)}; it must be above 0.")

    def conflict(self, agent: Any) -> str | None:
        if self.bound == "l2" and not agent.policy_update.adds_head_penalty:
            return f"a trust region has no L2 term in its loss; use {self.name}.bound = ball or sphere."
        return None

    def features_in(self, width: int) -> int:
        """d, the width of what the action layer sees, given the torso's."""
        return width if self.projector == "none" else self.width

    def projection(self, key: Key, width: int) -> eqx.nn.Linear | None:
        """The projector of a torso of that width."""
        return None if self.projector == "none" else orthogonal_linear(key, width, self.width, GAIN)

    def branch(self, projector: eqx.nn.Linear | None, x: Array) -> tuple[Array, Array | None]:
        """h, and the L2 term of each row."""
        g = x if projector is None else dense(projector, x)
        penalty = self.l2 * jnp.square(g).sum(-1) if self.bound == "l2" else None
        return BOUNDS[self.bound](g, self.feature_energy), penalty


@dataclasses.dataclass(frozen=True)
class Learnable(FeatureHead):
    """A trained linear layer: logits of discrete actions, or the mean of a normal distribution."""

    name: ClassVar[str] = "learnable"
    projector: Literal["none", "linear"] = setting("none", "What stands between torso and action layer.")
    bound: Literal["none", "ball", "sphere", "l2"] = setting(
        "none", "What holds the features' length: a ball, a sphere, an L2 term in the loss, or nothing."
    )
    log_std: float = setting(0.0, "First log standard deviation of continuous actions, one for all states.")

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[Branch, None]:
        k_projector, k_layer = jax.random.split(key)
        d, out = self.features_in(width), spec.choices or spec.action_size
        layer: PyTree = orthogonal_linear(k_layer, d, out, GAIN)
        if not spec.choices:
            layer = (layer, jnp.full(spec.action_size, self.log_std))
        return Branch(self.projection(k_projector, width), layer), None

    def dist(self, learned: Branch, fixed: None, features: Array) -> tuple[Distribution, Array | None]:
        h, penalty = self.branch(learned.projector, features)
        if isinstance(learned.layer, tuple):
            layer, log_std = learned.layer
            mean = dense(layer, h)
            return Normal(h, mean, jnp.broadcast_to(log_std, mean.shape)), penalty
        return Categorical(h, dense(learned.layer, h)), penalty

    def layer(self, learned: Branch, fixed: None) -> Array | None:
        return None if isinstance(learned.layer, tuple) else learned.layer.weight


class DiscreteHead(FeatureHead):
    """A head that is defined for discrete actions alone. Abstract."""

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.choices:
            return None
        return (
            f"{self.name} needs discrete actions, and those of this environment are continuous; leave "
            f"{self.name} out, or use an environment such as CartPole-v1."
        )


@dataclasses.dataclass(frozen=True)
class FixedHead(DiscreteHead):
    """A discrete head whose action layer is drawn once and never trained. Abstract: `draw` is missing."""

    energy: float = setting(
        1.0, "E_W: squared length of the rows of the action layer.", tune=(0.25, 4.0, "log")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy < float("inf"):
            raise UsageError(f"{self.name}.energy is {self.energy}; it must be above 0.")

    def draw(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        """The action layer, in float64."""
        raise NotImplementedError

    def least(self, actions: int) -> int:
        """The fewest features that the layer can be built on."""
        return 1

    def fits(self, spec: Spec, base: Base) -> str | None:
        why = super().fits(spec, base)
        if spec.choices == 1:
            why = f"{self.name} places the actions of a choice apart, and here there is one; leave it out."
        if why or (spec.frame is not None and self.projector == "none"):
            return why
        return self.too_few(spec, self.features_in(base.actor_hidden[-1]))

    def too_few(self, spec: Spec, d: int) -> str | None:
        """Why d features are not enough, or None."""
        if d >= self.least(spec.choices or 0):
            return None
        behind = "base.actor_hidden" if spec.frame is None else "plain.image_hidden"
        field = behind if self.projector == "none" else f"{self.name}.width"
        return (
            f"{self.name} needs at least {self.least(spec.choices or 0)} features for {spec.choices} "
            f"actions, and there are {d}; raise {field}."
        )

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[Branch, Array]:
        k_projector, k_layer = jax.random.split(key)
        d = self.features_in(width)
        if why := self.too_few(spec, d):  # on images only the torso knows its width
            raise UsageError(why)
        w = _on_host(self.draw, k_layer, spec.choices or 0, d)
        return Branch(self.projection(k_projector, width), None), w

    def dist(self, learned: Branch, fixed: Array, features: Array) -> tuple[Categorical, Array | None]:
        h, penalty = self.branch(learned.projector, features)
        return Categorical(h, h @ jax.lax.stop_gradient(fixed).T), penalty

    def layer(self, learned: Branch, fixed: Array) -> Array:
        return fixed

    def damage(self, fixed: Array) -> str | None:
        lengths = np.square(np.asarray(fixed, np.float64)).sum(-1)
        if np.allclose(lengths, self.energy, rtol=1e-4):
            return None
        return f"the rows of its fixed action layer have not the squared length {self.energy}"


def _on_host(draw, key: Key, actions: int, width: int) -> Array:
    """`draw` with a generator seeded by the key; a callback, so that it works under `vmap` and `jit`."""

    def host(data: np.ndarray) -> np.ndarray:
        seeds = np.asarray(data).reshape(-1, np.shape(data)[-1])
        drawn = [draw(np.random.default_rng(seed.tolist()), actions, width) for seed in seeds]
        return np.asarray(drawn, np.float32).reshape(*np.shape(data)[:-1], actions, width)

    shape = jax.ShapeDtypeStruct((actions, width), jnp.float32)
    return jax.pure_callback(host, shape, jax.random.key_data(key), vmap_method="expand_dims")
