"""Train PPO here and Brax's own on one of Brax's tasks, with the settings of Brax's notebook.

    python benchmarks/brax_ppo.py --share 4                # 5 seeds of both on brax/inverted_pendulum
    python benchmarks/brax_ppo.py --task ant --seeds 1 --rollouts 26
    python benchmarks/brax_ppo.py --trainers qscape --settings '{"clipped": {"unroll": 0}}' --arm whole
    python benchmarks/brax_ppo.py --show                   # the table of the runs that are made

The settings are those of github.com/google/brax, notebooks/training.ipynb; ours are `--preset tuned`. With
`--share` k, environments and unrolls in a minibatch are divided by k. Policies are evaluated after every
rollout: 20 episodes without noise, each trainer by its own evaluation. A run is made by a process of its own.
A line for each evaluation is added to the file when the run has ended: environment steps, processor seconds
since the start (compiling included), mean return. Runs that are in the file are not made again, so the script
can be stopped and started at any time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "on_policy"
TRAINERS = ("brax", "qscape")
EPISODES = 20
# Settings of Brax's notebook that the trainers share.
SHARED = {"learning_rate": 3e-4, "reward_scaling": 10, "normalize_observations": True, "episode_length": 1000}


def settings_of(task: str, share: int) -> tuple[int, dict[str, Any]]:
    """Return the number of environments, and Brax's names and values of a row of our preset."""
    from qscape.agents.tuned import BRAX

    names = ("unroll_length", "batch_size", "num_minibatches", "num_updates_per_batch", "discounting")
    envs, *row, entropy = BRAX[task]
    settings = dict(zip(names, row, strict=True)) | {"entropy_cost": entropy, **SHARED}
    return envs // share, settings | {"batch_size": settings["batch_size"] // share}


def replicate(tree: Any, devices: Any) -> Any:
    """Put a copy of every array on each device: what Brax 0.14 calls, and JAX 0.11 has no more."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def with_brax(task: str, seed: int, rollouts: int, share: int) -> list[dict[str, float]]:
    """Return the evaluations of a run of Brax's trainer."""
    import jax
    from brax import envs
    from brax.training.agents.ppo import train

    number, settings = settings_of(task, share)
    jax.device_put_replicated = replicate
    steps = settings["unroll_length"] * settings["batch_size"] * settings["num_minibatches"]
    lines = []

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        found = {"return": "eval/episode_reward", "length": "eval/avg_episode_length"}
        numbers = {name: float(metrics[key]) for name, key in found.items()}
        lines.append({"step": int(step), "seconds": time.process_time(), **numbers})
        print(lines[-1], file=sys.stderr, flush=True)

    train.train(
        environment=envs.get_environment(task),
        num_timesteps=rollouts * steps,
        num_evals=rollouts + 1,
        num_envs=number,
        deterministic_eval=True,
        num_eval_envs=EPISODES,
        seed=seed,
        progress_fn=write,
        **settings,
    )
    return lines


def with_qscape(
    task: str, seed: int, rollouts: int, share: int, settings: dict[str, Any]
) -> list[dict[str, float]]:
    """Return the evaluations of a run of `ppo+normalise --preset tuned`; `settings` win over the preset."""
    from qscape.agents import merge_settings
    from qscape.run.adapters import open_adapters
    from qscape.run.events import Evaluated
    from qscape.run.plan import Plan, prepare
    from qscape.run.training import make_session

    number, theirs = settings_of(task, share)
    batch = theirs["unroll_length"] * theirs["batch_size"]
    size = batch * theirs["num_minibatches"]
    settings = merge_settings({"base": {"batch_size": batch, "rollout": size}}, settings)
    often = {"eval_every": size, "eval_episodes": EPISODES}
    plan = Plan(
        "ppo+normalise",
        f"brax/{task}",
        rollouts * size,
        seed,
        number,
        preset="tuned",
        settings=settings,
        **often,
    )
    plan, agent, _ = prepare(plan)
    session, lines = make_session(plan, agent, *open_adapters(plan, agent)), []
    for event in session.events(plan.steps):
        if isinstance(event, Evaluated):
            numbers = {"return": event.mean, "length": float(np.mean(event.lengths))}
            lines.append({"step": event.step, "seconds": time.process_time(), **numbers})
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of the file; none if there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(file: Path, key: dict[str, Any], settings: dict[str, Any]) -> None:
    """Make a run in a process of its own and add its lines to the file.

    Raises:
        SystemExit: the process failed.
    """
    asked = json.dumps([key, settings])
    done = subprocess.run([sys.executable, __file__, "--run", asked], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{key}: ended with code {done.returncode}")
    made = json.loads(done.stdout.splitlines()[-1])  # Brax prints lines before it
    with file.open("a") as lines:
        lines.writelines(json.dumps(key | line) + "\n" for line in made)


def show(lines: Iterable[dict[str, Any]]) -> None:
    """Print the interquartile mean over seeds with its 95% t interval, for each arm and step."""
    from qscape.report.intervals import estimate, interquartile_mean

    arms: dict[tuple[str, str], dict[int, list[float]]] = {}
    for line in lines:
        arm = arms.setdefault((line["trainer"], line["arm"]), {})
        arm.setdefault(line["step"], []).append(line["return"])
    for (trainer, arm), steps in sorted(arms.items()):
        for step, returns in sorted(steps.items()):
            value, low, high = estimate(interquartile_mean(np.array(returns)[:, None]))
            seeds = " ".join(f"{x:.0f}" for x in returns)
            print(f"{trainer:8}{arm:24}{step:>10,}{value:8.0f} [{low:.0f}, {high:.0f}]   {seeds}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="inverted_pendulum", help="a row of the preset, without brax/")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--share", type=int, default=1, help="divides environments and minibatches")
    parser.add_argument("--arm", default="tuned", help="a name for the settings of ours")
    parser.add_argument("--settings", type=json.loads, default={}, help="of ours, beside the preset's: JSON")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        key, settings = given.run
        asked = (key["task"], key["seed"], key["rollouts"], key["share"])
        made = with_brax(*asked) if key["trainer"] == "brax" else with_qscape(*asked, settings)
        print(json.dumps(made))
        return
    file = given.out or RESULTS / f"beside-brax-{given.task}.jsonl"
    wanted = [
        {"trainer": trainer, "arm": given.arm if trainer == "qscape" else "notebook", "seed": seed}
        | {"task": given.task, "rollouts": given.rollouts, "share": given.share}
        for seed in range(given.seeds)
        for trainer in given.trainers
    ]
    for key in [] if given.show else wanted:
        if not any(key.items() <= line.items() for line in read(file)):
            run(file, key, given.settings if key["trainer"] == "qscape" else {})
    show(read(file))


if __name__ == "__main__":
    main()
