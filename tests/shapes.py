"""Trace one update of each recipe with every annotated shape and type checked.

`python tests/shapes.py` prints a JSON object: {"traced": number, "errors": {recipe: message}}. Nothing is
compiled. It must run in a process of its own, since the checks are installed while qscape is imported.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from jaxtyping import install_import_hook  # noqa: E402

with install_import_hook("qscape", "beartype.beartype"):
    import contrib.test_contract
    import jax
    import rollouts
    import test_contract
    from small import S

    from qscape.offpolicy.agent import Agent
    from qscape.offpolicy.plain import MinTarget


def trace_update(agent: Agent) -> None:
    """Trace an off-policy update from a new state and an empty replay."""
    layout = agent.layout(1)

    def update(key: jax.Array) -> Any:
        return agent.update(layout, agent.init(key), *agent.init_replay(layout), key)

    jax.eval_shape(update, jax.random.key(0))


def trace_acting(agent: Agent) -> None:
    """Trace an action with exploration in two environments."""

    def act(key: jax.Array) -> Any:
        noise = agent.selector.init_noise(agent.task, 2, agent.base)
        obs, first = jax.numpy.zeros((2, S)), jax.numpy.zeros(2, bool)
        return agent.act(agent.acting(agent.init(key)), noise, obs, first, 0, key, "explore")

    jax.eval_shape(act, jax.random.key(0))


def trace_onpolicy(recipe: str, spec: Any) -> None:
    """Trace an on-policy update from a new state and a random rollout."""
    agent, made = rollouts.build(recipe, spec), rollouts.rollout(spec=spec)
    state = jax.eval_shape(lambda key: agent.init(key, rollouts.E), jax.random.key(0))
    jax.eval_shape(lambda state, key: agent.update(state, made, 0.0, key), state, jax.random.key(1))


WRONG = "update with a target [B]"


class ColumnTarget(MinTarget):
    """A bootstrap value that returns [B] instead of [B, 1]; its sum with the reward would be [B, B]."""

    def value(self, state, qs, key):
        return super().value(state, qs, key)[:, 0]


def trace_column_target() -> None:
    """Trace an update with a bootstrap value of a wrong shape, which must be an error."""
    agent = test_contract.make("td3", {})
    trace_update(dataclasses.replace(agent, bootstrap=ColumnTarget()))


def main() -> None:
    """Trace all recipes of the contract tests and some on-policy agents; print the errors as JSON."""
    traces = {
        f"{kind} {name}": partial(trace, agent)
        for name, row in (test_contract.TABLE | contrib.test_contract.TABLE).items()
        for agent in [test_contract.make(*row)]
        for kind, trace in (("update", trace_update), ("act", trace_acting))
    }
    for recipe in ("ppo", "a2c", "reinforce", "trpo+normalise", "ppo+etf+scale_rewards", "a2c+cosine"):
        traces[f"update {recipe}"] = partial(trace_onpolicy, recipe, rollouts.DISCRETE)
    traces["update ppo on a box"] = partial(trace_onpolicy, "ppo", rollouts.CONTINUOUS)
    for recipe in ("ppo+etf", "trpo", "ppo+carsm"):
        traces[f"update {recipe} on factors"] = partial(trace_onpolicy, recipe, rollouts.FACTORED)
    traces[WRONG] = trace_column_target
    errors = {}
    for name, trace in traces.items():
        try:
            trace()
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"traced": len(traces), "errors": errors}))


if __name__ == "__main__":
    main()
