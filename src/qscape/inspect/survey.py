"""Optimality gaps of an agent's actions and local optima of Q(s, ·), over the whole action space.

Works for every agent with a Q, also over an action table. The quantities are those of Jain et al. 2024
(SAVO), arXiv 2410.11833; their equations and the gradient ascent are in `ops/landscape.py`.

Search for the best action: with one or two action dimensions on a dense grid, with more among 10,000 uniform
points. Gradient ascent then starts at the best points and at the agent's own proposals, so no gap is
negative. With more than two dimensions gradient descent finds the lowest value in the same way, which Q's
range begins at. Over a table every entry is evaluated; entries that an action mask excludes do not count.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qscape.errors import UnfitAgent, UnknownName
from qscape.inspect import surrogates
from qscape.inspect.surrogates import ActionValue
from qscape.inspect.trained_agent import TrainedAgent, critic_values, has_q
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import combine_heads
from qscape.offpolicy.state import ActingState
from qscape.ops import landscape as ops
from qscape.run.evaluation import Rollout
from qscape.run.probes import PolicyEvaluation
from qscape.run.programs import evaluation_key
from qscape.types import Spec

QChoice = Literal["objective", "first", "min", "mean"]
LINE, PLANE = 2001, 101  # points along an axis of a dense grid
POINTS = 10_000  # random search points with more than two action dimensions
CLIMBERS, SCATTERED = 10, 14  # ascents start at the best points; with many dimensions also at random ones
STEPS_BETWEEN = 11  # points between two end points, in search of a valley
CHUNK = 4096  # actions whose Q is computed at a time
LARGEST_GRAPH = 20_000  # the largest table whose local optima are counted
COUNTS = ("exact_optima", "all_exact_optima", "learned_optima", "all_learned_optima")  # of surrogates
PROBED = 10  # states of an evaluation that the probe measures


class Survey(NamedTuple):
    """Measurements at n states over the whole action space.

    Attributes:
        proposals: `[n, L, A]` the actions among which the agent selects, without noise; over a table the
            nearest rows.
        proposals_q: `[n, L]` Q of the proposals.
        action: `[n, A]` the agent's action.
        action_q: `[n]` Q of the action.
        best: `[n, A]` the best action found.
        best_q: `[n]` Q of the best action found.
        span: `[n]` the range of Q over the actions found.
        optima: `[n]` local optima that stand out by more than 1% of `span`: on the dense grid (A <= 2), on
            the nearest-neighbour graph of a table (NaN if the table is too large), else distinct end points
            of gradient ascent.
        all_optima: `[n]` local optima that stand out by more than rounding.
        exact_optima, all_exact_optima: `[n, L-1]` the same counts of SAVO's surrogates Ψ_i, on the same
            points and by the same 1% of Q's range; never more than of Q or of the previous surrogate.
            `[n, L]` with raw vectors, from Ψ_0 = Q on; `[n, 0]` without SAVO.
        learned_optima, all_learned_optima: the same of the learned surrogates Ψ̂_i; `[n, 0]` without them.
        rank: `[n]` over a table the rank of the action (1: the best), else NaN.
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
        """Select the states `first` to `end - 1`."""
        return Survey(*(column[first:end] for column in self))

    def share(self, gap: Float[np.ndarray, "n *L"]) -> Float[np.ndarray, "n *L"]:
        """Express gaps as a share of Q's range at their states; 0 where that is no more than rounding."""
        span = self.true_span().reshape(-1, *[1] * (gap.ndim - 1))
        return np.where(span > 0, gap / np.where(span > 0, span, 1), 0.0)

    def true_span(self) -> Float[np.ndarray, " n"]:
        """Return the range of Q at each state; 0 where it is no more than rounding."""
        ends = zip(self.best_q - self.span, self.best_q, strict=True)
        return np.where(self.span > [ops.prominence_threshold(*of) for of in ends], self.span, 0.0)


class OptimaCandidates(NamedTuple):
    """The values in which the local optima of Q, or of a surrogate, are counted, at each of n states.

    Attributes:
        values: `[n, N]` the values at the search points, if these are nodes of a graph; else `[n, 0]`.
        heights: `[n, K]` the values at the end points of gradient ascent, if there is no graph;
            else `[n, 0]`.
        saddles: `[n, K(K-1)/2]` the lowest value on the straight line between every two of these end points.
        low: `[n]` the lowest value found.
    """

    values: Float[Array | np.ndarray, "n N"]
    heights: Float[Array | np.ndarray, "n K"]
    saddles: Float[Array | np.ndarray, "n P"]
    low: Float[Array | np.ndarray, " n"]

    def flattened_below(self, floor: Float[np.ndarray, " n"]) -> "OptimaCandidates":
        """Raise every value below a floor to that floor."""
        return OptimaCandidates(*(np.maximum(x, floor.reshape(-1, *[1] * (x.ndim - 1))) for x in self))


class Surveyor:
    """Measures states of one agent. Compiled once, it serves later acting states of the same agent.

    Args:
        agent: an agent bound to its task.
        q: which value of the critics; "objective" is what the actor maximises.
        with_surrogates: also count the local optima of SAVO's surrogates; each takes as long as Q.
    """

    def __init__(self, agent: Agent, q: QChoice = "objective", with_surrogates: bool = True) -> None:
        self.agent = agent
        self.base = with_objective(agent, q)
        self.order = surrogates.count_surrogates(agent) if with_surrogates else 0
        task = agent.task
        self.table, self.size = task.action_rows, task.action_size
        self.points, self.edges = _search_points(task)
        self._measure_jit, self._values = jax.jit(self._measure), jax.jit(self._values_of)
        self._slopes = jax.jit(jax.grad(lambda a, acting, obs: self._q(acting, obs, a).sum()))
        self._learned = jax.jit(self._learned_values)

    def __call__(self, acting: ActingState, obs: Float[np.ndarray, "n S"]) -> Survey:
        """Measure raw observations."""
        measured = self._measure_jit(acting, np.asarray(obs, np.float32), self.points)
        fields, (candidates, *learned) = jax.tree.map(np.asarray, measured)
        ranges = list(zip(candidates.low, fields["best_q"], strict=True))
        least = [
            [ops.prominence_threshold(*ends, share) for share in (ops.PROMINENT, 0.0)] for ends in ranges
        ]
        floors = self.floors(fields["proposals_q"])
        count = partial(self._count_optima, least=least, edges=[*map(self.edges_among, candidates.values)])
        [optima] = count([candidates])
        exact = count([candidates.flattened_below(floor) for floor in floors.T])
        fitted = count(learned)
        return Survey(
            **fields, span=fields["best_q"] - candidates.low, optima=optima[:, 0], all_optima=optima[:, 1],
            exact_optima=exact[..., 0].T, all_exact_optima=exact[..., 1].T,
            learned_optima=fitted[..., 0].T, all_learned_optima=fitted[..., 1].T,
        )  # fmt: skip

    def floors(self, proposals_q: Float[np.ndarray, "n L"]) -> Float[np.ndarray, "n i"]:
        """Return τ_i of the surrogates that are counted; −∞ for Ψ_0, which is Q."""
        floors = ops.proposal_floors(proposals_q)[:, : self.order]
        missing = self.order - floors.shape[1]
        return np.pad(floors, ((0, 0), (missing, 0)), constant_values=-np.inf)

    def q(self, acting: ActingState, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """Evaluate Q `[...]` of one raw observation at actions `[..., A]`."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._values(acting, obs, rows)).reshape(action.shape[:-1])

    def learned(
        self, acting: ActingState, obs: Float[np.ndarray, " S"], proposals: np.ndarray, action: np.ndarray
    ) -> list[np.ndarray]:
        """Evaluate SAVO's learned surrogates Ψ̂_1, Ψ̂_2, ... (Ψ̂_0, ... at raw vectors) at actions `[..., A]`.

        `proposals`: `[L, A]`; surrogate i is conditioned on those before its own.

        Empty without learned surrogates.
        """
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        values = self._learned(acting, obs, proposals, rows)
        return [np.asarray(heights).reshape(action.shape[:-1]) for heights in values]

    def slope(self, acting: ActingState, obs: Float[np.ndarray, " S"], action: np.ndarray) -> np.ndarray:
        """Evaluate ∇ₐQ `[..., A]` of one raw observation at actions `[..., A]`."""
        rows = np.asarray(action, np.float32).reshape(-1, self.size)
        return np.asarray(self._slopes(rows, acting, obs)).reshape(action.shape)

    def _q(self, acting: ActingState, obs: Array, action: Array) -> Array:
        # An image is encoded once for all actions, and points are proposed once.
        is_shared = self.agent.task.frame is not None or self.agent.representation.makes_points
        rows = 1 if is_shared else len(action)
        obs = jnp.broadcast_to(obs, (rows, *obs.shape))
        return combine_heads(self.base, critic_values(self.agent, acting, obs, action))

    def _only_valid(self, obs: Array, values: Float[Array, " N"]) -> Float[Array, " N"]:
        """Return values of a table's entries, NaN for those that are not valid at an observation."""
        valid = self.agent.task.valid_actions(obs)
        return values if valid is None else jnp.where(valid, values, jnp.nan)

    def entries(self, acting: ActingState, obs: Float[np.ndarray, " S"]) -> Float[np.ndarray, " N"]:
        """Evaluate Q at all entries of the table; NaN for those that are not valid."""
        return np.asarray(self._only_valid(jnp.asarray(obs), jnp.asarray(self.q(acting, obs, self.points))))

    def edges_among(self, values: Float[np.ndarray, " N"]) -> Int[np.ndarray, "E 2"] | None:
        """Find the neighbour pairs of the search points whose value is not NaN (None: no graph).

        Where some entries of a table are not valid, the neighbours are the nearest ones that are: with a few
        of the neighbours among all entries, most entries would be alone, and a local optimum.
        """
        is_valid = ~np.isnan(values)
        if self.edges is None or is_valid.all():
            return self.edges
        return ops.nearest_edges(self.points, among=is_valid)

    def _values_of(self, acting: ActingState, obs: Array, action: Array) -> Array:
        return _in_chunks(partial(self._q, acting, obs), action)

    def _learned_values(
        self, acting: ActingState, obs: Array, proposals: Array, action: Array
    ) -> list[Array]:
        functions = surrogates.bind_learned_surrogates(self.agent, acting, obs, proposals)
        return [_in_chunks(function, action) for function in functions]

    def _measure(
        self, acting: ActingState, obs: Float[Array, "n S"], points: Float[Array, "N A"]
    ) -> tuple[dict[str, Array], list[OptimaCandidates]]:
        agent, n = self.agent, len(obs)
        proposals = agent.proposals(acting, obs)
        noise_state = agent.selector.init_noise(agent.task, n)
        first = jnp.ones(n, bool)
        action = agent.act(acting, noise_state, obs, first, 0, evaluation_key())[0]
        agent_actions = jnp.concatenate([proposals, action[:, None]], 1)
        return jax.lax.map(lambda at: self._measure_state(acting, points, *at), (obs, agent_actions))

    def _measure_state(
        self, acting: ActingState, points: Array, obs: Float[Array, " S"], agent_actions: Float[Array, "L1 A"]
    ) -> tuple[dict[str, Array], list[OptimaCandidates]]:
        """Measure one state: its fields of `Survey`, and the candidates of Q, then of the learned surrogates.

        `agent_actions`: the proposals, then the action.
        """
        functions: list[ActionValue] = [partial(self._q, acting, obs)]
        if self.order:
            functions += surrogates.bind_learned_surrogates(self.agent, acting, obs, agent_actions[:-1])
        values = [self._only_valid(obs, _in_chunks(function, points)) for function in functions]
        if self.table is None:
            ends = [self._climb(*pair, points, agent_actions) for pair in zip(functions, values, strict=True)]
            tops, heights = ends[0]
            own_q, best, rank = functions[0](agent_actions), tops[heights.argmax()], jnp.array(jnp.nan)
            best_q = jnp.maximum(heights.max(), own_q.max())  # the two batches may round differently
        else:
            ends, q = [None] * len(functions), values[0]
            # Among the valid rows: one that is not may be equal to the row of the action.
            far = jnp.where(jnp.isnan(q), jnp.inf, 0.0)
            nearest = jax.lax.map(lambda x: (jnp.square(points - x).sum(-1) + far).argmin(), agent_actions)
            agent_actions, own_q, best, best_q = (
                points[nearest],
                q[nearest],
                points[jnp.nanargmax(q)],
                jnp.nanmax(q),
            )
            rank = 1 + (q > own_q[-1]).sum().astype(jnp.float32)
        return {
            "proposals": agent_actions[:-1], "proposals_q": own_q[:-1],
            "action": agent_actions[-1], "action_q": own_q[-1],
            "best": best, "best_q": best_q, "rank": rank,
        }, [
            self._collect_candidates(*x, points, agent_actions)
            for x in zip(functions, values, ends, strict=True)
        ]  # fmt: skip

    def _climb(
        self, function: ActionValue, values: Array, points: Array, agent_actions: Array
    ) -> tuple[Array, Array]:
        """Run gradient ascent from the highest points and the agent's actions: end points and values."""
        scattered = points[: SCATTERED if self.edges is None else 0]
        start = jnp.concatenate([agent_actions, points[jax.lax.top_k(values, CLIMBERS)[1]], scattered])
        return ops.ascend_gradient(function, start)

    def _collect_candidates(
        self,
        function: ActionValue,
        values: Array,
        ends: tuple[Array, Array] | None,
        points: Array,
        agent_actions: Array,
    ) -> OptimaCandidates:
        """Collect the values in which local optima are counted, at one state."""
        none, low = jnp.zeros(0), jnp.nanmin(values)
        if self.edges is not None:
            return OptimaCandidates(values, none, none, low)
        if ends is None:
            return OptimaCandidates(none, none, none, low)
        # Descended to as the best is climbed to: random points alone miss more of both in more dimensions.
        start = jnp.concatenate([agent_actions, points[jax.lax.top_k(-values, CLIMBERS)[1]]])
        depths = ops.ascend_gradient(lambda action: -function(action), start)[1]
        return OptimaCandidates(
            none, ends[1], _find_saddles(function, *ends), jnp.minimum(low, -depths.max())
        )

    def _count_optima(
        self,
        candidate_sets: Sequence[OptimaCandidates],
        least: list[list[float]],
        edges: Sequence[Int[np.ndarray, "E 2"] | None],
    ) -> Float[np.ndarray, "g n k"]:
        """Count the local optima of each set that stand out by more than each of `least` at each state.

        `edges`: those of each state, from `edges_among`.
        """
        counts = np.full((len(candidate_sets), *np.shape(least)), np.nan)
        if self.edges is None and self.table is not None:
            return counts
        for g, candidates in enumerate(candidate_sets):
            sets = zip(*map(np.asarray, candidates), strict=True)
            for n, (values, heights, saddles, low) in enumerate(sets):
                if (graph := edges[n]) is not None:
                    prominence = ops.find_peaks(values, graph).prominence
                else:
                    pairs = np.stack(np.triu_indices(len(heights), 1), 1)
                    prominence = ops.find_prominences(heights, np.full(len(heights), low), pairs, saddles)
                counts[g, n] = [(prominence > x).sum() for x in least[n]]
        return counts


def with_objective(agent: Agent, q: QChoice) -> Base:
    """Return the agent's base with `q` as the actor's objective.

    Raises:
        UsageError: `q` is unknown.
    """
    if q not in get_args(QChoice):
        raise UnknownName(f"q is {q!r}; it must be one of {', '.join(get_args(QChoice))}.", field="q")
    return agent.base if q == "objective" else dataclasses.replace(agent.base, actor_objective=q)


def _in_chunks(function: ActionValue, action: Float[Array, "N A"]) -> Float[Array, " N"]:
    """Evaluate a function at many actions, `CHUNK` at a time."""
    return jax.lax.map(lambda a: function(a[None])[0], action, batch_size=CHUNK)


def _find_saddles(
    function: ActionValue, tops: Float[Array, "K A"], heights: Float[Array, " K"]
) -> Float[Array, " P"]:
    """Compute the lowest value on the straight line between every two of the `tops`."""
    a, b = np.triu_indices(len(tops), 1)
    part = jnp.linspace(0, 1, STEPS_BETWEEN + 2)[1:-1, None]

    def lowest(pair: tuple[Array, Array]) -> Array:
        i, j = pair
        between = function((1 - part) * tops[i] + part * tops[j])
        return jnp.minimum(between.min(), jnp.minimum(heights[i], heights[j]))

    return jax.lax.map(lowest, (jnp.asarray(a), jnp.asarray(b)), batch_size=256)


def _search_points(task: Spec) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the actions at which Q is evaluated in every state, and their neighbour pairs (None: no graph).

    Actions that are indices have no neighbours.
    """
    table, size = task.action_rows, task.action_size
    if table is not None:
        has_graph = task.choices is None and len(table) <= LARGEST_GRAPH
        return table, ops.nearest_edges(table) if has_graph else None
    if size > 2:
        return np.random.default_rng(0).uniform(-1, 1, (POINTS, size)).astype(np.float32), None
    shape = (LINE,) if size == 1 else (PLANE, PLANE)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.stack(axes, -1).reshape(-1, size).astype(np.float32), ops.grid_edges(shape)


def pick_states(
    rollouts: Sequence[Rollout], n: int
) -> tuple[list[tuple[int, int]], Float[np.ndarray, "n S"]]:
    """Pick at most n visited states, evenly over all steps: (episode, step) and raw observations."""
    places = _list_places(rollouts)
    places = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, n).astype(int))]
    return places, np.stack([rollouts[e].observation[t] for e, t in places])


def _list_places(rollouts: Sequence[Rollout]) -> list[tuple[int, int]]:
    return [(e, t) for e, rollout in enumerate(rollouts) for t in range(len(rollout.observation))]


def find_widest(
    trained: TrainedAgent, rollouts: Sequence[Rollout], q: QChoice = "objective", n: int = 5
) -> list[tuple[int, int]]:
    """Find the n visited states at which the later proposals gain most over the first.

    These maximise Q(s, μ_M(s)) - Q(s, a_0) over all steps of the episodes; μ_M(s) is the action taken.

    Returns:
        (episode, step) of each, the largest gain first.

    Raises:
        UsageError: the agent has no Q, or a single proposal.
    """
    trained.require_q("a landscape")
    agent, acting = trained.agent, trained.acting
    base = with_objective(agent, q)

    @jax.jit
    def gain(acting: ActingState, obs: Array, action: Array) -> Array:
        proposals = agent.proposals(acting, obs)
        if proposals.shape[1] == 1:
            raise UnfitAgent(
                f"--state-from widest: {trained.name} has one proposal and nothing to choose; "
                "give states as EPISODE:STEP, or leave the flag out.",
                field="state_from",
            )
        before, after = (
            combine_heads(base, critic_values(agent, acting, obs, a)) for a in (proposals[:, 0], action)
        )
        return after - before

    obs, action = (np.concatenate([getattr(r, name) for r in rollouts]) for name in ("observation", "action"))
    gained = np.asarray(gain(acting, obs, action))
    places = _list_places(rollouts)
    return [places[k] for k in np.argsort(-gained, kind="stable")[:n]]


def summarise(survey: Survey) -> dict[str, Any]:
    """Summarise a survey by means and percentiles over its states, ready for JSON.

    Returns:
        `states`, their number; `action` and `proposals` (a list), each with `gap` in units of Q and `share`
        of Q's range; `optima` and `all_optima` (see `Survey`) and `several`, the share of states with more
        than one of `optima`; `rank` of the action; `surrogates`, a list of SAVO's surrogates with
        `exact_optima` to `all_learned_optima` of each, as many as proposals if Ψ_0 is the first, else one
        less. None if a measure does not apply.
    """

    def of(gap: np.ndarray) -> dict[str, Any]:
        return {"gap": percentiles(gap), "share": percentiles(survey.share(gap))}

    result = {
        "states": len(survey.gap),
        "action": of(survey.gap),
        "proposals": [of(g) for g in survey.gaps.T],
    }
    for name in ("optima", "all_optima", "rank"):
        result[name] = percentiles(getattr(survey, name))
    counts = {name: getattr(survey, name) for name in COUNTS}
    result["surrogates"] = [
        {name: percentiles(column[:, i]) if i < column.shape[1] else None for name, column in counts.items()}
        for i in range(survey.exact_optima.shape[1])
    ]
    return result | {"several": float((survey.optima > 1).mean()) if result["optima"] else None}


def percentiles(x: Float[np.ndarray, " n"]) -> dict[str, float] | None:
    """Return mean, median (p50), 90% (p90) and maximum of numbers; None if one of them is not finite."""
    if not np.isfinite(x).all():
        return None
    p50, p90 = np.percentile(x, [50, 90])
    return {"mean": float(x.mean()), "p50": float(p50), "p90": float(p90), "max": float(x.max())}


class LandscapeProbe:
    """Probe `landscape`: means over a few states of every evaluation.

    `optimality_gap` of the action in units of Q, `optimality_gap_share` of Q's range, and `local_optima` that
    stand out by 1% of that range.
    """

    columns = ("optimality_gap", "optimality_gap_share", "local_optima")

    def __init__(self, agent: Agent) -> None:
        self.surveyor = Surveyor(agent, with_surrogates=False)

    def __call__(self, evaluation: PolicyEvaluation) -> Mapping[str, float]:
        """Raise UsageError: the agent has no Q."""
        if not has_q(evaluation.acting):
            raise UnfitAgent(
                "--probe landscape needs a Q(s, a), which this agent does not have; leave it out.",
                field="probe",
            )
        survey = self.surveyor(evaluation.acting, pick_states(evaluation.rollouts, PROBED)[1])
        means = (survey.gap.mean(), survey.share(survey.gap).mean(), survey.optima.mean())
        return dict(zip(self.columns, map(float, means), strict=True))
