"""The landscape Q(s, ·) at one state: on a line or plane through action space, or over an action table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qscape.errors import Mismatch, OutOfRange, WrongValue
from qscape.inspect.planes import PLANES, check_plane, make_plane
from qscape.inspect.surrogates import Surrogate
from qscape.inspect.survey import LARGEST_GRAPH, LINE, PLANE, QChoice, Survey, Surveyor
from qscape.inspect.trained_agent import SIDE_BY_SIDE, TrainedAgent, load_trained_agent
from qscape.inspect.valid import Balls, find_valid_balls, valid_intervals
from qscape.offpolicy.state import ActingState
from qscape.ops import landscape as ops
from qscape.report.marks import INDEX
from qscape.run.evaluation import Rollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARROWS, SLOPES = 17, 201  # gradients along each axis of a plane, along a line


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """Q at one state, on a line or plane through action space or over an action table. Actions in [-1, 1].

    Attributes:
        title: name of the agent, for plots.
        place: "EPISODE:STEP" of the state, or "" for an observation given by the caller.
        kind: "line", "plane" or "table".
        plane: the line or plane; for a table that of its principal components.
        grid: coordinates along each axis of the plane; for a table those of its N entries.
        q: Q in shape `[n]` (line), `[n, m]` (plane; NaN outside the action box) or `[N]` (table; NaN for
            entries that are not valid).
        arrows: `[K, 2d]` of a line or plane: coordinates, then ∇ₐQ projected on it; `[0, 4]` of a table.
        optima: `[P, d]` coordinates of local optima on the plane (of a table: in its neighbour graph),
            highest first.
        optima_q: `[P]` Q at the optima.
        prominence: `[P]` by how much each optimum stands out, in units of Q.
        survey: the state's row of `Survey`: proposals, action, best action found, and Q there.
        surrogates: with SAVO Ψ_i and Ψ̂_i, i = 1 .. L-1, at the points of `q`, and i = 0 before them at raw
            vectors; else empty.
        valid: `[K, 2]` intervals of a line that the environment accepts; `[0, 2]` if it accepts every action.
    """

    title: str
    place: str
    kind: str
    plane: ops.Plane
    grid: tuple[Float[np.ndarray, " n"], ...]
    q: Float[np.ndarray, "..."]
    arrows: Float[np.ndarray, "K d2"]
    optima: Float[np.ndarray, "P d"]
    optima_q: Float[np.ndarray, " P"]
    prominence: Float[np.ndarray, " P"]
    survey: Survey
    surrogates: tuple[Surrogate, ...] = ()
    valid: Float[np.ndarray, "K 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def gap(self) -> float:
        """Optimality gap of the action, in units of Q."""
        return float(self.survey.gap[0])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the landscape on matplotlib axes (None: new ones) and return them."""
        from qscape.report.landscapes import draw_landscape

        return draw_landscape(self.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as arrays and strings, the form that plots and `landscape.json` use.

        A table of more than 20,000 entries is thinned, evenly over its order by Q; `entries` is the full
        number of those whose actions are valid.
        """
        survey = {k: v[0] for k, v in self.survey._asdict().items()}
        survey |= {"gaps": self.survey.gaps[0], "gap": self.survey.gap[0], "span": self.survey.true_span()[0]}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        drawn = self.surrogates
        if self.kind == "table" and len(self.q) > LARGEST_GRAPH:
            kept = np.argsort(self.q)[np.linspace(0, len(self.q) - 1, LARGEST_GRAPH).astype(int)]
            fields |= {"q": self.q[kept], "grid": tuple(axis[kept] for axis in self.grid)}
            drawn = tuple(surrogate.at(kept) for surrogate in drawn)
        return fields | {
            "plane": self.plane._asdict(),
            "survey": survey,
            "surrogates": [surrogate._asdict() for surrogate in drawn],
            "entries": int(np.isfinite(self.q).sum()),
        }


@runtime_checkable
class HasTrainedAgent(Protocol):
    """An object that holds a trained agent, such as a `qs.Model`."""

    @property
    def trained_agent(self) -> TrainedAgent: ...


def landscape(
    trained: "TrainedAgent | HasTrainedAgent | str | Path",
    state: Float[np.ndarray, " S"] | str,
    plane: str | None = None,
    *,
    q: QChoice = "objective",
    points: int | None = None,
    taken: Float[np.ndarray, "T A"] | None = None,
    surveyor: Surveyor | None = None,
) -> Landscape:
    """Compute Q at one state on a line or plane through the agent's action.

    Args:
        trained: a run folder, a `qs.Model`, or a `TrainedAgent` (`inspect.trained_agent.make_trained_agent`).
        state: a raw observation, flat or as the environment gives it, or "EPISODE:STEP" of an evaluation.
        plane: "I" or "I,J", dimensions of the action; "pca", principal components of the actions taken;
            "proposals", through the proposals and the best action found; "random". None: the whole action
            space if it has one or two dimensions, else "proposals".
        q: which value of the critics: "objective" (what the actor maximises), "first", "min" or "mean".
        points: grid points along each axis; None: 2001 on a line, 101 on a plane.
        taken: actions [T, A] for "pca"; None: those of one evaluation episode.
        surveyor: a `Surveyor` of the same agent, to reuse its compiled programs; None: make one.

    Raises:
        UsageError: the agent has no Q, `q` or `plane` is unknown or impossible, the episode does not have the
            state, or the state is not a single finite observation.
    """
    if not isinstance(trained, TrainedAgent):
        trained = load_trained_agent(trained) if isinstance(trained, str | Path) else trained.trained_agent
    check_request(trained, plane, points)
    place = state if isinstance(state, str) else ""
    if isinstance(state, str):
        episode, step = parse_state(state)
        done = trained.rollouts(max(episode + 1, SIDE_BY_SIDE))  # as many as `qscape landscape` runs
        state = observation_at(done, episode, step)
    if plane == "pca" and taken is None:
        taken = trained.rollouts(1)[0].action
    surveyor = surveyor or Surveyor(trained.agent, q)
    obs = _as_observation(trained, state)
    survey, title = surveyor(trained.acting, obs[None]), trained.agent.recipe
    spot = SurveyedState(surveyor, trained.acting, obs, survey, title, place, find_valid_balls(trained))
    return spot.compute_landscape(plane, taken, points)


def _as_observation(trained: TrainedAgent, state: Any) -> Float[np.ndarray, " S"]:
    """Convert a state, flat or of the environment's space, to one raw observation.

    Raises:
        UsageError: it is something else, a batch, without what critics alone see, or not finite.
    """
    try:
        row = np.asarray(state, np.float32)
    except (TypeError, ValueError):  # a Dict observation: the adapter flattens it
        row = np.zeros(())
    if row.shape != (trained.agent.task.row_size,):
        adapter = trained.make()
        try:
            rows, batched = adapter.observations(state, whole=True)
            if adapter.stack is not None:  # as the first ones of episodes
                rows = adapter.stack.begin(rows)
        finally:
            adapter.close()
        if batched:
            raise Mismatch(f"the state is a batch of {len(rows)}; a landscape needs one observation")
        row = rows[0].astype(np.float32)
    if not np.isfinite(row).all():
        k = np.flatnonzero(~np.isfinite(row))[0]
        raise OutOfRange(f"the state's number {k} is {row[k]}; a landscape needs finite numbers")
    return row


def check_request(trained: TrainedAgent, plane: str | None, points: int | None) -> None:
    """Refuse an impossible request before anything is computed.

    Raises:
        UsageError: the agent has no Q, the plane is impossible, or the grid has too few points.
    """
    trained.require_q("a landscape")
    check_plane(plane, trained)
    # The corners of a slanted plane lie outside the box; a grid of 5 always has points inside.
    task = trained.agent.task
    slanted = plane in PLANES or (plane is None and task.table is None and task.action_size > 2)
    least, why = (5, ", because the corners of this plane lie outside the action box") if slanted else (2, "")
    if points is not None and points < least:
        raise OutOfRange(f"--grid is {points}; it must be at least {least}{why}.", field="grid")


def to_jsonable(value: Any) -> Any:
    """Convert arrays to nested lists and round numbers to six digits."""
    if isinstance(value, dict):
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_jsonable(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


class SurveyedState(NamedTuple):
    """One state with its survey, from which landscapes are computed.

    Attributes:
        surveyor: the compiled programs of the agent.
        acting: the acting state.
        obs: the raw observation.
        survey: the survey of this one state.
        title: see `Landscape`.
        place: see `Landscape`.
        balls: the valid actions; None if the environment accepts every action.
    """

    surveyor: Surveyor
    acting: ActingState
    obs: Float[np.ndarray, " S"]
    survey: Survey
    title: str
    place: str
    balls: Balls | None

    def compute_landscape(
        self, plane: str | ops.Plane | None, taken: np.ndarray | None, points: int | None = None
    ) -> Landscape:
        """Compute Q on the requested line or plane, or over the agent's action table."""
        if self.surveyor.table is not None:
            return self.table()
        made = plane if isinstance(plane, ops.Plane) else make_plane(plane, self.survey, taken)
        return self.plane(made, points)

    def plane(self, plane: ops.Plane, points: int | None = None) -> Landscape:
        """Compute Q on a line or plane."""
        d = len(plane.axes)
        grid = plane.grid(points or (LINE if d == 1 else PLANE))
        at = plane.at(np.stack(np.meshgrid(*grid, indexing="ij"), -1))
        inside = (np.abs(at) <= 1 + 1e-6).all(-1)
        q = np.where(inside, self.surveyor.q(self.acting, self.obs, at.clip(-1, 1)), np.nan)
        peaks = ops.find_peaks(q.ravel(), ops.grid_edges(q.shape)).above(
            ops.prominence_threshold(np.nanmin(q), np.nanmax(q))
        )
        where = [axis[i] for axis, i in zip(grid, np.unravel_index(peaks.node, q.shape), strict=True)]
        return Landscape(
            self.title, self.place, "line" if d == 1 else "plane", plane, tuple(grid), q, self.arrows(plane),
            np.stack(where, -1), q.ravel()[peaks.node], peaks.prominence, self.survey,
            self.surrogates(q, at.clip(-1, 1)), valid_intervals(plane, self.balls),
        )  # fmt: skip

    def arrows(self, plane: ops.Plane) -> Float[np.ndarray, "K d2"]:
        """Compute the gradient field on a line or plane, at the cell centres of a coarse grid."""
        d = len(plane.axes)
        edges = plane.grid(1 + (SLOPES if d == 1 else ARROWS))
        at = np.stack(np.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges), indexing="ij"), -1).reshape(-1, d)
        # Points outside the box are computed too, so that all planes of a size share one compiled program.
        slope = self.surveyor.slope(self.acting, self.obs, plane.at(at).clip(-1, 1))
        inside = (np.abs(plane.at(at)) <= 1).all(-1)
        return np.concatenate([at, slope @ plane.axes.T], 1)[inside]

    def table(self) -> Landscape:
        """Compute Q over an action table, laid out on its first two principal components, or over indices."""
        rows = np.asarray(self.surveyor.table)
        d = min(2, rows.shape[1])
        if self.surveyor.agent.task.choices is not None:
            plane = ops.Plane(np.zeros(1), np.eye(1), (INDEX,))
        else:
            names = tuple(f"principal component {k + 1} of the table" for k in range(d))
            plane = ops.Plane(rows.mean(0), ops.principal_axes(rows, d), names)
        q, grid = self.surveyor.entries(self.acting, self.obs), plane.coordinates(rows)
        edges = self.surveyor.edges_among(q)
        none = ops.Peaks(np.zeros(0, int), np.zeros(0))
        peaks = (
            none
            if edges is None
            else ops.find_peaks(q, edges).above(ops.prominence_threshold(np.nanmin(q), np.nanmax(q)))
        )
        return Landscape(
            self.title, self.place, "table", plane, tuple(grid.T), q, np.zeros((0, 4)),
            grid[peaks.node], q[peaks.node], peaks.prominence, self.survey, self.surrogates(q, rows),
        )  # fmt: skip

    def surrogates(self, q: np.ndarray, at: Float[np.ndarray, "... A"]) -> tuple[Surrogate, ...]:
        """Compute SAVO's surrogates where Q is `q`, if the surveyor has them; NaN where `q` is NaN."""
        if not self.surveyor.order:
            return ()
        floors = self.surveyor.floors(self.survey.proposals_q)[0].tolist()
        floors = [float(np.nanmin(q)) if np.isneginf(x) else x for x in floors]
        learned = self.surveyor.learned(self.acting, self.obs, self.survey.proposals[0], at)
        shown = [np.where(np.isnan(q), np.nan, psi) for psi in learned] or [None] * len(floors)
        return tuple(Surrogate(x, np.maximum(q, x), psi) for x, psi in zip(floors, shown, strict=True))


def parse_state(state: str) -> tuple[int, int]:
    """Parse "EPISODE:STEP", both counted from 0.

    Raises:
        UsageError: the text has another form.
    """
    episode, sign, step = state.partition(":")
    if not (sign and episode.isdecimal() and step.isdecimal()):
        raise WrongValue(
            f"--state-from {state} is not EPISODE:STEP, like 0:50 (both from 0).", field="state_from"
        )
    return int(episode), int(step)


def observation_at(episodes: Sequence[Rollout], episode: int, step: int) -> Float[np.ndarray, " S"]:
    """Return the observation at a step of an episode.

    Raises:
        UsageError: the episode is shorter.
    """
    rows = episodes[episode].observation
    if step >= len(rows):
        raise OutOfRange(
            f"--state-from {episode}:{step}: episode {episode} has {len(rows)} steps, 0 to {len(rows) - 1}.",
            field="state_from",
        )
    return rows[step]
