"""Charts in the terminal."""

from collections.abc import Sequence
from typing import NamedTuple

from qscape.report import require_extra

with require_extra("Charts in the terminal"):
    import plotext

    from qscape.report import figures

COLOURS = (*figures.COLOURS[:-1], "#808080")  # black does not show on a dark terminal


class Curve(NamedTuple):
    """A line of a chart. `mark`: a character that draws its points instead of a line; None: a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: str | None = None


def render_chart(
    title: str, x: str, curves: Sequence[Curve], width: int, height: int, span: tuple[float, float]
) -> str:
    """Render a chart of `width` × `height` characters with ANSI colours.

    `x`: label of the x axis, which covers `span`.
    """
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    for k, curve in enumerate(curves):
        colour = tuple(int(COLOURS[k % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5))
        draw = plotext.scatter if curve.mark or len(curve.x) == 1 else plotext.plot
        named = curve.name if len(curves) > 1 else None
        draw(curve.x, curve.y, marker=curve.mark or "braille", color=colour, label=named)
    plotext.title(title)
    plotext.xlabel(x)
    plotext.xlim(*span)
    heights = {y for curve in curves for y in curve.y}
    if len(heights) == 1:  # the package would put a negative one's axis upside down
        (y,) = heights
        plotext.ylim(y - max(1, abs(y)) / 2, y + max(1, abs(y)) / 2)
    return plotext.build()
