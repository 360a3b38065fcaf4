"""Clipping of the bootstrapped value to the range of targets seen (TD7, Section 4.1, "extrapolation")."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import add_bonus
from qscape.offpolicy.sockets import Nets, Own, TargetRule
from qscape.types import Event, Key, Spec


class Bounds(NamedTuple):
    """Trackers of the targets y, which never narrow, and the bounds in force, which follow at each sync."""

    run_min: Float[Array, ""]
    run_max: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class ValueClip(TargetRule):
    """The next state's value is clipped to the range of targets seen up to the last sync."""

    name: ClassVar[str] = "value_clip"

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> Own:
        return Own(rest=Bounds(*(jnp.array(x, float) for x in (1e8, -1e8, 0.0, 0.0))))

    def bootstrap(self, own: Own, qs: list[Array], bonus: Array | None) -> Array:
        value = jnp.stack(qs, -1).min(-1)
        return add_bonus(jnp.clip(value, own.rest.low, own.rest.high), bonus)

    def after(self, own: Own, aux: Any, actor: PyTree, event: Event) -> Own:
        bounds = own.rest
        low, high = jnp.minimum(bounds.run_min, aux.min()), jnp.maximum(bounds.run_max, aux.max())
        return own._replace(
            rest=Bounds(
                low,
                high,
                jnp.where(event.synced, low, bounds.low),
                jnp.where(event.synced, high, bounds.high),
            )
        )
