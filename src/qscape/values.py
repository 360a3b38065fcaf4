"""Values of Python as JSON that gives them back: the arguments of an environment in run.json.

JSON has no tuples, and reads each key of an object as text. So what it would change is written as an object
of one key, the name of its type, and read back equal and of the same type: {"$tuple": [1, 2]}. The list of
these types is closed: they are of Python and NumPy, and reading one runs no code of a file.
"""

import base64
import datetime
import decimal
import fractions
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

SIGN = "$"  # begins the name of a type
DEEPEST = 50  # levels of nesting; Python's reader of JSON has a limit, too
LONGEST = 4_000  # digits of a whole number; Python reads no more than 4,300 from a text
KINDS = "biufcmM"  # of NumPy's dtypes: numbers, truth values and times
HERE = type(pathlib.Path())


class NoValue(NamedTuple):
    """What stands for a value that no file can hold; its text is for readers."""

    text: str


def encode(value: Any) -> Any:
    """Return a value as JSON, from which `decode` makes an equal one of the same type.

    Raises:
        TypeError: the value, or one in it, is of no type that a file can hold; the text says which one.
    """
    return _encode(value, DEEPEST)


def encode_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return named arguments as JSON, each by `encode`, whose error then begins with its name.

    Raises TypeError like `encode`, also for a name that is no text.
    """
    found = {}
    for name, value in args.items():
        if type(name) is not str:
            raise TypeError(f"{name!r} is no name of an argument")
        try:
            found[name] = encode(value)
        except TypeError as problem:
            raise TypeError(f"{name} {problem}") from problem
    return found


def decode(data: Any) -> Any:
    """Return the value that `encode` wrote.

    Raises:
        ValueError: an object names no type of the list, or its content does not fit the type.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if (name := _named_type(data)) is None:
        return {key: decode(item) for key, item in data.items()}
    if name not in _READ:
        raise ValueError(f"{SIGN}{name} is no kind of value that this version knows")
    try:
        return _READ[name](data[SIGN + name])
    except (ArithmeticError, AttributeError, KeyError, LookupError, TypeError, ValueError) as problem:
        raise ValueError(f"it holds no {name} where it names one ({problem})") from problem


def decode_args(data: Any) -> dict[str, Any]:
    """Return the arguments that `encode_args` wrote. Raises ValueError like `decode`."""
    if not isinstance(data, Mapping):
        raise ValueError(f"the arguments are {_shorten(data)}, and no object of names and values")
    return {name: decode(value) for name, value in data.items()}


def show_args(data: Any) -> dict[str, str]:
    """Return the texts of arguments that `encode_args` wrote, for readers; {} for None.

    A value that `decode` refuses is shown as the file has it. Raises ValueError if there are no arguments.
    """
    if data is not None and not isinstance(data, Mapping):
        raise ValueError(f"the arguments are {_shorten(data)}, and no object of names and values")
    return {name: _show(value) for name, value in (data or {}).items()}


def _show(data: Any) -> str:
    try:
        return str(decode(data))
    except ValueError:
        return json.dumps(data)


def _named_type(data: Mapping[str, Any]) -> str | None:
    """Return the name of the type of which an object is a value; None for a plain dict."""
    key = next(iter(data), "") if len(data) == 1 else ""
    return key.removeprefix(SIGN) if key.startswith(SIGN) else None


def _encode(value: Any, levels: int) -> Any:
    """Return a value as JSON that is nested `levels` deep at most."""
    kind = type(value)
    if levels < 1:
        raise TypeError(f"is nested more than {DEEPEST} levels deep")
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        if abs(value) >= 10**LONGEST:
            raise TypeError(f"is a whole number of more than {LONGEST:,} digits")
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is list:
        return [_encode(item, levels - 1) for item in value]
    if kind is dict:
        plain = all(type(key) is str for key in value) and _named_type(value) is None
        if plain:
            return {key: _encode(item, levels - 1) for key, item in value.items()}
    for name, (of, write) in _WRITE.items():
        if kind is of or (of is np.generic and isinstance(value, np.generic)):
            return {SIGN + name: write(value, levels - 1)}
    raise TypeError(f"is {_shorten(value)}, of the type {kind.__module__}.{kind.__qualname__}")


def _shorten(value: Any) -> str:
    """Return the `repr` of a value, at most 80 characters of it."""
    try:
        text = repr(value)
    except Exception as problem:  # of a class of somebody else
        text = f"a value whose repr raises {type(problem).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _each(values: Any, levels: int) -> list[Any]:
    return [_encode(value, levels) for value in values]


def _sorted(values: Any, levels: int) -> list[Any]:
    """Return the entries of a set in an order that does not differ between processes."""
    return sorted(_each(values, levels), key=json.dumps)


def _text(value: Any, levels: int) -> str:
    return str(value)


def _bytes(value: Any, levels: int) -> str:
    return base64.b64encode(value).decode()


def _datetime(value: Any, levels: int) -> str:
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        raise TypeError(f"is {value!r}, whose time zone is no datetime.timezone")
    return value.isoformat()


def _array(value: np.ndarray | np.generic, levels: int) -> list[Any]:
    number = value.dtype.kind in KINDS and value.dtype.itemsize <= (16 if value.dtype.kind == "c" else 8)
    if not number:
        raise TypeError(f"is an array of dtype {value.dtype}, of which no file can hold the numbers")
    return [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]


def _read_array(data: Any) -> np.ndarray:
    name, shape, text = data
    if (dtype := np.dtype(name)).kind not in KINDS:
        raise ValueError(f"no dtype {name}")
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).reshape(shape).copy()


def _read_texts(make: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a function that reads a value from a text, and from nothing else."""

    def read(data: Any) -> Any:
        if not isinstance(data, str):
            raise ValueError(f"{data!r} is no text")
        return make(data)

    return read


# How values of each type are written: by the name that files have, the type, and what follows the name.
_WRITE: dict[str, tuple[type, Callable[[Any, int], Any]]] = {
    "float": (float, _text),  # inf and NaN, which JSON has not
    "tuple": (tuple, _each),
    "dict": (dict, lambda value, levels: _each(map(list, value.items()), levels)),
    "set": (set, _sorted),
    "frozenset": (frozenset, _sorted),
    "bytes": (bytes, _bytes),
    "bytearray": (bytearray, _bytes),
    "complex": (complex, lambda value, levels: _each((value.real, value.imag), levels)),
    "range": (range, lambda value, levels: [value.start, value.stop, value.step]),
    "slice": (slice, lambda value, levels: _each((value.start, value.stop, value.step), levels)),
    "path": (HERE, _text),
    "posix_path": (pathlib.PurePosixPath, _text),
    "windows_path": (pathlib.PureWindowsPath, _text),
    "date": (datetime.date, lambda value, levels: value.isoformat()),
    "time": (datetime.time, _datetime),
    "datetime": (datetime.datetime, _datetime),
    "timedelta": (datetime.timedelta, lambda value, levels: [value.days, value.seconds, value.microseconds]),
    "decimal": (decimal.Decimal, _text),
    "fraction": (fractions.Fraction, _text),
    "uuid": (uuid.UUID, _text),
    "array": (np.ndarray, _array),
    "scalar": (np.generic, _array),
    "none": (NoValue, lambda value, levels: value.text),
}

# How each is read.
_READ: dict[str, Callable[[Any], Any]] = {
    "float": _read_texts(float),
    "tuple": lambda data: tuple(map(decode, _items(data))),
    "dict": lambda data: {decode(key): decode(item) for key, item in _items(data)},
    "set": lambda data: set(map(decode, _items(data))),
    "frozenset": lambda data: frozenset(map(decode, _items(data))),
    "bytes": _read_texts(lambda text: base64.b64decode(text, validate=True)),
    "bytearray": _read_texts(lambda text: bytearray(base64.b64decode(text, validate=True))),
    "complex": lambda data: complex(*map(decode, _items(data))),
    "range": lambda data: range(*_items(data)),
    "slice": lambda data: slice(*map(decode, _items(data))),
    "path": _read_texts(pathlib.Path),
    "posix_path": _read_texts(pathlib.PurePosixPath),
    "windows_path": _read_texts(pathlib.PureWindowsPath),
    "date": _read_texts(datetime.date.fromisoformat),
    "time": _read_texts(datetime.time.fromisoformat),
    "datetime": _read_texts(datetime.datetime.fromisoformat),
    "timedelta": lambda data: datetime.timedelta(*_items(data)),
    "decimal": _read_texts(decimal.Decimal),
    "fraction": _read_texts(fractions.Fraction),
    "uuid": _read_texts(uuid.UUID),
    "array": _read_array,
    "scalar": lambda data: _read_array(data)[()],
    "none": _read_texts(NoValue),
}


def _items(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{data!r} is no list")
    return data
