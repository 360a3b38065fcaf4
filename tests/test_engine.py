"""The protocol of engines: one of a few lines is a run that logs, evaluates, saves and resumes."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Clock, assert_same_run, settings

from qscape import agents
from qscape.envs import make, snapshot
from qscape.run import Plan
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.engines.base import EndedEpisode, Progress, SavedSeed
from qscape.run.programs import Act
from qscape.run.seeds import Seeds
from qscape.run.session import Session
from qscape.run.sinks import FolderSink

PLAN = Plan(
    "td3",
    "Clock",
    200,
    seed=4,
    settings=settings("td3"),
    eval_every=70,
    eval_episodes=2,
    log_every=13,
    save_every=60,
)


class HillClimber:
    """Perturbs the actor for one episode, and keeps what brings the larger return. It is its own learner."""

    ready = True

    def __init__(self, agent, adapter, seed):
        self.learner, self.adapter, self.seeds = self, adapter, Seeds([seed])
        self.agent = bound = agent.on(adapter.spec)
        self.programs = SimpleNamespace(agent=bound, act=Act(bound.act), init_noise=lambda envs: None)
        self.state = self.tried = bound.acting(bound.init(self.seeds.key))
        self.best, self.reached, self.env_steps, self.updates = -np.inf, 0.0, 0, 0

    def policies(self, seed=0):
        return {"current": self.tried, "kept": self.state}

    def metrics(self, seed=0):
        return {"best": self.best, "reached": self.reached}

    def guard(self, seed=0):
        return {}

    def notes(self, saves):
        return ["hill climbing"]

    def start(self):
        self.adapter.reset()

    def begin_again(self):
        self.adapter.reset()

    def advance(self, limit):
        seen, first = self.adapter.observation, np.zeros(1, bool)
        action = self.programs.act(self.tried, None, seen, first, np.int32(0), self.seeds.key)[0]
        step = self.adapter.step(np.asarray(action))
        self.env_steps, self.reached = self.env_steps + 1, self.reached + float(step.transition.reward[0])
        if step.finished:
            if self.reached > self.best:
                self.best, self.state = self.reached, self.tried
            self.updates, self.reached = self.updates + 1, 0.0
            key = jax.random.fold_in(self.seeds.key, self.updates)
            self.tried = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, jnp.shape(x)), self.state)
        return Progress([EndedEpisode(0, self.env_steps, episode) for episode in step.finished])

    def counters(self, seed=0):
        return {"best": self.best, "reached": self.reached}

    def templates(self, counters):
        return {"acting": self.tried, "kept": self.state, "replay": {}}

    def save(self, seed=0):
        return SavedSeed(self.templates({}), self.counters(), snapshot.take(self.adapter))

    def restore(self, saves):
        (save,) = saves
        self.tried, self.state = save.arrays["acting"], save.arrays["kept"]
        for name in ("best", "reached", "env_steps", "updates"):
            setattr(self, name, save.counters[name])
        why = snapshot.restore(self.adapter, save.environment)
        return [why] if why else []


def climb(place, until=lambda session, event: False, stops=False):
    """Begin or continue a run in a folder, and break it off after an event: by a stop, or as if killed."""
    adapter, agent = make(Clock, seed=PLAN.seed), agents.build("td3", PLAN.settings)
    engine = HillClimber(agent, adapter, PLAN.seed)
    session = Session([PLAN], engine, [adapter], make(Clock, 2, seed=9), [partial(folders.save, place)])
    if place.exists():
        newest, _ = folders.choose_save(place)
        assert newest is not None
        assert folders.load_into(session, newest) == []
    else:
        folders.create(place, PLAN, session.agent)
    sink = FolderSink(place, -1 if session.fresh else session.env_steps, [])
    for event in session.events(PLAN.steps):
        sink(event)
        if until(session, event):
            if not stops:
                break
            session.stop()
    sink.close()
    return session


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    place = tmp_path_factory.mktemp("engine") / "whole"
    session = climb(place)
    assert session.finished
    assert (session.env_steps, session.updates) == (PLAN.steps, 5)  # episodes of 35 steps
    assert session.learner.metrics()["best"] > -np.inf
    return place


@pytest.mark.parametrize("stops", [True, False], ids=["stopped", "killed"])
def test_an_engine_of_a_few_lines_is_a_run_that_resumes_to_the_bit(stops, whole, tmp_path):
    place = tmp_path / "run"
    ended, saved = [], []

    def after_an_episode(session, event):
        ended.extend([event] if isinstance(event, ev.EpisodeDone) else [])
        return len(ended) == 2

    def behind_a_save(session, event):
        saved.extend([event] if isinstance(event, ev.Saved) else [])
        return bool(saved) and session.env_steps > 150

    climb(place, after_an_episode, stops)
    climb(place, behind_a_save, stops)
    assert climb(place).finished
    assert_same_run(place, whole)
