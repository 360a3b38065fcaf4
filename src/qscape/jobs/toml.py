"""TOML files, with errors that name the line."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.agents import nearest
from qscape.errors import UsageError

Where = tuple[str | int, ...]  # keys and indices from the top, e.g. ("agents", 0, "lap", "alpha")
KINDS = {str: "a string", dict: "a table", int: "a whole number", list: "a list"}


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
            text = file.read_text()
            return Source(file, text, tomllib.loads(text))
        except OSError as problem:
            raise UsageError(f"{file} cannot be read ({problem.strerror}).") from problem
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise UsageError(f"{file} is no TOML: {problem}.") from problem

    def at(self, path: Where) -> Any:
        """Return the value at a path, or None."""
        return _at(self.data, path)

    def line(self, path: Where) -> int:
        """Return the line on which the value at a path begins; 1 for the empty path.

        tomllib does not report lines. So the first n lines are parsed, for growing n. The value ends with the
        first text that is valid and has the path; it begins after the longest valid text before that.
        """
        lines = self.text.splitlines(keepends=True)
        begin = 1
        for n in range(1, len(lines) + 1):
            try:
                data = tomllib.loads("".join(lines[:n]))
            except tomllib.TOMLDecodeError:  # inside an array or a string of several lines
                continue
            if path and _at(data, path) is not None:
                return begin
            begin = n + 1
        return 1

    def error(self, path: Where, why: str) -> UsageError:
        """Return an error that names file and line; without a value at the path, the line of its parent."""
        while path and self.at(path) is None:
            path = path[:-1]
        return UsageError(f"{self.file}, line {self.line(path)}: {why.rstrip('.')}.")

    def get(self, path: Where, kind: type, default: Any = None) -> Any:
        """Return the value at a path, or `default`. Raises UsageError if it is not of the type `kind`."""
        value = self.at(path)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
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
