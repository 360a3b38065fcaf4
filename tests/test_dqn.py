"""DQN: its equations by hand, the optimal values of a table, and what every tool sees of it."""

import dataclasses
import json
from functools import partial

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow
from small import S, same
from small import build as small

from qscape import agents
from qscape.cli import main
from qscape.cli.watch import QSlice
from qscape.envs import make
from qscape.errors import UsageError
from qscape.inspect.survey import Surveyor
from qscape.inspect.trained_agent import critic_values
from qscape.nets.per_action import ActionCritic, Dueling
from qscape.run.plan import Plan
from qscape.run.session import Session
from qscape.run.training import make_session
from qscape.types import Batch, Event, Spec

DISCOUNT, STATES, ACTIONS = 0.8, 4, 3
RNG = np.random.default_rng(5)
MOVES = RNG.dirichlet(np.ones(STATES), (STATES, ACTIONS))  # P(s' | s, a)
REWARDS = RNG.uniform(-1.0, 1.0, (STATES, ACTIONS))
ENDS = 0.1  # probability that a step is the last one


class TableMDP(gym.Env):
    """A random MDP of four states, which are shown as unit vectors."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(0.0, 1.0, (STATES,), np.float32)
        self.action_space = gym.spaces.Discrete(ACTIONS, start=2)
        self.state = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(STATES))
        return np.eye(STATES, dtype=np.float32)[self.state], {}

    def step(self, action):
        action = int(action) - 2
        reward = REWARDS[self.state, action]
        self.state = int(self.np_random.choice(STATES, p=MOVES[self.state, action]))
        ended = bool(self.np_random.random() < ENDS)
        return np.eye(STATES, dtype=np.float32)[self.state], float(reward), ended, False, {}


def optimal_values(moves=MOVES * (1.0 - ENDS), rewards=REWARDS) -> np.ndarray:
    """Q* [states, actions] by value iteration; `moves` [s, a, s'] are probabilities to go on in s'."""
    q = np.zeros((STATES, ACTIONS))
    for _ in range(200):
        q = rewards + DISCOUNT * moves @ q.max(1)
    return q


def fitted_quantiles(moves, rewards, levels=25) -> np.ndarray:
    """The values to which quantiles settle: their Huber loss pulls them, and so their mean, together.

    Each step puts every quantile where the slope of its loss against all that may follow is 0.
    """
    tau = (np.arange(levels) + 0.5) / levels
    weight = np.concatenate([1.0 - moves.sum(-1)[..., None], np.repeat(moves / levels, levels, -1)], -1)
    quantiles = np.zeros((STATES, ACTIONS, levels))
    for _ in range(60):
        best = quantiles[np.arange(STATES), quantiles.mean(-1).argmax(1)].ravel()
        after = np.broadcast_to(DISCOUNT * best, (STATES, ACTIONS, best.size))
        goal = rewards[..., None] + np.concatenate([np.zeros((STATES, ACTIONS, 1)), after], -1)
        low, high = np.full(quantiles.shape, -6.0), np.full(quantiles.shape, 6.0)
        for _ in range(40):
            middle = (low + high) / 2
            error = goal[..., None, :] - middle[..., None]
            slope = np.abs(tau[:, None] - (error < 0)) * np.clip(error, -1.0, 1.0)
            rises = (weight[..., None, :] * slope).sum(-1) > 0
            low, high = np.where(rises, middle, low), np.where(rises, high, middle)
        quantiles = (low + high) / 2
    return quantiles.mean(-1)


def optimal_values_of(trainer: Session, solve=optimal_values) -> np.ndarray:
    """Q* of the MDP with the frequencies of the transitions in replay."""
    rows = np.asarray(trainer.learner.storage)[: int(trainer.learner.carry.replay_state.size[0])]
    obs, action, reward, ended = rows[:, :STATES], rows[:, STATES], rows[:, STATES + 1], rows[:, STATES + 2]
    state, action = obs.argmax(1), action.astype(int)
    after = rows[:, STATES + 4 : 2 * STATES + 4] * (1.0 - ended[:, None])
    count, total = np.zeros((STATES, ACTIONS)), np.zeros((STATES, ACTIONS))
    moves = np.zeros((STATES, ACTIONS, STATES))
    np.add.at(count, (state, action), 1)
    np.add.at(total, (state, action), reward)
    np.add.at(moves, (state, action), after)
    assert count.min() > 50
    return solve(moves / count[..., None], total / count)


BASE = {"discount": DISCOUNT, "warmup": 100, "critic_hidden": (32, 32), "sync_every": 25}
BASE |= {"epsilon_start": 1.0, "epsilon_end": 0.3, "critic_learning_rate": 2e-3, "replay_capacity": 8192}
BASE |= {"batch_size": 128, "schedule": "linear", "rate_end": 0.02, "n_step": 1, "updates_per_step": 1.0}
BASE |= {"critic_loss": "mse"}  # where returns are random, the Huber loss does not settle at their mean
TABLE_SETTINGS = {
    "c51": {"low": -4.0, "high": 4.0, "atoms": 81},
    "hl_gauss": {"low": -4.0, "high": 4.0},
    "quantile": {"drop": 0},
}


def learn(recipe: str, steps: int, **base) -> Session:
    """A trainer that made its steps in the table MDP."""
    parts = agents.build(recipe).parts
    settings = {name: own for name, own in TABLE_SETTINGS.items() if name in parts}
    settings["base"] = BASE | base | {"schedule_updates": steps}
    plan = Plan(recipe, "TableMDP", steps, settings=settings, eval_every=0)
    trainer = make_session(plan, agents.build(recipe, settings), make(TableMDP, index_actions=True))
    for _ in trainer.events(steps):
        pass
    return trainer


def values_of(agent, state, obs) -> np.ndarray:
    """Q [B, actions] of the first critic, one action at a time."""
    choices = agent.task.choices
    columns = [
        critic_values(agent, agent.acting(state), obs, jnp.full((len(obs), 1), float(a)))[0]
        for a in range(choices)
    ]
    return np.stack(columns, -1)


@pytest.mark.parametrize(
    "recipe",
    ["dqn", slow("dqn+polyak"), slow("dqn+c51"), slow("dqn+hl_gauss"), slow("dqn+quantile")],
)
def test_the_optimal_values_of_a_table_are_learned(recipe):
    trainer = learn(recipe, 4_000)
    found = values_of(trainer.agent, trainer.learner.state, np.eye(STATES, dtype=np.float32))
    known = optimal_values_of(trainer)
    assert np.ptp(known) > 1.0
    wanted = optimal_values_of(trainer, fitted_quantiles) if "quantile" in recipe else known
    np.testing.assert_allclose(found, wanted, atol=0.08)
    np.testing.assert_allclose(known, optimal_values(), atol=0.25)
    acted = trainer.learner.programs.act(
        trainer.learner.acting,
        None,
        np.eye(STATES, dtype=np.float32),
        np.ones(STATES, bool),
        0,
        trainer.learner.seeds.key,
    )[0]
    np.testing.assert_array_equal(np.asarray(acted)[:, 0], known.argmax(1))


# --- equations ---------------------------------------------------------------------------------------


class Table(eqx.Module):
    """Outputs that are given, whatever the input is."""

    rows: jax.Array

    def __init__(self, *rows: float):
        self.rows = jnp.array(rows)

    def __call__(self, x, *_):
        return jnp.broadcast_to(self.rows, (*x.shape[:-1], len(self.rows)))


@pytest.mark.parametrize(("double", "expected"), [(True, 1.0 + 0.5 * 3.0), (False, 1.0 + 0.5 * 7.0)])
def test_the_target_by_hand(double, expected):
    """Online values at s' are (4, 9, 1), target values (7, 3, 5); y = r + γ 3 with double, else r + γ 7."""
    agent = small("dqn", 8, {"argmax": {"double": double}}, discount=0.5)
    state = agent.init(jax.random.key(0))

    def constant(critics, q):
        return [dataclasses.replace(c, body=Table(*q)) for c in critics]

    state = state._replace(
        critics=constant(state.critics, [4.0, 9.0, 1.0]),
        critics_target=constant(state.critics_target, [7.0, 3.0, 5.0]),
    )
    counters = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.array(False), jnp.array(False)
    context = agent.functions(state, Event(*counters))
    obs, one = jnp.zeros((2, S)), jnp.ones(2)
    policy = agent.selector.target_policy(
        None, None, state.part(agent.selector), context, obs, jax.random.key(1)
    )
    value = context.q_target(obs, policy(obs).mode())[0]
    batch = Batch(obs, jnp.zeros((2, 1)), one, jnp.array([0.0, 1.0]), obs, 0.5)
    y = batch.reward + (1 - batch.terminated) * batch.discount * value
    np.testing.assert_allclose(y, [expected, 1.0])
    assert context.policy(obs).mode().tolist() == [[1.0], [1.0]]


def with_streams(layer: Dueling, value: Table, advantage: Table) -> Dueling:
    return eqx.tree_at(lambda x: (x.value, x.advantage), layer, (value, advantage))


def test_dueling_by_hand():
    """V = 2 and A = (1, −1, 3): Q = 2 + A − 1 = (2, 0, 4)."""
    layer = Dueling(jax.random.key(0), 4, 3, 1, "relu")
    layer = with_streams(layer, Table(2.0), Table(1.0, -1.0, 3.0))
    np.testing.assert_allclose(layer(jnp.zeros((5, 4))), np.tile([2.0, 0.0, 4.0], (5, 1)))
    # Of a distribution of two atoms the streams add up atom by atom.
    layer = with_streams(layer, Table(2.0, 5.0), Table(1.0, 0.0, -1.0, 6.0, 3.0, 0.0))
    np.testing.assert_allclose(layer(jnp.zeros(4)), [2.0, 3.0, 0.0, 9.0, 4.0, 3.0])


def test_all_actions_in_one_pass_equal_each_by_itself():
    agent = small("dqn+c51", 8, {"per_action": {"dueling": True}, "c51": {"atoms": 5}})
    critic = agent.init(jax.random.key(0)).critics[0]
    assert isinstance(critic, ActionCritic)
    obs = jax.random.normal(jax.random.key(1), (7, S))
    together = critic.outputs(obs[:, None], agent.task.action_rows, [])
    alone = [critic.outputs(obs, jnp.full((7, 1), a), []) for a in (0.0, 1.0, 2.0)]
    assert together.shape == (7, 3, 5)
    np.testing.assert_allclose(together, np.stack(alone, 1), rtol=1e-5, atol=1e-6)
    body = critic.body(obs).reshape(7, 3, 5)
    np.testing.assert_allclose(together, body, rtol=1e-5, atol=1e-6)


def test_only_the_output_of_the_taken_action_gets_a_gradient():
    agent = small("dqn", 8)
    critic = agent.init(jax.random.key(0)).critics[0]
    obs = jnp.ones((4, S))
    gradient = jax.grad(lambda c: c(obs, jnp.full((4, 1), 1.0), []).sum())(critic)
    assert (np.abs(gradient.body.out.bias) > 0).tolist() == [False, True, False]


def test_exploration_is_epsilon_greedy_with_a_linear_decay():
    agent = small("dqn", 8, warmup=100, epsilon_decay=200.0, epsilon_end=0.1)
    state, obs = agent.init(jax.random.key(0)), jnp.zeros((20_000, S))
    first = jnp.zeros(len(obs), bool)
    act = jax.jit(partial(agent.act, mode="explore"))
    greedy = agent.act(agent.acting(state), None, obs[:1], first[:1], 0, jax.random.key(1))[0].item()
    for step, epsilon in ((50, 1.0), (100, 1.0), (200, 0.55), (300, 0.1), (900, 0.1)):
        action = act(agent.acting(state), None, obs, first, step, jax.random.key(1))[0]
        assert set(np.unique(action)) == {0.0, 1.0, 2.0}
        np.testing.assert_allclose((action != greedy).mean(), epsilon * 2 / 3, atol=0.015)


# --- what fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("dqn+pave", "pave needs ∂Q/∂a, and here an action is an index"),
        ("dqn+sale", "sale embeds actions as vectors, and here an action is an index"),
        ("dqn+savo", "savo chooses among vectors"),
        ("dqn+savgo", "savgo improves one policy and argmax does not act by one"),
        ("dqn+caps", "argmax has no actor that caps could act on"),
        ("dqn+ou", "argmax acts by the index of an action, to which no noise can be added"),
        ("dqn+periodic", "dqn already has it"),
        ("td3+polyak", "td3 already has it"),
        ("td7+polyak", "periodic and polyak both fill one place"),
    ],
)
def test_what_needs_vectors_is_refused(recipe, why):
    with pytest.raises(UsageError) as error:
        agents.build(recipe)
    assert why in str(error.value)


def test_tasks_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="actions are continuous here; take td3 or sac"):
        agents.build("dqn").on(Spec(3, 2))
    with pytest.raises(UsageError, match="simba makes layers for vectors"):
        agents.build("dqn+simba").on(Spec(64 * 64, 1, choices=2, frame=(64, 64)))
    with pytest.raises(UsageError, match="images of at least 36 × 36"):
        agents.build("dqn").on(Spec(64, 1, choices=2, frame=(8, 8)))


def test_a_landscape_is_the_row_of_all_actions():
    agent = small("dqn", 8)
    state, obs = agent.init(jax.random.key(0)), np.ones((2, S), np.float32)
    survey = Surveyor(agent)(agent.acting(state), obs)
    q = values_of(agent, state, obs)
    np.testing.assert_allclose(survey.best_q, q.max(1), rtol=1e-5)
    np.testing.assert_array_equal(survey.best[:, 0], q.argmax(1))
    np.testing.assert_array_equal(survey.action, survey.best)
    np.testing.assert_allclose(survey.span, np.ptp(q, axis=1), rtol=1e-4)
    assert np.isnan(survey.optima).all(), "indices have no neighbours"


# --- runs --------------------------------------------------------------------------------------------

SMALL = ["--base.warmup", "50", "--base.batch-size", "16", "--base.critic-hidden", "16", "16"]
SMALL += ["--base.sync-every", "10", "--eval-every", "100", "--eval-episodes", "2"]


def run(*argv) -> int:
    return main([str(word) for word in argv])


def test_every_tool_reads_a_run(tmp_path, capsys):
    group = tmp_path / "group"
    assert run("train", "dqn", "--env", "CartPole-v1", "--steps", 300, *SMALL, "--out", group) == 0
    folder, picture = group / "0", tmp_path / "q.png"
    assert run("evaluate", folder, "--episodes", 2, "--bias") == 0
    assert "mean / mean |return|" in capsys.readouterr().out
    assert run("landscape", folder, "--states", 5, "--episodes", 1, "--png", picture) == 0
    found = json.loads((folder / "inspect" / "landscape.json").read_text())
    first = found["landscapes"][0]
    assert (first["kind"], first["grid"], len(first["q"])) == ("table", [[0.0, 1.0]], 2)
    assert first["survey"]["action_q"] == max(first["q"])
    assert found["summary"]["rank"]["max"] == 1.0
    assert run("landscape", folder, "--plane", "0") == 2
    slices = QSlice(folder, 0)
    assert "index of the action" in slices.chart(80, 12).plain
    _, ((_, x, q, _), (_, (at,), (value,), _)) = slices.drawn
    assert (x, value) == ([0, 1], max(q))
    assert q[at] == value
    pytest.importorskip("onnxruntime")
    assert run("export", folder, "--onnx", tmp_path / "policy.onnx", "--episodes", 1) == 0
    assert "largest difference 0.0e+00" in capsys.readouterr().out
    assert run("smoothness", folder) == 2
    assert "choices among 2, which have no distance" in capsys.readouterr().err


def test_derivatives_by_an_index_are_refused_before_training(tmp_path, capsys):
    probed = ["--env", "CartPole-v1", "--steps", 300, *SMALL, "--probe", "geometry", "--out", tmp_path / "a"]
    assert run("train", "dqn", *probed) == 2
    out, err = capsys.readouterr()
    assert "the actions of dqn are choices among 2, which have no distance" in err
    assert err.count("\n") == 1
    assert "step" not in out


class Pictures(gym.Env):
    """Random images of bytes."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action), False, self.np_random.random() < 0.1, {}


@pytest.mark.slow
def test_images_go_through_convolutions():
    base = {"warmup": 10, "batch_size": 4, "critic_hidden": (16,), "replay_capacity": 64}
    base |= {"updates_per_step": 1.0}
    settings = {"base": base | {"replay_observations": "bfloat16"}}
    plan = Plan("dqn", "Pictures", 30, settings=settings, eval_every=0)
    trainer = make_session(plan, agents.build("dqn", settings), make(Pictures, index_actions=True))
    start = trainer.learner.state.critics[0]
    first = jax.tree.map(np.array, start)
    list(trainer.events(30))
    after = trainer.learner.state.critics[0]
    assert trainer.updates == 20
    assert len(after.body.torso.kernels) == 3
    assert not any(
        same(a, b) for a, b in zip(after.body.torso.kernels, first.body.torso.kernels, strict=True)
    )
