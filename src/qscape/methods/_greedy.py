"""Base of policy losses that follow the best of many sampled actions (Greedy-AC; Neumann et al. 2023,
1810.09103).

A proposal policy π̃ samples N actions. Both policies learn to imitate the ⌊ρN⌋ of them with the greatest Q.
An entropy bonus lets π̃ narrow more slowly than the policy that acts.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.errors import OutOfRange
from qscape.nets.heads import unsnap
from qscape.offpolicy.sockets import Context, PolicyLoss
from qscape.types import Dist, Key, Metrics, QFn, Scalar, setting


@dataclasses.dataclass(frozen=True)
class BestDraws(PolicyLoss):
    """A policy imitates the best of many actions that a second, more random policy samples."""

    climbs_q: ClassVar[bool] = False
    needs_single_policy: ClassVar[bool] = True

    draws: int = setting(
        30, "N: actions sampled from the proposal policy in each state.", tune=("choice", 10, 30)
    )
    share: float = setting(
        0.1,
        "ρ: fraction of the samples, those of greatest Q, that is imitated.",
        within="(0, 1]",
        tune=(0.05, 0.5),
    )
    entropy: float = setting(
        0.01, "α: weight of the proposal policy's entropy.", within=">= 0", tune=(1e-3, 1.0, "log")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.followed_draws < 1:
            raise OutOfRange(
                f"{self.name}.share is {self.share} of {self.draws} draws; it must leave at least one.",
                part=self.name,
                field="share",
            )

    @property
    def followed_draws(self) -> int:
        """⌊ρN⌋; 1e-9 is for fractions such as 0.1 that are not binary."""
        return int(self.share * self.draws + 1e-9)

    def best_draws(
        self, proposer: Dist, q: QFn, context: Context, obs: Float[Array, "B S"], key: Key
    ) -> Float[Array, "k B A"]:
        """Return the samples of greatest Q_1, best first; unsnapped actions if actions are discrete."""
        draw = unsnap(proposer)
        drawn = jax.vmap(lambda k: draw.sample(k)[0])(jax.random.split(key, self.draws))
        drawn = jax.lax.stop_gradient(drawn)
        value = jax.vmap(lambda action: q(obs, action)[0])(context.snap(drawn, obs))
        order = jax.lax.top_k(value.T, self.followed_draws)[1].T
        return jnp.take_along_axis(drawn, order[..., None], 0)

    def follow(
        self,
        actor_params: PyTree,
        q: QFn,
        context: Context,
        obs: Float[Array, "B S"],
        fit: Callable[[Float[Array, "k B A"]], Scalar],
        key: Key,
    ) -> tuple[Scalar, Metrics]:
        """Return the loss of the acting policy, `fit` of the best draws, plus that of the proposal policy."""
        k_draw, k_entropy = jax.random.split(key)
        proposer = context.bind(actor_params)(obs)
        best = self.best_draws(proposer, q, context, obs, k_draw)
        fit_loss, proposal_loss = fit(best), self.proposal_loss(proposer, best, k_entropy)
        return fit_loss + proposal_loss, {"fit_loss": fit_loss, "proposal_loss": proposal_loss}

    def proposal_loss(self, proposer: Dist, best: Float[Array, "k B A"], key: Key) -> Scalar:
        """Return −mean log π̃(a*|s) − α H(π̃); the entropy's gradient is one sample's score function."""
        policy = unsnap(proposer)
        log_prob = policy.log_prob(jax.lax.stop_gradient(policy.sample(key)[0]))
        entropy = -(log_prob * jax.lax.stop_gradient(log_prob)).mean()
        return -policy.log_prob(best).mean() - self.entropy * entropy
