"""The action distributions of on-policy agents, with entropy and KL divergence."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qscape.nets.heads import SquashedNormal
from qscape.ops import categorical
from qscape.ops.gaussian import normal_entropy, normal_kl, normal_log_prob, squashed_entropy
from qscape.types import Key


class Categorical(eqx.Module):
    """A categorical distribution over K actions. An action is its index, as a float vector of length 1.

    Attributes:
        features: the action layer's input.
        logits: unnormalised log-probabilities.
    """

    features: Float[Array, "*b d"]
    logits: Float[Array, "*b K"]

    def masked(self, valid: Bool[Array, "*b K"]) -> "Categorical":
        """Return the distribution given that the action is a valid one; the others have probability 0."""
        return Categorical(self.features, categorical.mask(self.logits, valid))

    def mode(self) -> Float[Array, "*b 1"]:
        return self.logits.argmax(-1)[..., None].astype(jnp.float32)

    def sample(self, key: Key) -> tuple[Float[Array, "*b 1"], Float[Array, "*b"]]:
        action = jax.random.categorical(key, self.logits)[..., None].astype(jnp.float32)
        return action, self.log_prob(action)

    def log_prob(self, action: Float[Array, "*b 1"]) -> Float[Array, "*b"]:
        return categorical.log_prob(self.logits, action[..., 0].astype(jnp.int32))

    def entropy(self) -> Float[Array, "*b"]:
        return categorical.entropy(self.logits)

    def kl(self, new: "Categorical") -> Float[Array, "*b"]:
        """Return KL(self ‖ new)."""
        return categorical.kl(self.logits, new.logits)


class FactoredCategorical(eqx.Module):
    """Independent categorical distributions: π(a) = ∏_k π_k(a_k). An action is a vector of indices.

    Factors may have different numbers of values; the last logits of smaller ones are `LEAST`.

    Attributes:
        features: the input of each factor's action layer.
        logits: unnormalised log-probabilities; C is the largest number of values.
    """

    features: Float[Array, "*b K d"]
    logits: Float[Array, "*b K C"]

    @classmethod
    def from_factors(cls, factors: Sequence[Categorical]) -> "FactoredCategorical":
        """Return the product of K categorical distributions."""
        widest = max(factor.logits.shape[-1] for factor in factors)
        rows = [_pad(factor.logits, widest) for factor in factors]
        return cls(jnp.stack([factor.features for factor in factors], -2), jnp.stack(rows, -2))

    def masked(self, valid: Bool[Array, "*b K C"]) -> "FactoredCategorical":
        """Return the distribution given that the value of every factor is a valid one."""
        return FactoredCategorical(self.features, categorical.mask(self.logits, valid))

    def mode(self) -> Float[Array, "*b K"]:
        return self.logits.argmax(-1).astype(jnp.float32)

    def sample(self, key: Key) -> tuple[Float[Array, "*b K"], Float[Array, "*b"]]:
        action = jax.random.categorical(key, self.logits).astype(jnp.float32)
        return action, self.log_prob(action)

    def log_prob(self, action: Float[Array, "*b K"]) -> Float[Array, "*b"]:
        return categorical.log_prob(self.logits, action.astype(jnp.int32)).sum(-1)

    def entropy(self) -> Float[Array, "*b"]:
        return categorical.entropy(self.logits).sum(-1)

    def kl(self, new: "FactoredCategorical") -> Float[Array, "*b"]:
        """Return KL(self ‖ new), the sum over the factors."""
        return categorical.kl(self.logits, new.logits).sum(-1)


def _pad(logits: Float[Array, "*b N"], width: int) -> Float[Array, "*b width"]:
    """Return logits with `LEAST` for the values that a factor does not have."""
    missing = width - logits.shape[-1]
    if not missing:
        return logits
    return jnp.concatenate([logits, jnp.full((*logits.shape[:-1], missing), categorical.LEAST)], -1)


class Normal(eqx.Module):
    """N(mean, std²), independent over dimensions. `EnvAdapter` clips actions to the environment's bounds.

    Attributes:
        features: the action layer's input.
    """

    features: Float[Array, "*b d"]
    mean: Float[Array, "*b A"]
    log_std: Float[Array, "*b A"]

    def mode(self) -> Float[Array, "*b A"]:
        return self.mean

    def sample(self, key: Key) -> tuple[Float[Array, "*b A"], Float[Array, "*b"]]:
        action = self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)
        return action, self.log_prob(action)

    def log_prob(self, action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
        return normal_log_prob(action, self.mean, self.log_std)

    def entropy(self) -> Float[Array, "*b"]:
        return normal_entropy(self.log_std)

    def kl(self, new: "Normal") -> Float[Array, "*b"]:
        """Return KL(self ‖ new)."""
        return normal_kl(self.mean, self.log_std, new.mean, new.log_std)


class TanhNormal(SquashedNormal):
    """a = tanh(u) with u ~ N(mean, std²), independent over dimensions, with entropy and KL divergence."""

    def entropy(self) -> Float[Array, "*b"]:
        return squashed_entropy(self.mean, self.log_std)

    def kl(self, new: "TanhNormal") -> Float[Array, "*b"]:
        """Return KL(self ‖ new), which is that of the normal distributions: tanh is one-to-one."""
        return normal_kl(self.mean, self.log_std, new.mean, new.log_std)
