"""PAVE: critics with a smooth action gradient, so that the policy changes little between states (Lee, Kwak,
Kim, Hwang, ICML 2026, arXiv 2601.22970).

At an interior maximum of Q(s, ·) the greedy action moves with the state by J = -H_aa⁻¹ H_sa (Lemma 1), so
|J| <= M / μ if |H_sa| <= M and H_aa <= -μ (Proposition 2). Two terms reduce the mixed partial M: for small
random changes of the state (MPR) and along observed transitions (VFC). A third keeps the curvature μ away
from zero (Curv), because a flat critic would let the action vary even more.

No Hessian is formed: the mixed terms are differences of g = ∂Q/∂a, and the curvature along v is the
directional derivative of g.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.offpolicy.sockets import Composition, Context, PartState, Regulariser
from qscape.types import LOSS_WEIGHT, Batch, Key, Metrics, QFn, Scalar, setting


@dataclasses.dataclass(frozen=True)
class PAVE(Regulariser):
    """Regularises the critics' action gradient: small mixed partials, negative curvature in the action."""

    name: ClassVar[str] = "pave"
    derived_columns: ClassVar[frozenset[str]] = frozenset({"successor"})
    differentiates_actions: ClassVar[bool] = True
    takes_tables: ClassVar[bool] = False

    mixed_partial: float = setting(
        0.1, "λ1 of MPR: weight of the action gradient's change near a state.", **LOSS_WEIGHT
    )
    vector_field: float = setting(
        0.1, "λ2 of VFC: weight of its change from a state to its successor.", **LOSS_WEIGHT
    )
    curvature: float = setting(
        0.01, "λ3 of Curv: weight of curvature above −δ.", within=">= 0", tune=(1e-4, 1.0, "log")
    )
    sigma: float = setting(
        0.01,
        "σ of MPR: standard deviation of the state's change, in units of the observation.",
        within="> 0",
        tune=(1e-3, 0.1, "log"),
    )
    delta: float = setting(
        1.0, "δ of Curv: demanded curvature, summed over the action.", within=">= 0", tune=(0.1, 5.0)
    )
    fraction: float = setting(1.0, "Fraction of the batch that the terms are evaluated on.", within="(0, 1]")

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """Set SiLU, which has second derivatives, and on SAC the paper's factor ½ of the TD loss, which the
        weights are relative to. A representation with smooth critics keeps its networks and losses."""
        if agent.representation.has_smooth_critics:
            return {}
        half = {"critic_loss_scale": 0.5} if agent.policy_loss.maximises_entropy else {}
        return {"actor_activation": "silu", "critic_activation": "silu"} | half

    def notes(self, agent: Composition) -> list[str]:
        notes, base = [], agent.base
        curved = (
            agent.representation.has_smooth_critics
            or base.critic_norm == "layer"
            or agent.network.curves_critics
            or agent.value.curves_critics
        )
        if base.critic_activation == "relu" and not curved and self.curvature:
            notes.append(
                "critics of ReLU are piecewise linear: pave.curvature has no gradient; "
                "base.critic_activation = silu gives it one"
            )
        if agent.normaliser.changes_observations and self.mixed_partial:
            notes.append("pave.sigma is in units of the normalised observation")
        return notes

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Say that returns are small beside the demanded curvature, which then decides what Q is.

        From its peak to a bound of the action Q is to fall by δ / 2, whatever rewards are worth.
        """
        returned = abs(metrics.get("return", 0.0)) / metrics.get("reward_divisor", 1.0)
        if not returned or not self.curvature or self.delta / 2 < SMALL * returned:
            return None
        divided = " (divided)" if "reward_divisor" in metrics else ""
        return (
            f"pave: returns of {returned:.3g}{divided} are small beside pave.delta = {self.delta:g}, the "
            "curvature that it demands of Q, so critics may learn that and little of the rewards; if nothing "
            "is learned, make pave.delta and pave.curvature smaller in the same proportion, or leave "
            "reward_scale out."
        )

    def critic(
        self, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics] | None:
        """Return λ1 MPR + λ2 VFC + λ3 Curv, which is added to the critics' loss; a term of weight 0 is left
        out.

        Each term is summed over the critics. MPR and VFC are means over batch and action dimensions, Curv is
        one over the batch. The gradient at (s, a) is made once and shared by all terms.
        """
        rows = max(1, round(self.fraction * len(batch.action)))
        obs, action = batch.observation[:rows], batch.action[:rows]
        k_noise, k_direction = jax.random.split(key)
        field = partial(action_gradients, context.q)
        metrics: Metrics = {}
        if self.curvature:
            direction = jax.random.rademacher(k_direction, action.shape, action.dtype)
            here, curvatures = gradients_and_curvature(lambda a: field(obs, a), action, direction)
            metrics["curvature"] = sum_arrays([jax.nn.relu(c + self.delta).mean() for c in curvatures])
            # 0 or 1 for long: λ3 or δ has no effect.
            metrics["curvature_active"] = sum_arrays([(c > -self.delta).mean() for c in curvatures]) / len(
                curvatures
            )
        elif self.mixed_partial or self.vector_field:
            here = field(obs, action)
        else:
            return None
        if self.mixed_partial:
            near = obs + self.sigma * jax.random.normal(k_noise, obs.shape, obs.dtype)
            metrics["mixed_partial"] = mean_squared_difference(here, field(near, action))
        if self.vector_field:
            metrics["vector_field"] = mean_squared_difference(
                here, field(batch.extra["successor"][:rows], action)
            )
        total = sum_arrays([getattr(self, term) * metrics[term] for term in TERMS if term in metrics])
        return total, {f"pave_{name}": value for name, value in metrics.items()} | {"pave_loss": total}


SMALL = 0.02  # share of the return that the curvature may ask for without a word
TERMS = ("mixed_partial", "vector_field", "curvature")


def action_gradients(
    q: QFn, obs: Float[Array, "B S"], action: Float[Array, "B A"]
) -> list[Float[Array, "B A"]]:
    """Return g_j(s, a) = ∂Q_j/∂a of every critic j, as the gradient of the sum over independent rows."""
    heads = len(jax.eval_shape(q, obs, action))
    return [jax.grad(lambda a, j=j: q(obs, a)[j].sum())(action) for j in range(heads)]


def gradients_and_curvature(
    field: Callable[[Array], list[Array]], action: Float[Array, "B A"], direction: Float[Array, "B A"]
) -> tuple[list[Float[Array, "B A"]], list[Float[Array, " B"]]]:
    """Return g_j at the action and vᵀ H_aa,j v along the direction v, by one Hessian-vector product each."""
    here, products = jax.jvp(field, (action,), (direction,))
    return here, [(hv * direction).sum(-1) for hv in products]


def mean_squared_difference(here: list[Float[Array, "B A"]], there: list[Float[Array, "B A"]]) -> Scalar:
    """Return Σ_j of the mean squared difference of two fields; both carry gradient."""
    return sum_arrays([jnp.square(x - y).mean() for x, y in zip(here, there, strict=True)])


def sum_arrays(values: list[Array]) -> Array:
    """Return the sum of at least one array."""
    return sum(values[1:], values[0])
