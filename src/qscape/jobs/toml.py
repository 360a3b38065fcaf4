"""TOML files, with errors that name the line."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.agents import nearest
from qscape.errors import BadFile, NotFound, UsageError

Where = tuple[str | int, ...]  # keys and indices from the top, e.g. ("agents", 0, "lap", "alpha")
KINDS = {str: "a string", dict: "a table", int: "a whole number", list: "a list", bool: "true or false"}
# Strings and comments, which may hold brackets and ends of lines; then brackets and ends of lines themselves.
TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""+'
    r"|'''.*?'''+"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|#[^\n]*"
    r"|[][{}\n]",
    re.DOTALL,
)


class Source(NamedTuple):
    """A TOML file whose values can be located by line.

    Attributes:
        file: path of the file, for messages.
        text: content of the file.
        data: the parsed content.
    """

    file: Path
    text: str
    data: Mapping[str, Any]

    @staticmethod
    def read(file: Path) -> "Source":
        """Read a file.

        Raises:
            UsageError: the file cannot be read, or is no TOML.
        """
        try:
            text = file.read_text(encoding="utf-8")
            return Source(file, text, tomllib.loads(text))
        except OSError as problem:
            raise NotFound(f"{file} cannot be read ({problem.strerror}).") from problem
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise BadFile(f"{file} is no TOML: {problem}.") from problem

    def at(self, path: Where) -> Any:
        """Return the value at a path, or None."""
        return _at(self.data, path)

    def line(self, path: Where) -> int:
        """Return the line of the statement that a value first appears in; 1 for the empty path."""
        return next((line for line, place in _places(self.text) if place == path), 1)

    def error(self, path: Where, why: str, problem: UsageError | None = None) -> UsageError:
        """Return an error that names file and line; without a value at the path, the line of its parent.

        It is of the kind of `problem`, if that is given.
        """
        field = next((key for key in reversed(path) if isinstance(key, str)), None)
        while path and self.at(path) is None:
            path = path[:-1]
        said = f"{self.file}, line {self.line(path)}: {why.rstrip('.')}."
        return problem.saying(said, field=field) if problem else BadFile(said, field=field)

    def get(self, path: Where, kind: type, default: Any = None) -> Any:
        """Return the value at a path, or `default`. Raises UsageError if it is not of the type `kind`."""
        value = self.at(path)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(path, f"{path[-1]} is {value!r}; it must be {KINDS[kind]}")
        return value

    def number(self, path: Where, least: int) -> int | None:
        """Return the whole number at a path, or None. Raises UsageError if it is less than `least`."""
        value = self.get(path, int)
        if value is not None and value < least:
            raise self.error(path, f"{path[-1]} is {value}; it must be at least {least}")
        return value

    def table(self, path: Where, known: Sequence[str]) -> dict[str, Any]:
        """Return the table at a path, or an empty one. Raises UsageError for a key that is not `known`."""
        table = self.get(path, dict, {})
        self.check_keys(path, known)
        return table

    def check_keys(self, path: Where, known: Sequence[str]) -> None:
        """Raise UsageError for the first key below a path that is not `known`."""
        for key in self.at(path) or {}:
            if key not in known:
                where = f" in {'.'.join(p for p in path if isinstance(p, str))}" if path else ""
                raise self.error((*path, key), f"there is no key '{key}'{where}; {nearest(key, known)}")

    def entries(self, name: str) -> int:
        """Return the number of entries [[name]]. Raises UsageError if the file has none."""
        entries = self.at((name,))
        if not isinstance(entries, list) or not entries or not all(isinstance(x, dict) for x in entries):
            raise self.error((name,), f"a study needs [[{name}]], once or more often")
        return len(entries)


def _at(data: Any, path: Where) -> Any:
    """Return the value at a path in parsed TOML, or None."""
    for key in path:
        if isinstance(data, dict) and isinstance(key, str):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _places(text: str) -> Iterator[tuple[int, Where]]:
    """Yield the line and the path of every table and value of a TOML file, in their order in the file.

    tomllib does not report lines. So each statement is parsed by itself, below the table of the last header.
    """
    entries: Counter[Where] = Counter()  # of each [[array of tables]], up to this line
    table: Where = ()
    for line, statement in _statements(text):
        paths = [*_paths(tomllib.loads(statement))]
        if not statement.lstrip().startswith("["):
            yield from ((line, (*table, *path)) for path in paths)
            continue
        table = ()
        for key in paths[-1]:  # those of [[a.b]] are "a", "b" and 0
            if key == 0:
                entries[table] += 1
            else:
                table = (*_newest(table, entries), key)
                yield line, table
        table = _newest(table, entries)
        yield line, table


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of every statement, which ends outside strings and brackets."""
    line, begin, depth = 1, 0, 0
    for token in TOKEN.finditer(text + "\n"):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if token[0] == "\n" and not depth:
            statement = text[begin : token.end()]
            yield line, statement
            line, begin = line + statement.count("\n"), token.end()


def _paths(value: Any) -> Iterator[Where]:
    """Yield the paths of all values in parsed TOML, first that of the whole."""
    yield ()
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from ((key, *path) for path in _paths(child))


def _newest(table: Where, entries: Counter[Where]) -> Where:
    """Return the path of the newest entry of an array of tables, and other paths as they are."""
    return (*table, entries[table] - 1) if table in entries else table
