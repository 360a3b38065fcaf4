"""Helpers for tests of the on-policy update: random rollouts, and compiled programs that tests share."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape import agents
from qscape.onpolicy.agent import Agent
from qscape.onpolicy.state import State
from qscape.types import Spec, Transition

T, E, S, A, K = 32, 4, 5, 2, 3
DISCRETE, CONTINUOUS = Spec(S, 1, choices=K), Spec(S, A)
FACTORED = Spec(S, 3, factors=(3, 2, 3))
SIZES = {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}


def build(recipe: str, spec: Spec = DISCRETE, **settings: Any) -> Agent:
    """Build a small agent bound to `spec`; without settings the same object at every call.

    `settings`: fields by part; those of `base` are added to the small sizes.
    """
    return _build(recipe, spec, settings) if settings else _plain(recipe, spec)


def _build(recipe: str, spec: Spec, settings: dict[str, Any]) -> Agent:
    base = SIZES | settings.pop("base", {})
    agent = agents.build(recipe, {"base": base} | settings)
    assert isinstance(agent, Agent)
    return agent.on(spec)


@lru_cache
def _plain(recipe: str, spec: Spec) -> Agent:
    return _build(recipe, spec, {})


@lru_cache
def compiled(agent: Agent) -> Callable[..., Any]:
    """Return the agent's jitted update, compiled once per agent."""
    return jax.jit(agent.update)


@lru_cache
def begin(agent: Agent, seed: int = 0, envs: int = 1) -> State:
    """Return the initial state of an agent."""
    return jax.jit(agent.init, static_argnums=1)(jax.random.key(seed), envs)


def rollout(seed: int = 0, spec: Spec = DISCRETE, steps: int = T, masked: bool = False) -> Transition:
    """Make a random rollout with terminations and truncations.

    `masked`: environments have 2 to T valid rows; else `valid` is None.
    """
    rng = np.random.default_rng(seed)
    obs, after = rng.normal(size=(2, steps, E, S)).astype(np.float32)
    shape = (steps, E, spec.action_size)
    sizes = spec.index_sizes
    action = rng.integers(0, sizes, shape) if sizes else rng.normal(size=shape)
    ends = rng.random((steps, E))
    valid = np.ones((steps, E), bool)
    if masked:
        for env, length in enumerate((steps, steps - 3, steps // 2, 2)):
            valid[length:, env] = False
    return Transition(
        jnp.asarray(obs),
        jnp.asarray(action, jnp.float32),
        jnp.asarray(rng.normal(0.5, 1.5, (steps, E)), jnp.float32),
        jnp.asarray((ends < 0.1) & valid),
        jnp.asarray((ends > 0.85) & valid),
        jnp.asarray(after),
        jnp.asarray(valid) if masked else None,
    )
