"""Which of N discrete actions are valid in a state, packed into numbers that travel with the observation.

An observation of a masked task is a row [S + M]: S entries that networks see, and M words that say which
actions are valid. So replay, next observations, resets, saves and compiled loops carry the mask without
knowing of it. `Spec.visible` and `Spec.mask_words` take a row apart.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

BITS = 24  # in one word: float32 holds every whole number below 2^24


@dataclasses.dataclass(frozen=True)
class ActionMask:
    """How the valid ones of N actions are packed; hashable, so that it is static under jit.

    Without `candidates` a word holds the bits of `bits` actions as a whole number. With them, words are the
    indices of at most K valid actions in ascending order, and the last one is repeated up to K.

    Attributes:
        actions: N: rows of the action table, or logits of an on-policy head.
        candidates: K, the most actions that are valid in one state; None: any number.
        bits: actions in one word; 8 for words that are bytes, 1 in exported policies.
        factors: N_k of each factor of a product of sets, whose masks follow one another; N is their sum, and
            every factor needs a valid value. (): actions are one set.
    """

    actions: int
    candidates: int | None = None
    bits: int = BITS
    factors: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """M, the number of words."""
        return self.candidates or -(-self.actions // self.bits)

    @property
    def unpacked(self) -> "ActionMask":
        """The same mask with a word for each action, 0 or 1."""
        return ActionMask(self.actions, bits=1, factors=self.factors)

    def pack(self, valid: Bool[Any, "*b N"]) -> Float[Any, "*b M"]:
        """Pack masks; works on NumPy and JAX arrays.

        Of more than K valid actions the first K are kept. A mask without any valid action (of some factor)
        becomes NaN, at which a run stops with a sentence.
        """
        xp = jnp if isinstance(valid, jax.Array) else np
        if self.candidates is not None:
            return self.pack_rows(xp.where(valid, xp.arange(self.actions), -1))
        valid = xp.asarray(valid, bool)
        rest = self.width * self.bits - self.actions
        padded = xp.pad(valid, [(0, 0)] * (valid.ndim - 1) + [(0, rest)])
        split = padded.reshape(*valid.shape[:-1], self.width, self.bits)
        # Every partial sum is a whole number below 2^24, so the sum is exact in any order.
        words = xp.where(split, 2.0 ** xp.arange(self.bits), 0.0).sum(-1).astype(xp.float32)
        ends = np.cumsum(self.factors or (self.actions,))
        each = [part.any(-1, keepdims=True) for part in xp.split(valid, ends[:-1], axis=-1)]
        return xp.where(xp.concatenate(each, -1).all(-1, keepdims=True), words, xp.float32(np.nan))

    def split(self, valid: Bool[Array, "*b N"]) -> Bool[Array, "*b K C"]:
        """Return the masks of all factors, filled up with false to the largest number of values C."""
        ends, value = np.cumsum(self.factors), np.arange(max(self.factors))
        held = value < np.array(self.factors)[:, None]
        return jnp.take(valid, np.where(held, (ends - self.factors)[:, None] + value, 0), axis=-1) & held

    def pack_rows(self, rows: Int[Any, "*b k"]) -> Float[Any, "*b M"]:
        """Pack valid actions that are given by their indices; works on NumPy and JAX arrays.

        Negative indices stand for nothing, and an index may be given twice. Otherwise as `pack`.
        """
        xp = jnp if isinstance(rows, jax.Array) else np
        rows = xp.asarray(rows)
        if self.candidates is None:
            held = xp.where(rows < 0, self.actions, rows)[..., None] == xp.arange(self.actions)
            return self.pack(held.any(-2))
        sorted_rows = xp.sort(xp.where(rows < 0, self.actions, rows), -1)
        again = xp.diff(sorted_rows, axis=-1, prepend=-1) == 0
        sorted_rows = xp.sort(xp.where(again, self.actions, sorted_rows), -1)[..., : self.candidates]
        is_row = sorted_rows < self.actions
        last = xp.where(is_row, sorted_rows, -1).max(-1, keepdims=True)
        filled = xp.where(is_row, sorted_rows, last)
        rest = self.candidates - filled.shape[-1]
        filled = xp.concatenate([filled, xp.repeat(last, rest, -1)], -1).astype(xp.float32)
        return xp.where(last >= 0, filled, xp.float32(np.nan))

    def members(self, words: Float[Array, "*b M"]) -> tuple[Int[Array, "*b n"], Bool[Array, "*b n"]]:
        """Return indices of actions, ascending, and which of them are valid; no valid one occurs twice.

        n is K with `candidates` and N without.
        """
        if self.candidates is None:
            valid = self.unpack(words)
            return jnp.broadcast_to(jnp.arange(self.actions), valid.shape), valid
        rows = words.astype(jnp.int32)
        return rows, jnp.concatenate(
            [jnp.full_like(rows[..., :1], True, bool), rows[..., 1:] != rows[..., :-1]], -1
        )

    def unpack(self, words: Float[Array, "*b M"]) -> Bool[Array, "*b N"]:
        """Return whether each action is valid."""
        if self.candidates is not None:
            return (words.astype(jnp.int32)[..., None] == jnp.arange(self.actions)).any(-2)
        if self.bits == 1:
            return words > 0
        bits = words.astype(jnp.int32)[..., None] >> jnp.arange(self.bits)
        return (bits & 1).astype(bool).reshape(*words.shape[:-1], -1)[..., : self.actions]

    def at(self, words: Float[Array, "*b M"], index: Int[Array, " n"]) -> Bool[Array, "*b n"]:
        """Return whether the actions `index` are valid, by their bits; indices from N on are not."""
        if self.bits == 1:
            return (jnp.take(words, index, axis=-1, mode="clip") > 0) & (index < self.actions)
        word = jnp.take(words, index // self.bits, axis=-1, mode="clip").astype(jnp.int32)
        return ((word >> (index % self.bits) & 1) > 0) & (index < self.actions)

    def sample(self, words: Float[Array, "*b M"], key: Key[Array, ""]) -> Int[Array, "*b K"]:
        """Draw a valid action for each state, all with the same probability; K is 1 without factors."""
        if self.factors:
            valid = self.split(self.unpack(words))
            index = jnp.broadcast_to(jnp.arange(valid.shape[-1]), valid.shape)
        else:
            index, valid = (x[..., None, :] for x in self.members(words))
        nth = jax.random.randint(key, valid.shape[:-1], 0, valid.sum(-1))
        place = (valid.cumsum(-1) > nth[..., None]).argmax(-1)
        return jnp.take_along_axis(index, place[..., None], -1)[..., 0]
