"""SALE: state-action learned embeddings (TD7; Fujimoto et al. 2023, arXiv 2306.02451, Section 4).

Encoders f: s -> z_s and g: (z_s, a) -> z_sa are trained alone, so that z_sa predicts the embedding of the
next state. Frozen copies feed critic and actor further inputs: the fixed encoders f_t, g_t feed the online
networks, f_{t-1}, g_{t-1} the target networks. At every sync the encoders become f_t, and f_t becomes
f_{t-1}.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.errors import WrongValue
from qscape.nets import MLP, Actor, Critic, InputStage, concatenate_inputs, fold_batch_norm
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    Architecture,
    Composition,
    Context,
    Net,
    Nets,
    PartState,
    Representation,
    Version,
)
from qscape.ops.in_place import replace_if
from qscape.ops.norm import NORMS, batch_norm, unit
from qscape.types import LEARNING_RATE, Batch, Event, Key, Metrics, Scalar, Spec, setting

Norm = Literal["avg_l1", "layer", "batch", "none"]
STATISTICS_RATE = 0.1  # weight of a batch in the moving averages: PyTorch's for batch normalisation


class EncoderStatistics(NamedTuple):
    """Moving averages of batch statistics, for batch normalisation.

    Attributes:
        state: mean and variance of f(s).
        pair: mean and variance of g(z_s, a).
        inputs: mean and covariance of (s, a), for φ.
    """

    state: tuple[Array, Array]
    pair: tuple[Array, Array]
    inputs: tuple[Array, Array]


class Encoder(eqx.Module):
    """The encoders f and g, and the linear heads of two ablations.

    Attributes:
        f: s -> z_s.
        g: (z_s, a) -> z_sa.
        observation: predicts the next observation from z_sa, or None.
        reward: predicts the reward from z_sa, or None.
        seen: statistics for batch normalisation; None: those of the batch, as in the encoders' own loss.
    """

    f: MLP
    g: MLP
    observation: eqx.nn.Linear | None
    reward: eqx.nn.Linear | None
    seen: EncoderStatistics | None = None


class Frozen(NamedTuple):
    """The frozen copies of the encoder, and the running statistics of batch normalisation.

    Attributes:
        fixed: (f_t, g_t), which online critics and actor use.
        fixed_target: (f_{t-1}, g_{t-1}), which target critics and the target actor use.
        statistics: running means and variances; None without batch normalisation.
    """

    fixed: Encoder
    fixed_target: Encoder
    statistics: EncoderStatistics | None


@dataclasses.dataclass(frozen=True)
class SALE(Representation):
    """Learns state-action embeddings that predict the next state's; frozen copies feed critics and actor."""

    name: ClassVar[str] = "sale"
    has_smooth_critics: ClassVar[bool] = True  # ELU
    derived_columns: ClassVar[frozenset[str]] = frozenset({"successor"})  # of one step

    width: int = setting(
        256, "Length of the embeddings z_s and z_sa.", within=">= 1", tune=("choice", 64, 128, 256)
    )
    hidden: tuple[int, ...] = setting((256, 256), "Hidden widths of both encoders.", within=">= 1")
    learning_rate: float = setting(3e-4, "Adam's learning rate of the encoders.", **LEARNING_RATE)
    target: Literal["next_embedding", "fixed_embedding", "next_observation", "next_pair"] = setting(
        "next_embedding", "Target of z_sa: f(s'), its frozen copy's f_t(s'), s' itself, or g(f(s'), a')."
    )
    predict_reward: bool = setting(False, "Also predict the reward from z_sa.")
    loss: Literal["mse", "cosine"] = setting("mse", "Distance between prediction and target.")
    critic_inputs: tuple[str, ...] = setting(("sa", "zsa", "zs"), "Inputs of the critics, among sa, zsa, zs.")
    actor_inputs: tuple[str, ...] = setting(("s", "zs"), "Inputs of the actor, among s, zs.")
    state_norm: Norm = setting("avg_l1", "Normalisation of z_s.")
    pair_norm: Norm = setting("none", "Normalisation of z_sa.")
    input_norm: Norm = setting("avg_l1", "Normalisation of φ, the first layer of critic and actor.")
    input_width: int | None = setting(
        None, "Width of φ; None: the width of the first hidden layer.", within=">= 1"
    )
    frozen: bool = setting(True, "Feed frozen copies of the encoders; off: the current encoder everywhere.")
    end_to_end: float | None = setting(
        None, "Weight β of the encoder's loss in the critics' loss; None: no joint training.", within="> 0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, allowed in (("critic_inputs", {"sa", "zsa", "zs"}), ("actor_inputs", {"s", "zs"})):
            chosen = getattr(self, field)
            if not chosen or not set(chosen) <= allowed:
                raise WrongValue(
                    f"sale.{field} is {chosen}; it must name some of {sorted(allowed)}.",
                    part="sale",
                    field=field,
                )
        if set(self.critic_inputs) == {"zs"}:
            raise WrongValue(
                "sale.critic_inputs is only zs: critics would not see the action; add sa or zsa.",
                part="sale",
                field="critic_inputs",
            )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {"critic_activation": "elu", "actor_objective": "mean"}

    def conflict(self, agent: Composition) -> str | None:
        if self.predict_reward and agent.base.n_step > 1:
            return (
                "sale.predict_reward asks for the reward of one step, and base.n_step "
                f"{agent.base.n_step} sums several; leave one of them out."
            )
        if self.input_norm == "batch" and agent.network.trains_on_joint_batch:
            return (
                f"sale.input_norm = batch and {agent.network.name} both normalise by the batch, each another "
                "one; choose another norm."
            )
        return None

    @property
    def joint_loss_weight(self) -> float | None:  # type: ignore[override]
        return self.end_to_end

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return self.learning_rate, self.learning_rate

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        k_f, k_g, k_s, k_r = jax.random.split(key, 4)
        n, s = self.width, spec.observation_size
        encoder = Encoder(
            MLP(k_f, (s, *self.hidden, n), "elu"),
            MLP(k_g, (n + spec.action_size, *self.hidden, n), "elu"),
            eqx.nn.Linear(n, s, key=k_s) if self.target == "next_observation" else None,
            eqx.nn.Linear(n, 1, key=k_r) if self.predict_reward else None,
        )
        seen = None
        if "batch" in (self.state_norm, self.pair_norm, self.input_norm):
            embedding, both = (jnp.zeros(n), jnp.ones(n)), s + spec.action_size
            seen = EncoderStatistics(embedding, embedding, (jnp.zeros(both), jnp.eye(both)))
        copy = dataclasses.replace(encoder, seen=seen)
        return PartState(params=encoder, extra=Frozen(copy, copy, seen))

    def encoder_params(self, state: PartState, which: Version) -> Encoder:
        fixed, fixed_target, statistics = state.extra
        current = dataclasses.replace(state.params, seen=statistics)
        if which == "online" or not self.frozen:
            return current
        # Critics that train the encoder use the current one; their targets use its copy.
        if self.joint_loss_weight is not None:
            fixed, fixed_target = current, fixed
        return fixed if which == "fixed" else fixed_target

    def embed_state(self, encoder: Encoder, obs: Array) -> Array:
        """Return z_s = AvgL1Norm(f(s)) [..., width]."""
        return _normalise(self.state_norm, encoder.f(obs), encoder.seen and encoder.seen.state)

    def embed_pair(self, encoder: Encoder, z_s: Array, action: Array) -> Array:
        """Return z_sa = g(z_s, a) [..., width]; not normalised by default, as its target is."""
        z_sa = encoder.g(concatenate_inputs([z_s, action]))
        return _normalise(self.pair_norm, z_sa, encoder.seen and encoder.seen.pair)

    def adapt_network(self, encoder: Encoder, net: Net) -> Net:
        """Put batch normalisation into φ, which is linear in (s, a), by their mean and covariance."""
        if self.input_norm != "batch" or net.stage.linear is None:
            return net
        assert encoder.seen is not None
        n, (mean, covariance) = net.stage.linear.in_features, encoder.seen.inputs
        layer = fold_batch_norm(net.stage.linear, mean[:n], covariance[:n, :n])
        return eqx.tree_at(lambda m: m.stage.linear, net, layer)

    def actor_embeddings(self, encoder: Encoder, obs: Array) -> list[Array]:
        return [self.embed_state(encoder, obs)] if "zs" in self.actor_inputs else []

    def critic_embeddings(self, encoder: Encoder, obs: Array, action: Array) -> list[Array]:
        z_s = self.embed_state(encoder, obs)
        embeddings = {"zsa": self.embed_pair(encoder, z_s, action), "zs": z_s}
        return [z for name, z in embeddings.items() if name in self.critic_inputs]

    def learn(
        self, params: Encoder, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, Frozen]:
        """Return (g(f(s), a) - sg f(s'))², averaged over batch and width (TD7, Eq. 4)."""
        seen = context.spec.visible(batch.observation)
        pair = self.embed_pair(params, self.embed_state(params, seen), batch.action)
        target = jax.lax.stop_gradient(self._prediction_target(params, state, context, batch))
        prediction = pair if params.observation is None else jax.vmap(params.observation)(pair)
        if self.loss == "cosine":
            loss = 1.0 - (unit(prediction) * unit(target)).sum(-1).mean()
        else:
            loss = jnp.square(prediction - target).mean()
        metrics = {"encoder_loss": loss}
        if params.reward is not None:
            loss += jnp.square(jax.vmap(params.reward)(pair)[:, 0] - batch.reward).mean()
        return loss, metrics, state.extra

    def _prediction_target(self, params: Encoder, state: PartState, context: Context, batch: Batch) -> Array:
        s2 = context.spec.visible(batch.extra["successor"])
        if self.target == "next_observation":
            return s2
        if self.target == "fixed_embedding":
            return self.embed_state(state.extra.fixed, s2)
        z_s2 = self.embed_state(params, s2)
        if self.target == "next_pair":
            return self.embed_pair(params, z_s2, context.policy_target(batch.extra["successor"]).mode())
        return z_s2

    def post_update(self, state: PartState, batch: Batch, event: Event) -> PartState:
        """Move the frozen encoders at a sync: f_{t-1} <- f_t and then f_t <- f."""
        fixed, fixed_target, statistics = state.extra
        if statistics is not None:
            now = self._statistics(state.params, batch)
            statistics = jax.tree.map(lambda old, new: old + STATISTICS_RATE * (new - old), statistics, now)
        new = dataclasses.replace(state.params, seen=statistics)
        fixed, fixed_target = replace_if(event.synced, lambda old: (new, old[0]), (fixed, fixed_target))
        return state._replace(extra=Frozen(fixed, fixed_target, statistics))

    def _statistics(self, params: Encoder, batch: Batch) -> EncoderStatistics:
        f, x = params.f(batch.observation), jnp.concatenate([batch.observation, batch.action], -1)
        g = params.g(concatenate_inputs([_normalise(self.state_norm, f, None), batch.action]))
        inputs = x.mean(0), jnp.cov(x, rowvar=False, ddof=0)
        return EncoderStatistics((f.mean(0), f.var(0)), (g.mean(0), g.var(0)), inputs)

    def actor(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Actor:
        k_stage, k_torso, k_head = jax.random.split(key, 3)
        phi = self.input_width or architecture.base.actor_hidden[0]
        stage, width = self._make_stage(k_stage, spec.observation_size, phi, "s" in self.actor_inputs)
        width += self.width * ("zs" in self.actor_inputs) + conditioning
        return architecture.actor(stage, width, k_torso, k_head, spec)

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        k_stage, k_body = jax.random.split(key)
        size = spec.observation_size + spec.action_size
        phi = self.input_width or architecture.base.critic_hidden[0]
        stage, width = self._make_stage(k_stage, size, phi, "sa" in self.critic_inputs)
        width += self.width * sum(e in self.critic_inputs for e in ("zsa", "zs")) + conditioning
        return architecture.critic(stage, width, k_body)

    def _make_stage(self, key: Key, size: int, width: int, keep: bool) -> tuple[InputStage, int]:
        """Make φ(x) = AvgL1Norm(Linear x), and return its width, which is 0 if an ablation leaves x out."""
        # `adapt_network` puts batch normalisation into the linear layer.
        norm = "none" if self.input_norm == "batch" else self.input_norm
        return (InputStage(key, size, width, norm), width) if keep else (InputStage(keep=False), 0)


def _normalise(norm: Norm, x: Array, seen: tuple[Array, Array] | None) -> Array:
    """Normalise x; batch normalisation uses `seen`, or the mean and variance of x [B, n] if it is None."""
    if norm != "batch":
        return NORMS[norm](x)
    return batch_norm(x, *((x.mean(0), x.var(0)) if seen is None else seen))
