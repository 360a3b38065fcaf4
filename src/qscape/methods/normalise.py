"""Running normalisation of observations."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.offpolicy.sockets import Normaliser, PartState
from qscape.ops.running import add_rows, init_moments, standardise
from qscape.types import Key, Spec, setting


@dataclasses.dataclass(frozen=True)
class Normalise(Normaliser):
    """Normalises observations by their running mean and standard deviation; replay stays raw."""

    name: ClassVar[str] = "normalise"
    takes_images: ClassVar[bool] = False
    clip: float | None = setting(
        None, "Clip normalised observations to ± this; None: no clipping.", within="(0, inf]"
    )
    epsilon: float = setting(1e-8, "Added to the standard deviation that divides.", within="(0, inf]")
    epsilon_under_root: bool = setting(False, "Add it to the variance instead, as SimBa does.")

    def init(self, key: Key, nets: Any, spec: Spec, base: Any, actor: PyTree) -> PartState:
        return PartState(extra=init_moments(spec.observation_size))

    def update_statistics(self, state: PartState, obs: Array, weight: Array | None = None) -> PartState:
        return state._replace(extra=add_rows(state.extra, obs, weight))

    def apply(self, state: PartState, obs: Array) -> Array:
        x = standardise(state.extra, obs, self.epsilon, self.epsilon_under_root)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)
