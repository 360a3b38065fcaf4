"""Train Brax's own PPO on brax/ant with the settings of its notebook, for comparison with ours.

    python benchmarks/brax_ppo.py                   # on an accelerator
    python benchmarks/brax_ppo.py --steps 100000 --envs 64 --evaluations 3 --out lines.jsonl   # does it run?

The settings are those of github.com/google/brax, notebooks/training.ipynb; `--preset tuned` has them too,
but for two. A line for each evaluation is added to the file: environment steps, seconds since the start
(compiling included), mean return of ten episodes without noise.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

FILE = Path(__file__).parent / "results" / "on_policy" / "brax-ant.jsonl"
KEPT = {
    "eval/episode_reward": "return",
    "eval/episode_reward_std": "std",
    "eval/avg_episode_length": "length",
    "training/sps": "training steps per second",
}


def replicate(tree: Any, devices: Any) -> Any:
    """Put a copy of every array on each device: what Brax 0.14 calls, and JAX 0.11 has no more."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def main() -> None:
    """Train one seed and write its evaluations."""
    from brax import envs
    from brax.training.agents.ppo import train

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000_000)
    parser.add_argument("--envs", type=int, default=4096)
    parser.add_argument("--evaluations", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    jax.device_put_replicated = replicate
    begun = time.perf_counter()

    def write(step: int, metrics: dict[str, Any]) -> None:
        made = {name: float(metrics[key]) for key, name in KEPT.items() if key in metrics}
        about = {"seed": options.seed, "envs": options.envs, "device": jax.devices()[0].device_kind}
        line = {"step": int(step), "seconds": time.perf_counter() - begun, **made, **about}
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    train.train(
        environment=envs.get_environment("ant"),
        num_timesteps=options.steps,
        num_evals=options.evaluations,
        num_envs=options.envs,
        batch_size=options.envs // 2,
        num_minibatches=32,
        unroll_length=5,
        num_updates_per_batch=4,
        discounting=0.97,
        learning_rate=3e-4,
        entropy_cost=1e-2,
        reward_scaling=10,
        normalize_observations=True,
        episode_length=1000,
        deterministic_eval=True,
        num_eval_envs=10,
        seed=options.seed,
        progress_fn=write,
    )


if __name__ == "__main__":
    main()
