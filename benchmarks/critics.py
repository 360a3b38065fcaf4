"""Measure the critics of a study beside each other, at states that the policies of all of them visit.

    qscape study run critics
    NPROC=1 python benchmarks/critics.py runs/critics

For each environment and seed, the script takes states from ten episodes of every finished run's last policy,
evenly, about 200 in all. At these states it measures each run's own Q: the local optima whose prominence is
above 1% of Q's range, how far the policy's action is below the best action found (as a share of that range),
and the second derivatives at the policy's action, of which the ratio bounds how fast a policy can change
(PAVE: M over mu). Second derivatives are divided by Q's range at the state, so that critics of other scales
can be compared. Writes all numbers to benchmarks/results/critics/STUDY.json; averages over states, never over
seeds.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from qscape.inspect.geometry import GeometryProbe
from qscape.inspect.survey import Surveyor, pick_states
from qscape.inspect.trained_agent import TrainedAgent, load_trained_agent
from qscape.report.runs import find_runs
from qscape.run.folder import origin, unfinished

PLACE = Path(__file__).parent / "results" / "critics"
STATES, EPISODES = 200, 10


def measure(trained: TrainedAgent, obs: np.ndarray) -> dict[str, float]:
    """Measure the landscape of one agent's Q at given states, and its derivatives at the agent's actions."""
    survey = Surveyor(trained.agent, with_surrogates=False)(trained.acting, obs)
    at = GeometryProbe(trained.agent).points(trained.acting, obs, survey.action)
    range_of_q = np.maximum(survey.span, 1e-12)
    mixed, trace = at.mixed_norm / range_of_q, np.abs(at.trace) / range_of_q
    return {
        "optima": float(survey.optima.mean()),
        "several": float((survey.optima > 1).mean()),
        "gap_share": float(survey.share(survey.gap).mean()),
        "first_gap_share": float(survey.share(survey.gaps[:, 0]).mean()),
        "range": float(survey.span.mean()),
        "mixed_mean": float(mixed.mean()),
        "mixed_sup": float(mixed.max()),
        "trace_mean": float(trace.mean()),
        "concave": float((at.lambda_max < 0).mean()),
    }


def main() -> None:
    """Measure all finished runs of a study and write the numbers to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    groups: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for folder in find_runs(runs):
        if not unfinished(folder):
            groups[folder.parents[1].name, int(folder.name)].append(folder)
    rows: list[dict[str, Any]] = []
    for (_, seed), folders in sorted(groups.items()):
        agents = [load_trained_agent(folder, current=True) for folder in sorted(folders)]
        share = max(1, STATES // len(agents))
        obs = np.concatenate([pick_states(one.rollouts(EPISODES), share)[1] for one in agents])
        for one in agents:
            found = measure(one, obs)
            label = {"env": one.record["env"], "label": one.record["label"], "seed": seed, "step": one.step}
            rows.append(label | {"states": len(obs)} | found)
            print(*label.values(), f"{found['optima']:.2f} optima, gap {found['gap_share']:.3f}", flush=True)
    PLACE.mkdir(exist_ok=True)
    file = PLACE / f"{runs.name}.json"
    about = {"command": " ".join(["python", *sys.argv]), "episodes": EPISODES, "rows": rows}
    file.write_text(json.dumps(origin() | about, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
