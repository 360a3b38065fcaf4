"""Atari and CarRacing: four grey frames, and what a training episode is."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest

from qscape.envs.build import build_env
from qscape.envs.pixels import FireFirst, LifeEnds, Repeat
from qscape.errors import UsageError


class Game(gym.Env):
    """Three lives, each lost at every fourth step; shows (games begun, frame, last action)."""

    observation_space = gym.spaces.Box(-9, 99, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self):
        self.games = 0

    def get_action_meanings(self):
        return ["NOOP", "LEFT", "FIRE"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.games, self.frame = self.games + 1, 0
        return self.show(-1), {"lives": 3}

    def step(self, action):
        self.frame += 1
        lives = 3 - self.frame // 4
        return self.show(action), 1.0, lives == 0, False, {"lives": lives}

    def show(self, action):
        return np.array([self.games, self.frame, action], np.float32)


def test_a_lost_life_ends_an_episode_but_not_the_game():
    env = LifeEnds(Game())
    seen, _ = env.reset()
    np.testing.assert_array_equal(seen, [1, 0, -1])
    ends = []
    for _ in range(15):
        seen, _, terminated, _, info = env.step(1)
        if terminated:
            ends.append((*seen[:2], info["lives"]))
            begun = env.reset()[0]
            ends.append(tuple(begun))
    # Lives at frames 4 and 8 of a game, the game at 12; between them one no-op, then a new game.
    assert ends[:6] == [(1, 4, 2), (1, 5, 0), (1, 8, 1), (1, 9, 0), (1, 12, 0), (2, 0, -1)]
    assert ends[6:8] == [(2, 4, 2), (2, 5, 0)]
    env.step(1)
    assert env.reset(seed=0)[0][0] == 3, "a seed begins a new game"


def test_games_that_wait_are_fired_at_and_actions_repeated():
    np.testing.assert_array_equal(FireFirst(Game()).reset()[0], [1, 1, 2])
    env = Repeat(Game(), 5)
    env.reset()
    rewards = [env.step(1)[1] for _ in range(3)]
    assert rewards == [5, 5, 2], "the game ended at frame 12"


@pytest.mark.parametrize("training", [False, True])
def test_atari_shows_four_grey_frames_as_bytes(training):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = build_env("ALE/Breakout-v5", {"training": training})
    space = env.observation_space
    assert (space.shape, space.dtype, env.action_space.n) == ((4, 84, 84), np.uint8, 4)
    seen, _ = env.reset(seed=3)
    again = build_env("ALE/Breakout-v5", {"training": training}).reset(seed=3)[0]
    np.testing.assert_array_equal(seen, again)
    lives, rewards = [], set()
    env.action_space.seed(0)
    for _ in range(500):
        after, reward, terminated, *_, info = env.step(env.action_space.sample())
        np.testing.assert_array_equal(after[:-1], seen[1:], "frames move up in the stack")
        seen, rewards = after, rewards | {reward}
        if terminated:
            lives.append(info["lives"])
            seen, _ = env.reset()
    assert lives[0] == (4 if training else 0)
    assert rewards <= {-1.0, 0.0, 1.0} or not training
    env = build_env("ALE/Breakout-v5", {"obs_type": "ram"})
    assert env.observation_space.shape == (128,), "as it is, where the kind of observation was chosen"


def test_car_racing_shows_four_grey_frames():
    pytest.importorskip("Box2D")
    pytest.importorskip("cv2")
    env = build_env("CarRacing-v3", {"continuous": False})
    assert (env.observation_space.shape, env.action_space.n) == ((4, 84, 84), 5)
    seen, _ = env.reset(seed=0)
    assert seen.dtype == np.uint8
    for _ in range(12):
        reward = env.step(0)[1]
    assert reward == pytest.approx(-0.4), "four frames of -0.1"
    continuous = build_env("CarRacing-v3", {})
    assert (continuous.observation_space.shape, continuous.action_space.shape) == ((4, 84, 84), (3,))
    assert continuous.spec.max_episode_steps == 250, "1,000 frames"


def test_what_is_missing_is_said(monkeypatch):
    pytest.importorskip("ale_py")
    with pytest.raises(UsageError, match="no environment is called 'ALE/Pongg-v5'; near to it: ALE/Pong-v5"):
        build_env("ALE/Pongg-v5", {})
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else real(name))
    with pytest.raises(UsageError, match=r"ALE/Pong-v5 need OpenCV: pip install \"qscape\[atari\]\""):
        build_env("ALE/Pong-v5", {})
