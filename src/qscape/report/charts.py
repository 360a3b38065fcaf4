"""What a figure shows, apart from what draws it.

`figures.draw_chart` draws a `Chart` with matplotlib, and `interactive.render_chart` draws it for a web page.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Numbers: TypeAlias = Sequence[float] | np.ndarray


class Axis(NamedTuple):
    """An axis of a chart.

    Attributes:
        title: what it shows.
        name: a short name, which a page writes before a value; "": the title.
        range: its ends; None: those of the data.
        log: whether it is logarithmic.
        steps: whether its ticks read 50k and 1M.
    """

    title: str
    name: str = ""
    range: tuple[float, float] | None = None
    log: bool = False
    steps: bool = False


class Shades(NamedTuple):
    """Colours of values: the ends of their scale, and the title of its bar; "": no bar."""

    low: float
    high: float
    title: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """A line through points.

    Attributes:
        x: abscissae [N].
        y: ordinates [N].
        name: for the legend; "": it is not in the legend.
        colour: "#RRGGBB".
        width: in points.
        dash: solid or dash.
        dots: whether each point has a mark.
        group: traces of one group are hidden together on a page.
    """

    x: "Numbers"
    y: "Numbers"
    name: str
    colour: str
    width: float = 2.0
    dash: str = "solid"
    dots: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Single points.

    Attributes:
        x: abscissae [N].
        y: ordinates [N].
        name: for the legend.
        colour: "#RRGGBB"; or values [N], which `shades` turns into colours.
        size: width of a point, in pixels of a page.
        symbol: circle, star or x.
        opacity: from 0 to 1.
        edge: colour of the rim; "": no rim.
        shades: colours of the values; None: all points have one colour.
        group: as in `Line`.
    """

    x: "Numbers"
    y: "Numbers"
    name: str
    colour: "str | Numbers"
    size: float = 5.0
    symbol: str = "circle"
    opacity: float = 1.0
    edge: str = ""
    shades: Shades | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """A figure with one pair of axes.

    Attributes:
        title: a sentence without its full stop.
        x: the horizontal axis.
        y: the vertical axis.
        traces: what is drawn, the lowest first.
        square: whether both axes have one scale.
        compare: whether a page shows the values of all lines at the reader's abscissa together.
    """

    title: str
    x: Axis
    y: Axis
    traces: Sequence[Line | Points]
    square: bool = False
    compare: bool = False
