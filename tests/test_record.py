"""What `qscape record` writes is what happened, and `qscape dataset` says what is there."""

import gymnasium as gym
import numpy as np
import pytest
import tiny

import qscape as qs
from qscape.cli import main
from qscape.data import read
from qscape.errors import RunError, UsageError
from qscape.run.record import _drop_unwritable_spec, record_dataset

minari = pytest.importorskip("minari")
EPISODES = 3
ROOMS = "NamedRooms-v0"  # by its path: a dataset can name it
if ROOMS not in gym.registry:
    gym.register(ROOMS, "tiny:Rooms")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    """Minari's datasets lie in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder on an environment with Dict observations and an asymmetric box; nothing is trained."""
    return qs.Model("td3", ROOMS, **tiny.settings("td3")).save(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module", params=["trained", "noisy", "random"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def recorded(run, kind):
    name = f"local/{kind}-v0"
    argv = ["record", str(run), "--episodes", EPISODES, "--dataset", name, "--policy", kind]
    argv += ["--noise", 0.3] if kind == "noisy" else []
    assert main([*map(str, argv)]) == 0
    return name


def walk(run, actions):
    """The episodes again: (observation, reward, terminated, truncated, next observation) of every step."""
    env = gym.make(ROOMS)
    steps, flat = [], lambda o: gym.spaces.flatten(env.observation_space, o).astype(np.float32)
    rest = list(actions)
    for k in range(EPISODES):
        observation, over = env.reset(seed=k)[0], False
        while not over:
            following, reward, terminated, truncated, _ = env.step(rest.pop(0))
            steps.append((flat(observation), reward, terminated, truncated, flat(following), observation))
            observation, over = following, terminated or truncated
    assert not rest
    return list(zip(*steps, strict=True))


def test_nothing_is_lost_on_the_way_to_the_disk_and_back(run, recorded):
    stored = minari.load_dataset(recorded)
    actions = np.concatenate([e.actions for e in stored.iterate_episodes()])
    observation, reward, terminated, truncated, following, _ = walk(run, actions)
    found = read(recorded)
    np.testing.assert_array_equal(found.observation, observation)
    np.testing.assert_array_equal(found.next_observation, following)
    np.testing.assert_array_equal(found.reward, np.float32(reward))
    np.testing.assert_array_equal(found.terminated, terminated)
    np.testing.assert_array_equal(found.truncated, truncated)
    low, high = np.array([-1.0, 10.0]), np.array([3.0, 20.0])
    np.testing.assert_allclose((found.action + 1) / 2 * (high - low) + low, actions, atol=2e-6)
    assert (found.env, found.env_args, found.lengths.tolist()) == (ROOMS, {}, [20] * EPISODES)


def test_each_policy_acts_as_it_is_called(run, kind, recorded):
    found, model = read(recorded), qs.load(run)
    actions = np.concatenate([e.actions for e in minari.load_dataset(recorded).iterate_episodes()])
    shown = walk(run, actions)[-1]
    batch = {
        "map": np.stack([o["map"] for o in shown]),
        "self": {"speed": np.stack([o["self"]["speed"] for o in shown])},
    }
    asked = (model.predict(batch)[0] - [1.0, 15.0]) / [2.0, 5.0]
    off = found.action - asked
    if kind == "trained":
        assert np.abs(off).max() < 1e-5
    elif kind == "noisy":
        inside = np.abs(found.action) < 1
        assert off[inside].std() == pytest.approx(0.3, rel=0.25)
    else:
        assert found.action.std() == pytest.approx(1 / np.sqrt(3), rel=0.15)
        assert np.abs(off).max() > 0.5


def test_dataset_prints_what_is_there(recorded, capsys):
    assert main(["dataset", recorded]) == 0
    out = capsys.readouterr().out
    found = read(recorded)
    returns = found.reward.reshape(EPISODES, 20).sum(1, dtype=np.float64)
    bins = [len(set(np.clip((a + 1) * 10, 0, 19).astype(int))) * 5 for a in found.action.T]
    for said in (
        ROOMS,
        "60 transitions in 3 episodes",
        "0 terminated, 3 truncated",
        f"mean {returns.mean():,.2f}, standard deviation {returns.std():,.2f}",
        f"greatest {returns.max():,.2f}",
        *(f"{share}% of 20 equal bins" for share in bins),
        f"from {found.observation[:, 6].min():.4g} to {found.observation[:, 6].max():.4g}",
    ):
        assert said in out


def test_the_same_seed_records_the_same(run):
    one, other = (record_dataset(run, f"local/again{k}-v0", 1, "noisy", 0.2, seed=5) for k in (0, 1))
    np.testing.assert_array_equal(one[0].actions, other[0].actions)
    third = record_dataset(run, "local/other-v0", 1, "noisy", 0.2, seed=6)
    assert not np.array_equal(one[0].actions, third[0].actions)


def test_random_actions_are_independent_of_the_first_state(run):
    """A generator with the environment's seed would draw the state's numbers again as actions."""
    (episode,) = record_dataset(run, "local/independent-v0", 1, "random", seed=5)
    size = episode.actions.shape[1]
    box = read("local/independent-v0").action_space
    again = np.random.default_rng(5).uniform(-1, 1, size)
    assert not np.allclose(episode.actions[0], (box.low + box.high) / 2 + again * (box.high - box.low) / 2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("local/taken-v0", {}, "exists; choose another name"),
        ("local/no-version", {}, "is not a valid dataset name"),
        ("local/a-v0", {"episodes": 0}, "must be at least 1"),
        ("local/a-v0", {"noise": -1.0}, "0 or more"),
    ],
)
def test_bad_requests_are_usage_errors(run, name, options, says):
    if "taken" in name:
        record_dataset(run, name, 1, "random")
    with pytest.raises(UsageError, match=says):
        record_dataset(run, name, **({"episodes": 1} | options))


def test_an_environment_that_no_file_can_name_is_left_out(tmp_path, capsys):
    run = qs.Model("td3", "Rooms-v0", **tiny.settings("td3")).save(tmp_path / "a")
    assert main(["record", str(run), "--episodes", "1", "--dataset", "local/nameless-v0"]) == 0
    assert "give --env" in capsys.readouterr().out
    assert read("local/nameless-v0").env is None
    assert read("local/nameless-v0", ROOMS).env == ROOMS


def test_an_environment_whose_arguments_json_cannot_hold_is_recorded():
    env, odd = gym.make("Pendulum-v1", g=9.0), gym.make("Pendulum-v1", g=np.float32(9.0))
    assert _drop_unwritable_spec(env) is env
    assert _drop_unwritable_spec(odd).spec is None


def test_a_run_without_a_save_is_refused(run, tmp_path):
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(RunError, match="has lost its saves"):
        record_dataset(tmp_path, "local/b-v0", 1)
