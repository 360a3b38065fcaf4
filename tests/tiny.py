"""Helpers for tests of whole runs: small settings, test environments, processes, and reading run folders.

The command line finds the environments as `tiny:Clock-v0` if `tests` is on the Python path.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from qscape import agents
from qscape.run import saves

TESTS = Path(__file__).parent
# All tests use these sizes, and Clock has Pendulum's spaces, so that most tests share compiled programs.
SIZES = {
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "batch_size": 16,
    "replay_capacity": 2_000,
    "actor_learning_rate": 0.01,  # large, so that one update more or less shows in the weights
}


class Clock(gym.Env):
    """Its observation is (seed, episode, step), so that a transition across a reset can be recognised.

    An episode has 5 · (seed mod 3) extra steps, so that the environments of a vector end at different steps.
    Odd episodes are terminated, even ones truncated.

    Args:
        length: steps of an episode of seed 0.
        fail_at: the step, counted over all episodes, that returns `value`; 0: never.
        what: what `value` replaces, "observation" or "reward".
        value: the faulty value.
    """

    def __init__(self, length: int = 30, fail_at: int = 0, what: str = "reward", value: float = np.nan):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.given, self.fail_at, self.what, self.value = length, fail_at, what, float(value)
        self.length = self.born = self.episode = self.now = self.life = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.born, self.length, self.episode = seed, self.given + 5 * (seed % 3), 0
        self.episode, self.now = self.episode + 1, 0
        return self.shown(), {}

    def shown(self):
        return np.array([self.born, self.episode, self.now], np.float32)

    def step(self, action):
        self.now, self.life = self.now + 1, self.life + 1
        shown, reward = self.shown(), -float(np.square(action - 0.3).sum()) + 0.1 * self.now
        if self.life == self.fail_at:
            shown[1], reward = (self.value, reward) if self.what == "observation" else (shown[1], self.value)
        over, odd = self.now == self.length, self.episode % 2 == 1
        return shown, reward, over and odd, over and not odd, {}


class Rooms(gym.Env):
    """Has dict observations of several shapes and dtypes, and an asymmetric box of actions."""

    def __init__(self):
        parts = {
            "map": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
            "self": spaces.Dict({"speed": spaces.Box(-5, 5, (1,), np.int32)}),
        }
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Box(np.float32([-1, 10]), np.float32([3, 20]), dtype=np.float32)
        self.now = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.now = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.now += 1
        return self.observation_space.sample(), float(action[0]), False, self.now == 20, {}


class Unkept(Clock):
    """Holds a generator, which no snapshot can capture, and never ends."""

    def __init__(self):
        super().__init__(length=10**6)
        self.handle = (number for number in ())


class Picture(gym.Env):
    """Has images as observations."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Spot(gym.Env):
    """Shows a bright spot on the left or on the right of two frames; the best action is 0.6 towards it."""

    observation_space = spaces.Box(0, 255, (2, 12, 12), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length: int = 5):
        self.length, self.now, self.side = length, 0, 1

    @staticmethod
    def show(side: int) -> np.ndarray:
        """Return the picture of a spot at side -1 or 1."""
        picture = np.full((2, 12, 12), 40, np.uint8)
        picture[:, 4:8, 5 + 3 * side : 8 + 3 * side] = 250
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.side = 0, int(self.np_random.choice([-1, 1]))
        return self.show(self.side), {}

    def step(self, action):
        reward = -((float(action[0]) - 0.6 * self.side) ** 2)
        self.now, self.side = self.now + 1, int(self.np_random.choice([-1, 1]))
        return self.show(self.side), reward, self.now == self.length, False, {}


class Unbounded(gym.Env):
    """Has a second action without bounds."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]), dtype=np.float32)


for _made in (Clock, Rooms, Unkept, Picture, Spot, Unbounded):
    if f"{_made.__name__}-v0" not in gym.registry:
        gym.register(f"{_made.__name__}-v0", _made)


def settings(recipe: str, **base: Any) -> dict[str, dict[str, Any]]:
    """Return settings for a recipe with small networks, batch and replay; `base` adds fields of the base."""
    small: dict[str, dict[str, Any]] = {"base": {**SIZES, **base}}
    if "sale" in agents.parse(recipe)[1]:
        small["sale"] = {"width": 16, "hidden": (16, 16)}
    return small


def flags(recipe: str, **base: Any) -> list[str]:
    """Return these settings as flags of the command line."""
    given = []
    for part, fields in settings(recipe, **base).items():
        for field, value in fields.items():
            values = value if isinstance(value, tuple) else (value,)
            given += [f"--{part}.{field.replace('_', '-')}", *map(str, values)]
    return given


def environment() -> dict[str, str]:
    """Return the environment variables of processes that tests start: one XLA thread, `tests` on the path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "NPROC": "1", "PYTHONPATH": path}


def start(*argv: Any, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start `qscape ARGV` as a process in the folder `cwd` (None: the current one)."""
    command = [sys.executable, "-m", "qscape", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd=cwd)


def python(code: str) -> str:
    """Run code in a new Python process, which must succeed, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def stop_at(steps: int, where: str = "step") -> Callable[[Any], None]:
    """Return a function that makes a trainer stop at the first call of `where` after `steps` steps.

    `where`: "step" of the adapter, or the name of one of the trainer's programs.
    """

    def hold(trainer: Any) -> None:
        owner = trainer.adapter if where == "step" else trainer.learner.programs
        call = getattr(owner, where)

        def stopping(*args: Any) -> Any:
            if trainer.env_steps >= steps:
                trainer.stop()
            return call(*args)

        setattr(owner, where, stopping)

    return hold


def arrays(folder: Path, only: set[str] | None = None) -> dict[str, tuple[Any, ...]]:
    """Return dtype, shape and bytes of every array in a run's newest save, by tree/leaf.

    `only`: names of the trees; None: all.
    """
    path = folder / "saves" / saves.names(folder / "saves")[-1]
    return {
        f"{tree}/{leaf}": (array.dtype, array.shape, array.tobytes())
        for tree in saves.tree_names(path)
        if only is None or tree in only
        for leaf, array in saves.read_arrays(path, tree).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without `steps_per_second`."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def evaluations(folder: Path) -> list[dict[str, str]]:
    """Return the rows of evaluations.csv without `seconds`."""
    with (folder / "evaluations.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def numbers(folder: Path) -> dict[str, Any]:
    """Return the host's counters in a run's newest save without `seconds`."""
    path = folder / "saves" / saves.names(folder / "saves")[-1]
    return {k: v for k, v in saves.read_meta(path)["numbers"].items() if k != "seconds"}


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two run folders have equal evaluations, metrics and newest saves, to the bit."""
    assert evaluations(one) == evaluations(other)
    assert metrics(one) == metrics(other)
    assert numbers(one) == numbers(other)
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
