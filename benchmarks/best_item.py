"""What the critics of a study on an action table know: the return of taking the row of the largest Q, always.

    NPROC=1 python benchmarks/best_item.py runs/savo-recsim

For every finished run, by its last save: the mean return over the same 100 episodes of its own policy, and of
max_a Q_1(s, a) over the whole table. Where the second is as low as the first, a better search would not help:
the critic is what falls short. Prints a line for each run, and writes all to benchmarks/results/best_item.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape.inspect.subject import Subject, of_run, values
from qscape.report.runs import find_runs
from qscape.run.evaluation import SEED
from qscape.run.folder import origin, unfinished

PLACE = Path(__file__).parent / "results" / "best_item"
EPISODES = 100


def best_rows(subject: Subject) -> Any:
    """observations [N, S] -> the table's rows [N, A] of the largest Q_1."""
    agent, table = subject.agent, jnp.asarray(subject.agent.task.table)

    def one(obs: jax.Array) -> jax.Array:
        at = jnp.broadcast_to(obs, (len(table), obs.size))
        return table[values(agent, subject.acting, at, table)[0].argmax()]

    return jax.jit(lambda obs: jax.lax.map(one, obs))


def returns(subject: Subject, act: Any) -> list[float]:
    """Of `EPISODES` whole episodes, side by side."""
    edge, done = subject.make(envs=EPISODES, seed=SEED), {}
    obs = edge.reset()
    while len(done) < EPISODES:
        step = edge.step(np.asarray(act(obs)))
        obs = step.observation
        done |= {e.env: e.ret for e in step.finished if e.env not in done}
    edge.close()
    return [done[k] for k in range(EPISODES)]


def main() -> None:
    """Measure all finished runs below a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    runs, measured = parser.parse_args().runs, []
    for folder in find_runs(runs):
        if unfinished(folder):
            continue
        subject = of_run(folder, current=True)
        own, best = returns(subject, subject.act), returns(subject, best_rows(subject))
        which = str(folder.parent.relative_to(runs))
        measured.append({"which": which, "seed": int(folder.name), "own": own, "best": best})
        print(f"{which}/{folder.name}: own {np.mean(own):.2f}, best row {np.mean(best):.2f}", flush=True)
    PLACE.mkdir(exist_ok=True)
    file = PLACE / f"{runs.name}.json"
    about = {"command": " ".join(["python", *sys.argv]), "episodes": EPISODES, "measured": measured}
    file.write_text(json.dumps(origin() | about, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
