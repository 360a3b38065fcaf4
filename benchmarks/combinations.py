"""Draw return and oscillation of every recorded run of the study `combinations`.

python benchmarks/combinations.py

Reads benchmarks/results/learning/combinations.tar.xz and writes docs/images/combinations.png.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from blocks import RESULTS, ROOT
from collect import read_archive
from matplotlib.ticker import LogLocator, NullFormatter

from qscape.report.charts import COLOURS
from qscape.report.figures import new_figure, style_axes
from qscape.report.intervals import interquartile_mean

PICTURE = ROOT / "docs" / "images" / "combinations.png"
BASES = {"td3": COLOURS[0], "sac": COLOURS[1], "td7": COLOURS[2]}
ENVS = ("Pendulum-v1", "restricted/InvertedDoublePendulum-v0")
PARTS = {"": "o", "pave": "s", "savo": "^", "pave+savo": "D", "savgo": "P", "savgo+pave": "X"}


def read_last_evaluations() -> dict[str, dict[str, np.ndarray]]:
    """Return returns and oscillations of current policies at the end: environment -> recipe -> [seeds, 2]."""
    archive = read_archive(RESULTS / "learning" / "combinations.tar.xz")
    found: dict[str, dict[str, list[np.ndarray]]] = {env: defaultdict(list) for env in ENVS}
    for name in (name for name in archive if name.endswith("/run.json")):
        record = json.loads(archive[name])
        text = archive[name.replace("run.json", "evaluations.csv")].decode()
        rows = [r for r in csv.DictReader(text.splitlines()) if r["policy"] == "current"]
        last = [(float(r["return"]), float(r["sm"])) for r in rows if r["step"] == rows[-1]["step"]]
        found[record["env"]][record["label"].partition("[")[0]].append(np.mean(last, axis=0))
    return {env: {recipe: np.array(of[recipe]) for recipe in sort_recipes(of)} for env, of in found.items()}


def sort_recipes(recipes: Iterable[str]) -> list[str]:
    """Sort recipes by their base and by the number of their parts."""
    return sorted(recipes, key=lambda recipe: ([*BASES].index(recipe[:3]), recipe.count("+"), recipe))


def main() -> None:
    """Draw a panel for each task: a small mark for each seed, a large one for their interquartile mean."""
    figure = new_figure((11.0, 6.4))
    axes = figure.subplots(1, len(ENVS))
    for ax, (env, recipes) in zip(axes, read_last_evaluations().items(), strict=True):
        for recipe, (y, x) in ((recipe, values.T) for recipe, values in recipes.items()):
            base, _, parts = recipe.partition("+")
            style = {"color": BASES[base], "marker": PARTS[parts], "ls": "none"}
            ax.plot(x, y, ms=4, alpha=0.35, **style)
            centre = [interquartile_mean(of[:, None]).value for of in (x, y)]
            ax.plot(*centre, ms=10, mec="black", label=recipe, **style)
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        style_axes(ax, env, "oscillation sm (less is smoother)", "evaluation return (more is better)")
        ax.get_legend().remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
