"""Running normalisation of observations."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Nets, Normaliser, Own
from qscape.ops.running import merge, moments, see, standardise
from qscape.types import Key, Spec, setting


@dataclasses.dataclass(frozen=True)
class Normalise(Normaliser):
    """Observations minus their running mean, over their running standard deviation; replay stays raw."""

    name: ClassVar[str] = "normalise"
    clip: float | None = setting(None, "Bound on normalised observations; None: no bound.")

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise UsageError(f"normalise.clip is {self.clip}; it must be above 0.")

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        return Own(rest=moments(spec.observation_size))

    def see(self, own: Own, obs: Array) -> Own:
        return own._replace(rest=see(own.rest, obs))

    def see_batch(self, own: Own, obs: Array, weight: Array | None) -> Own:
        """Fold in a whole rollout [B, S] at once; rows of weight 0 do not count."""
        return own._replace(rest=merge(own.rest, obs, weight))

    def apply(self, own: Own, obs: Array) -> Array:
        x = standardise(own.rest, obs)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)
