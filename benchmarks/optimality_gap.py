"""Measure how far the agents of a study act below the best action of their own Q, at each of their saves.

    NPROC=1 python benchmarks/optimality_gap.py runs/savo-effect

For each save of every finished run, the script takes 100 states, evenly from 10 episodes of that save's
policy. It measures the mean of max_a Q(s, a) - Q(s, action) over these states, as a share of Q's range at
the state. It does the same for the first proposal, and counts the local optima whose prominence is above 1%
of that range. Each agent is measured by its own Q and on the states that it visits itself. A run with a
single save is left out. The script writes all numbers to benchmarks/results/optimality_gap and prints means
over seeds.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import measured

from qscape.errors import UsageError
from qscape.inspect.survey import Surveyor, pick_states, summarise
from qscape.inspect.trained_agent import load_history, load_trained_agent

STATES, EPISODES = 100, 10


def main() -> None:
    """Measure all runs, print a line for each agent in each environment, and write all numbers to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    surveyors: dict[str, Surveyor] = {}
    folders, left_out = measured.finished(runs)
    for folder in folders:
        which = str(folder.parent.relative_to(runs))
        try:
            saves = load_history(load_trained_agent(folder, current=True), current=True)
        except UsageError as problem:
            left_out.append(str(folder.relative_to(runs)))
            print(f"left out: {problem}", flush=True)
            continue
        surveyor = surveyors.setdefault(which, Surveyor(saves[-1].agent, with_surrogates=False))
        for save in saves:
            survey = surveyor(save.acting, pick_states(save.rollouts(EPISODES), STATES)[1])
            one = {"seed": int(folder.name), "step": save.step, **summarise(survey)}
            found[which].append(one)
        print(f"{which}/{folder.name}: {one['action']['share']['mean']:.3f}", flush=True)
    measured.write(
        "optimality_gap", runs.name, states=STATES, episodes=EPISODES, left_out=left_out, measured=found
    )
    for which, saves in found.items():
        last = max(one["step"] for one in saves)
        ends = [one for one in saves if one["step"] == last]
        action, first = (
            statistics.mean(get(one)["share"]["mean"] for one in ends)
            for get in (lambda one: one["action"], lambda one: one["proposals"][0])
        )
        counts = [one["optima"]["mean"] for one in ends if one["optima"]]  # a large table has no count
        optima = f", {statistics.mean(counts):.2f} optima" if counts else ""
        print(f"{which}: {len(ends)} seeds, gap {action:.3f}, of the first proposal {first:.3f}{optima}")


if __name__ == "__main__":
    main()
