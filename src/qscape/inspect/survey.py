"""How well an agent's actions climb Q(s, ·): optimality gaps and local optima over the whole action space.

For every agent with a Q, over an action table too. The quantities are those of Jain et al. 2024 (SAVO), arXiv
2410.11833; their equations and the climbing are in `ops/landscape.py`.

How the best action is searched: with one or two action dimensions on a dense grid; with more among 10,000
uniform points; both then climb from the best points and from the agent's own proposals, so no gap is ever
negative. Over a table every entry is looked at.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import UsageError
from qscape.inspect.subject import has_q, values
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import objective
from qscape.offpolicy.state import Acting
from qscape.ops import landscape as ops
from qscape.run.evaluation import Rollout
from qscape.run.probes import Look
from qscape.run.programs import evaluation_key

Which = Literal["objective", "first", "min", "mean"]
LINE, PLANE = 2001, 101  # points along an axis of a dense grid
POINTS = 10_000  # random actions that are searched where there are more than two dimensions
CLIMBERS, SCATTERED = 10, 14  # climbs begin at the best points; with many dimensions also anywhere
STEPS_BETWEEN = 11  # points on the way between two tops, in search of a valley
CHUNK = 4096  # actions whose Q is computed at a time
LARGEST_GRAPH = 20_000  # entries of a table up to which its local optima are counted
PROBED = 10  # states of an evaluation that the probe looks at


class Survey(NamedTuple):
    """n states, measured over the whole action space.

    Attributes:
        proposals: `[n, L, A]` what the maximiser picks from, without noise; over a table the nearest rows.
        action: `[n, A]` what the agent does. `best`: `[n, A]` the best action that was found.
        proposals_q, action_q, best_q: `[n, L]`, `[n]`, `[n]` Q there.
        span: `[n]` the range of Q over what was searched.
        optima: `[n]` local optima that stand out by more than 1% of `span`: on the dense grid (A <= 2), on
            the graph of nearest neighbours of a table (NaN where it is too large), else different ends of
            climbs.
        all_optima: `[n]` those that stand out by more than rounding, too.
        rank: `[n]` over a table the place of the action (1: the best), else NaN.
    """

    proposals: Float[np.ndarray, "n L A"]
    proposals_q: Float[np.ndarray, "n L"]
    action: Float[np.ndarray, "n A"]
    action_q: Float[np.ndarray, " n"]
    best: Float[np.ndarray, "n A"]
    best_q: Float[np.ndarray, " n"]
    span: Float[np.ndarray, " n"]
    optima: Float[np.ndarray, " n"]
    all_optima: Float[np.ndarray, " n"]
    rank: Float[np.ndarray, " n"]

    @property
    def gaps(self) -> Float[np.ndarray, "n L"]:
        """Optimality gap of each proposal, in units of Q."""
        return ops.optimality_gap(self.best_q[:, None], self.proposals_q)

    @property
    def gap(self) -> Float[np.ndarray, " n"]:
        """Optimality gap of the action, in units of Q."""
        return ops.optimality_gap(self.best_q, self.action_q)

    def rows(self, first: int, end: int) -> "Survey":
        """Some of the states."""
        return Survey(*(column[first:end] for column in self))

    def share(self, gap: Float[np.ndarray, "n *L"]) -> Float[np.ndarray, "n *L"]:
        """A gap as a share of Q's range at its state; 0 where Q is flat."""
        span = self.span.reshape(-1, *[1] * (gap.ndim - 1))
        return np.where(span > 0, gap / np.where(span > 0, span, 1), 0.0)


class Surveyor:
    """Measures states of one agent. Compiled once, it serves later acting states of the same agent too.

    Args:
        agent: bound to its task.
        q: what of the critics' heads: "objective" is what the actor climbs.
    """

    def __init__(self, agent: Agent, q: Which = "objective") -> None:
        self.agent = agent
        self.base = agent.base if q == "objective" else dataclasses.replace(agent.base, actor_objective=q)
        task = agent.task
        self.table, self.size = task.table, task.action_size
        self.points, self.edges = _searched(self.table, self.size)
        self._survey, self._values = jax.jit(self._measure), jax.jit(self._in_chunks)
        self._slopes = jax.jit(jax.grad(lambda a, acting, obs: self._q(acting, obs, a).sum()))

    def __call__(self, acting: Acting, obs: Float[np.ndarray, "n S"]) -> Survey:
        """Measure raw observations."""
        program = self._survey(acting, np.asarray(obs, np.float32), self.points)
        found = {k: np.asarray(v) for k, v in program.items()}
        seen, low, heights, saddles = (found.pop(k) for k in ("values", "low", "heights", "saddles"))
        counts = np.full((2, len(obs)), np.nan)
        for k in range(len(obs)):
            if self.edges is not None:
                prominence = ops.peaks(seen[k], self.edges).prominence
            elif self.table is None:
                pairs = np.stack(np.triu_indices(heights.shape[1], 1), 1)
                floors = np.full(heights.shape[1], low[k])
                prominence = ops.prominences(heights[k], floors, pairs, saddles[k])
            else:
                continue
            least = [ops.ripple(low[k], found["best_q"][k], share) for share in (ops.PROMINENT, 0.0)]
            counts[:, k] = [(prominence > x).sum() for x in least]
        return Survey(**found, span=found["best_q"] - low, optima=counts[0], all_optima=counts[1])

    def q(self, acting: Acting, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """Q `[...]` of one raw observation at actions `[..., A]`."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._values(acting, obs, rows)).reshape(action.shape[:-1])

    def slope(self, acting: Acting, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """∇ₐQ `[..., A]` there."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._slopes(rows, acting, obs)).reshape(action.shape)

    def _q(self, acting: Acting, obs: Array, action: Array) -> Array:
        obs = jnp.broadcast_to(obs, (len(action), *obs.shape))
        return objective(self.base, values(self.agent, acting, obs, action))

    def _in_chunks(self, acting: Acting, obs: Array, action: Array) -> Array:
        return jax.lax.map(lambda a: self._q(acting, obs, a[None])[0], action, batch_size=CHUNK)

    def _measure(
        self, acting: Acting, obs: Float[Array, "n S"], points: Float[Array, "N A"]
    ) -> dict[str, Array]:
        agent, n = self.agent, len(obs)
        proposals = agent.proposals(acting, obs)
        memory = agent.maximiser.memory(agent.task, n)
        first = jnp.ones(n, bool)
        action = agent.act(acting, memory, obs, first, 0, evaluation_key())[0]
        own = jnp.concatenate([proposals, action[:, None]], 1)
        return jax.lax.map(lambda at: self._at(acting, points, *at), (obs, own))

    def _at(
        self, acting: Acting, points: Array, obs: Float[Array, " S"], own: Float[Array, "L1 A"]
    ) -> dict[str, Array]:
        """One state. `own`: the proposals, and the action last."""
        seen = self._in_chunks(acting, obs, points)
        heights = saddles = jnp.zeros(0)
        if self.table is None:
            scattered = points[: SCATTERED if self.edges is None else 0]
            start = jnp.concatenate([own, points[jax.lax.top_k(seen, CLIMBERS)[1]], scattered])
            tops, heights = ops.ascend(lambda a: self._q(acting, obs, a), start)
            own_q, best, rank = self._q(acting, obs, own), tops[heights.argmax()], jnp.array(jnp.nan)
            best_q = jnp.maximum(heights.max(), own_q.max())  # two batches may round differently
            saddles = self._saddles(acting, obs, tops, heights) if self.edges is None else saddles
        else:
            nearest = jax.lax.map(lambda x: jnp.square(points - x).sum(-1).argmin(), own)
            own, own_q, best, best_q = points[nearest], seen[nearest], points[seen.argmax()], seen.max()
            rank = 1 + (seen > own_q[-1]).sum().astype(jnp.float32)
        return {
            "proposals": own[:-1], "proposals_q": own_q[:-1], "action": own[-1], "action_q": own_q[-1],
            "best": best, "best_q": best_q, "low": seen.min(), "rank": rank, "heights": heights,
            "saddles": saddles, "values": jnp.zeros(0) if self.edges is None else seen,
        }  # fmt: skip

    def _saddles(self, acting: Acting, obs: Array, tops: Array, heights: Array) -> Array:
        """The lowest Q on the straight line between every two tops."""
        a, b = np.triu_indices(len(tops), 1)
        part = jnp.linspace(0, 1, STEPS_BETWEEN + 2)[1:-1, None]

        def lowest(pair: tuple[Array, Array]) -> Array:
            i, j = pair
            between = self._q(acting, obs, (1 - part) * tops[i] + part * tops[j])
            return jnp.minimum(between.min(), jnp.minimum(heights[i], heights[j]))

        return jax.lax.map(lowest, (jnp.asarray(a), jnp.asarray(b)), batch_size=256)


def _searched(table: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The actions whose Q is looked at in every state, and which of them are neighbours (None: no graph)."""
    if table is not None:
        return table, ops.nearest_edges(table) if len(table) <= LARGEST_GRAPH else None
    if size > 2:
        return np.random.default_rng(0).uniform(-1, 1, (POINTS, size)).astype(np.float32), None
    shape = (LINE,) if size == 1 else (PLANE, PLANE)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.stack(axes, -1).reshape(-1, size).astype(np.float32), ops.grid_edges(shape)


def picked(rollouts: Sequence[Rollout], n: int) -> tuple[list[tuple[int, int]], Float[np.ndarray, "n S"]]:
    """At most n visited states, evenly over all steps: (episode, step) of each, and the raw observations."""
    places = [(e, t) for e, rollout in enumerate(rollouts) for t in range(len(rollout.observation))]
    places = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, n).astype(int))]
    return places, np.stack([rollouts[e].observation[t] for e, t in places])


def summary(survey: Survey) -> dict[str, Any]:
    """Means and percentiles over the states, JSON-able.

    Keys: `states`; `action` and `proposals` (a list), each with `gap` in units of Q and `share` of Q's range;
    `optima` and `all_optima` (see `Survey`) and `several`, the share of states with more than one of
    `optima`; `rank` of the action. What does not apply is None.
    """

    def of(gap: np.ndarray) -> dict[str, Any]:
        return {"gap": _spread(gap), "share": _spread(survey.share(gap))}

    found = {"states": len(survey.gap), "action": of(survey.gap), "proposals": [of(g) for g in survey.gaps.T]}
    for name in ("optima", "all_optima", "rank"):
        numbers = getattr(survey, name)
        found[name] = _spread(numbers) if np.isfinite(numbers).all() else None
    return found | {"several": float((survey.optima > 1).mean()) if found["optima"] else None}


def _spread(x: Float[np.ndarray, " n"]) -> dict[str, float]:
    p50, p90 = np.percentile(x, [50, 90])
    return {"mean": float(x.mean()), "p50": float(p50), "p90": float(p90), "max": float(x.max())}


class Gaps:
    """Means over a few states of every evaluation of a run: a probe.

    `optimality_gap` of the action in units of Q, `optimality_gap_share` of Q's range, `local_optima` that
    stand out by 1% of it.
    """

    columns = ("optimality_gap", "optimality_gap_share", "local_optima")

    def __init__(self, agent: Agent) -> None:
        self.surveyor = Surveyor(agent)

    def __call__(self, look: Look) -> Mapping[str, float]:
        """Raises UsageError: the agent has no Q."""
        if not has_q(look.acting):
            raise UsageError("--probe landscape needs a Q(s, a), and this agent has none; leave it out.")
        found = self.surveyor(look.acting, picked(look.rollouts, PROBED)[1])
        means = (found.gap.mean(), found.share(found.gap).mean(), found.optima.mean())
        return dict(zip(self.columns, map(float, means), strict=True))
