"""Draw return and oscillation of every recorded run of the study `combinations`.

python benchmarks/combinations.py

Reads benchmarks/results/learning/combinations.tar.xz and writes docs/images/combinations.png.
"""

from blocks import ROOT
from matplotlib.ticker import LogLocator, NullFormatter
from quotes import GRID, combined

from qscape.report.figures import COLOURS, new_figure, style_axes
from qscape.report.intervals import interquartile_mean

PICTURE = ROOT / "docs" / "images" / "combinations.png"
BASES = {"td3": COLOURS[0], "sac": COLOURS[1], "td7": COLOURS[2]}
PARTS = {"": "o", "pave": "s", "savo": "^", "pave+savo": "D", "savgo": "P", "savgo+pave": "X"}


def main() -> None:
    """Draw a panel for each task: a small mark for each seed, a large one for their interquartile mean."""
    figure = new_figure((11.0, 6.4))
    axes = figure.subplots(1, len(GRID))
    for ax, env in zip(axes, GRID.values(), strict=True):
        for recipe, columns in combined(env).items():
            base, _, parts = recipe.partition("+")
            style = {"color": BASES[base], "marker": PARTS[parts], "ls": "none"}
            x, y = columns["sm"], columns["return"]
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
