"""Observations that critics see and actors do not."""

from functools import partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gymnasium import spaces
from refused import refused
from rows import slow
from small import fill, same, transitions
from test_simulators import wrap

import qscape as qs
from qscape import agents
from qscape.envs import make
from qscape.envs.simulators import make_gymnasium
from qscape.envs.simulators.pool import make_pool
from qscape.errors import UsageError
from qscape.run import scan, scan_rollouts
from qscape.run.engines.dataset import refuse_privileged
from qscape.types import Event, Spec, Transition

SPEC = Spec(5, 3, actor_size=2)
ALIKE = np.array([[0.3, -1.0, 0.1, 0.2, 0.3], [0.3, -1.0, 9.0, -9.0, 4.0]], np.float32)  # for the actor
BASE = {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}


class Hidden(gym.Env):
    """Its wind cannot be measured. The keys are sorted, so that the wind comes before what actors see."""

    privileged_keys = ("a_wind",)

    def __init__(self, **parts):
        box = spaces.Box(-9.0, 9.0, (2,), np.float32)
        self.observation_space = spaces.Dict({"a_wind": box, "place": box, "speed": box} | parts)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def see(self):
        return {"a_wind": self.wind, "place": self.place, "speed": np.zeros(2, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wind, self.place = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return self.see(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.1 * (action + self.wind), -9, 9).astype(np.float32)
        return self.see(), -float(np.abs(self.place).sum()), False, False, {}


def limited(env: gym.Env | None = None) -> gym.Env:
    return gym.wrappers.TimeLimit(Hidden() if env is None else env, 20)


def slopes(function, obs):
    """Return which entries of an observation a function depends on."""
    return np.abs(np.asarray(jax.jacobian(lambda x: function(x[None])[0])(obs))).sum(0) > 0


@pytest.mark.parametrize(
    "recipe", [slow("td3"), "sac+normalise", slow("sac+lipsnet+caps+l2c2+jacobian"), slow("fast_td3")]
)
def test_an_off_policy_actor_sees_its_part_and_critics_all(recipe):
    settings = {"base": BASE | {"batch_size": 16, "policy_delay": 1}}
    settings |= {"lipsnet": {"initial": 1.0}} if "lipsnet" in recipe else {}  # 50 saturates the actions
    agent = agents.build(recipe, settings).on(SPEC)
    state = agent.init(jax.random.key(0))
    memory, truncated = transitions(0)
    storage, replay_state = fill(agent, memory, truncated)
    update = jax.jit(
        lambda state: agent.update(agent.layout(1), state, storage, replay_state, jax.random.key(1))
    )
    after, _, metrics = update(state)
    assert all(np.isfinite(x) for x in metrics.values())
    assert not same(after.actor, state.actor)
    assert not same(after.critics, state.critics)

    steps, no = jnp.zeros((), jnp.int32), jnp.array(False)
    for made in (state, after):
        for mode in ("evaluate", "explore"):
            keys = [jax.random.key(2)] * 2
            one, other = (
                agent.act(agent.acting(made), None, row[None], jnp.array([True]), 0, key, mode)[0]
                for row, key in zip(ALIKE, keys, strict=True)
            )
            np.testing.assert_array_equal(one, other)
        context = agent.functions(made, Event(steps, steps, no, no))
        row = jnp.asarray(ALIKE[0])
        for policy in (context.policy, context.policy_target):
            np.testing.assert_array_equal(slopes(lambda x, p=policy: p(x).mode(), row), [1, 1, 0, 0, 0])
        assert slopes(lambda x, q=context.q: q(x, jnp.zeros((1, 3)))[0][:, None], row).all()


@pytest.mark.parametrize("recipe", ["ppo+normalise", "trpo", "reinforce"])
def test_an_on_policy_actor_sees_its_part_and_the_critic_all(recipe):
    agent = agents.build(recipe, {"base": BASE | ({"batch_size": 16} if "ppo" in recipe else {})}).on(SPEC)
    state = agent.init(jax.random.key(0), envs=2)
    draw = np.random.default_rng(0)
    seen, after = draw.normal(size=(2, 16, 2, 5)).astype(np.float32)
    action, reward = (
        draw.uniform(-1, 1, (16, 2, 3)).astype(np.float32),
        draw.normal(size=(16, 2)).astype(np.float32),
    )
    ends = np.zeros((16, 2), bool)
    rollout = Transition(*map(jnp.asarray, (seen, action, reward, ends, ends, after)))
    learnt, metrics = jax.jit(lambda state: agent.update(state, rollout, 0.0, jax.random.key(1)))(state)
    assert np.isfinite(metrics["return_target"])
    assert not same(learnt.networks, state.networks)
    row = jnp.asarray(ALIKE[0])
    for made in (state, learnt):
        action = agent.act(agent.acting(made), None, ALIKE, jnp.ones(2, bool), 0, jax.random.key(2))[0]
        np.testing.assert_array_equal(action[0], action[1])
        outputs = partial(agent.apply_networks, made.part_states, made.networks)
        np.testing.assert_array_equal(slopes(lambda x, f=outputs: f(x).dist.mode(), row), [1, 1, 0, 0, 0])
        if made.networks.critic is not None:
            assert slopes(lambda x, f=outputs: f(x).value[:, None], row).all()


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("td7", r"^'td7' does not fit this environment: sale embeds observations for actor and critics"),
        ("td3+savo", "savo lets critics choose the action that is executed"),
        ("td3+cem", "cem lets critics choose"),
        ("td3+ensemble", "ensemble lets critics choose"),
    ],
)
def test_parts_that_would_show_actors_the_rest_are_refused(recipe, says):
    with pytest.raises(UsageError, match=says):
        agents.build(recipe).on(SPEC)
    assert agents.build(recipe).on(Spec(5, 3))


def test_what_cannot_be_is_refused():
    with refused("unfit-agent", "base.shared_torso", "False"):
        agents.build("ppo", {"base": {"shared_torso": True}}).on(SPEC)
    with refused("unfit-env", "dataset"):
        refuse_privileged(agents.build("td3").on(SPEC))
    for size in (0, 5):
        with pytest.raises(UsageError, match=f"the first {size} of 5 entries"):
            Spec(5, 3, actor_size=size)
    for keys in (["a_wind", "place", "speed"], ["depth"], []):
        env = Hidden()
        env.privileged_keys = keys
        with refused("wrong-env", "privileged_keys"):
            make(env)
    with refused("wrong-env", "flattens"):
        make(gym.wrappers.FlattenObservation(Hidden()))
    with refused("wrong-env", "wrapper"):
        make(gym.wrappers.FrameStackObservation(make_gymnasium(wrap(key="asymmetric")), 2))


class Told(Hidden):
    """Declares nothing; the user says it."""

    privileged_keys = None


@pytest.mark.parametrize("keys", ["a_wind", ("a_wind", "speed")])
def test_the_user_names_what_critics_alone_see(keys):
    adapter = make(Told, 2, {"critic_observation": keys})
    assert (adapter.spec.observation_size, adapter.spec.actor_size) == (6, 4 if keys == "a_wind" else 2)
    assert make(Told).spec.actor_size is None
    with refused("wrong-env", "privileged_keys"):
        make(Told, env_args={"critic_observation": "depth"})


@pytest.mark.parametrize("envs", [1, 2])
def test_a_dict_is_put_in_order_by_its_keys(envs):
    adapter = make(limited, envs)
    assert (adapter.spec.observation_size, adapter.spec.actor_size) == (6, 4)
    assert [path for path, _ in adapter.leaves] == [("place",), ("speed",), ("a_wind",)]
    assert [path for path, _ in adapter.actor_leaves] == [("place",), ("speed",)]
    first = adapter.reset()
    bare = adapter.env.unwrapped
    hidden = bare if envs == 1 else bare.envs[0].unwrapped
    np.testing.assert_array_equal(first[0], [*hidden.place, 0, 0, *hidden.wind])
    whole = hidden.see()
    part = {key: value for key, value in whole.items() if key != "a_wind"}
    np.testing.assert_array_equal(adapter.observations(whole)[0], first[:1])
    np.testing.assert_array_equal(adapter.observations(part)[0], [[*hidden.place, 0, 0, 0, 0]])
    many, batched = adapter.observations({key: np.stack([value] * 3) for key, value in part.items()})
    assert (many.shape, batched) == ((3, 6), True)
    assert make(gym.wrappers.TransformReward(Hidden(), float)).spec.actor_size == 4


def test_a_simulator_shows_both():
    env = wrap(key="asymmetric")
    assert (env.actor_size, env.observation_space.shape) == (2, (5,))
    state, seen = env.reset(jax.random.key(0))
    after = env.step(state, jnp.ones(2), jax.random.key(0))[1].observation
    for row in (seen, after):
        np.testing.assert_array_equal(row, [*row[:2], *row[:2], 7.0])
    assert make_pool(env, 3).actor_size == 2
    assert wrap().actor_size is None
    adapter = make(make_gymnasium(env))
    assert adapter.spec.actor_size == scan.spec_of(env).actor_size == 2
    np.testing.assert_array_equal(adapter.observations(np.ones((3, 2)))[0], [[1, 1, 0, 0, 0]] * 3)
    with refused("unknown-name", "'asymmetric'", field="env_args"):
        wrap(key="asymmetric", several=False)


@pytest.mark.parametrize("recipe", ["td3", "ppo"])
def test_agents_learn_on_it_inside_one_program(recipe):
    env, key = wrap(key="asymmetric"), jax.random.key(0)
    if recipe == "ppo":
        agent = agents.build(recipe, {"base": BASE | {"rollout": 32, "batch_size": 16, "passes": 1}})
        agent = agent.on(scan.spec_of(env, index_actions=True))
        run = scan_rollouts.start(agent, env, key, envs=2)
        after, _ = scan_rollouts.run_updates(agent, env, run, key, updates=2, total=2)
        assert not same(after.state.networks.torso, run.state.networks.torso)
    else:
        agent = agents.build(recipe, {"base": BASE | {"batch_size": 16, "replay_capacity": 100, "warmup": 4}})
        agent = agent.on(scan.spec_of(env))
        run = scan.start(agent, env, key, envs=2)
        after, _ = scan.run_steps(agent, env, run, key, np.array([0, 0, 2, 2], np.int32))
        assert not same(after.state.actor, run.state.actor)


def test_predict_takes_the_actors_part_too():
    model = qs.Model("td3+normalise", limited, base=tiny.SIZES | {"warmup": 20}).learn(40)
    seen, _ = limited().reset(seed=3)
    part = {"place": seen["place"], "speed": seen["speed"]}
    whole = model.predict(seen)[0]
    np.testing.assert_array_equal(model.predict(part)[0], whole)
    np.testing.assert_array_equal(model.predict(seen | {"a_wind": seen["a_wind"] + 5})[0], whole)


def test_a_landscape_needs_what_critics_alone_see():
    model = qs.Model("td3", limited, base=tiny.SIZES)
    seen, _ = limited().reset(seed=3)
    row = np.concatenate([seen["place"], seen["speed"], seen["a_wind"]])
    same_q = [qs.landscape(model, state, points=3).q for state in (seen, row)]
    np.testing.assert_array_equal(*same_q)
    with refused("mismatch", "critics"):
        qs.landscape(model, {"place": seen["place"], "speed": seen["speed"]}, points=3)


@pytest.mark.parametrize("recipe", ["td3+normalise", "ppo+normalise"])
def test_a_file_takes_the_actors_part(recipe):
    pytest.importorskip("onnxruntime")
    from test_export import answers, source

    from qscape.export import convert, policy

    made = source(agents.build(recipe, {"base": BASE}), limited)
    about = policy.describe(made)["observation"]
    assert about["size"] == 4
    assert [entry["key"] for entry in about["order"]] == ["place", "speed"]
    obs = policy.sample_observations(made, 50)
    wanted = policy.act_as_library(made.loaded, obs)
    assert wanted.std() > 0.01
    assert np.abs(answers(made, obs[:, :4]) - wanted).max() <= 1e-5
    model = convert.to_onnx(policy.make_policy_function(made.loaded), 4, {})
    policy.check_onnx(model.SerializeToString(), made)
