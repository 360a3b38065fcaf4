"""Pictures of the second derivatives of Q, from the results of `qscape landscape --kind curvature`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.figures import COLOURS, add_break_points, new_figure, set_notes, wrap_label
from qscape.report.labels import describe_shared
from qscape.report.marks import list_shared, name_agents

with require_extra("Pictures"):
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIPPED = 99  # percentile of all values of a state at which the colours end, as in PAVE's figure
ORANGE = COLOURS[1]
NAMES = {"mixed": "‖∂²Q/∂s∂a‖", "eigenvalue": "largest eigenvalue of ∂²Q/∂a²"}
COLOUR_MAPS = {"mixed": "viridis", "eigenvalue": "coolwarm"}

Surface = Mapping[str, Any]  # an entry of `surfaces`


def describe_method(findings: Mapping[str, Any]) -> str:
    """Say in a sentence what is shown, also of critics without second derivatives."""
    return (
        f"Shown are mean second derivatives over a width of {findings['width']:g} of each action dimension, "
        "with actions scaled to [−1, 1]. Those of ReLU critics are zero but at kinks, so theirs are the "
        "kinks in that width."
    )


def draw_curvature(findings: Mapping[str, Any]) -> Figure:
    """Draw all results of `qscape landscape --kind curvature`.

    Rows are states. The columns are ‖∂²Q/∂s∂a‖ of one agent or two, then the largest eigenvalue of ∂²Q/∂a²
    of the same agents. Each quantity has one colour scale in a row.

    `findings`: the result of `measure_curvature`, or the contents of RUN/inspect/curvature.json.
    """
    agents = name_agents(findings)
    rows = len(findings["surfaces"])
    figure = new_figure((4.2 * 2 * len(agents), 3.6 * rows + 0.9))
    axes = figure.subplots(rows, 2 * len(agents), squeeze=False, sharex="row", sharey="row")
    for k, line in enumerate(axes):
        for kind, panels in zip(NAMES, np.split(line, 2), strict=True):
            scale = Normalize(*colour_range(agents, k, kind))
            for (name, agent), ax in zip(agents.items(), panels, strict=True):
                surface = agent["surfaces"][k]
                _draw_surface(surface, kind, ax, scale)
                title = f"{NAMES[kind]}, state {surface['place']}"
                if len(agents) > 1:
                    title = f"{wrap_label(name)}, step {agent['step']:,}\n{title}"
                ax.set_title(title, fontsize=9)
                ax.label_outer()
            ends = "both" if kind == "eigenvalue" else "max"
            figure.colorbar(ScalarMappable(scale, COLOUR_MAPS[kind]), ax=panels.tolist(), extend=ends)
    title = findings["env"]
    if len(agents) == 1:
        title = add_break_points(f"{next(iter(agents))} on {title}, step {findings['step']:,}")
    set_notes(figure, title, describe_shared(list_shared(findings)), describe_method(findings))
    names: dict[str, Any] = {}
    for ax in axes.ravel():
        names |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend([*names.values()], [*names], loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def colour_range(agents: Mapping[str, Mapping[str, Any]], k: int, kind: str) -> tuple[float, float]:
    """Return the range of colours of one quantity at the k-th state, shared by all agents.

    From zero for a norm and symmetrical around zero for an eigenvalue, up to the 99th percentile.
    """
    values = np.concatenate([np.ravel(agent["surfaces"][k][kind]) for agent in agents.values()])
    high = float(np.percentile(np.abs(values), CLIPPED)) or 1.0
    return (0.0 if kind == "mixed" else -high), high


def axis_names(surface: Surface) -> tuple[str, str]:
    """Name both axes of a surface."""
    i, j = surface["dimensions"]
    return f"observation {i}", f"action dimension {j}, scaled to [−1, 1]"


def _draw_surface(surface: Surface, kind: str, ax: "Axes", scale: Normalize) -> None:
    """Draw one quantity over observation and action, with what the agent does."""
    x, y = surface["grid"]
    values = np.asarray(surface[kind], float)
    ax.pcolormesh(x, y, values.T, cmap=COLOUR_MAPS[kind], norm=scale, shading="nearest", rasterized=True)
    if kind == "eigenvalue" and values.min() < 0 < values.max():
        ax.contour(x, y, values.T, levels=[0.0], colors="#333333", linewidths=0.8)
        ax.plot([], [], color="#333333", lw=0.8, label="eigenvalue 0")
    rim = [withStroke(linewidth=2.6, foreground="black")]
    ax.plot(x, surface["policy"], color="white", lw=1.4, label="the agent's action", path_effects=rim)
    dot = {"s": 60, "color": ORANGE, "edgecolors": "black", "linewidths": 0.8, "zorder": 4, "clip_on": False}
    ax.scatter(surface["state"], surface["action"], label="its action at the state", **dot)
    first, second = axis_names(surface)
    ax.set(xlabel=first, ylabel=second)
