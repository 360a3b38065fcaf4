"""The conformance suite passes what keeps the protocol, and each of its checks fails what breaks it."""

import jax
import jax.numpy as jnp
import pytest
from rows import long, slow

from qscape.envs import conformance
from qscape.envs.conformance import check
from qscape.errors import UsageError

OWN = ["jax/CartPole-v1", "cliff/IdealCliffWalking-v0", "recsim/10k-v0", "mineworld/MineWorld-v0"]
OWN += ["recsim/500-v1", "mineworld/MineWorld-v1"]
PROBES = ["qscape/ProbeTimeLimit-v0", "qscape/ProbePolicy-v0"]
OTHERS = {
    "brax/fast": "brax",
    "brax/inverted_pendulum": "brax",
    "playground/CartpoleBalance": "mujoco_playground",
    "craftax/Craftax-Classic-Symbolic-v1": "craftax",
}


@pytest.mark.parametrize(
    "env_id",
    [*OWN, *PROBES, *(long(env) if env == "brax/inverted_pendulum" else slow(env) for env in OTHERS)],
)
def test_these_conform(env_id):
    if env_id in OTHERS:
        pytest.importorskip(OTHERS[env_id])
    results = check(env_id, steps=1600)
    assert [r for r in results if r.verdict == "FAIL"] == []
    skipped = {r.verdict for r in results} == {"PASS", "skip"}
    assert skipped == (env_id in PROBES)


@pytest.mark.parametrize(
    ("flaw", "name", "says"),
    [
        ("weak", "types and shapes", "state.steps is weak int32[] after a reset, int32[] after a step"),
        ("half", "types and shapes", "observation is float16[1], not float32[1]"),
        ("random", "same keys", "two rollouts with the same keys and actions differ"),
        ("early", "truncated at the limit", "truncated is True in step 5, and the limit is 20"),
        ("never", "truncated at the limit", "truncated is False in step 20, and the limit is 20"),
        ("mixed", "truncated at the limit", "and the limit is 20"),
        ("limit", "truncated at the limit", "terminations are in the step of the limit, 20"),
        ("bounds", "inside their bounds", "outside [-1, 1]"),
        ("nan", "are finite", "reward is nan in step"),
        ("vmap", "vmap and the Gymnasium", "and by a single step"),
    ],
)
def test_a_flaw_is_found(flaw, name, says):
    found = {r.name: r for r in check("faulty:make", {"flaw": flaw}, steps=1600)}
    result = next(r for known, r in found.items() if name in known)
    assert result.verdict == "FAIL"
    assert says in result.detail


def test_a_sound_environment_passes_and_a_broken_autoreset_does_not(monkeypatch):
    assert {r.verdict for r in check("faulty:make", steps=1600)} == {"PASS"}
    sound = conformance.step_autoreset

    def shows_the_start(env, state, action, key):
        state, shown, outcome = sound(env, state, action, key)
        return state, shown, outcome._replace(observation=shown)

    def forgets_the_start(env, state, action, key):
        state, _, outcome = sound(env, state, action, key)
        return state, outcome.observation, outcome

    def shows_nothing(env, state, action, key):
        state, shown, outcome = sound(env, state, action, key)
        return state, jnp.zeros_like(shown), outcome

    for broken, says in [
        (shows_the_start, "the last observation is"),
        (forgets_the_start, "the first observation is"),
        (shows_nothing, "the observation to act on is not the successor"),
    ]:
        jax.clear_caches()
        monkeypatch.setattr(conformance, "step_autoreset", broken)
        failed = [r for r in check("faulty:make", steps=1600) if r.verdict == "FAIL"]
        assert [r.name for r in failed] == ["auto-reset keeps the last observation"]
        assert says in failed[0].detail
    jax.clear_caches()


@pytest.mark.parametrize("sets", [slow("binary"), "multi", "one"])
def test_valid_actions_of_products_and_sets_are_drawn(sets):
    """The environment answers an action that is not valid with NaN, and masks all actions at its end."""
    results = check("faulty:Product", {"sets": sets}, steps=1600)
    failed = [r for r in results if r.verdict == "FAIL"]
    assert [r.name for r in failed] == ["truncated at the limit, terminated elsewhere"]  # it does both there


def test_a_typed_key_in_the_state_is_named():
    first, *others = check("faulty:KeepsAKey", steps=1600)
    assert first.detail == "state.key is a typed key: keep jax.random.key_data of it"
    assert {r.verdict for r in others} == {"skip"}


def test_a_time_limit_of_gymnasium_holds_in_the_jax_environment_too():
    for longer in (0, 3):
        assert {r.verdict for r in check("faulty:make_limited", {"longer": longer}, steps=1600)} == {"PASS"}


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("random", "first differs between two rollouts"),
        ("dtype", "observations are float64[1]"),
        ("bounds", "outside [-1, 1]"),
        ("nan", "an observation or a reward is not finite"),
        ("error", "ZeroDivisionError: no wheel"),
    ],
)
def test_a_flaw_of_a_gymnasium_environment_is_found(flaw, says):
    *others, last = check("faulty:Careless", {"flaw": flaw, "max_episode_steps": 30})
    assert {r.verdict for r in others} == {"skip"}
    assert last.verdict == "FAIL"
    assert says in last.detail
    assert check("faulty:Careless", {"max_episode_steps": 30})[-1].verdict == "PASS"


def test_the_entries_of_a_dict_are_checked():
    assert check("tiny:Rooms-v0")[-1].detail == "300 steps twice, 0 terminated, 15 truncated"


@pytest.mark.parametrize("how", ["action_mask", "candidates", "observation"])
def test_valid_actions_of_gymnasium_environments_are_drawn(how):
    assert check("faulty:Gated", {"how": how})[-1].verdict == "PASS"


def test_the_command_line(capsys):
    argv = ["faulty:make", "--steps", "1600", "--env.max-episode-steps", "9"]
    assert conformance.main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == len(conformance.CHECKS)
    assert "truncated at 9 steps" in out
    assert "faulty:make conforms" in out
    assert conformance.main(["faulty:make", "--env.flaw=never", "--steps", "1600"]) == 1
    assert "of 9 checks failed" in capsys.readouterr().out
    for wrong in (["nosuch/Env"], ["faulty:make", "--flaw", "x"], ["faulty:make", "--steps", "3"]):
        assert conformance.main(wrong) == 2
        assert capsys.readouterr().err
    with pytest.raises(UsageError, match="it has to be 160 or more"):
        check("faulty:make", steps=100)
