"""TOML whose errors name the line."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.agents import nearest
from qscape.errors import UsageError

Where = tuple[str | int, ...]  # keys and indices from the top, e.g. ("agents", 0, "lap", "alpha")
KINDS = {str: "a string", dict: "a table", int: "a whole number", list: "a list"}


class Source(NamedTuple):
    """A TOML file: its data, and where in the file each of them stands."""

    file: Path
    text: str
    data: Mapping[str, Any]

    @staticmethod
    def read(file: Path) -> "Source":
        """Raises UsageError if the file cannot be read, or is no TOML."""
        try:
            text = file.read_text()
            return Source(file, text, tomllib.loads(text))
        except OSError as problem:
            raise UsageError(f"{file} cannot be read ({problem.strerror}).") from problem
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise UsageError(f"{file} is no TOML: {problem}.") from problem

    def at(self, path: Where) -> Any:
        """What is at a path; None: nothing."""
        return _at(self.data, path)

    def line(self, path: Where) -> int:
        """The line on which what is at a path begins, 1 for the whole file.

        The shortest piece of the file that can be read and has the path ends with it; the longest one
        before that ends where it begins.
        """
        lines = self.text.splitlines(keepends=True)
        begin = 1
        for n in range(1, len(lines) + 1):
            try:
                data = tomllib.loads("".join(lines[:n]))
            except tomllib.TOMLDecodeError:  # in the middle of an array or a string of several lines
                continue
            if path and _at(data, path) is not None:
                return begin
            begin = n + 1
        return 1

    def error(self, path: Where, why: str) -> UsageError:
        """An error that names file and line; a path that is not there counts as its parent."""
        while path and self.at(path) is None:
            path = path[:-1]
        return UsageError(f"{self.file}, line {self.line(path)}: {why.rstrip('.')}.")

    def get(self, path: Where, kind: type, default: Any = None) -> Any:
        """A value of a type. Raises UsageError if it is of another."""
        value = self.at(path)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(path, f"{path[-1]} is {value!r}; it must be {KINDS[kind]}")
        return value

    def number(self, path: Where, least: int) -> int | None:
        """A whole number, or None if there is none. Raises UsageError if it is too small."""
        value = self.get(path, int)
        if value is not None and value < least:
            raise self.error(path, f"{path[-1]} is {value}; it must be at least {least}")
        return value

    def table(self, path: Where, known: Sequence[str]) -> dict[str, Any]:
        """A table. Raises UsageError if it is none, or has another key than the known ones."""
        found = self.get(path, dict, {})
        self.check_keys(path, known)
        return found

    def check_keys(self, path: Where, known: Sequence[str]) -> None:
        """Raises UsageError at the first key that is unknown."""
        for key in self.at(path) or {}:
            if key not in known:
                where = f" in {'.'.join(p for p in path if isinstance(p, str))}" if path else ""
                raise self.error((*path, key), f"there is no key '{key}'{where}; {nearest(key, known)}")

    def entries(self, name: str) -> int:
        """How many [[name]] there are. Raises UsageError if there is none."""
        found = self.at((name,))
        if not isinstance(found, list) or not found or not all(isinstance(x, dict) for x in found):
            raise self.error((name,), f"a study needs [[{name}]], once or more often")
        return len(found)


def _at(data: Any, path: Where) -> Any:
    for key in path:
        if isinstance(data, dict) and isinstance(key, str):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data
