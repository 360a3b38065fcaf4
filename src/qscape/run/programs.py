"""The compiled programs of a run. Everything that takes time happens in these.

Insertion is a program of its own, with the replay donated: sample and update in the same program would
make XLA copy the whole replay at every call. The others only read the replay's rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import State
from qscape.replay.storage import Layout, ReplayState
from qscape.types import Key


class Programs:
    """insert, act, update once and act, update many times: jitted for one agent and replay layout.

    Attributes:
        metrics: names of the entries of the metrics vector, known once an update was traced.
    """

    def __init__(self, agent: Agent, layout: Layout) -> None:
        self.agent, self.layout = agent, layout
        self.metrics: list[str] = []
        self.update = jax.jit(partial(agent.update, layout))  # jitted to be traced once for all programs
        self.insert = jax.jit(partial(agent.replay.insert, layout), donate_argnums=(0, 1))
        self.step = jax.jit(self._step, donate_argnums=(0, 2, 3, 4))
        self.burst = jax.jit(self._burst, donate_argnums=(0, 2, 3), static_argnames="stride")
        self.see: Callable[[State, Any], State] = lambda state, obs: state
        if agent.normalises:
            self.see = jax.jit(agent.see, donate_argnums=0)
        self.act = Act(agent.act)
        self.keep = jax.jit(lambda acting: jax.tree.map(jnp.copy, acting))

    def init_noise(self, envs: int) -> PyTree:
        """What acting remembers at the start, for E environments side by side."""
        return self.agent.selector.init_noise(self.agent.task, envs, self.agent.base)

    def blank_metrics(self, state: State, storage: Array, replay_state: ReplayState, key: Key) -> Array:
        """The metrics vector before the first update; finds out the names as well."""
        said = jax.eval_shape(self.update, state, storage, replay_state, key)[2]
        self.metrics = sorted(said)
        return jnp.full(len(self.metrics), jnp.nan)

    def _update(
        self, state: State, storage: Array, replay_state: ReplayState, metrics: Array, key: Key
    ) -> tuple[State, ReplayState, Array]:
        state, replay_state, said = self.update(state, storage, replay_state, key)
        new = jnp.stack([said[name] for name in self.metrics])
        # -inf marks what this update did not compute (the actor's, between its delayed steps).
        return state, replay_state, jnp.where(jnp.isneginf(new), metrics, new)

    def _step(
        self,
        state: State,
        storage: Array,
        replay_state: ReplayState,
        noise_state: PyTree,
        metrics: Array,
        obs: Array,
        first: Array,
        env_steps: Array,
        key: Key,
    ) -> tuple[State, ReplayState, PyTree, Array, Array, dict[str, Array]]:
        """One update, then the next action: what an environment step costs in the usual schedule."""
        state = state._replace(env_steps=env_steps)
        state, replay_state, metrics = self._update(state, storage, replay_state, metrics, key)
        state = self.agent.see(state, obs)
        acting = self.agent.acting(state)
        action, columns, noise_state = self.agent.act(
            acting, noise_state, obs, first, env_steps, key, "explore"
        )
        return state, replay_state, noise_state, metrics, action, columns

    def _burst(
        self,
        state: State,
        storage: Array,
        replay_state: ReplayState,
        metrics: Array,
        env_steps: Array,
        key: Key,
        n: Array,
        stride: int = 0,
    ) -> tuple[State, ReplayState, Array]:
        """n updates in one call; n is not static, so that no burst's length is compiled anew. `stride`: steps
        from one of them to the next."""

        def body(i: Array, carry: tuple[State, ReplayState, Array]) -> tuple[State, ReplayState, Array]:
            state, replay_state, metrics = carry
            state = state._replace(env_steps=env_steps + stride * i)
            return self._update(state, storage, replay_state, metrics, key)

        return jax.lax.fori_loop(0, n, body, (state._replace(env_steps=env_steps), replay_state, metrics))


class Act:
    """`agent.act`, compiled. It keeps the arrays of the policy that acted last.

    At every call JAX takes its arguments apart, and Equinox's modules in Python: for SAVO's 90 arrays that
    takes longer than choosing an action does. So a policy is taken apart once, not at every step.
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
        """Action, columns for replay and memory; see `agent.act`."""
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
    """The programs of a policy: all that evaluation needs."""

    agent: Any
    act: Act

    def init_noise(self, envs: int) -> PyTree: ...


def evaluation_key() -> Key:
    """A policy that is random by construction evaluates with this fixed key."""
    return jax.random.key(0)


def act_evaluating(
    programs: "Acts", acting: Any, envs: int
) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """The deterministic policy of an acting state, for E environments side by side."""
    noise_state = programs.init_noise(envs)
    key = evaluation_key()

    def choose(obs: np.ndarray, first: np.ndarray, step: int) -> np.ndarray:
        nonlocal noise_state
        action, _, noise_state = programs.act(
            acting, noise_state, obs, first, np.int32(step), key, mode="evaluate"
        )
        return np.asarray(action)

    return choose
