"""The measurements of `qscape landscape`: a summary of many states and the landscapes of a few."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qscape.errors import Mismatch, OutOfRange
from qscape.inspect.landscape import SurveyedState, check_request, observation_at, parse_state
from qscape.inspect.planes import share_plane
from qscape.inspect.survey import QChoice, Survey, Surveyor, find_widest, pick_states, summarise
from qscape.inspect.trained_agent import SIDE_BY_SIDE, TrainedAgent
from qscape.inspect.valid import find_valid_balls
from qscape.ops.landscape import Plane
from qscape.report import environment_label
from qscape.run.evaluation import SEED
from qscape.tracking import track

WIDEST = "widest"  # a value of --state-from that selects several states
LINES, PLANES = 501, 61  # grid points along each axis if every save gets a landscape


def measure_landscapes(
    trained: TrainedAgent | Sequence[TrainedAgent],
    states: int = 100,
    at: Sequence[str] = (),
    plane: str | None = None,
    *,
    q: QChoice = "objective",
    points: int | None = None,
    episodes: int = 10,
    seed: int = SEED,
    other: TrainedAgent | Sequence[TrainedAgent] = (),
) -> dict[str, Any]:
    """Summarise many visited states and compute the landscapes of a few.

    All agents and all saves are measured at the same states. Two agents also have the same line or plane at
    each of them (`planes.share_plane`), which is that of all saves.

    Args:
        trained: an agent, or one agent at its saves, oldest first (`load_history`). The newest save visits
            the states.
        states: number of visited states in the summary, evenly spaced over the episodes.
        at: "EPISODE:STEP" of the states that get a landscape; "widest": see `survey.find_widest`; empty: the
            summarised states with the median, the 90% and the largest gap, as a share of Q's range.
        plane: see `landscape.landscape`.
        q: see `landscape.landscape`.
        points: grid points along each axis of a landscape; None: 2001 on a line and 101 on a plane, or 501
            and 61 with several saves.
        episodes: number of evaluation episodes.
        seed: seed of these episodes.
        other: a second agent (or its saves) to compare with; empty for none.

    Returns:
        name, label, env, dataset, step, policy, eval_seed, q; `summary` (see `survey.summarise`); for each
        summarised state its `place` [episode, step], the `gaps` of its proposals, the `gap` and `gap_share`
        of its action and its `optima`; `landscapes` (see `Landscape.to_dict`). With several saves
        `over_training`, for each save, oldest first: step, policy, summary, gaps, gap, gap_share, optima and
        landscapes. With a second agent `other`: all these keys of that agent.

    Raises:
        UsageError: the agent has no Q, the plane is impossible, an episode does not have the state, `states`
            is below 1, or the second agent has another environment or other actions.
    """
    agents = [[given] if isinstance(given, TrainedAgent) else list(given) for given in (trained, other)]
    agents = [saves for saves in agents if saves]
    for saves in agents:
        check_request(saves[-1], plane, points)
    first = agents[0][-1]
    require_same_task(first, agents[-1][-1])
    visits = visit_states(first, states, at, q, episodes, seed)
    if points is None and len(agents[0]) > 1:
        line = first.agent.task.action_size == 1 or (plane or "").isdecimal()
        points = LINES if line else PLANES
    surveyors = [Surveyor(saves[0].agent, q) for saves in agents]
    pairs = zip(surveyors, agents, strict=True)  # all states in one call compile one program
    newest = [surveyor(saves[-1].acting, visits.obs) for surveyor, saves in pairs]
    rows = visits.rows(newest[0].share(newest[0].gap))
    planes: list[str | Plane | None] = [plane] * len(rows)
    if len(agents) > 1 and first.agent.task.action_rows is None:  # two agents are seen on the same axes
        here, there = newest
        planes = [
            share_plane(plane, here.rows(k, k + 1), there.rows(k, k + 1), visits.taken) for k, _ in rows
        ]
    results = [
        _measure_agent(saves, surveyor, visits, rows, planes, points, survey)
        for saves, surveyor, survey in zip(agents, surveyors, newest, strict=True)
    ]
    return results[0] | ({"other": results[1]} if len(results) > 1 else {})


def require_same_task(first: TrainedAgent, other: TrainedAgent) -> None:
    """Refuse two agents that cannot be measured at the same states and actions.

    Raises:
        UsageError: their environments or their actions differ.
    """
    envs = [label_environment(trained) for trained in (first, other)]
    here, there = first.agent.task, other.agent.task
    if envs[0] != envs[1]:
        what = f"{first.name} acts in {envs[0]} and {other.name} in {envs[1]}"
    elif here.observation_size != there.observation_size:
        what = f"{first.name} sees {here.observation_size} numbers and {other.name} {there.observation_size}"
    elif not all(
        np.array_equal(getattr(here, name), getattr(there, name))
        for name in ("action_size", "low", "high", "table")
    ):
        what = f"{first.name} and {other.name} have different actions"
    else:
        return
    raise Mismatch(f"{what}; compare runs of one environment.")


def label_environment(trained: TrainedAgent) -> str:
    """Return the environment's id with its arguments; "" if the record has none."""
    return environment_label(trained.record) if "env" in trained.record else ""


class VisitedStates(NamedTuple):
    """The states that are measured.

    Attributes:
        places: (episode, step) of the summarised states.
        wanted: (episode, step) of the states that get a picture, if the user named them; else empty.
        obs: the observations of `places`, then of `wanted`.
        taken: all actions of the episodes.
        seed: the seed of the episodes.
    """

    places: list[tuple[int, int]]
    wanted: list[tuple[int, int]]
    obs: Float[np.ndarray, "n S"]
    taken: Float[np.ndarray, "T A"]
    seed: int

    def rows(self, numbers: Float[np.ndarray, " n"]) -> list[tuple[int, str]]:
        """Choose the rows of `obs` that get a picture, each with its "EPISODE:STEP".

        These are the named states, or those with the median, the 90% and the largest of `numbers`.
        """
        n, wanted = len(self.places), self.wanted
        if wanted:
            chosen, places = range(n, n + len(wanted)), self.wanted
        else:
            middle_to_worst = np.argsort(numbers, kind="stable")[[(n - 1) // 2, int(0.9 * (n - 1)), n - 1]]
            chosen = dict.fromkeys(middle_to_worst.tolist())
            places = [self.places[k] for k in chosen]
        return [(k, f"{episode}:{step}") for k, (episode, step) in zip(chosen, places, strict=True)]


def visit_states(
    trained: TrainedAgent, states: int, at: Sequence[str], q: QChoice, episodes: int, seed: int
) -> VisitedStates:
    """Run evaluation episodes and pick the states to measure."""
    for flag, number in (("states", states), ("episodes", episodes)):
        if number < 1:
            raise OutOfRange(f"--{flag} is {number}; it must be at least 1.", field=flag)
    named = {state: [parse_state(state)] for state in at if state != WIDEST}
    needed = [place[0] + 1 for (place,) in named.values()]
    done = trained.rollouts(max(episodes, *needed, SIDE_BY_SIDE if needed else 0), seed)
    if WIDEST in at:
        named[WIDEST] = find_widest(trained, done[:episodes], q)
    wanted = [place for state in at for place in named[state]]
    looked = [observation_at(done, *place) for place in wanted]
    places, obs = pick_states(done[:episodes], states)
    taken = np.concatenate([rollout.action for rollout in done])
    return VisitedStates(places, wanted, np.stack([*obs, *looked]), taken, seed)


def _measure_agent(
    saves: Sequence[TrainedAgent],
    surveyor: Surveyor,
    visits: VisitedStates,
    rows: list[tuple[int, str]],
    planes: Sequence[str | Plane | None],
    points: int | None,
    newest: Survey,
) -> dict[str, Any]:
    """Measure one agent at its newest save and, if there are several, at all saves.

    `planes`: that of each row; `newest`: the survey of the last save.
    """
    label, env = saves[-1].record.get("label", saves[-1].agent.recipe), label_environment(saves[-1])
    balls = find_valid_balls(saves[-1])

    def moment(trained: TrainedAgent) -> dict[str, Any]:
        whole = newest if trained is saves[-1] else surveyor(trained.acting, visits.obs)
        survey = whole.rows(0, len(visits.places))
        title = f"{label} on {env}, step {trained.step:,}"
        spots = [
            SurveyedState(surveyor, trained.acting, visits.obs[k], whole.rows(k, k + 1), title, place, balls)
            for k, place in rows
        ]
        return {
            "step": trained.step,
            "policy": trained.policy,
            "summary": summarise(survey),
            "gaps": survey.gaps,
            "gap": survey.gap,
            "gap_share": survey.share(survey.gap),
            "optima": survey.optima,
            "landscapes": [
                spot.compute_landscape(plane, visits.taken, points).to_dict()
                for spot, plane in track([*zip(spots, planes, strict=True)], f"landscapes of {label}")
            ],
        }

    moments = [moment(trained) for trained in track(saves, f"saves of {label}")]
    result = {
        "name": saves[-1].name,
        "label": label,
        "env": env,
        "dataset": saves[-1].record.get("dataset"),
        "eval_seed": visits.seed,
        "q": surveyor.base.actor_objective,
        "place": visits.places,
    } | moments[-1]
    return result | ({"over_training": moments} if len(moments) > 1 else {})
