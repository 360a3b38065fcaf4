"""Numbers that end a run: rewards beyond float32, training that diverges, whole numbers beyond int32."""

import json
import re

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import settings

from qscape.agents import build
from qscape.cli import main
from qscape.envs import make
from qscape.errors import RunError
from qscape.nets.heads import SquashedNormal
from qscape.ops.finite import guard_names, watch
from qscape.ops.gaussian import squashed_log_prob
from qscape.ops.quantile import quantile
from qscape.run import Plan, saves, train

CLOCK = {"env": "tiny:Clock-v0", "steps": 100}
SMALL = settings("td3", warmup=20)


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_a_reward_beyond_float32_is_named(value):
    env = make("tiny:Clock-v0", env_args={"fail_at": 2, "value": value})
    env.reset()
    env.step(np.zeros((1, 1), np.float32))
    said = re.escape(f"reward is {value} (float32 ends at 3.4e38) in environment 0, step 2")
    with pytest.raises(RunError, match=said):
        env.step(np.zeros((1, 1), np.float32))


def run_until_it_diverges(folder, **plan):
    """Train; return the sentence of the error and the saves that are left."""
    fields = {**CLOCK, "settings": SMALL, "eval_every": 0, "log_every": 10, **plan}
    with pytest.raises(RunError) as caught:
        list(train(Plan("td3", **fields), folder))
    place = folder / "saves"
    return str(caught.value), saves.names(place) if place.exists() else []


def test_a_run_that_diverges_says_what_when_and_what_helps(tmp_path):
    """A reward of 1e25 in step 51, whose squared error is infinite: the gradient of the critics is too large
    for the square in Adam. With batches of 16 out of 51 it is drawn soon."""
    args = {"fail_at": 51, "value": 1e25}
    said, left = run_until_it_diverges(tmp_path / "run", env_args=args, save_every=25, steps=200)
    wrong = "the gradient of critics is not finite, or too large for float32"
    assert re.match(rf"td3.* diverged at update (3\d|4\d), before step \d+: {wrong}", said), said
    assert "A smaller --base.actor-learning-rate or --base.critic-learning-rate, smaller rewards or" in said
    assert left[-1] == "000000050"
    assert "Infinity" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "env"), [("td3", "faulty:make"), ("ppo", "jax/CartPole-v1"), ("ppo", "tiny:Clock-v0")]
)
def test_other_loops_see_it_too(recipe, env, tmp_path):
    rates = {"td3": ("critic_learning_rate", "actor_learning_rate"), "ppo": ("learning_rate",)}[recipe]
    base = dict.fromkeys(rates, 1e30) | (
        {"warmup": 20} if recipe == "td3" else {"rollout": 32, "batch_size": 16}
    )
    plan = Plan(recipe, env, 400, settings={"base": base}, eval_every=0, log_every=50)
    with pytest.raises(RunError, match=f"{recipe}.* diverged at update "):
        list(train(plan, tmp_path / "run"))


def test_the_guard_notes_the_first_update_of_each_quantity():
    state = {name: optax.adam(0.1).init(jnp.ones(3)) for name in ("critics", "actor")}
    names = guard_names(state)
    assert names == ["actor", "critics", "losses"]
    guard, metrics = jnp.zeros(3, jnp.int32), jnp.array([1.0, jnp.nan])
    guard = watch(guard, state, ["critic_loss", "actor_loss"], metrics, jnp.int32(4))
    assert guard.tolist() == [0, 0, 0], "NaN: no value yet"
    huge = optax.adam(0.1).update(jnp.full(3, 1e30), state["critics"])[1]
    guard = watch(guard, state | {"critics": huge}, ["critic_loss", "q"], metrics, jnp.int32(5))
    assert guard.tolist() == [0, 5, 0]
    guard = watch(guard, state | {"critics": huge}, ["loss", "q"], jnp.full(2, jnp.inf), jnp.int32(6))
    assert guard.tolist() == [0, 5, 6]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--base.policy-delay", 3_000_000_000],
            "base.policy_delay is 3000000000; a whole number is at most",
        ),
        (
            ["--base.updates-per-step", 1e12],
            "base.updates_per_step is 1000000000000.0; it must be above 0 and",
        ),
        (
            ["--base.actor-hidden", 256, 2**40],
            "base.actor_hidden is 1099511627776; a whole number is at most",
        ),
        (
            ["--eval-episodes", 2**31],
            "--eval-episodes is 2147483648; a whole number is at most 2,147,483,647",
        ),
        (["--seeds", 10**20], "--seeds is 100000000000000000000; a whole number is at most"),
        (["--seeds", *range(2_000)], "--seeds names 2,000 seeds; one command takes at most 1,000"),
        (["--steps", 10**10], "--steps is 10000000000; a whole number is at most"),
    ],
    ids=str,
)
def test_numbers_that_no_program_can_hold(flags, says, capsys):
    argv = ["train", "td3", "--env", "tiny:Clock-v0", "--steps", "10", *map(str, flags)]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"qscape: {says}"), err
    assert err.count("\n") == 1


# --- small numeric differences ----------------------------------------------------------------------------


def test_quantiles_where_float64_is_the_default():
    with jax.enable_x64(True):
        x = jnp.linspace(0.0, 1.0, 101)
        assert x.dtype == jnp.float64
        assert float(quantile(x, 0.95)) == pytest.approx(0.95, abs=1e-6)
        assert quantile(x, 0.5).dtype == jnp.float32


def test_the_released_density_is_that_of_the_released_code():
    u = jnp.array([[0.3, -2.0, 8.0]])
    mean, log_std = jnp.array([[0.1, -1.0, 6.0]]), jnp.array([[-0.5, 0.2, 0.7]])
    normal = -0.5 * jnp.square((u - mean) / jnp.exp(log_std)) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    released = (normal - jnp.log(1 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)
    np.testing.assert_allclose(squashed_log_prob(u, mean, log_std, "released"), released, rtol=1e-6)
    assert abs(squashed_log_prob(u, mean, log_std)[0] - released[0]) > 0.5, "in the tails they differ"

    key, dist = jax.random.key(0), SquashedNormal(u, mean, log_std)
    for recipe, part in (("sac", "soft"), ("sac+savgo", "savgo")):
        agent = build(recipe, {part: {"density": "released"}})
        action, log_prob = agent.policy_loss.sample(dist, key)
        assert jnp.array_equal(action, dist.sample(key)[0])
        assert not jnp.array_equal(log_prob, dist.sample(key)[1])
    assert build("sac").policy_loss.density == "exact"


def test_an_environment_without_pictures_says_so_as_a_type_error():
    """After which Stable-Baselines3's `make_vec_env` makes it without a render mode."""
    with pytest.raises(TypeError, match="RecSimEnv has no render_mode 'rgb_array': it has none"):
        gym.make("recsim/10k-v0", render_mode="rgb_array")
