"""Scale rewards or returns by running statistics, so that the critic's targets are of order 1."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import Scaling, Trajectory
from qscape.ops.returns import running_returns
from qscape.ops.running import add_batch, init_moments
from qscape.types import Spec, setting


@dataclasses.dataclass(frozen=True)
class ScaleRewards(Scaling):
    """Divide rewards by the standard deviation of discounted reward sums, or returns by that of past returns.

    Rewards: r ← clip(r / √(Var[R] + 1e-8), ±clip) with R_t = γ R_{t-1} + r_t. R begins anew after every
    episode, however it ends. Gymnasium's `NormalizeReward` (1.4) leaves the past out of the step that
    terminates, and runs on over a truncation where environments reset in the next step. Returns: the critic's
    targets are divided by √(Var[returns] + 1e-8), and its values are multiplied by it.

    The state is a pair: running `Moments` of a scalar, and the sums R [E] at the end of the last rollout.
    """

    name: ClassVar[str] = "scale_rewards"
    what: Literal["rewards", "returns"] = setting(
        "rewards", "What is scaled: 'rewards' before the estimator, or 'returns', the critic's targets."
    )
    clip: float | None = setting(
        10.0,
        "Bound on the absolute value of scaled rewards; None: no bound.",
        within="(0, inf]",
        only_if={"what!=returns": "for returns, which are not clipped"},
    )

    def conflict(self, agent: Any) -> str | None:
        if self.what == "returns" and not agent.estimator.needs_critic:
            return (
                "scale_rewards.what = returns scales a critic's targets, and there is no critic; use rewards."
            )
        return None

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        return init_moments(1)._replace(seen=jnp.zeros(())), jnp.zeros(envs)

    def scale_rewards(self, state: PyTree, base: Base, trajectory: Trajectory) -> tuple[Array, PyTree]:
        if self.what == "returns":
            return trajectory.reward, state
        moments, before = state
        reward, weight = trajectory.reward, trajectory.weight
        steps = reward if weight is None else jnp.where(weight > 0, reward, 0.0)
        sums, before = running_returns(steps, trajectory.done, before, base.discount)
        rows = None if weight is None else weight.reshape(-1)
        moments = add_batch(moments, sums.reshape(-1, 1), rows)
        return self.apply((moments, before), reward), (moments, before)

    def apply(self, state: PyTree, reward: Array) -> Array:
        if self.what == "returns":
            return reward
        scaled = reward / jnp.sqrt(state[0].var[0] + 1e-8)
        return scaled if self.clip is None else jnp.clip(scaled, -self.clip, self.clip)

    def value_scale(self, state: PyTree) -> Array | None:
        return None if self.what == "rewards" else jnp.sqrt(state[0].var[0] + 1e-8)

    def update(self, state: PyTree, returns: Array, weight: Array | None) -> PyTree:
        if self.what == "rewards":
            return state
        moments, before = state
        rows = None if weight is None else weight.reshape(-1)
        return add_batch(moments, returns.reshape(-1, 1), rows), before
