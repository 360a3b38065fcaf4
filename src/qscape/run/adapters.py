"""Open the environments of a plan."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from qscape.agents import Agent, recipe_for_images
from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.build import training_args
from qscape.envs.lag import Lag
from qscape.errors import UnmakeableEnv
from qscape.run.engines import may_compile
from qscape.run.evaluation import SEED
from qscape.run.plan import Plan


def open_adapters(plan: Plan, agent: Agent) -> tuple[EnvAdapter, EnvAdapter | None]:
    """Open the training and evaluation environments of a plan; the latter have the seeds `SEED` + i.

    Evaluation environments are stepped one after the other, and are Gymnasium's where EnvPool trains.
    """
    adapter = open_adapter(plan, agent)
    if not plan.evals_every:
        return adapter, None
    count, args = min(plan.eval_episodes, 10), dict(plan.env_args)
    with contextlib.ExitStack() as opened:
        opened.callback(adapter.close)  # unless the others open, too
        about: Any = {"index_actions": agent.index_actions, "lag": plan.lag}
        others = open_evaluation(plan.env, count, args, without="--eval-every 0", **about)
        opened.pop_all()
    return adapter, others


def open_evaluation(
    env: str | Callable[..., gym.Env],
    envs: int,
    args: Mapping[str, Any],
    *,
    index_actions: bool,
    lag: Lag,
    without: str,
) -> EnvAdapter:
    """Open evaluation environments beside those of training.

    Args:
        env, envs, args, index_actions, lag: as for `envs.make`.
        without: what the user may say so that a run does not evaluate.

    Raises:
        UsageError: as for `envs.make`; of some environments only one may exist at a time.
    """
    try:
        about: Any = {"index_actions": index_actions, "lag": lag, "alone": without}
        others = make_adapter(env, envs, args, seed=SEED, **about)
    except UnmakeableEnv as problem:  # that of training could be made
        why = f"{problem}; this is the environment of evaluations: if only one may exist at a time, {without}"
        raise problem.saying(f"{why} makes one suffice") from problem
    others.alone = without
    return others


def open_adapter(plan: Plan, agent: Agent) -> EnvAdapter:
    """Open the training environments of a plan.

    Of an environment in JAX only one is opened if the run is compiled: the program holds the copies.
    """
    args = training_args(plan.env, dict(plan.env_args))
    return make_adapter(
        plan.env,
        plan.envs,
        args,
        seed=plan.seed,
        vectorise=plan.vectorise,
        index_actions=agent.index_actions,
        one_if_jax=may_compile(plan),
        alone="--envs 1",
        lag=plan.lag,
    )


def adapt_to_images(plan: Plan, adapter: EnvAdapter) -> tuple[Plan, list[str]]:
    """Adapt a plan to an environment that shows images, before `prepare`.

    Returns:
        The plan, and a sentence about what changed; an empty list if nothing did.
    """
    if adapter.spec.frame is None:
        return plan, []
    recipe, notes = recipe_for_images(plan.recipe)
    return dataclasses.replace(plan, recipe=recipe), notes
