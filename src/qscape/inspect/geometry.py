"""Second-order geometry of Q along rollouts: does its gradient field make a policy smooth?

Where a*(s) maximises Q inside the box, ∂a*/∂s = -H_aa⁻¹ H_sa, with H_aa = ∂²Q/∂a² and H_sa = ∂²Q/∂a∂s. A
large mixed partial and a flat Q therefore make the policy jump (Lee et al., arXiv 2601.22970, Lemma 1,
Proposition 2). Measured with exact second derivatives of critic 1 at every (s_t, a_t) of deterministic
rollouts, in raw observation units.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import UnfitAgent
from qscape.inspect.trained_agent import TrainedAgent, critic_values, require_distances, to_env_units
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import ActingState
from qscape.run.evaluation import Rollout
from qscape.run.probes import PolicyEvaluation

CHUNK = 512  # points in one call of the compiled program
DELTA = 1.0  # the curvature that PAVE asks for, and the paper's threshold of `trace_concave`


class SecondOrder(NamedTuple):
    """Gradient and second derivatives of Q at N points."""

    gradient: Float[Array, "N A"]  # g = ∇_a Q
    mixed_norm: Float[Array, " N"]  # ‖H_sa‖₂, its largest singular value
    lambda_max: Float[Array, " N"]  # of (H_aa + H_aaᵀ) / 2
    lambda_min: Float[Array, " N"]
    trace: Float[Array, " N"]  # of H_aa


def evaluate_point(
    agent: Agent, acting: ActingState, obs: Float[Array, " S"], action: Float[Array, " A"]
) -> SecondOrder:
    """Compute gradient and Hessians of Q at one point, by reverse passes through the gradient (one per A)."""

    def gradient(s: Array, a: Array) -> tuple[Array, Array]:
        g = jax.grad(lambda x: critic_values(agent, acting, s[None], x[None])[0][0])(a)
        return g, g

    (h_sa, h_aa), g = jax.jacrev(gradient, (0, 1), has_aux=True)(obs, action)
    eigenvalues = jnp.linalg.eigvalsh((h_aa + h_aa.T) / 2)
    # The largest singular value from the A × A Gram matrix: a fraction of the cost of an SVD.
    norm = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(h_sa @ h_sa.T)[-1], 0.0))
    return SecondOrder(g, norm, eigenvalues[-1], eigenvalues[0], jnp.trace(h_aa))


class GeometryProbe:
    """The geometry of one agent's Q, compiled once; also the probe `geometry` of every evaluation."""

    columns = ("mixed_norm_sup", "negative_definite", "gradient_flips")

    def __init__(self, agent: Any) -> None:
        """Raise UsageError: the agent learns no Q, or the actions are indices of a discrete set."""
        if not isinstance(agent, Agent):
            raise UnfitAgent(f"{agent.recipe} has no Q(s, a), which the geometry along rollouts needs.")
        require_distances(agent)
        self.agent = agent
        self.program = jax.jit(jax.vmap(partial(evaluate_point, agent), (None, 0, 0)))

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, float]:
        metrics = self.measure(evaluation.acting, evaluation.rollouts)
        return {name: metrics[name] for name in self.columns}

    def measure(
        self, acting: ActingState, rollouts: Sequence[Rollout], environment_units: bool = False
    ) -> dict[str, float]:
        """Compute the diagnostics over all points of the rollouts.

        Args:
            acting: the acting state with its critics.
            rollouts: episodes with raw observations and actions in [-1, 1].
            environment_units: feed the critic actions in the environment's units although it was trained on
                [-1, 1]. The authors of PAVE do so; use it only to compare with their tables.

        Returns:
            mixed_norm_sup, mixed_norm_mean: maximum and mean of ‖H_sa‖₂ (the paper's M).
            negative_definite: share of points with λ_max(H_aa) < 0.
            lambda_max_mean, lambda_min_mean: means of the extreme eigenvalues of H_aa.
            trace_abs_min, trace_abs_mean: of |tr H_aa| (the paper's proxy of μ).
            trace_concave: share of points with tr H_aa < -1.
            gradient_cosine, gradient_cosine_median, gradient_cosine_std: of cos(∇_a Q at t, at t + 1), never
                across a reset; NaN without a pair of non-zero gradients.
            gradient_flips: share of these cosines below 0.
        """
        actions = [r.action for r in rollouts]
        if environment_units:
            actions = [to_env_units(self.agent, a).astype(np.float32) for a in actions]
        at = self.points(acting, np.concatenate([r.observation for r in rollouts]), np.concatenate(actions))
        ends = np.cumsum([len(a) for a in actions])[:-1]
        cosines = np.concatenate([_cosines(g) for g in np.split(np.asarray(at.gradient), ends)])
        return {
            "mixed_norm_sup": float(at.mixed_norm.max()),
            "mixed_norm_mean": float(at.mixed_norm.mean()),
            "negative_definite": float((at.lambda_max < 0).mean()),
            "lambda_max_mean": float(at.lambda_max.mean()),
            "lambda_min_mean": float(at.lambda_min.mean()),
            "trace_abs_min": float(np.abs(at.trace).min()),
            "trace_abs_mean": float(np.abs(at.trace).mean()),
            "trace_concave": float((at.trace < -DELTA).mean()),
            "gradient_cosine": float(cosines.mean()) if len(cosines) else np.nan,
            "gradient_cosine_median": float(np.median(cosines)) if len(cosines) else np.nan,
            "gradient_cosine_std": float(cosines.std()) if len(cosines) else np.nan,
            "gradient_flips": float((cosines < 0).mean()) if len(cosines) else np.nan,
        }

    def points(
        self, acting: ActingState, obs: Float[np.ndarray, "N S"], action: Float[np.ndarray, "N A"]
    ) -> SecondOrder:
        """Compute gradient and second derivatives at N points, in chunks: one program for any N."""
        n = len(obs)
        index = np.arange(-(-n // CHUNK) * CHUNK) % n  # the last chunk is padded with points from the front
        with jax.default_matmul_precision("highest"):  # rounded products spoil second derivatives
            chunks = [
                jax.device_get(self.program(acting, obs[rows], action[rows]))
                for rows in index.reshape(-1, CHUNK)
            ]
        columns: list[Any] = [
            np.concatenate(column)[:n].astype(np.float64) for column in zip(*chunks, strict=True)
        ]
        return SecondOrder(*columns)


def measure_geometry(
    trained: TrainedAgent, rollouts: Sequence[Rollout], environment_units: bool = False
) -> dict[str, float]:
    """Compute the diagnostics of a trained agent's Q along rollouts; see `GeometryProbe.measure`.

    Raises:
        UsageError: the agent has no Q, or its actions are indices.
    """
    trained.require_q("the geometry along rollouts")
    return GeometryProbe(trained.agent).measure(trained.acting, rollouts, environment_units)


def is_piecewise_linear(values: dict[str, float]) -> bool:
    """Return whether every second derivative is exactly zero, as with ReLU critics."""
    return values["mixed_norm_sup"] == 0.0 and values["trace_abs_mean"] == 0.0


def _cosines(g: Float[np.ndarray, "n A"]) -> Float[np.ndarray, " m"]:
    """Return cos(g_t, g_{t+1}) inside one episode; pairs with a zero gradient have no angle and
    are dropped.
    """
    norms = np.linalg.norm(g, axis=1)
    both = norms[:-1] * norms[1:]
    moved = both > 0
    return (g[:-1] * g[1:]).sum(1)[moved] / both[moved]
