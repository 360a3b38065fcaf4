"""LipsNet: an actor whose Lipschitz constant is the output of a second network (Song, Duan, Wang, Chen,
Zhong, Li, ICML 2023), in the form of its comparison with PAVE (Lee et al. 2026, arXiv 2601.22970).

The output f(s) of an MLP is divided by the norm of its Jacobian and multiplied by K(s). The actor's loss
penalises K.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import MLP, Actor, Conditioning, Deterministic, Gaussian, InputStage, Torso, dense
from qscape.nets.heads import Point, SquashedNormal
from qscape.offpolicy.plain import Plain, make_mlp_architecture
from qscape.offpolicy.sockets import Architecture, Composition, Context, PartState
from qscape.ops.smooth import squared_jacobian
from qscape.types import Batch, Dist, Key, Metrics, Scalar, Spec, setting


class LipsActor(Actor):
    """a = tanh(K(s) · f(s) / (|∂f/∂s| + ε)), the norm over all entries; f is torso and head.

    Attributes:
        bound: the network of K(s).
        epsilon: ε.
    """

    bound: MLP
    epsilon: float = eqx.field(static=True)

    def lipschitz_constant(self, obs: Float[Array, "*b S"]) -> Float[Array, "*b 1"]:
        """Return K(s) > 0."""
        return jax.nn.softplus(self.bound(obs))

    @property
    def output_layer(self) -> eqx.nn.Linear:
        """The last linear layer of f."""
        assert isinstance(self.head, Deterministic | Gaussian)
        layer = self.head.out if isinstance(self.head, Deterministic) else self.head.mean
        assert isinstance(layer, eqx.nn.Linear)
        return layer

    def __call__(self, obs: Array, embeddings: Any, conditioning: Conditioning | None = None) -> Dist:
        extra = None if conditioning is None else conditioning.concat

        def f(obs: Array) -> tuple[Array, Array]:
            features = self.torso(self.stage(obs, *embeddings, extra), conditioning)
            return dense(self.output_layer, features), features

        raw, back, features = jax.vjp(f, obs, has_aux=True)
        square = squared_jacobian(raw, back)[..., None]
        norm = jnp.sqrt(jnp.maximum(square, 1e-24))  # no NaN in the gradient where every unit is off
        action = jnp.tanh(self.lipschitz_constant(obs) * raw / (norm + self.epsilon))
        if not isinstance(self.head, Gaussian):
            return Point(features, action)
        # As in the released code, the squashed action is the mean of a normal that is squashed again.
        return SquashedNormal(features, action, self.head(features).log_std)


@dataclasses.dataclass(frozen=True)
class LipsNet(Plain):
    """An actor with a learned local Lipschitz constant."""

    name: ClassVar[str] = "lipsnet"
    needs_actor: ClassVar[bool] = True

    weight: float = setting(
        1e-5, "λ_K: weight of mean K(s)² in the actor's loss.", within=">= 0", tune=(1e-7, 1e-2, "log")
    )
    epsilon: float = setting(1e-4, "ε: added to the Jacobian's norm.", within="> 0")
    initial: float = setting(50.0, "Initial value of K.", within="> 0", tune=(1.0, 100.0, "log"))
    width: int = setting(32, "Hidden width of the network of K.", within=">= 1")

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        small = {"actor_hidden": (64, 64), "critic_hidden": (64, 64)}
        loss = agent.policy_loss  # the paper's networks on TD3; those on SAC have the usual widths
        return small if loss.improves_samples and not loss.needs_single_policy else {}

    def notes(self, agent: Composition) -> list[str]:
        base = agent.base
        moved = {"actor_activation": base.actor_activation != "relu"}
        moved["actor_projection"] = base.actor_projection
        moved["actor_norm"] = base.actor_norm != "none"
        moved["init"] = base.init != "default"
        moved["actor_output_std"] = base.actor_output_std is not None
        return [
            "lipsnet builds its own actor, with ReLU, its own weights and without projection or layer norm: "
            f"base.{name} has no effect"
            for name, is_moved in moved.items()
            if is_moved
        ]

    def actor(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> LipsActor:
        """Make f with ReLU and K with tanh; normal weights, Kaiming's before ReLU and Xavier's elsewhere."""
        k_torso, k_head, k_bound, k_normal = jax.random.split(key, 4)
        base = dataclasses.replace(architecture.base, actor_projection=False)
        sizes = (spec.observation_size + conditioning, *base.actor_hidden)
        torso = Torso(k_torso, sizes, "relu")
        head = make_mlp_architecture(base).head(k_head, spec)
        bound = MLP(k_bound, (spec.observation_size, self.width, 1), "tanh")
        actor = LipsActor(InputStage(), torso, head, bound, self.epsilon)

        def layers(actor: LipsActor) -> list[eqx.nn.Linear]:
            assert isinstance(actor.torso, Torso)
            return [*actor.torso.layers, actor.output_layer, *actor.bound.torso.layers, actor.bound.out]

        keys = jax.random.split(k_normal, len(layers(actor)))
        kaiming = [k < len(torso.layers) for k in range(len(keys))]
        drawn = [draw_normal_weights(*which) for which in zip(keys, layers(actor), kaiming, strict=True)]
        actor = eqx.tree_at(layers, actor, drawn)
        return eqx.tree_at(lambda a: a.bound.out.bias, actor, replace_fn=lambda bias: bias + self.initial)

    def penalty(
        self, actor: PyTree, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return λ_K mean K(s)², summed over all actors."""
        actors = jax.tree.leaves(actor, is_leaf=lambda x: isinstance(x, LipsActor))
        obs = context.spec.actor_part(batch.observation)
        gains = [a.lipschitz_constant(obs) for a in actors if isinstance(a, LipsActor)]
        loss = self.weight * jnp.stack([jnp.square(gain).mean() for gain in gains]).sum()
        return loss, {"lipsnet_gain": gains[0].mean(), "lipsnet_loss": loss}


def draw_normal_weights(key: Key, layer: eqx.nn.Linear, kaiming: bool) -> eqx.nn.Linear:
    """Return the layer with new normal weights, of variance 2 / inputs (Kaiming) or 2 / (inputs + outputs)
    (Xavier)."""
    outputs, inputs = layer.weight.shape
    scale = math.sqrt(2.0 / (inputs if kaiming else inputs + outputs))
    return eqx.tree_at(lambda x: x.weight, layer, scale * jax.random.normal(key, layer.weight.shape))
