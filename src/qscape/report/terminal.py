"""Charts in the terminal."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from qscape.report import charts, require_extra

with require_extra("Charts in the terminal"):
    import plotext

COLOURS = (*charts.COLOURS[:-1], "#808080")  # black does not show on a dark terminal


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

    Points that are not finite are left out. `x`: label of the x axis, which covers `span`.
    """
    figure = plotext.figure.clear()
    plotext.terminal.limit(False, False)
    figure.plot_size(width, height).theme("colorless")
    for k, curve in enumerate(curves):
        colour = tuple(int(COLOURS[k % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5))
        marker = plotext.marker(curve.mark or "braille", plotext.pixel(colour))
        # The package's kernel takes finite numbers only.
        points = [xy for xy in zip(curve.x, curve.y, strict=True) if all(map(math.isfinite, xy))]
        signal = figure.signal([x for x, _ in points], [y for _, y in points], marker=marker)
        signal.lines(not curve.mark and len(points) > 1)
        figure.draw(signal.label(curve.name) if len(curves) > 1 else signal)
    figure.title(title).label(x, axis="x").ruler("x").lim(*span).frequency(5)
    return str(figure.build()).removesuffix("\n")
