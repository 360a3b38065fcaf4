"""What a figure shows, apart from what draws it.

`figures.draw_chart` draws a `Chart` with matplotlib, and `interactive.render_chart` draws it for a web page.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from qscape.report.labels import number_agents

if TYPE_CHECKING:
    import numpy as np

    Numbers: TypeAlias = Sequence[float] | np.ndarray
    Ends: TypeAlias = tuple[Numbers, Numbers]

# Okabe and Ito's palette: distinguishable with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Published curves are grey and dashed, so that they are not mistaken for the compared runs.
GREYS = ("#333333", "#6E6E6E", "#979797")
DASHES = ("solid", "dashdot", "dash", "dot")  # change once all colours are used
SYMBOLS = ("circle", "square", "diamond", "triangle-up")  # of points, where lines have these dashes


class Style(NamedTuple):
    """How the lines and points of an agent look."""

    colour: str
    dash: str
    symbol: str


def choose_styles(labels: Sequence[str], names: Mapping[str, str] = {}) -> dict[str, Style]:
    """Return a style for each agent; arguments and keys are those of `number_agents`."""
    turns = {name: divmod(k, len(COLOURS)) for name, k in number_agents(labels, names).items()}
    return {
        name: Style(COLOURS[k], DASHES[turn % len(DASHES)], SYMBOLS[turn % len(SYMBOLS)])
        for name, (turn, k) in turns.items()
    }


class Axis(NamedTuple):
    """An axis of a chart.

    Attributes:
        title: what it shows.
        name: a short name, which a page writes before a value; "": the title.
        range: its ends; None: those of the data.
        from_zero: whether it reaches down to 0.
        log: whether it is logarithmic.
        steps: whether its ticks read 50k and 1M.
        percent: whether its values are shares, which are shown in percent.
    """

    title: str
    name: str = ""
    range: tuple[float, float] | None = None
    from_zero: bool = False
    log: bool = False
    steps: bool = False
    percent: bool = False


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
        dash: solid, dash, dot, dashdot or longdash.
        dots: whether each point has a mark.
        opacity: from 0 to 1.
        group: traces of one group are hidden together on a page.
        band: the lower and the upper end [N] of an interval around each ordinate; None: no band.
    """

    x: "Numbers"
    y: "Numbers"
    name: str
    colour: str
    width: float = 2.0
    dash: str = "solid"
    dots: bool = False
    opacity: float = 1.0
    group: str = ""
    band: "Ends | None" = None


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Single points.

    Attributes:
        x: abscissae [N].
        y: ordinates [N].
        name: for the legend.
        colour: "#RRGGBB"; or values [N], which `shades` turns into colours.
        size: width of a point, in pixels of a page.
        symbol: circle, square, diamond, triangle-up, star or x.
        opacity: from 0 to 1.
        edge: colour of the rim; "": no rim.
        shades: colours of the values; None: all points have one colour.
        group: as in `Line`.
        x_ends: the lower and the upper end [N] of an interval around each abscissa; None: no intervals.
        y_ends: the same around each ordinate.
        texts: what a page writes above the values of each point [N]; empty: nothing.
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
    x_ends: "Ends | None" = None
    y_ends: "Ends | None" = None
    texts: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """A figure with one pair of axes.

    Attributes:
        title: a sentence without its full stop.
        x: the horizontal axis.
        y: the vertical axis.
        traces: what is drawn, the lowest first.
        square: whether both axes have one scale.
        compare: whether a page shows the values of all named traces at the reader's abscissa together.
    """

    title: str
    x: Axis
    y: Axis
    traces: Sequence[Line | Points]
    square: bool = False
    compare: bool = False
