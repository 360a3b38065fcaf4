"""Running scales of rewards or returns, so that the critic's targets have a size near 1."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.onpolicy.base import Base
from qscape.onpolicy.sockets import Scaling, Steps
from qscape.ops.returns import running_returns
from qscape.ops.running import merge, moments
from qscape.types import Spec, setting


@dataclasses.dataclass(frozen=True)
class ScaleRewards(Scaling):
    """Divides rewards, or the critic's targets, by a running standard deviation of discounted returns."""

    name: ClassVar[str] = "scale_rewards"
    what: Literal["rewards", "returns"] = setting(
        "rewards", "'rewards': each reward is divided. 'returns': the critic's targets are."
    )
    clip: float | None = setting(10.0, "Clip scaled rewards to ± this; None: no clipping.")

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"scale_rewards.clip is {self.clip}; it must be above 0, or None.")

    def conflict(self, agent: Any) -> str | None:
        if self.what == "returns" and not agent.estimator.critic:
            return "scale_rewards.what = returns is the unit of a critic, and there is none; use rewards."
        return None

    def init_state(self, spec: Spec, envs: int) -> PyTree:
        return moments(1)._replace(seen=jnp.zeros(())), jnp.zeros(envs)

    def rewards(self, state: PyTree, base: Base, steps: Steps) -> tuple[Array, PyTree]:
        if self.what == "returns":
            return steps.reward, state
        seen, before = state
        reward = steps.reward if steps.weight is None else jnp.where(steps.weight > 0, steps.reward, 0.0)
        sums, before = running_returns(reward, steps.over, before, base.discount)
        weight = None if steps.weight is None else steps.weight.reshape(-1)
        seen = merge(seen, sums.reshape(-1, 1), weight)
        scaled = steps.reward / jnp.sqrt(seen.var[0] + 1e-8)
        return scaled if self.clip is None else jnp.clip(scaled, -self.clip, self.clip), (seen, before)

    def values(self, state: PyTree) -> Array | None:
        return None if self.what == "rewards" else jnp.sqrt(state[0].var[0] + 1e-8)

    def see(self, state: PyTree, returns: Array, weight: Array | None) -> PyTree:
        if self.what == "rewards":
            return state
        seen, before = state
        rows = None if weight is None else weight.reshape(-1)
        return merge(seen, returns.reshape(-1, 1), rows), before
