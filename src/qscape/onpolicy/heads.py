"""Action heads: a projector, a bound on the features' length and an action layer.

With x the torso's features [F]:

g = x, or a linear layer of x [d]      h = bound(g)      z = h Wᵀ (+ b)      π = softmax(z)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from qscape.errors import UnfitEnv
from qscape.nets.distributions import Categorical, Normal, TanhNormal
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import ActionHead, Distribution
from qscape.ops.bounds import BOUNDS
from qscape.types import Key, Spec, setting

MIN_STD = 0.001  # of a tanh_normal, as in Brax
VECTORS = {"not spec.index_sizes": "with discrete actions"}
GAIN = 0.01  # of the last trained layer, so that the initial policy is nearly uniform

LengthBound = Literal["none", "ball", "sphere", "l2"]
BOUND_HELP = "Bound on the features' length ‖h‖: a ball, a sphere, an L2 term in the loss, or none."


class HeadParams(NamedTuple):
    """Trained parameters of a head.

    Attributes:
        projector: the linear layer between torso and bound; None if there is no projector.
        layer: parameters of the action layer; None if it is fixed.
    """

    projector: eqx.nn.Linear | None
    layer: PyTree


@dataclasses.dataclass(frozen=True)
class FeatureHead(ActionHead):
    """Projector and bound, which all heads share. Subclasses define the action layer."""

    projector: Literal["none", "linear"] = setting(
        "linear", "Layer between the torso and the action layer: a linear layer, or none."
    )
    width: int = setting(
        16,
        "Width d of the projector's output.",
        within=">= 1",
        tune=("choice", 8, 16, 32, 64),
        only_if={"projector!=none": "without a projector, only with {part.name}.projector = linear"},
    )
    bound: LengthBound = setting("ball", BOUND_HELP)
    feature_energy: float = setting(
        25.0,
        "Feature energy E_H, the bound on ‖h‖².",
        within="> 0",
        tune=(1.0, 100.0, "log"),
        only_if={"feature_bound": "without a bound, only with {part.name}.bound = ball or sphere"},
    )
    l2: float = setting(
        5e-4,
        "Weight λ_H of mean ‖g‖² in the loss, if bound = l2.",
        within="> 0",
        only_if={"bound=l2": "without an L2 term, only with {part.name}.bound = l2"},
    )

    def conflict(self, agent: Any) -> str | None:
        if self.bound == "l2" and not agent.policy_update.adds_head_penalty:
            return f"a trust region has no L2 term in its loss; use {self.name}.bound = ball or sphere."
        return None

    @property
    def feature_bound(self) -> float | None:
        return self.feature_energy if self.bound in ("ball", "sphere") else None

    def feature_width(self, width: int) -> int:
        """Return d, the width of the action layer's input, if the torso has `width` features."""
        return width if self.projector == "none" else self.width

    def init_projector(self, key: Key, width: int) -> eqx.nn.Linear | None:
        """Return a new projector for a torso of `width` features; None if there is none."""
        return None if self.projector == "none" else orthogonal_linear(key, width, self.width, GAIN)

    def project_features(self, projector: eqx.nn.Linear | None, x: Array) -> tuple[Array, Array | None]:
        """Return the bounded features h [*b, d] of torso features [*b, F], and the loss's L2 term [*b] or
        None.
        """
        g = x if projector is None else dense(projector, x)
        penalty = self.l2 * jnp.square(g).sum(-1) if self.bound == "l2" else None
        return BOUNDS[self.bound](g, self.feature_energy), penalty


@dataclasses.dataclass(frozen=True)
class Learnable(FeatureHead):
    """A trained action layer: logits of discrete actions, or the parameters of a normal distribution.

    - `normal`: the layer gives the mean. The standard deviation is a trained vector that does not depend on
      the observation. Actions outside the box are clipped to its edge.
    - `tanh_normal`: the action is tanh(u). The layer gives the mean of u and its standard deviation,
      softplus(x) + 0.001, as in Brax's PPO (`NormalTanhDistribution`).
    """

    name: ClassVar[str] = "learnable"
    projector: Literal["none", "linear"] = setting(
        "none", "Layer between the torso and the action layer: a linear layer, or none."
    )
    bound: LengthBound = setting("none", BOUND_HELP)
    continuous: Literal["normal", "tanh_normal"] = setting(
        "normal",
        "Distribution of continuous actions: normal, with one trained vector of standard deviations; or tanh "
        "of a normal one, whose standard deviations depend on the observation.",
        only_if=VECTORS,
    )
    log_std: float = setting(
        0.0,
        "Initial log standard deviation of continuous actions, if continuous = normal.",
        only_if=VECTORS | {"continuous=normal": "with learnable.continuous = tanh_normal"},
    )

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[HeadParams, None]:
        k_projector, k_layer = jax.random.split(key)
        d, out = self.feature_width(width), spec.choices or spec.action_size * (1 + self.is_squashed)
        layer: PyTree = orthogonal_linear(k_layer, d, out, GAIN)
        if not spec.choices:
            layer = (layer, None if self.is_squashed else jnp.full(spec.action_size, self.log_std))
        return HeadParams(self.init_projector(k_projector, width), layer), None

    def distribution(
        self, params: HeadParams, fixed_layer: None, features: Array
    ) -> tuple[Distribution, Array | None]:
        h, penalty = self.project_features(params.projector, features)
        if isinstance(params.layer, tuple):
            layer, log_std = params.layer
            out = dense(layer, h)
            if self.is_squashed:
                mean, raw = jnp.split(out, 2, -1)
                return TanhNormal(h, mean, jnp.log(jax.nn.softplus(raw) + MIN_STD)), penalty
            return Normal(h, out, jnp.broadcast_to(log_std, out.shape)), penalty
        return Categorical(h, dense(params.layer, h)), penalty

    @property
    def is_squashed(self) -> bool:
        return self.continuous == "tanh_normal"

    def action_layer(self, params: HeadParams, fixed_layer: None) -> Array | None:
        return None if isinstance(params.layer, tuple) else params.layer.weight


class DiscreteHead(FeatureHead):
    """A head for discrete actions only. Abstract."""

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.choices:
            return None
        return (
            f"{self.name} needs discrete actions, and those of this environment are continuous; leave "
            f"{self.name} out, or use an environment such as CartPole-v1."
        )


@dataclasses.dataclass(frozen=True)
class FixedHead(DiscreteHead):
    """A discrete head whose action layer is drawn once and never trained. Subclasses define `draw_layer`."""

    energy: float = setting(
        1.0, "Squared length E_W of the action layer's rows.", within="> 0", tune=(0.25, 4.0, "log")
    )

    def draw_layer(self, rng: np.random.Generator, actions: int, width: int) -> Float[np.ndarray, "K d"]:
        """Return a random action layer, a row for each action, in float64. Called once, when the agent is
        made.
        """
        raise NotImplementedError

    def min_features(self, actions: int) -> int:
        """Return the least d on which the layer can be built."""
        return 1

    def fits(self, spec: Spec, base: Base) -> str | None:
        why = super().fits(spec, base)
        if spec.choices == 1:
            why = (
                f"{self.name} needs at least two values to choose from, and an action of this environment "
                "has one; leave it out."
            )
        if why or (spec.frame is not None and self.projector == "none"):
            return why
        return self.explain_too_few(spec, self.feature_width(base.actor_hidden[-1]))

    def explain_too_few(self, spec: Spec, d: int) -> str | None:
        """Return one sentence if d features are not enough, else None."""
        if d >= self.min_features(spec.choices or 0):
            return None
        torso_field = "base.actor_hidden"
        if spec.frame is not None:
            torso_field = "plain.image_hidden (with plain.images = flat: base.actor_hidden)"
        field = torso_field if self.projector == "none" else f"{self.name}.width"
        return (
            f"{self.name} needs at least {self.min_features(spec.choices or 0)} features for {spec.choices} "
            f"actions, and there are {d}; raise {field}."
        )

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[HeadParams, Array]:
        k_projector, k_layer = jax.random.split(key)
        d = self.feature_width(width)
        if why := self.explain_too_few(spec, d):  # `fits` cannot check it on images
            raise UnfitEnv(why)
        w = _draw_on_host(self.draw_layer, k_layer, spec.choices or 0, d)
        return HeadParams(self.init_projector(k_projector, width), None), w

    def distribution(
        self, params: HeadParams, fixed_layer: Array, features: Array
    ) -> tuple[Categorical, Array | None]:
        h, penalty = self.project_features(params.projector, features)
        return Categorical(h, h @ jax.lax.stop_gradient(fixed_layer).T), penalty

    def action_layer(self, params: HeadParams, fixed_layer: Array) -> Array:
        return fixed_layer

    def explain_damage(self, fixed_layer: Array) -> str | None:
        lengths = np.square(np.asarray(fixed_layer, np.float64)).sum(-1)
        if np.allclose(lengths, self.energy, rtol=1e-4):
            return None
        return f"the rows of its fixed action layer do not have the squared length {self.energy}"


def _draw_on_host(draw: Callable[..., np.ndarray], key: Key, actions: int, width: int) -> Array:
    """Return `draw` with a numpy generator seeded by the key, as a host callback for `vmap` and `jit`."""

    def host(data: np.ndarray) -> np.ndarray:
        seeds = np.asarray(data).reshape(-1, np.shape(data)[-1])
        drawn = [draw(np.random.default_rng(seed.tolist()), actions, width) for seed in seeds]
        return np.asarray(drawn, np.float32).reshape(*np.shape(data)[:-1], actions, width)

    shape = jax.ShapeDtypeStruct((actions, width), jnp.float32)
    return jax.pure_callback(host, shape, jax.random.key_data(key), vmap_method="expand_dims")
