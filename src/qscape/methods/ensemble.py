"""Ensemble: independent actors, and Q chooses (a baseline of SAVO, arXiv 2410.11833)."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
from jaxtyping import Array, PyTree

from qscape.errors import UsageError
from qscape.nets import Actor
from qscape.offpolicy.plain import smoothed
from qscape.offpolicy.proposals import Proposals
from qscape.offpolicy.sockets import Fns, Nets, Own
from qscape.types import Batch, Dist, Key, Policy, QFn, Spec, setting


@dataclasses.dataclass(frozen=True)
class Ensemble(Proposals):
    """Several actors that start differently and each climb Q; Q chooses among their actions."""

    name: ClassVar[str] = "ensemble"

    members: int = setting(3, "Actors.", tune=("choice", 2, 3, 5))

    def __post_init__(self) -> None:
        if self.members < 1:
            raise UsageError(f"ensemble.members is {self.members}; there has to be one actor at least.")

    def length(self) -> int:
        return self.members

    def actors(self, key: Key, nets: Nets, spec: Spec) -> list[Actor]:
        return [nets.actor(k) for k in jax.random.split(key, self.members)]

    def propose(self, actor: PyTree, fns: Fns, obs: Array, key: Key) -> list[Dist]:
        return [fns.bind(member)(obs) for member in actor]

    def climbs(self, actor: PyTree, own: Own, fns: Fns, batch: Batch) -> list[tuple[Policy, QFn]]:
        return [(fns.bind(member), fns.q) for member in actor]

    def target(
        self, actor: PyTree, actor_target: PyTree, own: Own, fns: Fns, next_obs: Array, key: Key
    ) -> Policy:
        """Each target actor's action, smoothed; the online critics choose."""
        slow = fns if actor_target is None else fns._replace(bind=partial(fns.bind, which="target"))
        members = actor if actor_target is None else actor_target

        def best(obs: Array) -> Dist:
            options = self.propose(members, slow, obs, key)
            if fns.base.target_noise:
                keys = jax.random.split(key, self.members)
                options = [smoothed(fns, one, k) for one, k in zip(options, keys, strict=True)]
            return self.best(fns, obs, options)

        return best
