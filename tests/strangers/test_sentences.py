"""Sentences name the cause, and a remedy that works."""

import importlib.metadata
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import tiny
from gymnasium import spaces

from qscape.envs import make
from qscape.errors import UsageError, WrongVersion


def refused(env, **given):
    """The sentence with which an environment is refused."""
    with pytest.raises(UsageError) as caught:
        make(env, **given)
    return caught.value


# --- errors in a constructor ----------------------------------------------------------------------


def load(path):
    """Fail as a package does deep inside."""
    raise deep_error(path)


def deep_error(path):
    return {
        "os": OSError(2, "No such file", path),
        "value": ValueError("bad mesh"),
        "type": TypeError("None + 1"),
    }[path]


class Deep(tiny.Clock):
    """Fails deep inside its constructor, whatever it is given."""

    def __init__(self, size=1, how="value"):
        super().__init__()
        load(how)


class Checks(tiny.Clock):
    """Checks its arguments itself."""

    def __init__(self, size=1):
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; it must be positive")


@pytest.mark.parametrize("how", ["os", "value", "type"])
@pytest.mark.parametrize("args", [{}, {"size": 2}])
def test_an_error_deep_inside_is_not_blamed_on_the_arguments(how, args):
    problem = refused(Deep, env_args=args | {"how": how})
    assert "it takes" not in str(problem)
    assert problem.field is None
    assert f"raised in {__name__}, line" in str(problem)
    assert type(deep_error(how)).__name__ in str(problem)


@pytest.mark.parametrize("args", [{"size": 0}, {"sizes": 3}, {"size": 1, "render": True}])
def test_wrong_arguments_are_named_with_those_that_there_are(args):
    problem = refused(Checks, env_args=args)
    assert "it takes size" in str(problem)
    assert problem.field == "env_args"


def test_a_function_that_needs_an_argument_says_so():
    def needs(size):
        return tiny.Clock()

    assert "it takes size" in str(refused(needs))


@pytest.mark.parametrize(
    ("package", "version", "raises", "first"),
    [
        ("metaworld", "4.0.1", "AttributeError", "3.12"),
        ("metaworld", "4.0.1", "ValueError", "3.12"),
        ("metaworld", "3.12.0", "AttributeError", "3.12"),
        ("metaworld", "3.3.0", "AttributeError", None),
        ("robosuite", "4.0.0", "AssertionError", "3.10"),
        ("robosuite", "3.11.0", "AttributeError", "3.10"),
        ("robosuite", "4.0.0", "TypeError", None),  # of an argument that it does not take
        ("robosuite", "3.9.0", "AssertionError", None),
    ],
)
@pytest.mark.parametrize("args", [{}, {"env_name": "reach-v3"}])
def test_a_package_beside_a_newer_mujoco_names_the_version(
    package, version, raises, first, args, monkeypatch
):
    module = types.ModuleType(package)
    exec(f"def build():\n    raise {raises}('mjData has no site_xpos')\n", module.__dict__)
    monkeypatch.setitem(sys.modules, package, module)
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: {"mujoco": version, package: "1.0.0"}.get(name) or known(name),
    )

    def make_one(env_name="reach-v3"):
        return module.build()

    problem = refused(make_one, env_args=args)
    assert isinstance(problem, WrongVersion) == (first is not None)
    assert (f'pip install "mujoco<{first}"' in str(problem)) == (first is not None)
    assert "it takes" not in str(problem)


# --- a function that asks for another id ----------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("Pendulu-v1", "no environment is called 'Pendulu-v1'; near to it: Pendulum-v1"),
        ("Pendulum-v9", "'Pendulum-v9'"),
        ("nowhere/Thing-v0", "'nowhere/Thing-v0'"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
    ],
)
def test_a_function_names_the_inner_id(inner, said):
    def my_factory():
        return gym.wrappers.FlattenObservation(gym.make(inner))

    text = str(refused(my_factory))
    assert text.startswith(f"my_factory makes {inner} inside: ")
    assert said in text
    assert "'my_factory'" not in text


def test_an_id_that_is_missing_itself_is_named_as_before():
    assert str(refused("Pendulu-v1")).startswith(
        "no environment is called 'Pendulu-v1'; near to it: Pendulum-v1"
    )


# --- observations -------------------------------------------------------------------------------


class Words(spaces.Space):
    """A space of somebody else, of which Gymnasium knows nothing."""

    def __init__(self):
        super().__init__((), None)

    def sample(self, *_, **__):
        return "go"

    def contains(self, x):
        return isinstance(x, str)


class Mission(Words):
    pass


Mission.__module__ = "minigrid.core.mission"
BOX = spaces.Box(-1, 1, (2,))
FLAT = [spaces.Tuple([BOX, spaces.Discrete(3)]), spaces.MultiBinary(3), spaces.Discrete(4), spaces.Text(3)]
NOT_FLAT = [Words(), spaces.Graph(BOX, None), spaces.Sequence(BOX), spaces.Dict(a=BOX, m=Words())]


class Shows(tiny.Clock):
    def __init__(self, space):
        super().__init__()
        self.observation_space = space

    def shown(self):
        return self.observation_space.sample()


@pytest.mark.parametrize("space", FLAT)
def test_flatten_observation_is_named_where_it_works(space):
    assert "FlattenObservation makes of it" in str(refused(lambda: Shows(space)))
    assert make(lambda: gym.wrappers.FlattenObservation(Shows(space))).reset().ndim == 2


@pytest.mark.parametrize("space", NOT_FLAT)
def test_flatten_observation_is_not_named_where_it_raises(space):
    text = str(refused(lambda: Shows(space)))
    assert "FlattenObservation" not in text
    assert "--env module:make" in text


def test_minigrid_has_wrappers_of_its_own():
    text = str(refused(lambda: Shows(spaces.Dict(image=BOX, mission=Mission()))))
    assert "ImgObsWrapper" in text
    assert "gymnasium.wrappers" not in text


# --- success under other names --------------------------------------------------------------------


class Tells(tiny.Clock):
    def __init__(self, **told):
        super().__init__(length=3)
        self.told = told

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, info | self.told


def warnings_of(told, envs):
    adapter = make(lambda: Tells(**told), envs)
    adapter.reset()
    for _ in range(20):
        adapter.step(np.zeros((envs, 1), np.float32))
    return adapter.take_warnings() + adapter.take_warnings()


@pytest.mark.parametrize(
    "name",
    [
        "solved",
        "episode_task_completions",
        "is_solved",
        "goal_reached",
        "task_success",
        "Success",
        "completed",
    ],
)
@pytest.mark.parametrize("envs", [1, 2])
def test_success_under_another_name_is_told_once(name, envs):
    (sentence,) = warnings_of({name: True}, envs)
    assert f'info["{name}"] looks like success' in sentence


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"success": 1.0, "solved": True},
        {"is_success": False, "completed": 1},
        {"TimeLimit.truncated": True},
        {"successor": 1},
        {"resolved_at": 2},
        {3: 1, None: 2},
        {"dissolved": 1},
    ],
)
def test_nothing_is_told_where_success_is_read_or_there_is_none(told):
    adapter = make(lambda: WithKeys(told))
    adapter.reset()
    for _ in range(9):
        adapter.step(np.zeros((1, 1), np.float32))
    assert adapter.take_warnings() == []


class WithKeys(tiny.Clock):
    def __init__(self, told):
        super().__init__(length=3)
        self.told = told

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, **self.told}


# --- SuperSuit's vector environment -------------------------------------------------------------


class Concat(gym.vector.VectorEnv):
    """Says what SuperSuit's says."""

    def __init__(self, spaces_of_rows=False):
        self.num_envs, self.observation_space, self.action_space = 2, BOX, BOX
        if spaces_of_rows:
            self.single_observation_space = self.single_action_space = BOX


@pytest.mark.parametrize("spaces_of_rows", [False, True])
def test_vector_environment_of_supersuit_says_what_it_is(spaces_of_rows, monkeypatch):
    monkeypatch.setattr(Concat, "__module__", "supersuit.vector.concat_vec_env")
    text = str(refused(Concat(spaces_of_rows)))
    assert "It is SuperSuit's" in text
    assert "Several agents" in text


def test_vector_environment_without_spaces_of_rows_is_no_environment_without_spaces():
    text = str(refused(Concat()))
    assert "is a vector environment" in text
    assert "single_observation_space" in text
    assert "SuperSuit" not in text
