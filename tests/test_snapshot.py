"""A snapshot: the same numbers, to the bit, as if the edge had never stopped."""

import functools
import io
import json
import random
import re
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from xml.etree import ElementTree

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from qscape.envs import make
from qscape.envs.snapshot import Snapshot, restore, take

EXACT = {  # environment, its arguments, how many side by side, steps before the snapshot
    "pendulum": ("Pendulum-v1", {}, 1, 750),
    "pendulum at the limit": ("Pendulum-v1", {}, 1, 600),
    "car": ("MountainCarContinuous-v0", {"max_episode_steps": 90}, 1, 750),
    "cheetah": ("HalfCheetah-v5", {}, 1, 750),
    "hopper": ("Hopper-v5", {}, 1, 750),
    "double pendulum": ("InvertedDoublePendulum-v5", {}, 1, 750),
    "ant": ("Ant-v5", {"max_episode_steps": 250}, 1, 333),
    "humanoid": ("Humanoid-v5", {}, 1, 111),
    "three hoppers": ("Hopper-v5", {}, 3, 200),
    "three cars": ("MountainCarContinuous-v0", {"max_episode_steps": 30}, 3, 119),
} | {f"{name} {n}": (f"qscape/Probe{name}-v0", {}, n, 51) for name in ("TimeLimit", "Policy") for n in (1, 2)}


def actions_of(adapter, steps):
    shape = steps, adapter.envs, adapter.spec.action_size
    return np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32)


def run(adapter, actions):
    """Everything the edge says, and the episodes it finishes."""
    steps = [adapter.step(action) for action in actions]
    each = [jax.tree.leaves((step.transition, step.observation)) for step in steps]
    arrays = [np.concatenate([np.ravel(array) for array in column]) for column in zip(*each, strict=True)]
    return arrays, [episode for step in steps for episode in step.finished]


def through_a_file(snapshot):
    file = io.BytesIO()
    np.savez(file, **snapshot.arrays)
    file.seek(0)
    return Snapshot(dict(np.load(file, allow_pickle=False)), json.loads(json.dumps(snapshot.meta)))


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[1] == other[1]


MODES = [(case, mode) for case in EXACT for mode in (AutoresetMode if EXACT[case][2] > 1 else ["SameStep"])]


@pytest.mark.parametrize(("case", "mode"), MODES)
def test_a_restored_edge_goes_on_to_the_bit(case, mode):
    env_id, args, envs, before = EXACT[case]
    adapter = make(env_id, envs, args, seed=1, autoreset=mode)
    actions = actions_of(adapter, 2 * before)
    adapter.reset()
    run(adapter, actions[:before])
    snapshot = through_a_file(take(adapter))
    assert snapshot.meta["exact"], snapshot.meta["why"]
    first = run(adapter, actions[before:])
    assert first[1], "no reset was met after the snapshot"

    other = make(env_id, envs, args, seed=99, autoreset=mode)
    assert restore(other, snapshot) == ""
    assert_same(first, run(other, actions[before:]))


def test_every_step_across_a_reset_can_be_a_snapshot():
    """Just before an end, at it and after it, in the mode that resets one step later."""
    adapter = make("qscape/ProbeTimeLimit-v0", 2, seed=3, autoreset=AutoresetMode.NEXT_STEP)
    actions = actions_of(adapter, 30)
    adapter.reset()
    snapshots = [take(adapter)]
    for action in actions[:20]:
        adapter.step(action)
        snapshots.append(take(adapter))
    last = run(adapter, actions[20:])
    for i, snapshot in enumerate(snapshots):
        other = make("qscape/ProbeTimeLimit-v0", 2, autoreset=AutoresetMode.NEXT_STEP)
        restore(other, snapshot)
        for action in actions[i:20]:
            other.step(action)
        assert_same(last, run(other, actions[20:]))


PROCESS = """
import json, sys, numpy as np
from qscape.envs import make
from qscape.envs.snapshot import Snapshot, restore
folder = sys.argv[1]
edge = make("HalfCheetah-v5", seed=5)
assert restore(edge, Snapshot(dict(np.load(folder + "/s.npz")), json.load(open(folder + "/s.json")))) == ""
steps = [edge.step(action) for action in np.load(folder + "/actions.npy")]
observations, rewards = [s.transition.next_observation for s in steps], [s.transition.reward for s in steps]
np.savez(folder + "/out.npz", observations=observations, rewards=rewards)
"""


def test_a_new_process_goes_on_to_the_bit_across_the_time_limit(tmp_path):
    adapter = make("HalfCheetah-v5", seed=1)
    actions = actions_of(adapter, 1500)
    adapter.reset()
    run(adapter, actions[:750])
    snapshot = take(adapter)
    np.savez(tmp_path / "s.npz", **snapshot.arrays)
    (tmp_path / "s.json").write_text(json.dumps(snapshot.meta))
    np.save(tmp_path / "actions.npy", actions[750:])
    subprocess.run([sys.executable, "-c", PROCESS, str(tmp_path)], check=True, cwd=tmp_path)
    steps = [adapter.step(action) for action in actions[750:]]
    assert sum(len(step.finished) for step in steps) == 1
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(out["observations"], [step.transition.next_observation for step in steps])
    np.testing.assert_array_equal(out["rewards"], [step.transition.reward for step in steps])


class Thing:
    """A plain object an environment may keep its state in."""

    def __init__(self):
        self.x = np.zeros(1)
        self.noise = np.random.RandomState(3)  # as older environments have


class Odd(gym.Env):
    """Keeps its state where a careless snapshot does not look."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, extra=None):
        self.extra = extra

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.thing = Thing()
        self.history = deque([0.0, 0.0], maxlen=2)
        self.zero = np.zeros(1)
        self.last = self.zero  # one array after a reset, two later
        self.same = self.thing.x  # one array always
        self.count = {"steps": np.int32(0)}
        self.things = [Thing(), Thing()]
        self.current = self.things[0]  # another one later
        self.view = self.past = []
        self.mode = np.str_("left")
        return self.show(), {}

    def step(self, action):
        self.same += action * self.thing.noise.normal() + self.np_random.normal() + self.last + self.zero
        self.last = np.array(action)
        self.history.append(float(self.thing.x[0]))
        self.count["steps"] += np.int32(1)
        self.past.append(1)
        self.current = self.things[len(self.past) % 2]
        self.current.x += 0.1
        self.mode = np.str_("right" if self.mode == "left" else "left")
        told = self.current.x[0] + self.things[1].x[0] + len(self.view) + (self.mode == "left")
        return self.show(), sum(self.history) + told, self.count["steps"] == 40, False, {}

    def show(self):
        return np.array([self.thing.x[0], self.history[0]])


def test_state_in_objects_shared_arrays_and_deques_is_kept():
    adapter = make(Odd, seed=1)
    actions = actions_of(adapter, 100)
    adapter.reset()
    run(adapter, actions[:50])
    snapshot = through_a_file(take(adapter))
    assert snapshot.meta["exact"], snapshot.meta["why"]
    other = make(Odd, seed=2)
    restore(other, snapshot)
    assert_same(run(adapter, actions[50:]), run(other, actions[50:]))


def assert_goes_on(env, steps, seed=2):
    """A snapshot after `steps` steps, put into a copy with another seed: as many again are the same."""
    adapter, other = make(env, seed=1), make(env, seed=seed)
    actions = actions_of(adapter, 2 * steps)
    adapter.reset()
    run(adapter, actions[:steps])
    assert restore(other, through_a_file(take(adapter))) == ""
    assert_same(run(adapter, actions[steps:]), run(other, actions[steps:]))


def test_wrappers_with_statistics_are_kept():
    def wrapped():
        return gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1"))

    assert_goes_on(wrapped, 250)


class Draw(gym.Env):
    """Shows numbers that an attribute draws, which `draw` made of the environment."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, draw):
        self.steps, self.draw = 0, draw(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def count(self):
        return self.steps + self.np_random.spawn(1)[0].normal()

    def step(self, action):
        self.steps += 1
        return np.array([self.draw()]), 0.0, False, self.steps == 40, {}


@pytest.mark.parametrize(
    "draw",
    [
        lambda env: np.random.default_rng(0).normal,
        lambda env: random.Random(0).random,
        lambda env: functools.partial(np.random.default_rng(0).normal, 0.0, scale=2.0),
    ],
    ids=["NumPy's", "Python's", "partial"],
)
def test_methods_kept_as_attributes_go_on_with_their_objects(draw):
    assert_goes_on(lambda: Draw(draw), 50)


def test_generators_that_spawn_others_go_on_with_the_same_seed():
    assert_goes_on(lambda: Draw(lambda env: env.count), 50, seed=1)
    one, other = (make(lambda: Draw(lambda env: env.count), seed=seed) for seed in (1, 2))
    one.reset()
    one.step(np.zeros((1, 1), np.float32))
    assert "that spawns others has another seed" in restore(other, through_a_file(take(one)))


def test_a_method_of_another_object_after_a_reset_begins_a_new_episode():
    one, other = (
        make(lambda draw=draw: Draw(draw)) for draw in (lambda env: env.count, lambda env: [1.0].pop)
    )
    one.reset()
    assert "is the method count of an object" in restore(other, through_a_file(take(one)))


class Remembers(Odd):
    """Begins to remember with its first step."""

    past = None

    def step(self, action):
        self.past = deque([action], maxlen=2)
        return super().step(action)


class Visits(Odd):
    """Begins to count with its first step."""

    visits = None

    def step(self, action):
        self.visits = defaultdict(int, a=1)
        return super().step(action)


@pytest.mark.parametrize(
    ("env", "said"), [(Remembers, "past is a deque"), (Visits, "visits is a defaultdict")]
)
def test_what_a_reset_does_not_make_begins_a_new_episode(env, said):
    """Nothing says how long a deque may become, and what a defaultdict makes of a new key."""
    adapter = make(env, seed=1)
    adapter.reset()
    run(adapter, actions_of(adapter, 3))
    assert f"{env.__name__}.{said}" in restore(make(env), through_a_file(take(adapter)))


class Symbol:
    """Refuses to be copied with an error of its own, as CasADi's symbols do."""

    def __getstate__(self):
        raise Exception("symbols stay here")


def nested(depth):
    """Return lists in lists."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


UNCAPTURED = {  # by what the sentence names
    "(generator)": (x for x in [1]),
    "(lock)": threading.Lock(),
    "(ndarray of object)": np.array([(x for x in [1])]),
    "extra.0 (lock)": {"a": threading.Lock()},
    "(TextIOWrapper)": [sys.__stdout__],
    "(Symbol)": Symbol(),
    "0.0 (Symbol)": [{"of": Symbol()}],
    "RecursionError": nested(100_000),
}


@pytest.mark.parametrize("named", UNCAPTURED)
def test_what_cannot_be_captured_says_so_and_begins_a_new_episode(named):
    extra = UNCAPTURED[named]
    adapter = make(lambda: Odd(extra), seed=1)
    adapter.reset()
    run(adapter, actions_of(adapter, 100))
    snapshot = through_a_file(take(adapter))
    assert not snapshot.meta["exact"]
    assert "Odd.extra" in snapshot.meta["why"]
    assert named in snapshot.meta["why"]
    restored = []
    for seed in (1, 2):
        other = make(lambda: Odd(extra), seed=seed)
        assert restore(other, snapshot) == snapshot.meta["why"]
        assert other.statistics.episodes == 2
        restored.append(run(other, actions_of(adapter, 50)))
    assert_same(*restored)  # the new episode follows from the snapshot alone
    begun = make(lambda: Odd(extra), seed=1)
    begun.reset()
    assert (run(begun, actions_of(adapter, 50))[0][0] != restored[0][0][0]).any(), "the first seed came again"


class Holds(gym.Env):
    """Holds a simulator, and is no `gym.Wrapper`."""

    def __init__(self):
        self.env = gym.make("Pendulum-v1")
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.env.reset(seed=seed)

    def step(self, action):
        return self.env.step(action)


class Draws(gym.Env):
    """Counts in `clock`, and draws from its own spaces."""

    def __init__(self):
        parts = {"at": gym.spaces.Box(-1.0, 1.0, (2,)), "now": gym.spaces.Box(0.0, 50.0, (1,))}
        self.observation_space = gym.spaces.Dict(parts)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.clock += 1
        seen = self.observation_space.sample() | {"now": np.float32([self.clock])}
        return seen, 0.0, False, self.clock == 40, {}


class Ticks:
    """A clock of one's own, with two counts by names of Gymnasium's."""

    def __init__(self):
        self.spec, self.render_mode = 0, ""


class Names(gym.Env):
    """Keeps its state by names that Gymnasium uses for buffers, constants and what draws."""

    observation_space = gym.spaces.Box(0.0, 300.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.viewer, self.screen = Ticks(), Ticks(), Ticks()
        self._observations, self.metadata = [0], {"render_modes": [], "steps": 0}
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock.spec += 1
        self.viewer.render_mode += "."
        self._observations[0] += 1
        self.metadata["steps"] += 1
        self.screen = None
        counts = self.clock.spec, len(self.viewer.render_mode), self._observations[0], self.metadata["steps"]
        return np.float32([sum(counts)]), float(self.screen is None), False, self.clock.spec == 40, {}


@pytest.mark.parametrize("env", [Holds, Draws, Names])
def test_what_is_named_as_gymnasium_names_other_things_is_kept(env):
    assert_goes_on(env, 50)


def test_what_draws_is_left_out_and_what_does_not_is_refused_by_name():
    pytest.importorskip("pygame")
    adapter, other = (make("Pendulum-v1", env_args={"render_mode": "rgb_array"}, seed=s) for s in (1, 2))
    adapter.reset()
    adapter.render_frame()
    assert restore(other, through_a_file(take(adapter))) == ""
    adapter.env.unwrapped.clock = threading.Lock()
    why = take(adapter).meta["why"]
    assert "PendulumEnv.clock (lock) is neither a number nor an array" in why


class Tallies(gym.Env):
    """Keeps its state in the dicts of `collections`, and a tree of XML that stays as it is."""

    observation_space = gym.spaces.Box(0.0, 300.0, (4,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, scale="2"):
        self.tree = ElementTree.fromstring(f"<robot><joint scale='{scale}'/></robot>")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turns, self.kinds = OrderedDict(a=Thing(), b=Thing()), Counter()
        self.visits = defaultdict(lambda: 7)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.turns.move_to_end(next(iter(self.turns)))  # an order of its own
        self.kinds["left" if action[0] < 0 else "right"] += 1
        self.visits[int(10 * action[0])] += 1
        first = float(next(iter(self.turns)) == "a")
        seen = first, self.kinds["left"], sum(self.visits.values()), float(self.tree[0].get("scale"))
        return (
            np.float32(seen),
            float(self.visits[99] + self.kinds["none"]),
            False,
            self.kinds.total() == 40,
            {},
        )


def test_dicts_of_collections_are_kept():
    assert_goes_on(Tallies, 51)


def test_a_tree_that_a_reset_does_not_make_begins_a_new_episode():
    adapter, other = make(Tallies, seed=1), make(lambda: Tallies("3"), seed=1)
    adapter.reset()
    assert "tree" in restore(other, through_a_file(take(adapter)))


def test_a_snapshot_of_another_way_to_reset_begins_a_new_episode():
    ways = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    one, other = (make("Pendulum-v1", 2, autoreset=way) for way in ways)
    one.reset()
    assert "it resets itself in another way now" in restore(other, through_a_file(take(one)))
    run(other, actions_of(other, 250))  # across the end of an episode


class Other(Thing):
    """What another phase of an episode is kept in."""


def test_a_thing_of_another_class_than_after_a_reset_begins_a_new_episode():
    adapter = make(lambda: Odd(Other()), seed=1)
    adapter.reset()
    other = make(lambda: Odd(Thing()), seed=1)
    why = restore(other, through_a_file(take(adapter)))
    assert re.search(r"extra is a \S*test_snapshot.Other where a reset puts a \S*test_snapshot.Thing", why)


def test_a_snapshot_of_another_stack_of_wrappers_begins_a_new_episode():
    adapter = make("Pendulum-v1")
    adapter.reset()
    other = make("Pendulum-v1", env_args={"max_episode_steps": -1})
    assert "wrapped in another way" in restore(other, take(adapter))


def test_taking_a_snapshot_changes_nothing():
    one, other = (make("Hopper-v5", seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.reset(), other.reset())
    for action in actions_of(one, 100):
        take(other)
        a, b = one.step(action), other.step(action)
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.transition.reward, b.transition.reward)
