"""Exported policies act like the library's, and what cannot be exported is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np
import pytest
import scipy.stats
import tiny
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from refused import refused
from rows import slow_except
from small import randomised
from test_contract import AGAIN, FRAME, QUICK_ROWS, TABLE, make

from qscape import agents
from qscape.cli import main
from qscape.envs import make as make_adapter
from qscape.envs.levels import discretise
from qscape.export import card, convert, policy, primitives, run_policy
from qscape.nets.batch_norm import split_statistics
from qscape.offpolicy.plain import Single
from qscape.run.policy import LoadedPolicy, make_programs

ort = pytest.importorskip("onnxruntime")
RANDOM = {"cem", "wolpertinger", "lsflow"}  # parts that search by drawing


class Boxed(gym.Env):
    """Its action box is what a test wants."""

    def __init__(self, low=(-0.4, -0.4), high=(0.4, 0.4), dtype="float32", observation_space=None):
        self.observation_space = observation_space or gym.spaces.Box(-9.0, 9.0, (5,), np.float32)
        self.action_space = gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=np.dtype(dtype))


class Chosen(Boxed):
    """Discrete actions with a table, which begin at 3."""

    action_table = np.stack(np.meshgrid(np.linspace(0.0, 1.0, 9), np.linspace(2.0, 9.0, 9)), -1).reshape(
        81, 2
    )

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Discrete(81, start=3)


class Shown(Boxed):
    """An image of `test_contract.FRAME` and a number, for agents that see images."""

    def __init__(self, **action):
        super().__init__(**action)
        image, number = gym.spaces.Box(0, 255, FRAME, np.uint8), gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
        self.observation_space = gym.spaces.Dict(image=image, number=number)


class Pictured(Boxed):
    """Its observation has the keys of `tiny.Rooms`, one of them for an image."""

    def __init__(self):
        super().__init__()
        image, speed = gym.spaces.Box(0, 255, FRAME, np.uint8), gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"map": image, "self": gym.spaces.Dict(speed=speed)})


class Aimed(gym.ObservationWrapper):
    """It has goals, for agents that relabel them."""

    def __init__(self, env):
        super().__init__(env)
        place = gym.spaces.Box(-9.0, 9.0, (2,), np.float32)
        keys = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gym.spaces.Dict(dict.fromkeys(keys, place))
        self.action_table = getattr(env, "action_table", None)

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.linalg.norm(np.subtract(achieved_goal, desired_goal), axis=-1)


def aimed(env):
    """The factory of an environment, with goals in it."""
    return lambda: Aimed(env())


class Uneven(Chosen):
    """One row lies so far away that products hardly tell the others apart."""

    action_table = np.concatenate([[[1e4, -1e4]], Chosen.action_table[1:]])


def weights(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of the size that networks begin with."""
    return (rng.uniform(-1.0, 1.0, leaf.shape) / np.sqrt(max(leaf.shape[-1:], default=1))).astype(leaf.dtype)


def source(agent, env, seed: int = 1, **more) -> policy.PolicySource:
    """An agent with random weights on an environment, with observations as if it had walked there."""
    adapter = make_adapter(env, index_actions=agent.index_actions, **more)
    rng = np.random.default_rng(seed)
    agent = agent.on(adapter.spec)
    acting = jax.eval_shape(lambda: agent.acting(agent.init(jax.random.key(0))))  # compiles nothing
    acting = randomised(acting, lambda leaf: weights(leaf, rng), rng)
    networks, statistics = split_statistics(acting)
    acting = eqx.combine(networks, jax.tree.map(lambda x: abs(x) + 0.5, statistics))  # variances
    if "normalise" in acting.part_states:
        mine = acting.part_states["normalise"]
        acting.part_states["normalise"] = mine._replace(
            extra=mine.extra._replace(var=mine.extra.var**2 + 0.5)
        )
    loaded = LoadedPolicy(make_programs(agent), acting, adapter, 0, "current")
    seen = np.random.default_rng(0).normal(size=(400, adapter.spec.observation_size)).astype(np.float32)
    record = {"recipe": agent.recipe, "label": agent.recipe, "env": "E", "env_args": {}, "seed": 0}
    return policy.PolicySource(Path("run"), record | {"settings": {}}, loaded, [], 3 * seen)


def answers(made: policy.PolicySource, obs: np.ndarray) -> np.ndarray:
    """What the file says, read by onnxruntime."""
    model = convert.to_onnx(policy.make_policy_function(made.loaded), obs.shape[1], {})
    stored = {constant.name for constant in model.graph.initializer}
    assert not [x for x in model.graph.node if x.op_type == "Transpose" and x.input[0] in stored]
    return ort.InferenceSession(model.SerializeToString()).run(None, {"observation": obs})[0]


@pytest.mark.parametrize("row", slow_except(QUICK_ROWS, TABLE, AGAIN))
def test_every_recipe_of_the_contract_acts_like_the_library(row):
    assert_acts_like_the_library(make(*TABLE[row]))


def assert_acts_like_the_library(agent):
    """An agent with random weights and its file give the same actions; one that samples has no file."""
    by_index = agent.index_actions or agent.task.table is not None
    kind = Shown if agent.representation.name == "conv" else Boxed
    env = Chosen if by_index else lambda: kind(low=(-0.4, -3.0), high=(0.4, 1.0))
    made = source(agent, env := aimed(env) if "her" in agent.parts else env)
    policy.refuse_recurrent(made.loaded)  # none remembers anything when evaluated, OU noise included
    obs = policy.sample_observations(made, 200)
    selector = made.loaded.programs.agent.selector
    draws = selector.name in RANDOM or getattr(selector, "evaluation", None) == "sample"
    if draws or (selector.name == "eas" and selector.apply_at != "collect"):
        with refused("unexportable", "samples"):
            answers(made, obs)
        return
    wanted, seed = policy.act_as_library(made.loaded, obs), 1
    # Random weights may prefer one index everywhere.
    while agent.index_actions and wanted.std() == 0 and seed < 20:
        made = source(agent, env, seed := seed + 1)
        wanted = policy.act_as_library(made.loaded, obs)
    assert wanted.std() > 0.01
    assert np.abs(answers(made, obs) - wanted).max() <= 1e-5
    assert np.abs(answers(made, obs[:1]) - wanted[:1]).max() <= 1e-5
    obs = obs[:4]
    obs[0, 0] = obs[1] = obs[2, -1] = np.nan
    with np.errstate(invalid="ignore"):
        wanted = policy.act_as_library(made.loaded, obs)
    np.testing.assert_array_equal(np.isnan(answers(made, obs)), np.isnan(wanted))


@pytest.mark.parametrize(
    ("env", "tolerance"),
    [
        (lambda: Boxed(), 1e-5),
        (lambda: Boxed((-1.0, 10.0), (3.0, 20.0)), 1e-5),
        (lambda: Boxed((0.0, -0.7), (5.0, 8e3), "float64"), 1e-2),  # float32 has seven digits
        (lambda: Boxed((0, -7), (5, 90), "int64"), 1e-5),
        (lambda: Chosen(), 1e-5),
        (lambda: tiny.Rooms(), 1e-5),
    ],
    ids=["0.4", "asymmetric", "float64", "whole", "table", "dict"],
)
def test_actions_come_out_as_the_environment_takes_them(env, tolerance):
    made = source(make("td3", {"base": {"actor_hidden": (32, 32)}}), env)
    size = made.loaded.adapter.spec.observation_size
    data = convert.to_onnx(policy.make_policy_function(made.loaded), size, {}).SerializeToString()
    policy.check_onnx(data, made, tolerance)
    space = policy.action_space(made.loaded.adapter)
    obs = policy.sample_observations(made, 50)
    found = answers(made, obs)
    assert found.shape == (50, *space.shape)
    assert all(space.contains(a.astype(space.dtype)) for a in found)
    assert len(np.unique(found, axis=0)) > 1, "it always does the same"


@pytest.mark.parametrize("env", [Chosen, Uneven])
def test_rows_of_a_table_become_their_indices(env):
    adapter = make_adapter(env)
    rows = adapter.spec.table
    session = ort.InferenceSession(
        convert.to_onnx(policy.make_action_map(adapter), 2, {}).SerializeToString()
    )
    np.testing.assert_array_equal(session.run(None, {"observation": rows})[0], np.arange(81) + 3)
    np.testing.assert_array_equal(adapter.actions(rows), np.arange(81) + 3)


def test_on_policy_agents_give_the_index():
    made = source(agents.build("ppo", {"base": {"actor_hidden": (8,), "critic_hidden": (8,)}}), "CartPole-v1")
    obs = policy.sample_observations(made, 200)
    np.testing.assert_array_equal(answers(made, obs), policy.act_as_library(made.loaded, obs))


@pytest.mark.parametrize("continuous", ["normal", "tanh_normal"])
def test_on_policy_agents_give_the_middle_of_their_distribution(continuous):
    small = {"base": {"actor_hidden": (8,), "critic_hidden": (8,)}, "learnable": {"continuous": continuous}}
    made = source(agents.build("ppo+normalise", small), "Pendulum-v1")
    obs = policy.sample_observations(made, 200)
    np.testing.assert_allclose(answers(made, obs), policy.act_as_library(made.loaded, obs), atol=1e-5)


def test_picking_rows_by_index_is_what_jax_does():
    """As a maximiser picks the best of its proposals: take_along_axis, and two index arrays."""
    import jax.numpy as jnp

    def f(x):
        x = x.reshape(-1, 4, 3) + 0.0
        best = jnp.argmax(jnp.square(x).sum(-1), -1)
        rows = jnp.arange(x.shape[0])
        one, other = jnp.take_along_axis(x, best[:, None, None], axis=1)[:, 0], x[rows, best]
        return jnp.concatenate(
            [one, 2 * other, jnp.where(x[:, :, 1] > 0, x[:, :, 0], -jnp.inf).max(1)[:, None]], -1
        )

    x = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32)
    session = ort.InferenceSession(convert.to_onnx(f, 12, {}).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"observation": x})[0], f(x), rtol=1e-6)


def test_products_and_constant_indices_are_what_jax_does():
    """A matrix for each row, an axis that stays, indices beyond the end, and slices that begin elsewhere."""
    import jax.numpy as jnp

    weights = jnp.asarray(np.random.default_rng(2).normal(size=(6, 6)), jnp.float32)
    far = jnp.array([1, 5, 9])

    def f(x):
        product = jnp.einsum("bij,bj->bi", x[:, :, None] * weights, x)
        beyond = jnp.take(x, far, axis=1, mode="clip")
        start = (jnp.abs(x[:, 0]) < 0.5).astype(jnp.int32) + 1
        one = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, 1))(x, start)
        of_constant = jax.vmap(lambda at: weights[0][at])(start)
        return jnp.concatenate([product, x[:, jnp.array([2])] * x, beyond, one, of_constant[:, None]], 1)

    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    session = ort.InferenceSession(convert.to_onnx(f, 6, {}).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"observation": x})[0], f(x), rtol=1e-5, atol=1e-6)


def test_a_constant_of_both_orders_is_stored_in_both():
    """As of a layer and its derivative: not every runtime keeps a constant and its transpose apart."""
    weights = np.random.default_rng(2).normal(size=(6, 6)).astype(np.float32)
    model = convert.to_onnx(lambda x: (x @ weights.T) @ weights, 6, {})
    assert {node.op_type for node in model.graph.node} == {"MatMul", "Identity"}
    assert len(model.graph.initializer) == 2
    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"observation": x})[0], x @ weights.T @ weights, rtol=1e-5)


def test_choices_loops_and_ranking_are_what_jax_does():
    import jax.numpy as jnp

    weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, 6)), jnp.float32)

    def f(x):
        def step(carry, w):
            carry = jnp.tanh(carry @ w)
            return carry, carry.max(1)

        last, greatest = jax.lax.scan(step, x, weights)
        _, least = jax.lax.scan(step, x, weights, reverse=True)
        values, places = jax.lax.top_k(jnp.round(x), 3)  # with equals
        by_key, along = jax.lax.sort((jnp.round(x), 2 * x), dimension=1, num_keys=1)
        apart = jax.lax.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, x)
        rows = [greatest.T, least.T, last, values, places.astype(jnp.float32), by_key, along, apart]
        return jnp.concatenate(rows, 1)

    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    session = ort.InferenceSession(convert.to_onnx(f, 6, {}).SerializeToString())
    for sign in (1, -1):
        shown = sign * np.abs(x).astype(np.float32)  # either branch
        np.testing.assert_allclose(session.run(None, {"observation": shown})[0], f(shown), atol=2e-6)


def test_a_policy_that_remembers_is_refused():
    class Slow(Single):
        """Acts on the mean of this action and the one before."""

        def init_noise(self, spec, envs, base=None):
            return np.zeros((envs, spec.action_size), np.float32)

        def act(self, actor, own, context, step):
            action = (context.policy(step.observation).mode() + step.noise_state) / 2
            return action, {}, action

    made = source(dataclasses.replace(make("td3", {}), selector=Slow()), Boxed)
    with refused("unexportable", "td3", "memory"):
        policy.refuse_recurrent(made.loaded)


def test_what_has_no_node_is_refused_with_one_sentence():
    import jax.numpy as jnp

    with refused("unexportable", "cumsum"):
        convert.to_onnx(lambda x: jnp.cumsum(x, 1), 3, {})
    with refused("unexportable", "samples"):
        convert.to_onnx(lambda x: x + jax.random.normal(jax.random.key(0), x.shape), 3, {})
    with refused("unexportable", "batch size"):
        convert.to_onnx(lambda x: x * len(x), 3, {})
    with refused("unexportable", "rows of a batch"):
        convert.to_onnx(lambda x: jax.lax.map(jnp.tanh, x), 3, {})


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of td7 with a kept policy."""
    out = tmp_path_factory.mktemp("export") / "a"
    flags = [*tiny.flags("td7+normalise", warmup=20), "--eval-every", 60, "--eval-episodes", 1, "--out", out]
    argv = ["train", "td7+normalise", "--env", "Rooms-v0", "--steps", 120, *flags]
    assert main([*map(str, argv)]) == 0
    return out / "0"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    argv = [
        "export",
        str(run),
        "--onnx",
        str(folder / "p.onnx"),
        "--npz",
        str(folder / "p"),
        "--runner",
        "--episodes",
        "3",
    ]
    assert main(argv) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["crossq", "xqc"])
def test_batch_normalised_policies_are_trained_resumed_and_exported(recipe, tmp_path):
    """The file has the statistics that the resumed run ended with, and acts like it on 1,000 observations."""
    assert policy.CHECKED == 1_000
    fields = {"warmup": 20, "discount_rule": "fixed", "schedule": "constant"}
    argv = ["train", recipe, "--env", "Rooms-v0", *tiny.flags(recipe, **fields), "--eval-every", 0]
    for name, steps in (("whole", 240), ("parts", 120)):
        assert main([*map(str, [*argv, "--steps", steps, "--out", tmp_path / name])]) == 0
    assert main(["resume", str(tmp_path / "parts" / "0"), "--steps", "240"]) == 0
    found = []
    for name in ("whole", "parts"):
        made = policy.load_source(tmp_path / name / "0", 2)
        assert policy.write_onnx(made, tmp_path / f"{name}.onnx").difference < 1e-5
        session = ort.InferenceSession((tmp_path / f"{name}.onnx").read_bytes())
        obs = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
        found.append(session.run(None, {"observation": obs})[0])
    np.testing.assert_array_equal(*found)
    assert found[0].std() > 1e-3


@pytest.mark.slow
def test_the_file_is_the_kept_policy_and_runs_alone(run, exported, tmp_path):
    made = policy.load_source(run, 2)
    assert made.loaded.policy == "kept"
    obs = policy.sample_observations(made, 5)
    np.save(tmp_path / "obs.npy", obs)
    without = "import sys; sys.modules['qscape'] = sys.modules['jax'] = None; "
    runner = str(exported / "run_policy.py")
    code = without + f"import runpy; runpy.run_path({runner!r}, run_name='__main__')"
    argv = [sys.executable, "-c", code]
    argv += [exported / "p.onnx", "--observations", tmp_path / "obs.npy"]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7 numbers in, action [2] out" in done.stdout
    printed = [
        line.split("-> [")[1].rstrip("]").split() for line in done.stdout.splitlines() if "-> [" in line
    ]
    np.testing.assert_allclose(np.array(printed, float), policy.act_as_library(made.loaded, obs), atol=1e-3)


def test_the_runner_acts_in_an_environment_as_the_library_does(run, exported, capsys, monkeypatch):
    """A Dict observation, bounds that are not [-1, 1], and the seeds of `qscape evaluate`."""
    source = policy.load_source(run, 12)
    argv = ["run_policy.py", str(exported / "p.onnx"), "--env", source.record["env"], "--episodes", "12"]
    monkeypatch.setattr(sys, "argv", argv)
    run_policy.main()
    out = capsys.readouterr().out
    returns = [float(line.split()[3]) for line in out.splitlines() if line.startswith("episode")]
    assert returns == pytest.approx([rollout.episode.ret for rollout in source.episodes], abs=0.06)
    assert f"mean return {np.mean(returns):.1f} over 12 episodes" in out


@pytest.mark.parametrize(
    ("space", "action", "wanted"),
    [
        (spaces.Box(0, 255, (1,), np.uint8), [200], [200]),
        (spaces.Box(-3, 120, (2,), np.int8), [-3, 7], [-3, 7]),
        (spaces.Box(-1 / 3, 1 / 3, (1,), np.float64), [np.float32(1 / 3)], [1 / 3]),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [1, 2]),
    ],
)
def test_the_runner_passes_actions_that_the_space_contains(space, action, wanted):
    box = isinstance(space, spaces.Box)
    low, high = (space.low.ravel().tolist(), space.high.ravel().tolist()) if box else (None, None)
    about = {"dtype": str(space.dtype), "low": low, "high": high}
    given = np.array(action, np.int32 if space.dtype != np.float64 else np.float32)
    native = run_policy.to_native(given, about)
    assert space.contains(native)
    np.testing.assert_array_equal(native, np.array(wanted, space.dtype))
    assert run_policy.to_native(np.array(2), about) == 2


def test_the_runner_reads_keys_with_dots():
    one = gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
    parts = gym.spaces.Dict({"a.b": one, "a": gym.spaces.Dict(b=one)})
    about = policy.describe(source(make("td3", {}), lambda: Boxed(observation_space=parts)))
    found = run_policy.flatten({"a.b": [1.0], "a": {"b": [2.0]}}, about["observation"]["order"])
    assert found.tolist() == [2.0, 1.0]


def test_levels_come_out_in_the_units_of_their_box():
    agent = make("td3", {"base": {"actor_hidden": (32, 32)}})
    made = source(agent, lambda: discretise(Boxed((-1, 10), (3, 20)), 5, "Boxed"))
    size = made.loaded.adapter.spec.observation_size
    data = convert.to_onnx(policy.make_policy_function(made.loaded), size, {}).SerializeToString()
    policy.check_onnx(data, made)
    found = answers(made, policy.sample_observations(made, 200))
    assert {*found[:, 0]} <= {-1, 0, 1, 2, 3}
    assert {*found[:, 1]} <= {10, 12.5, 15, 17.5, 20}
    assert len(np.unique(found, axis=0)) > 1, "it always does the same"
    about = policy.describe(made)["action"]
    assert (about["dtype"], about["low"], about["high"]) == ("float32", [-1, 10], [3, 20])


def test_the_runner_takes_levels_to_an_environment_without_them(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a"
    flags = ["--base.rollout", 64, "--base.actor-hidden", 8, "--eval-every", 0, "--out", out]
    argv = ["train", "ppo", "--env", "Pendulum-v1", "--env.action-levels", 5, "--steps", 64, *flags]
    assert main([*map(str, argv)]) == 0
    assert main(["export", str(out), "--onnx", str(tmp_path / "p.onnx"), "--episodes", "2"]) == 0
    source = policy.load_source(out / "0", 2)
    argv = ["run_policy.py", str(tmp_path / "p.onnx"), "--env", "Pendulum-v1", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    capsys.readouterr()
    run_policy.main()
    out = capsys.readouterr().out
    returns = [float(line.split()[3]) for line in out.splitlines() if line.startswith("episode")]
    assert returns == pytest.approx([rollout.episode.ret for rollout in source.episodes], abs=0.06)
    assert "-2.0" in (tmp_path / "p.md").read_text()


@pytest.mark.parametrize(
    ("env", "args", "says"),
    [
        ("NoSuch-v0", {}, "NoSuch-v0 cannot be made by gymnasium alone (Environment"),
        ("Rooms-v0", {"what": 1}, "Rooms-v0 cannot be made with {'what': 1} by gymnasium alone ("),
        ("Pendulum-v1", {}, "the policy takes 7 numbers and gives actions of shape [2], but Pendulum-v1 has"),
        ("Pictured-v0", {}, "the policy takes 7 numbers and gives actions of shape [2], but Pictured-v0 has"),
    ],
)
def test_the_runner_refuses_other_environments(exported, capsys, monkeypatch, env, args, says):
    monkeypatch.setitem(gym.registry, "Pictured-v0", EnvSpec("Pictured-v0", Pictured))
    session, about = run_policy.load(str(exported / "p.onnx"))
    monkeypatch.setattr(run_policy, "load", lambda file: (session, about | {"make_args": args}))
    monkeypatch.setattr(sys, "argv", ["run_policy.py", "p.onnx", "--env", env])
    with pytest.raises(SystemExit) as ended:
        run_policy.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run_policy.py: {says}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nope.onnx"], "nope.onnx is no policy of qscape export ("),
        (["text.onnx"], "text.onnx is no policy of qscape export ("),
        (["p.onnx", "--observations", "nope.npy"], "nope.npy cannot be read ("),
        (["p.onnx", "--observations", "one.npy"], "one.npy cannot be read (it holds no rows of 7 numbers"),
        (["p.onnx", "--observations", "wide.npy"], "wide.npy cannot be read (it holds no rows of 7 numbers"),
        (["p.onnx", "--env", "Rooms-v0", "--episodes", "0"], "--episodes is 0; it must be at least 1"),
    ],
)
def test_the_runner_refuses_files_that_it_cannot_read(exported, tmp_path, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no network")
    np.save("one.npy", np.zeros(7))
    np.save("wide.npy", np.zeros((2, 8)))
    shutil.copyfile(exported / "p.onnx", "p.onnx")
    monkeypatch.setattr(sys, "argv", ["run_policy.py", *argv])
    with pytest.raises(SystemExit) as ended:
        run_policy.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run_policy.py: {says}")
    assert err.count("\n") == 1


def test_the_command_prints_difference_and_latency_and_writes_a_card(run, exported, capsys):
    assert main(["export", str(run), "--onnx", str(exported / "q.onnx"), "--episodes", "3", "--current"]) == 0
    out = capsys.readouterr().out
    assert "largest difference" in out
    assert "p50 0." in out
    assert "p99 " in out
    text = (exported / "q.md").read_text()
    for said in (
        "td7+normalise",
        "Rooms-v0",
        "over 3 episodes",
        "the current policy",
        "onnxruntime",
        "jax 0.",
    ):
        assert said in text
    assert "the kept policy" in (exported / "p.md").read_text()


def test_the_arrays_have_the_layout_of_the_documentation(run, exported):
    """The forward pass of docs/how-to/export.md, in numpy alone."""
    note, arrays = json.loads((exported / "p.json").read_text()), np.load(exported / "p.npz")
    assert {k: [*v.shape] for k, v in arrays.items()} == {k: v["shape"] for k, v in note["arrays"].items()}
    assert [leaf["key"] for leaf in note["observation"]["order"]] == ["map", "self.speed"]

    def linear(name, x):
        return x @ arrays[f"{name}/weight"].T + arrays[f"{name}/bias"]

    def avg_l1(x):
        return x / np.maximum(np.abs(x).mean(-1, keepdims=True), 1e-8)

    def elu(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    made = policy.load_source(run, 2)
    obs = policy.sample_observations(made, 20)
    s = (obs - arrays["part_states/normalise/extra/mean"]) / (
        np.sqrt(arrays["part_states/normalise/extra/var"]) + 1e-8
    )
    z, f = s, "part_states/sale/extra/fixed/f"
    for k in range(2):
        z = elu(linear(f"{f}/torso/layers/{k}", z))
    z = avg_l1(linear(f"{f}/out", z))
    h = np.concatenate([avg_l1(linear("actor/stage/linear", s)), z], -1)
    for k in range(2):
        h = np.maximum(linear(f"actor/torso/layers/{k}", h), 0)
    a = np.tanh(linear("actor/head/out", h))
    low, high = np.array(note["action"]["low"]), np.array(note["action"]["high"])
    np.testing.assert_allclose(
        low + (a + 1) / 2 * (high - low), policy.act_as_library(made.loaded, obs), atol=1e-4
    )


def test_a_model_that_differs_leaves_no_file(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(primitives.TABLE, "tanh", primitives.TABLE["logistic"])
    assert main(["export", str(run), "--onnx", str(tmp_path / "p.onnx"), "--episodes", "1"]) == 1
    assert "differs from the library by" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_slightly_wrong_model_is_found_out(run):
    """A weight that is off by 1e-4 is no rounding."""
    made = policy.load_source(run, 2)
    size = made.loaded.adapter.spec.observation_size
    data = convert.to_onnx(policy.make_policy_function(made.loaded), size, {})
    policy.check_onnx(data.SerializeToString(), made)
    off = convert.to_onnx(lambda x: policy.make_policy_function(made.loaded)(x) * 1.0001, size, {})
    with refused("inexact"):
        policy.check_onnx(off.SerializeToString(), made)
    policy.check_onnx(off.SerializeToString(), made, tolerance=1e-2)


def test_a_file_that_no_export_made_is_not_written_over(run, capsys):
    before = (run / "run.json").read_bytes()
    assert main(["export", str(run), "--npz", str(run / "run.npz"), "--episodes", "1"]) == 2
    assert "run.json exists and was not written by an export" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before
    assert not (run / "run.npz").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "add --onnx FILE"),
        (["--onnx", "a.bin"], "must end in .onnx, like a.onnx"),
        (["--onnx", "a", "--episodes", "0"], "must be at least 1"),
        (["--onnx", "a", "--tolerance", "0"], "must be above 0"),
    ],
)
def test_bad_flags_are_usage_errors(run, argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), *argv]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("episodes", [10, 4, 1])
def test_the_interval_of_the_card_is_student_s(episodes):
    values = np.random.default_rng(3).normal(10.0, 2.0, episodes)
    rows = [SimpleNamespace(episode=SimpleNamespace(ret=x, length=5)) for x in values]
    said = card.describe_evaluation(SimpleNamespace(episodes=rows, record={}))
    assert said.startswith(f"Return **{values.mean():,.1f}**")
    assert (" in one episode;" in said) == (episodes == 1)
    assert ("interval" in said) == ("[" in said) == (episodes == 10)
    if episodes == 10:
        known = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert f" [{known.low:,.1f}, {known.high:,.1f}], 95% t interval of the mean over 10 episodes" in said


def test_the_card_of_a_task_with_goals_begins_with_success():
    rows = [
        SimpleNamespace(episode=SimpleNamespace(ret=-9.0, length=5, success=x)) for x in (1.0, 0.0, 1.0, None)
    ]
    said = card.describe_evaluation(SimpleNamespace(episodes=rows, record={"goals": True}))
    assert said.startswith("Goal reached in **50%** of the episodes. Return **-9.0**")
    assert card.find_success(SimpleNamespace(episodes=rows, record={})) is None


def test_the_card_names_the_data_of_a_policy_that_was_only_shown_some():
    assert card._describe_training(20_000, {"dataset": ""}) == "trained with qscape for 20,000 steps"
    said = card._describe_training(500, {"dataset": "local/a-v0"})
    assert said.startswith("trained with qscape by 500 updates on the dataset `local/a-v0`")
    said = card._describe_training(500, {"start": "runs/old/0"})
    assert said.endswith("for 500 steps, which began with the networks of `runs/old/0`")


def test_the_card_says_nothing_of_a_normalisation_that_is_not_there():
    text = card.render_card(source(make("td3", {}), Boxed), [], None)
    assert "- observation: 5 numbers, float32, raw, as the environment gives them" in text
    assert "normalise" not in text


def test_the_card_takes_over_what_smoothness_found_of_this_policy(tmp_path):
    measured = lambda step, policy: SimpleNamespace(  # noqa: E731
        folder=tmp_path, loaded=SimpleNamespace(step=step, policy=policy)
    )
    (tmp_path / "inspect").mkdir()
    found = {"step": 200, "policy": "kept"}
    found |= {"per_episode": {"sm": [1.0, 3.0], "action_change": [0.5], "oscillation": [4.0]}}
    (tmp_path / "inspect/smoothness.json").write_text(json.dumps(found))
    said = card._describe_smoothness(measured(200, "kept"))
    assert said[0].startswith("Smoothness (lower is smoother): sm 2,")
    assert card._describe_smoothness(measured(600, "kept")) == []
    assert card._describe_smoothness(measured(200, "current")) == []
    (tmp_path / "inspect/smoothness.json").write_text("{")
    with refused("cannot-read", "qscape smoothness"):
        card._describe_smoothness(measured(200, "kept"))
