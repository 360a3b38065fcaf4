"""Off-policy training inside one program: equal to the ordinary loop, and to itself under vmap."""

import dataclasses
import re
from functools import lru_cache, partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jaxtyping import Array
from rows import slow_except
from test_contract import QUICK

from qscape import agents
from qscape.envs.adapter import Episode, Step
from qscape.envs.native import JaxEnv, Outcome
from qscape.envs.recsim import RecSim
from qscape.envs.spaces import make_action_map
from qscape.envs.world import reset_world, step_world
from qscape.errors import UsageError
from qscape.run import scan, scan_rollouts
from qscape.run.plan import Plan
from qscape.run.session import Session
from qscape.run.training import make_session
from qscape.types import Transition, stream


class Place(NamedTuple):
    x: Array
    steps: Array


class Line(JaxEnv):
    """Move a point by an action in [0.5, 2]; beyond 4 the episode is terminated, after 9 steps truncated."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=9)

    @property
    def observation_space(self):
        return spaces.Box(-9.0, 9.0, (2,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(0.5, 2.0, (1,), np.float32)

    def reset(self, key):
        state = Place(jax.random.uniform(key, (2,)), jnp.int32(0))
        return state, state.x

    def step(self, state, action, key):
        x = state.x + 0.3 * jnp.array([action[0] + 0.1 * jax.random.normal(key), -action[0]])
        state = Place(x, state.steps + 1)
        return state, Outcome(x, -jnp.abs(action[0] - 1.0), x[0] > 4, state.steps >= 9, jnp.bool_(False))


SMALL = {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "batch_size": 16, "replay_capacity": 20_000}
RATE = {"actor_learning_rate": 0.003, "critic_learning_rate": 0.003}
CASES = {
    # A table; noise with a memory; columns; neither warm-up nor updates are whole vector steps.
    "items": (
        "td3+savo",
        RecSim.of(50),
        4,
        20 + 50 * 4,
        {"warmup": 18, "updates_per_step": 0.32, "exploration_noise": 0.8},
    ),
    # Real ends; priorities; successors from the following row; observations normalised; two updates a step.
    "line": ("td3+lap+normalise", Line(), 2, 10 + 30 * 2, {"warmup": 10, "next_observation": "derived"}),
    # Noise of its own for each environment; numbers that count steps of all environments.
    "fast": (
        "td3+fast+c51+normalise",
        Line(),
        4,
        40 * 4,
        {"updates_per_step": 2.0, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4},
    ),
}
PIECE = {"items": 11, "line": 7, "fast": 8}
KEYS = jax.vmap(jax.random.key)(jnp.arange(2))


class Case(NamedTuple):
    agent: agents.Agent
    env: JaxEnv
    envs: int
    steps: int


@lru_cache
def case(name: str) -> Case:
    recipe, env, envs, steps, base = CASES[name]
    settings = {"base": {**SMALL, **RATE, "epsilon_decay": 100.0, **base}}
    settings |= {"savo": {"list_length": 2}} if "savo" in recipe else {}
    return Case(agents.build(recipe, settings).on(scan.spec_of(env)), env, envs, steps)


@lru_cache
def alone(name: str):
    """Both seeds, each by itself, in one compiled program."""
    agent, env, envs, steps = case(name)
    program = quick(jax.jit(partial(scan.train, agent, envs=envs, steps=steps)), env, KEYS[0])
    return program, [program(env, key) for key in KEYS]


@pytest.mark.slow
def test_a_share_is_one_of_the_run_that_is_made():
    """ε falls over a quarter of these 40 steps, given as a share or in steps."""
    runs = []
    for decay in (0.25, 10.0, 0.5):
        base = {**SMALL, "warmup": 5, "exploration": "ou", "epsilon_end": 0.0, "epsilon_decay": decay}
        agent = agents.build("td3", {"base": base}).on(scan.spec_of(Line()))
        program = jax.jit(partial(scan.train, agent, envs=1, steps=40))
        runs.append(quick(program, Line(), KEYS[0])(Line(), KEYS[0])[0].carry.storage)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def quick(program, *args, **static):
    """Compiled for these arguments, in a third of the time."""
    return program.lower(*args, **static).compile(compiler_options=QUICK)


class Quick:
    """A jitted function that is compiled so at its first call."""

    def __init__(self, program):
        self.program, self.compiled = program, None

    def __call__(self, *args):
        if self.compiled is None:
            self.compiled = quick(self.program, *args)
        return self.compiled(*args)


class Beside:
    """The same worlds behind the face of an edge, for the ordinary loop; it maps actions as edges do."""

    env_id = "beside"
    jax_env = time_limit = called = None
    interrupted = unkept = ""
    resetting, has_reset_rows = None, False  # a world resets in the step that ends an episode

    def __init__(self, env: JaxEnv, envs: int, key: Array):
        self.env, self.envs, self.key, self.made = env, envs, key, 0
        self.spec = scan.spec_of(env)
        self.in_units = make_action_map(env.action_space, envs, env, "beside")[2]
        self.step_world = jax.jit(step_world)
        self.world = jax.jit(reset_world, static_argnums=1)(env, envs, stream(key, "world.begin"))
        self.ended: list[float] = []

    def reset(self):
        return self.observation

    def take_warnings(self):
        return []

    @property
    def observation(self):
        return np.asarray(self.world.observation)

    def step(self, action):
        chosen, before = jnp.asarray(self.in_units(action)), self.observation
        self.world, outcome, ended = self.step_world(self.env, self.world, chosen, self.made, self.key)
        self.made += self.envs
        after, reward, terminated, truncated, _ = map(np.asarray, outcome)
        done = [Episode(int(e), 0, float(ended.ret[e]), None) for e in np.flatnonzero(ended.done)]
        self.ended += [episode.ret for episode in done]
        valid = np.ones(self.envs, bool)
        new = Transition(before, action, reward, terminated, truncated, after, valid)
        return Step(new, self.observation, done)


@lru_cache
def by_hand(name: str) -> Session:
    """The ordinary loop: one call after the other, on the host."""
    agent, env, envs, steps = case(name)
    base = dataclasses.replace(agent.base, **agent.base.scale_to_envs(envs))
    agent = dataclasses.replace(agent, base=base)
    plan = Plan(agent.recipe, "beside", steps, envs=envs, eval_every=0)
    trainer = make_session(plan, agent, Beside(env, envs, KEYS[0]))  # type: ignore[arg-type]
    for name in ("insert", "step", "learn"):
        program = getattr(trainer.learner.programs, name)
        program.compiled = Quick(program.compiled)
    for _ in trainer.events(steps):
        pass
    return trainer


def close(x, y, **tolerance):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("name", slow_except(["line"], CASES))
def test_a_program_equals_the_ordinary_loop(name):
    """Not to the bit: XLA fuses the updates in a loop in another way."""
    trainer, (run, history) = by_hand(name), alone(name)[1][0]
    assert (trainer.env_steps, trainer.updates) == (int(run.state.env_steps), int(run.state.updates))
    tolerance = {"rtol": 2e-3, "atol": 2e-4}
    close(trainer.learner.storage, run.carry.storage, **tolerance)
    close(trainer.learner.carry.replay_state, run.carry.replay_state, **tolerance)
    close(
        (trainer.learner.state.actor, trainer.learner.state.critics_target),
        (run.state.actor, run.state.critics_target),
        **tolerance,
    )
    close(run.carry.metrics, trainer.learner.carry.metrics, **tolerance)
    ended = history.episodes > 0
    total = float((history.returned * history.episodes)[ended].sum())
    assert int(history.episodes.sum()) == len(trainer.adapter.ended) > 5
    assert abs(total - sum(trainer.adapter.ended)) < 1e-2


@pytest.mark.slow
def test_updates_follow_steps_as_in_the_ordinary_loop():
    """Warm-up is 18 steps, thus 5 steps of 4 environments; then 1.28 updates are due after each."""
    _, history = alone("items")[1][0]
    after = np.arange(1, 51) * 4
    assert history.env_steps.tolist() == [4, 8, 12, 16, 20, *(20 + after)]
    assert history.updates.tolist() == [0] * 5 + [int(n * 0.32 + 1e-9) for n in after]
    assert np.isnan(history.metrics["critic_loss"][:5]).all()
    assert np.isfinite(history.metrics["actor_loss"][-40:]).all(), "kept between the actor's steps"
    assert history.episodes.tolist() == [4 if n % 20 == 0 else 0 for n in range(1, 56)]


@lru_cache
def together(name: str):
    """Both seeds side by side, in pieces, as one does who looks at a run on its way."""
    agent, env, envs, steps = case(name)
    due = scan.update_counts(agent, envs=envs, steps=steps)
    due = np.split(due, len(due) // PIECE[name])
    begun = jax.jit(jax.vmap(partial(scan.start, agent, env, envs=envs), out_axes=scan.RUN_AXES))
    axes = (None, scan.RUN_AXES, 0, None), (scan.RUN_AXES, 0)
    go = jax.jit(jax.vmap(partial(scan.run_steps, agent), *axes), donate_argnums=1)
    run = quick(begun, KEYS)(KEYS)
    program, told = quick(go, env, run, KEYS, due[0]), []
    for part in due:
        run, history = program(env, run, KEYS, part)
        told.append(history)
    return program, run, jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *told)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_seeds_in_one_program_equal_two_runs(name):
    (_, apart), (_, run, history) = alone(name), together(name)
    assert run.state.updates.shape == () == run.state.env_steps.shape
    for n, one in enumerate(apart):
        mine = jax.tree.map(lambda leaf, n=n: leaf[n] if leaf.ndim else leaf, (run, history))
        # Where a gradient is but rounding, Adam's first steps, of 3e-4, may have either sign: in few places.
        close(mine, one, rtol=2e-3, atol=7e-4)
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(one), strict=True)
        near = [np.isclose(*pair, rtol=2e-3, atol=2e-4, equal_nan=True).ravel() for pair in pairs]
        assert np.mean(~np.concatenate(near)) < 1e-3
    assert np.abs(apart[0][0].carry.storage - apart[1][0].carry.storage).max() > 0.1, (
        "other seeds, other runs"
    )
    # What is computed now and then in one run is so in two: no `cond` became a `select`.
    agent, env, *_ = case(name)
    due, one_run = jnp.zeros(1, jnp.int32), apart[0][0]
    further = partial(scan.run_steps, agent)
    many = jax.vmap(further, (None, scan.RUN_AXES, 0, None), (scan.RUN_AXES, 0))
    traced = jax.make_jaxpr(further)(env, one_run, KEYS[0], due), jax.make_jaxpr(many)(env, run, KEYS, due)
    conditionals = [str(jaxpr).count("cond[") for jaxpr in traced]
    assert conditionals[0] == conditionals[1] > 0


@pytest.mark.parametrize("name", slow_except(["line"], CASES))
def test_no_step_copies_the_replay(name):
    for program in (alone(name)[0], together(name)[0]):
        body = re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", inside_loops(program.as_text()))
        sizes = [int(np.prod([int(d) for d in shape.split(",")])) for shape in body]
        assert max(sizes, default=0) < SMALL["replay_capacity"]


def inside_loops(hlo: str) -> str:
    """The computations that are not the entry: what runs in every step."""
    return "\n".join(part for part in re.split(r"\n(?=\S)", hlo) if not part.startswith("ENTRY"))


def test_pieces_count_steps_as_a_whole_run_does():
    """`td3+fast` counts steps of all environments at once, by which `resets` counts updates."""
    settings = {"base": SMALL | {"warmup": 2, "exploration": "gaussian"}, "resets": {"every": 8}}
    agent, env = agents.build("td3+fast+resets", settings).on(scan.spec_of(Line())), Line()
    counted = dataclasses.replace(agent, base=dataclasses.replace(agent.base, **agent.base.scale_to_envs(4)))
    assert counted.base != agent.base
    run = jax.eval_shape(partial(scan.start, agent, env, envs=4), KEYS[0])
    due = jnp.zeros(1, jnp.int32)
    one, other = (
        jax.make_jaxpr(partial(scan.run_steps, made))(env, run, KEYS[0], due) for made in (agent, counted)
    )
    assert str(one) == str(other)


class Whole(Line):
    """Its actions are whole numbers: of a set that begins at 10, or of a box."""

    boxed: bool = eqx.field(static=True, default=False)

    @property
    def action_space(self):
        return spaces.Box(-1, 4, (2,), np.int32) if self.boxed else spaces.Discrete(5, start=10)

    @property
    def action_table(self):
        return None if self.boxed else np.arange(5.0)[:, None]


@pytest.mark.parametrize("boxed", [False, True])
def test_whole_numbers_are_those_of_the_ordinary_loop(boxed):
    env = Whole(boxed=boxed)
    agent = agents.build("td3").on(scan.spec_of(env))
    between = np.float32(np.linspace(-1, 1, 12))[:, None].repeat(2, 1)
    said = between if boxed else agent.task.table
    wanted = make_action_map(env.action_space, len(said), env, "whole")[2](said)
    found = scan.to_env_action(agent, env, jnp.asarray(said))
    np.testing.assert_array_equal(found, wanted)
    assert jnp.issubdtype(found.dtype, jnp.integer)
    assert [found.min(), found.max()] == ([-1, 4] if boxed else [10, 14])


def test_actions_by_index_are_those_of_the_ordinary_loop():
    env = Whole(boxed=False)
    agent = agents.build("ppo").on(scan.spec_of(env, index_actions=True))
    assert (agent.task.choices, agent.task.action_size, agent.task.table) == (5, 1, None)
    found = scan.to_env_action(agent, env, jnp.array([[0.0], [4.0]]))
    np.testing.assert_array_equal(found, [10, 14])
    assert jnp.issubdtype(found.dtype, jnp.integer)


def test_on_policy_rollouts_step_in_the_units_of_a_box():
    """The reward of a `Line` tells which action it was given."""
    env, envs, key = Line(), 3, KEYS[0]
    agent = agents.build("ppo", {"base": {"actor_hidden": (16,), "critic_hidden": (16,), "rollout": 96}})
    agent = agent.on(scan.spec_of(env, index_actions=True))
    begun = scan_rollouts.start(agent, env, key, envs=envs)
    acting = agent.acting(begun.state)
    rollout = scan_rollouts.collect(agent, env, acting, begun.world, jnp.int32(0), key)[1]
    said = np.asarray(rollout.action).reshape(-1, 1)
    assert (np.abs(said) > 1).any(), "samples of a Gaussian policy leave the box"
    wanted = make_action_map(env.action_space, len(said), env, "line", True)[2](said)
    np.testing.assert_allclose(rollout.reward.ravel(), -np.abs(wanted[:, 0] - 1.0), atol=1e-6)


@pytest.mark.parametrize("search", ["exact", "clustered"])
def test_what_is_done_is_the_row_that_is_stored(search):
    """Also where one far row presses the others into a corner, and where a search looks at few of them."""

    class Shelf(Line):
        @property
        def action_space(self):
            return spaces.Discrete(2000)

        @property
        def action_table(self):
            rows = np.random.default_rng(0).normal(size=(2000, 3))
            rows[0] = 1e4
            return rows

    settings = {"base": {"nearest": search, "nearest_probes": 1}}
    agent = agents.build("td3", settings).on(scan.spec_of(Shelf()))
    index = scan.to_env_action(agent, Shelf(), jnp.asarray(agent.task.table))
    np.testing.assert_array_equal(index, np.arange(2000))


def test_actions_are_rows_of_the_table_and_vectors_of_the_box():
    agent, env, *_ = case("items")
    table = agent.task.table
    index = scan.to_env_action(agent, env, jnp.asarray(table))
    assert index.tolist() == list(range(50))
    line = scan.to_env_action(case("line").agent, Line(), jnp.array([[-1.0], [0.0], [1.0], [3.0]]))
    np.testing.assert_allclose(line[:, 0], [0.5, 1.25, 2.0, 2.0])


@pytest.mark.parametrize("recipe", ["td7", "td3+checkpoints"])
def test_bursts_between_episodes_are_refused(recipe):
    agent = agents.build(recipe).on(scan.spec_of(Line()))
    with pytest.raises(UsageError, match=r"learns when episodes end.*leave checkpoints out"):
        scan.update_counts(agent, envs=1, steps=100)
