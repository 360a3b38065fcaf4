"""Measure reference scores of the project's environments, and the speed of the JAX-native ones.

    NPROC=1 python benchmarks/environments.py scores    # six minutes; load does not change them
    NPROC=1 python benchmarks/environments.py speed     # half a minute, on a machine that does nothing else

Scores are the returns of random and scripted policies, and of a linear controller of the restricted pendulums
(LQR). Random policies play Gymnasium's own tasks, too, for the reference scores of `qscape compare`. Adroit
needs the extra `robotics`. Each table renews its part of benchmarks/results/environments.json and leaves the
other one: every episode's return, length and success, or the seconds of every turn.
"""

import argparse
import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import measured
import mujoco
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float
from scipy.linalg import expm, solve_discrete_are

from qscape.envs import make
from qscape.envs.native import Episodes, JaxEnv, find_jax_env, play, step_autoreset
from qscape.envs.restricted import Restricted

# All random numbers: of the compiled episodes, of the host's environment, of its random actions, and of the
# episodes of LQR.
SEEDS = {"key": 0, "environment": 1000, "actions": 0, "lqr": [*range(10)]}
KEY, HOST_EPISODES = jax.random.key(SEEDS["key"]), 100
BATCH, STEPS, TURNS = 1024, 200, 5  # of the measurements of speed
NATIVE = {  # id: episodes
    "mineworld/MineWorld-v0": 1000,
    "recsim/10k-v0": 4000,
    "recsim/100k-v0": 1000,
    "recsim/500k-v0": 200,
    "recsim/DataSynthetic-v0": 4000,
    "cliff/IdealCliffWalking-v0": 10_000,
    "jax/CartPole-v1": 1000,
}
PENDULUMS = [f"restricted/{task}-v0" for task in ("InvertedPendulum", "InvertedDoublePendulum")]
RESTRICTED = ["restricted/Hopper-v0", "restricted/Walker2d-v0", *PENDULUMS]
ADROIT = [f"AdroitHand{task}-v1" for task in ("Door", "Hammer", "Pen")]
OTHERS = [
    *("Pendulum-v1", "MountainCarContinuous-v0"),
    *(f"{task}-v5" for task in ("InvertedPendulum", "InvertedDoublePendulum", "Hopper", "Walker2d")),
    *(f"{task}-v5" for task in ("Reacher", "HalfCheetah", "Ant", "Swimmer", "Pusher", "Humanoid")),
    "HumanoidStandup-v5",
]
Played = Iterable[tuple[float, int, float]]  # return, length, success of each episode


def scripted(env_id: str, env: JaxEnv) -> dict[str, Callable]:
    """Return the scripted policies of a task, by name."""
    from qscape.envs import mineworld, recsim, recsim_data

    if env_id == "mineworld/MineWorld-v0":
        return {"right or down, always with a tool that fits": Partial(mineworld.guide, env)}
    if env_id == "recsim/DataSynthetic-v0":
        return {
            "the most popular item": Partial(recsim_data.popular, env),
            "myopic oracle, which knows b_i": Partial(recsim_data.oracle, env),
        }
    if env_id.startswith("recsim"):
        return {"myopic": Partial(recsim.greedy, env)}
    if env_id.startswith("cliff"):
        q = jnp.asarray(env.optimal_q())
        return {"optimal": lambda state, seen, key: jnp.argmax(seen @ q)}
    lean = jnp.array([0.02, 0.05, 1.0, 0.5])
    right = "right where 0.02 x + 0.05 ẋ + θ + 0.5 θ̇ > 0"
    return {right: lambda state, seen, key: (seen @ lean > 0).astype(int)}


def play_compiled(env_id: str, episodes: int) -> Iterator[tuple[str, Played]]:
    """Yield name and episodes of the random and the scripted policies of a JAX-native task."""
    env = find_jax_env(gym.make(env_id))
    count = int(env.action_space.n)
    policies = {"random": lambda state, seen, key: jax.random.randint(key, (), 0, count)}
    for name, policy in (policies | scripted(env_id, env)).items():
        # In blocks: a greedy choice among 500,000 items for many users at once would fill the memory.
        blocks = [play(env, policy, key, 50) for key in jax.random.split(KEY, episodes // 50)]
        columns = (np.concatenate([getattr(b, field) for b in blocks]) for field in Episodes._fields)
        yield name, zip(*columns, strict=True)


def play_on_host(env_id: str, scale: float) -> Played:
    """Play a Gymnasium task with uniform actions in [-scale, scale] of the normalised action space."""
    adapter, random, done = (
        make(env_id, seed=SEEDS["environment"]),
        np.random.default_rng(SEEDS["actions"]),
        [],
    )
    adapter.reset()
    while len(done) < HOST_EPISODES:
        action = scale * random.uniform(-1, 1, (1, adapter.spec.action_size))
        done += adapter.step(action.astype(np.float32)).finished
    adapter.close()
    return [(e.ret, e.length, e.success or 0.0) for e in done]


def linear_gain(env: Any) -> Float[np.ndarray, " 2n"]:
    """Compute the gain of LQR for an upright pendulum: force = -gain @ (positions, velocities).

    The accelerations around the upright state are linearised, and integrated over one control step.
    """
    model, data = env.model, env.data
    n, tiny = model.nv, 1e-5

    def accelerate(point: np.ndarray) -> np.ndarray:
        data.qpos[:], data.qvel[:], data.ctrl[:] = np.split(point, [n, 2 * n])
        mujoco.mj_forward(model, data)
        return data.qacc.copy()

    slopes = [(accelerate(tiny * e) - accelerate(-tiny * e)) / (2 * tiny) for e in np.eye(2 * n + 1)]
    rates = np.zeros((2 * n + 1, 2 * n + 1))
    rates[:n, n : 2 * n], rates[n : 2 * n] = np.eye(n), np.transpose(slopes)
    step = expm(env.dt * rates)
    a, b = step[: 2 * n, : 2 * n], step[: 2 * n, 2 * n :]
    price, weights = np.array([[0.1]]), np.diag([1.0] + [10.0] * (n - 1) + [0.1] * n)
    value = solve_discrete_are(a, b, weights, price)
    return np.linalg.solve(price + b.T @ value @ b, b.T @ value @ a)[0]


def play_lqr(env_id: str, project: bool) -> Played:
    """Balance a restricted pendulum by LQR; `project` moves its actions to the nearest valid ones."""
    env = inner = gym.make(env_id)
    while not isinstance(inner, Restricted):
        inner = inner.env
    balls, state = copy.copy(inner), inner.unwrapped.data
    balls.radii = balls.radii * (1.0 - 1e-5)  # so that rounding to float32 stays valid
    gain = linear_gain(inner.unwrapped)
    for seed in SEEDS["lqr"]:
        env.reset(seed=seed)
        total, length, over = 0.0, 0, False
        while not over:
            force = -gain @ np.concatenate([state.qpos, state.qvel])
            action = np.clip([force], *(env.action_space.low, env.action_space.high)) / inner.half
            action = balls.project(action) if project else action
            _, reward, terminated, truncated, _ = env.step((action * inner.half).astype(np.float32))
            total, length, over = total + float(reward), length + 1, terminated or truncated
        yield total, length, 0.0


def played() -> Iterator[tuple[str, str, Played]]:
    """Yield task, policy and episodes of everything that has a score."""
    for env_id, episodes in NATIVE.items():
        for name, of in play_compiled(env_id, episodes):
            yield env_id, name, of
    for env_id in [*RESTRICTED, *ADROIT, *OTHERS]:
        yield env_id, "random", play_on_host(env_id, 1.0)
    for env_id in [*RESTRICTED, *ADROIT]:
        yield env_id, "zero", play_on_host(env_id, 0.0)
    for env_id in PENDULUMS:
        yield env_id, "LQR, moved to valid actions", play_lqr(env_id, project=True)
        yield env_id, "LQR", play_lqr(env_id, project=False)


def count_equal(episodes: Played) -> dict[str, list]:
    """Write each different episode once, in the order in which they came, and how often it was played."""
    counts = Counter((float(f"{ret:.7g}"), int(length), float(success)) for ret, length, success in episodes)
    names = ("return", "length", "success")
    columns = zip(*counts, strict=True)
    return {name: [*column] for name, column in zip(names, columns, strict=True)} | {
        "times": [*counts.values()]
    }


def scores() -> None:
    """Record the scores of random and scripted policies."""
    rows = []
    for env_id, policy, episodes in played():
        rows.append({"env": env_id, "policy": policy} | count_equal(episodes))
        times = rows[-1]["times"]
        mean = np.average(rows[-1]["return"], weights=times)
        print(f"{env_id}, {policy}: {mean:.2f}, {sum(times)} episodes", flush=True)
    measured.renew_part("environments", "scores", seeds=SEEDS, rows=rows)


def speed() -> None:
    """Record the seconds of a vmapped batch in one scan, random actions, resets included."""

    @jax.jit
    def run(env: JaxEnv, key: jax.Array) -> jax.Array:
        state, _ = jax.vmap(env.reset)(jax.random.split(key, BATCH))

        def step(state, key):
            keys = jax.random.split(key, BATCH + 1)
            action = jax.random.randint(keys[0], (BATCH,), 0, env.action_space.n)
            state, seen, outcome = jax.vmap(step_autoreset, (None, 0, 0, 0))(env, state, action, keys[1:])
            return state, outcome.reward.sum() + seen.sum()

        return jax.lax.scan(step, state, jax.random.split(key, STEPS))[1].sum()

    load, seconds = os.getloadavg(), {}
    for env_id in NATIVE:
        env = find_jax_env(gym.make(env_id))
        seconds[env_id] = measured.time_turns(lambda env=env: run(env, KEY), TURNS)
        print(f"{env_id}: {BATCH * STEPS / np.median(seconds[env_id]):,.0f} steps/s", flush=True)
    about = {"load": load, "environment steps": BATCH * STEPS, "environments": BATCH}
    measured.renew_part("environments", "speed", **about, seconds=seconds)


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
