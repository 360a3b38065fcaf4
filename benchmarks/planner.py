"""Measure reference scores by a planner that tries plans in the simulator.

    NPROC=1 python benchmarks/planner.py                             # all tasks, 5 episodes each: hours
    NPROC=1 python benchmarks/planner.py restricted/Walker2d-v0 --episodes 1

The method is sampling-based predictive control (after arXiv 2212.00541). A plan is a sequence of the next
actions. At every step the planner samples variations of its plan and evaluates them in the simulator. The
best variation becomes the new plan, or the weighted mean of the best ones if that is better still. The
planner then takes the plan's first action. If only some actions are valid, all actions of a plan are moved
to the nearest valid ones. The recorded returns are those of the environment. The planner maximises the same
rewards, plus the terms of `Task`.

Appends one line for each episode to benchmarks/results/planner/ID.jsonl and makes only missing episodes.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from jaxtyping import Float

from qscape.envs.restricted import Restricted
from qscape.run.folder import origin

PLACE = Path(__file__).parent / "results" / "planner"
FIRST_SEED = 1000
ELITES = 6
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
Plan = Float[np.ndarray, "H A"]  # normalised actions


def upright(env: Any) -> float:
    """Return a penalty for lean, bent knee, bent foot, and speed above 0.5, for Hopper.

    Without it, Hopper runs into falls that lie beyond the plan's horizon. With it, Hopper stands, so its
    score is the return that is possible without hopping.
    """
    _, _, lean, _, knee, foot = env.data.qpos
    faster = max(0.0, float(env.data.qvel[0]) - 0.5)
    return -20.0 * lean**2 - 2.0 * knee**2 - 5.0 * foot**2 - 2.0 * faster


def to_the_handle(env: Any) -> float:
    """Return a penalty of 0.2 per metre between palm and handle, as in the dense reward of version 1."""
    sites = env.data.site_xpos
    return -0.2 * float(np.linalg.norm(sites[env.grasp_site_id] - sites[env.handle_site_id]))


def to_the_hammer(env: Any) -> float:
    """Return a penalty of 0.2 per metre between palm and hammer."""
    palm, hammer = env.data.site_xpos[env.S_grasp_site_id], env.data.xpos[env.obj_body_id]
    return -0.2 * float(np.linalg.norm(palm - hammer))


def in_the_hand(env: Any) -> float:
    """Return a penalty of 10 per metre between pen and hand, because a dropped pen is not picked up again."""
    place = env.data.site_xpos[env.eps_ball_site_id]
    return -10.0 * float(np.linalg.norm(env.data.xpos[env.obj_body_id] - place))


class Task(NamedTuple):
    """How plans are sampled, and what the planner maximises besides rewards."""

    horizon: int  # length of a plan in steps
    samples: int
    spread: float  # standard deviation of variations; a random half of them uses 0.3 times this
    hold: int  # steps between two knots of a variation, which is linear between knots
    fall: float = 0.0  # penalty for terminating the episode
    more: Callable[[Any], float] = lambda env: 0.0


TASKS = {
    "restricted/Hopper-v0": Task(80, 40, 0.5, 10, fall=300.0, more=upright),
    "restricted/Walker2d-v0": Task(80, 60, 0.5, 12, fall=300.0),
    "AdroitHandDoor-v1": Task(25, 50, 0.5, 8, more=to_the_handle),
    "AdroitHandHammer-v1": Task(25, 50, 0.5, 8, more=to_the_hammer),
    "AdroitHandPen-v1": Task(25, 50, 0.3, 5, more=in_the_hand),
}


class Planner:
    """Plans in the environment's own simulation, and restores its state afterwards."""

    def __init__(self, env: gym.Env, task: Task, seed: int) -> None:
        self.task, self.random = task, np.random.default_rng(seed)
        while isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker):
            env = env.env
        self.balls = None
        if isinstance(env, Restricted):  # slightly smaller, so that rounding to float32 stays valid
            self.balls, env = copy.copy(env), env.env
            self.balls.radii = self.balls.radii * (1.0 - 1e-5)
        self.env: Any = env  # plans hold valid actions only, so the wrapper is not needed
        self.simulation = env.unwrapped.model, env.unwrapped.data
        space = env.action_space
        self.middle, self.half = (space.low + space.high) / 2, (space.high - space.low) / 2
        self.plan = self.valid(np.zeros((task.horizon, *space.shape)))

    def valid(self, plans: Float[np.ndarray, "*n H A"]) -> Float[np.ndarray, "*n H A"]:
        plans = np.clip(plans, -1.0, 1.0)
        return plans if self.balls is None else self.balls.project(plans)

    def in_units(self, action: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
        return (self.middle + self.half * action).astype(np.float32)

    def value(self, start: Float[np.ndarray, " state"], plan: Plan) -> float:
        """Return the value of a plan from a state: its rewards plus the terms of the task."""
        self.back_to(start)
        total = 0.0
        for action in plan:
            _, reward, terminated, _, _ = self.env.step(self.in_units(action))
            total += float(reward) + self.task.more(self.env.unwrapped)
            if terminated:
                return total - self.task.fall
        return total

    def back_to(self, state: Float[np.ndarray, " state"]) -> None:
        mujoco.mj_setState(*self.simulation, state, STATE)
        mujoco.mj_forward(*self.simulation)

    def variations(self) -> Float[np.ndarray, "n H A"]:
        """Sample variations of the plan: linear between random knots, whose grid has a random offset."""
        task, n = self.task, self.task.samples
        at = np.arange(task.horizon) / task.hold + self.random.uniform()
        before, share = at.astype(int), (at % 1.0)[:, None]
        knots = self.random.normal(0.0, task.spread, (n, before[-1] + 2, self.plan.shape[1]))
        knots *= self.random.choice([0.3, 1.0], (n, 1, 1))
        return self.plan + knots[:, before] * (1.0 - share) + knots[:, before + 1] * share

    def action(self) -> Float[np.ndarray, " A"]:
        """Improve the plan, return its first action in the environment's units, and shift the plan."""
        start = np.empty(mujoco.mj_stateSize(self.simulation[0], STATE))
        mujoco.mj_getState(*self.simulation, start, STATE)
        plans = np.concatenate([self.plan[None], self.valid(self.variations())])
        values = np.array([self.value(start, plan) for plan in plans])
        best = np.argsort(-values)[:ELITES]
        weights = np.exp((values[best] - values[best[0]]) / (values[best].std() + 1e-9))
        mean = self.valid(np.average(plans[best], 0, weights))
        chosen = mean if self.value(start, mean) >= values[best[0]] else plans[best[0]]
        self.back_to(start)
        self.plan = np.concatenate([chosen[1:], chosen[-1:]])
        return self.in_units(chosen[0])


def episode(env_id: str, seed: int) -> dict[str, Any]:
    """Play one episode; return its return, length, success (if the task reports it) and duration."""
    begun, env = time.perf_counter(), gym.make(env_id)
    env.reset(seed=seed)
    planner = Planner(env, TASKS[env_id], seed)
    total, length, success, over = 0.0, 0, False, False
    while not over:
        _, reward, terminated, truncated, info = env.step(planner.action())
        total, length, over = total + float(reward), length + 1, terminated or truncated
        success = success or bool(info.get("success", False))
    return {
        "seed": seed,
        "return": total,
        "length": length,
        "success": success,
        "seconds": round(time.perf_counter() - begun),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help=", ".join(TASKS))
    parser.add_argument("--episodes", type=int, default=5)
    given = parser.parse_args()
    if unknown := set(given.ids) - set(TASKS):
        parser.error(f"no settings for {', '.join(sorted(unknown))}; there are: {', '.join(TASKS)}")
    gym.register_envs(gymnasium_robotics)
    PLACE.mkdir(parents=True, exist_ok=True)
    for env_id in given.ids or TASKS:
        file = PLACE / f"{env_id.replace('/', '-')}.jsonl"
        done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for seed in range(FIRST_SEED + len(done), FIRST_SEED + given.episodes):
            task = {k: v for k, v in TASKS[env_id]._asdict().items() if k != "more"}
            command = f"python benchmarks/planner.py {env_id} --episodes {given.episodes}"
            about = origin() | {"command": command, "load": os.getloadavg()}
            made = episode(env_id, seed) | task | about
            done.append(made)
            with file.open("a") as out:
                out.write(json.dumps(made) + "\n")
        returns = np.array([row["return"] for row in done])
        error = returns.std(ddof=1) / np.sqrt(len(returns))
        success = np.mean([row["success"] for row in done])
        print(f"| {env_id} | {returns.mean():.1f} ± {error:.1f} | {success:.2f} | {len(done)} |", flush=True)


if __name__ == "__main__":
    main()
