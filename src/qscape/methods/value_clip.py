"""Clipping of the bootstrap value to the range of earlier targets (TD7, Section 4.1, "extrapolation")."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import MinTarget
from qscape.offpolicy.sockets import Nets, PartState
from qscape.types import Event, Key, Spec


class Bounds(NamedTuple):
    """The range of all targets y, and the bounds of the value, which become that range at each sync.

    Attributes:
        run_min, run_max: the least and greatest target so far; ∞ and −∞ before the first.
        low, high: the bounds in force.
    """

    run_min: Float[Array, ""]
    run_max: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class ValueClip(MinTarget):
    """Clips the next state's value to the range of all targets up to the last sync."""

    name: ClassVar[str] = "value_clip"
    takes_minimum: ClassVar[bool] = False

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        return PartState(extra=Bounds(*(jnp.array(x, float) for x in (jnp.inf, -jnp.inf, 0.0, 0.0))))

    def bound(self, state: PartState, value: Array) -> Array:
        return jnp.clip(value, state.extra.low, state.extra.high)

    def post_update(self, state: PartState, target_values: Float[Array, "B K"], event: Event) -> PartState:
        bounds = state.extra
        low, high = (
            jnp.minimum(bounds.run_min, target_values.min()),
            jnp.maximum(bounds.run_max, target_values.max()),
        )
        return state._replace(
            extra=Bounds(
                low,
                high,
                jnp.where(event.synced, low, bounds.low),
                jnp.where(event.synced, high, bounds.high),
            )
        )
