"""Networks conditioned on a list of earlier proposals (SAVO, arXiv 2410.11833, Section 5 and Appendix F).

A summariser encodes the list a_0 .. a_{i-1} at a state as one vector z. z scales and shifts every hidden
layer of the network (FiLM), or joins its input, or both. A network is built for one length of list, so that
nothing is masked.

The released code takes the greatest of each feature over the list instead of the mean, and modulates behind
the activation, γ(z) ReLU(W x + b) + β(z) with orthogonal weights, which is nowhere near the identity at the
start.
"""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import dense
from qscape.nets.mlp import MLP, Actor, Conditioning, Critic, Torso
from qscape.nets.orthogonal import orthogonal_linear
from qscape.types import Key

HEADS = 4  # of the transformer's attention


class DeepSet(eqx.Module):
    """ρ(mean_j φ(x_j)), φ and ρ with one hidden layer each (Zaheer et al. 2017), or the maximum over j."""

    element: MLP
    final: MLP
    takes_maximum: bool = eqx.field(static=True)

    def __init__(
        self, key: Key, size: int, width: int = 64, hidden: int | None = None, takes_maximum: bool = False
    ) -> None:
        """Make the encoder of elements [f]; `hidden`: width of everything but the result, None: as that."""
        k_element, k_final = jax.random.split(key)
        hidden = hidden or width
        self.element = MLP(k_element, (size, hidden, hidden), "relu")
        self.final = MLP(k_final, (hidden, hidden, width), "relu")
        self.takes_maximum = takes_maximum

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        elements = self.element(x)
        return self.final(elements.max(-2) if self.takes_maximum else elements.mean(-2))


class LSTM(eqx.Module):
    """φ, two bidirectional LSTM layers along the list, the mean over places and directions, ρ."""

    element: MLP
    cells: list[tuple[eqx.nn.LSTMCell, eqx.nn.LSTMCell]]  # a layer: forwards, backwards
    final: MLP

    def __init__(self, key: Key, size: int, width: int = 64) -> None:
        k_element, k_final, *keys = jax.random.split(key, 6)
        self.element = MLP(k_element, (size, width, width), "relu")
        sizes = (width, width, 2 * width, 2 * width)
        cells = [eqx.nn.LSTMCell(i, width, key=k) for i, k in zip(sizes, keys, strict=True)]
        self.cells = [(cells[0], cells[1]), (cells[2], cells[3])]
        self.final = MLP(k_final, (width, width, width), "relu")

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        elements = self.element(x)
        flat = elements.reshape(-1, *elements.shape[-2:])
        places = [flat[:, j] for j in range(flat.shape[1])]
        ahead, back = places, places
        for forwards, backwards in self.cells:
            ahead, back = _run_lstm(forwards, places), _run_lstm(backwards, places[::-1])[::-1]
            places = [jnp.concatenate(both, -1) for both in zip(ahead, back, strict=True)]
        mean = jnp.stack(ahead + back).mean(0)
        return self.final(mean.reshape(*elements.shape[:-2], elements.shape[-1]))


def _run_lstm(cell: eqx.nn.LSTMCell, places: list[Array]) -> list[Array]:
    """Return the hidden states [n, w] of one direction; unrolled, as lists are short."""
    blank = jnp.zeros((places[0].shape[0], cell.hidden_size))
    carry, hidden_states = (blank, blank), []
    for x in places:
        carry = jax.vmap(cell)(x, carry)
        hidden_states.append(carry[0])
    return hidden_states


class Transformer(eqx.Module):
    """φ, one encoder block (pre-norm, without positional encoding), the mean over the list, ρ."""

    element: MLP
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.Linear  # query, key and value
    joined: eqx.nn.Linear
    forward: MLP
    final: MLP

    def __init__(self, key: Key, size: int, width: int = 64) -> None:
        k_element, k_attention, k_joined, k_forward, k_final = jax.random.split(key, 5)
        self.element = MLP(k_element, (size, width, width), "relu")
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        self.attention = eqx.nn.Linear(width, 3 * width, key=k_attention)
        self.joined = eqx.nn.Linear(width, width, key=k_joined)
        self.forward = MLP(k_forward, (width, 2 * width, width), "relu")
        self.final = MLP(k_final, (width, width, width), "relu")

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        h = self.element(x)
        flat = h.reshape(-1, *h.shape[-2:])
        first, second = (jax.vmap(jax.vmap(norm)) for norm in self.norms)
        split = dense(self.attention, first(flat)).reshape(*flat.shape[:2], 3, HEADS, h.shape[-1] // HEADS)
        attended = jax.nn.dot_product_attention(*(split[:, :, j] for j in range(3)))
        flat = flat + dense(self.joined, attended.reshape(flat.shape))
        flat = flat + self.forward(second(flat))
        return self.final(flat.mean(1).reshape(*h.shape[:-2], h.shape[-1]))


Summariser: TypeAlias = DeepSet | LSTM | Transformer
SUMMARISERS: dict[str, Callable[..., Summariser]] = {
    "deepset": DeepSet,
    "lstm": LSTM,
    "transformer": Transformer,
}


class Conditioned(eqx.Module):
    """An actor or critic that is conditioned on earlier proposals.

    Attributes:
        net: the actor or critic.
        summary: encodes the list; None without conditioning, or if another network's is shared.
        film: a layer for each hidden layer of `net`, to its scales and shifts; None without FiLM.
        joins: whether the summary joins the input of the torso.
        follows: whether FiLM comes behind the activations, as in the released code.
    """

    net: Actor | Critic
    summary: Summariser | None
    film: list[eqx.nn.Linear] | None
    joins: bool = eqx.field(static=True)
    follows: bool = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        build: Callable[..., Actor | Critic],
        sizes: tuple[int, int],
        summariser: str,
        conditioning: str,
        width: int = 64,
        film_start: float = 0.1,
        released: bool = False,
        hidden: int | None = None,
    ) -> None:
        """Make the network and its list encoder.

        Args:
            build: `build(key, conditioning=n)` makes the actor or critic, with n further inputs.
            sizes: of observation and action.
            summariser: "deepset", "lstm" or "transformer".
            conditioning: "film", "concat", "both" or "none".
            width: of the summary.
            film_start: factor of the initial weights of FiLM's layers; 0: they start as the identity.
            released: FiLM and the maximum over the list, as in the released code.
            hidden: hidden width of a DeepSet; None: `width`.
        """
        k_net, k_summary, k_film = jax.random.split(key, 3)
        self.joins, self.follows = conditioning in ("concat", "both"), released
        self.net = build(k_net, conditioning=width if self.joins else 0)
        self.summary = None
        if conditioning != "none":
            options = (hidden, released) if summariser == "deepset" else ()
            self.summary = SUMMARISERS[summariser](k_summary, sum(sizes), width, *options)
        self.film = None
        if conditioning in ("film", "both"):
            torso = self.net.torso if isinstance(self.net, Actor) else self.net.body.torso
            assert isinstance(torso, Torso)
            keys = jax.random.split(k_film, len(torso.layers))
            widths = [len(layer.weight) for layer in torso.layers]
            start = None if released else film_start
            self.film = [_make_film(k, width, n, start) for k, n in zip(keys, widths, strict=True)]

    def conditioning(
        self, obs: Float[Array, "*b S"], earlier: Float[Array, "i *b A"], shared: Summariser | None = None
    ) -> Conditioning | None:
        """Encode the earlier proposals as the conditioning of `net`; None without conditioning.

        Args:
            shared: the list encoder of a network that has none of its own.
        """
        summary = shared if self.summary is None else self.summary
        if summary is None:
            return None
        obs = jnp.broadcast_to(obs, (*earlier.shape[:-1], obs.shape[-1]))
        z = summary(jnp.moveaxis(jnp.concatenate([earlier, obs], -1), 0, -2))
        film = (
            None if self.film is None else [_split_scales_and_shifts(dense(layer, z)) for layer in self.film]
        )
        return Conditioning(z if self.joins else None, film, self.follows)


def _split_scales_and_shifts(x: Float[Array, "*b n"]) -> tuple[Array, Array]:
    """Split a FiLM layer's output into scales and shifts."""
    scales, shifts = jnp.split(x, 2, -1)
    return scales, shifts


def _make_film(key: Key, width: int, hidden: int, start: float | None) -> eqx.nn.Linear:
    """Make the layer from a summary to scales and shifts, with zero bias and weights `start` times as large
    as usual, so that it starts near the identity; None: two orthogonal matrices with gain √2."""
    if start is None:
        halves = [orthogonal_linear(k, width, hidden, 2.0**0.5) for k in jax.random.split(key)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)
    layer = eqx.nn.Linear(width, 2 * hidden, key=key)
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (start * layer.weight, jnp.zeros(2 * hidden)))
