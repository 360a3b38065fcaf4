"""What `qscape landscape` shows: states summed up and looked at, one agent or two, now or over training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qscape.errors import UsageError
from qscape.inspect.landscape import Spot, check, parse_state, visited
from qscape.inspect.subject import Subject
from qscape.inspect.survey import Survey, Surveyor, Which, picked, summary, widest
from qscape.inspect.valid import valid_balls
from qscape.report import environment
from qscape.run.evaluation import SEED

WIDEST = "widest"  # names states, where EPISODE:STEP names one
LINES, PLANES = 501, 61  # points along each axis where there is a picture of every save


def measure(
    subject: Subject | Sequence[Subject],
    states: int = 100,
    at: Sequence[str] = (),
    plane: str | None = None,
    *,
    q: Which = "objective",
    points: int | None = None,
    episodes: int = 10,
    seed: int = SEED,
    other: Subject | Sequence[Subject] = (),
) -> dict[str, Any]:
    """Many states summed up, and a few looked at; all agents and saves are measured at the same states.

    Args:
        subject: an agent, or the same agent at its saves, oldest first (`history_of`). As it is in the last
            of them it visits the states.
        states: visited states that are summed up, evenly over the episodes.
        at: "EPISODE:STEP" of those that are looked at; "widest": see `survey.widest`; empty: of the former
            those with the median, the 90% and the largest gap, as a share of Q's range.
        points: along each axis of a picture; None: 2001 on a line and 101 on a plane; with saves 501 and 61.
        other: a second agent (or its saves) to set beside.

    Keys: what was measured (name, label, env, step, policy, eval_seed, q); `summary` (see `survey.summary`);
    for each of the states its `place` [episode, step], the `gaps` of its proposals, the `gap` and `gap_share`
    of its action, its `optima`; `landscapes`: of those looked at (see `Landscape`). With saves also
    `over_training`: for each of them, oldest first, step, policy, summary, gaps, gap, gap_share, optima and
    landscapes. With a second agent `other`: all these keys of it.

    Raises:
        UsageError: an agent without Q, a plane that cannot be, a state the episode does not have, no states,
            a second agent of another environment or with other actions.
    """
    agents = [[given] if isinstance(given, Subject) else list(given) for given in (subject, other)]
    agents = [saves for saves in agents if saves]
    for saves in agents:
        check(saves[-1], plane, points)
    first = agents[0][-1]
    refuse_unlike(first, agents[-1][-1])
    visits = _visits(first, states, at, q, episodes, seed)
    if points is None and len(agents[0]) > 1:
        line = first.agent.task.action_size == 1 or (plane or "").isdecimal()
        points = LINES if line else PLANES
    surveyors = [Surveyor(saves[0].agent, q) for saves in agents]
    newest = surveyors[0](first.acting, visits.obs)  # all states in one call: one program to compile
    rows = visits.rows(newest)
    found = [
        _agent(saves, surveyor, visits, rows, plane, points, newest if saves is agents[0] else None)
        for saves, surveyor in zip(agents, surveyors, strict=True)
    ]
    return found[0] | ({"other": found[1]} if len(found) > 1 else {})


def refuse_unlike(first: Subject, other: Subject) -> None:
    """Refuse two agents that cannot be asked about the same states and actions.

    Raises:
        UsageError: their environments or their actions differ.
    """
    envs = [_environment(subject) for subject in (first, other)]
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
    raise UsageError(f"{what}; side by side stand runs of one environment.")


def _environment(subject: Subject) -> str:
    """Its id with the arguments it was made with; "" where nothing is recorded."""
    return environment(subject.record) if "env" in subject.record else ""


class Visits(NamedTuple):
    """The states that are measured.

    Attributes:
        places: (episode, step) of those that are summed up. `wanted`: of those that are looked at, if named.
        obs: of both, in this order. `taken`: all actions of the episodes. `seed`: of their environments.
    """

    places: list[tuple[int, int]]
    wanted: list[tuple[int, int]]
    obs: Float[np.ndarray, "n S"]
    taken: Float[np.ndarray, "T A"]
    seed: int

    def rows(self, survey: Survey) -> list[tuple[int, str]]:
        """Which are looked at, each with its name: the wanted ones, or those with the median, the 90% and
        the largest gap of a survey."""
        n, wanted = len(self.places), self.wanted
        if wanted:
            chosen, places = range(n, n + len(wanted)), self.wanted
        else:
            share = survey.share(survey.gap)
            middle_to_worst = np.argsort(share, kind="stable")[[(n - 1) // 2, int(0.9 * (n - 1)), n - 1]]
            chosen = dict.fromkeys(middle_to_worst.tolist())
            places = [self.places[k] for k in chosen]
        return [(k, f"{episode}:{step}") for k, (episode, step) in zip(chosen, places, strict=True)]


def _visits(subject: Subject, states: int, at: Sequence[str], q: Which, episodes: int, seed: int) -> Visits:
    for flag, number in (("states", states), ("episodes", episodes)):
        if number < 1:
            raise UsageError(f"--{flag} is {number}; it must be at least 1.")
    named = {state: [parse_state(state)] for state in at if state != WIDEST}
    done = subject.rollouts(max([episodes, *(place[0] + 1 for (place,) in named.values())]), seed)
    if WIDEST in at:
        named[WIDEST] = widest(subject, done[:episodes], q)
    wanted = [place for state in at for place in named[state]]
    looked = [visited(done, *place) for place in wanted]
    places, obs = picked(done[:episodes], states)
    taken = np.concatenate([rollout.action for rollout in done])
    return Visits(places, wanted, np.stack([*obs, *looked]), taken, seed)


def _agent(
    saves: Sequence[Subject],
    surveyor: Surveyor,
    visits: Visits,
    rows: list[tuple[int, str]],
    plane: str | None,
    points: int | None,
    newest: Survey | None,
) -> dict[str, Any]:
    """One agent: what it is, its newest save, and all of them. `newest`: the last one's survey if made."""
    label, env = saves[-1].record.get("label", saves[-1].agent.recipe), _environment(saves[-1])
    balls = valid_balls(saves[-1])

    def moment(subject: Subject) -> dict[str, Any]:
        known = newest if subject is saves[-1] else None
        whole = surveyor(subject.acting, visits.obs) if known is None else known
        survey = whole.rows(0, len(visits.places))
        title = f"{label} on {env}, step {subject.step:,}"
        spots = (
            Spot(surveyor, subject.acting, visits.obs[k], whole.rows(k, k + 1), title, place, balls)
            for k, place in rows
        )
        return {
            "step": subject.step,
            "policy": subject.policy,
            "summary": summary(survey),
            "gaps": survey.gaps,
            "gap": survey.gap,
            "gap_share": survey.share(survey.gap),
            "optima": survey.optima,
            "landscapes": [spot.look(plane, visits.taken, points).to_dict() for spot in spots],
        }

    moments = [moment(subject) for subject in saves]
    found = {
        "name": saves[-1].name,
        "label": label,
        "env": env,
        "eval_seed": visits.seed,
        "q": surveyor.base.actor_objective,
        "place": visits.places,
    } | moments[-1]
    return found | ({"over_training": moments} if len(moments) > 1 else {})
