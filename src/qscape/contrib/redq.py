"""REDQ: ten critics, a target of two of them drawn at random, many updates per step (arXiv 2101.05982).

Chen et al., "Randomized Ensembled Double Q-Learning: Learning Fast Without a Model", ICLR 2021.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.plain import MinTarget
from qscape.offpolicy.sockets import Composition, PartState
from qscape.types import Key, setting


@dataclasses.dataclass(frozen=True)
class REDQ(MinTarget):
    """The minimum of a random subset of the target critics, drawn once per update for the whole batch."""

    name: ClassVar[str] = "redq"
    takes_minimum: ClassVar[bool] = False

    subset: int = setting(
        2, "M: target critics that are drawn; of all critics it is the ordinary minimum.", within=">= 1"
    )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        objective = {} if agent.selector.acts_by_points else {"actor_objective": "mean"}
        return {"critics": 10, "updates_per_step": 20.0, "policy_delay": 20} | objective

    def conflict(self, agent: Composition) -> str | None:
        if self.subset <= agent.base.critics:
            return None
        return (
            f"redq.subset is {self.subset}, and base.critics only {agent.base.critics}: draw at most as many."
        )

    def weights(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B 1 J"]:
        return super().weights(state, self.draw(qs, key), key)

    def value(self, state: PartState, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B 1"]:
        return super().value(state, self.draw(qs, key), key)

    def draw(self, qs: Float[Array, "B J"], key: Key) -> Float[Array, "B J"]:
        """Return the values with infinity for the critics that are not drawn."""
        drawn = jax.random.choice(key, qs.shape[-1], (self.subset,), replace=False)
        return jnp.full_like(qs, jnp.inf).at[:, drawn].set(qs[:, drawn])
