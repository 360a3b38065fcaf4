"""At the border to an environment: errors of any kind, boards, pictures, and what follows a broken step."""

import gymnasium as gym
import numpy as np
import pytest
import tiny
from gymnasium import spaces

import qscape as qs
from qscape.agents import build
from qscape.envs import make
from qscape.envs.snapshot import take
from qscape.envs.spaces import is_image
from qscape.errors import RunError, UsageError, describe

SMALL = tiny.settings("td3", warmup=10)


class Wordless(Exception):
    """Its text raises."""

    def __str__(self):
        raise RuntimeError("no text")


class Endless(Exception):
    def __str__(self):
        return "why " * 5_000 + "not"


class Odd(Exception):
    def __str__(self):
        return None


ERRORS = [
    Wordless,
    Endless,
    Odd,
    lambda: KeyError("a"),
    lambda: ValueError("x" * 20_000),
    lambda: OSError(5, "z\n" * 9_000),
]


class Breaks(tiny.Clock):
    """Raises at some steps, counted over its life."""

    def __init__(self, error=Wordless, at=(25,), length=10):
        super().__init__(length=length)
        self.error, self.at, self.made, self.resets, self.shows = error, at, 0, 0, []

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed)

    def step(self, action):
        self.made += 1
        if self.made in self.at:
            raise self.error()
        return super().step(action)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("envs", [1, 2])
def test_errors_of_any_text_are_one_sentence(error, envs):
    adapter = make(lambda: Breaks(error, (3,)), envs)
    adapter.reset()
    action = np.zeros((envs, 1), np.float32)
    for _ in range(2):
        adapter.step(action)
    with pytest.raises(RunError) as caught:
        adapter.step(action)
    assert 20 < len(str(caught.value)) < 1_400
    assert "\n" not in str(caught.value)
    assert type(error()).__name__ in str(caught.value)


@pytest.mark.parametrize("error", ERRORS)
def test_constructors_that_raise_any_error(error):
    def made(**given):
        raise error()

    for args in ({}, {"size": 3}):
        with pytest.raises(UsageError) as caught:
            make(made, env_args=args)
        assert len(str(caught.value)) < 1_400


def test_beginning_and_end_of_a_long_text_are_shown():
    assert describe(ValueError("begin" + "x" * 9_000 + "end")).startswith("ValueError: begin")
    assert describe(ValueError("begin" + "x" * 9_000 + "end")).endswith("end")
    assert describe(ValueError("short")) == "ValueError: short"


class Property(tiny.Clock):
    """Has a space that raises."""

    def __init__(self, name="observation_space", error=Wordless):
        super().__init__()
        self.name, self.error = name, error

    def __getattribute__(self, name):
        if name == "observation_space" and vars(self).get("name") == name:
            raise vars(self)["error"]()
        if name == "action_space" and vars(self).get("name") == name:
            raise vars(self)["error"]()
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
@pytest.mark.parametrize(
    "error", [Wordless, Endless, lambda: AttributeError("model"), lambda: ValueError("v")]
)
@pytest.mark.parametrize("envs", [1, 2])
def test_a_space_that_raises(name, error, envs):
    with pytest.raises(UsageError) as caught:
        make(lambda: Property(name, error), envs)
    assert len(str(caught.value)) < 1_400
    if envs == 1:
        assert f"its {name} cannot be read" in str(caught.value)


def test_a_space_that_is_missing_is_asked_for():
    class None_(tiny.Clock):
        def __init__(self):
            super().__init__()
            self.observation_space = None

    with pytest.raises(UsageError, match="has no observation_space: set self"):
        make(None_)


# --- after an error ------------------------------------------------------------------------------


ROLLOUTS = {"base": {"rollout": 16, "batch_size": 16, "actor_hidden": (8,), "critic_hidden": (8,)}}


def breaking(recipe, envs=1, **base):
    """A model whose training environments break at their step 25, and the list of all environments."""
    every = []

    def make_one():
        every.append(Breaks(at=() if every else (25,)))
        return every[-1]

    small = tiny.settings("td3", warmup=10, **base) if recipe == "td3" else ROLLOUTS
    return qs.Model(recipe, make_one, envs=envs, eval_every=0, **small), every


@pytest.mark.parametrize("recipe", ["td3", "ppo"])
@pytest.mark.parametrize("envs", [1, 2])
def test_learning_goes_on_with_new_episodes_after_an_error(recipe, envs):
    model, every = breaking(recipe, envs)
    with pytest.raises(RunError, match="Wordless"):
        model.learn(200)
    resets = [one.resets for one in every[:envs]]
    assert not take(model.adapter).meta["exact"]
    done = []
    model.learn(60 * envs, callback=lambda _, event: done.append(event))
    lengths = [event.length for event in done if type(event).__name__ == "EpisodeDone"]
    assert set(lengths) <= {10, 15}
    assert len(lengths) >= 3 * envs
    assert all(one.resets > before for one, before in zip(every, resets, strict=False))
    started = next(event for event in done if type(event).__name__ == "Started")
    assert any("new episodes begin" in note for note in started.warnings)


@pytest.mark.parametrize("kept", ["stored", "derived"])
def test_replay_holds_no_transition_across_an_error(kept):
    model, _ = breaking("td3", next_observation=kept)
    with pytest.raises(RunError):
        model.learn(200)
    model.learn(20)
    learner = model.trainer.learner
    rows = np.asarray(learner.storage)[: int(np.ravel(learner.carry.replay_state.size)[0])]
    seen, ended = rows[:, 0:3], rows[:, learner.layout.slices["truncated"].start] > 0
    ended |= rows[:, learner.layout.slices["terminated"].start] > 0
    moved = np.diff(seen, axis=0)
    new_episode = (moved[:, 1] != 0) | (moved[:, 2] != 1)
    if kept == "stored":  # with derived ones, a row behind an end holds the last observation
        np.testing.assert_array_equal(ended[:-1], new_episode)
    broken = np.flatnonzero((seen[:, 1] == 3) & (seen[:, 2] == 3))  # the row before the step that broke
    assert ended[broken[0]]


# --- boards and pictures -------------------------------------------------------------------------

BOARDS = [
    spaces.Box(0, 2, (3, 3), np.uint8),
    spaces.Box(0, 1, (8, 8, 12), np.uint8),
    spaces.Box(0, 14, (6, 7), np.uint8),
    spaces.Box(0, 255, (5,), np.uint8),
    spaces.Box(-1, 1, (4, 4), np.int8),
    spaces.Box(0, 255, (4, 4), np.int64),
]


class Board(tiny.Clock):
    def __init__(self, space):
        super().__init__(length=6)
        self.observation_space = space

    def shown(self):
        return np.full(
            self.observation_space.shape, self.observation_space.high.max(), self.observation_space.dtype
        )


@pytest.mark.parametrize("space", BOARDS)
@pytest.mark.parametrize("index", [False, True])
def test_boards_are_vectors(space, index):
    adapter = make(lambda: Board(space), index_actions=index)
    assert (adapter.spec.frame, adapter.spec.observation_size) == (None, int(np.prod(space.shape)))
    assert adapter.reset().tolist() == [[float(space.high.max())] * int(np.prod(space.shape))]
    assert build("td7", {}).on(adapter.spec)


@pytest.mark.parametrize("most", [128, 254, 255])
def test_pictures_stay_images(most):
    assert is_image(spaces.Box(0, most, (9, 9, 3), np.uint8))


def test_where_a_board_looks_like_an_image_the_way_is_said():
    board = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    for recipe in ("td7", "td3+conv", "ppo"):
        index = recipe == "ppo"
        with pytest.raises(UsageError, match="FlattenObservation"):
            build(recipe, {}).on(make(lambda: Board(board), index_actions=index).spec)
    flat = make(lambda: gym.wrappers.FlattenObservation(Board(board)))
    assert flat.spec.frame is None


FRAMES = {
    "grey": (np.full((4, 6), 7, np.uint8), 7),
    "one channel": (np.full((4, 6, 1), 7, np.uint8), 7),
    "colours": (np.full((4, 6, 3), 7, np.uint8), 7),
    "transparent": (np.full((4, 6, 4), 7, np.uint8), 7),
    "shares": (np.full((4, 6, 3), 0.5), 127),
    "masks": (np.ones((4, 6), bool), 255),
    "large whole": (np.full((4, 6), 7, np.int64), 7),
}


class Drawn(tiny.Clock):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, frame, render_mode="rgb_array"):
        super().__init__()
        self.frame, self.render_mode = frame, render_mode

    def render(self):
        return self.frame


@pytest.mark.parametrize("which", FRAMES)
def test_grey_frames_and_others_become_colours(which):
    frame, value = FRAMES[which]
    made = make(lambda: Drawn(frame)).render_frame()
    assert (made.shape, made.dtype, set(made.ravel().tolist())) == ((4, 6, 3), np.uint8, {value})


@pytest.mark.parametrize(
    "frame", [None, np.zeros((4, 6, 2), np.uint8), np.zeros(3), "picture", np.zeros((2, 4, 6, 3))]
)
def test_what_is_no_picture_is_refused(frame):
    with pytest.raises(RunError, match="a picture is an array"):
        make(lambda: Drawn(frame)).render_frame()
