"""A cosine action layer: directions are learned, lengths do not matter."""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.nets.distributions import Categorical
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy.base import Base
from qscape.onpolicy.heads import Branch, DiscreteHead
from qscape.ops.bounds import safe_norm
from qscape.types import Key, Spec, setting


class Directions(NamedTuple):
    """Rows v_k of the action layer, and log s where it is learned."""

    rows: Array
    log_scale: Array | None


@dataclasses.dataclass(frozen=True)
class Cosine(DiscreteHead):
    """Logits are s cos(h, v_k): learned directions, and a scale that is fixed or learned."""

    name: ClassVar[str] = "cosine"
    bound: Literal["none", "ball", "sphere", "l2"] = setting(
        "none", "What holds the features' length: a ball, a sphere, an L2 term in the loss, or nothing."
    )
    scale: float = setting(5.0, "s: the greatest logit.", tune=(1.0, 20.0, "log"))
    learned_scale: bool = setting(False, "Learn log s.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < math.inf:
            raise UsageError(f"cosine.scale is {self.scale}; it must be above 0.")

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[Branch, None]:
        k_projector, k_layer = jax.random.split(key)
        rows = orthogonal_linear(k_layer, self.features_in(width), spec.choices or 0, 1.0).weight
        log_scale = jnp.array(math.log(self.scale)) if self.learned_scale else None
        return Branch(self.projection(k_projector, width), Directions(rows, log_scale)), None

    def dist(self, learned: Branch, fixed: PyTree, features: Array) -> tuple[Categorical, Array | None]:
        h, penalty = self.branch(learned.projector, features)
        rows, log_scale = learned.layer
        scale = self.scale if log_scale is None else jnp.exp(log_scale)
        cosines = (h / safe_norm(h, 1e-6)) @ (rows / safe_norm(rows, 1e-6)).T
        return Categorical(h, scale * cosines), penalty

    def layer(self, learned: Branch, fixed: PyTree) -> Array:
        return jax.lax.stop_gradient(learned.layer.rows)
