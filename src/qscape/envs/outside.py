"""State that an environment keeps outside its instance: each copy gets one of its own.

NumPy's and Python's global random generators, attributes of the environment's classes and globals of their
modules belong to all copies, and to the user's script. Where a copy is seen to change them, its own state is
put there for each of its resets and steps, and what was there before is put back afterwards. So a copy does
not depend on others, the user's own random numbers go on as they would, and a snapshot can hold that state.

A copy is watched in its first calls (`WATCHED`) and in some of the later ones (`EVERY`). Not kept: objects of
classes of one's own in a module or class, other modules, and what the operating system keeps.
"""
# ruff: noqa: NPY002 (NumPy's global generator is one of them)

import collections
import contextlib
import copy
import pickle
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

WATCHED = 64  # calls, from the first on, in which a copy is watched
EVERY = 256  # later it is watched in one call of so many
LARGEST = 2**20  # bytes or entries; a larger value is taken for a constant
NUMPY, PYTHON = "np.random", "random"
_KNOWN = ("gymnasium.", "qscape.")  # modules whose environments keep nothing outside
_MUTABLE = (list, dict, set, collections.deque, bytearray)
_ABSENT = object()  # where a class has not the attribute of its base, which it may get
_VALUES = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None), np.generic)


@contextlib.contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Seed NumPy's and Python's global generators, and put their states back afterwards."""
    before = np.random.get_state(), random.getstate()
    np.random.seed([seed % 2**32, 1])
    random.seed(f"{seed} made")
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


class Outside:
    """The state of one environment outside its instance.

    Attributes:
        kept: names of what it was seen to change.
        late: those among them that it changed before anybody saw it.
    """

    def __init__(self, env: gym.Env | gym.vector.VectorEnv):
        """Watch an environment, given with its wrappers."""
        self.kept: set[str] = set()
        self.late: list[str] = []
        self._layers = [*_iterate_layers(env)]
        self._is_known = all(_is_known(type(layer)) for layer in self._layers)
        self._own: dict[str, tuple[Any, Any]] = {}
        self._left: dict[str, bytes] = {}
        self._calls = 0
        self._places: dict[str, tuple[Any, str]] | None = None
        self._unseeded: list[gym.Space] | None = None
        self._seed_generators(0)

    def reset(self, env: Any, seed: int | None) -> Any:
        """Return `env.reset(seed=seed)`. A seed is also that of its spaces and of its global generators."""
        if seed is not None:
            self._seed_generators(seed)
        return self.call(self._reset, env, seed)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`, a reset or a step, called with the copy's own state in its place."""
        self._calls += 1
        is_watched = not self._is_known and (self._calls <= WATCHED or self._calls % EVERY == 0)
        if not (is_watched or self.kept):
            return function(*arguments)
        names = [name for name in self._find_places() if is_watched or name in self.kept]
        before = {name: self._take(name) for name in names}
        marks = {name: _mark(state) for name, state in before.items()}
        for name in names:
            if name in self.kept and self._left.get(name, marks[name]) != marks[name]:
                self._own[name] = before[name]  # somebody else set it, as a callback does with a level
            if name in self._own:
                self._put(name, self._own[name])
        began = {name: _mark(self._own.get(name, before[name])) for name in names}
        try:
            return function(*arguments)
        finally:
            for name in names:
                after = self._take(name)
                if name in self.kept or _mark(after) != began[name]:
                    if name not in self.kept and self._calls > WATCHED:
                        self.late.append(name)
                    self.kept.add(name)
                    self._own[name] = after
                if name not in (NUMPY, PYTHON):
                    self._left[name] = marks[name]
                self._put(name, before[name])

    def read(self) -> dict[str, Any]:
        """Return the copy's own state by name, as data that a snapshot can hold."""
        return {name: _plain(self._own[name]) for name in sorted(self.kept)}

    def write(self, saved: dict[str, Any]) -> str:
        """Set what `read` returned. Called after a reset.

        Returns:
            "", or why it does not fit: the start of a sentence.
        """
        for name, content in saved.items():
            if name not in self._find_places():
                return f"{name} does not exist"
            thing = (self._own[name] if name in self._own else self._take(name))[0]
            kind, content = content
            if thing is _ABSENT or (kind != type(thing).__name__ and not isinstance(thing, _VALUES)):
                return f"{name} is a {kind} in the save, and a {type(thing).__name__} after a reset"
            is_value = isinstance(thing, _VALUES)
            self._own[name] = (content, content) if is_value else (thing, content)
        self.kept = set(saved)
        self._left = {}
        return ""

    def _reset(self, env: Any, seed: int | None) -> Any:
        if self._unseeded is None:  # spaces that the environment has not seeded itself
            kinds = ("action_space", "observation_space")
            found = [getattr(layer, kind, None) for layer in self._layers for kind in kinds]
            self._unseeded = [
                space for space in found if isinstance(space, gym.Space) and not _is_seeded(space)
            ]
        if seed is not None:
            for space in self._unseeded:
                with contextlib.suppress(Exception):  # a space of one's own
                    space.seed(seed)
        return env.reset(seed=seed)

    def _seed_generators(self, seed: int) -> None:
        self._own[NUMPY] = None, np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._own[PYTHON] = None, random.Random(seed).getstate()

    def _find_places(self) -> dict[str, tuple[Any, str]]:
        """Return what is watched, by name: the class or module, and the name there."""
        if self._places is None:
            self._places = {NUMPY: (None, ""), PYTHON: (None, "")}
            for layer in self._layers:
                self._places |= dict(_iterate_places(type(layer)))
        return self._places

    def _take(self, name: str) -> tuple[Any, Any]:
        """Return the value that is there, and its content."""
        if name == NUMPY:
            return None, np.random.get_state(legacy=False)
        if name == PYTHON:
            return None, random.getstate()
        where, attribute = self._find_places()[name]
        value = vars(where).get(attribute, _ABSENT)
        return value, _content(value)

    def _put(self, name: str, state: tuple[Any, Any]) -> None:
        """Put a value there, and give it its content."""
        value, content = state
        if name == NUMPY:
            np.random.set_state(content)
        elif name == PYTHON:
            random.setstate(content)
        else:
            where, attribute = self._find_places()[name]
            if value is _ABSENT:
                if attribute in vars(where):
                    delattr(where, attribute)
            elif vars(where).get(attribute, _ABSENT) is not value:
                setattr(where, attribute, value)
            _fill(value, content)


def iterate_spaces(space: gym.Space) -> Iterator[gym.Space]:
    """Yield a space and, recursively, its parts."""
    yield space
    parts: Any = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from iterate_spaces(part)


def _is_seeded(space: gym.Space) -> bool:
    """Return whether somebody gave a space a seed: without one NumPy takes 128 bits from the system."""
    drawn = [part._np_random for part in iterate_spaces(space) if part._np_random is not None]
    seeds = [getattr(one.bit_generator.seed_seq, "entropy", 0) for one in drawn]
    return any(not isinstance(seed, int) or seed < 2**64 for seed in seeds)


def _iterate_layers(env: Any) -> Iterator[Any]:
    """Yield an environment, its wrappers and the environments of a vector environment."""
    yield env
    for inner in (getattr(env, "env", None), *(getattr(env, "envs", None) or ())):
        if isinstance(inner, gym.Env | gym.vector.VectorEnv):
            yield from _iterate_layers(inner)


def _is_known(cls: type) -> bool:
    return f"{cls.__module__}.".startswith(_KNOWN)


def _iterate_places(cls: type) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield what methods of a class may change: attributes of it and of its bases, globals that they name."""
    own = [one for one in cls.__mro__ if not _is_known(one) and one is not object]
    names = {name for one in own for name, value in vars(one).items() if _is_state(value)}
    for one in own:
        for name in sorted(names):
            if not name.startswith("__") and _is_state(vars(one).get(name, _ABSENT)):
                yield f"{one.__qualname__}.{name}", (one, name)
        module = sys.modules.get(one.__module__)
        for name in sorted(_names_used(one, vars(module))) if module is not None else ():
            if not name.startswith("__") and _is_state(vars(module)[name]):
                yield f"{one.__module__}:{name}", (module, name)


def _names_used(cls: type, known: dict[str, Any]) -> set[str]:
    """Return the globals of a module that a class names, and the functions and classes of it that it uses."""
    used, todo = set[str](), [cls]
    while todo:
        for code in _iterate_code(todo.pop()):
            new = {name for name in code.co_names if name in known} - used
            used |= new
            todo += [known[name] for name in new if getattr(known[name], "__module__", "") == cls.__module__]
    return used


def _iterate_code(value: Any) -> Iterator[types.CodeType]:
    """Yield the code of a function, of the functions in it, and of the methods of a class."""
    if isinstance(value, types.CodeType):
        yield value
        for part in value.co_consts:
            yield from _iterate_code(part) if isinstance(part, types.CodeType) else ()
    elif isinstance(value, type):
        for part in vars(value).values():
            yield from () if isinstance(part, type) else _iterate_code(part)
    elif isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from _iterate_code(part)
    else:
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        yield from _iterate_code(code) if code is not None else ()


def _is_state(value: Any) -> bool:
    """Return whether a value can be kept: numbers, text, containers of these, random generators, spaces."""
    if value is _ABSENT:
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc" and value.nbytes <= LARGEST and value.flags.writeable
    if type(value) in _MUTABLE or isinstance(value, str | bytes | tuple | frozenset):
        if len(value) > LARGEST:
            return False
        try:
            return len(pickle.dumps(value)) <= LARGEST
        except Exception:
            return False
    return isinstance(value, _VALUES) or _is_random(value)


def _is_random(value: Any) -> bool:
    return isinstance(value, gym.Space) or type(value) in (
        np.random.Generator,
        np.random.RandomState,
        random.Random,
    )


def _content(value: Any) -> Any:
    """Return what can change inside a value, as a copy."""
    if isinstance(value, gym.Space):
        drawn = [part._np_random for part in iterate_spaces(value)]
        return [None if one is None else one.bit_generator.state for one in drawn]
    if type(value) is np.random.Generator:
        return value.bit_generator.state
    if type(value) is np.random.RandomState:
        return value.get_state(legacy=False)
    if type(value) is random.Random:
        return value.getstate()
    if isinstance(value, np.ndarray):
        return value.copy()
    return copy.deepcopy(value) if type(value) in _MUTABLE else value


def _fill(value: Any, content: Any) -> None:
    """Give a value the content that `_content` returned."""
    if isinstance(value, gym.Space):
        part: Any
        for part, state in zip(iterate_spaces(value), content, strict=True):
            if state is None:
                part._np_random = None
            else:
                part.np_random.bit_generator.state = state
    elif type(value) is np.random.Generator:
        value.bit_generator.state = content
    elif type(value) is np.random.RandomState:
        value.set_state(content)
    elif type(value) is random.Random:
        value.setstate(content)
    elif isinstance(value, np.ndarray):
        value[...] = content
    elif type(value) in _MUTABLE:
        value.clear()
        value.update(content) if isinstance(value, dict | set) else value.extend(content)


def _mark(state: tuple[Any, Any]) -> bytes:
    """Return bytes by which two states can be compared."""
    try:
        return pickle.dumps(state[1])
    except Exception:  # an object that changed into one that cannot be compared
        return b""


def _plain(state: tuple[Any, Any]) -> tuple[str, Any]:
    """Return the kind of a value and its content without sets and deques, as data."""
    value, content = state
    if type(value) in (set, collections.deque):
        content = list(content)
    return type(value).__name__, bytes(content) if type(value) is bytearray else content
