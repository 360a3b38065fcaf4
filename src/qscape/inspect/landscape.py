"""The landscape Q(s, ·) at one state: on a line or plane through action space, or over an action table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from qscape.errors import UsageError
from qscape.inspect.planes import check_plane, plane_of
from qscape.inspect.subject import Subject, of_run
from qscape.inspect.surrogates import Surrogate
from qscape.inspect.survey import LARGEST_GRAPH, LINE, PLANE, Survey, Surveyor, Which
from qscape.inspect.valid import Balls, valid_balls, valid_on
from qscape.offpolicy.state import ActingState
from qscape.ops import landscape as ops
from qscape.run.evaluation import Rollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARROWS, SLOPES = 17, 201  # of the gradient field along each axis of a plane, along a line


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """Q at one state, on a line or plane through action space or over an action table. Actions in [-1, 1].

    Attributes:
        title: whose it is. `place`: "EPISODE:STEP" of the state, or "" for an observation of one's own.
        kind: "line", "plane" or "table".
        plane: the line or plane; of a table that of its principal components.
        grid: coordinates along each axis of the plane; of a table those of its N entries.
        q: `[n]`, `[n, m]` (NaN outside the action box) or `[N]`.
        arrows: `[K, 2d]` of a line or plane, coordinates and ∇ₐQ in it; of a table `[0, 4]`.
        optima: `[P, d]` coordinates of local optima on the plane (of a table: in its graph), highest first,
            `optima_q` and `prominence` `[P]`.
        survey: the state's row of `Survey`: proposals, action, best, and Q there.
        surrogates: with SAVO Ψ_i and Ψ̂_i, i = 1 .. L-1, where `q` is Q.
        valid: `[K, 2]` of a line the intervals that the environment accepts; all of it: `[0, 2]`.
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
        """Draw it; gives the axes back."""
        from qscape.report.landscapes import draw

        return draw(self.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """Everything as arrays and words, as it is drawn and stored.

        A table of more than 20,000 entries is thinned, evenly over its order by Q; `entries` says how many
        there are.
        """
        survey = {k: v[0] for k, v in self.survey._asdict().items()}
        survey |= {"gaps": self.survey.gaps[0], "gap": self.survey.gap[0]}
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
            "entries": self.q.size,
        }


class HasSubject(Protocol):
    """What can be looked at, such as a `qs.Model`."""

    @property
    def subject(self) -> Subject: ...


def landscape(
    subject: "Subject | HasSubject | str | Path",
    state: Float[np.ndarray, " S"] | str,
    plane: str | None = None,
    *,
    q: Which = "objective",
    points: int | None = None,
    taken: Float[np.ndarray, "T A"] | None = None,
    surveyor: Surveyor | None = None,
) -> Landscape:
    """Q at one state on a line or plane through the agent's action.

    Args:
        subject: a run folder, a `qs.Model`, or an agent in memory (`inspect.subject.of_state`).
        state: a raw observation, flat or as the environment gives it, or "EPISODE:STEP" of an evaluation.
        plane: "I" or "I,J" dimensions of the action; "pca" of the actions taken; "proposals" through the
            proposals and the best action found; "random". None: all of the action space where it has one or
            two dimensions, else "proposals".
        points: along each axis; None: 2001 on a line, 101 on a plane.
        taken: actions for "pca"; None: those of one evaluation episode.
        surveyor: one that was made before, to save compilation.

    Raises:
        UsageError: an agent without Q, no such `q`, a plane that cannot be, a state the episode does not
            have, or what is no single finite observation.
    """
    if not isinstance(subject, Subject):
        subject = of_run(subject) if isinstance(subject, str | Path) else subject.subject
    check(subject, plane, points)
    place = state if isinstance(state, str) else ""
    if isinstance(state, str):
        episode, step = parse_state(state)
        state = visited(subject.rollouts(episode + 1), episode, step)
    if plane == "pca" and taken is None:
        taken = subject.rollouts(1)[0].action
    surveyor = surveyor or Surveyor(subject.agent, q)
    obs = _row(subject, state)
    survey, title = surveyor(subject.acting, obs[None]), subject.agent.recipe
    spot = Spot(surveyor, subject.acting, obs, survey, title, place, valid_balls(subject))
    return spot.look(plane, taken, points)


def _row(subject: Subject, state: Any) -> Float[np.ndarray, " S"]:
    """One raw observation, flat or of the environment's space, as a row.

    Raises:
        UsageError: it is something else, a batch, or not finite.
    """
    try:
        row = np.asarray(state, np.float32)
    except (TypeError, ValueError):  # a Dict is for the edge
        row = np.zeros(())
    if row.shape != (subject.agent.task.observation_size,):
        adapter = subject.make()
        try:
            rows, batched = adapter.observations(state)
        except (KeyError, IndexError, TypeError, ValueError) as problem:
            raise UsageError(f"the state is no observation of {adapter.env_id}: {problem}") from problem
        finally:
            adapter.close()
        if batched:
            raise UsageError(f"the state is a batch of {len(rows)}; a landscape is that of one observation")
        row = rows[0].astype(np.float32)
    if not np.isfinite(row).all():
        k = np.flatnonzero(~np.isfinite(row))[0]
        raise UsageError(f"the state's number {k} is {row[k]}; there is no landscape of that")
    return row


def check(subject: Subject, plane: str | None, points: int | None) -> None:
    """Refuse what cannot be looked at, before anything is computed.

    Raises:
        UsageError: an agent without Q, a plane that cannot be, a grid of fewer than two points.
    """
    subject.need_q("a landscape")
    check_plane(plane, subject)
    if points is not None and points < 2:
        raise UsageError(f"--grid is {points}; it must be at least 2.")


def jsonable(found: Any) -> Any:
    """Arrays as nested lists, numbers to six digits."""
    if isinstance(found, dict):
        return {key: jsonable(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [jsonable(value) for value in found]
    if isinstance(found, np.ndarray | np.generic):
        return jsonable(found.tolist())
    return float(f"{found:.6g}") if isinstance(found, float) else found


class Spot(NamedTuple):
    """One state, surveyed, about to be looked at."""

    surveyor: Surveyor
    acting: ActingState
    obs: Float[np.ndarray, " S"]
    survey: Survey  # of this one state
    title: str
    place: str
    balls: Balls | None  # what the environment accepts

    def look(self, plane: str | None, taken: np.ndarray | None, points: int | None = None) -> Landscape:
        """Q on the line or plane that is asked for, or over the table."""
        if self.surveyor.table is not None:
            return self.table()
        return self.plane(plane_of(plane, self.survey, taken), points)

    def plane(self, plane: ops.Plane, points: int | None = None) -> Landscape:
        """Q on a line or plane."""
        d = len(plane.axes)
        grid = plane.grid(points or (LINE if d == 1 else PLANE))
        at = plane.at(np.stack(np.meshgrid(*grid, indexing="ij"), -1))
        inside = (np.abs(at) <= 1 + 1e-6).all(-1)
        q = np.where(inside, self.surveyor.q(self.acting, self.obs, at.clip(-1, 1)), np.nan)
        found = ops.find_peaks(q.ravel(), ops.grid_edges(q.shape)).above(
            ops.prominence_threshold(np.nanmin(q), np.nanmax(q))
        )
        where = [axis[i] for axis, i in zip(grid, np.unravel_index(found.node, q.shape), strict=True)]
        return Landscape(
            self.title, self.place, "line" if d == 1 else "plane", plane, tuple(grid), q, self.arrows(plane),
            np.stack(where, -1), q.ravel()[found.node], found.prominence, self.survey,
            self.surrogates(q, at.clip(-1, 1)), valid_on(plane, self.balls),
        )  # fmt: skip

    def arrows(self, plane: ops.Plane) -> Float[np.ndarray, "K d2"]:
        """The gradient field on a line or plane, at the middles of a coarse grid."""
        d = len(plane.axes)
        edges = plane.grid(1 + (SLOPES if d == 1 else ARROWS))
        at = np.stack(np.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges), indexing="ij"), -1).reshape(-1, d)
        # Also what lies outside is computed: then every plane of a size is the same compiled program.
        slope = self.surveyor.slope(self.acting, self.obs, plane.at(at).clip(-1, 1))
        inside = (np.abs(plane.at(at)) <= 1).all(-1)
        return np.concatenate([at, slope @ plane.axes.T], 1)[inside]

    def table(self) -> Landscape:
        """Q over an action table, laid out on its first two principal components."""
        rows = np.asarray(self.surveyor.table)
        d = min(2, rows.shape[1])
        names = tuple(f"principal component {k + 1} of the table" for k in range(d))
        plane = ops.Plane(rows.mean(0), ops.principal_axes(rows, d), names)
        q, grid = self.surveyor.q(self.acting, self.obs, rows), plane.coordinates(rows)
        edges = self.surveyor.edges
        none = ops.Peaks(np.zeros(0, int), np.zeros(0))
        found = (
            none
            if edges is None
            else ops.find_peaks(q, edges).above(ops.prominence_threshold(np.nanmin(q), np.nanmax(q)))
        )
        return Landscape(
            self.title, self.place, "table", plane, tuple(grid.T), q, np.zeros((0, 4)),
            grid[found.node], q[found.node], found.prominence, self.survey, self.surrogates(q, rows),
        )  # fmt: skip

    def surrogates(self, q: np.ndarray, at: Float[np.ndarray, "... A"]) -> tuple[Surrogate, ...]:
        """SAVO's surrogates at actions, where Q is `q`: NaN where that is."""
        floors = ops.proposal_floors(self.survey.proposals_q)[0, : self.surveyor.order].tolist()
        learned = self.surveyor.learned(self.acting, self.obs, self.survey.proposals[0], at)
        shown = [np.where(np.isnan(q), np.nan, psi) for psi in learned] or [None] * len(floors)
        return tuple(Surrogate(x, np.maximum(q, x), psi) for x, psi in zip(floors, shown, strict=True))


def parse_state(state: str) -> tuple[int, int]:
    """Episode and step of "EPISODE:STEP", both from 0.

    Raises:
        UsageError: it is not of that form.
    """
    episode, sign, step = state.partition(":")
    if not (sign and episode.isdecimal() and step.isdecimal()):
        raise UsageError(f"--state-from {state} is no EPISODE:STEP, like 0:50 (both from 0).")
    return int(episode), int(step)


def visited(episodes: Sequence[Rollout], episode: int, step: int) -> Float[np.ndarray, " S"]:
    """The observation at a step of an episode.

    Raises:
        UsageError: the episode does not have it.
    """
    rows = episodes[episode].observation
    if step >= len(rows):
        raise UsageError(
            f"--state-from {episode}:{step}: episode {episode} has {len(rows)} steps, 0 to {len(rows) - 1}."
        )
    return rows[step]
