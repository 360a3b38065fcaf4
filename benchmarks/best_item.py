"""Measure what the critics of a study on an action table know, apart from the search.

    NPROC=1 python benchmarks/best_item.py runs/savo-recsim

For the last save of every finished run, the script plays the same 100 episodes twice: with the run's own
policy, and with argmax_a Q_1(s, a) over the whole table. If the second return is low too, a better search
would not help much, because the critic falls short. The script also measures how far the policy's actions
are below the maximum of Q_1, as a share of Q_1's range. It prints one line for each run and writes all
numbers to benchmarks/results/best_item.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measured
import numpy as np

from qscape.inspect.trained_agent import TrainedAgent, critic_values, load_trained_agent
from qscape.run.evaluation import SEED

EPISODES = 100


def searched(agent: Any) -> Any:
    """Compile the search for the best row of the action table.

    The returned function takes (acting, observations [N, S], actions [N, A]). It returns the rows [N, A] of
    the largest Q_1, and how far the actions are below that maximum [N], as a share of Q_1's range.
    """
    table = jnp.asarray(agent.task.table)

    def one(acting: Any, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = jnp.broadcast_to(obs, (len(table), obs.size))
        q = critic_values(agent, acting, at, table)[0]
        own = critic_values(agent, acting, obs[None], action[None])[0][0]
        return table[q.argmax()], (q.max() - own) / (q.max() - q.min())

    return jax.jit(lambda acting, obs, action: jax.lax.map(lambda x: one(acting, *x), (obs, action)))


def returns(trained: TrainedAgent, program: Any, best: bool) -> tuple[list[float], float]:
    """Play `EPISODES` whole episodes side by side; return their returns and the mean gap to the best row.

    Args:
        program: the compiled search of `searched`.
        best: act by the best row instead of the own policy.
    """
    adapter, done, shares = trained.make(envs=EPISODES, seed=SEED), {}, []
    obs = adapter.reset()
    while len(done) < EPISODES:
        own = trained.act(obs)
        rows, share = program(trained.acting, obs, own)
        shares.append(np.mean(share))
        step = adapter.step(np.asarray(rows if best else own))
        obs = step.observation
        done |= {e.env: e.ret for e in step.finished if e.env not in done}
    adapter.close()
    return [done[k] for k in range(EPISODES)], float(np.mean(shares))


def main() -> None:
    """Measure all finished runs in a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    runs, rows, programs = parser.parse_args().runs, [], {}
    folders, left_out = measured.finished(runs)
    for folder in folders:
        trained = load_trained_agent(folder, current=True)
        which = str(folder.parent.relative_to(runs))
        program = programs.setdefault(which, searched(trained.agent))
        (own, share), (best, _) = (returns(trained, program, best) for best in (False, True))
        found = {"which": which, "seed": int(folder.name), "own": own, "best": best, "share": share}
        rows.append(found)
        said = f"own {np.mean(own):.2f}, {share:.3f} of Q's range below; best row {np.mean(best):.2f}"
        print(f"{which}/{folder.name}: {said}", flush=True)
    measured.write("best_item", runs.name, episodes=EPISODES, left_out=left_out, measured=rows)


if __name__ == "__main__":
    main()
