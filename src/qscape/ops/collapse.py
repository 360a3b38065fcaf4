"""Metrics of action collapse: how close features and action layer are to a simplex ETF.

Computed in float64 on the host. Inputs are the features h_i (the action layer's input), the optimal or greedy
action y_i of each state, and the action layer W. n_k is the number of states with action k, K' the number of
actions with n_k > 0, h̄_k the class means, h̃_k = h̄_k - h_G the centred ones. Metrics 1-3 follow "Imitate
Optimal Policy" (arXiv 2509.02737), 4-6 neural collapse (Papyan, Han, Donoho 2020), 7 the paper's Theorem 1.
At complete collapse, metrics 1-5 are 0, and 6 and 7 are 1.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RANK_FLOOR = 1e-6  # singular values of the class means below this share of the largest count as 0
ZERO = 1e-12  # lengths below this have no direction


class Collapse(NamedTuple):
    """The metrics: 1 equinorm, 2 equiangularity, 3 max-angle, 4 within-action variation, 5 self-duality, 6
    nearest-mean agreement, 7 alignment. NaN if a metric is not defined. `_h` is of the class means, `_w` of
    W.

    Attributes:
        max_angle_h_uncentred: metric 3 of uncentred means against -1/(K - 1); comparable if actions are
            missing.
        classes: K'.
        least_count: the least n_k > 0; if it is 1, the variation means nothing.
        zero_means: number of centred means of length 0, which 2 and 3 leave out.
    """

    equinorm_h: float
    equinorm_w: float
    equiangularity_h: float
    equiangularity_w: float
    max_angle_h: float
    max_angle_w: float
    within_variation: float
    self_duality: float
    nearest_mean_agreement: float
    alignment: float
    max_angle_h_uncentred: float
    classes: int
    least_count: int
    zero_means: int


def action_collapse(
    h: Float[np.ndarray, "N d"],
    y: Int[np.ndarray, " N"],
    w: Float[np.ndarray, "K d"],
    centre: Literal["classes", "samples"] = "classes",
    valid: Bool[np.ndarray, "N K"] | None = None,
) -> Collapse:
    """Compute all metrics of action collapse.

    Args:
        h, y, w: features, actions and the action layer.
        centre: h_G is the mean of the class means, or the mean of all samples. The latter is the paper's;
            with it, an exactly collapsed but unbalanced set does not score 0.
        valid: the actions that metric 6 chooses from in each state; None: all.

    Raises:
        ValueError: there are no samples.
    """
    h, w, y = np.asarray(h, np.float64), np.asarray(w, np.float64), np.asarray(y)
    if not len(h):
        raise ValueError("action collapse is measured on at least one state")
    counts = np.bincount(y, minlength=len(w))
    present = np.flatnonzero(counts)
    means = np.stack([h[y == k].mean(0) for k in present])
    m = means - (means.mean(0) if centre == "classes" else h.mean(0))
    is_single = len(present) == 1
    angles_h, angles_w, angles_raw = cosines(m), cosines(w), cosines(means)
    nan = float("nan")
    return Collapse(
        equinorm_h=nan if is_single else equinorm(m),
        equinorm_w=equinorm(w),
        equiangularity_h=nan if is_single else equiangularity(angles_h),
        equiangularity_w=equiangularity(angles_w),
        max_angle_h=nan if is_single else max_angle(angles_h, len(present)),
        max_angle_w=max_angle(angles_w, len(w)),
        within_variation=nan if is_single else within_variation(h - means[np.searchsorted(present, y)], m),
        self_duality=nan if is_single else self_duality(w[present], m),
        nearest_mean_agreement=nearest_mean_agreement(h, w, means, present, valid),
        alignment=alignment(h, w[y]),
        max_angle_h_uncentred=nan if is_single else max_angle(angles_raw, len(w)),
        classes=len(present),
        least_count=int(counts[present].min()),
        zero_means=int((np.linalg.norm(m, axis=1) < ZERO).sum()),
    )


def cosines(x: Float[np.ndarray, "K d"]) -> Float[np.ndarray, " pairs"]:
    """Return cosines of all pairs k < k'; NaN if one of the two vectors has length 0."""
    lengths = np.linalg.norm(x, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(lengths[:, None] < ZERO, np.nan, x / lengths[:, None])
    return (unit @ unit.T)[np.triu_indices(len(x), 1)]


def equinorm(x: Float[np.ndarray, "K d"]) -> float:
    """Return measure 1: Std_k ‖x_k‖ / Avg_k ‖x_k‖."""
    lengths = np.linalg.norm(x, axis=1)
    return float(lengths.std() / lengths.mean()) if lengths.mean() > ZERO else float("nan")


def equiangularity(angles: Float[np.ndarray, " pairs"]) -> float:
    """Return measure 2: standard deviation of the cosines over pairs."""
    return float(np.nanstd(angles)) if np.isfinite(angles).any() else float("nan")


def max_angle(angles: Float[np.ndarray, " pairs"], count: int) -> float:
    """Return measure 3: Avg over pairs of |cos + 1 / (K* - 1)|, the distance from the angle of a simplex of
    K* = `count`.
    """
    if not np.isfinite(angles).any():  # also of a single vector, which has no simplex
        return float("nan")
    return float(np.nanmean(np.abs(angles + 1.0 / (count - 1.0))))


def within_variation(residual: Float[np.ndarray, "N d"], m: Float[np.ndarray, "K d"]) -> float:
    """Return measure 4: Tr(Σ_W Σ_B†) / K' = (1/N) Σ_i ‖(M†)ᵀ (h_i - h̄_{y_i})‖², computed without a d × d
    matrix.
    """
    _, s, vt = np.linalg.svd(m, full_matrices=False)
    keep = s > RANK_FLOOR * s.max() if s.max() > ZERO else np.zeros(len(s), bool)
    if not keep.any():
        return float("nan")
    return float(np.square(residual @ vt[keep].T / s[keep]).sum(-1).mean())


def self_duality(w: Float[np.ndarray, "K d"], m: Float[np.ndarray, "K d"]) -> float:
    """Return measure 5: ‖ W̃ / ‖W̃‖_F - M / ‖M‖_F ‖_F², where W̃ are the rows of W minus their mean."""
    w = w - w.mean(0)
    sizes = np.linalg.norm(w), np.linalg.norm(m)
    return float(np.square(w / sizes[0] - m / sizes[1]).sum()) if min(sizes) > ZERO else float("nan")


def nearest_mean_agreement(
    h: Float[np.ndarray, "N d"],
    w: Float[np.ndarray, "K d"],
    means: Float[np.ndarray, "S d"],
    present: Int[np.ndarray, " S"],
    valid: Bool[np.ndarray, "N K"] | None = None,
) -> float:
    """Return measure 6: share of states where the valid argmax_k ⟨w_k, h⟩ is the action of the nearest class
    mean.
    """
    distance = np.square(means).sum(-1) - 2.0 * h @ means.T  # minus ‖h‖², which does not depend on k
    logits = h @ w.T
    if valid is not None:
        distance = np.where(valid[:, present], distance, np.inf)
        logits = np.where(valid, logits, -np.inf)
    return float((present[distance.argmin(1)] == logits.argmax(1)).mean())


def alignment(h: Float[np.ndarray, "N d"], w: Float[np.ndarray, "N d"]) -> float:
    """Return measure 7: mean of cos(h_i, w_{y_i}) over features of positive length."""
    lengths = np.linalg.norm(h, axis=1) * np.linalg.norm(w, axis=1)
    seen = np.linalg.norm(h, axis=1) >= ZERO
    return float(((h * w).sum(-1)[seen] / lengths[seen]).mean()) if seen.any() else float("nan")
