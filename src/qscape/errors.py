"""The errors a user may meet. Each carries one sentence: what was wrong, where, what would work.

A sentence may quote a file or an environment of somebody else. So it is one line without control characters,
which a terminal would obey. Programs tell errors apart by class, or by `code`, `part` and `field`; sentences
may change.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

NO_MEMORY = "RESOURCE_EXHAUSTED|OUT_OF_MEMORY|Out of memory allocating"  # in errors of XLA and of CUDA
LONGEST_TEXT = 1_000  # characters of somebody else's error in a sentence

Kind = TypeVar("Kind", bound="QscapeError")


class QscapeError(Exception):
    """Base of all; the command line prints its sentence and exits with `status`.

    Args:
        message: one sentence for the user.
        part: name of the part (or "base") that the error is about; None where it is about none.
        field: name of the field of that part, or of the argument or flag, such as "env_args"; None as above.

    Attributes:
        status: exit status of the command line.
        code: the kind of error in words, the name of the class: "out-of-range".
        part, field: as given.
    """

    status: ClassVar[int] = 1
    code: ClassVar[str] = "qscape"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, message: str, part: str | None = None, field: str | None = None) -> None:
        super().__init__(one_line(message))
        self.part, self.field = part, field

    def saying(self: Kind, message: str, part: str | None = None, field: str | None = None) -> Kind:
        """Return an error of the same kind with another sentence; a `part` or `field` of None stays."""
        return type(self)(message, part or self.part, field or self.field)


class UsageError(QscapeError):
    """Something that was asked for cannot be: an unknown name, an impossible combination. Exit status 2."""

    status = 2


class RunError(QscapeError):
    """Something broke while running: NaN from the environment, an unreadable save. Exit status 1."""


# --- what was asked for ----------------------------------------------------------------------------------


class UnknownRecipe(UsageError):
    """A recipe names an agent or a part that there is not, or is no recipe."""


class UnknownField(UsageError):
    """A field, a keyword or a flag that there is not."""


class UnknownName(UsageError):
    """Another name that there is not: of an environment, a preset, a study, one of several choices."""


class OutOfRange(UsageError):
    """A number that is too small, too large or not finite."""


class WrongValue(UsageError):
    """A value of another type or form."""


class MissingArgument(UsageError):
    """An argument or a flag that is needed."""


class Conflict(UsageError):
    """Two things that exclude each other, or one that needs another."""


class MootSetting(UsageError):
    """A setting that would do nothing."""


class UnfitAgent(UsageError):
    """The agent, or a run of it, cannot do what is asked of it."""


class UnfitEnv(UsageError):
    """An environment or a dataset that the agent, or what is asked, cannot be used with."""


class Mismatch(UsageError):
    """Two things that should be alike: shapes, spaces, runs, tasks."""


class MissingPackage(UsageError):
    """A package that is not installed; the sentence has the command."""


class WrongVersion(UsageError):
    """A package or a device of JAX that is not the one that works."""


class NotFound(UsageError):
    """A file, a folder, a run, a save or a class that is not there."""


class Taken(UsageError):
    """A name or a folder that something else has already."""


class Untrusted(UsageError):
    """Code that a file or a recipe names and the user has not."""


class BadFile(UsageError):
    """A file that was named and does not hold what it should."""


class WrongPart(UsageError):
    """A part, a probe or a logger of the user that is not as its interface says."""


class WrongEnv(UsageError):
    """An environment of the user that is not as its interface says."""


class UnmakeableEnv(UsageError):
    """An environment that cannot be made."""


class NothingToDo(UsageError):
    """There is nothing left to do, or nothing to do it with."""


class Unexportable(UsageError):
    """A policy that cannot be written as a file for other programs."""


# --- what broke while running ----------------------------------------------------------------------------


class NotFinite(RunError):
    """NaN or infinity from an environment or in networks."""


class BrokenEnv(RunError):
    """An environment that failed while it ran, or did not do as it declared."""


class NoSave(RunError):
    """A run without a save that can be used."""


class DamagedSave(RunError):
    """A save, or what was fetched of one, that is damaged or not complete."""


class ForeignSave(RunError):
    """A save of another agent, another dataset, or of another program."""


class CannotRead(RunError):
    """A file that cannot be read."""


class CannotWrite(RunError):
    """A file or a folder that cannot be written."""


class InUse(RunError):
    """A folder that another process uses."""


class OutOfMemory(RunError):
    """The machine or an accelerator has not enough memory."""


class NoUpdate(RunError):
    """A run that ended before its first update."""


class RunsFailed(RunError):
    """One or several of many runs failed."""


class Unreachable(RunError):
    """Something elsewhere that does not answer: a hub, a cluster."""


class LostProcess(RunError):
    """Another process of those that share a run, which has ended before its time."""


class Inexact(RunError):
    """A policy in another form does not act as the original."""


def memory_error(problem: BaseException) -> OutOfMemory | None:
    """Return the error for a machine or an accelerator that ran out of memory; None for another problem."""
    text = show(problem, str, LONGEST_TEXT)
    if not (isinstance(problem, MemoryError) or re.search(NO_MEMORY, text)):
        return None
    asked = re.search(r"allocat\w+ (?:request for )?([\d.]+ ?(?:bytes|[KMGT]i?B))", text)
    size = f" for {asked[1]}" if asked else ""
    return OutOfMemory(
        f"there was no memory left{size}: make the batch (base.batch_size, base.rollout), the networks "
        "(base.actor_hidden, base.critic_hidden), the replay (base.replay_capacity) or --envs smaller, or "
        "ask for fewer states, points or episodes."
    )


@contextlib.contextmanager
def need_extra(what: str, extra: str, field: str | None = None) -> Iterator[None]:
    """Turn an import error inside the `with` block into a sentence that names the missing extra.

    Args:
        what: the feature that needs the packages, in the singular.
        extra: the extra of qscape that installs them.
        field: the flag that asks for the feature; None: none.

    Raises:
        UsageError: a package of the extra is missing.
    """
    try:
        yield
    except ImportError as problem:
        sentence = f'{what} needs the extra: pip install "qscape[{extra}]".'
        raise MissingPackage(sentence, field=field) from problem


def one_line(text: str) -> str:
    """Return a text as one line that is safe to print: blanks for line ends, escapes for control characters.

    Also used for labels, names and notes, since they come from files.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def show(value: Any, written: Callable[[Any], str] = repr, longest: int = 80) -> str:
    """Return a value as one line for a sentence: not too long, and its type if it cannot be written."""
    try:
        text = " ".join(one_line(written(value)).split())
    except Exception:
        return f"a {type(value).__name__} whose text cannot be read"
    return text if len(text) <= longest else f"{text[: longest - 40]} ... {text[-35:]}"


def describe(problem: BaseException) -> str:
    """Return the type and the text of an error as one line, for a sentence."""
    text = show(problem, str, LONGEST_TEXT).rstrip(".: ")
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
        return f"({describe(missing)}); Python looked in the current folder and where PYTHONPATH says"
    return f"({describe(problem)})"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
