"""A policy as a header in C acts like the library's, and is refused where it cannot."""

import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from refused import refused
from rows import slow_except
from test_contract import TABLE, make
from test_export import Boxed, Chosen, Shown, source

from qscape import agents
from qscape.cli import main
from qscape.envs.lag import Lag
from qscape.envs.levels import discretise
from qscape.export import c_header, card, policy, run_policy

c_code = pytest.importorskip("qscape.export.c_code")
onnxruntime = pytest.importorskip("onnxruntime")
GCC, GXX = shutil.which("gcc"), shutil.which("g++")
compiled = pytest.mark.skipif(GCC is None, reason="needs gcc")
ABOUT = {"label": "td3", "env": "E", "step": 7}
SMALL = {"base": {"actor_hidden": (8,), "critic_hidden": (8,)}}


def header_of(made: policy.PolicySource, prefix: str = "policy") -> c_header.Header:
    return c_header.make_header(policy.make_onnx(made), prefix, policy.describe(made))


def act(header: c_header.Header, obs: np.ndarray, **more: np.ndarray) -> np.ndarray:
    """The actions of a header."""
    return c_header.run_header(header.text, "policy", ["gcc"], {"observation": obs} | more)


POLICIES = {
    "td3": lambda: source(make("td3", {}), lambda: Boxed((-0.4, -3.0), (0.4, 1.0))),
    "sac": lambda: source(make("sac", {}), Boxed),
    "td7+normalise": lambda: source(make("td7+normalise", {"normalise": {"clip": 2.0}}), Boxed),
    "savo": lambda: source(make("td3+savo", {"savo": {"list_length": 2}}), Boxed),
    "savo as released": lambda: source(make(*TABLE["savo: as released"]), Boxed),
    "savo on a table": lambda: source(make("td3+savo", {}), Chosen),
    "td3 on a table": lambda: source(make("td3", {}), Chosen),
    "clusters of a table": lambda: source(make("td3", {"base": {"nearest": "clustered"}}), Chosen),
    "dqn": lambda: source(make("dqn", {}), Chosen),
    "ppo": lambda: source(agents.build("ppo+normalise", SMALL), "Pendulum-v1"),
    "ppo of an index": lambda: source(agents.build("ppo", SMALL), "CartPole-v1"),
    "ppo+etf": lambda: source(agents.build("ppo+etf", SMALL), "CartPole-v1"),
    "simbav2": lambda: source(make("sac+simbav2", {}), Boxed),
    "whole numbers": lambda: source(make("td3", {}), lambda: Boxed((0, -7), (5, 90), "int64")),
    "levels": lambda: source(make("td3", {}), lambda: discretise(Boxed((-1, 10), (3, 20)), 5, "Boxed")),
}
QUICK = ["td3", "td7+normalise", "savo", "savo on a table", "ppo+etf", "simbav2", "whole numbers"]


@compiled
@pytest.mark.parametrize("name", slow_except(QUICK, POLICIES))
def test_a_header_acts_like_the_library(name):
    """On observations alone, and where one number or all of them are NaN."""
    made = POLICIES[name]()
    obs, header = policy.sample_observations(made, 200), header_of(made)
    wanted = policy.act_as_library(made.loaded, obs)
    found = act(header, obs).reshape(wanted.shape)
    assert wanted.std() > 1e-3, "it always does the same"
    assert np.abs(found - wanted).max() <= 1e-5
    obs = obs[:3]
    obs[0, 0] = obs[1] = obs[2, -1] = np.nan
    with np.errstate(invalid="ignore"):
        wanted = policy.act_as_library(made.loaded, obs)
    found = act(header, obs).reshape(wanted.shape)
    if name == "levels":  # the library has the lowest level, because levels are whole numbers in between
        assert np.isnan(found).all()
    elif name == "whole numbers":  # the least number, of another type
        assert (wanted == np.iinfo(np.int64).min).all()
        assert (found == np.iinfo(np.int32).min).all()
    else:
        np.testing.assert_array_equal(found, wanted)


@compiled
def test_what_is_picked_ranked_and_looped_is_what_jax_does():
    from qscape.export.convert import to_onnx

    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=(4, 6, 6)), jnp.float32)

    def f(x):
        def step(carry, w):
            carry = jnp.tanh(carry @ w)
            return carry, carry.max(1)

        last, greatest = jax.lax.scan(step, x, weights)
        values, places = jax.lax.top_k(x, 3)
        by_key, along = jax.lax.sort((x, 2 * x), dimension=1, num_keys=1)
        apart = jax.lax.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, x)
        product = jnp.einsum("bij,bj->bi", x[:, :, None] * weights[0], x)
        start = (jnp.abs(x[:, 0]) < 0.5).astype(jnp.int32) + 1
        one = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, 1))(x, start)
        pairs = x.reshape(-1, 2, 3) + 0.0
        best = jnp.argmin(jnp.square(pairs).sum(-1), -1)
        pair = jnp.take_along_axis(pairs, best[:, None, None], axis=1)[:, 0]
        turned = jnp.swapaxes(pairs, 1, 2).reshape(-1, 6) / (1.0 + jnp.exp(-x))
        ends = [x.max(1, keepdims=True), x.min(1, keepdims=True)]
        rows = [
            *ends,
            greatest.T,
            last,
            values,
            places.astype(jnp.float32),
            by_key,
            along,
            apart,
            product,
            one,
        ]
        return jnp.concatenate([*rows, pair, turned, jnp.sign(x) * jnp.any(x > 1, 1, keepdims=True)], 1)

    x = rng.normal(size=(50, 6)).astype(np.float32)
    x[40:45, 2] = x[45:, 4] = np.nan
    header = c_header.make_header(to_onnx(f, 6, {}), "policy", ABOUT)
    alone = np.concatenate([f(row[None]) for row in x])
    np.testing.assert_allclose(act(header, x), alone, rtol=1e-5, atol=2e-6)


@compiled
def test_a_mask_is_a_second_argument():
    from test_masks import Forbidden, observe

    made = source(make("td3", {}), Forbidden)
    obs, valid = observe(np.random.default_rng(1), 100)
    header = header_of(made)
    assert "#define POLICY_MASK_SIZE 40\n" in header.text
    found = act(header, np.asarray(obs[:, :3]), action_mask=valid)[:, 0]
    assert valid[np.arange(100), found].all()
    np.testing.assert_array_equal(found, policy.act_as_library(made.loaded, np.asarray(obs)))


@pytest.mark.skipif(GCC is None or GXX is None, reason="needs gcc and g++")
def test_two_policies_live_in_one_program_of_c_or_c_plus_plus(tmp_path):
    td3, dqn = POLICIES["td3"](), POLICIES["dqn"]()
    (tmp_path / "left.h").write_text(header_of(td3, "left").text)
    (tmp_path / "right.h").write_text(header_of(dqn, "right").text)
    (tmp_path / "main.c").write_text("""
#include <stdio.h>
#include "left.h"
#include "right.h"
int main(void) {
    const float observation[LEFT_OBSERVATION_SIZE] = {0.5f, -1.0f, 2.0f, 0.25f, -0.75f};
    float action[LEFT_ACTION_SIZE];
    int index[RIGHT_ACTION_SIZE];
    left_act(observation, action);
    right_act(observation, index);
    printf("%.7g %.7g %d", action[0], action[1], index[0]);
    return LEFT_CHECKSUM == RIGHT_CHECKSUM || LEFT_VERSION[0] != '0';
}
""")
    obs = np.array([[0.5, -1.0, 2.0, 0.25, -0.75]], np.float32)
    wanted = [*policy.act_as_library(td3.loaded, obs)[0], *policy.act_as_library(dqn.loaded, obs)]
    warn = ["-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    for compiler in ([GCC, "-std=c99"], [GXX, "-x", "c++", "-std=c++11"]):
        subprocess.run([*compiler, *warn, "main.c", "-o", "main", "-lm"], cwd=tmp_path, check=True)
        done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
        np.testing.assert_allclose([float(x) for x in done.stdout.split()], wanted, atol=1e-5)
    fast = [GCC, "-std=c99", "-ffast-math", "main.c", "-o", "main", "-lm"]
    refused_by_gcc = subprocess.run(fast, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "without -ffast-math" in refused_by_gcc.stderr


@compiled
@pytest.mark.parametrize(("recipe", "env"), [("td3", "Pendulum-v1"), ("dqn", "CartPole-v1")])
def test_a_policy_with_a_history_and_a_delay_acts_like_its_onnx_file(recipe, env, tmp_path):
    """In two episodes of ten steps, from the state of the header alone."""
    made = source(make(recipe, {}), env, lag=Lag(history=3, action_delay=2))
    assert c_header.write_header(made, tmp_path / "policy.h", "policy").difference <= 1e-5
    text = (tmp_path / "policy.h").read_text()
    kind = "int" if "int *action" in text else "float"
    (tmp_path / "main.c").write_text(f"""
#include <stdio.h>
#include "policy.h"
int main(void) {{
    policy_state state;
    float observation[POLICY_OBSERVATION_SIZE];
    {kind} action[POLICY_ACTION_SIZE];
    FILE *in = fopen("in", "rb"), *out = fopen("out", "wb");
    for (int k = 0; fread(observation, sizeof observation, 1, in) == 1; ++k) {{
        if (k % 10 == 0) policy_reset(&state);
        policy_act(&state, observation, action);
        fwrite(action, sizeof action, 1, out);
    }}
    return fclose(out);
}}
""")
    rows = np.random.default_rng(0).normal(size=(20, made.loaded.adapter.raw_sizes[1])).astype(np.float32)
    rows.tofile(tmp_path / "in")
    subprocess.run([GCC, *c_header.FLAGS, "main.c", "-o", "main", "-lm"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], cwd=tmp_path, check=True)
    session = onnxruntime.InferenceSession(policy.make_onnx(made).SerializeToString())
    memory, wanted = {}, []
    for k, row in enumerate(rows):
        if k % 10 == 0:
            memory.clear()
        wanted.append(run_policy.act(session, row, memory=memory).ravel())
    found = np.fromfile(tmp_path / "out", np.int32 if kind == "int" else np.float32)
    np.testing.assert_allclose(found, np.ravel(wanted), atol=1e-5)


@compiled
def test_the_past_is_kept_in_a_state_that_a_reset_empties(tmp_path):
    """It adds the observation before, which at a start is that observation itself."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Where", ["start", "observation", "memory"], ["seen"]),
        helper.make_node("Add", ["seen", "observation"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["action"]),
        helper.make_node("Identity", ["observation"], ["next_memory"]),
    ]
    kinds = {"observation": TensorProto.FLOAT, "memory": TensorProto.FLOAT, "start": TensorProto.BOOL}
    inputs = [
        helper.make_tensor_value_info(name, kind, ["batch", 1 if name == "start" else 2])
        for name, kind in kinds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
        for name in ("action", "next_memory")
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "policy", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)]
    )
    header = c_header.make_header(model, "policy", ABOUT)
    obs = np.array([[1, 2], [3, 4]], np.float32)
    memory, start = 10 * obs, np.array([[True], [False]])
    np.testing.assert_array_equal(act(header, obs, memory=memory, start=start), [[2, 4], [33, 44]])
    (tmp_path / "policy.h").write_text(header.text)
    (tmp_path / "main.c").write_text("""
#include <stdio.h>
#include "policy.h"
int main(void) {
    policy_state state;
    for (int episode = 0; episode < 2; ++episode) {
        policy_reset(&state);
        for (int k = 1; k < 4; ++k) {
            float observation[2] = {(float)k, 0.0f}, action[2];
            policy_act(&state, observation, action);
            printf("%g ", action[0]);
        }
    }
    return 0;
}
""")
    subprocess.run([GCC, *c_header.FLAGS, "main.c", "-o", "main", "-lm"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "3", "5"] * 2


def test_the_macros_say_what_the_header_holds():
    made = POLICIES["td3"]()
    text = header_of(made).text
    macros = dict(re.findall(r"#define POLICY_([A-Z_]+) (\S+)", text))
    assert (macros["OBSERVATION_SIZE"], macros["ACTION_SIZE"]) == ("5", "2")
    weights = sum(x.size for x in jax.tree.leaves(made.loaded.acting.actor))
    assert 4 * weights <= int(macros["CONSTANT_BYTES"]) < 4 * weights + 100  # and the bounds of the action
    assert int(macros["STACK_BYTES"]) == 2 * 4 * 8  # two layers
    assert "malloc" not in text
    assert re.findall(r"#include (.*)", text) == ["<math.h>"]
    other = source(make("td3", {}), lambda: Boxed((-0.4, -3.0), (0.4, 1.0)), seed=2)
    assert header_of(other).text.count(macros["CHECKSUM"]) == 0


def test_a_name_of_somebody_else_ends_no_comment():
    made = POLICIES["td3"]()
    text = c_header.make_header(
        policy.make_onnx(made), "p", {"label": "a*/\nint x;/*", "env": "??/\\é", "step": 1}
    ).text
    first = text.splitlines()[0]
    assert first.count("*/") == 0
    assert first.count("/*") == 1
    assert text.isascii()


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export") / "a"
    flags = [*tiny.flags("td3", warmup=20), "--eval-every", 0, "--out", out]
    assert main([*map(str, ["train", "td3", "--env", "Rooms-v0", "--steps", 40, *flags])]) == 0
    return out / "0"


def export(run: Path, *argv: object) -> int:
    return main([*map(str, ["export", run, "--episodes", 2, *argv])])


@compiled
def test_the_command_prints_the_difference_and_the_memory(run, tmp_path, capsys):
    assert export(run, "--c", tmp_path / "left_arm", "--npz", tmp_path / "a.npz") == 0
    said = capsys.readouterr().out
    found = re.search(r"left_arm.h: largest difference (\S+) on 1,000 observations; ([\d,]+) bytes of", said)
    assert float(found[1]) <= 1e-5
    text = (tmp_path / "left_arm.h").read_text()
    assert "static inline void left_arm_act(const float *observation, float *action)" in text
    assert f"#define LEFT_ARM_CONSTANT_BYTES {found[2].replace(',', '')}\n" in text
    assert "- `left_arm.h`" in (tmp_path / "left_arm.md").read_text()
    assert export(run, "--c", tmp_path / "left_arm.h", "--prefix", "other") == 0  # an export's own file
    assert "other_act(" in (tmp_path / "left_arm.h").read_text()


def test_without_a_compiler_the_file_is_written_and_the_check_is_said_not_to_have_run(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert export(run, "--c", tmp_path / "p.h") == 0
    assert "p.h: not compared with the library" in capsys.readouterr().out
    assert "p_act(" in (tmp_path / "p.h").read_text()
    assert "not compared with the library" in (tmp_path / "p.md").read_text()


@compiled
def test_a_header_that_differs_leaves_no_file(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(c_code.FORMULAS, "Tanh", "sinf({0})")
    assert export(run, "--c", tmp_path / "p.h") == 1
    assert "the C header differs from the library by" in capsys.readouterr().err
    monkeypatch.setitem(c_code.FORMULAS, "Tanh", "nosuch({0})")
    assert export(run, "--c", tmp_path / "p.h") == 1
    assert "error" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--c", "a.hpp"], "must end in .h, like a.h"),
        (["--c", "my-policy.h"], "--prefix"),
        (["--c", "a.h", "--prefix", "1a"], "begin with a letter"),
        (["--c", "a.h", "--prefix", "a__b"], "single underscores"),
        (["--c", "a.h", "--prefix", "é"], "letters, digits"),
        (["--onnx", "a", "--prefix", "a"], "add --c FILE"),
        (["--c", "other.h"], "was not written by an export"),
    ],
)
def test_bad_flags_are_usage_errors(run, argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other.h").write_text("int x;")
    assert export(run, *argv) == 2
    assert says in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [tmp_path / "other.h"]


def test_what_no_header_can_do_is_refused(tmp_path):
    with refused("unexportable", "images", "--onnx", field="c"):
        c_header.write_header(source(make("td3+conv", {}), Shown), tmp_path / "p.h", "p")
    with refused("unexportable", "samples"):
        c_header.write_header(source(make("td3+cem", {}), Boxed), tmp_path / "p.h", "p")
    assert not any(tmp_path.iterdir())


def test_the_card_says_whether_it_was_checked():
    assert card.describe_header(c_header.HeaderCheck(1e-6, 4000, 64)).startswith(
        "largest difference 1.0e-06 on"
    )
    said = card.describe_header(c_header.HeaderCheck(None, 4000, 64))
    assert said.endswith("4,000 bytes of constants, 64 bytes of stack")
