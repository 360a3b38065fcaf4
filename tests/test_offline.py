"""Learning from datasets: what is read, what is learnt from it, and how a run goes on from there."""

import dataclasses
import json
import re
import shutil
import warnings
from collections import OrderedDict

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gymnasium import spaces
from refused import refused

import qscape as qs
from qscape.agents import build, recipe_for_dataset
from qscape.cli import main
from qscape.data import read, read_origin
from qscape.envs.snapshot import take
from qscape.methods.bc import BC, Clone
from qscape.methods.iql import IQL, expectile_loss
from qscape.nets.heads import Point
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Context, PartState
from qscape.ops import sum_tree
from qscape.ops.nearest import ActionTable
from qscape.replay.storage import rows_at
from qscape.run import folder as folders
from qscape.run import saves
from qscape.run.engines import dataset
from qscape.run.folder import read_plan, read_record
from qscape.run.plan import Plan, part_notes, prepare, to_json
from qscape.run.training import make_session, resume, train
from qscape.types import Batch, Spec

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
CLOCK = "NamedClock-v0"  # by its path: a dataset can name it
if CLOCK not in gym.registry:
    gym.register(CLOCK, "tiny:Clock", max_episode_steps=25)
LENGTHS, ENDS = (5, 9, 12, 1), ("terminated", "truncated", "truncated", "terminated")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    """Minari's datasets lie in a folder of the tests."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder


def episodes(seed=0, scale=1.0, lengths=LENGTHS, ends=ENDS):
    """Random episodes as Minari takes them."""
    rng, made = np.random.default_rng(seed), []
    for n, end in zip(lengths, ends, strict=True):
        last = np.arange(n) == n - 1
        made.append(
            {
                "observations": rng.normal(size=(n + 1, 3)).astype(np.float32),
                "actions": (scale * rng.uniform(-1, 1, (n, 1))).astype(np.float32),
                "rewards": rng.normal(size=n),
                "terminations": last & (end == "terminated"),
                "truncations": last & (end == "truncated"),
            }
        )
    return made


def write(name, made, low=-1.0, high=1.0, env=CLOCK, **more):
    """A Minari dataset of these episodes."""
    buffers = [minari.data_collector.EpisodeBuffer(id=k, **e) for k, e in enumerate(made)]
    box = spaces.Box(np.float32([low]), np.float32([high]), dtype=np.float32)
    more = {"observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32)} | more
    more |= {"action_space": box}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an author and so on that are not given
        minari.create_dataset_from_buffers(name, buffers, env=env, **more)
    return name


@pytest.fixture(scope="module")
def name(datasets):
    """A dataset with reference returns, in the clock's environment."""
    return write("test/clock-v0", episodes(), ref_min_score=-2.0, ref_max_score=8.0)


# --- reading ------------------------------------------------------------------------------------------


def assert_holds(found, made):
    np.testing.assert_array_equal(found.observation, np.concatenate([e["observations"][:-1] for e in made]))
    np.testing.assert_array_equal(
        found.next_observation, np.concatenate([e["observations"][1:] for e in made])
    )
    np.testing.assert_allclose(found.reward, np.concatenate([e["rewards"] for e in made]), rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(found.terminated), [4, 26])
    np.testing.assert_array_equal(np.flatnonzero(found.truncated), [13, 25])


def test_a_minari_dataset_by_name_and_by_path(name, datasets):
    made = episodes()
    for place in (name, str(datasets / name), str(datasets / name / "data")):
        found = read(place)
        assert_holds(found, made)
        np.testing.assert_array_equal(found.action, np.concatenate([e["actions"] for e in made]))
        assert (found.env, dict(found.env_args), found.reference) == (CLOCK, {}, (-2.0, 8.0))
    assert found.lengths.tolist() == list(LENGTHS)
    np.testing.assert_allclose(found.returns, [e["rewards"].sum() for e in made], rtol=1e-6)


def test_actions_come_in_from_any_box(datasets):
    made = episodes(scale=0.5)
    for e in made:
        e["actions"] = e["actions"] * 4 + 3  # within [1, 5]
    found = read(write("test/box-v0", made, low=0.0, high=5.0, env=None))
    raw = np.concatenate([e["actions"] for e in made])
    np.testing.assert_allclose(found.action, (raw - 2.5) / 2.5, atol=1e-6)
    assert found.env is None


def test_the_environment_comes_back_with_its_arguments(datasets):
    env = gym.make(CLOCK, length=7, max_episode_steps=11)
    found = read(write("test/args-v0", episodes(), env=env.spec))
    assert (found.env, dict(found.env_args)) == (CLOCK, {"length": 7, "max_episode_steps": 11})


def d4rl(file, following=False, drop=(), **changed):
    """The same episodes in D4RL's layout."""
    made = episodes()
    arrays = {
        "observations": np.concatenate([e["observations"][:-1] for e in made]),
        "actions": np.concatenate([e["actions"] for e in made]),
        "rewards": np.concatenate([e["rewards"] for e in made]),
        "terminals": np.concatenate([e["terminations"] for e in made]),
        "timeouts": np.concatenate([e["truncations"] for e in made]),
    }
    if following:
        arrays["next_observations"] = np.concatenate([e["observations"][1:] for e in made])
    with h5py.File(file, "w") as data:
        for key, array in (arrays | changed).items():
            if key not in drop:
                data[key] = array
    return str(file)


def test_hdf5_with_successors_holds_every_transition(tmp_path):
    found = read(d4rl(tmp_path / "hopper-medium-v2.hdf5", following=True))
    assert_holds(found, episodes())
    assert found.reference == (-20.272305, 3234.3)
    assert read_origin(found.name, "Hopper-v5").reference == found.reference
    assert read_origin(found.name, "Pendulum-v1").reference is None
    assert read(d4rl(tmp_path / "grasshopper.hdf5", following=True)).reference is None
    assert found.score(-20.272305) == 0.0
    assert found.score(3234.3) == pytest.approx(100.0)


def test_hdf5_with_successors_alone_tells_where_time_limits_ended_episodes(tmp_path):
    assert_holds(read(d4rl(tmp_path / "a.h5", following=True, drop=("timeouts",))), episodes())


def test_rows_that_were_left_out_of_an_hdf5_file_end_its_episodes(tmp_path):
    """Every third transition of one episode: no row follows the one before it, and time limits are not it."""
    states = np.random.default_rng(0).normal(size=(31, 3)).astype(np.float32)
    with h5py.File(tmp_path / "thinned.hdf5", "w") as data:
        data["observations"], data["next_observations"] = states[:-1:3], states[1::3]
        data["actions"], data["rewards"] = np.zeros((10, 1)), np.zeros(10)
        data["terminals"], data["timeouts"] = np.arange(10) == 9, np.zeros(10, bool)
    found = read(str(tmp_path / "thinned.hdf5"))
    assert found.truncated.tolist() == [True] * 9 + [False]
    assert found.lengths.tolist() == [1] * 10


def test_hdf5_without_successors_leaves_out_the_last_row_of_a_time_limit(tmp_path):
    """Rows 13 and 25 have no known successor; the rows before them end their episodes now."""
    found, made = read(d4rl(tmp_path / "a.h5")), episodes()
    keep = [k for k in range(27) if k not in (13, 25)]
    before = np.concatenate([e["observations"][:-1] for e in made])
    after = np.concatenate([e["observations"][1:] for e in made])
    np.testing.assert_array_equal(found.observation, before[keep])
    going = ~found.terminated
    np.testing.assert_array_equal(found.next_observation[going], after[keep][going])
    assert [keep[k] for k in np.flatnonzero(found.terminated)] == [4, 26]
    assert [keep[k] for k in np.flatnonzero(found.truncated)] == [12, 24]
    assert found.reference is None


@pytest.mark.parametrize("env", ["", CLOCK])
def test_a_file_that_does_not_tell_where_time_limits_ended_episodes_says_so(env, tmp_path):
    file = d4rl(tmp_path / "a.h5", drop=("timeouts",))
    assert read(file).lengths.tolist() == [5, 22]  # the last three episodes are one
    plan = Plan("td3", env, 1, dataset=file, eval_every=0, settings={"base": tiny.SIZES})
    said = [note for note in next(train(plan, tmp_path / "run")).notes if file in note]
    assert [note.removeprefix(file)[:30] for note in said] == [
        *([] if env else [" names no environment, so noth"]),
        " has neither timeouts nor next",
    ]
    assert not any("timeouts" in note for note in read(d4rl(file, following=True)).notes)


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        ({"drop": ("rewards",)}, "bad-file", ("lacks rewards",)),
        ({"rewards": np.zeros(5)}, "bad-file", ("'rewards': 5", 27)),
        ({"rewards": np.full(27, np.nan)}, "bad-file", ("reward", "NaN", "episode 0")),
        ({"actions": np.full((27, 1), -2.0)}, "bad-file", ("[0]", "-2", "[-1, 1]", "env")),
        ({k: np.zeros((0, 3)) for k in ("observations", "actions", "rewards", "terminals", "timeouts")},
         "bad-file", ()),
        ({"observations": np.array([b"x"] * 27)}, "cannot-read", ("HDF5",)),
        ({"rewards": np.zeros((27, 2))}, "bad-file", ("rewards", "(27, 2)")),
        ({"next_observations": np.zeros((27, 2))}, "bad-file", ("next_observations",)),
        ({"terminals": np.where(np.arange(27) == 4, np.nan, 0)}, "bad-file", ("terminals", "NaN", "row 4")),
        ({"rewards": h5py.SoftLink("/rewards")}, "cannot-read", ("HDF5", "RuntimeError")),
    ],
)  # fmt: skip
def test_bad_hdf5_is_refused(tmp_path, changed, code, named):
    with refused(code, "a.hdf5", *named):
        read(d4rl(tmp_path / "a.hdf5", **changed))


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "a.hdf5").write_text("no")
    with refused("cannot-read", "a.hdf5", "HDF5"):
        read(str(tmp_path / "a.hdf5"))
    with refused("not-found", "b.hdf5"):
        read(str(tmp_path / "b.hdf5"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_environment_with_wrappers_is_not_made_again(datasets):
    """Without its wrappers, the environment has other rewards than the dataset."""
    env = gym.wrappers.ClipReward(gym.make(CLOCK), -0.5, 0.5)
    found = read(write("local/wrapped-v0", episodes(), env=env))
    assert (found.env, found.env_args) == (None, {})
    assert "Clock-v0 with the wrappers ClipReward, which are not made again, so" in found.notes[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_minari_datasets_are_refused(datasets, tmp_path):
    made = episodes()
    made[1]["observations"][3, 0] = np.nan
    with refused("bad-file", "observation", "episode 1", "transition 8"):
        read(write("test/nan-v0", made))
    with refused("bad-file", "action[0]", "[-1, 1]", "record"):
        read(write("test/wide-v0", episodes(scale=3.0)))
    with refused("mismatch", "Box(-1.0, 1.0", "MultiDiscrete"):
        read(write("test/levels-v0", episodes()), CLOCK, {"action_levels": 3})
    with refused("wrong-value", "test/clock", "-v0", field="dataset"):
        read("test/clock")
    with refused("mismatch", "Box(-1.0, 1.0", "Pendulum-v1"):
        read(write("test/other-v0", episodes()), "Pendulum-v1")
    discrete = [e | {"actions": np.zeros(len(e["rewards"]), int)} for e in episodes()]
    buffers = [minari.data_collector.EpisodeBuffer(id=k, **e) for k, e in enumerate(discrete)]
    space = spaces.Box(-9, 9, (3,))
    minari.create_dataset_from_buffers(
        "test/discrete-v0", buffers, env="CartPole-v1", observation_space=space
    )
    with refused("unfit-env", "Discrete", "Box"):
        read("test/discrete-v0")
    picture, pixels = spaces.Box(0, 255, (4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    for key, space, seen in [
        ("picture", picture, pixels),
        (
            "both",
            spaces.Dict(eye=picture, arm=spaces.Box(-1, 1, (2,))),
            {"eye": pixels, "arm": np.ones((2, 2))},
        ),
    ]:
        one = [e | {"observations": seen} for e in episodes(lengths=(1,), ends=("terminated",))]
        with refused("unfit-env", f"test/{key}-v0"):
            read(write(f"test/{key}-v0", one, env=None, observation_space=space))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/metadata.json").write_text("{}")
    with refused("cannot-read", "Minari"):
        read(str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_with_a_truncated_file_is_refused(datasets, tmp_path):
    write("test/cut-v0", episodes())
    shutil.copytree(datasets / "test/cut-v0", tmp_path / "cut")
    file = tmp_path / "cut/data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    with refused("cannot-read", "cut", "Minari", "OSError", "truncated file"):
        read(str(tmp_path / "cut"))
    with h5py.File(file, "w") as data:
        data.create_group("episode_0")
    with refused("cannot-read", "cut", "Minari"):
        read(str(tmp_path / "cut"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_metadata_of_a_dataset_are_no_traceback(datasets):
    """Equal reference returns give no score; a file of another format needs a package."""
    name = write("test/odd-v0", episodes(), ref_min_score=8.0, ref_max_score=8.0)
    assert read(name).reference is None
    file = datasets / name / "data/metadata.json"
    good = json.loads(file.read_text())
    spec = json.loads(good["env_spec"]) | {"kwargs": 5}
    for changed, named in [
        ({"data_format": "arrow"}, "Minari"),
        ({"env_spec": json.dumps(spec)}, "environment"),
    ]:
        file.write_text(json.dumps(good | changed))
        with refused("cannot-read", name, named):
            read(name)
    file.write_text(json.dumps(good | {"ref_min_score": "x"}))
    assert read(name).reference is None


@pytest.mark.parametrize(
    ("column", "rows"),
    [("rewards", np.zeros((5, 2))), ("actions", np.zeros((5, 2))), ("terminations", np.zeros(4, bool)),
     ("observations", np.zeros((6, 4))), ("actions", np.array([b"x"] * 5))],
)  # fmt: skip
def test_a_dataset_with_an_array_of_another_shape_is_refused(datasets, tmp_path, column, rows):
    write("test/shape-v0", episodes())
    folder = datasets.joinpath("test/shape-v0").rename(tmp_path / "shape")
    with h5py.File(folder / "data/main_data.hdf5", "a") as data:
        del data[f"episode_0/{column}"]
        data[f"episode_0/{column}"] = rows
    with refused("cannot-read", "shape", "Minari", "Error: "):
        read(str(folder))


class TwoEntries(tiny.Clock):
    """A clock whose observation is a Dict, not in alphabetical order."""

    def __init__(self, key="b", size=2):
        super().__init__()
        entries = [(key, spaces.Box(-9, 9, (size,))), ("a", spaces.Box(-9, 9, (1,)))]
        self.observation_space = spaces.Dict(OrderedDict(entries))


def test_observations_of_keys_are_compared_and_put_in_order(datasets):
    if "TwoEntries-v0" not in gym.registry:
        gym.register("TwoEntries-v0", TwoEntries)
    made = episodes()
    rows = [e["observations"] for e in made]
    for e in made:
        e["observations"] = {"a": e["observations"][:, :1], "b": e["observations"][:, 1:]}
    space = spaces.Dict({"a": spaces.Box(-9, 9, (1,)), "b": spaces.Box(-9, 9, (2,))})
    name = write("test/keys-v0", made, env=None, observation_space=space)
    assert list(read(name).observation_space) == ["a", "b"]
    found = read(name, "TwoEntries-v0")
    np.testing.assert_array_equal(found.observation, np.concatenate([r[:-1, [1, 2, 0]] for r in rows]))
    for args in ({"key": "c"}, {"size": 3}):
        with refused("mismatch", "Dict("):
            read(name, "TwoEntries-v0", args)


def test_a_dataset_of_no_episodes_is_refused(datasets):
    name = write("test/empty-v0", episodes())
    folder = datasets / name / "data"
    about = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(about | {"total_episodes": 0, "total_steps": 0}))
    with h5py.File(folder / "main_data.hdf5", "w"):
        pass
    with refused("bad-file", name):
        read(name)


def test_without_a_network_a_download_says_so(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    with refused("unreachable", "mujoco/nothing/medium-v0"):
        read("mujoco/nothing/medium-v0")


def test_what_was_never_recorded_here_is_not_looked_for_elsewhere():
    with refused("not-found", "local/nothing-v0", field="dataset"):
        read("local/nothing-v0")


# --- the losses ---------------------------------------------------------------------------------------

CRITICS = jnp.array([[1.0, -2.0], [3.0, 0.5]])  # [B, heads]
ACTION, DATA = jnp.array([[0.5, -0.5], [0.0, 1.0]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])
BATCH = Batch(jnp.zeros((2, 3)), DATA, jnp.zeros(2), jnp.zeros(2), jnp.ones((2, 3)), 0.99)


def context(objective="mean", **more):
    """Functions whose values are the numbers above."""
    q = lambda obs, action: [CRITICS[:, 0], CRITICS[:, 1]]  # noqa: E731
    blank = dict.fromkeys(Context.__dataclass_fields__) | {
        "base": Base(actor_objective=objective, **more),
        "q": q,
        "q_target": q,
    }
    return Context(**blank | {"policy": lambda obs: Point(obs, ACTION), "spec": Spec(3, 2)})


def test_td7s_term_is_the_spec_s_number():
    """Check C9: mean |q| 1.625 over both heads, (π − a)² 0.375, λ 0.1: −0.625 becomes −0.5640625."""
    term, said = Clone().actor(None, PartState(), context(), BATCH, jax.random.key(0))
    assert float(said["clone_distance"]) == 0.375
    assert float(-CRITICS.mean() + term) == pytest.approx(-0.5640625, abs=1e-7)
    first, _ = Clone(weight=1.0).actor(None, PartState(), context("first"), BATCH, jax.random.key(0))
    assert float(first) == pytest.approx(2.0 * 0.375)  # of head 1 alone: mean |1|, |3|


def test_the_scale_of_tds_term_has_no_gradient():
    def term(action):
        given = context()._replace(
            policy=lambda obs: Point(obs, action), q=lambda obs, a: [a.sum(-1), 2 * a.sum(-1)]
        )
        return Clone(weight=1.0).actor(None, PartState(), given, BATCH, jax.random.key(0))[0]

    scale = np.abs(np.stack([ACTION.sum(-1), 2 * ACTION.sum(-1)])).mean()
    np.testing.assert_allclose(jax.grad(term)(ACTION), scale * 2 * (ACTION - DATA) / 4, rtol=1e-6)


def test_td3_bc_scales_q_to_alpha():
    """−2.5 · mean Q1 / mean |Q1| + 0.375, with Q1 = (1, 3)."""
    loss, _ = BC().loss(
        context().policy, context().q, None, PartState(), context("first"), BATCH, jax.random.key(0)
    )
    assert float(loss) == pytest.approx(0.375 - 2.5)
    loss, _ = BC(alpha=1.0).loss(
        context().policy, context().q, None, PartState(), context("mean"), BATCH, jax.random.key(0)
    )
    assert float(loss) == pytest.approx(0.375 - (-0.5 + 1.75) / (0.5 + 1.75))
    plain, said = BC(alpha=0.0).loss(
        context().policy, context().q, None, PartState(), context(), BATCH, jax.random.key(0)
    )
    assert (float(plain), [*said]) == (0.375, ["clone_distance"])


def test_iql_takes_the_expectile_and_weighs_by_the_advantage():
    x, v = jnp.array([0.0, 1.0]), jnp.linspace(0, 1, 1001)
    losses = jax.vmap(lambda v: expectile_loss(x - v, 0.7).mean())(v)
    assert float(v[losses.argmin()]) == pytest.approx(0.7)  # the τ-expectile of a fair coin is τ

    part = IQL(expectile=0.9, temperature=2.0, max_weight=5.0)
    own = PartState(
        params=lambda obs: jnp.array([[0.0], [-2.0]]) + obs[:, :1]
    )  # V(s) = 0 and -2, V(s') one more
    least = np.array([-2.0, 0.5])
    loss, _, _ = part.learn(own.params, own, context(), BATCH, jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean([0.1 * 4.0, 0.9 * 6.25]))  # u = -2 and 2.5
    weight = np.minimum(np.exp(2.0 * (least - [0.0, -2.0])), 5.0)
    far = np.square(np.asarray(ACTION - DATA)).sum(-1)
    found, _ = part.loss(context().policy, context().q, None, own, context(), BATCH, jax.random.key(0))
    assert float(found) == pytest.approx((weight * far).mean())
    assert part.next_value(own, BATCH.next_observation).tolist() == [1.0, -1.0]


def test_iql_says_which_part_it_replaces():
    assert part_notes(build("td7+iql")) == ["iql values the next state by V: value_clip is not used"]
    assert part_notes(build("iql")) == []


@pytest.mark.parametrize(
    ("recipe", "settings", "note"),
    [
        ("td3+implicit+droq", {}, "implicit values the next state itself, by target critics without dropout"),
        (
            "td3+lipsnet",
            {"base": {"init": "xavier"}},
            "without projection or layer norm: base.init has no effect",
        ),
        ("td3+lipsnet", {"base": {"actor_output_std": 0.1}}, "base.actor_output_std has no effect"),
        (
            "dqn",
            {"base": {"init": "xavier"}, "per_action": {"dueling": True}},
            "per_action.dueling makes its two streams without base.init",
        ),
    ],
)
def test_parts_say_which_settings_do_not_reach_them(recipe, settings, note):
    assert any(said.endswith(note) for said in part_notes(build(recipe, settings)))


# --- recipes ------------------------------------------------------------------------------------------


def test_recipes_on_a_dataset():
    assert recipe_for_dataset("td7") == (
        "td7_offline",
        ["td7 on a dataset: checkpoints out, behaviour cloning in (td7_offline)"],
    )
    assert recipe_for_dataset("td7+clone+normalise")[0] == "td7_offline+normalise"
    assert recipe_for_dataset("td7+bc")[0] == "td3+sale+lap+periodic+value_clip+bc"
    assert recipe_for_dataset("td3+checkpoints+bc")[0] == "td3+bc"
    assert recipe_for_dataset("iql") == ("iql", [])
    assert not build("td7_offline").schedule.keeps_best_policy
    parts = set(build("td7").parts) - {"checkpoints"} | {"clone", "every_step"}
    assert set(build("td7_offline").parts) == parts
    with refused("unfit-agent", "ppo"):
        recipe_for_dataset("ppo")


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("observations", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["td3", "td3+lap", "derived"])
def test_the_replay_holds_the_dataset(name, recipe, observations):
    data = read(name)
    base = tiny.SIZES | {"next_observation": "derived" if recipe == "derived" else "stored"}
    base |= {"replay_observations": observations}
    agent = build(recipe.replace("derived", "td3"), {"base": base}).on(Spec(3, 1))
    layout = agent.layout(2)
    rows, index = dataset.fill(agent, layout, *agent.init_replay(layout), data)
    if recipe == "derived":  # two ends by time and two real ones leave pads behind
        at = np.flatnonzero(np.asarray(rows)[:, layout.slices["valid"]][:, 0])
        assert int(index.size[0]) == 27 + 4
    else:
        at = np.arange(27)
        assert int(index.size[0]) == 27
    batch = rows_at(layout, rows, index, jnp.asarray(at), 1, 0.9, {"truncated"})

    def kept(x: np.ndarray) -> np.ndarray:
        return x.astype(observations).astype(np.float32)

    for mine, theirs in zip(
        (batch.observation, batch.action, batch.reward, batch.terminated, batch.extra["truncated"]),
        (kept(data.observation), data.action, data.reward, data.terminated, data.truncated),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(batch.next_observation, kept(data.next_observation))
    assert int(index.size[1]) == 0
    if recipe == "td3+lap":
        priorities = sum_tree.leaves(index.priorities.tree, jnp.arange(len(rows)))
        np.testing.assert_array_equal(priorities, np.arange(len(rows)) < 27)


@pytest.mark.slow
def test_nothing_is_stepped_and_every_update_counts(name):
    """The run equals the agent's own updates on the filled replay."""
    settings = tiny.settings("td3")
    plan, agent, _ = prepare(Plan("td3+clone", "", 60, dataset=name, eval_every=30, settings=settings))
    assert (plan.env, plan.reference) == (CLOCK, (-2.0, 8.0))
    trainer = make(plan, agent)
    trainer.adapter.step = None  # whoever steps it fails
    key, state, rows, index = (
        trainer.learner.seeds.key,
        *jax.tree.map(
            jnp.copy, (trainer.learner.state, trainer.learner.storage, trainer.learner.carry.replay_state)
        ),
    )
    said = [*trainer.events(60)]
    assert [e.step for e in said if type(e).__name__ == "Evaluated"] == [0, 30, 60]
    assert (trainer.updates, trainer.env_steps) == (60, 60)
    update = jax.jit(lambda s, i: trainer.agent.update(trainer.learner.layout, s, rows, i, key)[:2])
    for _ in range(60):
        state, index = update(state, index)
    for mine, theirs in zip(
        jax.tree.leaves(trainer.learner.state.actor), jax.tree.leaves(state.actor), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert trainer.learner.layout.capacity == tiny.SIZES["replay_capacity"]


@pytest.mark.parametrize(("next_observation", "capacity"), [("stored", 10), ("derived", 12), ("derived", 32)])
def test_a_replay_smaller_than_the_dataset_is_told(name, next_observation, capacity):
    sizes = tiny.SIZES | {"replay_capacity": capacity, "next_observation": next_observation}
    plan, agent, _ = prepare(Plan("td3+bc", CLOCK, 60, dataset=name, eval_every=0, settings={"base": sizes}))
    trainer = make(plan, agent)
    assert trainer.engine.data.ends.sum() == 4
    if next_observation == "derived":
        held = int(np.asarray(trainer.learner.storage[:, trainer.learner.layout.slices["valid"]] > 0).sum())
    else:
        held = int(trainer.learner.carry.replay_state.size[0])
    said = [note for note in trainer.engine.notes(False) if note.startswith("only")]
    told = f"only the last {held} of 27 transitions are in the replay: base.replay_capacity = {capacity}"
    assert said == ([told] if held < 27 else [])
    assert held == {10: 10, 12: 10, 32: 27}[capacity]


def test_a_preset_does_not_cut_a_dataset(name):
    plan = Plan("td3", "HalfCheetah-v5", 60, dataset=name, preset="paper")
    assert "replay_capacity" not in prepare(plan)[0].settings["base"]
    own = dataclasses.replace(plan, settings={"base": {"replay_capacity": 999}})
    assert prepare(own)[0].settings["base"]["replay_capacity"] == 999


def make(plan, agent):
    from qscape.run.adapters import open_adapters

    trainer = make_session(plan, agent, *open_adapters(plan, agent))
    assert isinstance(trainer.engine, dataset.DatasetEngine)
    return trainer


def test_critics_are_asked_at_rows_of_an_action_table():
    """They never learn what other vectors are worth."""
    rows, asked = np.float32([[-1, -1], [1, 1], [1, -1]]), []

    def q(obs, action):
        asked.append(np.asarray(action))
        return [action.sum(-1)]

    given = context(nearest="exact")._replace(q=q, table=ActionTable(rows))
    BC().loss(given.policy, q, None, PartState(), given, BATCH, jax.random.key(0))
    Clone().actor(None, PartState(), given, BATCH, jax.random.key(0))
    assert len(asked) == 2
    for actions in asked:
        np.testing.assert_array_equal(actions, [[1, -1], [1, 1]])


@pytest.fixture(scope="module")
def run(name, tmp_path_factory):
    """td7 on the dataset, by the command line."""
    out = tmp_path_factory.mktemp("offline") / "o"
    flags = [*tiny.flags("td7"), "--eval-every", "40", "--eval-episodes", "1", "--log-every", "40"]
    argv = ["train", "td7", "--dataset", name, "--steps", "80", "--out", str(out), "--clone.weight", "0.2"]
    assert main([*argv, *map(str, flags)]) == 0
    return out / "0"


@pytest.mark.slow
def test_every_update_knows_its_step_however_many_are_made_in_one_call(name, tmp_path):
    """Schedules such as SAVGO's temperature go by it."""
    settings = tiny.settings("td3")
    plan = Plan("td3", CLOCK, 60, dataset=name, settings=settings, eval_every=0, log_every=25)
    trainers = []
    [*train(plan, tmp_path / "on", on_trainer=trainers.append)]
    assert trainers[0].learner.state.env_steps == 59


@pytest.mark.slow
def test_td7_on_a_dataset(run, name, capsys):
    plan, record = read_plan(run), read_record(run)
    assert (plan.recipe, plan.env, plan.dataset) == ("td7_offline", CLOCK, name)
    assert record["settings"]["clone"] == {"weight": 0.2}
    assert tiny.numbers(run)["updates"] == 80
    lines = tiny.metrics(run)
    mean = np.mean([float(r["return"]) for r in tiny.evaluations(run) if r["step"] == "80"])
    assert lines[-1]["normalised_score"] == pytest.approx(100 * (mean + 2.0) / 10.0)
    assert {"clone_distance", "encoder_loss"} <= lines[-1].keys()
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    assert "score" in capsys.readouterr().out
    assert main(["watch", str(run), "--once"]) == 0
    assert re.search(r"^ +updates *$", capsys.readouterr().out, re.MULTILINE)
    newest = run / "saves" / saves.names(run / "saves")[-1]
    assert saves.read_arrays(newest, "replay")["storage"].size == 0, "the dataset is on the disk already"


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_bit(run, tmp_path):
    plan = read_plan(run)
    *_, end = train(plan, tmp_path / "r", on_trainer=lambda t: stop_after(t, 40))
    assert end.interrupted
    *_, end = resume(tmp_path / "r")
    assert (end.step, end.interrupted) == (80, False)
    tiny.assert_same_run(run, tmp_path / "r")


def test_a_run_does_not_go_on_with_other_transitions(tmp_path):
    """Its save says how many rows there are; those that a shorter dataset lacks would be zeros."""
    file = d4rl(tmp_path / "a.hdf5", following=True)
    plan, agent, _ = prepare(Plan("td3", "", 60, dataset=file, settings=tiny.settings("td3")))
    save = folders.save(tmp_path / "run", make(plan, agent), milestone=False)
    assert folders.load_into(make(plan, agent), save) == []
    save = folders.save(tmp_path / "again", make(plan, agent), milestone=False)
    d4rl(file, following=True, rewards=np.zeros(27))
    with refused("foreign-save", "a.hdf5"):
        folders.load_into(make(plan, agent), save)


def test_an_environment_that_no_snapshot_captures_is_no_matter(name, tmp_path, monkeypatch):
    """It is not stepped, so a resumed run says nothing of it; nor if its save is of an earlier version."""
    settings = tiny.settings("td3")
    plan, agent, _ = prepare(Plan("td3", "tiny:Unkept-v0", 60, dataset=name, eval_every=0, settings=settings))
    trainer = make(plan, agent)
    trainer.adapter.reset()
    trainer.fresh = False
    new = folders.save(tmp_path / "new", trainer, milestone=False)
    save = dataset.DatasetEngine.save

    def saving(engine, seed):
        return save(engine, seed)._replace(environment=take(engine.adapter))

    with monkeypatch.context() as patch:
        patch.setattr(dataset.DatasetEngine, "save", saving)
        old = folders.save(tmp_path / "old", trainer, milestone=False)
    assert folders.read_meta(old)["environment"]["exact"] is False
    assert folders.load_into(trainer, old) == []
    assert folders.load_into(trainer, new) == []


def stop_after(trainer, steps):
    """Stops a trainer at the first boundary past these updates."""
    learn = trainer.learner.programs.learn

    def watched(*args, **given):
        if trainer.env_steps + int(args[1]) >= steps:
            trainer.stop()
        return learn(*args, **given)

    trainer.learner.programs.learn = watched


@pytest.mark.slow
def test_a_dataset_without_an_environment_trains_and_is_not_evaluated(datasets, tmp_path):
    name = write("test/nowhere-v0", episodes(scale=2.0), low=-2.0, high=2.0, env=None)
    plan = Plan("bc+normalise", "", 300, dataset=name, settings=tiny.settings("td3"))
    events = [*train(plan, tmp_path / "n")]
    assert any("names no environment" in note for note in events[0].notes)
    assert not [e for e in events if type(e).__name__ == "Evaluated"]
    model, data = qs.load(tmp_path / "n"), read(name)
    moments = model.trainer.learner.state.part_states["normalise"].extra
    np.testing.assert_allclose(moments.mean, data.observation.mean(0), atol=1e-4)
    action, _ = model.predict(data.observation)
    before = np.square(2 * data.action - 0.0).mean()
    assert np.square(action - 2 * data.action).mean() < before, "it imitates, in the environment's units"
    with refused("broken-env"):
        model.adapter.step(np.zeros((1, 1)))
    pytest.importorskip("onnxruntime")
    assert main(["export", str(tmp_path / "n"), "--onnx", str(tmp_path / "p.onnx")]) == 0
    card = (tmp_path / "p.md").read_text()
    assert "Not evaluated" in card
    assert "model-index" not in card  # which needs metrics, or a hub refuses the card


def test_what_cannot_learn_from_data_is_refused(name, tmp_path):
    file = d4rl(tmp_path / "a.hdf5")
    for argv, code, named, place in (
        (["td3", "--dataset", file, "--env-args", "length=3"], "unfit-env", (file,), {"field": "env_args"}),
        (["td3+savo", "--dataset", name], "unfit-agent", ("td3+savo", "proposals"), {}),
        (["ppo", "--dataset", name], "unfit-agent", ("ppo",), {}),
        (["td3+imitate", "--dataset", name], "unfit-agent", (), {"part": "imitate"}),
        (["td3", "--dataset", name, "--envs", "2"], "conflict", (), {"field": "envs"}),
        (["td3", "--env", CLOCK, "--keep-data"], "conflict", ("--from",), {"field": "keep_data"}),
        (["td3", "--dataset", name, "--from", "runs/a", "--keep-data"], "conflict", ("--dataset",),
         {"field": "keep_data"}),
        (["td3", "--dataset", name, "--env", "Pendulum-v1"], "mismatch", (name, "Pendulum-v1"), {}),
        (["td3", "--dataset", "none.hdf5"], "not-found", ("none.hdf5",), {}),
        (["td7", "--dataset", name, "--checkpoints.switch", "3"], "unknown-field", (),
         {"part": "checkpoints"}),
    ):  # fmt: skip
        with refused(code, *named, **place):
            main(["--debug", "train", *argv, "--steps", "10", "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
    with refused("conflict", "--env,", field="env_args"):
        main(["--debug", "dataset", file, "--env-args", "length=3"])


# --- from one run to another --------------------------------------------------------------------------


def test_a_run_begins_where_another_ended(run, tmp_path):
    settings = tiny.settings("td7")
    plan = Plan("td7", CLOCK, 40, start=str(run), keep_data=True, eval_every=0, settings=settings)
    seen = {}

    def look(trainer):
        seen["state"], seen["index"] = jax.tree.map(
            np.asarray, (trainer.learner.state, trainer.learner.carry.replay_state)
        )
        seen["kept"], seen["rows"] = jax.tree.map(np.asarray, (trainer.kept, trainer.learner.storage))

    events = [*train(plan, tmp_path / "on", on_trainer=look)]
    notes = " ".join(events[0].notes)
    assert "base.warmup = 0" in notes
    assert f"starts from {run} at step 80" in notes
    assert "27 of 27 transitions" in notes
    arrays = saves.read_arrays(run / "saves" / saves.names(run / "saves")[-1], "state")
    state = seen["state"]
    np.testing.assert_array_equal(state.actor.torso.layers[0].weight, arrays["actor/torso/layers/0/weight"])
    np.testing.assert_array_equal(
        state.part_states["sale"].extra[0].f.out.weight, arrays["part_states/sale/extra/fixed/f/out/weight"]
    )
    assert jax.tree.leaves(state.optimisers["actor"])[0] == 40  # Adam's count: 80 updates, delay 2
    np.testing.assert_array_equal(jax.tree.leaves(seen["kept"].actor)[0], jax.tree.leaves(state.actor)[0])
    assert (int(state.updates), int(seen["index"].size[0])) == (0, 27)
    np.testing.assert_array_equal(seen["rows"][:27, :3], read(read_plan(run).dataset).observation)
    assert events[-1].updates > 0


def test_resets_count_the_updates_that_a_dataset_gives(name):
    plan = Plan("td3+resets", CLOCK, 30, dataset=name, settings={"base": {"updates_per_step": 0.1}})
    agent = dataset._holding(qs.agent(plan.recipe, plan.settings), read(name, CLOCK), plan)
    assert (agent.base.updates_per_step, agent.base.warmup) == (1.0, 0), "no step is random"


@pytest.mark.slow
def test_schedules_begin_anew_where_a_run_begins_from_another(tmp_path):
    """Adam's moments are taken over; the learning rate is the new run's own."""
    settings, counts = tiny.settings("td3", schedule="linear", rate_end=0.0), []
    qs.Model("td3", CLOCK, **settings).learn(60).save(tmp_path / "source")

    def look(trainer):
        of = trainer.learner.state.optimisers["critics"]
        nodes = jax.tree.leaves(of, is_leaf=lambda x: isinstance(getattr(x, "count", None), jax.Array))
        counts.extend((type(node).__name__, int(node.count)) for node in nodes if hasattr(node, "count"))

    plan = Plan("td3", CLOCK, 60, start=str(tmp_path / "source"), eval_every=0, settings=settings)
    next(train(plan, tmp_path / "on", on_trainer=look))
    found = dict(counts)
    assert found["ScaleByScheduleState"] == 0
    assert found["ScaleByAdamState"] > 20


@pytest.mark.slow
def test_a_normaliser_that_the_other_run_lacked_sees_the_data_that_is_kept(run, tmp_path):
    settings, seen = tiny.settings("td7"), {}
    plan = Plan("td7+normalise", CLOCK, 40, start=str(run), keep_data=True, eval_every=0, settings=settings)

    def look(trainer):
        seen.update(moments=jax.tree.map(np.asarray, trainer.learner.state.part_states["normalise"].extra))

    data = read_plan(run).dataset
    offline = Plan("td7+normalise", CLOCK, 40, start=str(run), dataset=data, eval_every=0, settings=settings)
    for number, each in enumerate((plan, offline)):
        [*train(each, tmp_path / str(number), on_trainer=look)]
        observation = read(data).observation
        assert seen["moments"].seen >= len(observation)
        np.testing.assert_allclose(seen["moments"].mean, observation.mean(0), atol=1e-4)


def test_what_does_not_fit_is_refused(run, tmp_path):
    other = Plan("td3", CLOCK, 40, start=str(run), settings=tiny.settings("td3"))
    with refused("mismatch", "'td3'", "NamedClock-v0", "actor/", field="start"):
        [*train(other, tmp_path / "a")]
    online = qs.Model("td3", CLOCK, **tiny.settings("td3")).save(tmp_path / "b")
    keep = Plan("td3", CLOCK, 40, start=str(online), keep_data=True, settings=tiny.settings("td3"))
    with refused("unfit-agent", str(online), field="keep_data"):
        [*train(keep, tmp_path / "c")]
    assert not (tmp_path / "a" / "run.json").exists()


@pytest.mark.slow
def test_slow_copies_that_the_other_run_lacked_are_copies_of_its_actor(tmp_path):
    """IQL keeps no target actor, and knows nothing of ASAP's slow copy."""
    online = qs.Model("iql", CLOCK, **tiny.settings("iql")).save(tmp_path / "source")
    seen = {}
    plan = Plan("td3+asap", CLOCK, 40, start=str(online), eval_every=0, settings=tiny.settings("td3"))

    def look(trainer):
        seen.update(state=jax.tree.map(np.asarray, trainer.learner.state))

    started, *_ = train(plan, tmp_path / "on", on_trainer=look)
    assert "newly initialised: actor_target, asap" in " ".join(started.notes)
    state = seen["state"]
    for copy in (state.actor_target, state.part_states["asap"].extra[0]):
        for slow, taken in zip(jax.tree.leaves(copy), jax.tree.leaves(state.actor), strict=True):
            np.testing.assert_array_equal(slow, taken)


def test_the_scale_of_rewards_stays_with_the_networks(tmp_path):
    """Also in a run from another one, and where the replay is lost."""
    parts = tiny.settings("td3")
    model = qs.Model("td3+reward_scale", CLOCK, **parts).learn(60)
    source, plan = model.save(tmp_path / "source"), Plan("td3+reward_scale", CLOCK, 40, settings=parts)
    scale, seen = model.trainer.learner.carry.replay_state.scaling, []
    assert scale.moments.seen > 50

    def look(trainer):
        seen.append(jax.tree.map(np.asarray, trainer.learner.carry.replay_state.scaling))

    def lose_replay(trainer):
        saved = model.trainer.save()
        arrays = {name: tree for name, tree in saved.arrays.items() if name != "replay"}
        trainer.learner.restore([saved._replace(arrays=arrays)])
        look(trainer)

    begun = dataclasses.replace(plan, start=str(source))
    started, *_ = train(begun, tmp_path / "from", on_trainer=look)
    assert "newly initialised" not in " ".join(started.notes)
    next(train(plan, tmp_path / "alone", on_trainer=lose_replay))
    assert len(seen) == 2
    for found in seen:
        for kept, own in zip(jax.tree.leaves(found), jax.tree.leaves(scale), strict=True):
            np.testing.assert_array_equal(kept, own)


def test_networks_that_would_be_other_functions_are_refused(tmp_path):
    online = qs.Model("td3", CLOCK, **tiny.settings("td3")).save(tmp_path / "source")
    settings = tiny.settings("td3")
    settings["base"] = {**settings["base"], "critic_activation": "elu"}
    with refused("foreign-save", "critic_activation", "elu", "to relu", field="start"):
        [*train(Plan("td3", CLOCK, 40, start=str(online), settings=settings), tmp_path / "on")]
    assert not (tmp_path / "on").exists()
    values = {"c51": {"low": -5.0, "high": 5.0}}
    online = qs.Model("td3+c51", CLOCK, **tiny.settings("td3"), **values).save(tmp_path / "c51")
    settings = tiny.settings("td3") | {"c51": {"low": -9.0, "high": 5.0}}
    with refused("foreign-save", "low", "-9.0", "to -5", field="start"):
        [*train(Plan("td3+c51", CLOCK, 40, start=str(online), settings=settings), tmp_path / "on")]
    settings = tiny.settings("td3") | {"hl_gauss": {**values["c51"], "atoms": 101}}
    with refused("foreign-save", "c51", "hl_gauss", field="start"):
        [*train(Plan("td3+hl_gauss", CLOCK, 40, start=str(online), settings=settings), tmp_path / "on")]


def test_target_critics_that_a_run_did_not_keep_begin_as_copies(tmp_path):
    settings = tiny.settings("td3")
    online = qs.Model("td3+crossq", CLOCK, **settings).save(tmp_path / "source")
    plan = Plan(
        "td3+crossq", CLOCK, 40, start=str(online), settings=settings | {"crossq": {"target_critics": True}}
    )
    trainers = []
    started = next(train(plan, tmp_path / "on", on_trainer=trainers.append))
    state = trainers[0].learner.state
    for own, target in zip(*map(jax.tree.leaves, (state.critics, state.critics_target)), strict=True):
        np.testing.assert_array_equal(own, target)
    assert "newly initialised" not in " ".join(started.notes)


def config_on(dataset, tmp_path, monkeypatch):
    """The plan of a run on a dataset, a command with its run.json as --config, and the jobs it makes."""
    from qscape.cli import train as command

    plan, agent, _ = prepare(Plan("td3+bc", "", 30, dataset=dataset, settings=tiny.settings("td3")))
    (tmp_path / "old.json").write_text(json.dumps(to_json(plan, agent)))
    jobs = []
    monkeypatch.setattr(command, "run_all", lambda given, *how: jobs.extend(given) or 0)
    return plan, ["train", "--config", str(tmp_path / "old.json"), "--out", str(tmp_path / "out")], jobs


def test_config_with_another_dataset_takes_its_spaces(datasets, tmp_path, monkeypatch):
    """A dataset without an environment gives the bounds of actions: not those of the run in the config."""
    names = [
        write(f"local/{kind}-v0", episodes(), -high, high, env=None)
        for kind, high in (("narrow", 1.0), ("wide", 2.0))
    ]
    plan, config, jobs = config_on(names[0], tmp_path, monkeypatch)
    assert main(config) == main([*config, "--dataset", names[1]]) == 0
    again, other = (prepare(job.plan)[0] for job in jobs)
    assert again.env_args == plan.env_args == {"dataset": names[0]}
    assert other.env_args == {"dataset": names[1]}
    assert (again.eval_every, other.eval_every) == (0, 0)


def test_config_with_another_dataset_or_environment_evaluates_there(datasets, tmp_path, monkeypatch):
    """Environment and arguments of a config belong together, and to the config's dataset."""
    names = [
        write(f"local/{kind}-v0", episodes(), -2.0, 2.0, env=gym.make("Pendulum-v1", g=g))
        for kind, g in (("light", 5.0), ("heavy", 10.0))
    ]
    _, config, jobs = config_on(names[0], tmp_path, monkeypatch)
    elsewhere = ["--env", "MountainCarContinuous-v0"]
    for flags, env, args in (
        ([], "Pendulum-v1", {"g": 5.0}),
        (["--env-args", "max_episode_steps=9"], "Pendulum-v1", {"g": 5.0, "max_episode_steps": 9}),
        (["--dataset", names[1]], "Pendulum-v1", {"g": 10.0}),
        (["--dataset", names[1], *elsewhere], elsewhere[1], {}),
    ):
        assert main([*config, *flags]) == 0
        made = prepare(jobs.pop().plan)[0]
        assert (made.env, made.env_args) == (env, args)


def test_config_repeats_an_offline_run(run, tmp_path, monkeypatch):
    from qscape.cli import train as command

    jobs = []
    monkeypatch.setattr(command, "run_all", lambda given, *how: jobs.extend(given) or 0)
    assert main(["train", "--config", str(run / "run.json"), "--seeds", "3", "--out", str(tmp_path)]) == 0
    plan = prepare(jobs[0].plan)[0]
    mine = read_plan(run)
    assert (plan.recipe, plan.dataset, plan.env, plan.label) == (
        mine.recipe,
        mine.dataset,
        mine.env,
        json.loads((run / "run.json").read_text())["label"],
    )
    shutil.rmtree(tmp_path)
