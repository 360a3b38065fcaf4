"""Selectors that choose among a list of proposals by the critics (SAVO, arXiv 2410.11833, Section 4.1).

μ_M(s) = argmax over {a_0 .. a_{L-1}} of Q(s, a), so that Q(s, μ_M(s)) ≥ Q(s, a_i) for every i.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qscape.nets.heads import with_row
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import (
    OU_NOISE,
    add_noise,
    apply_epsilon_greedy,
    init_noise,
    sample_noise,
)
from qscape.offpolicy.sockets import (
    ActingStep,
    ActionSelector,
    BoundNetworks,
    Composition,
    Context,
    PartState,
)
from qscape.types import Dist, Key, Policy, Spec

FIXED = 0  # seed of the key for policies that sample proposals, where the caller has no key


def take_candidate(many: Float[Array, "L *b A"], index: Int[Array, "*b"]) -> Float[Array, "*b A"]:
    """Return, for every row, the candidate that `index` names."""
    index = index.reshape(1, *index.shape, *[1] * (many.ndim - 1 - index.ndim))
    return jnp.take_along_axis(many, index, 0)[0]


class BestProposal(eqx.Module):
    """The chosen one of L distributions, with the interface of a distribution.

    Attributes:
        options: the L distributions.
        proposals: their modes.
        index: which of them is chosen in each row.
    """

    options: list[Dist]
    proposals: Float[Array, "L *b A"]
    index: Int[Array, "*b"]

    @property
    def chosen(self) -> Dist:
        return jax.tree.map(lambda *leaves: take_candidate(jnp.stack(leaves), self.index), *self.options)

    @property
    def features(self) -> Float[Array, "*b h"]:
        return self.chosen.features

    def mode(self) -> Float[Array, "*b A"]:
        return take_candidate(self.proposals, self.index)

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        return self.chosen.sample(key)

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        return self.chosen.log_prob(action)


def bind_target_actors(actor: PyTree, actor_target: PyTree, context: Context) -> tuple[PyTree, Context]:
    """Return the actors that propose at the next state, the online ones without target actors, and the
    context that binds them."""
    if actor_target is None:
        return actor, context
    return actor_target, context._replace(bind=partial(context.bind, which="target"))


class Draws(NamedTuple):
    """What is random when proposals are explored.

    Attributes:
        noise: of each proposal; None: none is added.
        key: for proposing.
        keys: for a sample of each proposal.
    """

    noise: Float[Array, "L E A"] | None
    key: Key
    keys: list[Key]


class Explored(NamedTuple):
    """Proposals of the exploring agent.

    Attributes:
        samples: what is stored.
        actions: what can be executed.
        judged: what Q chooses by.
    """

    samples: Float[Array, "L E A"]
    actions: Float[Array, "L E A"]
    judged: Float[Array, "L E A"]


@dataclasses.dataclass(frozen=True)
class ProposalSelector(ActionSelector):
    """Base of selectors that propose a list of actions of which Q chooses one.

    Attributes:
        select_q: critics that choose: "q1", the first, or "min", the minimum of all.
        next_q: critics that choose at the next state: "online" or "target".
        noise: what exploration noise is added to: "proposals", "choice", or "both", to each proposal and
            then to the chosen one.
    """

    has_single_policy: ClassVar[bool] = False
    select_q: ClassVar[str] = "q1"
    next_q: ClassVar[str] = "online"
    noise: ClassVar[str] = "both"

    def propose(self, actor: PyTree, context: BoundNetworks, obs: Array, key: Key) -> list[Dist]:
        """Return L distributions at `obs` [*b, S]; their modes are the proposals."""
        raise NotImplementedError

    def length(self) -> int:
        """Return L, the number of proposals."""
        raise NotImplementedError

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """Set Ornstein-Uhlenbeck noise, except for a stochastic policy, which explores by itself."""
        return {} if agent.policy_loss.maximises_entropy else OU_NOISE

    def choose(
        self, context: BoundNetworks, obs: Array, proposals: Float[Array, "L *b A"]
    ) -> Int[Array, "*b"]:
        """Return the index of the proposal with the greatest value; the first one of equals."""
        proposals = jax.lax.stop_gradient(proposals)

        def value(action: Array) -> Array:
            heads = context.q(obs, action)
            return heads[0] if self.select_q == "q1" else jnp.stack(heads).min(0)

        # Under vmap, what depends on the observation alone is computed once for all proposals.
        return jax.lax.stop_gradient(jax.vmap(value)(proposals)).argmax(0)

    def best_proposal(self, context: BoundNetworks, obs: Array, options: list[Dist]) -> BestProposal:
        """Return the option with the greatest value."""
        options = [with_row(option) for option in options]
        proposals = jnp.stack([option.mode() for option in options])
        return BestProposal(options, proposals, self.choose(context, obs, proposals))

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        return lambda obs: self.best_proposal(
            context, obs, self.propose(actor, context, obs, jax.random.key(FIXED))
        )

    def choosing_next(self, context: Context) -> Context:
        """Return the context whose `q` are the critics that choose at the next state."""
        return context._replace(q=context.q_target) if self.next_q == "target" else context

    def next_policy(self, actor: PyTree, actor_target: PyTree, context: Context) -> Policy:
        """Return the choice at the next state, among what target actors propose if there are any."""
        actors, proposing = bind_target_actors(actor, actor_target, context)
        choosing = self.choosing_next(context)
        return lambda obs: self.best_proposal(
            choosing, obs, self.propose(actors, proposing, obs, jax.random.key(FIXED))
        )

    def proposals(self, actor: PyTree, state: PartState, context: Context, obs: Array) -> Array:
        options = self.propose(actor, context, obs, jax.random.key(FIXED))
        return jnp.stack([option.mode() for option in options], -2)

    def init_noise(self, spec: Spec, envs: int, base: Base | None = None) -> PyTree:
        return init_noise(base, envs, self.noises(), spec.action_size)

    def noises(self) -> int:
        """Return the number of noises that one choice of an action adds."""
        return {"proposals": self.length(), "choice": 1, "both": self.length() + 1}[self.noise]

    def explore_proposals(self, actor: PyTree, context: Context, obs: Array, draws: Draws) -> Explored:
        """Return samples of the proposals, with noise."""
        options = self.propose(actor, context, obs, draws.key)
        samples = jnp.stack([option.sample(k)[0] for option, k in zip(options, draws.keys, strict=True)])
        samples = add_noise(context, obs, samples, draws.noise)
        if context.base.head == "deterministic":
            return Explored(samples, samples, samples)
        # Q judges the modes of a stochastic policy, but the noisy actions of a deterministic one.
        return Explored(samples, samples, jnp.stack([option.mode() for option in options]))

    def warm_up(self, spec: Spec, step: ActingStep) -> tuple[Array, dict[str, Array], PyTree]:
        """Return a uniform action, and proposals that are uniform, too."""
        drawn = spec.draw_actions(jnp.stack([step.observation] * (self.length() + 1), 1), step.key)
        return drawn[:, 0], dict.fromkeys(self.columns(spec), drawn[:, 1:]), step.noise_state

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Add noise to every proposal, let Q_1 choose, and add noise to the choice (Algorithm 1).

        `self.noise` says which of the two noises are added.
        """
        obs = step.observation
        length, columns = self.length(), self.columns(context.spec)
        k_propose, k_noise, k_uniform, *k_sample = jax.random.split(step.key, length + 3)
        if step.mode == "evaluate":
            options = self.propose(actor, context, obs, k_propose)
            best = self.best_proposal(context, obs, options)
            return best.mode(), dict.fromkeys(columns, jnp.moveaxis(best.proposals, 0, 1)), step.noise_state
        shape = (len(obs), self.noises(), context.spec.action_size)
        drawn, noise_state = sample_noise(context, step.noise_state, step.first, shape, k_noise)
        each_noise = last_noise = None
        if drawn is not None:
            each_noise = None if self.noise == "choice" else jnp.moveaxis(drawn, 1, 0)[:length]
            last_noise = None if self.noise == "proposals" else drawn[:, -1]
        seen = self.explore_proposals(actor, context, obs, Draws(each_noise, k_propose, k_sample))
        samples = seen.samples
        chosen = take_candidate(seen.actions, self.choose(context, obs, seen.judged))
        action = add_noise(context, obs, chosen, last_noise)
        if context.base.epsilon_mode == "greedy":
            action = apply_epsilon_greedy(context, obs, action, k_uniform)
        return action, dict.fromkeys(columns, jnp.moveaxis(samples, 0, 1)), noise_state
