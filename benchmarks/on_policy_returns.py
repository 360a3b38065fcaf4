"""Compare PPO with that of Stable-Baselines3 at equal settings: returns after short budgets, and time.

    python benchmarks/on_policy_returns.py --sb3 /other/venv/bin/python
    python benchmarks/on_policy_returns.py --tasks CartPole-v1 --seeds 2 --rollouts 3 --out trial.jsonl

Every row is made by a process of its own. It trains one seed in 8 environments and then plays 20 episodes
with the policy's mode and 20 with actions that are sampled as in training. A row is one line of
benchmarks/results/on_policy/returns.jsonl. Existing rows are not made again, so the script can be stopped and
started at any time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from peers.process import environment

FILE = Path(__file__).resolve().parent / "results" / "on_policy" / "returns.jsonl"
TASKS = {"CartPole-v1": 25, "LunarLander-v3": 98, "HalfCheetah-v5": 49}  # rollouts: 50k, 200k and 100k steps
SCALED = ("HalfCheetah-v5",)  # observations and rewards are normalised there
LIBRARIES = ("qscape", "sb3")
ENVS, STEPS, EPISODES, CLIP = 8, 256, 20, 10.0
EVALUATION_SEED = 1_000_000


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> dict[str, float]:
    """Return wall and processor seconds since `begun`; other work disturbs processor seconds less."""
    wall, cpu = (now - then for now, then in zip(clocks(), begun, strict=True))
    return {"seconds": wall, "cpu_seconds": cpu}


def with_qscape(task: str, seed: int, rollouts: int) -> dict[str, Any]:
    """Train and evaluate `ppo` with its defaults: batch size 64, 10 passes, 3e-4, networks 64-64."""
    from qscape.agents import build
    from qscape.envs import make
    from qscape.run.adapters import open_adapters
    from qscape.run.evaluation import evaluate
    from qscape.run.plan import Plan
    from qscape.run.training import make_session

    recipe, settings = "ppo", {"base": {"rollout": ENVS * STEPS}}
    if task in SCALED:
        recipe, settings = "ppo+normalise+scale_rewards", settings | {"normalise": {"clip": CLIP}}
    plan = Plan(recipe, task, rollouts * ENVS * STEPS, seed, ENVS, settings=settings, eval_every=0)
    agent = build(recipe, settings)
    begun = clocks()
    trainer = make_session(plan, agent, *open_adapters(plan, agent))
    for _ in trainer.events(plan.steps):
        pass
    spent = since(begun)
    adapter = make(task, EPISODES, seed=EVALUATION_SEED, index_actions=True)

    def play(mode: str) -> list[float]:
        learner = trainer.learner
        played = evaluate(learner.programs, learner.acting, adapter, EPISODES, EVALUATION_SEED, mode=mode)
        return [float(e.ret) for e in played]

    steps = {"steps": trainer.env_steps}
    return steps | {"returns": play("evaluate"), "sampled_returns": play("explore")} | spent


def with_sb3(task: str, seed: int, rollouts: int) -> dict[str, Any]:
    """Train and evaluate Stable-Baselines3's PPO with its defaults, which are the same."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    begun = clocks()
    env = make_vec_env(task, ENVS, seed=seed)
    if task in SCALED:
        env = VecNormalize(env, clip_obs=CLIP)
    model = PPO("MlpPolicy", env, n_steps=STEPS, seed=seed, device="cpu")
    model.learn(rollouts * ENVS * STEPS, log_interval=None)
    spent = since(begun)
    test = make_vec_env(task, EPISODES, seed=EVALUATION_SEED)
    if isinstance(env, VecNormalize):
        test = VecNormalize(test, training=False, norm_reward=False, clip_obs=CLIP)
        test.obs_rms = env.obs_rms

    def play(deterministic: bool) -> list[float]:
        returns, _ = evaluate_policy(model, test, EPISODES, deterministic, return_episode_rewards=True)
        return [float(x) for x in returns]

    steps = {"steps": model.num_timesteps}
    return steps | {"returns": play(True), "sampled_returns": play(False)} | spent


def one(library: str, task: str, seed: int, rollouts: int) -> None:
    """Make one row in this process. The row goes to stdout; everything a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = {"qscape": with_qscape, "sb3": with_sb3}[library](task, seed, rollouts)
    print(json.dumps(made), file=answers, flush=True)


def row(key: dict[str, Any], python: str, threads: int) -> dict[str, Any]:
    """Make one row in a process of its own.

    Raises:
        SystemExit: the process failed; the message contains the last line of its stderr.
    """
    load = os.getloadavg()[0]
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), "--row", json.dumps(key)],
        capture_output=True,
        text=True,
        env=environment(threads),
        cwd=tempfile.gettempdir(),
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SystemExit(f"{key}: {said[-1] if said else f'ended with code {done.returncode}'}")
    made = json.loads(done.stdout)
    about = {
        "threads": threads,
        "load": [load, os.getloadavg()[0]],
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return key | made | about


def show(rows: Iterable[dict[str, Any]]) -> None:
    """Print for each task and library the returns of the seeds, by mode and sampled, and median seconds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in rows:
        groups.setdefault((each["task"], each["library"]), []).append(each)
    for (task, library), group in sorted(groups.items()):
        means = [float(np.mean(each["returns"])) for each in group]
        seconds, cpu = (np.median([each[what] for each in group]) for what in ("seconds", "cpu_seconds"))
        said = " ".join(f"{mean:.1f}" for mean in means)
        print(f"{task:16}{library:8}{np.mean(means):9.1f}  {seconds:6.1f} s, processor {cpu:.1f} s   {said}")
        if all("sampled_returns" in each for each in group):  # older rows have none
            sampled = [float(np.mean(each["sampled_returns"])) for each in group]
            print(f"{'  sampled':24}{np.mean(sampled):9.1f}   " + " ".join(f"{mean:.1f}" for mean in sampled))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, help=f"of {ENVS * STEPS:,} steps (default: {TASKS})")
    parser.add_argument(
        "--sb3",
        type=os.path.abspath,
        default=sys.executable,
        metavar="PYTHON",
        help="Stable-Baselines3's interpreter",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="rows at a time; seconds mean little with more"
    )
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        return one(**json.loads(given.row))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    there = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    wanted = [
        {"library": library, "task": task, "seed": seed, "rollouts": given.rollouts or TASKS[task]}
        for task in given.tasks
        for seed in range(given.seeds)
        for library in given.libraries
    ]
    missing = [key for key in wanted if not any(key.items() <= made.items() for made in there)]
    print(f"{len(missing)} of {len(wanted)} rows are to be made", flush=True)

    def make_row(key: dict[str, Any]) -> None:
        made = row(key, given.sb3 if key["library"] == "sb3" else sys.executable, given.threads)
        there.append(made)
        with given.out.open("a") as file:
            file.write(json.dumps(made) + "\n")
        show([made])

    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(make_row, missing))
    print()
    show(made for made in there if any(key.items() <= made.items() for key in wanted))
    print(given.out)


if __name__ == "__main__":
    main()
