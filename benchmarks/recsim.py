"""Compare three ways to train several seeds on RecSim with 10,000 items, in environment steps per second.

    NPROC=1 python benchmarks/recsim.py                      # td3+savo, the paper's settings, 5 seeds
    NPROC=1 python benchmarks/recsim.py --recipe td3+ou --seeds 10
    NPROC=1 python benchmarks/recsim.py --seeds 2 --steps 400 --turns 1   # a quick test of the script

- `together` is one compiled program for all seeds under `vmap`.
- `apart` is the same program for one seed, called for one seed after the other.
- `loop` is the ordinary loop of one seed, without evaluations and run folder.

Environments, agent, replay and updates are the same in all three: 16 environments per seed, the preset
`paper` (0.02 updates per step), and about 1,000 random steps, which are not timed. The three take turns, so
that a disturbance affects each of them. The script prints the median of environment steps per second,
summed over seeds, and writes the raw seconds to benchmarks/results/recsim.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import jax

from qscape.envs import make
from qscape.envs.native import JaxEnv, find_jax_env
from qscape.offpolicy.agent import Agent
from qscape.run import scan
from qscape.run.folder import origin
from qscape.run.plan import Plan, prepare
from qscape.run.training import make_session

PLACE = Path(__file__).parent / "results" / "recsim"
ENV, ENVS, WARM_UP = "recsim/10k-v0", 16, 1_008
BLOCK = 400  # environment steps in which a whole number of updates is due: 8


def scans(agent: Agent, env: JaxEnv, seeds: int, steps: int) -> dict[str, Callable[[], None]]:
    """Return `together` and `apart`; each call of them makes `steps` steps of every seed."""
    keys = jax.random.split(jax.random.key(0), seeds)
    due = scan.update_counts(agent, envs=ENVS, steps=WARM_UP + steps)
    warm, due = due[: WARM_UP // ENVS], due[WARM_UP // ENVS :]
    begin, go = partial(scan.start, agent, env, envs=ENVS), partial(scan.run_steps, agent, env)
    axes = (scan.RUN_AXES, 0, None), (scan.RUN_AXES, 0)
    one, all_ = jax.jit(go, donate_argnums=0), jax.jit(jax.vmap(go, *axes), donate_argnums=0)
    begin_all = jax.jit(jax.vmap(begin, out_axes=scan.RUN_AXES))
    runs_together = all_(begin_all(keys), keys, warm)[0]
    runs = [one(jax.jit(begin)(key), key, warm)[0] for key in keys]

    def together() -> None:
        nonlocal runs_together
        runs_together, history = all_(runs_together, keys, due)
        jax.block_until_ready(history)

    def apart() -> None:
        for i, key in enumerate(keys):
            runs[i], history = one(runs[i], key, due)
            jax.block_until_ready(history)

    return {"together": together, "apart": apart}


def loop(plan: Plan, agent: Agent, steps: int) -> Callable[[], None]:
    """Return the ordinary loop of one seed; each call of it makes `steps` steps."""
    trainer = make_session(plan, agent, make(ENV, ENVS))

    def advance(steps: int) -> None:
        for _ in trainer.events(trainer.env_steps + steps):
            pass
        jax.block_until_ready((trainer.learner.state, trainer.learner.carry.replay_state))

    advance(WARM_UP)
    return partial(advance, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="td3+savo")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8_000, help="of each seed in a turn; a multiple of 400")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.steps % BLOCK:
        parser.error(f"--steps {given.steps} is no multiple of {BLOCK}")
    rows = 2 * WARM_UP + given.steps * (given.turns + 1)
    base = {"warmup": WARM_UP, "replay_capacity": rows}
    plan = Plan(given.recipe, ENV, 10**6, envs=ENVS, settings={"base": base}, preset="paper", eval_every=0)
    plan, agent, notes = prepare(plan)
    env = find_jax_env(gym.make(ENV))
    assert isinstance(agent, Agent)
    assert env is not None
    made = scans(agent.on(scan.spec_of(env)), env, given.seeds, given.steps)
    made["loop"] = loop(plan, agent, given.steps)
    for turn in made.values():  # the first call compiles
        turn()
    load = os.getloadavg()
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(given.turns):
        for name, turn in made.items():
            begun = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - begun)
    steps = {name: given.steps * (1 if name == "loop" else given.seeds) for name in made}
    rate = {name: steps[name] / statistics.median(seconds[name]) for name in made}
    for name, value in rate.items():
        print(f"{name:10}{value:10,.0f} steps/s")
    print(f"together / apart {rate['together'] / rate['apart']:.2f}")
    print(f"apart / loop     {rate['apart'] / rate['loop']:.2f}")
    print(f"together / loop  {rate['together'] / rate['loop']:.2f}")
    about = origin() | {
        "command": " ".join(["python", *sys.argv]),
        "settings": notes,
        "envs": ENVS,
        "seeds": given.seeds,
        "load before": load,
        "load after": os.getloadavg(),
        "steps in a turn": steps,
        "seconds": seconds,
    }
    file = given.out or PLACE / f"{time.strftime('%Y-%m-%d')}-{given.recipe}-{given.seeds}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
