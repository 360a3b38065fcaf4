"""Second derivatives of Q over one dimension of the observation and one of the action: PAVE's surface.

Where a*(s) maximises Q inside the box, ∂a*/∂s = -H_aa⁻¹ H_sa, with H_aa = ∂²Q/∂a² and H_sa = ∂²Q/∂s∂a (Lee
et al., arXiv 2601.22970, Lemma 1). Drawn are ‖H_sa‖, which PAVE keeps small, and the largest eigenvalue of
H_aa, which it keeps below zero.

Both are differences of the exact gradient ∇Q over a width w of every action dimension j,

    (∇Q(s, a + w/2 · e_j) − ∇Q(s, a − w/2 · e_j)) / w,

whose state entries are row j of H_sa and whose action entries are row j of H_aa: the mean of the second
derivatives over the width. A critic of ReLU is piecewise linear, so its second derivatives are zero almost
everywhere, however rough it is; their mean over a width counts the kinks in it. So one definition serves all
critics. A width in the action, unlike one in the observation, means the same in every environment. Exact
derivatives along rollouts are in `geometry`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import NotFinite, OutOfRange, UnfitAgent, WrongValue
from qscape.inspect.landscapes import VisitedStates, label_environment, require_same_task, visit_states
from qscape.inspect.survey import QChoice, percentiles, with_objective
from qscape.inspect.trained_agent import TrainedAgent, critic_values
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import combine_heads
from qscape.offpolicy.state import ActingState
from qscape.run.evaluation import SEED
from qscape.tracking import track

# Of the differences, in actions scaled to [-1, 1]: twice the standard deviation of TD3's exploration, below
# which data do not tell apart what Q does. In a narrower one, a ReLU critic has no kink at most points.
WIDTH = 0.2
POINTS = 51  # along each axis of a surface
CHUNK = 64  # points whose derivatives are computed at a time


class Curvature(NamedTuple):
    """Second derivatives of Q at N points.

    Attributes:
        mixed: spectral norm of H_sa, in units of Q for a unit of the observation and of the scaled action.
        eigenvalue: largest eigenvalue of H_aa, in units of Q for a squared unit of the scaled action.
        strongest: the entry [S, A] of H_sa that is largest in absolute value, as a flat index.
    """

    mixed: Float[np.ndarray, " N"]
    eigenvalue: Float[np.ndarray, " N"]
    strongest: Float[np.ndarray, " N"]


def second_differences(
    agent: Agent, base: Base, acting: ActingState, obs: Float[Array, " S"], action: Float[Array, " A"]
) -> tuple[Float[Array, "S A"], Float[Array, "A A"]]:
    """Compute H_sa and H_aa at one point, as means over `WIDTH` of each action dimension.

    `base`: its `actor_objective` is the value of the critics that is differentiated.
    """

    def value(s: Array, a: Array) -> Array:
        return combine_heads(base, critic_values(agent, acting, s[None], a[None]))[0]

    def row(direction: Array) -> tuple[Array, Array]:
        ahead, behind = (
            jax.grad(value, (0, 1))(obs, action + side * direction) for side in (WIDTH / 2, -WIDTH / 2)
        )
        return jax.tree.map(lambda x, y: (x - y) / WIDTH, ahead, behind)

    mixed, hessian = jax.vmap(row)(jnp.eye(len(action)))
    return mixed.T, (hessian + hessian.T) / 2


class CurvatureProgram:
    """The second derivatives of one agent's Q, compiled once; it serves all acting states of the agent."""

    def __init__(self, agent: Agent, q: QChoice = "objective") -> None:
        """Raise UsageError: `q` is unknown."""
        self.base = with_objective(agent, q)
        self._differences = partial(second_differences, agent, self.base)
        self._measure = jax.jit(self._measure_points)

    def __call__(
        self, acting: ActingState, obs: Float[np.ndarray, "N S"], action: Float[np.ndarray, "N A"]
    ) -> Curvature:
        """Measure N pairs of raw observation and action in [-1, 1]."""
        with jax.default_matmul_precision("highest"):  # rounded products spoil differences of gradients
            measured = self._measure(acting, np.asarray(obs, np.float32), np.asarray(action, np.float32))
        return Curvature(*map(np.asarray, measured))

    def _measure_points(self, acting: ActingState, obs: Array, action: Array) -> tuple[Array, Array, Array]:
        def measure(point: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            mixed, hessian = self._differences(acting, *point)
            return jnp.linalg.norm(mixed, ord=2), jnp.linalg.eigvalsh(hessian)[-1], jnp.abs(mixed).argmax()

        return jax.lax.map(measure, (obs, action), batch_size=CHUNK)


class SurfacePlan(NamedTuple):
    """Where one surface lies.

    Attributes:
        place: "EPISODE:STEP" of the state.
        obs: the observation.
        dimensions: that of the observation and that of the action that vary.
        grid: coordinates along both; other entries keep their values in the state and in the agent's action.
    """

    place: str
    obs: Float[np.ndarray, " S"]
    dimensions: tuple[int, int]
    grid: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def measure_curvature(
    trained: TrainedAgent,
    states: int = 100,
    at: Any = (),
    plane: str | None = None,
    *,
    q: QChoice = "objective",
    points: int | None = None,
    episodes: int = 10,
    seed: int = SEED,
    other: TrainedAgent | None = None,
) -> dict[str, Any]:
    """Measure the second derivatives of Q at many visited states, and over a surface through a few of them.

    Args:
        trained: the agent, whose episodes visit the states.
        states: number of visited states that are measured, evenly spaced over the episodes.
        at: "EPISODE:STEP" of the states that get a surface; "widest": see `survey.find_widest`; empty: the
            visited states with the median, the 90% and the largest ‖H_sa‖ at the agent's action.
        plane: "I,J", the dimensions of observation and action that vary; None: at each state the pair with
            the largest |∂²Q/∂s_I∂a_J| of `trained`. The observation varies over the range of the visited
            states, the action over [-1, 1].
        q: which value of the critics: "objective" (what the actor maximises), "first", "min" or "mean".
        points: points along each axis of a surface; None: 51.
        episodes: number of evaluation episodes.
        seed: seed of these episodes.
        other: a second agent, measured at the same states and on the same axes; None: none.

    Returns:
        name, label, env, dataset, step, policy, eval_seed, q, and `width` of the differences; for each
        visited state its `place` [episode, step], and at the agent's action `mixed` (‖H_sa‖₂, the spectral
        norm) and `eigenvalue` (the largest of H_aa); `summary` of both by means and percentiles, and
        `concave`, the share of states with a negative eigenvalue; `surfaces`, each with its `place`,
        `dimensions` [I, J], `grid`, `mixed` and `eigenvalue` `[n, n]`, `state` (entry I of the observation),
        `action` (entry J of the agent's), and `policy` `[n]`, entry J of the agent's action along the first
        axis. With a second agent `other`: all these keys of that agent.

    Raises:
        UsageError: the agent has no Q, its actions are a discrete set, its observations are images, the plane
            is impossible, an episode does not have the state, a number is too small, or the second agent has
            another environment or other actions.
        RunError: the second derivatives are not finite.
    """
    agents = [trained] if other is None else [trained, other]
    for agent in agents:
        check_request(agent, plane, points)
    require_same_task(trained, agents[-1])
    visits = visit_states(trained, states, at, q, episodes, seed)
    programs = [CurvatureProgram(agent.agent, q) for agent in agents]
    measured = [
        program(agent.acting, visits.obs, _act(agent, visits.obs))
        for program, agent in zip(programs, agents, strict=True)
    ]
    plans = [
        _plan_surface(visits, measured[0], k, place, plane, points or POINTS)
        for k, place in visits.rows(measured[0].mixed[: len(visits.places)])
    ]
    results = [
        _measure_agent(agent, program, visits, found, plans)
        for agent, program, found in zip(agents, programs, measured, strict=True)
    ]
    return results[0] | ({"other": results[1]} if len(results) > 1 else {})


def check_request(trained: TrainedAgent, plane: str | None, points: int | None) -> None:
    """Refuse an impossible request before anything is computed.

    Raises:
        UsageError: see `measure_curvature`.
    """
    trained.require_q("a curvature")
    task = trained.agent.task
    if task.action_rows is not None:
        raise UnfitAgent(
            f"{trained.name} chooses among discrete actions, and ∂²Q/∂a² is defined for continuous ones "
            "only; leave --kind out to see Q over them.",
            field="kind",
        )
    if task.frame is not None:
        raise UnfitAgent(
            f"{trained.name} sees images, of which one pixel is no direction to look along; leave --kind out "
            "to see Q over its actions.",
            field="kind",
        )
    if points is not None and points < 2:
        raise OutOfRange(f"--grid is {points}; it must be at least 2.", field="grid")
    if plane is None:
        return
    numbers = plane.split(",")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise WrongValue(
            f"--plane {plane}: with --kind curvature it is I,J, a dimension of the observation and one of "
            "the action, like 0,0.",
            field="plane",
        )
    sizes = (task.observation_size, task.action_size)
    for what, number, size in zip(("observation", "action"), numbers, sizes, strict=True):
        if int(number) >= size:
            raise OutOfRange(f"--plane {plane}: the {what} has dimensions 0 to {size - 1}.", field="plane")


def _plan_surface(
    visits: VisitedStates, found: Curvature, k: int, place: str, plane: str | None, points: int
) -> SurfacePlan:
    """Choose the axes of the surface through row `k` of the visited states."""
    size = visits.taken.shape[1]
    i, j = map(int, plane.split(",")) if plane else divmod(int(found.strongest[k]), size)
    low, high = visits.obs[:, i].min(), visits.obs[:, i].max()
    if low == high:  # it never varies
        low, high = low - 1, high + 1
    return SurfacePlan(
        place, visits.obs[k], (i, j), (np.linspace(low, high, points), np.linspace(-1, 1, points))
    )


def _measure_agent(
    trained: TrainedAgent,
    program: CurvatureProgram,
    visits: VisitedStates,
    found: Curvature,
    plans: list[SurfacePlan],
) -> dict[str, Any]:
    """Collect one agent's results, `found` at the visited states, and measure its surfaces."""
    n = len(visits.places)
    label = trained.record.get("label", trained.agent.recipe)
    if not np.isfinite([found.mixed[:n], found.eigenvalue[:n]]).all():
        raise NotFinite(
            f"{label}: second derivatives of its Q are not finite at the visited states; "
            "`qscape landscape` without --kind shows where Q is finite"
        )
    return {
        "name": trained.name,
        "label": label,
        "env": label_environment(trained),
        "dataset": trained.record.get("dataset"),
        "step": trained.step,
        "policy": trained.policy,
        "eval_seed": visits.seed,
        "q": program.base.actor_objective,
        "width": WIDTH,
        "place": visits.places,
        "mixed": found.mixed[:n],
        "eigenvalue": found.eigenvalue[:n],
        "summary": {
            "states": n,
            "mixed": percentiles(found.mixed[:n]),
            "eigenvalue": percentiles(found.eigenvalue[:n]),
            "concave": float((found.eigenvalue[:n] < 0).mean()),
        },
        "surfaces": [
            _measure_surface(trained, program, plan) for plan in track(plans, f"surfaces of {label}")
        ],
    }


def _measure_surface(trained: TrainedAgent, program: CurvatureProgram, plan: SurfacePlan) -> dict[str, Any]:
    (i, j), (x, y) = plan.dimensions, plan.grid
    own = _act(trained, plan.obs[None])[0]
    obs, action = (np.tile(row, (len(x), len(y), 1)) for row in (plan.obs, own))
    obs[:, :, i], action[:, :, j] = x[:, None], y
    found = program(trained.acting, obs.reshape(-1, obs.shape[-1]), action.reshape(-1, len(own)))
    return {
        "place": plan.place,
        "dimensions": plan.dimensions,
        "grid": plan.grid,
        "mixed": found.mixed.reshape(len(x), len(y)),
        "eigenvalue": found.eigenvalue.reshape(len(x), len(y)),
        "state": plan.obs[i],
        "action": own[j],
        "policy": _act(trained, obs[:, 0])[:, j],
    }


def _act(trained: TrainedAgent, obs: Float[np.ndarray, "N S"]) -> Float[np.ndarray, "N A"]:
    return np.asarray(trained.act(jnp.asarray(obs)))
