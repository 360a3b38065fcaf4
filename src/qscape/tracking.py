"""Long work tells how far it is. The command line shows it; without a display nothing happens."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Tick: TypeAlias = Callable[[], None]
Display: TypeAlias = Callable[[int, str], contextlib.AbstractContextManager[Tick]]

_display: ContextVar[Display | None] = ContextVar("display", default=None)


def count(total: int, what: str) -> contextlib.AbstractContextManager[Tick]:
    """Show work of `total` pieces inside the `with` block; call the result of `with` after each piece.

    A single piece is not shown: it has no pace from which the time left would follow.
    """
    display = _display.get()
    return contextlib.nullcontext(lambda: None) if display is None or total < 2 else display(total, what)


def track(items: Collection[T], what: str) -> Iterator[T]:
    """Yield items, and show how many of them are done. `what` names them."""
    with count(len(items), what) as tick:
        for item in items:
            yield item
            tick()


@contextlib.contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Show the work inside the `with` block by `display`, which takes the arguments of `count`."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
