"""The two errors a user may meet. Each carries one sentence: what was wrong, where, what would work.

A sentence may quote a file or an environment of somebody else. So it is one line without control characters,
which a terminal would obey.
"""

import re


class QscapeError(Exception):
    """Base of both; the command line prints its sentence and exits with `code`."""

    code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


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


def memory_error(problem: BaseException) -> RunError | None:
    """Return the error for a machine or an accelerator that ran out of memory; None for another problem."""
    text = str(problem)
    if not (isinstance(problem, MemoryError) or re.search("RESOURCE_EXHAUSTED|OUT_OF_MEMORY", text)):
        return None
    asked = re.search(r"allocat\w+ (?:request for )?([\d.]+ ?(?:bytes|[KMGT]i?B))", text)
    size = f" for {asked[1]}" if asked else ""
    return RunError(
        f"there was no memory left{size}: make the batch (base.batch_size, base.rollout), the networks "
        "(base.actor_hidden, base.critic_hidden), the replay (base.replay_capacity) or --envs smaller, or "
        "ask for fewer states, points or episodes."
    )


def one_line(text: str) -> str:
    """Return a text as one line that is safe to print: blanks for line ends, escapes for control characters.

    Also used for labels, names and notes, since they come from files.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def describe(problem: BaseException) -> str:
    """Return the type and the text of an error as one line, for a sentence."""
    text = " ".join(one_line(str(problem)).split()).rstrip(".: ")
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def describe_import(problem: BaseException, place: str) -> str:
    """Return what `describe` does in brackets, and for a module that is not found where Python looks.

    Args:
        problem: what importing or its caller raised.
        place: what was imported, `module:Name`.
    """
    missing = problem.__cause__ or problem  # Gymnasium raises its own error from Python's
    if isinstance(missing, ModuleNotFoundError) and missing.name == place.partition(":")[0].partition(".")[0]:
        if missing.name and place.startswith(f"{missing.name}.py:"):
            return f"({describe(missing)}); write {place.replace('.py:', ':', 1)}"
        looks = "Python looks in the current folder only with PYTHONPATH=. before the command"
        return f"({describe(missing)}); {looks}"
    return f"({describe(problem)})"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
