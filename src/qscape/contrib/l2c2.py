"""L2C2: locally Lipschitz-continuous constraint on policy and critics (Kobayashi 2022, arXiv 2202.07152), in
the form of its comparison with PAVE (Lee et al. 2026, arXiv 2601.22970), which runs it on SAC.

Policy and values at a state are compared with those at a point between the state and its successor; the
weight of the comparison falls with the distance.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.offpolicy.sockets import Composition, Context, PartState, Regulariser
from qscape.types import Batch, Key, Metrics, Scalar, Spec, setting

DRAWS = 4  # actions sampled to estimate the divergence of two policies
RANGE = 10.0  # bound on the difference of their log-densities


@dataclasses.dataclass(frozen=True)
class L2C2(Regulariser):
    """Penalises changes of policy and values between a state and points towards its successor."""

    name: ClassVar[str] = "l2c2"
    derived_columns: ClassVar[frozenset[str]] = frozenset({"successor"})

    sigma: float = setting(
        1.0, "σ: range of the points, in multiples of the step to the successor.", within="> 0"
    )
    lower: float = setting(
        0.1,
        "λD: with λU it bounds the smallest distance, κ = σ λD / (λU − σ λD).",
        within="> 0",
        tune=(0.01, 1.0, "log"),
    )
    upper: float = setting(
        10.0,
        "λU: greatest weight of the policy's term, for distance 0.",
        within="> 0",
        tune=(1.0, 100.0, "log"),
    )
    beta: float = setting(
        0.1,
        "β: weight of the values' term relative to the policy's term.",
        within=">= 0",
        tune=(0.01, 1.0, "log"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma * self.lower < self.upper:
            why = f"it must be above sigma · lower = {self.sigma * self.lower}."
            raise self.out_of_range("upper", why)

    def conflict(self, agent: Composition) -> str | None:
        if agent.base.head != "gaussian":
            return "l2c2 compares the densities of a random policy: write sac+l2c2."
        return None

    def actor(
        self, actor_params: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
        """Return mean(λ_π D), D = max(0, 1 - mean of 4 exp(½ clip(log π(ā | s̄) - log π(â | s), ±10)))."""
        k_between, k_here, k_there = jax.random.split(key, 3)
        between, weight, _ = self._interpolate(context.spec, batch, k_between)
        here, there = context.policy(batch.observation), context.policy(between)
        log_here, log_there = (
            jnp.stack([dist.sample(k)[1] for k in jax.random.split(k_dist, DRAWS)])
            for dist, k_dist in ((here, k_here), (there, k_there))
        )
        ratio = jnp.exp(0.5 * jnp.clip(log_there - log_here, -RANGE, RANGE))
        apart = jnp.maximum(0.0, 1.0 - ratio.mean(0))
        loss = (weight * apart).mean()
        return loss, {"l2c2_policy": loss}

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return mean(λ_V ½ |min Q(s, a) - min Q(s̄, a)|), λ_V = β λ_π / d."""
        if not self.beta:
            return None
        between, weight, distance = self._interpolate(context.spec, batch, key)
        here, there = (jnp.stack(context.q(obs, batch.action)).min(0) for obs in (batch.observation, between))
        loss = (self.beta * weight / distance * 0.5 * jnp.abs(here - there)).mean()
        return loss, {"l2c2_value": loss}

    def _interpolate(
        self, spec: Spec, batch: Batch, key: Key
    ) -> tuple[Float[Array, "B S"], Float[Array, " B"], Float[Array, " B"]]:
        """Return s̄ = s + u ⊙ (s' - s), λ_π = κ λU / d and d, the greatest |u| plus κ; none carries
        gradient."""
        obs = spec.visible(batch.observation)
        step = spec.visible(batch.extra["successor"]) - obs
        kappa = self.sigma * self.lower / (self.upper - self.sigma * self.lower)
        width = self.sigma + (self.sigma - 1.0) * kappa
        u = jax.random.uniform(key, obs.shape, obs.dtype, -width, width)
        between = obs + u * step
        distance = jnp.abs((between - obs) / (step + 1e-8)).max(-1) + kappa
        between = spec.change_visible(lambda _: between, batch.observation)
        return between, kappa * self.upper / distance, distance
