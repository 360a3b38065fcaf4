"""Atari, CarRacing and rendered pictures: four grey frames, and what a training episode is."""

import importlib.util
import sys

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from tiny import assert_same_run, numbers, stop_at

from qscape import agents
from qscape.cli import main
from qscape.envs import make
from qscape.envs.build import build_env
from qscape.envs.pixels import FireFirst, LifeEnds, Repeat
from qscape.envs.snapshot import restore, take
from qscape.errors import UsageError
from qscape.run import Plan, resume, train
from qscape.run.training import make_session


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
    assert env.reset()[0][0] == 3, "what else ended an episode ends the game"
    assert any(env.step(1)[2] for _ in range(4)), "a life is lost"
    assert env.reset(seed=0)[0][0] == 4, "a seed begins a new game"


def test_games_that_wait_are_fired_at_and_actions_repeated():
    np.testing.assert_array_equal(FireFirst(Game()).reset()[0], [1, 1, 2])
    seen = {}
    for training in (False, True):
        env = FireFirst(LifeEnds(Game()) if training else Game())
        env.reset()
        steps = seen[training] = []
        for _ in range(7):
            after, reward, terminated, *_ = env.step(1)
            steps.append((*after[1:], reward))
            if terminated and after[1] < 12:
                env.reset()
    # (frame, action, reward): lives are lost at frames 4 and 8, and the game ends at 12.
    assert seen[False] == [(2, 1, 1), (3, 1, 1), (5, 2, 2), (6, 1, 1), (7, 1, 1), (9, 2, 2), (10, 1, 1)]
    # In training, a reset presses FIRE, after a no-op.
    assert seen[True] == [(2, 1, 1), (3, 1, 1), (4, 1, 1), (7, 1, 1), (8, 1, 1), (11, 1, 1), (12, 1, 1)]
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


@pytest.mark.parametrize("training", [False, True])
def test_a_limit_of_atari_counts_actions(training):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    args = {"training": training, "max_episode_steps": 7}
    adapter = make("ALE/Breakout-v5", env_args=args, index_actions=True)
    adapter.reset()
    finished = [episode for _ in range(21) for episode in adapter.step(np.zeros((1, 1))).finished]
    assert adapter.time_limit == 7
    assert [episode.length for episode in finished] == [7, 7, 7]
    assert build_env("ALE/Breakout-v5", {"max_episode_steps": -1}).spec.max_episode_steps is None


def test_a_policy_that_never_fires_ends_its_games():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = build_env("ALE/Breakout-v5", {})
    env.reset(seed=3)
    assert any(env.step(0)[2] for _ in range(200))


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


# --- rendered pictures ------------------------------------------------------------------------------

CARTPOLE = "pixels/CartPole-v1"
GREY = [0.2125, 0.7154, 0.0721]  # weights of red, green and blue
drawn = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cv2", "pygame"))), reason="the extra pixels is not installed"
)


@drawn
def test_cartpole_shows_what_it_draws():
    """Beside Gymnasium's CartPole, whose pictures are made grey and small here."""
    import cv2

    env, plain = build_env(CARTPOLE, {}), gym.make("CartPole-v1", render_mode="rgb_array")
    space = env.observation_space
    assert (space.shape, space.dtype, env.action_space) == ((4, 84, 84), np.uint8, plain.action_space)

    def frame():
        return cv2.resize(np.dot(plain.render(), GREY), (84, 84), interpolation=cv2.INTER_AREA)

    (seen, _), _ = env.reset(seed=3), plain.reset(seed=3)
    assert seen.dtype == np.uint8
    frames, moved, ended = [frame()] * 4, 0, 0
    for t in range(40):
        np.testing.assert_allclose(seen, frames[-4:], atol=1.5, err_msg=f"step {t}, up to rounding")
        action = int(t % 5 < 3)
        (seen, *told, _), (_, *wanted, _) = env.step(action), plain.step(action)
        assert told == wanted
        frames.append(frame())
        moved += not np.array_equal(frames[-1], frames[-2])
        if told[1]:
            ended += 1
            assert np.abs(seen[-1] - frames[-1]).max() <= 1.5, "the last picture of an episode"
            seen, _ = env.reset()
            plain.reset()
            frames = [frame()] * 4
    assert ended
    assert moved > 30


@drawn
@pytest.mark.parametrize(
    ("env_id", "args", "limit"),
    [
        (CARTPOLE, {}, 500),
        (CARTPOLE, {"max_episode_steps": 5}, 5),
        ("pixels/Any-v0", {"env": "Pendulum-v1"}, 200),
        ("pixels/Any-v0", {"env": "Pendulum-v1", "max_episode_steps": 5}, 5),
        ("pixels/Any-v0", {"env": "mineworld/MineWorld-v0"}, 100),
    ],
)
def test_any_environment_that_draws_can_be_seen(env_id, args, limit):
    adapter = make(env_id, env_args=args, seed=1, index_actions=True)
    assert (adapter.spec.frame, adapter.time_limit, adapter.jax_env) == ((4, 84, 84), limit, None)
    assert adapter.reward_threshold == (475 if env_id == CARTPOLE else None)
    layer, limits = adapter.env, 0
    while isinstance(layer, gym.Wrapper):
        layer, limits = layer.env, limits + isinstance(layer, gym.wrappers.TimeLimit)
    assert limits <= 1, "a given limit replaces the environment's own, which may be shorter"
    adapter.reset()
    steps = [adapter.step(np.ones((1, 1), np.float32)) for _ in range(5)]
    assert [step.transition.truncated[0] for step in steps] == [False] * 4 + [limit == 5]
    assert len({step.transition.next_observation.tobytes() for step in steps}) > 1


@drawn
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_the_checker_of_gymnasium():
    check_env(gym.make(CARTPOLE), skip_render_check=True)


def actions(envs, steps):
    return np.random.default_rng(0).integers(2, size=(steps, envs, 1)).astype(np.float32)


def shown(adapter, taken):
    return [[np.copy(x) for x in jax.tree.leaves(adapter.step(action)[:2])] for action in taken]


@drawn
@pytest.mark.parametrize(
    ("envs", "mode"), [(1, AutoresetMode.SAME_STEP), *((2, mode) for mode in AutoresetMode)]
)
def test_frames_before_a_snapshot_are_restored(envs, mode):
    """At every step across ends of episodes, a new environment goes on to the bit."""
    adapter = make(CARTPOLE, envs, seed=1, index_actions=True, autoreset=mode)
    adapter.reset()
    taken, snapshots, after = actions(envs, 40), [], []
    for action in taken:
        snapshots.append(take(adapter))
        after += shown(adapter, [action])
    ends = sum(int((step[3] | step[4]).sum()) for step in after)  # terminated or truncated
    assert ends
    other = make(CARTPOLE, envs, seed=9, index_actions=True, autoreset=mode)
    other.reset()
    for k in range(0, 40, 3):
        assert snapshots[k].meta["exact"], snapshots[k].meta["why"]
        assert restore(other, snapshots[k]) == ""
        for found, wanted in zip(shown(other, taken[k : k + 5]), after[k : k + 5], strict=True):
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


@drawn
@pytest.mark.slow
def test_environments_in_other_processes_show_the_same():
    sync, there = (make(CARTPOLE, 2, seed=1, index_actions=True, vectorise=how) for how in ("sync", "async"))
    np.testing.assert_array_equal(sync.reset(), there.reset())
    taken = actions(2, 40)
    for found, wanted in zip(shown(there, taken[:20]), shown(sync, taken[:20]), strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    snapshot = take(there)
    assert snapshot.meta["exact"]
    restore(there, snapshot)
    for found, wanted in zip(shown(there, taken[20:]), shown(sync, taken[20:]), strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    there.close()


# Convolutions take half a minute to compile, so one layer sees the pixels here.
FLAT = {
    "base": {"rollout": 16, "batch_size": 16, "passes": 1, "actor_hidden": (8,)},
    "plain": {"images": "flat"},
}


@drawn
def test_an_update_of_reinforce_on_pictures():
    agent = agents.build("reinforce+etf", FLAT)
    trainer = make_session(
        Plan("reinforce+etf", CARTPOLE, 17, eval_every=0), agent, make(CARTPOLE, seed=1, index_actions=True)
    )
    before = np.array(trainer.learner.state.networks.torso.torso.layers[0].weight)
    list(trainer.events(17))
    assert trainer.learner.state.updates == 1
    rows = trainer.engine.buffer.columns  # the first one is that of step 17
    assert (rows["observation"].dtype, rows["observation"].shape) == (np.uint8, (16, 1, 4 * 84 * 84))
    pictures = rows["observation"].reshape(16, 4, 84, 84)
    for k in range(2, 16):
        begins = rows["terminated"][k - 1, 0]
        np.testing.assert_array_equal(pictures[k, :-1], pictures[k, 1:] if begins else pictures[k - 1, 1:])
    after = np.array(trainer.learner.state.networks.torso.torso.layers[0].weight)
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)


@drawn
@pytest.mark.slow
def test_a_run_on_pictures_resumes_to_the_bit(tmp_path):
    """Stopped in the middle of an episode and of a rollout."""
    asked = Plan("reinforce+etf", CARTPOLE, 40, settings=FLAT, eval_every=40, eval_episodes=1)
    list(train(asked, tmp_path / "whole"))
    list(train(asked, tmp_path / "parts", on_trainer=stop_at(20)))
    stopped = numbers(tmp_path / "parts")
    assert min(stopped["updates"], stopped["used_rows"]) > 0
    started, *_ = resume(tmp_path / "parts")
    assert not [note for note in started.notes if "exactly" in note]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole")["updates"] > stopped["updates"]
    assert main(["evaluate", str(tmp_path / "whole"), "--episodes", "1"]) == 0
    assert main(["video", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "whole" / "video.mp4").stat().st_size > 1_000


@drawn
@pytest.mark.parametrize(
    ("args", "missing", "sentence"),
    [
        ([CARTPOLE], "cv2", 'the pictures of CartPole-v1 need OpenCV: pip install "qscape[pixels]"'),
        ([CARTPOLE], "pygame", 'CartPole-v1 draws with a missing package: pip install "qscape[pixels]"'),
        (
            ["pixels/CartPol-v1"],
            "",
            "no environment is called 'pixels/CartPol-v1'; near to it: pixels/CartPole-v1",
        ),
        (["pixels/CartPole"], "", "pixels/CartPole lacks its version: write pixels/CartPole-v1"),
        (
            [CARTPOLE, "--env-args", "render_mode=human"],
            "",
            "CartPole-v1 draws no pictures that an agent could see",
        ),
        (["pixels/Any-v0", "--env-args", "env=Nope-v0"], "", "no environment is called 'Nope-v0'"),
        (["pixels/Any-v0", "--env-args", "env=recsim/10k-v0"], "", "recsim/10k-v0 draws no pictures"),
        (
            ["pixels/Any-v0", "--env-args", "env=qscape/ProbePolicy-v0"],
            "",
            "ProbePolicy-v0 draws no pictures",
        ),
        (["pixels/Any-v0", "--env-args", "gravity=3"], "", "unexpected keyword argument 'gravity'"),
    ],
)
def test_pictures_that_cannot_be(args, missing, sentence, tmp_path, monkeypatch, capsys):
    if missing == "cv2":
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    elif missing:
        monkeypatch.setitem(sys.modules, missing, None)
    assert main(["train", "ppo", "--steps", "40", "--out", str(tmp_path / "x"), "--env", *args]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_pictures_are_listed(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert CARTPOLE in listed
    assert "pixels/Any-v0" in listed
