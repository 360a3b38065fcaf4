"""DPO: sample from exp(Q/α) over structured actions, one component after the other (a GFlowNet).

Li, Wang, Yang and Zha, "Diverse Policy Optimization for Structured Action Space", AAMAS 2023, arXiv
2302.11917. No code of it was found; this is our reading of it, for actions whose components have a fixed
order. It is not direct preference optimisation of language models.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from qscape.contrib._sampling import Sampling
from qscape.nets import MLP
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    ActingStep,
    BoundNetworks,
    Context,
    Nets,
    PartState,
)
from qscape.types import LEARNING_RATE, Batch, Event, Key, Metrics, Policy, Scalar, Spec, setting

LOG_Z_SCALE = 10.0  # output of the network of log Z, so that Adam moves it ten times as fast


def find_factors(table: Float[np.ndarray, "N M"]) -> list[np.ndarray] | None:
    """Return the values of every column if the rows are all their combinations; else None."""
    values = [np.unique(column) for column in table.T]
    return values if np.prod([len(v) for v in values], dtype=float) == len(table) else None


class Sampler(eqx.Module):
    """P_F(a_m | s, a_<m) for the components m = 1..M in their order, and log Z(s).

    Attributes:
        components: for each m the layers from s and the one-hot a_1..a_{m-1} to N_m logits.
        normaliser: the layers of log Z / `LOG_Z_SCALE`.
    """

    components: tuple[MLP, ...]
    normaliser: MLP

    def __init__(self, key: Key, observation_size: int, sizes: list[int], hidden: tuple[int, ...]) -> None:
        """`sizes` are N_1..N_M."""
        *keys, k_normaliser = jax.random.split(key, len(sizes) + 1)
        self.components = tuple(
            MLP(k, (observation_size + sum(sizes[:m]), *hidden, n), "relu")
            for m, (k, n) in enumerate(zip(keys, sizes, strict=True))
        )
        self.normaliser = MLP(k_normaliser, (observation_size, *hidden, 1), "relu")

    def log_z(self, obs: Float[Array, "*b S"]) -> Float[Array, "*b"]:
        return LOG_Z_SCALE * self.normaliser(obs)[..., 0]

    def build(self, obs: Float[Array, "*b S"], choose: Any) -> tuple[Int[Array, "*b M"], Float[Array, "*b"]]:
        """Build actions, and return their indices and log P_F.

        Args:
            choose: (m, log-probabilities [*b, N_m]) -> indices [*b].
        """
        inputs, index, total = [obs], [], jnp.zeros(obs.shape[:-1])
        for m, component in enumerate(self.components):
            log_probs = jax.nn.log_softmax(component(jnp.concatenate(inputs, -1)))
            index.append(choose(m, log_probs))
            taken = jax.nn.one_hot(index[-1], log_probs.shape[-1])
            total = total + (taken * log_probs).sum(-1)
            inputs.append(taken)
        return jnp.stack(index, -1), total

    def sample(
        self, obs: Float[Array, "*b S"], key: Key, uniform: float = 0.0
    ) -> tuple[Int[Array, "*b M"], Float[Array, "*b"]]:
        """Sample actions; `uniform` is the probability that a component is drawn uniformly instead."""
        keys = jax.random.split(key, len(self.components))

        def draw(m: int, log_probs: Array) -> Array:
            mixed = (1.0 - uniform) * jnp.exp(log_probs) + uniform / log_probs.shape[-1]
            return jax.random.categorical(keys[m], jnp.log(mixed))

        return self.build(obs, draw)

    def mode(self, obs: Float[Array, "*b S"]) -> Int[Array, "*b M"]:
        """Return the most likely value of each component, given those before it."""
        return self.build(obs, lambda m, log_probs: log_probs.argmax(-1))[0]

    def log_prob(self, obs: Float[Array, "*b S"], index: Int[Array, "*b M"]) -> Float[Array, "*b"]:
        """Return log P_F of whole actions."""
        return self.build(obs, lambda m, log_probs: index[..., m])[1]

    def imbalance(
        self, obs: Float[Array, "*b S"], index: Int[Array, "*b M"], energy: Float[Array, "*b"]
    ) -> Float[Array, "*b"]:
        """Return log Z(s) + log P_F(a | s) − Q(s, a)/α, which is 0 if P_F = exp(Q/α)/Z; `energy` is Q/α."""
        return self.log_z(obs) + self.log_prob(obs, index) - energy


@dataclasses.dataclass(frozen=True)
class FactoredDist:
    """The distribution of a sampler at observations [*b, S], over rows of the action table."""

    sampler: Sampler
    obs: Array
    values: list[np.ndarray]

    @property
    def features(self) -> Float[Array, "*b S"]:
        return self.obs

    def mode(self) -> Float[Array, "*b M"]:
        return to_rows(self.values, self.sampler.mode(self.obs))

    def sample(self, key: Key) -> tuple[Float[Array, "*b M"], Float[Array, "*b"]]:
        index, log_prob = self.sampler.sample(self.obs, key)
        return to_rows(self.values, index), log_prob

    def log_prob(self, action: Float[Array, "*b M"]) -> Float[Array, "*b"]:
        """Return log P_F of rows of the table."""
        near = [jnp.abs(action[..., m, None] - v).argmin(-1) for m, v in enumerate(self.values)]
        return self.sampler.log_prob(self.obs, jnp.stack(near, -1))


def to_rows(values: list[np.ndarray], index: Int[Array, "*b M"]) -> Float[Array, "*b M"]:
    """Return the rows of the table that have these indices of values."""
    columns = [jnp.asarray(v, jnp.float32)[index[..., m]] for m, v in enumerate(values)]
    return jnp.stack(columns, -1)


@dataclasses.dataclass(frozen=True)
class DPO(Sampling):
    """Samples actions in proportion to exp(Q/α); the critics learn from the soft value α log Z(s').

    The sampler learns by trajectory balance: the mean of (log Z(s) + log P_F(a|s) − min_j Q_j(s, a)/α)², a of
    the sampler itself, some components uniform.
    """

    name: ClassVar[str] = "dpo"
    why_deterministic: ClassVar[str] = "has a sampler in the place of the base's policy"
    why_unsmoothed: ClassVar[str] = "values the next state by log Z, without an action"

    temperature: float = setting(
        0.1, "α of exp(Q/α), fixed (inferred).", within="> 0", tune=(0.01, 10.0, "log")
    )
    draws: int = setting(
        4, "Actions of each state that the sampler learns from in an update (inferred).", within=">= 1"
    )
    uniform: float = setting(
        0.05, "Probability that a component of these is drawn uniformly (inferred).", within="[0, 1]"
    )
    hidden: tuple[int, ...] = setting((256, 256), "Hidden widths of the sampler (inferred).", within=">= 1")
    learning_rate: float = setting(
        1e-3,
        "Adam's learning rate of the sampler; log Z moves ten times as fast (inferred).",
        **LEARNING_RATE,
    )
    rate: float = setting(
        0.005, "Rate at which the target of log Z follows, at every update (inferred).", within="[0, 1]"
    )
    evaluation: Literal["mode", "sample"] = setting(
        "mode", "The action of an evaluation: the most likely value of each component in turn, or a sample."
    )

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.table is None:
            return "dpo builds discrete actions, and those of this environment are continuous; take sac."
        if spec.mask is not None:
            return "dpo builds an action column by column and knows no action masks; take td3+savo."
        if find_factors(spec.table) is None:
            return (
                "dpo builds an action column by column, and the rows of this action table are not all "
                "combinations of their columns' values; take td3+savo or td3+wolpertinger."
            )
        return None

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        """Make the sampler, and the target of log Z."""
        sizes = [len(values) for values in _factors(spec)]
        sampler = Sampler(key, spec.observation_size, sizes, self.hidden)
        return PartState(params=sampler, extra=sampler.normaliser)

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        values = _factors(context.spec)
        return lambda obs: FactoredDist(state.params, obs, values)

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        dist = context.policy(step.observation)
        if step.mode == "evaluate" and self.evaluation == "mode":
            return dist.mode(), {}, step.noise_state
        return dist.sample(step.key)[0], {}, step.noise_state

    def next_value(self, state: PartState, context: Context, next_obs: Array, key: Key) -> Array:
        """Return α log Z̄(s'), with the target of log Z."""
        sampler = eqx.tree_at(lambda s: s.normaliser, state.params, state.extra)
        return self.temperature * sampler.log_z(next_obs)

    def learn(
        self, params: Sampler, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, PyTree]:
        """Return the loss of trajectory balance, at actions that the sampler draws."""
        obs = jnp.broadcast_to(batch.observation, (self.draws, *batch.observation.shape))
        index, _ = state.params.sample(obs, key, self.uniform)
        rows = to_rows(_factors(context.spec), index)
        energy = jnp.stack(context.q(batch.observation[None], rows)).min(0) / self.temperature
        loss = jnp.square(params.imbalance(obs, index, energy)).mean()
        value = self.temperature * params.log_z(batch.observation).mean()
        return loss, {"balance_loss": loss, "soft_value": value}, state.extra

    def post_update(self, state: PartState, actor: PyTree, event: Event) -> PartState:
        """Move the target of log Z."""
        moved = optax.incremental_update(state.params.normaliser, state.extra, self.rate)
        return state._replace(extra=moved)


def _factors(spec: Spec) -> list[np.ndarray]:
    """Return the values of each component of an action."""
    values = None if spec.table is None else find_factors(spec.table)
    assert values is not None, "`fits` refuses other tasks"
    return values
