"""The line or plane through action space on which Q is computed."""

import numpy as np
from jaxtyping import Float

from qscape.errors import OutOfRange, UnfitAgent, UnknownName
from qscape.inspect.survey import Survey
from qscape.inspect.trained_agent import TrainedAgent
from qscape.ops import landscape as ops

PLANES = ("pca", "proposals", "random")
NARROW = 0.1  # a plane that has no more than this of the box [-1, 1]^A shows nothing
SAME = 1e-3  # points closer to each other than this count as one


def check_plane(plane: str | None, trained: TrainedAgent) -> None:
    """Refuse an impossible plane before anything is computed.

    Raises:
        UsageError: the name is unknown, the action has no such dimension, or the actions are those of a
            table.
    """
    task, size = trained.agent.task, trained.agent.task.action_size
    if plane is None:
        return
    if task.action_rows is not None:
        raise UnfitAgent(
            f"--plane {plane}: {trained.name} chooses one of {len(task.action_rows):,} actions, and Q is "
            "computed at all of them; leave --plane out.",
            field="plane",
        )
    dims = plane.split(",")
    named = plane in PLANES
    if not named and not (len(dims) <= 2 and all(d.strip().isdecimal() for d in dims)):
        raise UnknownName(
            f"--plane {plane} is unknown; choose {', '.join(PLANES)}, or the dimensions I,J or I.",
            field="plane",
        )
    if size == 1 and (named or len(dims) == 2):
        raise OutOfRange(
            f"--plane {plane}: the actions of {trained.name} have one dimension; "
            "leave --plane out to see Q along it.",
            field="plane",
        )
    if not named and (max(map(int, dims)) >= size or len(set(map(int, dims))) < len(dims)):
        raise OutOfRange(
            f"--plane {plane}: the action has dimensions 0 to {size - 1}; name each once.", field="plane"
        )


def share_plane(plane: str | None, first: Survey, second: Survey, taken: np.ndarray | None) -> ops.Plane:
    """Construct one line or plane for two agents at the same state.

    By default it passes through both agents' actions and the best action that the first one's Q has; else it
    is the plane of that name through the first agent's action. Arguments are those of `make_plane`.
    """
    if len(first.action[0]) > 2 and plane in (None, "proposals"):
        points = np.concatenate([first.action, second.action, first.best])
        return _through_points(points, "from the first agent's action to the", "second's")
    return make_plane(plane, first, taken)


def make_plane(plane: str | None, survey: Survey, taken: Float[np.ndarray, "T A"] | None) -> ops.Plane:
    """Construct the line or plane called `plane` through the action of a surveyed state.

    Args:
        plane: see `landscape.landscape`.
        survey: the survey of that one state.
        taken: actions [T, A] for "pca"; else unused.
    """
    action = survey.action[0]
    size = len(action)
    plane = plane or ("0" if size == 1 else "0,1" if size == 2 else "proposals")
    if plane == "pca":
        axes, middle = ops.principal_axes(np.asarray(taken), 2), np.mean(np.asarray(taken), 0)
        names = tuple(f"principal component {k} of the actions" for k in (1, 2))
        return _through_action(ops.Plane(action, axes, names), middle)
    if plane == "random":
        axes = ops.span_axes(np.random.default_rng(0).normal(size=(3, size)), 2)
        made = ops.Plane(action, axes, ("random direction 1", "random direction 2"))
        return _through_action(made, np.zeros(size))
    if plane == "proposals":
        points = np.concatenate([survey.proposals[0], survey.best])
        return _through_points(points, "from the first proposal to the", "next")
    dims = [int(d) for d in plane.split(",")]
    origin = action.copy()
    origin[dims] = 0.0
    return ops.Plane(origin, np.eye(size)[dims], tuple(f"action dimension {k}" for k in dims))


def _through_action(plane: ops.Plane, middle: Float[np.ndarray, " A"]) -> ops.Plane:
    """Return a plane through the action, or a parallel one through `middle` if only a corner lies in the box.

    Of most planes through a corner of the box, which is where many actors end, it holds the corner alone.
    """
    is_narrow = min(map(np.ptp, plane.grid(2))) < NARROW
    return plane._replace(origin=middle) if is_narrow else plane


def _through_points(points: Float[np.ndarray, "P A"], start: str, following: str) -> ops.Plane:
    """Construct the plane from the first point towards the others, of which the last is the best action."""
    far = np.linalg.norm(points[1:-1] - points[0], axis=1) > SAME
    names = (f"{start} {following if far.any() else 'best found'}", "at a right angle to it")
    return ops.Plane(points[0], ops.span_axes(points, 2, SAME), names)
