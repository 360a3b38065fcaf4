"""Critics of a few discrete actions: the values of all of them in one pass."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import Inputs
from qscape.nets.mlp import MLP, Critic
from qscape.types import Key


class ActionCritic(Critic):
    """Maps an observation to the outputs of N actions; a call returns those of the action that is asked for.

    An action [..., 1] is an index as a float. Leading axes are broadcast: observations [*b, 1, S] beside the
    actions [N, 1] give the values of all actions, and the hidden layers see each observation once.

    Attributes:
        actions: N.
    """

    actions: int = eqx.field(static=True)

    def see(self, obs: Array, action: Array) -> Inputs:
        return obs

    def pick(self, raw: Float[Array, "*b Nn"], action: Float[Array, "*c 1"]) -> Float[Array, "*d n"]:
        raw = raw.reshape(*raw.shape[:-1], self.actions, -1)
        index = action[..., 0].astype(jnp.int32)
        index = index.reshape((1,) * (raw.ndim - 2 - index.ndim) + index.shape)
        return jnp.take_along_axis(raw, index[..., None, None], -2)[..., 0, :]


class Dueling(eqx.Module):
    """An output layer of two streams: Q(s, a) = V(s) + A(s, a) − mean over a′ of A(s, a′).

    Wang et al. 2016, arXiv 1511.06581, Eq. 9. Each stream has a hidden layer of its own. Critics that compute
    a distribution add the streams' outputs for each atom, as Rainbow does (arXiv 1710.02298).

    Attributes:
        value: V, with n outputs.
        advantage: A, with N · n outputs.
        actions: N.
    """

    value: MLP
    advantage: MLP
    actions: int = eqx.field(static=True)

    def __init__(self, key: Key, width: int, actions: int, outputs: int, activation: str) -> None:
        """`width` is that of the features and of the streams' hidden layers; `outputs` is n."""
        k_value, k_advantage = jax.random.split(key)
        self.value = MLP(k_value, (width, width, outputs), activation)
        self.advantage = MLP(k_advantage, (width, width, actions * outputs), activation)
        self.actions = actions

    def __call__(self, x: Inputs) -> Float[Array, "*b Nn"]:
        """Return the outputs of all actions, one action after the other."""
        raw = self.advantage(x)
        advantage = raw.reshape(*raw.shape[:-1], self.actions, -1)
        outputs = self.value(x)[..., None, :] + advantage - advantage.mean(-2, keepdims=True)
        return outputs.reshape(raw.shape)
