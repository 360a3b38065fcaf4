"""CAPS: conditioning for action policy smoothness (Mysore, Mabsout, Mancuso, Saenko, ICRA 2021, arXiv
2012.06644), in the form of its comparison with PAVE (Lee et al. 2026, arXiv 2601.22970).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.offpolicy.sockets import Context, PartState, Regulariser
from qscape.ops.smooth import half_mse
from qscape.types import LOSS_WEIGHT, Batch, Key, Metrics, Scalar, setting


@dataclasses.dataclass(frozen=True)
class CAPS(Regulariser):
    """Penalises the distance of the action to those in the next state and in nearby states."""

    name: ClassVar[str] = "caps"
    needs_actor: ClassVar[bool] = True
    derived_columns: ClassVar[frozenset[str]] = frozenset({"successor"})

    temporal: float = setting(
        0.1, "λT: weight of the distance to the action in the next state.", **LOSS_WEIGHT
    )
    spatial: float = setting(
        0.5, "λS: weight of the distance to the action in a nearby state.", **LOSS_WEIGHT
    )
    sigma: float = setting(
        0.2,
        "σ: standard deviation of nearby states, in units of the observation.",
        within="> 0",
        tune=(1e-3, 1.0, "log"),
    )

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return λT ½ mse(m(s), m(s')) + λS ½ mse(m(s), m(s + N(0, σ²))), with m the deterministic
        action."""
        if not (self.temporal or self.spatial):
            return None

        def mode(obs: Array) -> Array:
            return context.policy(obs).mode()

        obs, total, metrics = batch.observation, jnp.zeros(()), {}
        here = mode(obs)
        if self.temporal:
            metrics["caps_temporal"] = half_mse(here, mode(batch.extra["successor"]))
            total += self.temporal * metrics["caps_temporal"]
        if self.spatial:
            near = context.spec.change_visible(
                lambda seen: seen + self.sigma * jax.random.normal(key, seen.shape, seen.dtype), obs
            )
            metrics["caps_spatial"] = half_mse(here, mode(near))
            total += self.spatial * metrics["caps_spatial"]
        return total, metrics
