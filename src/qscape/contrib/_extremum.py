"""The extremum-seeking loop of ESA (Chang and Gao 2024, arXiv 2404.01598), for every kind of agent.

docs/methods/refiners.md says what of it is inferred.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops.surrogate import weighted_mean
from qscape.types import Part, Scalar, setting

EDGE = 0.5  # least distance of a probe's frequency from 0 and π, in radians per step


@dataclasses.dataclass(frozen=True)
class ExtremumSeeking(Part):
    """Base of parts that move actions by a sinusoidal probe of a value."""

    steps: int = setting(20, "N: steps of the loop.", within=">= 0", tune=("choice", 5, 10, 20, 40))
    probe: float = setting(
        0.2, "K: amplitude of the probe; actions lie in [-1, 1].", within=">= 0", tune=(0.05, 0.5)
    )
    rate: float = setting(0.1, "α: gain of the loop.", within=">= 0", tune=(0.01, 1.0, "log"))
    frequency: float = setting(1.5, "ω: radians per step of the first entry's probe.", within="> 0")
    frequency_ratio: float = setting(
        0.37,
        "r: entry i > 0 is probed at ω (1 + r i), wrapped into [0.5, π − 0.5]; 0: all at ω.",
        within=">= 0",
    )
    filter_gain: float = setting(0.5, "β of the high-pass filter of Q.", within="[0, 1]")
    bound: float = setting(0.3, "Bound on the move in every entry.", within=">= 0", tune=(0.05, 1.0))
    decay: float = setting(1.0, "Factor of K and α after every step of the loop.", within="(0, 1]")
    scales_by_spread: bool = setting(
        True, "Divide Q by a moving average of its spread over a batch, so that rewards may have any scale."
    )
    guard: bool = setting(False, "Keep the policy's action if Q at the refined one is not greater.")

    def seek(self, value: Callable[[Array], Array], action: Float[Array, "*b A"]) -> Float[Array, "*b A"]:
        """Returns v(N) of the loop in which a sinusoid probes the value around an action.

        u(t) = v(t) + K sin(ωt),   v(t+1) = v(t) + α sin(ωt) y_t,   y_t = β (y_{t−1} + x_t − x_{t−1}),
        with y_1 = 0 and x_t = value(clip(action + u(t), −1, 1)).

        Args:
            value: of actions [*b, A], one number for each [*b].
        """
        frequencies = spread_frequencies(self.frequency, self.frequency_ratio, action.shape[-1])

        def step(t: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            v, x, y = carry
            size, wave = self.decay ** (t - 1.0), jnp.sin(frequencies * t)
            new = value(jnp.clip(action + v + size * self.probe * wave, -1.0, 1.0))
            y = jnp.where(t == 1, 0.0, self.filter_gain * (y + new - x))
            return jnp.clip(v + size * self.rate * wave * y[..., None], -self.bound, self.bound), new, y

        nothing = jnp.zeros(action.shape[:-1])
        start = jnp.zeros_like(action), nothing, nothing
        v = jax.lax.fori_loop(1, self.steps + 1, step, start)[0]
        if self.guard:
            before, after = (value(jnp.clip(x, -1.0, 1.0)) for x in (action, action + v))
            v = jnp.where((after > before)[..., None], v, 0.0)
        return v


def spread_frequencies(first: float, ratio: float, size: int) -> Float[Array, " A"]:
    """Returns ω_i = ω (1 + r i), wrapped into [0.5, π − 0.5].

    Entries of an action that are probed at one frequency cannot be told apart. Near 0 and π, sin(ωt) hardly
    moves within the few steps of the loop, so an entry would stay where it is.

    Args:
        first: ω of the first entry, which is not wrapped.
        ratio: r; 0: all entries have one frequency.
        size: A.
    """
    apart = ratio * jnp.arange(size)
    wrapped = EDGE + jnp.mod(first * (1.0 + apart) - EDGE, jnp.pi - 2 * EDGE)
    return jnp.where(apart > 0, wrapped, first)


def update_spread(
    spread: Scalar, values: Float[Array, "*b"], weight: Float[Array, "*b"] | None = None
) -> Scalar:
    """Returns the moving average (0.99) of the standard deviation of values; 0 stands for "none yet"."""
    std = jnp.sqrt(weighted_mean(jnp.square(values - weighted_mean(values, weight)), weight))
    return jnp.where(spread > 0, 0.99 * spread + 0.01 * std, std)


def unit_of(spread: Scalar) -> Scalar:
    """Returns the number that values are divided by: the spread, at least 1e-3; 1 before there is one."""
    return jnp.where(spread > 0, jnp.maximum(spread, 1e-3), 1.0)
