"""Compare hindsight with that of Stable-Baselines3 on a Fetch arm at equal settings: success over steps.

    python benchmarks/goals.py                  # all runs of FetchReach, one after the other
    python benchmarks/goals.py --seeds 1        # the first seed alone
    python benchmarks/goals.py --budget full    # FetchPush
    python benchmarks/goals.py --tables         # the tables of docs/tutorials/goals.md alone

Our runs are those of `qscape study run studies/goals.toml --budget short` (or full), in runs/goals; pack them
by `python benchmarks/collect.py runs/goals`. Each run of Stable-Baselines3 is one line of
results/goals/TASK-sb3.jsonl. Finished runs are not made again, so the script can be stopped and started at
any time. The tables have the recorded runs of both.

Stable-Baselines3 gets the settings of our `sac+her+normalise`, read from the study: networks, learning rates,
discount, batch size, warm-up, target rate, temperature, copies, updates per step; its observations are
normalised by `VecNormalize`, which clips them at 10. It draws goals anew in each batch, where ours are drawn
once for each episode; its losses, initial weights and bounds of the standard deviation are its own.
Both are evaluated with the mode of the policy in the same episodes, and an episode counts as a success if the
goal was reached in any of its steps.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from blocks import RESULTS, ROOT, table, write_table
from recorded import read_runs

from qscape.jobs.progress import RunProgress
from qscape.jobs.study import Study, read_study
from qscape.jobs.worker import run_job
from qscape.report.labels import shorten_labels
from qscape.run.evaluation import SEED
from qscape.run.events import Ended
from qscape.run.folder import COMMAND
from qscape.run.plan import Plan, prepare

STUDY = ROOT / "studies" / "goals.toml"
PAGE = ROOT / "docs" / "tutorials" / "goals.md"
TABLES = {"FetchReach-v4": "goals", "FetchPush-v4": "goals-push"}  # of the page, by task
PEER = "sac+her+normalise"  # the agent that Stable-Baselines3 has, too
COLUMNS = 8  # of a table
ENVS = 10  # of an evaluation, as in `open_adapters`


def train_ours(study: Study, recipe: str | None, seed: int) -> None:
    """Train the runs of a seed, of one recipe or (None) of all, that are not finished."""
    for row in study.rows:
        if row.plan.seed == seed and recipe in (None, row.plan.recipe):
            run = RunProgress(row)
            run.refresh()  # a run whose saves an archive left out is finished, too
            if run.state in ("failed", "elsewhere"):
                raise SystemExit(run.why or f"{row.folder}: another process trains it")
            for event in run_job(run.job) if run.job else ():
                if isinstance(event, Ended) and event.interrupted:
                    raise SystemExit(130)
            print(f"{row.folder}: finished", flush=True)


def train_theirs(plan: Plan) -> dict[str, Any]:
    """Train SAC with HER of Stable-Baselines3 by the settings of a plan; return its evaluations."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import SAC, HerReplayBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    _, agent, _ = prepare(plan)
    base, her = agent.base, agent.parts["her"]
    soft, every = agent.parts["soft"], round(1 / base.updates_per_step)
    learned = soft.temperature is None
    rates = {base.actor_learning_rate, base.critic_learning_rate} | (
        {soft.learning_rate} if learned else set()
    )
    assert len(rates) == 1  # of Stable-Baselines3 all are one
    assert every * base.updates_per_step == 1
    tests = [gym.make(plan.env) for _ in range(ENVS)]
    scaled = VecNormalize(DummyVecEnv([lambda: gym.make(plan.env)]), norm_reward=False, gamma=base.discount)
    found: dict[str, list[Any]] = {"step": [], "success": [], "return": []}

    def play(env: gym.Env, model: SAC, seed: int | None) -> tuple[float, float]:
        """Return whether an episode reached its goal, and its return."""
        observation, _ = env.reset(seed=seed)
        reached, total, over = 0.0, 0.0, False
        while not over:
            action, _ = model.predict(scaled.normalize_obs(observation), deterministic=True)
            observation, reward, terminated, truncated, info = env.step(action)
            reached, total = max(reached, float(info["is_success"])), total + float(reward)
            over = terminated or truncated
        return reached, total

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % plan.eval_every == 0:
                each = [
                    play(tests[k % ENVS], self.model, SEED + k if k < ENVS else None)
                    for k in range(plan.eval_episodes)
                ]
                found["step"].append(self.num_timesteps)
                found["success"].append(float(np.mean([reached for reached, _ in each])))
                found["return"].append(float(np.mean([total for _, total in each])))
            return True

    model = SAC(
        "MultiInputPolicy",
        scaled,
        learning_rate=base.critic_learning_rate,
        gamma=base.discount,
        tau=agent.parts["polyak"].rate,
        batch_size=base.batch_size,
        learning_starts=base.warmup,
        train_freq=every,
        gradient_steps=1,
        ent_coef="auto" if learned else soft.temperature,
        policy_kwargs={"net_arch": {"pi": [*base.actor_hidden], "qf": [*base.critic_hidden]}},
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": her.relabels, "goal_selection_strategy": her.strategy},
        seed=plan.seed,
        device="cpu",
    )
    model.learn(plan.steps, Evaluate(), log_interval=None)
    assert abs(model._n_updates - (plan.steps - base.warmup) // every) <= 1
    packages = ("stable-baselines3", "torch", "gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    about = {"env": plan.env, "agent": PEER, "seed": plan.seed, "steps": plan.steps}
    return about | found | {"versions": {name: version(name) for name in packages}}


def file_of(env: str) -> Path:
    """Return the file of the runs of Stable-Baselines3 on a task."""
    return RESULTS / "goals" / f"{env}-sb3.jsonl"


def theirs(env: str) -> list[dict[str, Any]]:
    """Return the recorded runs of Stable-Baselines3 on a task."""
    lines = file_of(env).read_text().splitlines() if file_of(env).exists() else []
    return [json.loads(line) for line in lines]


def add_theirs(plan: Plan) -> None:
    """Train and record a run of Stable-Baselines3, unless it is recorded."""
    if any((run["seed"], run["steps"]) == (plan.seed, plan.steps) for run in theirs(plan.env)):
        return
    made = train_theirs(plan) | {"date": time.strftime("%Y-%m-%d")}
    with file_of(plan.env).open("a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    print(f"Stable-Baselines3, seed {plan.seed}: finished", flush=True)


def success_table(env: str) -> str:
    """Format the success rates of the recorded runs: for each agent the mean of its seeds, then each seed."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    runs = [run for run in read_runs() if (run.study, run.env) == ("goals", env)]
    names, _ = shorten_labels(dict.fromkeys(run.label for run in runs))
    for run in sorted(runs, key=lambda run: run.seed):
        rates = 100 * run.evaluations["success"].mean(1)
        groups.setdefault(f"`{names[run.label]}`", []).append((run.evaluations["step"], rates))
    for run in sorted(theirs(env), key=lambda run: run["seed"]):
        of = groups.setdefault("Stable-Baselines3, SAC with HER", [])
        of.append((np.array(run["step"]), 100 * np.array(run["success"])))
    steps = sorted({int(step) for runs in groups.values() for at, _ in runs for step in at if step > 0})
    steps = steps[:: -max(1, -(-len(steps) // COLUMNS))][::-1]
    rows = []
    for label, runs in groups.items():
        cells = []
        for step in steps:
            rates = np.array([float(rate[at == step][0]) for at, rate in runs])
            cells.append(f"{rates.mean():.0f}: {', '.join(f'{rate:.0f}' for rate in rates)}")
        rows.append([label, *cells])
    return table(["agent", *(f"{step:,}" for step in steps)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="the first so many of the study's seeds")
    parser.add_argument("--budget", choices=["short", "full"], default="short", help="full: FetchPush")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of studies")
    parser.add_argument("--tables", action="store_true", help="write the table of the recorded results")
    given = parser.parse_args()
    if not given.tables:
        os.environ[COMMAND] = "python benchmarks/goals.py"  # in run.json
        study = read_study(STUDY, given.budget, given.runs)
        plans = [row.plan for row in study.rows if row.plan.recipe == PEER][: given.seeds]
        for plan in plans:  # what is compared comes first
            train_ours(study, PEER, plan.seed)
            add_theirs(plan)
        for plan in plans:
            train_ours(study, None, plan.seed)
    for env, name in TABLES.items():
        write_table(PAGE, name, success_table(env))


if __name__ == "__main__":
    main()
