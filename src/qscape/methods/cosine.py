"""A cosine action layer: logits depend on the angle between features and rows, not on their lengths."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.nets.distributions import Categorical
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy.base import Base
from qscape.onpolicy.heads import BOUND_HELP, DiscreteHead, HeadParams, LengthBound
from qscape.ops.bounds import safe_norm
from qscape.types import Key, Spec, setting


class Directions(NamedTuple):
    """Trained parameters of the layer: rows v_k `[K, d]`, and log s `[]` (None if the scale is fixed)."""

    rows: Array
    log_scale: Array | None


@dataclasses.dataclass(frozen=True)
class Cosine(DiscreteHead):
    """Logits s cos(h, v_k) with trained rows v_k; the scale s is fixed or trained."""

    name: ClassVar[str] = "cosine"
    bound: LengthBound = setting("none", BOUND_HELP)
    scale: float = setting(
        5.0,
        "Scale s, the largest possible logit (its initial value if it is trained).",
        within="> 0",
        tune=(1.0, 20.0, "log"),
    )
    learned_scale: bool = setting(False, "Train log s.")

    def init(self, key: Key, spec: Spec, base: Base, width: int) -> tuple[HeadParams, None]:
        k_projector, k_layer = jax.random.split(key)
        rows = orthogonal_linear(k_layer, self.feature_width(width), spec.choices or 0, 1.0).weight
        log_scale = jnp.array(math.log(self.scale)) if self.learned_scale else None
        return HeadParams(self.init_projector(k_projector, width), Directions(rows, log_scale)), None

    def distribution(
        self, params: HeadParams, fixed_layer: PyTree, features: Array
    ) -> tuple[Categorical, Array | None]:
        h, penalty = self.project_features(params.projector, features)
        rows, log_scale = params.layer
        scale = self.scale if log_scale is None else jnp.exp(log_scale)
        cosines = (h / safe_norm(h, 1e-6)) @ (rows / safe_norm(rows, 1e-6)).T
        return Categorical(h, scale * cosines), penalty

    def action_layer(self, params: HeadParams, fixed_layer: PyTree) -> Array:
        """Return the rows' directions: no policy depends on their lengths."""
        rows = jax.lax.stop_gradient(params.layer.rows)
        return rows / safe_norm(rows, 1e-6)
