"""Networks conditioned on a list of earlier proposals (SAVO, arXiv 2410.11833, Section 5 and Appendix F).

A summariser encodes the list a_0 .. a_{i-1} at a state as one vector z. z scales and shifts every hidden
layer of the network (FiLM), or joins its input, or both. A network is built for one length of list, so that
nothing is masked.
"""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.nets.layers import dense
from qscape.nets.mlp import MLP, Actor, Conditioning, Critic, Torso
from qscape.types import Key

WIDTH = 64  # of a summary
HEADS = 4  # of the transformer's attention


class DeepSet(eqx.Module):
    """ρ(mean_j φ(x_j)), φ and ρ with one hidden layer each (Zaheer et al. 2017)."""

    element: MLP
    final: MLP

    def __init__(self, key: Key, size: int) -> None:
        k_element, k_final = jax.random.split(key)
        self.element = MLP(k_element, (size, WIDTH, WIDTH), "relu")
        self.final = MLP(k_final, (WIDTH, WIDTH, WIDTH), "relu")

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        return self.final(self.element(x).mean(-2))


class LSTM(eqx.Module):
    """φ, two bidirectional LSTM layers along the list, the mean over places and directions, ρ."""

    element: MLP
    cells: list[tuple[eqx.nn.LSTMCell, eqx.nn.LSTMCell]]  # a layer: forwards, backwards
    final: MLP

    def __init__(self, key: Key, size: int) -> None:
        k_element, k_final, *keys = jax.random.split(key, 6)
        self.element = MLP(k_element, (size, WIDTH, WIDTH), "relu")
        sizes = (WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH)
        cells = [eqx.nn.LSTMCell(i, WIDTH, key=k) for i, k in zip(sizes, keys, strict=True)]
        self.cells = [(cells[0], cells[1]), (cells[2], cells[3])]
        self.final = MLP(k_final, (WIDTH, WIDTH, WIDTH), "relu")

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        elements = self.element(x)
        flat = elements.reshape(-1, *elements.shape[-2:])
        places = [flat[:, j] for j in range(flat.shape[1])]
        ahead, back = places, places
        for forwards, backwards in self.cells:
            ahead, back = _run_lstm(forwards, places), _run_lstm(backwards, places[::-1])[::-1]
            places = [jnp.concatenate(both, -1) for both in zip(ahead, back, strict=True)]
        mean = jnp.stack(ahead + back).mean(0)
        return self.final(mean.reshape(*elements.shape[:-2], WIDTH))


def _run_lstm(cell: eqx.nn.LSTMCell, places: list[Array]) -> list[Array]:
    """Returns the hidden states [n, WIDTH] of one direction; unrolled, as lists are short."""
    blank = jnp.zeros((places[0].shape[0], WIDTH))
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

    def __init__(self, key: Key, size: int) -> None:
        k_element, k_attention, k_joined, k_forward, k_final = jax.random.split(key, 5)
        self.element = MLP(k_element, (size, WIDTH, WIDTH), "relu")
        self.norms = (eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH))
        self.attention = eqx.nn.Linear(WIDTH, 3 * WIDTH, key=k_attention)
        self.joined = eqx.nn.Linear(WIDTH, WIDTH, key=k_joined)
        self.forward = MLP(k_forward, (WIDTH, 2 * WIDTH, WIDTH), "relu")
        self.final = MLP(k_final, (WIDTH, WIDTH, WIDTH), "relu")

    def __call__(self, x: Float[Array, "*b i f"]) -> Float[Array, "*b w"]:
        h = self.element(x)
        flat = h.reshape(-1, *h.shape[-2:])
        first, second = (jax.vmap(jax.vmap(norm)) for norm in self.norms)
        split = dense(self.attention, first(flat)).reshape(*flat.shape[:2], 3, HEADS, WIDTH // HEADS)
        attended = jax.nn.dot_product_attention(*(split[:, :, j] for j in range(3)))
        flat = flat + dense(self.joined, attended.reshape(flat.shape))
        flat = flat + self.forward(second(flat))
        return self.final(flat.mean(1).reshape(*h.shape[:-2], WIDTH))


Summariser: TypeAlias = DeepSet | LSTM | Transformer
SUMMARISERS: dict[str, Callable[[Key, int], Summariser]] = {
    "deepset": DeepSet,
    "lstm": LSTM,
    "transformer": Transformer,
}


class Conditioned(eqx.Module):
    """An actor or critic that is conditioned on earlier proposals.

    Attributes:
        net: the actor or critic.
        summary: encodes the list; None without conditioning.
        film: a layer for each hidden layer of `net`, to its scales and shifts; None without FiLM.
        joins: whether the summary joins the input of the torso.
    """

    net: Actor | Critic
    summary: Summariser | None
    film: list[eqx.nn.Linear] | None
    joins: bool = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        build: Callable[..., Actor | Critic],
        sizes: tuple[int, int],
        summariser: str,
        conditioning: str,
    ) -> None:
        """Makes the network and its list encoder.

        Args:
            build: `build(key, conditioning=width)` makes the actor or critic.
            sizes: of observation and action.
            summariser: "deepset", "lstm" or "transformer".
            conditioning: "film", "concat", "both" or "none".
        """
        k_net, k_summary, k_film = jax.random.split(key, 3)
        self.joins = conditioning in ("concat", "both")
        self.net = build(k_net, conditioning=WIDTH if self.joins else 0)
        self.summary = None if conditioning == "none" else SUMMARISERS[summariser](k_summary, sum(sizes))
        self.film = None
        if conditioning in ("film", "both"):
            torso = self.net.torso if isinstance(self.net, Actor) else self.net.body.torso
            assert isinstance(torso, Torso)
            keys = jax.random.split(k_film, len(torso.layers))
            widths = [len(layer.weight) for layer in torso.layers]
            self.film = [_make_film(k, width) for k, width in zip(keys, widths, strict=True)]

    def conditioning(self, obs: Float[Array, "*b S"], earlier: Float[Array, "i *b A"]) -> Conditioning | None:
        """Encodes the earlier proposals as the conditioning of `net`; None without conditioning."""
        if self.summary is None:
            return None
        obs = jnp.broadcast_to(obs, (*earlier.shape[:-1], obs.shape[-1]))
        z = self.summary(jnp.moveaxis(jnp.concatenate([earlier, obs], -1), 0, -2))
        film = (
            None if self.film is None else [_split_scales_and_shifts(dense(layer, z)) for layer in self.film]
        )
        return Conditioning(z if self.joins else None, film)


def _split_scales_and_shifts(x: Float[Array, "*b n"]) -> tuple[Array, Array]:
    """Splits a FiLM layer's output into scales and shifts."""
    scales, shifts = jnp.split(x, 2, -1)
    return scales, shifts


def _make_film(key: Key, width: int) -> eqx.nn.Linear:
    """Makes the layer to scales and shifts; it starts near the identity (weights × 0.1, zero bias)."""
    layer = eqx.nn.Linear(WIDTH, 2 * width, key=key)
    start = 0.1 * layer.weight, jnp.zeros(2 * width)
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, start)
