"""The swap estimator of the policy gradient for factored discrete actions (CARSM).

Yue, Tang, Yin, Zhou 2020, "Discrete Action On-Policy Learning with Action-Value Critic", arXiv 2002.03534.
With logits φ [K, C] and noise ϖ_k ~ Dirichlet(1) an action is a_k = argmin_c (ln ϖ_kc - φ_kc), which is a
sample of softmax(φ_k). Swapping two entries c and j of the noise of every factor gives the action a^{c⇌j}.

Factors may have different numbers of values C_k ≤ C. `valid` [K, C] tells which values exist; a swap of
values that a factor does not have leaves its noise as it is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qscape.types import Key


def pairs_of(values: int) -> Int[np.ndarray, "P 2"]:
    """All pairs (c, j) with c < j of C values; P = C (C - 1) / 2."""
    return np.stack(np.triu_indices(values, 1), -1)


def draw_noise(
    key: Key, logits: Float[Array, "*b K C"], action: Int[Array, "*b K"], valid: Bool[np.ndarray, "K C"]
) -> Float[Array, "*b K C"]:
    """The noise ϖ that led to an action, drawn from its distribution given the action; 0 where not valid.

    With λ = softmax(φ), the least of independent times T_c ~ Exp(λ_c) is that of the action, at m ~ Exp(1),
    and the others are m + Exp(λ_c). Then λ_c T_c are independent Exp(1), and their shares are ϖ.
    """
    rates = jax.nn.softmax(jnp.where(valid, logits, -jnp.inf), -1)
    k_first, k_rest = jax.random.split(key)
    first = jax.random.exponential(k_first, (*action.shape, 1))
    rest = jax.random.exponential(k_rest, logits.shape)
    taken = jax.nn.one_hot(action, logits.shape[-1], dtype=bool)
    times = jnp.where(valid, rates * first + jnp.where(taken, 0.0, rest), 0.0)
    return times / times.sum(-1, keepdims=True)


def swapped_actions(
    noise: Float[Array, "*b K C"], logits: Float[Array, "*b K C"], valid: Bool[np.ndarray, "K C"]
) -> Int[Array, "P *b K"]:
    """The actions a^{c⇌j} of all pairs (c, j) of `pairs_of`."""
    factors, values = valid.shape
    pairs = pairs_of(values)
    order = np.tile(np.arange(values), (len(pairs), factors, 1))
    for row, (c, j) in zip(order, pairs, strict=True):
        both = valid[:, c] & valid[:, j]
        row[both, c], row[both, j] = j, c
    order = order.reshape(len(pairs), *(1,) * (noise.ndim - 2), factors, values)
    swapped = jnp.take_along_axis(noise[None], jnp.asarray(order), -1)
    return jnp.where(valid, jnp.log(swapped) - logits, jnp.inf).argmin(-1)


def swap_gradient(
    noise: Float[Array, "*b K C"],
    action: Int[Array, "*b K"],
    swapped: Int[Array, "P *b K"],
    value: Float[Array, "*b"],
    swapped_values: Float[Array, "P *b"],
    valid: Bool[np.ndarray, "K C"],
) -> Float[Array, "*b K C"]:
    """An unbiased estimate of ∂ E_a[Q(s, a)] / ∂ φ (Yue et al. 2020).

    F_cj = Q(s, a^{c⇌j}), F̄_j = (1 / C) Σ_c F_cj, g_kc = Σ_j (F_cj - F̄_j) (1 / C - ϖ_kj)

    Sums run over the values of the factor. A factor whose entry of the action is the same in all swaps has
    g_k = 0, which is its mean there.

    Args:
        noise: ϖ.
        action: the action that was taken.
        swapped: of `swapped_actions`.
        value: the return of the action that was taken. It stands for Q wherever a swap leaves the action as
            it is, on the diagonal of F above all.
        swapped_values: Q(s, a^{c⇌j}) of all pairs.
        valid: which values exist.
    """
    values = valid.shape[1]
    moved = swapped != action
    each = jnp.where(moved.any(-1), swapped_values, value)
    c, j = pairs_of(values).T
    table = jnp.broadcast_to(value[..., None, None], (*value.shape, values, values))
    each = jnp.moveaxis(each, 0, -1)
    table = table.at[..., c, j].set(each).at[..., j, c].set(each)
    exists = jnp.asarray(valid, jnp.float32)
    count = exists.sum(-1)
    mean = jnp.einsum("...cj,kc->...kj", table, exists) / count[:, None]
    weight = exists * (1.0 / count[:, None] - noise)
    gradient = jnp.einsum("...cj,...kj->...kc", table, weight) - (mean * weight).sum(-1, keepdims=True)
    return jnp.where(moved.any(0)[..., None], exists * gradient, 0.0)
