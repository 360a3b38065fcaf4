"""How well an agent's actions climb Q(s, ·): optimality gaps and local optima over the whole action space.

For every agent with a Q, over an action table too. The quantities are those of Jain et al. 2024 (SAVO), arXiv
2410.11833; their equations and the climbing are in `ops/landscape.py`.

How the best action is searched: with one or two action dimensions on a dense grid; with more among 10,000
uniform points; both then climb from the best points and from the agent's own proposals, so no gap is ever
negative. Over a table every entry is looked at.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import UsageError
from qscape.inspect import surrogates
from qscape.inspect.subject import Subject, has_q, values
from qscape.inspect.surrogates import Hill
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import objective
from qscape.offpolicy.state import ActingState
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
COUNTS = ("exact_optima", "all_exact_optima", "learned_optima", "all_learned_optima")  # of surrogates
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
        exact_optima, all_exact_optima, learned_optima, all_learned_optima: `[n, L-1]` the same of SAVO's
            surrogates Ψ_i and Ψ̂_i, on the same points and by the same 1% of `span`, Q's range: of the exact
            ones there are never more than of Q or of the one before. `[n, 0]` of what the agent has not.
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
    exact_optima: Float[np.ndarray, "n i"]
    all_exact_optima: Float[np.ndarray, "n i"]
    learned_optima: Float[np.ndarray, "n j"]
    all_learned_optima: Float[np.ndarray, "n j"]
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


class Ground(NamedTuple):
    """What the local optima of Q or of a surrogate are counted on, at each of n states.

    Attributes:
        seen: `[n, N]` at the points that are searched, where these are the nodes of a graph; else `[n, 0]`.
        heights, saddles: `[n, K]` and `[n, K(K-1)/2]` where there is none: at the ends of climbs, and the
            lowest on the straight line between every two.
        low: `[n]` the lowest seen.
    """

    seen: Float[Array | np.ndarray, "n N"]
    heights: Float[Array | np.ndarray, "n K"]
    saddles: Float[Array | np.ndarray, "n P"]
    low: Float[Array | np.ndarray, " n"]

    def above(self, floor: Float[np.ndarray, " n"]) -> "Ground":
        """The same with all that lies below a floor flattened."""
        return Ground(*(np.maximum(x, floor.reshape(-1, *[1] * (x.ndim - 1))) for x in self))


class Surveyor:
    """Measures states of one agent. Compiled once, it serves later acting states of the same agent too.

    Args:
        agent: bound to its task.
        q: what of the critics' heads: "objective" is what the actor climbs.
        with_surrogates: count the local optima of SAVO's surrogates, too; it takes as long again for each.
    """

    def __init__(self, agent: Agent, q: Which = "objective", with_surrogates: bool = True) -> None:
        self.agent = agent
        self.base = _looking_at(agent, q)
        self.order = surrogates.order(agent) if with_surrogates else 0
        task = agent.task
        self.table, self.size = task.table, task.action_size
        self.points, self.edges = _searched(self.table, self.size)
        self._survey, self._values = jax.jit(self._measure), jax.jit(self._values_of)
        self._slopes = jax.jit(jax.grad(lambda a, acting, obs: self._q(acting, obs, a).sum()))
        self._learned = jax.jit(self._learned_values)

    def __call__(self, acting: ActingState, obs: Float[np.ndarray, "n S"]) -> Survey:
        """Measure raw observations."""
        measured = self._survey(acting, np.asarray(obs, np.float32), self.points)
        found, (ground, *learned) = jax.tree.map(np.asarray, measured)
        ranges = list(zip(ground.low, found["best_q"], strict=True))
        least = [
            [ops.prominence_threshold(*ends, share) for share in (ops.PROMINENT, 0.0)] for ends in ranges
        ]
        floors = ops.proposal_floors(found["proposals_q"])[:, : self.order]
        [optima] = self._counts([ground], least)
        exact = self._counts([ground.above(floor) for floor in floors.T], least)
        fitted = self._counts(learned, least)
        return Survey(
            **found, span=found["best_q"] - ground.low, optima=optima[:, 0], all_optima=optima[:, 1],
            exact_optima=exact[..., 0].T, all_exact_optima=exact[..., 1].T,
            learned_optima=fitted[..., 0].T, all_learned_optima=fitted[..., 1].T,
        )  # fmt: skip

    def q(self, acting: ActingState, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """Q `[...]` of one raw observation at actions `[..., A]`."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._values(acting, obs, rows)).reshape(action.shape[:-1])

    def learned(
        self, acting: ActingState, obs: Float[np.ndarray, " S"], proposals: np.ndarray, action: np.ndarray
    ) -> list[np.ndarray]:
        """SAVO's learned surrogates Ψ̂_1, Ψ̂_2, ... `[...]` there, after proposals `[L, A]`; or nothing."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        found = self._learned(acting, obs, proposals, rows)
        return [np.asarray(heights).reshape(action.shape[:-1]) for heights in found]

    def slope(self, acting: ActingState, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """∇ₐQ `[..., A]` there."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._slopes(rows, acting, obs)).reshape(action.shape)

    def _q(self, acting: ActingState, obs: Array, action: Array) -> Array:
        obs = jnp.broadcast_to(obs, (len(action), *obs.shape))
        return objective(self.base, values(self.agent, acting, obs, action))

    def _values_of(self, acting: ActingState, obs: Array, action: Array) -> Array:
        return _in_chunks(partial(self._q, acting, obs), action)

    def _learned_values(
        self, acting: ActingState, obs: Array, proposals: Array, action: Array
    ) -> list[Array]:
        hills = surrogates.learned(self.agent, acting, obs, proposals)
        return [_in_chunks(hill, action) for hill in hills]

    def _measure(
        self, acting: ActingState, obs: Float[Array, "n S"], points: Float[Array, "N A"]
    ) -> tuple[dict[str, Array], list[Ground]]:
        agent, n = self.agent, len(obs)
        proposals = agent.proposals(acting, obs)
        noise_state = agent.selector.init_noise(agent.task, n)
        first = jnp.ones(n, bool)
        action = agent.act(acting, noise_state, obs, first, 0, evaluation_key())[0]
        own = jnp.concatenate([proposals, action[:, None]], 1)
        return jax.lax.map(lambda at: self._at(acting, points, *at), (obs, own))

    def _at(
        self, acting: ActingState, points: Array, obs: Float[Array, " S"], own: Float[Array, "L1 A"]
    ) -> tuple[dict[str, Array], list[Ground]]:
        """One state, and its grounds: of Q, then of the learned surrogates. `parts`: the proposals, and the
        action last."""
        hills: list[Hill] = [partial(self._q, acting, obs)]
        if self.order:
            hills += surrogates.learned(self.agent, acting, obs, own[:-1])
        seen = [_in_chunks(hill, points) for hill in hills]
        if self.table is None:
            ends = [self._climb(*pair, points, own) for pair in zip(hills, seen, strict=True)]
            tops, heights = ends[0]
            own_q, best, rank = hills[0](own), tops[heights.argmax()], jnp.array(jnp.nan)
            best_q = jnp.maximum(heights.max(), own_q.max())  # two batches may round differently
        else:
            ends, q = [None] * len(hills), seen[0]
            nearest = jax.lax.map(lambda x: jnp.square(points - x).sum(-1).argmin(), own)
            own, own_q, best, best_q = points[nearest], q[nearest], points[q.argmax()], q.max()
            rank = 1 + (q > own_q[-1]).sum().astype(jnp.float32)
        return {
            "proposals": own[:-1], "proposals_q": own_q[:-1], "action": own[-1], "action_q": own_q[-1],
            "best": best, "best_q": best_q, "rank": rank,
        }, [self._ground(*known) for known in zip(hills, seen, ends, strict=True)]  # fmt: skip

    def _climb(self, hill: Hill, seen: Array, points: Array, own: Array) -> tuple[Array, Array]:
        """Where climbs end that begin at the highest points and at one's own, and how high that is."""
        scattered = points[: SCATTERED if self.edges is None else 0]
        start = jnp.concatenate([own, points[jax.lax.top_k(seen, CLIMBERS)[1]], scattered])
        return ops.ascend_gradient(hill, start)

    def _ground(self, hill: Hill, seen: Array, ends: tuple[Array, Array] | None) -> Ground:
        """What local optima are counted on, at one state."""
        none = jnp.zeros(0)
        if self.edges is not None:
            return Ground(seen, none, none, seen.min())
        heights, saddles = (none, none) if ends is None else (ends[1], _saddles(hill, *ends))
        return Ground(none, heights, saddles, seen.min())

    def _counts(self, grounds: Sequence[Ground], least: list[list[float]]) -> Float[np.ndarray, "g n k"]:
        """How many local optima of each ground stand out by more than each of `least` at each state."""
        found = np.full((len(grounds), *np.shape(least)), np.nan)
        if self.edges is None and self.table is not None:
            return found
        for g, ground in enumerate(grounds):
            for n, (seen, heights, saddles, low) in enumerate(zip(*ground, strict=True)):
                if self.edges is not None:
                    prominence = ops.find_peaks(seen, self.edges).prominence
                else:
                    pairs = np.stack(np.triu_indices(len(heights), 1), 1)
                    prominence = ops.find_prominences(heights, np.full(len(heights), low), pairs, saddles)
                found[g, n] = [(prominence > x).sum() for x in least[n]]
        return found


def _looking_at(agent: Agent, q: Which) -> Base:
    """The base of an agent whose actor would climb this of the critics' heads.

    Raises:
        UsageError: there is no such choice.
    """
    if q not in get_args(Which):
        raise UsageError(f"q is {q!r}; it must be one of {', '.join(get_args(Which))}.")
    return agent.base if q == "objective" else dataclasses.replace(agent.base, actor_objective=q)


def _in_chunks(hill: Hill, action: Float[Array, "N A"]) -> Float[Array, " N"]:
    """The heights of many actions."""
    return jax.lax.map(lambda a: hill(a[None])[0], action, batch_size=CHUNK)


def _saddles(hill: Hill, tops: Float[Array, "K A"], heights: Float[Array, " K"]) -> Float[Array, " P"]:
    """The lowest height on the straight line between every two tops."""
    a, b = np.triu_indices(len(tops), 1)
    part = jnp.linspace(0, 1, STEPS_BETWEEN + 2)[1:-1, None]

    def lowest(pair: tuple[Array, Array]) -> Array:
        i, j = pair
        between = hill((1 - part) * tops[i] + part * tops[j])
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
    places = _places(rollouts)
    places = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, n).astype(int))]
    return places, np.stack([rollouts[e].observation[t] for e, t in places])


def _places(rollouts: Sequence[Rollout]) -> list[tuple[int, int]]:
    return [(e, t) for e, rollout in enumerate(rollouts) for t in range(len(rollout.observation))]


def widest(
    subject: Subject, rollouts: Sequence[Rollout], q: Which = "objective", n: int = 5
) -> list[tuple[int, int]]:
    """(episode, step) of the n visited states where the later proposals are worth most.

    That is where Q(s, μ_M(s)) - Q(s, a_0) is largest, of all steps of the episodes; μ_M(s) is what was done.

    Raises:
        UsageError: an agent without Q, or with a single proposal, which leaves nothing to choose.
    """
    subject.need_q("a landscape")
    agent, acting = subject.agent, subject.acting
    base = _looking_at(agent, q)

    @jax.jit
    def gain(acting: ActingState, obs: Array, action: Array) -> Array:
        proposals = agent.proposals(acting, obs)
        if proposals.shape[1] == 1:
            raise UsageError(
                f"--state-from widest: {subject.name} has one proposal and nothing to choose; "
                "name states as EPISODE:STEP, or leave it out."
            )
        before, after = (objective(base, values(agent, acting, obs, a)) for a in (proposals[:, 0], action))
        return after - before

    obs, action = (np.concatenate([getattr(r, name) for r in rollouts]) for name in ("observation", "action"))
    gained = np.asarray(gain(acting, obs, action))
    places = _places(rollouts)
    return [places[k] for k in np.argsort(-gained, kind="stable")[:n]]


def summary(survey: Survey) -> dict[str, Any]:
    """Means and percentiles over the states, JSON-able.

    Keys: `states`; `action` and `proposals` (a list), each with `gap` in units of Q and `share` of Q's range;
    `optima` and `all_optima` (see `Survey`) and `several`, the share of states with more than one of
    `optima`; `rank` of the action; `surrogates`, a list of SAVO's: `exact_optima` to `all_learned_optima` of
    each. What does not apply is None.
    """

    def of(gap: np.ndarray) -> dict[str, Any]:
        return {"gap": _spread(gap), "share": _spread(survey.share(gap))}

    found = {"states": len(survey.gap), "action": of(survey.gap), "proposals": [of(g) for g in survey.gaps.T]}
    for name in ("optima", "all_optima", "rank"):
        found[name] = _spread(getattr(survey, name))
    counts = {name: getattr(survey, name) for name in COUNTS}
    found["surrogates"] = [
        {name: _spread(column[:, i]) if i < column.shape[1] else None for name, column in counts.items()}
        for i in range(survey.exact_optima.shape[1])
    ]
    return found | {"several": float((survey.optima > 1).mean()) if found["optima"] else None}


def _spread(x: Float[np.ndarray, " n"]) -> dict[str, float] | None:
    if not np.isfinite(x).all():
        return None
    p50, p90 = np.percentile(x, [50, 90])
    return {"mean": float(x.mean()), "p50": float(p50), "p90": float(p90), "max": float(x.max())}


class Gaps:
    """Means over a few states of every evaluation of a run: a probe.

    `optimality_gap` of the action in units of Q, `optimality_gap_share` of Q's range, `local_optima` that
    stand out by 1% of it.
    """

    columns = ("optimality_gap", "optimality_gap_share", "local_optima")

    def __init__(self, agent: Agent) -> None:
        self.surveyor = Surveyor(agent, with_surrogates=False)

    def __call__(self, look: Look) -> Mapping[str, float]:
        """Raises UsageError: the agent has no Q."""
        if not has_q(look.acting):
            raise UsageError("--probe landscape needs a Q(s, a), and this agent has none; leave it out.")
        found = self.surveyor(look.acting, picked(look.rollouts, PROBED)[1])
        means = (found.gap.mean(), found.share(found.gap).mean(), found.optima.mean())
        return dict(zip(self.columns, map(float, means), strict=True))
