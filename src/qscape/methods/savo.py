"""SAVO: successive actors for value optimisation (Jain et al. 2024, arXiv 2410.11833).

One actor stops at the nearest local optimum of Q(s, ·). Here actor ν_i proposes a_i given the earlier
proposals, and climbs a surrogate that is flat wherever Q is below the best of them:

    Ψ_i(s, a) = max{ Q(s, a), τ_i },   τ_i = max_{j<i} Q(s, a_j)        (paper, Section 4.2)

Ψ_i has no gradient where it is flat, so it is learned: a network Ψ̂_i, conditioned on the proposals like the
actor, is fitted to Ψ_i at executed and proposed actions. Q_1 chooses among the proposals (the maximizer
actor), when acting and at s' in the critics' target. There are no target actors, and no target smoothing.
The released code has both, and more that differs: docs/methods/savo.md, and `--preset released`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.errors import Conflict
from qscape.methods._list_encoder import HEADS, Conditioned
from qscape.methods._proposals import Draws, Explored, ProposalSelector
from qscape.nets import Actor, Critic
from qscape.nets.batch_norm import has_statistics
from qscape.nets.heads import unsnap, with_row
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import smooth_target_policy
from qscape.offpolicy.sockets import BoundNetworks, Composition, Context, Nets, PartState, combine_heads
from qscape.types import Batch, Columns, Dist, Key, Metrics, Policy, QFn, Scalar, Spec, setting, stream

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
        0.1,
        "Factor of the initial weights of FiLM's layers; 0: they start as the identity.",
        within=">= 0",
        only_if={"film=identity": "beside savo.film = released, which has initial weights of its own"},
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
        True,
        "For action tables: climb Q at the nearest row; off: at the unsnapped action.",
        only_if={"not raw_vectors": "beside savo.raw_vectors, with which no actor climbs Q"},
    )
    raw_vectors: bool = setting(
        False,
        "For action tables: all actors climb learned surrogates at vectors, to which noise is added in turn; "
        "only critics and the environment get the nearest rows (SAVO's code).",
    )
    film: Literal["identity", "released"] = setting(
        "identity",
        "FiLM near the identity before the activations, and the mean over the list; or, as in SAVO's code, "
        "FiLM behind the activations from orthogonal weights, and the maximum over the list.",
    )
    summary_hidden: int | None = setting(
        None,
        "Hidden width of the list encoder `deepset`; None: `summary_width`.",
        within=">= 1",
        only_if={"summariser=deepset": "without the list encoder savo.summariser = deepset"},
    )
    next_q: Literal["online", "target"] = setting(  # type: ignore[assignment]
        "online", "Critics that choose at s', and that surrogates are fitted to: the online or target ones."
    )
    surrogate_loss: Literal["sum", "mean"] = setting(
        "sum", "The surrogates' squared errors are summed over surrogates and points, or averaged."
    )
    noise: Literal["both", "proposals"] = setting(  # type: ignore[assignment]
        "both", "Exploration noise is added to each proposal and again to the choice, or to proposals only."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summariser == "transformer" and self.summary_width % HEADS:
            why = f"a transformer with {HEADS} heads needs a multiple of {HEADS}."
            raise self.out_of_range("summary_width", why)
        if self.raw_vectors and self.surrogate == "exact":
            raise Conflict(
                "savo.raw_vectors needs learned surrogates, as Q is of rows only: savo.surrogate = learned.",
                part="savo",
                field="raw_vectors",
            )

    def fits(self, spec: Spec, base: Base) -> str | None:
        if self.raw_vectors and spec.table is None:
            return (
                "savo.raw_vectors is for discrete actions with a table of vectors, and its actions are "
                "continuous; leave it out."
            )
        return None

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
        released = self.film == "released"
        modules = [Conditioned(k, build, sizes, *options, released, self.summary_hidden) for k in keys]
        if self.summarisers == "shared" and self.conditioning != "none":  # the first one's
            modules[1:] = [eqx.tree_at(lambda module: module.summary, m, None) for m in modules[1:]]
        return modules

    def actors(self, key: Key, nets: Nets, spec: Spec) -> list[Actor | Conditioned]:
        first, *later = jax.random.split(key, self.list_length)
        return [nets.actor(first), *self._make_conditioned(later, nets.actor, spec)]

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the surrogates Ψ̂_1 .. Ψ̂_{L-1}; the first actor climbs Q itself, or Ψ̂_0 at raw vectors."""
        if self.surrogate == "exact" or not (self.raw_vectors or self.list_length > 1):
            return PartState()
        first = [nets.critic(stream(key, "first"), conditioning=0)] if self.raw_vectors else []
        later = jax.random.split(key, self.list_length - 1) if self.list_length > 1 else ()
        return PartState(params=[*first, *self._make_conditioned(later, nets.critic, spec)])

    # --- proposals --------------------------------------------------------------------------------

    def propose(
        self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key | None = None
    ) -> list[Dist]:
        """Return ν_0(s), ν_1(s; a_0), ν_2(s; a_0, a_1), …; later actors see modes without noise or
        gradient."""
        options: list[Dist] = [context.bind(actor[0])(obs)]
        earlier = []
        for i in range(1, len(actor)):
            options[-1] = options[-1] if self.raw_vectors else with_row(options[-1])
            earlier.append(stop(self._as_listed(options[-1]).mode()))
            options.append(self._propose_after(actor, i, context, obs, jnp.stack(earlier)))
        return options

    def _as_listed(self, dist: Dist) -> Dist:
        """Return the distribution of what later networks see of a proposal: its row, or the raw vector."""
        return unsnap(dist) if self.raw_vectors else dist

    def _propose_after(
        self, actor: PyTree, i: int, context: BoundNetworks, obs: Array, earlier: Float[Array, "i *b A"]
    ) -> Dist:
        """Return ν_i(s; a_{<i}) of a later actor."""
        conditioning = actor[i].conditioning(context.spec.visible(obs), earlier, actor[1].summary)
        return context.bind(actor[i].net)(obs, conditioning)

    def explore_proposals(self, actor: PyTree, context: Context, obs: Array, draws: Draws) -> Explored:
        """Return samples of the proposals, with noise; at raw vectors later actors see it, too."""
        if not self.raw_vectors:
            return super().explore_proposals(actor, context, obs, draws)
        samples, modes = [], []
        has_modes = context.base.head == "gaussian"
        for i, k in enumerate(draws.keys):
            earlier = modes if has_modes else samples
            dist = self._propose_after(actor, i, context, obs, jnp.stack(earlier)) if i else None
            dist = unsnap(context.bind(actor[0])(obs) if dist is None else dist)
            sample = dist.sample(k)[0]
            samples.append(sample if draws.noise is None else jnp.clip(sample + draws.noise[i], -1.0, 1.0))
            modes.append(dist.mode())
        rows = context.snap(jnp.stack(samples), obs)
        return Explored(jnp.stack(samples), rows, context.snap(jnp.stack(modes), obs) if has_modes else rows)

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Return the chosen action, smoothed after the choice if at all."""
        policy = self.next_policy(actor, actor_target, context)
        return smooth_target_policy(context._replace(policy_target=policy), key)

    # --- learning ---------------------------------------------------------------------------------

    def learn(
        self, params: list[Any], state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, None]:
        """Return the loss of the regression of Ψ̂_i(s, x; a_{<i}) to max{q(s, x), τ_i} at x = a and x = a_i,
        with q = min(Q_1, Q_2), or that of the target critics.

        Summed over i and the two points, averaged over the batch (paper, Eq. 9).
        """
        critics = self.choosing_next(context).q
        obs, executed, proposals = batch.observation, batch.action, self._stored_proposals(batch)
        if self.surrogate_points != "replay":
            choice: Any = context.policy(obs)
            proposals = stop(choice.proposals)
            if self.raw_vectors:
                proposals = stop(jnp.stack([unsnap(option).mode() for option in choice.options]))
            executed = stop(choice.mode()) if self.surrogate_points == "current" else executed
        points = jnp.concatenate([executed[None], proposals])
        rows = points
        if self.raw_vectors:
            rows = jnp.concatenate([executed[None], context.snap(proposals, obs)])
        q = stop(jax.vmap(lambda action: jnp.stack(critics(obs, action)).min(0))(rows))
        loss = jnp.zeros(())
        for i in range(0 if self.raw_vectors else 1, self.list_length):
            target = jnp.stack([q[0], q[i + 1]])
            target = jnp.maximum(target, q[1 : i + 1].max(0)) if i else target
            value = self._surrogate_value(params, i, context, obs, proposals[:i])
            prediction = jax.vmap(lambda action, value=value: value(obs, action)[0])(
                points[jnp.array([0, i + 1])]
            )
            loss += jnp.square(prediction - target).mean(1).sum()
        loss = loss / (2 * len(params)) if self.surrogate_loss == "mean" else loss
        gain = (q[1:].max(0) - q[1]).mean()
        return loss, {"surrogate_loss": loss, "list_gain": gain}, None

    def actor_objectives(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch
    ) -> list[tuple[Policy, QFn]]:
        """Return pairs ν_0 with Q (or Ψ̂_0) and every later ν_i with its surrogate; earlier proposals carry
        no gradient.
        """
        proposals = self._proposals_at(actor, context, batch)
        return [
            (
                self.policy_at(actor, i, context, batch, proposals),
                self.objective_at(actor, i, state, context, batch, proposals),
            )
            for i in range(len(actor))
        ]

    def _proposals_at(
        self, actor: PyTree, context: Context, batch: Batch | None
    ) -> Callable[..., list[Dist]]:
        """Return a function `(obs, n)` that returns the first n proposals; those at the batch's observations
        are made once for all actors and surrogates, as each of them may be a search in a table.
        """
        context = context.settled  # earlier proposals are those that an actor sees when it acts
        seen = None if batch is None or self.actor_list == "replay" else batch.observation
        here = [] if seen is None else self.propose(actor, context, seen)

        def proposals(obs: Array, n: int) -> list[Dist]:
            return here[:n] if obs is seen else self.propose(actor[:n], context, obs)

        return proposals

    def policy_at(
        self, actor: PyTree, i: int, context: Context, batch: Batch, proposals: Callable[..., list[Dist]]
    ) -> Policy:
        """Return the policy of actor i, given the earlier proposals that `actor_list` names.

        Args:
            proposals: what `_proposals_at` returned.
        """

        def policy(obs: Array) -> Dist:
            if i and self.actor_list == "replay":
                stored = self._stored_proposals(batch)[:i]
                dist = self._propose_after(actor, i, context.settled, obs, stored)
            elif i or not has_statistics(actor[0]):
                dist = proposals(obs, i + 1)[i]
            else:  # it is normalised by the batch while it improves
                dist = context.bind(actor[0])(obs)
            return dist if self.straight_through and not self.raw_vectors else unsnap(dist)

        return policy

    def objective_at(
        self,
        actor: PyTree,
        i: int,
        state: PartState,
        context: Context,
        batch: Batch,
        proposals: Callable[..., list[Dist]],
    ) -> QFn:
        """Return what actor i climbs: Q, the learned Ψ̂_i or the exact Ψ_i.

        Args:
            proposals: what `_proposals_at` returned.
        """
        if i == 0 and not self.raw_vectors:
            return context.q

        def earlier(obs: Array) -> Float[Array, "i B A"]:
            if self.actor_list == "replay":
                return self._stored_proposals(batch)[:i]
            return stop(jnp.stack([self._as_listed(dist).mode() for dist in proposals(obs, i)]))

        def learned(obs: Array, action: Array) -> list[Array]:
            known = earlier(obs) if i else None
            return self._surrogate_value(state.params, i, context, obs, known)(obs, action)

        def exact(obs: Array, action: Array) -> list[Array]:
            value = combine_heads(context.base, context.q(obs, action))
            floor = jax.vmap(lambda a: combine_heads(context.base, context.q(obs, a)))(earlier(obs)).max(0)
            # `maximum` would halve the gradient where both are equal.
            return [jnp.where(value >= stop(floor), value, stop(floor))]

        return learned if self.surrogate == "learned" else exact

    def _surrogate_value(
        self,
        params: list[Any],
        i: int,
        context: Context,
        obs: Array,
        earlier: Float[Array, "i B A"] | None,
    ) -> QFn:
        """Return Ψ̂_i(·, ·; a_{<i}) as a function; the list is encoded once, and Ψ̂_0 has none."""
        if i == 0 or earlier is None:
            return lambda obs, action: [context.bind(params[0])(obs, action)]
        later = self.later_surrogates(params)
        surrogate = later[i - 1]
        conditioning = surrogate.conditioning(context.spec.visible(obs), earlier, later[0].summary)
        return lambda obs, action: [context.bind(surrogate.net)(obs, action, conditioning)]

    def later_surrogates(self, params: list[Any]) -> list[Conditioned]:
        """Return Ψ̂_1 .. Ψ̂_{L-1} of the part's `params`, which begin with Ψ̂_0 at raw vectors."""
        return params[1:] if self.raw_vectors else params

    def listed(self, actor: PyTree, context: Context, obs: Array) -> Float[Array, "B L A"]:
        """Return the proposals [B, L, A] as later networks see them, which may be raw vectors."""
        options = self.propose(actor, context, obs)
        return jnp.stack([self._as_listed(option).mode() for option in options], -2)

    def _stored_proposals(self, batch: Batch) -> Float[Array, "L B A"]:
        """Return the stored proposals of a batch."""
        return jnp.moveaxis(batch.extra["proposals"], 1, 0)
