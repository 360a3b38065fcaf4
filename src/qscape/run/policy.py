"""Load a trained policy from a run folder."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax

from qscape.agents import build
from qscape.envs import EnvAdapter, Episode
from qscape.envs import make as make_adapter
from qscape.errors import OutOfRange, UnfitAgent
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import saves
from qscape.run.engines.rollout import RolloutPrograms
from qscape.run.evaluation import SEED, evaluate
from qscape.run.folder import fit, newest_save, no_save, read_meta, read_plan, refuse_unmakeable
from qscape.run.programs import Acts, Programs
from qscape.run.training import close_all


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """A policy with everything that is needed to act: `programs.act(acting, ...)`.

    Attributes:
        programs: compiled programs that choose actions.
        acting: the acting state.
        adapter: the run's environment; the caller closes it.
        step: environment steps of training.
        policy: "kept" (by the checkpoint schedule) or "current".
    """

    programs: Acts
    acting: Any
    adapter: EnvAdapter
    step: int
    policy: str


def make_programs(agent: Any, envs: int = 1) -> Acts:
    """Make the compiled programs of an agent that is bound to its task."""
    return RolloutPrograms(agent) if isinstance(agent, OnPolicyAgent) else Programs(agent, agent.layout(envs))


def load_policy(
    folder: Path,
    *,
    envs: int = 1,
    seed: int = SEED,
    current: bool = False,
    env_args: dict[str, Any] | None = None,
) -> LoadedPolicy:
    """Load the policy of a run's newest save.

    Args:
        folder: a run folder.
        envs: sub-environments of the adapter.
        seed: seed of the adapter.
        current: take the current policy even if the checkpoint schedule keeps a better one.
        env_args: arguments of the environment that replace the recorded ones.

    Raises:
        UsageError: the run's environment was an object, or one of its parts is not loaded.
        RunError: the run has no save, or an unreadable one.
    """
    plan = read_plan(folder)
    path = newest_save(folder)
    if path is None:
        raise no_save(folder)
    refuse_unmakeable(folder, plan)
    agent: Any = build(plan.recipe, plan.settings)
    args, index_actions = dict(plan.env_args) | (env_args or {}), agent.index_actions
    about: Any = {"index_actions": index_actions, "lag": plan.lag, "alone": "--episodes 1"}
    adapter = make_adapter(plan.env, envs, args, seed=seed, **about)
    with contextlib.ExitStack() as stack:
        stack.callback(close_all, adapter)
        fit(adapter, path)
        agent = agent.on(adapter.spec)
        acting, step, policy = read_acting(path, agent, current)
        stack.pop_all()  # the caller closes it
    return LoadedPolicy(make_programs(agent, envs), acting, adapter, step, policy)


def read_acting(path: Path, agent: Any, current: bool = False) -> tuple[Any, int, str]:
    """Read the acting state of one save.

    Args:
        path: folder of the save.
        agent: the agent of the run, bound to its task.
        current: take the current policy even if the save holds a kept one.

    Returns:
        The acting state, the environment steps of training, and "kept" or "current".

    Raises:
        RunError: the save is unreadable.
    """
    like = jax.eval_shape(lambda: agent.acting(agent.init(jax.random.key(0))))
    name = "kept" if "kept" in saves.tree_names(path) and not current else "acting"
    numbers = read_meta(path)["numbers"]
    trees, _ = saves.read(path, {name: like})
    if isinstance(agent, OnPolicyAgent):
        agent.check_part_states(trees[name].part_states)
    return trees[name], numbers["env_steps"], "kept" if name == "kept" else "current"


def evaluate_run(
    folder: Path, episodes: int, seed: int = SEED, current: bool = False, sample: bool = False
) -> tuple[int, str, list[Episode]]:
    """Evaluate a run's newest save.

    Args:
        folder: a run folder.
        episodes: number of episodes; up to 10 run in parallel.
        seed: sub-environment i is seeded with `seed` + i.
        current: take the current policy even if the checkpoint schedule keeps a better one.
        sample: draw actions from the policy, without random or refined actions; only of on-policy agents.

    Returns:
        The environment steps of training, "kept" or "current", and the episodes.

    Raises:
        UsageError: `episodes` is below 1, or an off-policy agent should be sampled.
        RunError: the run has no readable save.
    """
    if episodes < 1:
        raise OutOfRange(f"--episodes is {episodes}; it must be at least 1.", field="episodes")
    loaded = load_policy(folder, envs=min(episodes, 10), seed=seed, current=current)
    with contextlib.ExitStack() as stack:
        stack.callback(close_all, loaded.adapter)
        if sample and not isinstance(loaded.programs.agent, OnPolicyAgent):
            raise UnfitAgent(
                f"{loaded.programs.agent.recipe} is evaluated by its deterministic policy: only the policies "
                "of on-policy agents (ppo) are sampled; leave --sample out.",
                field="sample",
            )
        mode = "sample" if sample else "evaluate"
        done = evaluate(loaded.programs, loaded.acting, loaded.adapter, episodes, seed, mode)
    return loaded.step, loaded.policy, done
