"""SAVO: successive actors for value optimisation (Jain et al. 2024, arXiv 2410.11833).

One actor stops at the nearest local optimum of Q(s, ·). Here actor ν_i proposes a_i given the earlier
proposals, and climbs a surrogate that is flat wherever Q is below the best of them:

    Ψ_i(s, a) = max{ Q(s, a), τ_i },   τ_i = max_{j<i} Q(s, a_j)        (paper, Section 4.2)

Ψ_i has no gradient where it is flat, so it is learned: a network Ψ̂_i, conditioned on the proposals like the
actor, is fitted to Ψ_i at executed and proposed actions. Q_1 chooses among the proposals (the maximizer
actor), when acting and at s' in the critics' target. There are no target actors, and no target smoothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.errors import OutOfRange
from qscape.methods._list_encoder import HEADS, Conditioned
from qscape.methods._proposals import ProposalSelector
from qscape.nets import Actor, Critic
from qscape.nets.heads import unsnap
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import smooth_target_policy
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState, combine_heads
from qscape.types import Batch, Columns, Dist, Key, Metrics, Policy, QFn, Scalar, Spec, setting

stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class SAVO(ProposalSelector):
    """Successive actors on truncated surrogates of Q; Q chooses among their proposals."""

    name: ClassVar[str] = "savo"
    takes_images: ClassVar[bool] = False
    climbs_surrogates: ClassVar[bool] = True

    list_length: int = setting(
        3, "L: number of actors, the first included.", within=">= 1", tune=("choice", 2, 3, 5)
    )
    summariser: Literal["deepset", "lstm", "transformer"] = setting(
        "deepset", "Network that encodes the list of earlier proposals."
    )
    conditioning: Literal["film", "concat", "both", "none"] = setting(
        "film", "How the encoded list enters actors and surrogates; none: they ignore earlier proposals."
    )
    summary_width: int = setting(64, "Width of the encoded list.", within=">= 1")
    summarisers: Literal["each", "shared"] = setting(
        "each",
        "List encoders: one for each later actor and each surrogate, or one for all later actors and one for "
        "all surrogates.",
    )
    film_start: float = setting(
        0.1, "Factor of the initial weights of FiLM's layers; 0: they start as the identity.", within=">= 0"
    )
    surrogate: Literal["learned", "exact"] = setting(
        "learned", "Climb learned surrogates, or max(Q, τ) itself."
    )
    surrogate_points: Literal["replay", "fresh", "current"] = setting(
        "replay",
        "Points of the fit: stored action and list; the current list; its chosen action too.",
    )
    actor_list: Literal["fresh", "replay"] = setting(
        "fresh", "Earlier proposals that actors are conditioned on: of the current actors, or stored."
    )
    select_q: Literal["q1", "min"] = setting(  # type: ignore[assignment]
        "q1", "Critics that choose among the proposals: the first, or the minimum of all."
    )
    straight_through: bool = setting(
        True, "For action tables: climb Q at the nearest row; off: at the unsnapped action."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summariser == "transformer" and self.summary_width % HEADS:
            raise OutOfRange(
                f"savo.summary_width is {self.summary_width}; a transformer with {HEADS} heads needs a "
                f"multiple of {HEADS}.",
                part="savo",
                field="summary_width",
            )

    def length(self) -> int:
        return self.list_length

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {**super().overrides(agent), "target_actor": False, "target_noise": 0.0}

    def columns(self, spec: Spec) -> Columns:
        return {"proposals": (self.list_length, spec.action_size)}

    # --- networks ---------------------------------------------------------------------------------

    def _make_conditioned(
        self, keys: Iterable[Key], build: Callable[..., Actor | Critic], spec: Spec
    ) -> list[Conditioned]:
        sizes = (spec.observation_size, spec.action_size)
        options = self.summariser, self.conditioning, self.summary_width, self.film_start
        modules = [Conditioned(k, build, sizes, *options) for k in keys]
        if self.summarisers == "shared" and self.conditioning != "none":  # the first one's
            modules[1:] = [eqx.tree_at(lambda module: module.summary, m, None) for m in modules[1:]]
        return modules

    def actors(self, key: Key, nets: Nets, spec: Spec) -> list[Actor | Conditioned]:
        first, *later = jax.random.split(key, self.list_length)
        return [nets.actor(first), *self._make_conditioned(later, nets.actor, spec)]

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Makes the surrogates Ψ̂_1 .. Ψ̂_{L-1}; the first actor climbs Q itself."""
        if self.list_length == 1 or self.surrogate == "exact":
            return PartState()
        return PartState(
            params=self._make_conditioned(jax.random.split(key, self.list_length - 1), nets.critic, spec)
        )

    # --- proposals --------------------------------------------------------------------------------

    def propose(self, actor: PyTree, context: Context, obs: Array, key: Key | None = None) -> list[Dist]:
        """Returns ν_0(s), ν_1(s; a_0), ν_2(s; a_0, a_1), …; later actors see modes without noise or
        gradient."""
        options: list[Dist] = [context.bind(actor[0])(obs)]
        earlier = []
        for module in actor[1:]:
            earlier.append(stop(options[-1].mode()))
            seen = context.spec.visible(obs)
            conditioning = module.conditioning(seen, jnp.stack(earlier), actor[1].summary)
            options.append(context.bind(module.net)(obs, conditioning))
        return options

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Returns the chosen action of the online actors and critics, smoothed after the choice if at all."""
        return smooth_target_policy(context, key)

    # --- learning ---------------------------------------------------------------------------------

    def learn(
        self, params: list[Conditioned], state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, None]:
        """Returns the loss of the regression of Ψ̂_i(s, x; a_{<i}) to max{q(s, x), τ_i} at x = a and x = a_i,
        with q = min(Q_1, Q_2).

        Summed over i and the two points, averaged over the batch (paper, Eq. 9).
        """
        obs, executed, proposals = batch.observation, batch.action, self._stored_proposals(batch)
        if self.surrogate_points != "replay":
            choice: Any = context.policy(obs)
            proposals = stop(choice.proposals)
            executed = stop(choice.mode()) if self.surrogate_points == "current" else executed
        points = jnp.concatenate([executed[None], proposals])
        q = stop(jax.vmap(lambda action: jnp.stack(context.q(obs, action)).min(0))(points))
        loss = jnp.zeros(())
        for i in range(1, len(params) + 1):
            floor = q[1 : i + 1].max(0)
            target = jnp.maximum(jnp.stack([q[0], q[i + 1]]), floor)
            value = self._surrogate_value(params, i, context, obs, proposals[:i])
            prediction = jax.vmap(lambda action, value=value: value(obs, action)[0])(
                points[jnp.array([0, i + 1])]
            )
            loss += jnp.square(prediction - target).mean(1).sum()
        gain = (q[1:].max(0) - q[1]).mean()
        return loss, {"surrogate_loss": loss, "list_gain": gain}, None

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """Pairs ν_0 with Q and every later ν_i with its surrogate; earlier proposals carry no gradient."""
        return [
            (
                self.policy_at(actor, i, context, batch),
                self.objective_at(actor, i, state, context, batch),
            )
            for i in range(len(actor))
        ]

    def policy_at(self, actor: PyTree, i: int, context: Context, batch: Batch) -> Policy:
        """Returns the policy of actor i, given the earlier proposals that `actor_list` names."""
        context = context.settled if i else context  # earlier proposals are those that it sees when it acts

        def policy(obs: Array) -> Dist:
            if i and self.actor_list == "replay":
                stored = self._stored_proposals(batch)[:i]
                seen = context.spec.visible(obs)
                conditioning = actor[i].conditioning(seen, stored, actor[1].summary)
                dist = context.bind(actor[i].net)(obs, conditioning)
            else:
                dist = self.propose(actor[: i + 1], context, obs)[i]
            return dist if self.straight_through else unsnap(dist)

        return policy

    def objective_at(self, actor: PyTree, i: int, state: PartState, context: Context, batch: Batch) -> QFn:
        """Returns what actor i climbs: Q, the learned Ψ̂_i or the exact Ψ_i."""
        if i == 0:
            return context.q

        def earlier(obs: Array) -> Float[Array, "i B A"]:
            if self.actor_list == "replay":
                return self._stored_proposals(batch)[:i]
            return stop(jnp.stack([dist.mode() for dist in self.propose(actor[:i], context.settled, obs)]))

        def learned(obs: Array, action: Array) -> list[Array]:
            return self._surrogate_value(state.params, i, context, obs, earlier(obs))(obs, action)

        def exact(obs: Array, action: Array) -> list[Array]:
            value = combine_heads(context.base, context.q(obs, action))
            floor = jax.vmap(lambda a: combine_heads(context.base, context.q(obs, a)))(earlier(obs)).max(0)
            # `maximum` would halve the gradient where both are equal.
            return [jnp.where(value >= stop(floor), value, stop(floor))]

        return learned if self.surrogate == "learned" else exact

    def _surrogate_value(
        self,
        params: list[Conditioned],
        i: int,
        context: Context,
        obs: Array,
        earlier: Float[Array, "i B A"],
    ) -> QFn:
        """Returns Ψ̂_i(·, ·; a_{<i}) as a function; the list is encoded once."""
        surrogate = params[i - 1]
        conditioning = surrogate.conditioning(context.spec.visible(obs), earlier, params[0].summary)
        return lambda obs, action: [context.bind(surrogate.net)(obs, action, conditioning)]

    def _stored_proposals(self, batch: Batch) -> Float[Array, "L B A"]:
        """Returns the stored proposals of a batch."""
        return jnp.moveaxis(batch.extra["proposals"], 1, 0)
