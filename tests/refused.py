"""Expect a refusal by its kind and what it names, not by its wording."""

import contextlib
from collections.abc import Iterator

import pytest

from qscape.errors import QscapeError


@contextlib.contextmanager
def refused(
    code: str, *named: object, part: str | None = None, field: str | None = None
) -> Iterator[pytest.ExceptionInfo[QscapeError]]:
    """Expect an error of a kind in the `with` block.

    Args:
        code: its kind, such as "out-of-range".
        *named: the numbers and names that its sentence has to name.
        part, field: what it is about; None: nothing in particular.
    """
    with pytest.raises(QscapeError) as caught:
        yield caught
    error = caught.value
    assert (error.code, error.part, error.field) == (code, part, field), repr(error)
    missing = [name for name in named if str(name) not in str(error)]
    assert not missing, f"{missing} is not in: {error}"
