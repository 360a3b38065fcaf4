"""The compiled programs of an off-policy run.

`insert` is a program of its own, with the replay donated. In one program with sampling, XLA would copy the
whole replay at every call. The other programs only read the storage.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qscape.offpolicy import cycle
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import CARRY_AXES, Carry
from qscape.offpolicy.state import SEED_AXES, State
from qscape.replay.storage import Layout
from qscape.run.seeds import ONE, Seeds
from qscape.system import count_cores
from qscape.types import Key

EMPTY = Carry(*[None] * len(Carry._fields))  # type: ignore[arg-type]
LEARNED = ("state", "replay_state", "metrics", "guard")  # the fields of a carry that an update changes
CHOSEN = ("noise_state", "action", "columns")  # the fields that choosing actions changes


class Program:
    """A function from carry to carry, compiled for the fields that it needs.

    Args:
        function: takes a carry and further positional arguments; returns the new carry.
        changes: names of the fields that the function changes. Their buffers are donated.
        reads: names of the fields that the function only reads.
        fresh: names among `changes` that the function writes without reading; they are not passed in.
    """

    def __init__(
        self,
        function: Callable[..., Carry],
        changes: tuple[str, ...],
        reads: tuple[str, ...],
        fresh: tuple[str, ...] = (),
    ) -> None:
        self.changes, self.reads = changes, reads
        self.donated = tuple(name for name in changes if name not in fresh)

        def run(donated: list[Any], read: list[Any], *args: Any) -> list[Any]:
            fields = dict(zip((*self.donated, *reads), (*donated, *read), strict=True))
            carry = function(EMPTY._replace(**fields), *args)
            return [getattr(carry, name) for name in changes]

        self.compiled = jax.jit(run, donate_argnums=0)
        self._ahead: threading.Thread | None = None

    def compile_ahead(self, carry: Carry, *args: Any) -> None:
        """Begin to compile in a thread, for arguments of these shapes; the first call waits for it.

        Without effect where this process may use one processor only. What fails in the thread is forgotten:
        the first call compiles again and raises the error.

        Args:
            carry: the carry, with a `jax.ShapeDtypeStruct` for each array.
            args: further arguments, arrays or shapes.
        """
        if count_cores() == 1 or os.environ.get("NPROC") == "1":
            return

        def prepare() -> None:
            with contextlib.suppress(Exception):
                self.compiled.lower(*self.arguments(carry, *args)).compile()

        self._ahead = threading.Thread(target=prepare, name="compile ahead")
        self._ahead.start()

    def arguments(self, carry: Carry, *args: Any) -> tuple[Any, ...]:
        """Return the arguments of the compiled function: donated fields, read fields, further arguments."""
        donated, read = ([getattr(carry, name) for name in names] for names in (self.donated, self.reads))
        return donated, read, *args

    def __call__(self, carry: Carry, *args: Any) -> Carry:
        """Run the program and return the new carry; the buffers of the old donated fields are invalid."""
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        changed = self.compiled(*self.arguments(carry, *args))
        return carry._replace(**dict(zip(self.changes, changed, strict=True)))


class Programs:
    """The cycle of training, compiled for one agent and replay layout, of one seed or of several.

    Attributes:
        metrics: names of the entries of the metrics vector.
        insert: `cycle.insert`; takes a transition and observations of numpy or jax arrays.
        learn: `cycle.learn`.
        step: `cycle.learn` and then `cycle.choose` by the exploring policy: the usual environment step.
        see: updates the normaliser's statistics by observations; returns the state unchanged without one.
        act: `agent.act`.
        copy: copies an acting state into buffers of its own.
    """

    def __init__(self, agent: Agent, layout: Layout, seeds: Seeds = ONE) -> None:
        self.agent, self.layout, self.seeds = agent, layout, seeds
        self.metrics = list(cycle.metric_names(agent, layout))
        insert, learn = partial(cycle.insert, agent, layout), partial(cycle.learn, agent, layout)

        def step(carry: Carry, updates: Array, env_steps: Array, key: Key) -> Carry:
            return cycle.choose(agent, learn(carry, updates, env_steps, key), env_steps, key)

        self.insert = Program(self.map(insert, 0, 0), ("storage", "replay_state"), ())
        self.learn = Program(self.map(learn, None, None, 0), LEARNED, ("storage",))
        seen = ("storage", "observation", "first", "resetting")
        self.step = Program(self.map(step, None, None, 0), LEARNED + CHOSEN, seen, ("action", "columns"))
        self.see: Callable[..., State] = lambda state, *_: state
        if agent.normalises:
            self.see = jax.jit(seeds.map(agent.see, (SEED_AXES, 0, None), SEED_AXES), donate_argnums=0)
        self.act = Act(self._act)
        self.copy = jax.jit(lambda acting: jax.tree.map(jnp.copy, acting))

    def init_noise(self, envs: int) -> PyTree:
        """Return the initial state of the exploration noise for E environments, or None."""
        return self.agent.selector.init_noise(self.agent.task, envs, self.agent.base)

    def map(self, function: Callable[..., Carry], *axes: int | None) -> Callable[..., Carry]:
        """Map a function from carry to carry over the seeds.

        `axes`: the seed axis of each argument after the carry; None: the argument is shared.
        """
        if not self.seeds.shape:
            return function

        def mapped(carry: Carry, *args: Any) -> Carry:
            fields = CARRY_AXES if carry.state is not None else CARRY_AXES._replace(state=None)
            return self.seeds.map(function, (fields, *axes), fields)(carry, *args)

        return mapped

    def _act(self, acting: Any, noise_state: Any, obs: Any, first: Any, env_steps: Any, key: Key, mode: str):
        act = self.seeds.map(partial(self.agent.act, mode=mode), (0, 0, 0, 0, None, 0))
        return act(acting, noise_state, obs, first, env_steps, key)


class Act:
    """`agent.act`, compiled; keeps the flattened arrays of the policy that acted last.

    JAX flattens its arguments at every call, and Equinox modules in Python. For SAVO's 90 arrays that takes
    longer than choosing an action. So a policy is flattened once, not at every step.
    """

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act
        self._last: Any = None
        self._leaves: list[Any] = []
        self._tree: Any = None
        self._program: Any = None

    def __call__(
        self,
        acting: Any,
        noise_state: PyTree,
        obs: Any,
        first: Any,
        env_steps: Any,
        key: Key,
        mode: str = "evaluate",
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """Return actions, columns for replay and the next noise state; see `agent.act`.

        `acting` is compared by identity: pass the same object as long as the policy is the same.
        """
        if acting is not self._last:
            self._leaves, tree = jax.tree.flatten(acting)
            if self._program is None or tree != self._tree:
                self._tree, self._program = tree, self._compiled(tree)
            self._last = acting
        return self._program(self._leaves, noise_state, obs, first, env_steps, key, mode=mode)

    def _compiled(self, tree: Any) -> Any:
        def act(leaves: list[Any], *arguments: Any, mode: str) -> Any:
            return self._act(tree.unflatten(leaves), *arguments, mode=mode)

        return jax.jit(act, static_argnames="mode")


@runtime_checkable
class Acts(Protocol):
    """The interface that evaluation needs of a run: its agent and the programs that choose actions."""

    agent: Any
    act: Act

    def init_noise(self, envs: int) -> PyTree: ...


def evaluation_key() -> Key:
    """Return the fixed key of evaluations, for policies that are random by construction."""
    return jax.random.key(0)


def act_evaluating(
    programs: Acts, acting: Any, envs: int, mode: str = "evaluate"
) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """Return the policy of an acting state as a function for E environments.

    The function takes observations [E, S], `first` [E] (True where an episode starts) and the step number;
    it returns actions [E, A] in [-1, 1]. It holds the noise state, so make a new one for every evaluation.
    `mode`: "evaluate" (the deterministic policy) or "sample" (a sample of an on-policy agent's policy).
    """
    noise_state = programs.init_noise(envs)
    key = evaluation_key()

    def choose(obs: np.ndarray, first: np.ndarray, step: int) -> np.ndarray:
        nonlocal noise_state
        action, _, noise_state = programs.act(acting, noise_state, obs, first, np.int32(step), key, mode=mode)
        return np.asarray(action)

    return choose
