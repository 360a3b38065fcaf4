"""Pictures of Q over actions, from what `Landscape.to_dict` gives or `RUN/inspect/landscape.json` holds."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qscape.report import extra
from qscape.report.figures import COLOURS, new_figure

with extra("Pictures"):
    import numpy as np
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROPOSALS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")  # of the first actor, the second, ...
SHADES = (COLOURS[1], COLOURS[5], COLOURS[4], COLOURS[0])  # of the proposals, too
GREEN, PINK = COLOURS[2], COLOURS[3]
PROMINENT = 0.01  # share of Q's range on the picture from which a local optimum is marked
ON_PLANE = 0.02  # how far from the plane a point may lie and count as on it


def draw(fields: Mapping[str, Any], ax: "Axes | None" = None, legend: bool = True) -> "Axes":
    """One landscape: a curve, contours with the gradient field, or the entries of a table as dots."""
    ax = ax or figure_of(1).subplots()
    {"line": _line, "plane": _plane, "table": _table}[fields["kind"]](fields, ax)
    survey = fields["survey"]
    said = f"state {fields['place']}: " if fields["place"] else ""
    said += f"gap {survey['gap']:.3g} = {_percent(survey)} of Q's range"
    if _there(survey["optima"]):
        said += f"; local optima: {survey['optima']:.0f}"
    if _there(survey["rank"]):
        said += f"; rank {survey['rank']:,.0f} of {fields['entries']:,}"
    title = re.sub(r",(?=[a-z_]+\.)", ", ", fields["title"])  # a label's fields, to be broken between them
    ax.set_title("\n".join(textwrap.wrap(title, 56) + textwrap.wrap(said, 60)), fontsize=9)
    if legend:
        ax.legend(fontsize=8, framealpha=0.85, loc="best")
    return ax


def page(landscapes: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each landscape, side by side."""
    figure = figure_of(len(landscapes))
    columns = min(len(landscapes), 3)
    axes = figure.subplots(-(-len(landscapes) // columns), columns, squeeze=False).ravel()
    names: dict[str, Any] = {}
    for fields, ax in zip(landscapes, axes, strict=False):
        draw(fields, ax, legend=False)
        handles, labels = ax.get_legend_handles_labels()
        names |= dict(zip(labels, handles, strict=True))
    for ax in axes[len(landscapes) :]:
        ax.remove()
    figure.legend(
        [*names.values()],
        [*names],
        loc="outside lower center",
        ncols=3 * min(len(landscapes), 2),
        fontsize=9,
        frameon=False,
    )
    return figure


def figure_of(panels: int) -> Figure:
    """An empty figure for so many panels."""
    return new_figure((4.8 * min(panels, 3), 4.4 * -(-panels // 3)))


def _there(number: float | None) -> bool:
    """Is it a number? In memory NaN says no, in JSON null."""
    return number is not None and bool(np.isfinite(number))


def _percent(survey: Mapping[str, Any]) -> str:
    return f"{survey['gap'] / survey['span']:.1%}" if survey["span"] > 0 else "0%"


def _line(fields: Mapping[str, Any], ax: "Axes") -> None:
    (x,), q = fields["grid"], np.asarray(fields["q"], float)
    ax.plot(x, q, color="#333333", lw=1.6, zorder=1)
    for style, at, value, _, label in _marks(fields):
        ax.scatter(at[..., 0], value, label=label, clip_on=False, **style)
    ax.set(xlabel=fields["plane"]["names"][0], ylabel="Q")
    ax.grid(alpha=0.25)
    ax.margins(x=0.02)


def _plane(fields: Mapping[str, Any], ax: "Axes") -> None:
    (x, y), q = fields["grid"], np.asarray(fields["q"], float)
    filled = ax.contourf(x, y, q.T, levels=24, cmap="cividis", zorder=0)
    ax.contour(x, y, q.T, levels=12, colors="white", linewidths=0.4, alpha=0.5, zorder=1)
    _colours(filled, ax)
    arrows = np.asarray(fields["arrows"], float)
    length = np.linalg.norm(arrows[:, 2:], axis=1)
    arrows = arrows[length > 0]
    if len(arrows):
        # The root makes steep and gentle slopes visible side by side.
        step = arrows[:, 2:] / np.sqrt(np.linalg.norm(arrows[:, 2:], axis=1, keepdims=True))
        ax.quiver(*arrows[:, :2].T, *step.T, angles="xy", color="white", alpha=0.75, width=0.0028, zorder=2)
    for style, at, _, off, label in _marks(fields):
        faces = {"facecolors": "none", "edgecolors": style["color"]} if off else {}
        style = {k: v for k, v in style.items() if not (off and k in ("color", "edgecolors"))}
        ax.scatter(at[..., 0], at[..., 1], label=label, clip_on=False, **style, **faces)
    ax.set(xlabel=fields["plane"]["names"][0], ylabel=fields["plane"]["names"][1])
    if 0.4 < np.ptp(x) / np.ptp(y) < 2.5:  # else one sees nothing
        ax.set_aspect("equal")


def _table(fields: Mapping[str, Any], ax: "Axes") -> None:
    q, grid = np.asarray(fields["q"], float), np.asarray(fields["grid"], float)
    order = np.argsort(q)  # high entries are drawn over low ones
    y = q if len(grid) == 1 else grid[1]
    size = float(np.clip(6_000 / len(q), 2, 40))
    dots = ax.scatter(grid[0][order], y[order], c=q[order], s=size, cmap="cividis", zorder=0)
    _colours(dots, ax)
    for style, at, value, _, label in _marks(fields):
        ax.scatter(at[..., 0], value if len(grid) == 1 else at[..., 1], label=label, **style)
    names = fields["plane"]["names"]
    ax.set(xlabel=names[0], ylabel="Q" if len(grid) == 1 else names[1])


def _colours(drawn: Any, ax: "Axes") -> None:
    """What the colours say, as high as the picture, whatever its shape."""
    ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.0, 0.045, 1.0)), label="Q")


def _marks(fields: Mapping[str, Any]) -> list[tuple[dict[str, Any], np.ndarray, Any, bool, str]]:
    """What is marked: style, coordinates, Q, whether it lies off the plane, and its name."""
    survey, q = fields["survey"], np.asarray(fields["q"], float)
    marks: list[tuple[dict[str, Any], np.ndarray, Any, bool, str]] = []
    if fields["kind"] != "table":
        high = np.asarray(fields["prominence"]) > PROMINENT * (np.nanmax(q) - np.nanmin(q))
        optima = np.asarray(fields["optima"], float).reshape(len(high), -1)[high]
        style = {"marker": "x", "s": 46, "color": PINK, "linewidths": 1.8, "zorder": 6}
        marks.append((style, optima, np.asarray(fields["optima_q"])[high], False, "local optima"))
    at, off = _projected(fields, survey["best"])
    style = {"marker": "*", "s": 190, "color": GREEN, "edgecolors": "black", "linewidths": 0.8, "zorder": 4}
    marks.append((style, at, survey["best_q"], off, "best found" + _where(off)))
    for k, (action, value) in enumerate(zip(survey["proposals"], survey["proposals_q"], strict=True)):
        at, off = _projected(fields, action)
        alone = len(survey["proposals"]) == 1
        name = "the agent's action" if alone else f"proposal {k}"
        style = {
            "marker": PROPOSALS[k % len(PROPOSALS)], "s": 70, "color": SHADES[k % len(SHADES)],
            "edgecolors": "black", "linewidths": 0.8, "zorder": 5,
        }  # fmt: skip
        marks.append((style, at, value, off, name + _where(off)))
    if len(survey["proposals"]) > 1:
        at, off = _projected(fields, survey["action"])
        style = {
            "marker": "o",
            "s": 230,
            "facecolors": "none",
            "edgecolors": SHADES[0],
            "linewidths": 1.8,
            "zorder": 5,
        }
        marks.append((style, at, survey["action_q"], False, "chosen"))
    return marks


def _where(off: bool) -> str:
    return " (off the plane)" if off else ""


def _projected(fields: Mapping[str, Any], action: Any) -> tuple[np.ndarray, bool]:
    """Coordinates of an action in the picture, and whether it lies off the plane."""
    origin, axes = (np.asarray(fields["plane"][k], float) for k in ("origin", "axes"))
    away = np.asarray(action, float) - origin
    at = away @ axes.T
    off = np.linalg.norm(away - at @ axes) > ON_PLANE
    return at, bool(off and fields["kind"] != "table")
