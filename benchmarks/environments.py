"""Measure reference scores of the project's environments, and the speed of the JAX-native ones.

    python benchmarks/environments.py [scores] [speed]

Prints the tables of docs/reference/environments.md: the mean return over episodes ± its standard error, the
mean length of an episode, and the share of successes if the task reports success.
"""

import argparse
import time

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from qscape.envs import make
from qscape.envs.native import JaxEnv, find_jax_env, play, step_autoreset

KEY, HOST_EPISODES = jax.random.key(0), 100
NATIVE = {  # id: (episodes, arguments)
    "mineworld/MineWorld-v0": 1000,
    "recsim/10k-v0": 4000,
    "recsim/100k-v0": 1000,
    "recsim/500k-v0": 200,
    "recsim/DataSynthetic-v0": 4000,
    "cliff/IdealCliffWalking-v0": 10_000,
    "jax/CartPole-v1": 1000,
}
RESTRICTED = [
    f"restricted/{task}-v0" for task in ("Hopper", "Walker2d", "InvertedPendulum", "InvertedDoublePendulum")
]
ADROIT = [f"AdroitHand{task}-v1" for task in ("Door", "Hammer", "Pen")]


def scripted(env_id: str, env: JaxEnv) -> dict:
    """Return the scripted policies of a task, by name."""
    from qscape.envs import mineworld, recsim, recsim_data

    if env_id == "mineworld/MineWorld-v0":
        return {"right or down, a tool that fits": Partial(mineworld.guide, env)}
    if env_id == "recsim/DataSynthetic-v0":
        return {
            "the most popular item": Partial(recsim_data.popular, env),
            "myopic oracle": Partial(recsim_data.oracle, env),
        }
    if env_id.startswith("recsim"):
        return {"myopic greedy": Partial(recsim.greedy, env)}
    if env_id.startswith("cliff"):
        q = jnp.asarray(env.optimal_q())
        return {"optimal": lambda state, seen, key: jnp.argmax(seen @ q)}
    lean = jnp.array([0.02, 0.05, 1.0, 0.5])
    return {"linear: 0.02 x + 0.05 ẋ + θ + 0.5 θ̇ > 0": lambda state, seen, key: (seen @ lean > 0).astype(int)}


def scores() -> None:
    """Print the scores of random and scripted policies."""
    for env_id, episodes in NATIVE.items():
        env = find_jax_env(gym.make(env_id))
        count = int(env.action_space.n)
        policies = {"random": lambda state, seen, key, n=count: jax.random.randint(key, (), 0, n)}
        for name, policy in (policies | scripted(env_id, env)).items():
            # In blocks: a greedy choice among 500,000 items for many users at once would fill the memory.
            blocks = [play(env, policy, key, 50) for key in jax.random.split(KEY, episodes // 50)]
            tell(
                env_id,
                name,
                *(np.concatenate([getattr(b, f) for b in blocks]) for f in ("ret", "length", "success")),
            )
    for env_id in [*RESTRICTED, *ADROIT]:
        for name in ("random", "zero"):
            adapter = make(env_id, seed=1000)
            adapter.reset()
            random, done = np.random.default_rng(0), []
            while len(done) < HOST_EPISODES:
                action = random.uniform(-1, 1, (1, adapter.spec.action_size)) * (name == "random")
                done += adapter.step(action.astype(np.float32)).finished
            columns = zip(*[(e.ret, e.length, e.success or 0.0) for e in done], strict=True)
            tell(env_id, name, *map(np.array, columns))


def tell(env_id: str, name: str, ret: np.ndarray, length: np.ndarray, success: np.ndarray) -> None:
    error = ret.std(ddof=1) / np.sqrt(len(ret))
    print(
        f"| {env_id} | {name} | {ret.mean():.2f} ± {error:.2f} | {length.mean():.1f} | {success.mean():.3f} "
        f"| {len(ret)} |",
        flush=True,
    )


def speed(batch: int = 1024, steps: int = 200) -> None:
    """Print environment steps per second: a vmapped batch in one scan, random actions, resets included."""

    @jax.jit
    def run(env: JaxEnv, key: jax.Array) -> jax.Array:
        state, _ = jax.vmap(env.reset)(jax.random.split(key, batch))

        def step(state, key):
            keys = jax.random.split(key, batch + 1)
            action = jax.random.randint(keys[0], (batch,), 0, env.action_space.n)
            state, seen, outcome = jax.vmap(step_autoreset, (None, 0, 0, 0))(env, state, action, keys[1:])
            return state, outcome.reward.sum() + seen.sum()

        return jax.lax.scan(step, state, jax.random.split(key, steps))[1].sum()

    for env_id in NATIVE:
        env = find_jax_env(gym.make(env_id))
        run(env, KEY).block_until_ready()
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            run(env, KEY).block_until_ready()
            best = min(best, time.perf_counter() - begin)
        print(f"| {env_id} | {batch * steps / best:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = {"scores": scores, "speed": speed}
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="scores or speed (default: both)")
    asked = parser.parse_args().tables or [*tables]
    if unknown := {*asked} - {*tables}:
        parser.error(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    for name in asked:
        tables[name]()


if __name__ == "__main__":
    main()
