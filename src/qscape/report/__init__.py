"""Tables, statistics and pictures of run folders. Reads files only; never imports jax."""

import contextlib
from collections.abc import Iterator

from qscape.errors import UsageError


@contextlib.contextmanager
def extra(what: str) -> Iterator[None]:
    """Turns a failing import inside into a sentence that names the extra.

    Raises:
        UsageError: a package of the extra `report` is missing.
    """
    try:
        yield
    except ImportError as problem:
        raise UsageError(f'{what} need the extra: pip install "qscape[report]".') from problem
