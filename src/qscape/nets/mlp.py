"""Multilayer perceptrons, and the actor and critic that representations build."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.batch_norm import has_statistics
from qscape.nets.heads import Head
from qscape.nets.layers import Inputs, LayerNorm, Linear, SampleNorm, concatenate_inputs, dense
from qscape.ops.elu import elu
from qscape.ops.norm import NORMS
from qscape.ops.silu import silu
from qscape.types import Dist, Key, stream

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "elu": elu,
    "silu": silu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "mish": jax.nn.mish,
    "leaky_relu": jax.nn.leaky_relu,
}


class Conditioning(NamedTuple):
    """Conditioning of a network on a further vector.

    Attributes:
        concat: `[*b, c]` joins the torso's input; None: nothing does.
        film: a pair (scale, shift) of arrays `[*b, h]` for each hidden layer, which computes
            activation((1 + scale) * h + shift); None: no modulation.
        follows: each hidden layer computes scale * activation(h) + shift instead.
    """

    concat: Array | None = None
    film: Sequence[tuple[Array, Array]] | None = None
    follows: bool = False


class Torso(eqx.Module):
    """Hidden layers: linear layers, each followed by layer norm and FiLM, if given, and by the activation.

    Unless `linear` says otherwise, weights and biases are initialised uniformly in ±1/√fan_in, the default
    of Equinox and PyTorch.

    Attributes:
        layers: the linear layers.
        norms: the layer norm behind each of them; empty: there is none.
        activation: a key of `ACTIVATIONS`.
        last: the norm of the features, behind activation and FiLM of the last layer; None: there is none.
    """

    layers: tuple[eqx.nn.Linear, ...]
    norms: tuple[LayerNorm, ...]
    activation: str = eqx.field(static=True)
    last: SampleNorm | None = None

    def __init__(
        self,
        key: Key,
        sizes: Sequence[int],
        activation: str,
        normalise: bool = False,
        linear: Callable[..., eqx.nn.Linear] = eqx.nn.Linear,
        normalise_last: bool = False,
    ) -> None:
        """Make the layers.

        Args:
            sizes: the input size and the widths of the layers.
            normalise: adds layer norms.
            linear: makes a layer: `linear(fan_in, fan_out, key=key)`.
            normalise_last: adds the norm of the features.
        """
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
        self.norms = tuple(map(LayerNorm, sizes[1:])) if normalise else ()
        self.activation = activation
        self.last = SampleNorm(stream(key, "last"), sizes[-1]) if normalise_last else None

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]:
        """Return features of the last layer at inputs `[*b, i]`."""
        act = ACTIVATIONS[self.activation]
        film = None if conditioning is None else conditioning.film
        for j, layer in enumerate(self.layers):
            h = dense(layer, x)
            h = self.norms[j](h) if self.norms else h
            if film is None or conditioning is None:
                x = act(h)
            elif conditioning.follows:
                x = film[j][0] * act(h) + film[j][1]
            else:
                x = act((1.0 + film[j][0]) * h + film[j][1])
        assert not isinstance(x, tuple)
        return x if self.last is None else self.last(x)


@runtime_checkable
class Features(Protocol):
    """Hidden layers of any kind: a `Torso`, or what a `network` part builds in its place.

    Hidden layers with batch normalisation also have `train`, with the arguments and the result of `__call__`
    and a second result, the hidden layers with new running statistics. Hidden layers with dropout take a
    third argument, the key of the masks.
    """

    def __call__(self, x: Inputs, conditioning: Conditioning | None = None) -> Float[Array, "*b h"]: ...


class Body(eqx.Module):
    """Hidden layers and an output layer."""

    torso: Features
    out: Linear

    def __call__(
        self, x: Inputs, conditioning: Conditioning | None = None, key: Key | None = None
    ) -> Float[Array, "*b o"]:
        """Return outputs at inputs `[*b, i]`; `key` draws masks of dropout, which only some hidden layers
        have.
        """
        torso: Any = self.torso
        features = torso(x, conditioning) if key is None else torso(x, conditioning, key)
        return dense(self.out, features)

    def train(self, x: Inputs) -> tuple[Float[Array, "*b o"], "Body"]:
        """Return outputs, normalised by the batch; and the body with new running statistics."""
        features, torso = train_features(self.torso, x)
        return dense(self.out, features), eqx.tree_at(lambda m: m.torso, self, torso)


class MLP(eqx.Module):
    """A torso and a linear output layer, for networks of parts such as encoders."""

    torso: Torso
    out: eqx.nn.Linear

    def __init__(self, key: Key, sizes: Sequence[int], activation: str) -> None:
        """`sizes` are the input size, the hidden widths and the output size."""
        k_torso, k_out = jax.random.split(key)
        self.torso = Torso(k_torso, sizes[:-1], activation)
        self.out = eqx.nn.Linear(sizes[-2], sizes[-1], key=k_out)

    def __call__(self, x: Inputs) -> Float[Array, "*b o"]:
        """Return outputs at inputs `[*b, i]`."""
        return dense(self.out, self.torso(x))


def train_features(torso: Any, x: Inputs) -> tuple[Float[Array, "*b h"], Any]:
    """Return features of hidden layers in training, and the hidden layers with new running statistics.

    Hidden layers without batch normalisation compute what they compute in evaluation, and do not change.
    """
    return torso.train(x) if has_statistics(torso) else (torso(x), torso)


class InputStage(eqx.Module):
    """The first stage of a network: concatenates its raw input x, or φ = norm(Linear x), with embeddings.

    Attributes:
        linear: the layer on x; None: x enters raw.
        norm: a key of `NORMS`.
        keep: False leaves x out, so that only the embeddings enter.
    """

    linear: eqx.nn.Linear | None
    norm: str = eqx.field(static=True)
    keep: bool = eqx.field(static=True)

    def __init__(
        self, key: Key | None = None, x: int = 0, width: int = 0, norm: str = "none", keep: bool = True
    ):
        """`key` None: no linear layer; else it maps `x` numbers to `width`."""
        self.linear = None if key is None else eqx.nn.Linear(x, width, key=key)
        self.norm = norm
        self.keep = keep

    def __call__(self, x: Inputs, *others: Array | None) -> Inputs:
        """Return the torso's input at x `[*b, i]` and embeddings `others` (None: left out)."""
        parts: list[Inputs] = [o for o in others if o is not None]
        if self.keep:
            parts.insert(0, x if self.linear is None else NORMS[self.norm](dense(self.linear, x)))
        return concatenate_inputs(parts)


class Actor(eqx.Module):
    """Maps an observation and embeddings of it to a distribution over actions: stage, torso, head."""

    stage: InputStage
    torso: Features
    head: Head

    def __call__(
        self, obs: Array, embeddings: Sequence[Array], conditioning: Conditioning | None = None
    ) -> Dist:
        """Return the policy's distribution at observations `[*b, S]`."""
        extra = None if conditioning is None else conditioning.concat
        return self.head(self.torso(self.stage(obs, *embeddings, extra), conditioning))

    def train(
        self, obs: Array, embeddings: Sequence[Array], count: int | None = None
    ) -> tuple[Dist, "Actor"]:
        """Return the distribution, normalised by the batch; and the actor with new running statistics.

        Args:
            count: how many rows, the first ones, the distribution is wanted of; None: all.
        """
        features, torso = train_features(self.torso, self.stage(obs, *embeddings))
        return self.head(features[:count]), eqx.tree_at(lambda m: m.torso, self, torso)


@runtime_checkable
class Readout(Protocol):
    """Says how many numbers a critic computes, and how they become the value Q."""

    @property
    def outputs(self) -> int: ...

    def read(self, raw: Float[Array, "*b n"]) -> Float[Array, "*b"]: ...


class Critic(eqx.Module):
    """Maps an observation, an action and embeddings of them to a value: stage, hidden layers, output layer.

    Attributes:
        readout: makes the value of the n outputs; hashable.
    """

    stage: InputStage
    body: Body
    readout: Readout = eqx.field(static=True)

    def __call__(
        self,
        obs: Array,
        action: Array,
        embeddings: Sequence[Array],
        conditioning: Conditioning | None = None,
        key: Key | None = None,
    ) -> Float[Array, "*b"]:
        """Return Q(s, a) at observations `[*b, S]` and actions `[*b, A]`; see `outputs`."""
        return self.readout.read(self.outputs(obs, action, embeddings, conditioning, key))

    def outputs(
        self,
        obs: Array,
        action: Array,
        embeddings: Sequence[Array],
        conditioning: Conditioning | None = None,
        key: Key | None = None,
    ) -> Float[Array, "*b n"]:
        """Return the n outputs, e.g. the logits of a distribution, that `readout` makes the value of.

        Args:
            key: draws the masks of dropout; None: nothing is dropped.
        """
        extra = None if conditioning is None else conditioning.concat
        x = self.stage(self.see(obs, action), *embeddings, extra)
        return self.pick(self.body(x, conditioning, key), action)

    def train(
        self, obs: Array, action: Array, embeddings: Sequence[Array]
    ) -> tuple[Float[Array, "*b n"], "Critic"]:
        """Return the n outputs, normalised by the batch; and the critic with new running statistics."""
        raw, body = self.body.train(self.stage(self.see(obs, action), *embeddings))
        return self.pick(raw, action), eqx.tree_at(lambda m: m.body, self, body)

    def see(self, obs: Array, action: Array) -> Inputs:
        """Return what enters the stage beside embeddings."""
        return concatenate_inputs([obs, action])

    def pick(self, raw: Float[Array, "*b m"], action: Array) -> Float[Array, "*b n"]:
        """Return the n outputs that belong to the action; by default all that the layers compute."""
        return raw
