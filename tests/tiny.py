"""Small runs of the trainer and of the command line, and environments that show what a run did to them.

`tiny:Clock-v0` and the like can be named on the command line where `tests` is on the path.
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
# One size for all, and the clock has Pendulum's spaces: then most tests run the same compiled programs.
SIZES = {
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "batch_size": 16,
    "replay_capacity": 2_000,
    "actor_learning_rate": 0.01,  # so that one update more or less is seen
}


class Clock(gym.Env):
    """Shows (seed, episode, step): a transition across a reset gives itself away.

    The seed's remainder modulo 3 makes episodes 5 steps longer each, so that vector environments fall out of
    step. Every second episode is terminated, the others are truncated.

    Args:
        length: steps of an episode of seed 0.
        fail_at: in this step of its life it gives `value` as its `what` ("observation" or "reward").
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
    """Dict observations of several shapes and dtypes, and an asymmetric box of actions."""

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
    """Holds something that no save can hold, and never ends."""

    def __init__(self):
        super().__init__(length=10**6)
        self.handle = iter(())


class Picture(gym.Env):
    """Its observation is an image."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Unbounded(gym.Env):
    """Its second action has no bound."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]), dtype=np.float32)


for _made in (Clock, Rooms, Unkept, Picture, Unbounded):
    if f"{_made.__name__}-v0" not in gym.registry:
        gym.register(f"{_made.__name__}-v0", _made)


def settings(recipe: str, **base: Any) -> dict[str, dict[str, Any]]:
    """Small networks, batch and replay for a recipe."""
    small: dict[str, dict[str, Any]] = {"base": {**SIZES, **base}}
    if "sale" in agents.parse(recipe)[1]:
        small["sale"] = {"width": 16, "hidden": (16, 16)}
    return small


def flags(recipe: str, **base: Any) -> list[str]:
    """The same on the command line."""
    given = []
    for part, fields in settings(recipe, **base).items():
        for field, value in fields.items():
            values = value if isinstance(value, tuple) else (value,)
            given += [f"--{part}.{field.replace('_', '-')}", *map(str, values)]
    return given


def environment() -> dict[str, str]:
    """For processes that tests start: one XLA thread, and this folder on the path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "NPROC": "1", "PYTHONPATH": path}


def start(*argv: Any, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`qscape ARGV` as a process, in the folder `cwd`."""
    command = [sys.executable, "-m", "qscape.cli", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd=cwd)


def python(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def stop_at(steps: int, where: str = "step") -> Callable[[Any], None]:
    """Stops a trainer in its first environment `step` (or `learn` call) after `steps` steps."""

    def hold(trainer: Any) -> None:
        owner = trainer.adapter if where == "step" else trainer.programs
        call = getattr(owner, where)

        def stopping(*args: Any) -> Any:
            if trainer.env_steps >= steps:
                trainer.stop()
            return call(*args)

        setattr(owner, where, stopping)

    return hold


def arrays(folder: Path, only: set[str] | None = None) -> dict[str, tuple[Any, ...]]:
    """Every array of a run's newest save, to the bit."""
    path = folder / "saves" / saves.names(folder / "saves")[-1]
    return {
        f"{tree}/{leaf}": (array.dtype, array.shape, array.tobytes())
        for tree in saves.tree_names(path)
        if only is None or tree in only
        for leaf, array in saves.read_arrays(path, tree).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of evaluations.csv, without what depends on the clock."""
    with (folder / "evaluations.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def numbers(folder: Path) -> dict[str, Any]:
    """The host's numbers in a run's newest save, without what depends on the clock."""
    path = folder / "saves" / saves.names(folder / "saves")[-1]
    return {k: v for k, v in saves.read_meta(path)["numbers"].items() if k != "seconds"}


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders tell the same story and end in the same state, to the bit."""
    assert evaluations(one) == evaluations(other)
    assert metrics(one) == metrics(other)
    assert numbers(one) == numbers(other)
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
