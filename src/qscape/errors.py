"""The two errors a user may meet. Each carries one sentence: what was wrong, where, what would work."""


class QscapeError(Exception):
    """Base of both; the command line prints its sentence and exits with `code`."""

    code = 1


class UsageError(QscapeError):
    """Something that was asked for cannot be: an unknown name, an impossible combination. Exit code 2.

    Args:
        message: one sentence for the user.
        part: name of the part (or "base") that the error is about; None where it is about none.
        field: name of the field of that part, or of the argument, such as "env_args"; None as above.
    """

    code = 2

    def __init__(self, message: str, part: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.part, self.field = part, field


class RunError(QscapeError):
    """Something broke while running: NaN from the environment, an unreadable save. Exit code 1."""
