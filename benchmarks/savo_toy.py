"""Test whether learning finds the higher of two peaks: SAVO on a task of one step, five seeds in one program.

    NPROC=1 python benchmarks/savo_toy.py                          # every row and column
    NPROC=1 python benchmarks/savo_toy.py --rows short --only savo

The observation is 1, the reward Q(a) = exp(-(a + .5)²/.045) + 2 exp(-(a - .6)²/.045), and every step ends
its episode. The first actor starts on the lower peak, at -0.5. Later actors start near 0, between the
peaks. A seed has solved the task if the selected action earns 1.9 at the end.

In the rows `long`, `noisy` and `short`, the critic learns before the actors move. There `td3` and SAVO
without approximation cannot leave their places, and the script exits with an error if one of them solves a
seed. With learned surrogates some seeds solve the task; their number is recorded, not tested. In the row
`raw` the critic has not learned before, and may carry the first actor anywhere.

Writes benchmarks/results/savo_toy/ROW-COLUMN.json: the settings, and the result of each seed.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from qscape import agents
from qscape.envs.native import JaxEnv, Outcome
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import SEED_AXES, State
from qscape.run import scan
from qscape.run.folder import origin
from qscape.types import Event, Key

PLACE = Path(__file__).parent / "results" / "savo_toy"
GRID = jnp.linspace(-1.0, 1.0, 2001)
NEVER = 10**9


class Row(NamedTuple):
    """The phases of a run."""

    warmup: int  # random steps
    steps: int  # after the random steps
    learns_in_warmup: bool  # whether critics and surrogates learn in the warm-up; the actors never do
    epsilon_end: float  # reached 10,000 steps after the random steps


ROWS = {
    "long": Row(5_000, 20_000, True, 0.01),
    "noisy": Row(5_000, 15_000, True, 1.0),
    "short": Row(1_000, 19_000, True, 0.01),
    "raw": Row(1_000, 19_000, False, 0.01),
}
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "td3": ("td3+ou", {}),
    "exact": ("td3+savo", {"savo": {"surrogate": "exact"}}),
    "savo": ("td3+savo", {}),
}


class TwoPeaks(JaxEnv):
    """A task of one step whose reward depends on the action alone."""

    time_limit: int = eqx.field(static=True, kw_only=True, default=1)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, 2.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, key: Key) -> tuple[tuple[()], Array]:
        return (), jnp.ones(1)

    def step(self, state: tuple[()], action: Array, key: Key) -> tuple[tuple[()], Outcome]:
        no = jnp.bool_(False)
        return (), Outcome(jnp.ones(1), reward(action[0]), ~no, no, no)


def reward(a: Array) -> Array:
    """Return the reward of an action: peaks at -0.5 (height 1) and 0.6 (height 2)."""
    return jnp.exp(-jnp.square(a + 0.5) / 0.045) + 2.0 * jnp.exp(-jnp.square(a - 0.6) / 0.045)


def agent_of(column: str, row: Row, **base: Any) -> Agent:
    """Build the agent of a column, bound to the task."""
    recipe, settings = COLUMNS[column]
    base = {
        "actor_hidden": (64, 64),
        "critic_hidden": (64, 64),
        "batch_size": 128,
        "replay_capacity": 30_000,
        "warmup": row.warmup,
        "epsilon_decay": 10_000.0,
        "epsilon_end": row.epsilon_end,
        **base,
    }
    agent = agents.build(recipe, {"base": base, **settings})
    assert isinstance(agent, Agent)
    return agent.on(scan.spec_of(TwoPeaks()))


def on_the_lower_peak(state: State) -> State:
    """Return the state with a first actor whose action is close to -0.5 for every observation."""

    def place(actor: Any) -> Any:
        out = actor.head.out
        moved = 0.01 * out.weight, jnp.full_like(out.bias, jnp.arctanh(-0.5))
        return eqx.tree_at(lambda a: (a.head.out.weight, a.head.out.bias), actor, moved)

    def placed(actor: Any) -> Any:
        return [place(actor[0]), *actor[1:]] if isinstance(actor, list) else place(actor)

    target = None if state.actor_target is None else placed(state.actor_target)
    return state._replace(actor=placed(state.actor), actor_target=target)


def measure(agent: Agent, state: State) -> dict[str, Array]:
    """Return the proposals, the selected action and its reward, and the maximiser of Q_1."""
    obs, acting = jnp.ones((1, 1)), agent.acting(state)
    action = agent.act(acting, None, obs, jnp.ones(1, bool), 0, jax.random.key(0))[0][0, 0]
    no = jnp.bool_(False)
    q = agent.functions(state, Event(state.updates, state.env_steps, no, no)).q
    best = GRID[q(jnp.ones((len(GRID), 1)), GRID[:, None])[0].argmax()]
    proposals = agent.proposals(acting, obs)[0, :, 0]
    return {"proposals": proposals, "action": action, "reward": reward(action), "argmax_q1": best}


def run(row: Row, column: str, seeds: int) -> dict[str, Any]:
    """Train all seeds of one row and column in one program; return what each seed reached."""
    env, keys = TwoPeaks(), jax.random.split(jax.random.key(0), seeds)
    agent = agent_of(column, row)
    # This agent trains critics and surrogates only; it is used in the warm-up.
    still = agent_of(column, row, policy_delay=NEVER)

    def begin(key: Key) -> scan.ReplayRun:
        run = scan.start(agent, env, key, envs=1)
        return run._replace(carry=run.carry._replace(state=on_the_lower_peak(run.state)))

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def further(agent: Agent, run: scan.ReplayRun, due: Array) -> tuple[scan.ReplayRun, scan.StepHistory]:
        axes = (scan.RUN_AXES, 0, None), (scan.RUN_AXES, 0)
        return jax.vmap(partial(scan.run_steps, agent, env), *axes)(run, keys, due)

    looked = jax.jit(jax.vmap(partial(measure, agent), in_axes=(SEED_AXES,)))
    now = jax.jit(jax.vmap(begin, out_axes=scan.RUN_AXES))(keys)
    first, begun = looked(now.state), time.perf_counter()
    now, _ = further(still, now, jnp.full(row.warmup, int(row.learns_in_warmup)))
    now, _ = further(agent, now, jnp.ones(row.steps, jnp.int32))
    last = jax.tree.map(np.asarray, looked(now.state))
    return {
        "solved": [bool(r >= 1.9) for r in last["reward"]],
        "updates": int(now.state.updates),
        "seconds": time.perf_counter() - begun,
        "first": jax.tree.map(lambda x: np.asarray(x).tolist(), first),
        "last": jax.tree.map(lambda x: x.tolist(), last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--only", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=PLACE)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for row in given.rows:
        for column in given.only:
            found = run(ROWS[row], column, given.seeds)
            command = f"python benchmarks/savo_toy.py --rows {row} --only {column} --seeds {given.seeds}"
            about = origin() | {"command": command, "load": os.getloadavg(), "row": ROWS[row]._asdict()}
            about |= {"column": COLUMNS[column]}
            (given.out / f"{row}-{column}.json").write_text(json.dumps(about | found, indent=1) + "\n")
            solved, places = sum(found["solved"]), np.round(found["last"]["proposals"], 3).tolist()
            print(
                f"{row} {column}: {solved} of {given.seeds} solved, {found['seconds']:.0f} s, {places}",
                flush=True,
            )
            trapped = ROWS[row].learns_in_warmup and column != "savo"
            failed += [f"{row} {column}"] if solved and trapped else []
    if failed:
        raise SystemExit(f"solved what cannot be solved by climbing alone: {', '.join(failed)}")


if __name__ == "__main__":
    main()
