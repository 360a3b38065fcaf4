"""Engines: how a run advances. `make_engine` is the one place that chooses."""

from collections.abc import Sequence
from typing import Any

import jax

from qscape.agents import Agent
from qscape.envs import EnvAdapter
from qscape.errors import Conflict, UnfitEnv
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.run.engines.base import Engine
from qscape.run.engines.dataset import DatasetEngine
from qscape.run.engines.replay import ReplayEngine
from qscape.run.engines.rollout import RolloutEngine
from qscape.run.engines.scan import ReplayScan, RolloutScan
from qscape.run.plan import Plan


def may_compile(plan: Plan) -> bool:
    """Return whether the run is compiled as a whole if its environment is written in JAX."""
    return plan.loop != "host" and plan.vectorise == "sync" and not plan.dataset and not plan.start


def make_engine(plans: Sequence[Plan], agent: Agent, adapters: Sequence[EnvAdapter]) -> Engine:
    """Make the engine of a run: from rollouts, from a dataset, or from replay; compiled as a whole or not.

    Args:
        plans: the completed plan of each seed, equal but for the seed.
        agent: their agent, bound to no task.
        adapters: the training environments of each seed.

    Raises:
        UsageError: the agent does not fit the environment, `plan.loop` is "compiled" and the run cannot be
            compiled as a whole, or its seeds cannot share a program.
    """
    plan, adapter = plans[0], adapters[0]
    off_policy = isinstance(agent, OffPolicyAgent)
    if plan.dataset and off_policy and agent.relabelling.changes_goals:
        raise Conflict(
            f"{agent.relabelling.name} relabels what an environment plays, and this run learns from a "
            f"dataset; leave {agent.relabelling.name} out.",
            part=agent.relabelling.name,
        )
    if len(plans) > 1 and (why := why_not_together(plan, agent)):
        raise Conflict(f"Several seeds in one program need {why}.", field="seeds_as")
    kind: Any = ReplayEngine if off_policy else RolloutEngine
    if may_compile(plan) and adapter.jax_env is not None:
        if plan.overlap:
            raise UnfitEnv(
                f"--overlap makes updates while the host steps environments, and {adapter.env_id} is in JAX: "
                "its steps are in one program with the updates; leave --overlap out.",
                field="overlap",
            )
        kind = ReplayScan if off_policy else RolloutScan
    elif plan.loop == "compiled":
        raise UnfitEnv(
            f"--loop compiled needs an environment in JAX, which {adapter.env_id} is not.", field="loop"
        )
    elif plan.devices > 1 or jax.process_count() > 1:
        flag = f"--devices {plan.devices}" if plan.devices > 1 else "--processes"
        raise UnfitEnv(
            f"{flag} splits a program that holds the environments, and here the host steps {adapter.env_id}: "
            "take an environment in JAX, without --loop host, --dataset and --from.",
            field=flag.split()[0].removeprefix("--"),
        )
    elif plan.dataset and off_policy:
        kind = DatasetEngine
    return kind(plans, agent, adapters)


def name_loop(engine: Engine) -> str:
    """Return the `loop` of the plan that makes such an engine again."""
    return "compiled" if isinstance(engine, ReplayScan | RolloutScan) else "host"


def why_not_together(plan: Plan, agent: Agent) -> str | None:
    """Return why seeds of an agent cannot share one program, as the end of a sentence; None if they can.

    The sentence begins with "Several seeds in one program need".
    """
    if plan.devices > 1 or jax.process_count() > 1:
        return "one device, or the seeds one after the other"
    if plan.may_stop_early:
        return "an end at the same step in every seed, without --stop-at and --patience"
    if plan.dataset or plan.start:
        return "an agent that learns from an environment, from the start"
    if plan.vectorise == "envpool":  # the seeds would make their steps at different times
        return "environments that reset in the step that ends an episode, not in the next one as EnvPool's do"
    if not isinstance(agent, OffPolicyAgent):
        if plan.loop == "host":
            return "an off-policy agent, or an environment in JAX"
        return "rollouts of a fixed number of steps" if agent.base.episodes else None
    if not agent.schedule.learns_by_steps or agent.base.warmup_to_episode_end:
        return "updates at the same steps in every seed, not when an episode ends"
    return None
