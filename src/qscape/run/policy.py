"""A trained policy out of a run folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from qscape.agents import build
from qscape.envs import EnvAdapter, Episode
from qscape.envs import make as make_adapter
from qscape.envs.spaces import refuse_other_table
from qscape.errors import RunError, UsageError
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import saves
from qscape.run.evaluation import SEED, evaluate
from qscape.run.folder import newest_save, read_plan, refuse_nameless
from qscape.run.programs import Acts, Programs
from qscape.run.rollouts import RolloutPrograms


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A policy with all that is needed to act: `programs.act(acting, ...)`."""

    programs: Acts
    acting: Any
    adapter: EnvAdapter
    step: int
    policy: str  # "kept" or "current"


def programs_of(agent: Any, envs: int = 1) -> Acts:
    """The programs of an agent that is bound to its task."""
    return RolloutPrograms(agent) if isinstance(agent, OnPolicyAgent) else Programs(agent, agent.layout(envs))


def load_policy(
    folder: Path,
    *,
    envs: int = 1,
    seed: int = SEED,
    current: bool = False,
    env_args: dict[str, Any] | None = None,
) -> Loaded:
    """The policy of a run's newest save: the kept one where the schedule keeps one, unless `current`.

    Raises:
        RunError: no save, or an unreadable one.
    """
    plan = read_plan(folder)
    path = newest_save(folder)
    if path is None:
        raise RunError(f"{folder} has no save yet; let it train on: qscape resume {folder}.")
    refuse_nameless(folder, plan)
    agent: Any = build(plan.recipe, plan.settings)
    args, index_actions = dict(plan.env_args) | (env_args or {}), agent.index_actions
    adapter = make_adapter(plan.env, envs, args, seed=seed, index_actions=index_actions)
    refuse_other_table(plan.env, saves.read_meta(path).get("table"), adapter.spec.table)
    agent = agent.on(adapter.spec)
    acting, step, policy = read_acting(path, agent, current)
    return Loaded(programs_of(agent, envs), acting, adapter, step, policy)


def read_acting(path: Path, agent: Any, current: bool = False) -> tuple[Any, int, str]:
    """(acting state, environment steps, "kept" or "current") of one save of an agent bound to its task.

    Raises:
        RunError: the save is unreadable.
    """
    like = jax.eval_shape(lambda: agent.acting(agent.init(jax.random.key(0))))
    name = "kept" if "kept" in saves.tree_names(path) and not current else "acting"
    trees, meta = saves.read(path, {name: like})
    if isinstance(agent, OnPolicyAgent):
        agent.check_part_states(trees[name].part_states)
    return trees[name], meta["numbers"]["env_steps"], "kept" if name == "kept" else "current"


def evaluate_run(folder: Path, episodes: int, seed: int = SEED, current: bool = False):
    """(step, which policy, episodes) of an evaluation of a run's newest save.

    Raises:
        UsageError: no episode is asked for. RunError: no save.
    """
    if episodes < 1:
        raise UsageError(f"--episodes is {episodes}; it must be at least 1.")
    loaded = load_policy(folder, envs=min(episodes, 10), seed=seed, current=current)
    done: list[Episode] = evaluate(loaded.programs, loaded.acting, loaded.adapter, episodes, seed)
    loaded.adapter.close()
    return loaded.step, loaded.policy, done
