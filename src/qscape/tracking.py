"""Long loops tell how far they are. The command line shows it; without a display nothing happens."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
Display = Callable[[Collection[Any], str], Iterable[Any]]

_display: ContextVar[Display | None] = ContextVar("display", default=None)


def track(items: Collection[T], what: str) -> Iterable[T]:
    """Yield items and tell the display, if there is one, when each is done. `what` names them."""
    display = _display.get()
    return items if display is None else display(items, what)


@contextlib.contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Show the loops inside the `with` block by `display`, which yields the items that it gets."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
