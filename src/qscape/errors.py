"""The two errors a user may meet. Each carries one sentence: what was wrong, where, what would work."""


class QscapeError(Exception):
    """Base of both; the command line prints its sentence and exits with `code`."""

    code = 1


class UsageError(QscapeError):
    """Something that was asked for cannot be: an unknown name, an impossible combination. Exit code 2."""

    code = 2


class RunError(QscapeError):
    """Something broke while running: NaN from the environment, an unreadable save. Exit code 1."""
