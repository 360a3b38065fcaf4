"""Measure the critics of a study beside each other, at states that the policies of all of them visit.

    qscape study run studies/critics.toml
    NPROC=1 python benchmarks/critics.py runs/critics --pictures docs/images

For each environment and seed, the script takes states from ten episodes of every finished run's last policy,
evenly, about 200 in all. At these states it measures each run's own Q: the local optima whose prominence is
above 1% of Q's range, how far the policy's action is below the best action found (as a share of that range),
and the second derivatives at the policy's action: the mixed one, and the least curvature where Q is concave.
Their means are divided by the mean of Q's range, so that critics of other scales can be compared, and no flat
state outweighs the others. The bias of Q is that of each run's own episodes. Writes all numbers, and the runs
that it left out, to benchmarks/results/critics/ENVIRONMENT.json; averages over states, never over seeds.
The pictures, one for each environment, show the first seed at three of the states, evenly: the first, the
middle and the last.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measured
import numpy as np
from matplotlib.ticker import MaxNLocator

from qscape.inspect.bias import measure_bias
from qscape.inspect.geometry import GeometryProbe
from qscape.inspect.landscape import landscape
from qscape.inspect.survey import Surveyor, pick_states
from qscape.inspect.trained_agent import TrainedAgent, load_trained_agent
from qscape.report.figures import new_figure
from qscape.report.landscapes import draw_landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES, EPISODES = 200, 10


def critic_of(label: str) -> str:
    """Name the critic of an arm of the study `critics`, a higher rate, and SAVO if it searches on it."""
    recipe = label.partition("[")[0]
    kind = recipe.removeprefix("td3").removesuffix("+savo").removesuffix("+reward_scale").lstrip("+")
    kind = kind or ("LayerNorm" if "critic_norm=layer" in label else "plain")
    rate = ", rate 1e-3" if "critic_learning_rate=0.001" in label else ""
    return kind + rate + (", SAVO" if recipe.endswith("+savo") else "")


def measure(trained: TrainedAgent, obs: np.ndarray) -> dict[str, float]:
    """Measure the landscape of one agent's Q at given states, and its derivatives at the agent's actions."""
    survey = Surveyor(trained.agent, with_surrogates=False)(trained.acting, obs)
    at = GeometryProbe(trained.agent).points(trained.acting, obs, survey.action)
    range_of_q = float(survey.span.mean())
    curvature = np.maximum(-at.lambda_max, 0.0)  # 0 where Q is not concave
    return {
        "optima": float(survey.optima.mean()),
        "several": float((survey.optima > 1).mean()),
        "gap_share": float(survey.share(survey.gap).mean()),
        "first_gap_share": float(survey.share(survey.gaps[:, 0]).mean()),
        "range": range_of_q,
        "mixed": float(at.mixed_norm.mean()) / range_of_q,
        "curvature": float(curvature.mean()) / range_of_q,
        "concave": float((at.lambda_max < 0).mean()),
    }


def order(trained: TrainedAgent) -> tuple[bool, bool, str]:
    """Sort key of the arms: plain layers, LayerNorm, then by name."""
    kind = critic_of(trained.record["label"])
    return kind != "plain", kind != "LayerNorm", kind


def draw(agents: list[TrainedAgent], states: np.ndarray) -> "Figure":
    """Draw Q of every agent (rows) at some states (columns). Scales differ: critics have no common unit."""
    figure = new_figure((2.6 * len(states), 1.3 * len(agents) + 0.6))
    axes = figure.subplots(len(agents), len(states), squeeze=False)
    for trained, row in zip(agents, axes, strict=True):
        surveyor = Surveyor(trained.agent, with_surrogates=False)
        for obs, ax in zip(states, row, strict=True):
            draw_landscape(landscape(trained, obs, surveyor=surveyor).to_dict(), ax, legend=False)
            ordinate = ax.get_ylabel()
            ax.set(title="", ylabel="", yticks=[])
            ax.label_outer()
        row[0].set_ylabel(critic_of(trained.record["label"]))
    figure.supxlabel(axes[-1, 0].get_xlabel(), fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("")
    bars = [bar for ax in axes.flat for bar in ax.child_axes]
    for bar in bars:
        bar.yaxis.set_major_locator(MaxNLocator(3))
        bar.set_ylabel("")
    if bars:  # two action dimensions, Q in colours
        figure.supylabel(f"{ordinate}; Q in colours", fontsize=10)
    marks = {
        name: handle for ax in axes.flat for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(marks.values(), marks, loc="outside upper center", ncols=4, frameon=False)
    return figure


def main() -> None:
    """Measure all finished runs of a study and write the numbers to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder of the pictures; without it none are drawn")
    typed = parser.parse_args()
    runs = typed.runs
    of: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    folders, left_out = measured.finished(runs)
    for folder in folders:
        of[folder.parents[1].name][int(folder.name)].append(folder)
    for env, seeds in of.items():
        rows: list[dict[str, Any]] = []
        for seed, agents_of in sorted(seeds.items()):
            agents = sorted((load_trained_agent(folder, current=True) for folder in agents_of), key=order)
            share = max(1, STATES // len(agents))
            walked = [one.rollouts(EPISODES) for one in agents]
            obs = np.concatenate([pick_states(episodes, share)[1] for episodes in walked])
            for one, episodes in zip(agents, walked, strict=True):
                found = measure(one, obs) | {"bias_share": measure_bias(one, episodes)["q_bias_share"]}
                label = {"env": env, "label": one.record["label"], "seed": seed}
                rows.append(label | {"step": one.step, "states": len(obs)} | found)
                print(
                    *label.values(), f"{found['optima']:.2f} optima, gap {found['gap_share']:.3f}", flush=True
                )
            if typed.pictures and seed == min(seeds):
                at = np.linspace(0, len(obs) - 1, 3).astype(int)
                draw(agents, obs[at]).savefig(typed.pictures / f"critics-{env}.png", dpi=110)
        unfinished = [name for name in left_out if Path(name).parts[0] == env]
        measured.write("critics", env, episodes=EPISODES, left_out=unfinished, rows=rows)


if __name__ == "__main__":
    main()
