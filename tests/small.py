"""Small agents with a filled replay, for tests of the update."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.version import __version_info__

from qscape import agents
from qscape.errors import UsageError
from qscape.methods.sale import EncoderStatistics
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import State
from qscape.replay.storage import ReplayState
from qscape.types import Spec, Transition
from reference.td3 import Transitions

S, A, TRANSITIONS, CAPACITY = 5, 3, 700, 1024
# Off-policy parts of the core, and those of `qscape.contrib`.
CORE_PARTS = [name for name, cls in agents.PARTS.items() if not cls.__module__.startswith("qscape.contrib.")]
CONTRIB_PARTS = [name for name in agents.PARTS if name not in CORE_PARTS]


def fusion_emitters(used: bool) -> dict[str, bool]:
    """The compiler option of that name, which jaxlib 0.11 does not know any more."""
    return {"xla_cpu_use_fusion_emitters": used} if __version_info__ < (0, 11) else {}


# XLA's defaults, which `make test` overrides by XLA_FLAGS. Two programs of the same mathematics agree to the
# bit only if XLA fuses them in the same way, so agents and oracles are compiled as users' programs are.
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **fusion_emitters(True),
}


class Run(NamedTuple):
    """An agent and the arguments of its update.

    Attributes:
        program: the jitted update: (state, storage, replay_state, key) -> (state, replay_state).
        memory: the transitions in replay, by column.
    """

    agent: Agent
    program: Callable[..., Any]
    state: State
    storage: jax.Array
    replay_state: ReplayState
    memory: Transitions
    key: jax.Array

    def step(self) -> "Run":
        """Return the run after one update."""
        state, replay_state = self.program(self.state, self.storage, self.replay_state, self.key)
        return self._replace(state=state, replay_state=replay_state)


def build(recipe: str, size: int = 32, parts: Mapping[str, Any] | None = None, **base: Any) -> Agent:
    """Build an agent whose layers and batch have the same size, bound to a task with S and A.

    Args:
        parts: settings of parts.
        base: settings of the base.
    """
    widths = {"actor_hidden": (size, size), "critic_hidden": (size, size)}
    settings = {"base": {"batch_size": size, "replay_capacity": CAPACITY, **widths, **base}}
    if "sale" in agents.build(recipe).parts:
        settings["sale"] = {"width": size, "hidden": (size, size)}
    if "savgo" in agents.build(recipe).parts:
        settings["savgo"] = {"candidates": 8, "hidden": (size, size, size), "embedding": size}
    agent = agents.build(recipe, settings | dict(parts or {}))
    return agent.on(make_spec(agent))


def make_spec(agent: Agent, **more: Any) -> Spec:
    """Make the task of a small agent: vectors [A], rows of a table if it has to be, or an index."""
    more |= {"goal_size": 1} if agent.relabelling.changes_goals else {}
    if agent.index_actions:
        return Spec(S, 1, choices=A, **more)
    grid = np.stack(np.meshgrid([-1, 1], [-1, 0, 1], [-1, 1], indexing="ij"), -1).reshape(-1, A)
    boxed = Spec(S, A, **more)
    return boxed if agent.selector.fits(boxed, agent.base) is None else Spec(S, A, np.float32(grid), **more)


def fits(recipe: str) -> bool:
    """Return whether a recipe is valid."""
    try:
        return bool(agents.build(recipe))
    except UsageError:
        return False


def transitions(seed: int, choices: int | None = None) -> tuple[Transitions, jax.Array]:
    """Make random transitions whose TD errors lie on both sides of 1; return them and where they truncate.

    Args:
        choices: number of actions if an action is an index; None: actions are vectors.
    """
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, TRANSITIONS, S))
    action = rng.uniform(-1.0, 1.0, (TRANSITIONS, A))
    reward, ends = rng.normal(0.5, 1.5, TRANSITIONS), rng.random(TRANSITIONS)
    if choices is not None:
        action = rng.integers(0, choices, (TRANSITIONS, 1))
    columns = (obs, action, reward, ends < 0.1, next_obs)
    truncated = jnp.asarray((ends > 0.1) & (ends < 0.2))
    return Transitions(*(jnp.asarray(x, jnp.float32) for x in columns)), truncated


def fill(agent: Agent, memory: Transitions, truncated: jax.Array) -> tuple[jax.Array, ReplayState]:
    """Insert transitions into the agent's replay, one by one; return the storage and the replay state."""
    layout = agent.layout(1)
    obs, action, reward, terminated, next_obs = (column[:, None] for column in memory)
    rng = np.random.default_rng(7)
    columns = {
        name: jnp.asarray(rng.uniform(-1.0, 1.0, (TRANSITIONS, 1, *shape)), jnp.float32)
        for name, shape in layout.columns
    }
    ends = terminated > 0, truncated[:, None]
    steps = Transition(obs, action, reward, *ends, next_obs, columns=columns)

    def insert(carry, step):
        return agent.insert(layout, *carry, step), None

    return jax.jit(lambda: jax.lax.scan(insert, agent.init_replay(layout), steps)[0])()


def start(agent: Agent, seed: int = 0, options: dict[str, Any] | None = None) -> Run:
    """Make a new run whose update is compiled with XLA's `options`.

    The update does not return metrics. XLA would fuse them with their inputs, which rounds SAC's
    log-probabilities in another way than in the oracle, which has no metrics.
    """
    memory, truncated = transitions(seed, agent.task.choices)

    def program(state, rows, replay_state, key):
        return agent.update(agent.layout(1), state, rows, replay_state, key)[:2]

    state = agent.init(jax.random.key(seed))
    key = jax.random.key(seed + 1)
    program = jax.jit(program, compiler_options=options)
    return Run(agent, program, state, *fill(agent, memory, truncated), memory, key)


class Says(eqx.Module):
    """A critic that computes what it is told to: values [...] of observations and actions."""

    value: Callable = eqx.field(static=True)

    def __call__(self, obs, action, embeddings, conditioning=None, key=None):
        return self.value(obs, action)

    def outputs(self, obs, action, embeddings, key=None):
        return self.value(obs, action)[..., None]


def same(x: Any, y: Any) -> bool:
    """Return whether two trees are equal to the bit."""
    leaves = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def randomised(tree: Any, draw: Callable, rng: np.random.Generator) -> Any:
    """Return a tree whose leaves are replaced by `draw(leaf)`.

    The statistics of batch normalisation are replaced by those of a random sample, so that they are valid.
    """

    def sample(seen: EncoderStatistics) -> EncoderStatistics:
        drawn = [(rng.normal(1, 2, (20, *mean.shape)), spread.ndim) for mean, spread in seen]
        found = [(x.mean(0), np.cov(x.T, ddof=0) if axes == 2 else x.var(0)) for x, axes in drawn]
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), EncoderStatistics(*found))

    def is_seen(x: Any) -> bool:
        return isinstance(x, EncoderStatistics)

    return jax.tree.map(lambda x: sample(x) if is_seen(x) else draw(x), tree, is_leaf=is_seen)
