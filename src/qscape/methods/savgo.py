"""SAVGO: improve the policy by the geometry of values instead of their slope (arXiv 2605.00787).

An encoder f(s, a), with outputs on the unit sphere, learns a geometry in which the cosine of two pairs is
high where their values are close. The policy does not follow ∂Q/∂a. For each state it draws K candidate
actions, looks up their target values (constants), weighs them with a softmax of the cosine between its own
action and theirs, and climbs the weighted mean: all gradient reaches it through the weights, from action to
encoder to cosine to weight.

The equations are in `qscape.methods._value_geometry`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from qscape.errors import UsageError
from qscape.methods import _value_geometry as geometry
from qscape.nets import MLP, concatenate_inputs
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import Entropic
from qscape.offpolicy.sockets import Composition, Context, Nets, PartState, combine_heads
from qscape.ops.norm import unit
from qscape.ops.ranking import rank_correlation
from qscape.types import Batch, Dist, Event, Key, Metrics, Policy, QFn, Scalar, Spec, setting

stop = jax.lax.stop_gradient
# Candidates looked at in one go: on a CPU what stays in its cache, 1.3 to 1.7 times as fast as all.
ROWS = {"cpu": 2_048, "elsewhere": 65_536}
RANKED = 64  # transitions whose pairs the training metric ranks: sorting all would cost as much as an update


class SlowEncoder(NamedTuple):
    """The encoder's slow copy (the only encoder where it is frozen), and the running β."""

    encoder: MLP
    scale: Float[Array, ""]  # 0 until the first update


class WeightedCandidates(NamedTuple):
    """The candidates of n states."""

    drawn: Float[Array, "n K A"]  # in the units in which the networks see them
    value: Float[Array, "n K"]  # by the lesser slow critic
    near: Float[Array, "n K"]  # S: cosine of the policy's own action and the candidate
    weights: Float[Array, "n K"]


@dataclasses.dataclass(frozen=True)
class SAVGO(Entropic):
    """A kernel over candidate actions, in a learned geometry of values, moves the policy."""

    name: ClassVar[str] = "savgo"
    climbs_q: ClassVar[bool] = False
    needs_single_policy: ClassVar[bool] = True

    learning_rate: float = setting(1e-3, "Adam's rate for log α.", tune=(1e-5, 1e-2, "log"))
    candidates: int = setting(128, "K: actions drawn for each state.", tune=("choice", 16, 32, 64, 128, 256))
    jitter: float = setting(0.2, "σ_c: normal noise added to candidates and the encoder's next action.")
    tau: float = setting(1.0, "τ: temperature of the kernel at the start.", tune=(0.1, 2.0, "log"))
    tau_end: float = setting(0.3, "τ at the end of its cosine schedule; equal to tau: no schedule.")
    tau_horizon: int = setting(200_000, "Environment steps of the schedule, whatever the run's length.")
    adaptive: bool = setting(False, "Add to τ, in each state, the spread of its cosines (v1).")
    uniform: float = setting(0.05, "ε: share of the weights that is uniform; 1: all, the kernel is off.")
    center: bool = setting(False, "κ: subtract the weighted mean from the values; no gradient changes.")
    kernel_batch: int | None = setting(None, "States of a batch on which the kernel is evaluated; None: all.")
    policy_gradient: float = setting(
        0.0,
        "Share of SAC's ∂Q/∂a in the climb: 0 only the kernel, 1 SAC in SAVGO's settings.",
        tune=(0.0, 1.0),
    )

    variant: Literal["v1", "v2"] = setting("v2", "Value compared: v1 q(s, a); v2 r + γ (1 - d) q(s, a).")
    exponent: float = setting(1.5, "λ: curvature of the similarity (v1: 2).", tune=(0.25, 2.5))
    mixing: float = setting(0.5, "m: weight of the next pairs' similarity.", tune=(0.0, 0.9))
    threshold: float = setting(0.2, "b: where the encoder's loss turns from square to linear.")
    gap_scale: float | None = setting(None, "Fixed β; None: running 0.95 quantile of the value gaps.")
    gap_rate: float = setting(0.005, "Share of a batch's quantile in the running β.")
    frozen: bool = setting(False, "Leave the encoder as it was drawn: a random geometry.")
    action_scale: Literal["unit", "released"] = setting(
        "unit", "Candidates enter critic and encoder in [-1, 1], or in the environment's units (as released)."
    )
    embedding: int = setting(256, "H: length of the embedding.", tune=("choice", 64, 128, 256))
    hidden: tuple[int, ...] = setting((256, 256, 256), "Hidden widths of the encoder.")
    encoder_learning_rate: float = setting(1e-3, "Adam's rate for the encoder.", tune=(1e-5, 1e-2, "log"))
    encoder_rate: float = setting(
        0.005, "Share of the encoder that its slow copy takes over, at every update."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 2:
            raise UsageError(
                f"savgo.candidates is {self.candidates}; the kernel weighs candidates against each other: "
                "at least 2 are needed (the paper has 32 to 256)."
            )
        for name in ("exponent", "tau", "tau_end", "tau_horizon", "threshold", "encoder_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                greek = {"exponent": " (λ)", "tau": " (τ)", "tau_end": " (τ)"}.get(name, "")
                raise UsageError(
                    f"savgo.{name}{greek} is {getattr(self, name)}; it must be a number above 0."
                )
        for name in ("uniform", "mixing", "policy_gradient", "gap_rate", "encoder_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"savgo.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if not 0 <= self.jitter < math.inf:
            raise UsageError(f"savgo.jitter is {self.jitter}; it must be a number, 0 or more.")
        if self.gap_scale is not None and not 0 < self.gap_scale < math.inf:
            raise UsageError(f"savgo.gap_scale (β) is {self.gap_scale}; it must be above 0, or None.")
        if self.kernel_batch is not None and self.kernel_batch < 1:
            raise UsageError(f"savgo.kernel_batch is {self.kernel_batch}; it must be at least 1, or None.")
        if min(self.embedding, *self.hidden) < 1:
            raise UsageError(
                f"savgo.embedding is {self.embedding}, savgo.hidden {self.hidden}; widths are at least 1."
            )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """The released code's actor and optimisers."""
        return {
            "actor_projection": True,
            "log_std_bound": "tanh",
            "log_std_min": -5.0,
            "log_std_max": 1.0,
            "gradient_clip": 5.0,
            "critic_weight_decay": 1e-4,
        }

    def conflict(self, agent: Composition) -> str | None:
        base = agent.base
        if base.head != "gaussian":
            return (
                "savgo draws its candidates from the policy, and a deterministic one gives the same action "
                "each time; a stochastic base fits: sac+savgo, or sac+sale+savgo with TD7's embeddings."
            )
        if self.kernel_batch is not None and self.kernel_batch > base.batch_size:
            return (
                f"savgo.kernel_batch is {self.kernel_batch}, but a batch has {base.batch_size} transitions; "
                "give it at most that, or raise base.batch_size."
            )
        return super().conflict(agent)

    def notes(self, agent: Composition) -> list[str]:
        if agent.normaliser.changes_observations:
            return []
        return ["savgo was published with normalised observations on every task but Ant: sac+savgo+normalise"]

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.table is None:
            return None
        return (
            "savgo draws candidates from a continuous policy, and the actions of this environment are a "
            "table; leave savgo out."
        )

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        sizes = (spec.observation_size + spec.action_size, *self.hidden, self.embedding)
        encoder = MLP(key, sizes, "relu")
        state = super().init(key, nets, spec, base, actor)
        slow = SlowEncoder(encoder, jnp.zeros((), jnp.float32))
        return state._replace(params=None if self.frozen else encoder, extra=slow)

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return self.encoder_learning_rate, self.learning_rate

    # --- the encoder --------------------------------------------------------------------------------

    def embed(self, encoder: MLP, obs: Array, action: Array) -> Array:
        """z = f(s, a) / ‖f(s, a)‖."""
        return unit(encoder(concatenate_inputs([obs, action])))

    def sample_candidates(self, dist: Dist, key: Key, spec: Spec) -> Array:
        """Jittered draws from a policy: clip(a + σ_c N(0, I), -1, 1)."""
        k_policy, k_jitter = jax.random.split(key)
        action = dist.sample(k_policy)[0]
        action = jnp.clip(action + self.jitter * jax.random.normal(k_jitter, action.shape), -1.0, 1.0)
        if self.action_scale == "released" and spec.low is not None and spec.high is not None:
            action = 0.5 * (action + 1.0) * (spec.high - spec.low) + spec.low
        return action

    def compared_values(self, context: Context, batch: Batch) -> Float[Array, " B"]:
        """u, by which pairs are compared. v2 adds the reward to the value at (s, a) itself, not at s'."""
        q = jnp.stack(context.q_target(batch.observation, batch.action)).min(0)
        return q if self.variant == "v1" else batch.reward + batch.discount * (1.0 - batch.terminated) * q

    def learn(
        self, params: MLP, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, SlowEncoder]:
        """Cosines z_i · z_j go to Y_ij: similarity of the values now, and of the pairs that come next."""
        next_obs = batch.next_observation
        next_action = self.sample_candidates(context.policy(next_obs), key, context.spec)
        z_next = self.embed(state.extra.encoder, next_obs, next_action)
        gaps = geometry.value_gaps(self.compared_values(context, batch))
        scale = self.scale(state.extra.scale, gaps)
        now = geometry.similarity(gaps, scale, self.exponent)
        target = geometry.bootstrap_similarity(now, z_next, batch.terminated, batch.discount, self.mixing)
        z = self.embed(params, batch.observation, batch.action)
        loss = geometry.encoder_loss(z, stop(target), self.threshold)
        few = min(RANKED, len(z))
        pairs = jnp.triu_indices(few, 1)
        metrics = {
            "savgo_encoder_loss": loss,
            "savgo_gap_scale": stop(scale),
            # Of cosine against value gap, over pairs of the batch: -1 where the geometry orders them all.
            "savgo_rank_correlation": stop(
                rank_correlation((z[:few] @ z[:few].T)[pairs], gaps[:few, :few][pairs])
            ),
        }
        return loss, metrics, state.extra._replace(scale=stop(scale))

    def scale(self, running: Array, gaps: Array) -> Array:
        """β, this batch already folded in."""
        if self.gap_scale is not None:
            return jnp.full((), self.gap_scale)
        return geometry.update_scale(running, geometry.gap_scale(gaps), self.gap_rate)

    # --- the policy ---------------------------------------------------------------------------------

    def loss(
        self,
        policy: Policy,
        q: QFn,
        actor_params: PyTree,
        state: PartState,
        context: Context,
        batch: Batch,
        key: Key,
    ) -> tuple[Scalar, Metrics]:
        """mean(α log π) - mean Q̂, or with `policy_gradient` w: - (1 - w) mean Q̂ - w mean Q(s, π(s))."""
        obs, w = batch.observation, self.policy_gradient
        k_own, k_candidates = jax.random.split(key)
        dist = policy(obs)
        action, log_prob = dist.sample(k_own)
        loss, metrics = self.tuning(actor_params, log_prob, context.spec)
        loss += (self.alpha(actor_params) * log_prob).mean()
        if w < 1.0:
            kernel_value, kernel_metrics = self.kernel(dist, obs, action, state, context, k_candidates)
            loss, metrics = loss - (1.0 - w) * kernel_value, metrics | kernel_metrics
        if w > 0.0:
            value = combine_heads(context.base, q(obs, action)).mean()
            loss, metrics = loss - w * value, metrics | {"actor_value": value}
        return loss, metrics

    def kernel(
        self, dist: Dist, obs: Array, action: Array, state: PartState, context: Context, key: Key
    ) -> tuple[Scalar, Metrics]:
        """Mean of Q̂ = Σ_k W_k q_k over states [B, S]; its gradient reaches the policy's own action [B, A]."""
        rows = self.kernel_batch or len(obs)
        dist, obs, action = jax.tree.map(lambda x: x[:rows], (dist, obs, action))
        seen = self.kernel_weights(dist, obs, action, state, context, key)
        kernel_value = geometry.kernel_value(seen.weights, seen.value, self.center).mean()
        return kernel_value, {
            "savgo_value": (seen.weights * seen.value).sum(-1).mean(),
            "savgo_top_weight": self.candidates * seen.weights.max(-1).mean(),  # near 1 is usual: all alike
            "savgo_spread": geometry.spread(seen.near).mean(),
            "savgo_tau": self.kernel_temperature(context),
        }

    def kernel_weights(
        self, dist: Dist, obs: Array, action: Array, state: PartState, context: Context, key: Key
    ) -> WeightedCandidates:
        """Draws candidates for states [n, S] and weighs them by how near the action [n, A] they are."""
        rows, k = len(obs), self.candidates
        many = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (rows, k, *x.shape[1:])), dist)
        drawn = self.sample_candidates(many, key, context.spec)
        near_to, value = self.embed_candidates(state, context, obs, drawn)
        encoder = state.extra.encoder if state.params is None else state.params
        near = jnp.einsum("nh,nkh->nk", self.embed(stop(encoder), obs, action), near_to)
        near = jnp.clip(near, -1.0, 1.0)
        tau = self.kernel_temperature(context)
        tau = tau + geometry.spread(near)[:, None] if self.adaptive else tau
        return WeightedCandidates(drawn, value, near, geometry.kernel_weights(near, tau, self.uniform))

    def kernel_temperature(self, context: Context) -> Array:
        """τ of this environment step, without what `adaptive` adds."""
        return geometry.anneal_temperature(context.event.env_steps, self.tau, self.tau_end, self.tau_horizon)

    def embed_candidates(
        self, state: PartState, context: Context, obs: Float[Array, "n S"], drawn: Float[Array, "n K A"]
    ) -> tuple[Float[Array, "n K H"], Float[Array, "n K"]]:
        """Embeddings and values of candidates by the slow networks, as constants; some `ROWS` at a time."""

        def at(observation: Array, actions: Array) -> tuple[Array, Array]:
            states = observation[..., None, :]  # not repeated: multiplied once for all its candidates
            value = jnp.stack(context.q_target(states, actions)).min(0)
            return stop((self.embed(state.extra.encoder, states, actions), value))

        states, k = drawn.shape[:2]
        at_a_time = max(1, ROWS["cpu" if jax.default_backend() == "cpu" else "elsewhere"] // k)
        if states <= at_a_time:
            return at(obs, drawn)
        return jax.lax.map(lambda x: at(*x), (obs, drawn), batch_size=at_a_time)

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """ψ̄ <- ρ ψ + (1 - ρ) ψ̄."""
        if state.params is None:
            return state
        encoder: Any = optax.incremental_update(state.params, state.extra.encoder, self.encoder_rate)
        return state._replace(extra=state.extra._replace(encoder=encoder))
