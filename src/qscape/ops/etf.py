"""Fixed action layers, drawn in float64 on the host. Each row belongs to an action.

The rows of a simplex equiangular tight frame (ETF) have equal lengths, and the cosine of any two is -1/(K -
1), the least that all pairs of K vectors can have at once.
"""

import numpy as np
from jaxtyping import Float


def helmert(actions: int) -> Float[np.ndarray, "K K-1"]:
    """Return the Helmert basis: orthonormal columns that span the orthogonal complement of the all-ones
    vector.
    """
    basis = np.zeros((actions, actions - 1))
    for j in range(1, actions):
        basis[:j, j - 1] = 1.0 / np.sqrt(j * (j + 1.0))
        basis[j, j - 1] = -j / np.sqrt(j * (j + 1.0))
    return basis


def haar_frame(rng: np.random.Generator, width: int, count: int) -> Float[np.ndarray, "d n"]:
    """Return `count` orthonormal columns in R^width, uniformly distributed (Haar):
    QR with signs of diag(R).
    """
    q, r = np.linalg.qr(rng.standard_normal((width, count)))
    return q * np.sign(np.diag(r))


def simplex_etf(
    actions: int, frame: Float[np.ndarray, "d K-1"], energy: float = 1.0
) -> Float[np.ndarray, "K d"]:
    """Return W = √E_W √(K / (K - 1)) V Pᵀ with V the Helmert basis and P = `frame` orthonormal (ACPG, Section
    3).

    Then ‖w_k‖² = E_W, cos(w_i, w_j) = -1/(K - 1) and Σ_k w_k = 0. It needs d ≥ K - 1. `energy` is E_W.
    """
    return np.sqrt(energy * actions / (actions - 1.0)) * helmert(actions) @ frame.T


def is_simplex_etf(w: Float[np.ndarray, "K d"], energy: float, tolerance: float = 1e-4) -> bool:
    """Return whether W Wᵀ is the Gram matrix of a simplex ETF with ‖w_k‖² = `energy`, within `tolerance` ·
    energy.
    """
    k = len(w)
    gram = np.asarray(w, np.float64) @ np.asarray(w, np.float64).T
    wanted = energy * (k * np.eye(k) - 1.0) / (k - 1.0)
    return bool(np.abs(gram - wanted).max() <= tolerance * energy)


def gaussian_rows(
    rng: np.random.Generator, actions: int, width: int, energy: float
) -> Float[np.ndarray, "K d"]:
    """Return standard normal rows, each scaled to squared length `energy`."""
    rows = rng.standard_normal((actions, width))
    return np.sqrt(energy) * rows / np.linalg.norm(rows, axis=1, keepdims=True)
