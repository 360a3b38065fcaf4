"""qscape itself: its own loop as users run it, and scans of bare updates as the limit to compare with.

The only module of the benchmark that knows the library. A scan contender makes its environment steps alone,
with random actions, and then as many updates inside `lax.scan` on a resident replay: the time of its turn is
the sum of both, which no loop that waits for its own actions can beat.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peers import CROSSQ_CRITIC, ENV, EPISODE, WARM_UP, Contender, PPOTask
from qscape.agents import build as build_agent
from qscape.envs import EnvAdapter, make
from qscape.envs.cartpole import CartPole
from qscape.run import scan_rollouts
from qscape.run.adapters import open_adapters
from qscape.run.plan import Plan
from qscape.run.scan import spec_of
from qscape.run.training import make_session
from qscape.types import Transition

RECIPES = {  # one update per environment step, as all contenders make
    "td3": "td3",
    "sac": "sac",
    "td7": "td3+sale+lap+periodic+value_clip",  # without checkpoints
    "td7-checkpoints": "td7",
    "crossq": "crossq",
    "simba": "sac+simba",
    "flash_sac": "flash_sac",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "crossq": {"critic_hidden": CROSSQ_CRITIC},
    "flash_sac": {"schedule_updates": 1_000_000},
}
SCAN = 50  # updates in one compiled call
ROWS = 4096  # transitions in the replay of a scan: a power of two for the straight-line TD7
COLUMNS = ("observation", "action", "reward", "terminated", "next_observation")  # of the straight-line files
ENDLESS = 10**9  # steps of a run that never ends by itself
NATIVE = 8_192  # environment steps in one compiled call


class Updates(NamedTuple):
    """Updates for a scan: what one of them moves, what it only reads, and `move(moved, read) -> moved`."""

    moved: Any
    read: Any
    move: Callable[[Any, Any], Any]


def build(name: str) -> Contender:
    if "ppo" in name:
        return ppo(name)
    _, algorithm, *kind = name.split("-")
    if "scan" not in kind:
        return library("-".join([algorithm, *kind]))
    adapter = make(ENV)
    transitions = random_transitions(adapter)
    return scan(
        adapter,
        straight_line(algorithm, transitions) if kind == ["scan"] else assembled(algorithm, transitions),
    )


def library(algorithm: str) -> Contender:
    """The library's own loop without evaluations and without a run folder."""
    recipe, bursts = RECIPES[algorithm], algorithm.endswith("checkpoints")
    settings = {"base": {"warmup": WARM_UP, **SETTINGS.get(algorithm, {})}}
    args = {"max_episode_steps": EPISODE} if bursts else {}
    plan = Plan(recipe, ENV, steps=ENDLESS, settings=settings, env_args=args, eval_every=0)
    agent = build_agent(recipe, settings)
    trainer = make_session(plan, agent, *open_adapters(plan, agent))

    def advance(steps: int) -> None:
        for _ in trainer.events(trainer.env_steps + steps):
            pass
        jax.block_until_ready((trainer.learner.state, trainer.learner.carry.replay_state))

    def settle() -> None:
        """Runs of 10,000 steps and more soon go over to one program, where the agent allows it."""
        for _ in trainer.events(ENDLESS):  # says something at least once an episode
            if trainer.engine.driver is not None:
                trainer.stop()

    advance(WARM_UP)
    if bursts:  # the episode that ends the random phase has no updates
        advance(EPISODE)
        return Contender(advance, lambda: trainer.updates, EPISODE)
    return Contender(advance, lambda: trainer.updates, settle=settle)


def ppo(name: str) -> Contender:
    """The library's own loop, or the whole of it in one compiled program on the library's CartPole."""
    task = PPOTask.of(name)
    settings = {"base": {"rollout": task.rollout, "batch_size": task.batch, "passes": task.passes}}
    agent = build_agent("ppo", settings)
    if "scan" in name:
        return native_ppo(agent, task)
    plan = Plan("ppo", task.env, steps=ENDLESS, envs=task.envs, settings=settings, eval_every=0)
    trainer = make_session(plan, agent, *open_adapters(plan, agent))

    def advance(steps: int) -> None:
        for _ in trainer.events(trainer.env_steps + steps):
            pass
        jax.block_until_ready(trainer.learner.acting)

    return Contender(advance, lambda: trainer.updates, task.rollout, task.rollout)


def native_ppo(agent: Any, task: PPOTask) -> Contender:
    """Environments and updates in one compiled program of `NATIVE` steps."""
    env, updates = CartPole(), NATIVE // task.rollout
    agent = agent.on(spec_of(env, index_actions=True))
    start = partial(scan_rollouts.start, agent, env, envs=task.envs)
    further = partial(scan_rollouts.run_updates, agent, env, updates=updates, total=ENDLESS)
    key, made = jax.random.key(0), 0
    run, go = jax.jit(start)(key), jax.jit(further, donate_argnums=0)

    def advance(steps: int) -> None:
        nonlocal run, made
        for _ in range(steps // NATIVE):
            run, _ = go(run, key)
            made += updates
        jax.block_until_ready(run)

    return Contender(advance, lambda: made, NATIVE, task.rollout)


def scan(adapter: EnvAdapter, updates: Updates) -> Contender:
    """Environment steps, then the same number of updates in blocks of `SCAN`."""
    moved, made = updates.moved, 0
    random = np.random.default_rng(0)

    @partial(jax.jit, donate_argnums=0)
    def block(moved: Any, read: Any) -> Any:
        return jax.lax.scan(lambda moved, _: (updates.move(moved, read), None), moved, length=SCAN)[0]

    def advance(steps: int) -> None:
        nonlocal moved, made
        for _ in range(steps):
            adapter.step(random_action(random, adapter))
        for _ in range(steps // SCAN):
            moved = block(moved, updates.read)
            made += SCAN
        jax.block_until_ready(moved)

    moved = jax.tree.map(jnp.copy, moved)  # donated: every leaf needs a buffer of its own
    return Contender(advance, lambda: made, block=SCAN)


def straight_line(algorithm: str, transitions: Any) -> Updates:
    """The straight-line file of the algorithm, in `reference/`."""
    sys.path.append(str(Path(__file__).parents[2]))
    oracle = importlib.import_module(f"reference.{algorithm}")
    columns = (getattr(transitions, name)[:, 0] for name in COLUMNS)
    memory = oracle.Transitions(*(jnp.asarray(column, jnp.float32) for column in columns))
    priorities = {"priorities": jnp.ones(ROWS)} if algorithm == "td7" else {}
    sizes = transitions.observation.shape[-1], transitions.action.shape[-1]
    state, key = oracle.init(jax.random.key(0), *sizes, **priorities), jax.random.key(1)
    return Updates(state, memory, lambda state, memory: oracle.update(state, memory, key))


def assembled(algorithm: str, transitions: Transition) -> Updates:
    """The agent that is put together from its parts, with a replay of full capacity."""
    agent = build_agent(RECIPES[algorithm]).on(make(ENV).spec)
    layout, key = agent.layout(), jax.random.key(1)

    def fill(replay: Any, one: Transition) -> tuple[Any, None]:
        rows, index = replay
        return agent.replay.insert(layout, rows, index, one), None

    rows, index = jax.jit(lambda replay: jax.lax.scan(fill, replay, transitions)[0])(
        agent.replay.init(layout)
    )

    def move(moved: Any, rows: Any) -> Any:
        state, index, _ = agent.update(layout, moved[0], rows, moved[1], key)
        return state, index

    return Updates((agent.init(jax.random.key(0)), index), rows, move)


def random_action(random: np.random.Generator, adapter: EnvAdapter) -> np.ndarray:
    return random.uniform(-1.0, 1.0, (1, adapter.spec.action_size)).astype(np.float32)


def random_transitions(adapter: EnvAdapter) -> Transition:
    """`ROWS` steps with random actions; every leaf leads with [ROWS, 1]."""
    random = np.random.default_rng(0)
    adapter.reset()
    steps = [adapter.step(random_action(random, adapter)).transition for _ in range(ROWS)]
    return jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *steps)
