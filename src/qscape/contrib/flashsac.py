"""FlashSAC's networks: residual blocks with batch normalisation and given lengths (arXiv 2604.04539).

The details are those of the released code.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.contrib._batch_norm import BatchNormNetwork
from qscape.contrib._batch_norm_torso import NormalisedTorso
from qscape.contrib._blocks import explain_unequal_widths
from qscape.contrib._residual import unit_linear
from qscape.nets.batch_norm import BatchNorm
from qscape.nets.layers import Linear, OfGivenLength, UnitLinear, dense
from qscape.nets.mlp import ACTIVATIONS
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, Output, Role
from qscape.ops.product import direct_product
from qscape.types import Key

Normalise = Callable[["FlashNorm", Array], Array]


class FlashNorm(BatchNorm, OfGivenLength):
    """Batch normalisation whose scale and shift together have the length √n, as at their start."""

    def __init__(self, size: int) -> None:
        super().__init__(size, epsilon=1e-5, unbiased=True)

    def projected(self) -> "FlashNorm":
        factor = to_root_length(jnp.square(self.scale).sum() + jnp.square(self.shift).sum(), len(self.scale))
        scaled = self.scale * factor, self.shift * factor
        return eqx.tree_at(lambda m: (m.scale, m.shift), self, scaled)


class PostNorm(OfGivenLength):
    """y = weight x / √(mean x² + 1e-6) over the last axis; the weight starts at 1 and has the length √n."""

    weight: Float[Array, " n"]

    def __init__(self, size: int) -> None:
        self.weight = jnp.ones(size)

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        return self.weight * x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)

    def projected(self) -> "PostNorm":
        factor = to_root_length(jnp.square(self.weight).sum(), len(self.weight))
        return eqx.tree_at(lambda m: m.weight, self, self.weight * factor)


def to_root_length(square: Float[Array, ""], size: int) -> Float[Array, ""]:
    """Return the factor by which a vector of this squared length gets the length √n."""
    return size**0.5 * jax.lax.rsqrt(square + 1e-8)


class FlashBlock(eqx.Module):
    """h + act(BN(down(act(BN(up h))))), with four times the width between: no entry of h falls under ReLU."""

    up: UnitLinear
    up_norm: FlashNorm
    down: UnitLinear
    down_norm: FlashNorm
    activation: str = eqx.field(static=True)

    def __init__(self, key: Key, width: int, activation: str) -> None:
        k_up, k_down = jax.random.split(key)
        self.up, self.up_norm = unit_linear(k_up, width, 4 * width), FlashNorm(4 * width)
        self.down, self.down_norm = unit_linear(k_down, 4 * width, width), FlashNorm(width)
        self.activation = activation

    def follow(self, h: Float[Array, "*b n"], normalise: Normalise) -> Float[Array, "*b n"]:
        """Return the next h; `normalise` applies a norm."""
        act = ACTIVATIONS[self.activation]
        inner = act(normalise(self.up_norm, direct_product(h, self.up.weight)))
        return h + act(normalise(self.down_norm, direct_product(inner, self.down.weight)))


class FlashTorso(NormalisedTorso):
    """Batch normalisation of the input, a linear layer, residual blocks and a root-mean-square norm."""

    norm: FlashNorm
    embed: UnitLinear
    blocks: tuple[FlashBlock, ...]
    post: PostNorm

    def __init__(self, key: Key, size: int, widths: Sequence[int], activation: str) -> None:
        """`widths`: one entry, always the same, for each block."""
        k_embed, *keys = jax.random.split(key, len(widths) + 1)
        self.norm, self.embed = FlashNorm(size), unit_linear(k_embed, size, widths[0])
        self.blocks = tuple(FlashBlock(k, widths[0], activation) for k in keys)
        self.post = PostNorm(widths[0])

    def list_norms(self) -> tuple[FlashNorm, ...]:
        return self.norm, *(norm for block in self.blocks for norm in (block.up_norm, block.down_norm))

    def features(self, x: Array, normalise: Normalise) -> Array:
        h = dense(self.embed, normalise(self.norm, x))
        for block in self.blocks:
            h = block.follow(h, normalise)
        return self.post(h)


@dataclasses.dataclass(frozen=True)
class FlashSAC(BatchNormNetwork):
    """Residual blocks with batch normalisation in which weight vectors and the scales of norms keep their
    lengths.

    Target critics see the same joint batch and throw their statistics away. The actor's own loss normalises
    it by s and s' together, too.
    """

    name: ClassVar[str] = "flashsac"
    actor_rows: ClassVar[Literal["now", "both"]] = "both"
    curves_critics: ClassVar[bool] = True  # by the root-mean-square norm

    @property
    def has_linear_outputs(self) -> bool:
        return False

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {
            "actor_hidden": (128, 128),
            "critic_hidden": (256, 256),
            "policy_delay": 2,
            "policy_phase": 1,
            "actor_objective": "min",
            "target_actor": False,
            "critic_loss_scale": 0.5,
            "log_std_bound": "tanh",
            "log_std_min": -10.0,
        }

    def conflict(self, agent: Composition) -> str | None:
        return super().conflict(agent) or explain_unequal_widths(self.name, agent.base)

    def torso(self, key: Key, size: int, role: Role, base: Base) -> FlashTorso:
        if role == "actor":
            return FlashTorso(key, size, base.actor_hidden, base.actor_activation)
        return FlashTorso(key, size, base.critic_hidden, base.critic_activation)

    def output(self, key: Key, size: int, outputs: int, role: Output, base: Base) -> Linear:
        return unit_linear(key, size, outputs, bias=True)
