"""Sensors and actuators that lag: the wrappers, by hand and against each other, and what policies carry."""

import dataclasses
import itertools
import json

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

import qscape as qs
from qscape.agents.plugins import RESERVED
from qscape.envs import make, snapshot
from qscape.envs.lag import JaxLag, Lag, LaggedEnv, _stack_box, make_code
from qscape.envs.levels import LevelSpace
from qscape.envs.native import GymnasiumEnv, JaxEnv, Outcome, step_key
from qscape.envs.simulators import make_gymnasium
from qscape.errors import BrokenEnv, UsageError
from qscape.run import training
from qscape.run.plan import Plan
from qscape.run.policy import evaluate_run


class Counter(gym.Env):
    """Shows (step, last action that acted); an episode has 9 steps."""

    def __init__(self, space=None, observation=None):
        self.observation_space = observation or spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = space or spaces.Box(-2.0, 6.0, (1,), np.float32)
        self.acted = []

    def show(self):
        return np.array([self.at, self.acted[-1] if self.acted else -1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.acted = 100 * (1 + getattr(self, "at", 0) // 100), []
        return self.show(), {}

    def step(self, action):
        self.at += 1
        self.acted.append(float(np.ravel(action)[0]))
        return self.show(), self.acted[-1], False, self.at % 100 == 9, {}


class Pictures(Counter):
    """Shows an image, a vector in a Dict of its own, and what critics alone see."""

    privileged_keys = "truth"

    def __init__(self):
        image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        deep = spaces.Dict({"x": spaces.Box(-9, 9, (2,), np.float32)})
        truth = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        super().__init__(observation=spaces.Dict({"eye": image, "arm": deep, "truth": truth}))

    def show(self):
        at = self.at % 100
        arm = {"x": np.array([at / 10, 1], np.float32)}
        return {"eye": np.full((8, 8, 3), at, np.uint8), "arm": arm, "truth": np.array([at], np.float32)}


def rows_of(env, actions, **lag):
    """The first observation and those after each action, the rewards, and the adapter."""
    adapter = make(env, lag=Lag(**lag))
    rows, rewards = [adapter.reset()[0]], []
    for action in actions:
        step = adapter.step(np.full((1, adapter.spec.action_size), action, np.float32))
        np.testing.assert_array_equal(step.transition.action, action)  # what replay gets: as it was chosen
        rows.append(step.transition.next_observation[0])
        rewards.append(float(step.transition.reward[0]))
    return np.array(rows), rewards, adapter


def test_a_delayed_action_acts_later_and_is_seen_until_then():
    rows, rewards, _ = rows_of(Counter, [1.0, 0.5, -1.0, 0.0], action_delay=2)
    # In units: 6, 4, -2, 2; before them the one nearest to zero, which is -0.5 of [-1, 1].
    assert rewards == [0.0, 0.0, 6.0, 4.0]
    assert rows[:, 2:].tolist() == [[-0.5, -0.5], [-0.5, 1], [1, 0.5], [0.5, -1], [-1, 0]]
    hidden, _, _ = rows_of(Counter, [1.0, 0.5], action_delay=2, observe_actions=False)
    assert hidden.tolist() == [[100, -1], [101, 0], [102, 0]]


def test_a_stack_begins_with_the_first_measurement_and_the_neutral_action():
    rows, _, _ = rows_of(Counter, [1.0, 0.5, 0.0], history=3)
    assert rows[:, [0, 2, 4]].tolist() == [[100] * 3, [100, 100, 101], [100, 101, 102], [101, 102, 103]]
    assert rows[:, 6:].tolist() == [[-0.5, -0.5], [-0.5, 1], [1, 0.5], [0.5, 0]]


def test_a_delayed_measurement_is_seen_later():
    rows, _, _ = rows_of(Counter, [1.0, 0.5, 0.0], history=2, observation_delay=1)
    assert rows[:, [0, 2]].tolist() == [[100, 100], [100, 100], [100, 101], [101, 102]]
    assert rows[:, 4:].tolist() == [[-0.5, -0.5], [-0.5, 1], [1, 0.5], [0.5, 0]]


def test_the_next_episode_begins_anew_and_the_last_row_is_the_true_successor():
    adapter = make(Counter, lag=Lag(history=2, action_delay=1))
    adapter.reset()
    for _ in range(9):
        step = adapter.step(np.ones((1, 1), np.float32))
    assert step.transition.truncated[0]
    assert step.transition.next_observation[0].tolist() == [108, 6, 109, 6, 1, 1]
    assert step.observation[0].tolist() == [200, -1, 200, -1, -0.5, -0.5]


def test_a_missing_measurement_repeats_the_last_one_and_noise_is_of_the_given_size():
    adapter = make(Counter, 2, lag=Lag(dropout=0.4))
    seen = [adapter.reset()[0, 0] % 100]
    for _ in range(9 * 60):
        step = adapter.step(np.zeros((2, 1), np.float32))
        seen.append(step.transition.next_observation[0, 0] % 100)
    repeated = np.mean([now == before for before, now in itertools.pairwise(seen)])
    assert 0.34 < repeated < 0.46
    for k, now in enumerate(seen[1:]):
        assert now in (k % 9 + 1, seen[k] if k % 9 else 0)
    noisy, _, adapter = rows_of(
        lambda: gym.wrappers.TimeLimit(Counter(), 9), [0.0] * 8, observation_noise=2.0
    )
    off = noisy[:, 0] - np.arange(100, 109)
    assert 0.5 < off.std() < 4
    assert not np.isfinite(adapter.observation_bounds).any()


def test_dict_and_image():
    rows, _, adapter = rows_of(Pictures, [1.0, 0.0], history=2, action_delay=1)
    assert adapter.spec.frame == (8, 8, 6)
    assert adapter.spec.actor_size == 384 + 4 + 2
    # Channels of the older picture, then those of the newer; the vector; past actions; what critics see.
    assert rows[1, :6].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(rows[2, 384:], [0.1, 1, 0.2, 1, 1, 0, 2], rtol=1e-6)
    noisy, _, _ = rows_of(Pictures, [1.0], observation_noise=3.0)
    assert noisy[:, :192].std() > 0
    assert (noisy[:, :192] == np.rint(noisy[:, :192])).all()
    assert noisy[:, -1].tolist() == [0, 1]


def test_an_action_table_is_shown_in_programs():
    lag = Lag(history=2, action_delay=1)
    for env_id in ("mineworld/MineWorld-v0", "recsim/500-v1"):
        adapter = make(env_id, 1, None, lag=lag)
        bare = make(env_id, 1, None)
        table, first = adapter.spec.table, adapter.reset()
        assert first.shape == (1, 2 * bare.spec.observation_size + 2 * table.shape[1])
        np.testing.assert_array_equal(first[0, -table.shape[1] :], table[0])
        seen = adapter.step(table[[3]]).transition.next_observation
        np.testing.assert_array_equal(seen[0, -table.shape[1] :], table[3])
        assert np.isfinite(seen).all()


def test_of_levels_the_one_nearest_to_zero_is_neutral():
    def of(low, high, levels):
        return make_code(LevelSpace(spaces.Box(low, high, (2,)), levels), None).neutral.tolist()

    assert of(-2.0, 2.0, 11) == [5, 5]
    assert of(-1.0, 3.0, 5) == [1, 1]
    assert of(1.0, 2.0, 3) == [0, 0]


def test_images_whose_stack_would_be_read_with_another_axis_are_refused():
    for shape, most in (((16, 16, 3), 5), ((3, 16, 16), 5), ((16, 16), 15)):
        box = spaces.Box(0, 255, shape, np.uint8)
        assert _stack_box(box, Lag(history=most)).dtype == np.uint8
        with pytest.raises(UsageError) as refused:
            _stack_box(box, Lag(history=most + 1))
        assert refused.value.field == "history"


def test_discrete_actions_are_one_hot():
    env = lambda: Counter(spaces.Discrete(3, start=1))  # noqa: E731
    adapter = make(env, index_actions=True, lag=Lag(action_delay=2))
    assert adapter.reset()[0, 2:].tolist() == [1, 0, 0, 1, 0, 0]
    rewards = [float(adapter.step(np.array([[a]], np.float32)).transition.reward[0]) for a in (2, 1, 0)]
    assert rewards == [1, 1, 3]
    assert adapter.observation[0, 2:].tolist() == [0, 1, 0, 1, 0, 0]


class Ticker(JaxEnv):
    """A walk whose numbers are exact, so that no program rounds them in another way."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=20)
    seen: int | None = eqx.field(static=True, default=None)

    @property
    def observation_space(self):
        return spaces.Box(-np.inf, np.inf, (4,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(-2.0, 6.0, (2,), np.float32)

    @property
    def actor_size(self):
        return self.seen

    def reset(self, key):
        place = jax.random.bits(key, (4,), np.uint8).astype(np.float32) / 256
        return place, place

    def step(self, state, action, key):
        place = (state + jax.numpy.tile(action, 2)) / 2
        place = jax.numpy.round(place * 256) / 256
        never = jax.numpy.bool_(False)
        return place, Outcome(place, place.sum(), never, never, never)


def exact_draws(lag, key):
    """Noise that no program rounds in another way, and whether a measurement is missing."""
    noise = (jax.random.bits(key, (4,), np.uint8).astype(np.float32) - 128) / 1024
    missing = jax.random.bits(jax.random.fold_in(key, 1), (), np.uint8) < 256 * lag.dropout
    return noise if lag.observation_noise else None, missing if lag.dropout else None


class LagWithDraws(JaxLag):
    def disturb(self, key):
        return exact_draws(self.lag, key)


class LaggedWithDraws(LaggedEnv):
    def disturb(self, first=False):
        bare = self.env
        key = jax.random.key(bare.episode_seed)
        key = step_key(key, np.uint32(bare.steps)) if bare.steps else key
        noise, missing = exact_draws(self.lag, key)
        return [None if noise is None else np.asarray(noise)], None if first else missing


@pytest.mark.parametrize(
    "lag",
    [
        Lag(history=3, action_delay=2, observation_delay=1, observation_noise=0.1, dropout=0.3),
        Lag(action_delay=1, observe_actions=False),
        Lag(history=2, dropout=0.5),
    ],
)
def test_both_wrappers_are_equal_to_the_bit_on_the_same_draws(lag):
    native = Ticker()
    there = GymnasiumEnv(LagWithDraws(native, lag, None, time_limit=20))
    here = LaggedWithDraws(GymnasiumEnv(native), lag, "Ticker")
    assert here.observation_space == there.observation_space
    one, other = here.reset(seed=3)[0], there.reset(seed=3)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype == np.float32
        action = rng.integers(-16, 48, 2).astype(np.float32) / 8
        one, *mine = here.step(action)
        other, *theirs = there.step(action)
        assert mine == theirs


def test_a_snapshot_is_exact():
    lag = Lag(history=2, action_delay=2, observation_delay=1, observation_noise=0.1, dropout=0.3)
    act = lambda k: np.full((2, 1), np.sin(k), np.float32)  # noqa: E731
    adapter = make("Pendulum-v1", 2, lag=lag)
    adapter.reset()
    for k in range(7):
        adapter.step(act(k))
    taken = snapshot.take(adapter)
    assert taken.meta["exact"], taken.meta["why"]
    wanted = [adapter.step(act(k)).observation for k in range(7, 220)]
    other = make("Pendulum-v1", 2, lag=lag)
    assert snapshot.restore(other, taken) == ""
    for k, want in enumerate(wanted, 7):
        np.testing.assert_array_equal(other.step(act(k)).observation, want)


@pytest.mark.parametrize(
    ("env", "lag"),
    [
        ("Pendulum-v1", {"history": 1, "action_delay": 1}),
        ("Pendulum-v1", {"history": 3, "action_delay": 2}),
        (Pictures, {"history": 2, "action_delay": 1}),
        (lambda: make_gymnasium(Ticker(seen=3)), {"history": 2, "action_delay": 1}),
        ("CartPole-v1", {"history": 2, "action_delay": 1}),
        ("qscape.envs.cartpole:CartPole", {"history": 2, "action_delay": 1}),
    ],
)
def test_a_policy_carries_what_the_wrapper_shows(env, lag):
    """`RowStack` makes of what a bare environment shows what the wrapper shows."""
    index = isinstance(env, str) and "CartPole" in env
    args = {"time_limit": 50} if env == "qscape.envs.cartpole:CartPole" else {}
    adapter = make(env, index_actions=index, lag=Lag(**lag), env_args=args)
    # The bare world lags by itself: the wrapper without what is seen of the past.
    world = make(env, index_actions=index, env_args=args)
    stack = adapter.stack
    assert adapter.spec.observation_size == len(stack.sources)
    seen, raw = adapter.reset(), world.reset()
    memory, first = np.zeros((1, stack.width), np.float32), np.ones(1, bool)
    delay, queue = lag["action_delay"], []
    rng = np.random.default_rng(0)
    for k in range(8):
        made, held = stack.see(raw, memory, first)
        np.testing.assert_array_equal(made, seen)
        rows, kept = stack.split(seen)
        np.testing.assert_array_equal(stack.see(rows, kept, np.zeros(1, bool))[0], seen)
        shape = 1, adapter.spec.action_size
        action = rng.integers(2, size=shape) if index else rng.uniform(-1, 1, shape)
        action = action.astype(np.float32)
        queue.append(action)
        neutral = np.full(shape, 0 if isinstance(env, str) else -0.5, np.float32)
        acting = queue[k - delay] if k >= delay else neutral
        memory, first = stack.remember(held, adapter.actions(action)), np.zeros(1, bool)
        step = adapter.step(action)
        if step.finished:
            break
        seen, raw = step.observation, world.step(acting).observation


@pytest.mark.parametrize(
    ("lag", "field"),
    [
        ({"history": 0}, "history"),
        ({"action_delay": -1}, "action_delay"),
        ({"observation_delay": -1}, "observation_delay"),
        ({"observation_noise": float("nan")}, "observation_noise"),
        ({"observation_noise": -0.1}, "observation_noise"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"observe_actions": False}, "observe_actions"),
        ({"history": 201}, "history"),
        ({"action_delay": 200}, "action_delay"),
        ({"observation_delay": 200}, "observation_delay"),
    ],
)
def test_bad_input(lag, field):
    with pytest.raises(UsageError) as refused:
        make("Pendulum-v1", lag=Lag(**lag))
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


class Halves(gym.Env):
    """Shows what its space, of whole numbers, does not hold."""

    observation_space = spaces.Box(0, 10, (2,), int)
    action_space = spaces.Box(-1.0, 1.0, (1,))
    shown = np.array([0.5, 2.0])

    def reset(self, *, seed=None, options=None):
        return self.shown, {}


def test_numbers_that_the_space_does_not_hold_are_never_cut():
    assert make(Halves).reset().tolist() == [[0.5, 2.0]]
    with pytest.raises(BrokenEnv):
        make(Halves, lag=Lag(history=2)).reset()
    whole = Halves()
    whole.shown = np.array([1.0, 2.0])
    assert make(lambda: whole, lag=Lag(history=2)).reset()[0, :4].tolist() == [1, 2, 1, 2]


def test_what_cannot_lag_is_refused():
    vector = gym.make_vec("Pendulum-v1", 2)
    with pytest.raises(UsageError) as refused:
        make(vector, lag=Lag(history=2))
    assert refused.value.field == "env"
    with pytest.raises(UsageError) as refused:
        make("Pendulum-v1", 2, vectorise="envpool", lag=Lag(history=2))
    assert refused.value.field == "vectorise"
    with pytest.raises(UsageError) as refused:
        make("restricted/Any-v0", env_args={"env": "Pendulum-v1"}, lag=Lag(history=0 + 1, action_delay=500))
    picture = lambda: Counter(spaces.Discrete(2), spaces.Box(0, 255, (4, 4), np.uint8))  # noqa: E731
    with pytest.raises(UsageError) as refused:
        make(picture, index_actions=True, lag=Lag(history=2))
    assert refused.value.field == "observe_actions"


SMALL = {"actor_hidden": (8,), "critic_hidden": (8,), "batch_size": 8, "warmup": 20}
DELAYED = {"history": 2, "action_delay": 2, "observation_delay": 1}


def returns_of(env, predict, delay, observation_delay, seeds):
    """Returns of episodes in a bare environment that acts and shows late by itself."""
    found = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        actions, shown, state, total, over = (
            [np.zeros(1, np.float32)] * delay,
            [observation],
            None,
            0.0,
            False,
        )
        while not over:
            action, state = predict(shown[max(0, len(shown) - 1 - observation_delay)], state)
            actions.append(action)
            observation, reward, ended, stopped, _ = env.step(actions[len(actions) - 1 - delay])
            shown.append(observation)
            total, over = total + float(reward), ended or stopped
        found.append(total)
    return found


def test_predict_carries_the_past(tmp_path):
    model = qs.TD3("Pendulum-v1", eval_every=0, eval_episodes=2, **SMALL, **DELAYED).learn(60)
    wanted = model.evaluate(2)
    env = gym.make("Pendulum-v1")
    predict = lambda seen, state: model.predict(seen, state)  # noqa: E731
    np.testing.assert_allclose(returns_of(env, predict, 2, 1, (1000, 1001)), wanted, rtol=1e-4)
    loaded = qs.load(model.save(tmp_path / "run"))
    assert loaded.lag == Lag(**DELAYED)
    assert loaded.evaluate(2) == wanted
    done = evaluate_run(tmp_path / "run", 2)[2]
    assert [episode.ret for episode in done] == wanted
    batch = np.ones((3, 3), np.float32)
    action, state = model.predict(batch)
    assert action.shape == (3, 1)
    again, _ = model.predict(batch, state, episode_start=[True, False, False])
    np.testing.assert_array_equal(again[0], action[0])
    assert (again[1:] != action[1:]).all()


@pytest.mark.parametrize("env", ["Pendulum-v1", "qscape.envs.cartpole:CartPole"])
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, env):
    recipe, args = ("td3", {}) if env == "Pendulum-v1" else ("ppo", {"time_limit": 30})
    lag = DELAYED | {"observation_noise": 0.1, "dropout": 0.2}
    settings = {"base": SMALL} if recipe == "td3" else {"base": {"rollout": 32, "batch_size": 16}}
    about = {"recipe": recipe, "env": env, "env_args": args, "settings": settings, "eval_every": 0}
    plan = Plan(steps=96, save_every=48, **about, **lag)
    for _ in training.train(plan, tmp_path / "whole"):
        pass
    for _ in training.train(dataclasses.replace(plan, steps=64, save_every=64), tmp_path / "parts"):
        pass
    record = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert {name: record[name] for name in lag} == lag
    for _ in training.resume(tmp_path / "parts", 96):
        pass
    for tree in ("state", "environment") if recipe == "td3" else ("state", "replay"):
        one, other = (
            np.load(tmp_path / of / "saves" / "000000096" / f"{tree}.npz") for of in ("whole", "parts")
        )
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_labels_and_fields():
    from qscape import report

    usual = {field.name: field.default for field in dataclasses.fields(Lag)}
    assert usual == report.LAG
    assert (
        report.environment_label({"env": "A-v0", "env_args": {}, "action_delay": 2}) == "A-v0(action_delay=2)"
    )
    assert set(usual) <= RESERVED


def test_an_exported_policy_carries_the_past(tmp_path):
    pytest.importorskip("onnxruntime")
    from qscape.export import policy, run_policy

    model = qs.TD3("Pendulum-v1", eval_every=0, eval_episodes=2, **SMALL, **DELAYED).learn(60)
    source = policy.load_source(model.save(tmp_path / "run"), 2)
    checked = policy.write_onnx(source, tmp_path / "policy.onnx")
    assert checked.difference < 1e-4
    session, about = run_policy.load(str(tmp_path / "policy.onnx"))
    assert about["lag"] == DELAYED
    assert about["observation"]["size"] == 3
    memory = {}

    def predict(seen, state):
        if state is None:
            memory.clear()  # an episode starts
        return run_policy.act(session, seen, memory=memory), True

    found = returns_of(gym.make("Pendulum-v1"), predict, 2, 1, (1000, 1001))
    np.testing.assert_allclose(found, model.evaluate(2), rtol=1e-3)
    with pytest.raises(ValueError, match="memory"):
        run_policy.act(session, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="action_delay 2"):
        run_policy.make_env(about, "Pendulum-v1")


def test_an_exported_policy_of_discrete_actions_carries_them(tmp_path):
    pytest.importorskip("onnxruntime")
    from qscape.export import policy, run_policy

    settings = {"rollout": 32, "batch_size": 16, "actor_hidden": (8,), "critic_hidden": (8,)}
    model = qs.PPO("CartPole-v1", eval_every=0, history=3, **settings).learn(64)
    source = policy.load_source(model.save(tmp_path / "run"), 2)
    policy.write_onnx(source, tmp_path / "policy.onnx")
    session, about = run_policy.load(str(tmp_path / "policy.onnx"))
    env = run_policy.make_env(about, "CartPole-v1")
    observation, _ = env.reset(seed=0)
    memory, state = {}, None
    for _ in range(8):
        action, state = model.predict(observation, state)
        assert run_policy.act(session, observation, memory=memory) == action
        observation, *_ = env.step(action)
