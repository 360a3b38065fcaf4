"""JAX-native environments: the protocol and its face, CartPole against Gymnasium's, Ideal Cliff Walking."""

import dataclasses
import io
import json
import re
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from rows import slow

from qscape.envs import make
from qscape.envs.cartpole import Cart, CartPole
from qscape.envs.cliff import CLIFF, NEXT, START, IdealCliffWalking, IdealCliffWalkingEnv, Walker
from qscape.envs.conformance import check
from qscape.envs.mineworld import MineWorld, MineWorldEnv
from qscape.envs.native import find_jax_env, play, step_autoreset
from qscape.envs.recsim import RecSim, RecSimEnv
from qscape.envs.snapshot import Snapshot, restore, take
from qscape.errors import UsageError

KEY = jax.random.key(3)
NATIVE = ["jax/CartPole-v1", "cliff/IdealCliffWalking-v0", "mineworld/MineWorld-v0", "recsim/10k-v0"]


@pytest.mark.parametrize("env_id", [*NATIVE, "recsim/DataSynthetic-v0"])
@pytest.mark.filterwarnings("ignore:.*(minimum|maximum) value is")  # CartPole's speeds, as in Gymnasium
def test_faces_are_proper_environments(env_id):
    env = gym.make(env_id)
    assert env.spec.max_episode_steps == env.unwrapped.native.time_limit
    check_env(env.unwrapped)


def test_cartpole_makes_the_transitions_of_gymnasium():
    """From states of random and of balanced episodes, and from states about to fall: the same next ones."""
    theirs, ours = gym.make("CartPole-v1").unwrapped, CartPole()
    random = np.random.default_rng(0)
    states = random.uniform([-2.5, -3, -0.22, -3], [2.5, 3, 0.22, 3], (4000, 4)).astype(np.float32)
    actions = random.integers(0, 2, 4000)
    steps = jnp.zeros(4000, jnp.int32)
    after, outcome = jax.jit(jax.vmap(ours.step, (0, 0, None)))(Cart(states, steps), actions, KEY)
    fell = 0
    for i in range(4000):
        theirs.reset()
        theirs.state = states[i].astype(np.float64)
        observation, reward, terminated, *_ = theirs.step(actions[i])
        np.testing.assert_allclose(after.physics[i], observation, rtol=0, atol=1e-6)
        assert (outcome.reward[i], outcome.terminated[i]) == (reward, terminated)
        fell += terminated
    assert fell > 300
    np.testing.assert_array_equal(outcome.observation, after.physics)


def test_whole_cartpole_episodes_are_those_of_gymnasium():
    """The same start and random actions: the same numbers and length. Balanced: the limit alone ends it."""
    theirs, ours = gym.make("CartPole-v1"), gym.make("jax/CartPole-v1")
    lengths = set()
    for seed in range(12):
        seen, _ = ours.reset(seed=seed)
        assert (np.abs(seen) <= 0.05).all()
        theirs.reset(seed=seed)
        theirs.unwrapped.state = seen.astype(np.float64)
        random, over, length = np.random.default_rng(seed), (False, False), 0
        while not any(over):
            action = random.integers(2)
            (observation, *rest), answer = theirs.step(action), ours.step(action)
            np.testing.assert_allclose(observation, answer[0], atol=1e-4)
            assert rest[:3] == list(answer[1:4])
            over, length = answer[2:4], length + 1
        lengths.add(length)
    assert len(lengths) > 5
    for env in (theirs, ours):
        (seen, _), ends = env.reset(seed=0), []
        for _ in range(500):
            seen, _, *over, _ = env.step(int(seen @ [0.02, 0.05, 1, 0.5] > 0))
            ends.append(over)
        assert ends == [[False, False]] * 499 + [[False, True]]


def test_cliff_leads_where_the_map_says():
    """The table of the specification, cell by cell: X the cliff, E an exit."""
    lines = """X 1 4 X  E8 2 5 0  E9 3 6 1  X X 7 2  0 5 X X  1 6 E10 4  2 7 E11 5  3 X X 6"""
    wanted = np.array(lines.split()).reshape(8, 4)
    env = IdealCliffWalking()
    cells, actions = (a.ravel() for a in np.mgrid[:8, :4])
    state, outcome = jax.jit(jax.vmap(env.step, (0, 0, None)))(
        Walker(jnp.asarray(cells), jnp.zeros(32, int)), actions, KEY
    )
    for cell, action, to, reward, ended, shown in zip(
        cells, actions, state.cell, outcome.reward, outcome.terminated, outcome.observation, strict=True
    ):
        name = wanted[cell, action]
        assert ended == (not name.isdigit())
        assert reward == (-10 if name == "X" else -1)
        assert to == (12 if name == "X" else int(name.strip("E")))
        np.testing.assert_array_equal(shown, np.eye(8)[to] if to < 8 else np.zeros(8))


def test_what_the_cliff_does_in_its_other_modes():
    cells, actions = np.nonzero(NEXT == 12)
    for mode, reward in (("restart", -100), ("wall", -1)):
        env = IdealCliffWalking(mode)
        walker = Walker(jnp.asarray(cells), jnp.zeros(len(cells), int))
        state, outcome = jax.jit(jax.vmap(env.step))(walker, actions, jax.random.split(KEY, len(cells)))
        np.testing.assert_array_equal(outcome.reward, reward)
        assert not outcome.terminated.any()
        if mode == "wall":
            np.testing.assert_array_equal(state.cell, cells)
        else:
            assert set(np.asarray(state.cell).tolist()) <= {0, 3, 4, 7}
            assert len(set(np.asarray(state.cell).tolist())) > 1
    with pytest.raises(UsageError, match="terminate, restart, wall, not 'fall'"):
        gym.make("cliff/IdealCliffWalking-v0", cliff_mode="fall")


def test_the_optimum_of_the_cliff():
    q = IdealCliffWalking().optimal_q(0.95)
    np.testing.assert_allclose(q[0], [-10, -1.95, -2.8525, -10])
    np.testing.assert_allclose(q[1], [-1, -1.95, -1.95, -2.8525])
    grid = q.reshape(2, 4, 4)
    np.testing.assert_allclose(grid, grid[:, ::-1][:, :, [0, 3, 2, 1]])  # left and right
    np.testing.assert_allclose(grid, grid[::-1][:, :, [2, 1, 0, 3]])  # up and down
    best = [1, 0, 0, 3, 1, 2, 2, 3]
    for mode in ("terminate", "restart", "wall"):
        q = np.sort(IdealCliffWalking(mode).optimal_q(0.95))
        np.testing.assert_array_equal(IdealCliffWalking(mode).optimal_q(0.95).argmax(1), best)
        assert (q[:, -1] - q[:, -2] > 0.5).all()


@pytest.mark.parametrize("mode", ["terminate", "restart", "wall"])
def test_the_values_of_a_policy_are_the_returns_that_follow(mode):
    """Q^π of the optimal policy is Q*, and that of a random one the mean of returns walked on the table."""
    env, rng = IdealCliffWalking(mode), np.random.default_rng(0)
    q = env.optimal_q(0.5)
    np.testing.assert_allclose(env.policy_q(jnp.eye(4)[q.argmax(1)], 0.5), q, rtol=1e-5)
    policy = rng.dirichlet(np.ones(4), 8)
    found = np.asarray(env.policy_q(jnp.asarray(policy), 0.5))
    n, cell, action = 4_000, np.full(4_000, 1), np.full(4_000, 3)
    returned, factor, running = np.zeros(n), 1.0, np.ones(n, bool)
    for _ in range(25):
        after = NEXT[cell, action]
        fell = after == CLIFF
        cost = {"terminate": -10.0, "restart": -100.0, "wall": -1.0}[mode]
        returned += running * factor * np.where(fell, cost, -1.0)
        running &= ~(((after >= 8) & ~fell) | (fell & (mode == "terminate")))
        back = rng.choice(START, n) if mode == "restart" else cell
        cell = np.where(running, np.where(fell, back, after), 0)
        action = (rng.random((n, 1)) > policy[cell].cumsum(1)).sum(1).clip(max=3)
        factor *= 0.5
    assert abs(returned.mean() - found[1, 3]) < 5 * returned.std() / n**0.5


def test_episodes_on_the_cliff():
    """Under the best policy every cell is visited equally often; a random one returns -9.6 in 2.4 steps."""
    env = dataclasses.replace(IdealCliffWalking(), time_limit=40)
    best = jnp.asarray(IdealCliffWalking().optimal_q())
    played = play(env, lambda state, seen, key: jnp.argmax(seen @ best), KEY, 1000)
    np.testing.assert_array_equal(played.ret, -2)
    np.testing.assert_array_equal(played.length, 2)
    random = play(env, lambda state, seen, key: jax.random.randint(key, (), 0, 4), KEY, 100_000)
    assert abs(random.ret.mean() + 9.6) < 0.05
    assert abs(random.length.mean() - 2.4) < 0.02

    def step(carry, key):
        state, seen = carry
        state, after, _ = step_autoreset(env, state, jnp.argmax(seen @ best), key)
        return (state, after), seen

    visits = jax.lax.scan(step, env.reset(KEY), jax.random.split(KEY, 8000))[1].mean(0)
    np.testing.assert_allclose(visits, 1 / 8, atol=0.015)


def test_autoreset_begins_anew_exactly_where_an_episode_ended():
    """A vmapped scan against one environment stepped by hand."""
    env = dataclasses.replace(IdealCliffWalking(), time_limit=3)
    keys = jax.random.split(KEY, (60, 5))
    actions = jax.random.randint(KEY, (60, 5), 0, 4)

    def step(state, given):
        state, after, outcome = jax.vmap(step_autoreset, (None, 0, 0, 0))(env, state, *given)
        return state, (after, outcome)

    states, _ = jax.vmap(env.reset)(keys[0])
    _, (shown, outcomes) = jax.jit(lambda s: jax.lax.scan(step, s, (actions, keys)))(states)
    one_step, one_reset = jax.jit(env.step), jax.jit(env.reset)
    for i in range(5):
        state, _ = one_reset(keys[0, i])
        for t in range(60):
            key_step, key_reset = jax.random.split(keys[t, i])
            state, outcome = one_step(state, actions[t, i], key_step)
            for together, alone in zip(outcomes, outcome, strict=True):
                np.testing.assert_array_equal(together[t, i], alone)
            after = outcome.observation
            if outcome.terminated | outcome.truncated:
                state, after = one_reset(key_reset)
            np.testing.assert_array_equal(shown[t, i], after)
    assert outcomes.truncated.any()
    assert outcomes.terminated.any()


@pytest.mark.slow
def test_played_episodes_are_those_of_a_loop():
    env = dataclasses.replace(IdealCliffWalking("wall"), time_limit=6)
    policy = lambda state, seen, key: jax.random.randint(key, (), 0, 4)  # noqa: E731
    played = play(env, policy, KEY, 20)
    for row, key in enumerate(jax.random.split(KEY, 20)):
        state, seen = env.reset(jax.random.fold_in(key, 0))
        ret, length, ended = 0.0, 0, False
        while not ended:
            length += 1
            key_act, key_step = jax.random.split(jax.random.fold_in(key, length))
            state, outcome = env.step(state, policy(state, seen, key_act), key_step)
            seen, ret = outcome.observation, ret + float(outcome.reward)
            ended = bool(outcome.terminated | outcome.truncated)
        assert (played.ret[row], played.length[row], played.success[row]) == (ret, length, False)
    assert len(set(np.asarray(played.length).tolist())) > 2


class Tabled(IdealCliffWalkingEnv):
    """The cliff with a row per action, as the edge of off-policy agents needs it."""

    action_table = np.eye(4)


@pytest.mark.parametrize("envs", [1, 2])
@pytest.mark.parametrize(
    "made", [MineWorldEnv, RecSimEnv, lambda: Tabled("restart")], ids=["mine", "rec", "cliff"]
)
def test_a_restored_face_goes_on_to_the_bit(made, envs):
    def limited():
        return gym.wrappers.TimeLimit(made(), 7)

    adapters = [make(limited, envs, seed=seed) for seed in (1, 99)]
    actions = np.random.default_rng(0).uniform(-1, 1, (40, envs, adapters[0].spec.action_size))
    adapters[0].reset()
    for action in actions[:17]:
        adapters[0].step(action)
    snapshot = take(adapters[0])
    assert snapshot.meta["exact"], snapshot.meta["why"]
    file = io.BytesIO()
    np.savez(file, **snapshot.arrays)
    file.seek(0)
    loaded = Snapshot(dict(np.load(file, allow_pickle=False)), json.loads(json.dumps(snapshot.meta)))
    assert restore(adapters[1], loaded) == ""
    assert sum(array.nbytes for array in snapshot.arrays.values()) < 20_000, "tables have no place in it"
    for action in actions[17:]:
        one, other = (adapter.step(action) for adapter in adapters)
        for a, b in zip(jax.tree.leaves(one[:-1]), jax.tree.leaves(other[:-1]), strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.finished == other.finished


def test_seeds_decide_everything():
    def rewards(seed):
        env = gym.make("cliff/IdealCliffWalking-v0", cliff_mode="restart")
        cells = [env.reset(seed=seed)[0].argmax()]
        return cells + [env.step(a % 4)[0].argmax() for a in range(60)]

    assert rewards(4) == rewards(4) != rewards(5)
    env = gym.make("cliff/IdealCliffWalking-v0", cliff_mode="restart")
    env.reset(seed=0)
    fallen = [env.step(0 if env.unwrapped.state.cell in (0, 3) else 3)[0].argmax() for _ in range(40)]
    assert len(set(fallen)) > 2, "every step of an episode has randomness of its own"
    env = gym.make("cliff/IdealCliffWalking-v0")
    assert len({int(env.reset(seed=None if i else 0)[0].argmax()) for i in range(30)}) == 4


@pytest.mark.parametrize(
    "made", [CartPole(), IdealCliffWalking("wall"), slow(MineWorld()), slow(RecSim.of(50))]
)
def test_the_limit_truncates_and_does_not_terminate(made):
    state, _ = made.reset(KEY)
    step = jax.jit(lambda steps: made.step(state._replace(steps=steps), 1, KEY)[1])
    ends = [step(made.time_limit - back) for back in (2, 1)]
    assert [(bool(end.terminated), bool(end.truncated)) for end in ends] == [(False, False), (False, True)]


def test_the_pure_functions_behind_an_environment():
    assert find_jax_env(gym.make("Pendulum-v1")) is None
    assert find_jax_env(make("recsim/10k-v0").env).time_limit == 20
    shorter = find_jax_env(gym.make("cliff/IdealCliffWalking-v0", cliff_mode="wall", max_episode_steps=9))
    assert (shorter.cliff_mode, shorter.time_limit) == ("wall", 9)
    assert jax.tree.leaves(MineWorld()) != [] == jax.tree.leaves(CartPole())
    assert isinstance(find_jax_env(RecSimEnv(100)), RecSim)


@pytest.mark.parametrize("env_id", NATIVE[:3])
def test_pictures_show_what_changes(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render(), *((env.step(action), env.render())[1] for action in (1, 0))]
    assert all(f.dtype == np.uint8 and f.shape == frames[0].shape and f.ndim == 3 for f in frames)
    assert len({f.tobytes() for f in frames}) > 1
    with pytest.raises(UsageError, match="has no render_mode 'human': it has rgb_array"):
        env.unwrapped.__class__(render_mode="human")


@pytest.mark.slow
def test_the_environments_of_the_documentation():
    """Its own environment in JAX is a proper one, and the example of the reference runs."""
    docs = Path(__file__).parent.parent / "docs"
    told = [
        next(
            code
            for code in re.findall(r"```python\n(.*?)```", (docs / page).read_text(), re.S)
            if "native" in code
        )
        for page in ("how-to/add-an-environment.md", "reference/environments.md")
    ]
    names = {"__name__": "pointworld"}
    exec(told[0], names)
    check_env(names["LineEnv"]())
    assert {result.verdict for result in check("Line-v0", steps=1600)} == {"PASS"}
    played = play(names["Line"](), lambda state, seen, key: jnp.int32(1), KEY, 4)
    assert (played.length.tolist(), played.success.tolist()) == ([5] * 4, [True] * 4)
    exec(told[1], names)
    assert abs(names["played"].ret.mean() - 5.36) < 0.2
    env = gym.make("Line-v0", max_episode_steps=3)
    assert find_jax_env(env).time_limit == 3
    del gym.registry["Line-v0"]  # a name other tests may want
