"""Division of rewards by a running scale of discounted reward sums (SimbaV2, arXiv 2502.15280; XQC)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Scaling
from qscape.ops.running import Moments, add_batch, init_moments
from qscape.types import Scalar, setting


class RewardSums(NamedTuple):
    """Running statistics of the discounted sums G of past rewards.

    Attributes:
        sums: G of each environment.
        moments: mean and variance of all sums so far.
        largest: the largest |G| so far.
    """

    sums: Float[Array, " E"]
    moments: Moments
    largest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class RewardScale(Scaling):
    """Divides rewards by max(√(Var[G] + 1e-8), max|G| / bound), with G ← γ (1 − over) G + r at every step.

    `over` is that of the same step, as in the released code: the last step of an episode sets G = r, and the
    next episode begins with γ times that. Statistics are those of today, for all rows of a batch.
    """

    name: ClassVar[str] = "reward_scale"
    bound: float | None = setting(
        5.0,
        "Bound on the absolute value of scaled reward sums; None: none, and rewards are divided by "
        "√Var[G] + 1e-8, as in XQC.",
        within="> 0",
    )

    def init_state(self, envs: int) -> RewardSums:
        moments = init_moments(1)
        if self.bound is None:
            moments = moments._replace(seen=jnp.zeros(()))
        return RewardSums(jnp.zeros(envs), moments, jnp.zeros(()))

    def observe(
        self,
        state: PyTree,
        reward: Float[Array, " E"],
        over: Bool[Array, " E"],
        valid: Bool[Array, " E"],
        base: Base,
    ) -> RewardSums:
        sums = jnp.where(over, reward, base.discount * state.sums + reward)
        sums = jnp.where(valid, sums, state.sums)
        moments = add_batch(state.moments, sums[:, None], valid.astype(jnp.float32))
        return RewardSums(sums, moments, jnp.maximum(state.largest, jnp.abs(sums).max()))

    def divisor(self, state: PyTree) -> Scalar:
        variance = state.moments.var[0]
        if self.bound is None:
            return jnp.sqrt(variance) + 1e-8
        return jnp.maximum(jnp.sqrt(variance + 1e-8), state.largest / self.bound)
