"""Plots of Q over actions with matplotlib, from `Landscape.to_dict()` or RUN/inspect/landscape.json."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.charts import COLOURS
from qscape.report.curves import training_charts
from qscape.report.figures import MARKERS, add_break_points, draw_chart, new_figure, set_notes
from qscape.report.labels import describe_shared
from qscape.report.marks import (
    GREEN,
    Mark,
    axis_name,
    choose_look,
    describe_briefly,
    is_number,
    list_marks,
    list_shared,
    name_agents,
)

with require_extra("Pictures"):
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLATTENED = {"color": "#979797", "lw": 1.2, "ls": ":", "zorder": 0.5, "label": "Q where it is flattened"}
LEARNED = {"color": COLOURS[0], "lw": 1.4, "ls": "--", "zorder": 2, "label": "learned surrogate"}


def draw_landscape(
    fields: Mapping[str, Any], ax: "Axes | None" = None, legend: bool = True, title: str | None = None
) -> "Axes":
    """Draw one landscape: a curve, contours with the gradient field, or the entries of a table as dots.

    Args:
        fields: `Landscape.to_dict()`.
        ax: axes to draw on; None: new ones.
        legend: draw a legend.
        title: None: the title of the landscape.
    """
    ax = ax or new_panel_figure(1).subplots()
    _draw_values(fields, ax, list_marks(fields))
    title = add_break_points(fields["title"] if title is None else title)
    ax.set_title(
        "\n".join(textwrap.wrap(title, 56) + textwrap.wrap(describe_briefly(fields), 66)), fontsize=9
    )
    if legend:
        ax.legend(fontsize=8, framealpha=0.85, loc="best")
    return ax


def draw_panels(landscapes: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a panel for each landscape, side by side."""
    figure = new_panel_figure(len(landscapes))
    columns = min(len(landscapes), 3)
    axes = figure.subplots(-(-len(landscapes) // columns), columns, squeeze=False).ravel()
    for fields, ax in zip(landscapes, axes, strict=False):
        draw_landscape(fields, ax, legend=False)
    for ax in axes[len(landscapes) :]:
        ax.remove()
    _add_legend(figure, axes[: len(landscapes)], 3 * min(len(landscapes), 2))
    return figure


def draw_findings(findings: Mapping[str, Any]) -> Figure:
    """Draw all results of `qscape landscape`.

    Rows are states. Columns are two agents, or the first, the middle and the last save; then gap and local
    optima over training follow below.
    """
    agents = name_agents(findings)
    if len(agents) == 1 and "over_training" not in findings:
        return draw_panels(findings["landscapes"])
    states = range(len(findings["landscapes"]))
    shared = describe_shared(list_shared(findings))
    if "over_training" not in findings:
        rows = [[(name, agent, k) for name, agent in agents.items()] for k in states]
        return _draw_grid(agents, rows, shared)
    rows = [
        [(name, moment, k) for moment in _first_middle_last(agent.get("over_training", [agent]))]
        for k in states
        for name, agent in agents.items()
    ]
    return _draw_grid(agents, rows, shared, curves=True)


def _first_middle_last(moments: Sequence[Any]) -> list[Any]:
    """Return the first, the middle and the last entry."""
    return [moments[k] for k in sorted({0, (len(moments) - 1) // 2, len(moments) - 1})]


def _draw_grid(
    agents: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Sequence[tuple[str, Mapping[str, Any], int]]],
    shared: str,
    curves: bool = False,
) -> Figure:
    """Draw panels of (agent, save, state), and the curves over training below."""
    wide = max(map(len, rows))
    heights = [4.2 * len(rows), *[3.2] * curves]
    figure = new_figure((5.0 * wide, sum(heights) + 0.5))
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = above.subplots(len(rows), wide, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for (name, moment, k), ax in zip(row, line, strict=False):
            title = f"{name}, step {moment['step']:,}" if len(agents) > 1 else f"step {moment['step']:,}"
            draw_landscape(moment["landscapes"][k], ax, legend=False, title=title)
        for ax in line[len(row) :]:
            ax.remove()
    env = next(iter(agents.values()))["env"]
    title = env if len(agents) > 1 else add_break_points(f"{next(iter(agents))} on {env}")
    set_notes(figure, title, shared)
    _add_legend(above, axes.ravel(), 7)
    if below:
        charts = training_charts(agents)
        axes = below[0].subplots(1, len(charts), squeeze=False)[0]
        for chart, ax in zip(charts, axes, strict=True):
            if legend := draw_chart(chart, ax).get_legend():
                legend.remove()
        if len(agents) > 1:
            _add_legend(below[0], axes, 2)
    return figure


def draw_surrogates(landscapes: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the objectives of SAVO's actors (figures 5, 9, 23 and 24 of Jain et al. 2024, arXiv 2410.11833).

    One row for each landscape, on one scale of Q: Q with the first proposal, Ψ_1 with the second, Ψ_2 with
    the third, …, and Q with all of them. On a line the learned Ψ̂_i is a second curve. On a plane and over a
    table it has a panel of its own below Ψ_i, and Q with all proposals stands below Q with the first. With
    raw vectors the first actor climbs Ψ̂_0, which stands there, and Q with all proposals in a last column.

    `landscapes`: `Landscape.to_dict()` of one kind, all with surrogates.
    """
    learned = any(
        surrogate["learned"] is not None for fields in landscapes for surrogate in fields["surrogates"]
    )
    deep = 2 if learned and landscapes[0]["kind"] != "line" else 1
    wide = 3 - deep + max(len(fields["surrogates"]) for fields in landscapes)
    figure = new_figure((3.8 * wide, 3.4 * deep * len(landscapes) + 0.9))
    axes = figure.subplots(deep * len(landscapes), wide, sharey="row", squeeze=False)
    for fields, rows in zip(landscapes, axes.reshape(-1, deep, wide), strict=True):
        _draw_surrogate_row(figure, fields, rows)
    for ax in axes.ravel():
        if not ax.has_data():  # one of two agents makes fewer proposals
            ax.set_axis_off()
        ax.set(xlabel=textwrap.fill(ax.get_xlabel(), 40), ylabel=textwrap.fill(ax.get_ylabel(), 40))
        ax.label_outer()
    titles = dict.fromkeys(
        textwrap.fill(add_break_points(fields["title"]), 36 * wide) for fields in landscapes
    )
    figure.suptitle("\n".join(titles), fontsize=11)
    _add_legend(figure, axes.ravel(), 5)
    return figure


def _draw_surrogate_row(figure: Figure, fields: Mapping[str, Any], rows: "np.ndarray") -> None:
    """Draw one landscape with its surrogates, in one row of panels or two."""
    shown, survey, surrogates = list_marks(fields), fields["survey"], fields["surrogates"]
    proposals = [mark for mark in shown if mark.kind in ("action", "proposal")]
    heights = [fields["q"], *(surrogate[kind] for surrogate in surrogates for kind in ("exact", "learned"))]
    heights = [np.asarray(h, float) for h in heights if h is not None]
    scale = Normalize(min(map(np.nanmin, heights)), max(map(np.nanmax, heights)))
    place = f"state {fields['place']}: " if fields["place"] else ""
    line = fields["kind"] == "line"

    def panel(ax: "Axes", name: str, counts: Sequence[Any], what: Sequence[Mark], **q: Any) -> None:
        _draw_values({**fields, **q}, ax, what, scale)
        counts_shown = [f"{count:.0f}" for count in counts if is_number(count)]
        ax.set_title(
            f"{name}\nlocal optima: {', learned '.join(counts_shown)}" if counts_shown else name, fontsize=9
        )

    panel(rows[0][0], f"{place}Q and proposal 0", [survey["optima"]], proposals[:1])
    start = len(proposals) - len(surrogates)
    for k, (surrogate, mark) in enumerate(zip(surrogates, proposals[start:], strict=True)):
        i = start + k
        at = [mark._replace(q=np.maximum(mark.q, surrogate["floor"]))]
        flattened = {"q": surrogate["exact"], "arrows": np.zeros((0, 4))}
        exact, known = survey["exact_optima"][k : k + 1], survey["learned_optima"][k : k + 1]
        name = rf"$\Psi_{{{i}}} = \max(Q, \tau_{{{i}}})$ and proposal {i}"
        if i:  # Ψ_0 is Q
            panel(rows[0][i], name, [*exact, *known] if line else exact, at, **flattened)
        if line:
            rows[0][i].plot(*fields["grid"], fields["q"], **FLATTENED)
        if surrogate["learned"] is None:
            continue
        if line:
            rows[0][i].plot(*fields["grid"], surrogate["learned"], **LEARNED)
        else:
            name = rf"learned $\hat{{\Psi}}_{{{i}}}$ and proposal {i}"
            panel(rows[1][i], name, known, at, **flattened | {"q": surrogate["learned"]})
    last = rows[1][0] if len(rows) > 1 and start else rows[0][len(proposals)]
    panel(last, f"{place}Q and all proposals", [survey["optima"]], shown)
    if not line:
        figure.colorbar(ScalarMappable(scale, "cividis"), ax=rows.ravel().tolist(), label="Q", aspect=40)


def _add_legend(figure: Any, axes: Any, columns: int) -> None:
    """Add one legend below for all panels."""
    names: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        names |= dict(zip(labels, handles, strict=True))
    figure.legend(
        [*names.values()], [*names], loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )


def new_panel_figure(panels: int) -> Figure:
    """Create an empty figure for a number of panels."""
    return new_figure((4.8 * min(panels, 3), 4.4 * -(-panels // 3)))


def _draw_values(
    fields: Mapping[str, Any], ax: "Axes", shown: Sequence[Mark], scale: Normalize | None = None
) -> None:
    """Draw the values of one landscape with marks. `scale`: colour scale if panels share one, else None."""
    if fields["kind"] == "line":
        _draw_line(fields, ax, shown)
    else:
        (_draw_plane if fields["kind"] == "plane" else _draw_table)(fields, ax, shown, scale)


def _draw_line(fields: Mapping[str, Any], ax: "Axes", shown: Sequence[Mark]) -> None:
    (x,), q = fields["grid"], np.asarray(fields["q"], float)
    for k, ends in enumerate(fields.get("valid", ())):  # older files lack it
        ax.axvspan(*ends, color=GREEN, alpha=0.14, lw=0, zorder=0, label="" if k else "valid actions")
    ax.plot(x, q, color="#333333", lw=1.6, zorder=1)
    for mark in shown:
        ax.scatter(mark.at[:, 0], mark.q, label=mark.name, clip_on=False, **_mark_style(mark))
    ax.set(xlabel=axis_name(fields, 0), ylabel="Q")
    ax.grid(alpha=0.25)
    ax.margins(x=0.02)


def _draw_plane(
    fields: Mapping[str, Any], ax: "Axes", shown: Sequence[Mark], scale: Normalize | None
) -> None:
    (x, y), q = fields["grid"], np.asarray(fields["q"], float)
    filled = ax.contourf(x, y, q.T, levels=24, cmap="cividis", norm=scale, zorder=0)
    if np.nanmin(q) < np.nanmax(q):
        ax.contour(x, y, q.T, levels=12, colors="white", linewidths=0.4, alpha=0.5, zorder=1)
    if scale is None:
        _add_colour_bar(filled, ax)
    arrows = np.asarray(fields["arrows"], float)
    length = np.linalg.norm(arrows[:, 2:], axis=1)
    arrows = arrows[length > 0]
    if len(arrows):
        # The root makes steep and gentle slopes visible side by side.
        step = arrows[:, 2:] / np.sqrt(np.linalg.norm(arrows[:, 2:], axis=1, keepdims=True))
        ax.quiver(*arrows[:, :2].T, *step.T, angles="xy", color="white", alpha=0.75, width=0.0028, zorder=2)
    for mark in shown:
        style = _mark_style(mark)
        if mark.off and "color" in style:
            style |= {"facecolors": "none", "edgecolors": style.pop("color")}
        ax.scatter(*mark.at.T, label=mark.name, clip_on=False, **style)
    ax.set(xlabel=axis_name(fields, 0), ylabel=axis_name(fields, 1))
    if 0.4 < np.ptp(x) / np.ptp(y) < 2.5:  # a narrower plot with equal scales would be unreadable
        ax.set_aspect("equal")


def _draw_table(
    fields: Mapping[str, Any], ax: "Axes", shown: Sequence[Mark], scale: Normalize | None
) -> None:
    q, grid = np.asarray(fields["q"], float), np.asarray(fields["grid"], float)
    order, missing = np.argsort(q)[: np.isfinite(q).sum()], np.isnan(q)  # high entries over low ones
    y = q if len(grid) == 1 else grid[1]
    size = float(np.clip(6_000 / len(q), 2, 40))
    if missing.any() and len(grid) > 1:
        masked = {"color": "#D9D9D9", "linewidths": 0, "zorder": -1, "label": "not valid here"}
        ax.scatter(grid[0][missing], y[missing], s=size, **masked)
    dots = ax.scatter(grid[0][order], y[order], c=q[order], s=size, cmap="cividis", norm=scale, zorder=0)
    if scale is None:
        _add_colour_bar(dots, ax)
    for mark in shown:
        ax.scatter(
            mark.at[:, 0], mark.q if len(grid) == 1 else mark.at[:, 1], label=mark.name, **_mark_style(mark)
        )
    ax.set(xlabel=axis_name(fields, 0, "\n"), ylabel="Q" if len(grid) == 1 else axis_name(fields, 1, "\n"))


def _add_colour_bar(drawn: Any, ax: "Axes") -> None:
    """Add a colour bar as high as the axes."""
    ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.0, 0.045, 1.0)), label="Q")


def _mark_style(mark: Mark) -> dict[str, Any]:
    """Return marker properties of a mark."""
    symbol, size, colour = choose_look(mark)
    over = {"optima": 3, "best": 4}.get(mark.kind, 5)
    style: dict[str, Any] = {"marker": MARKERS[symbol], "s": 0.6 * size**2, "zorder": over}
    if mark.kind == "optima":
        return style | {"color": colour, "linewidths": 1.8}
    if mark.kind == "chosen":
        return style | {"facecolors": "none", "edgecolors": colour, "linewidths": 1.8}
    return style | {"color": colour, "edgecolors": "black", "linewidths": 0.8}
