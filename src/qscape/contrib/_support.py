"""What critics that compute a distribution on a fixed support have in common."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.sockets import Value
from qscape.ops.distributional import cross_entropy
from qscape.types import Metrics, Scalar, setting

SATURATED = 0.95  # share of the support beyond which a value counts as saturated
MOST = 0.5  # share of targets from which a support counts as too narrow, wherever the values are
NOTABLE = 0.01  # share of values and of targets from which a support counts as too narrow


@dataclasses.dataclass(frozen=True)
class SupportedValue(Value):
    """Base of values that are the mean of a distribution on [low, high], trained by cross-entropy."""

    curves_critics: ClassVar[bool] = True  # by the softmax

    low: float = setting(-5.0, "Lower end of the support; returns below it cannot be represented.")
    high: float = setting(5.0, "Upper end of the support; returns above it cannot be represented.")
    atoms: int = setting(101, "Number of atoms or bins.", within=">= 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        for end in ("low", "high"):
            if not math.isfinite(getattr(self, end)):
                raise self.out_of_range(end, "the ends of the support are finite numbers.")
        if not self.low < self.high:
            why = f"it must be below {self.name}.high = {self.high}."
            raise self.out_of_range("low", why)
        if self.atoms < 2:
            raise self.out_of_range("atoms", "a distribution needs at least 2.")

    @property
    def outputs(self) -> int:
        return self.atoms

    @property
    def points(self) -> Float[Array, " n"]:
        """The values that the n probabilities belong to."""
        raise NotImplementedError

    @property
    def saturation(self) -> Float[Array, ""] | float:
        """How far from the middle of the support a value counts as saturated."""
        return SATURATED * (self.high - self.low) / 2

    def read(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b"]:
        """Return the mean of the distribution softmax(raw)."""
        return (jax.nn.softmax(raw) * self.points).sum(-1)

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Say that the support is too narrow: many targets lie beyond it, and values come near its ends.

        If most targets lie beyond it, at both ends, the values stay in the middle; then they need not.
        """
        saturated, clipped = metrics.get("saturated_values", 0.0), metrics.get("clipped_targets", 0.0)
        if clipped < (NOTABLE if saturated >= NOTABLE else MOST):
            return None
        near = ""
        if saturated >= NOTABLE:
            near = f" and {saturated:.0%} of the values near its ends, where they tell no actions apart"
        return (
            f"{self.name}: {clipped:.0%} of the critics' targets lie beyond the support "
            f"[{self.low:g}, {self.high:g}]{near}; widen it (--{self.name}.low, --{self.name}.high), or "
            "scale the rewards."
        )

    def fit(
        self, raw: Float[Array, "B J n"], probabilities: Float[Array, "B K n"], clipped: Array
    ) -> tuple[Scalar, Metrics]:
        """Return the cross-entropy, summed over critics and averaged over rows, and metrics of saturation.

        Args:
            raw: logits of the critics.
            probabilities: the targets; K is 1 if all critics have the same.
            clipped: the share of the target that lies beyond the support.
        """
        q = self.read(raw[:, 0])
        saturated = (jnp.abs(q - (self.low + self.high) / 2) > self.saturation).mean()
        loss = cross_entropy(raw, probabilities).sum(-1).mean()
        return loss, {"saturated_values": saturated, "clipped_targets": clipped}
