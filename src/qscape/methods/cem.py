"""CEM: no actor; the cross-entropy method searches Q itself (Kalashnikov et al. 2018, arXiv 1806.10293).

A baseline of SAVO (arXiv 2410.11833); docs/methods/choosers.md says what differs from the authors' code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.methods._proposals import ProposalSelector, take_candidate
from qscape.nets.heads import Point
from qscape.offpolicy.sockets import ActorlessSelector, BoundNetworks, Composition, Context, PartState
from qscape.types import Dist, Key, Policy, setting


@dataclasses.dataclass(frozen=True)
class CEM(ActorlessSelector, ProposalSelector):
    """Searches the action of greatest Q by the cross-entropy method, without an actor."""

    name: ClassVar[str] = "cem"
    noise: ClassVar[str] = "choice"
    why_deterministic: ClassVar[str] = "has no policy whose entropy could be kept"
    why_unsmoothed: ClassVar[str] = "does not smooth its target, the search at s'"

    samples: int = setting(64, "Actions sampled in each round.", tune=("choice", 32, 64, 128))
    elites: int = setting(
        6, "Best samples, to which the next round's normal distribution is fitted.", within=">= 1"
    )
    rounds: int = setting(2, "Number of rounds.", within=">= 1", tune=("choice", 1, 2, 4))
    spread: float = setting(0.5, "Standard deviation of the first round; its mean is 0.", within="> 0")
    least_spread: float = setting(
        0.01, "Lower bound of the standard deviation in later rounds.", within=">= 0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elites > self.samples:
            raise self.out_of_range("elites", f"it must be at most cem.samples = {self.samples}.")

    def length(self) -> int:
        return 1

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {**super().overrides(agent), "target_actor": False, "target_noise": 0.0}

    def propose(self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key) -> list[Dist]:
        return [Point(obs, self.search(context, obs, key))]

    def search(self, context: BoundNetworks, obs: Float[Array, "*b S"], key: Key) -> Float[Array, "*b A"]:
        """Return the best action of all rounds by Q_1, without gradient."""
        size = (*obs.shape[:-1], context.spec.action_size)
        mean, std = jnp.zeros(size), jnp.full(size, self.spread)
        candidates: list[tuple[Array, Array]] = []
        for k in jax.random.split(key, self.rounds):
            drawn = mean + std * jax.random.normal(k, (self.samples, *size))
            drawn = context.snap(jnp.clip(drawn, -1.0, 1.0), obs)
            value = jax.vmap(lambda action: context.q(obs, action)[0])(drawn)
            order = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(value, 0, -1), self.elites)[1], -1, 0)
            elites = jnp.take_along_axis(drawn, order[..., None], 0)
            mean, std = elites.mean(0), jnp.maximum(elites.std(0), self.least_spread)
            candidates.append((jnp.take_along_axis(value, order[:1], 0)[0], elites[0]))
        values, actions = (jnp.stack(part) for part in zip(*candidates, strict=True))
        return jax.lax.stop_gradient(take_candidate(actions, values.argmax(0)))

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Search at s' with the online Q_1; the target critics value the result."""
        return lambda obs: self.propose(None, context, obs, key)[0]
