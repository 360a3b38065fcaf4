"""The action distributions of on-policy agents, with entropy and KL divergence."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.ops import categorical
from qscape.ops.gaussian import normal_entropy, normal_kl, normal_log_prob
from qscape.types import Key


class Categorical(eqx.Module):
    """A categorical distribution over K actions. An action is its index, as a float vector of length 1.

    Attributes:
        features: the action layer's input.
        logits: unnormalised log-probabilities.
    """

    features: Float[Array, "*b d"]
    logits: Float[Array, "*b K"]

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
        """KL(self ‖ new)."""
        return categorical.kl(self.logits, new.logits)


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
        """KL(self ‖ new)."""
        return normal_kl(self.mean, self.log_std, new.mean, new.log_std)
