"""The exact state of an `EnvAdapter` as plain data, so that a resumed run equals an uninterrupted one.

A snapshot captures numbers, arrays and views of them, texts, bytes, dates, iterators of Python, random
generators, nested environments and plain Python objects that are attributes of the environment or its
wrappers; MuJoCo's simulation state and the numbers of its model (an environment may move a door at every
reset); what an environment keeps outside its instance (`outside`); and the adapter's `EpisodeStatistics`.
Environments in other processes (`Workers`) are asked there. Objects that can only be compared (tables, arrays
of objects) are no obstacle as long as they are what a reset makes (`remember`). Other objects (a Box2D world,
EnvPool's threads) cannot be captured, nor can an environment in another process that waits for its reset
(next-step autoreset). Then the snapshot says so, and `restore` starts a new episode with a seed of its own.
Nothing of it is loaded by pickle, so loading a snapshot runs no code.

The following state is not captured, without a warning: function closures, globals of other modules, changed
shapes of an `MjModel` (meshes, height fields), and MuJoCo contacts that an environment reads before it steps.
"""

import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import io
import itertools
import json
import pathlib
import pickle
import random
import sys
import types
import uuid
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

from qscape.envs.adapter import EnvAdapter, EpisodeStatistics
from qscape.envs.native import JaxEnv
from qscape.envs.outside import Outside, iterate_spaces
from qscape.envs.workers import EnvPoolEnv, Reached, Workers
from qscape.errors import describe, one_line
from qscape.values import decode, encode

# Classes of objects without state, which the environment's constructor makes again.
_FIXED = (
    gym.Space,
    EnvSpec,
    JaxEnv,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
)
# Attributes of environments that Gymnasium's constructors set; skipped if the value is of these classes.
_CONSTANT = dict.fromkeys(("spec", "_cached_spec"), EnvSpec | None) | {"render_mode": str | None}
_CONSTANT |= {"_saved_kwargs": dict | None, "_ezpickle_args": tuple, "_ezpickle_kwargs": dict}
# Of Gymnasium's vector environment; skipped there. The last is in saves of 0.2.0.
_BUFFERS = {"env_fns", "_env_obs", "_observations", "_rewards", "_add_info"}

LONG = 2**16  # bytes of the text of a value that stands in an array, not among the others
_OUTSIDE = "(outside)"  # the layer of what an environment keeps outside its instance
_DRAWING = {"screen", "clock", "surf", "viewer", "mujoco_renderer"}  # skipped if an object of these modules
_DRAWN_BY = ("pygame", "pyglet", "glfw", "mujoco_py", "mujoco.render", "mujoco.viewer")
_DRAWN_BY += ("gymnasium.envs.mujoco.mujoco_rendering",)


def _read_generator(generator: np.random.Generator) -> Any:
    """Return the state of a generator; with its seed, as text, if it spawned other generators."""
    seed, state = generator.bit_generator.seed_seq, generator.bit_generator.state
    spawned = getattr(seed, "n_children_spawned", 0)
    return (state, spawned, str(seed)) if spawned else state


def _set_generator(generator: np.random.Generator, saved: Any) -> None:
    """Set what `_read_generator` returned. Raises _NotCapturable for the generator of another seed."""
    state, spawned, seed = saved if isinstance(saved, tuple) else (saved, 0, "")
    made: Any = generator.bit_generator.seed_seq
    have = getattr(made, "n_children_spawned", 0)
    if spawned > have:
        made.spawn(spawned - have)
    if spawned and str(made) != seed:
        raise _NotCapturable("a random generator that spawns others has another seed after a reset")
    generator.bit_generator.state = state


_RANDOM = {  # functions that read and set the state of a random generator
    np.random.Generator: (_read_generator, _set_generator),
    np.random.RandomState: (lambda g: g.get_state(legacy=False), lambda g, state: g.set_state(state)),
    random.Random: (lambda g: g.getstate(), lambda g, state: g.setstate(state)),
}


class Snapshot(NamedTuple):
    """The state of an adapter as plain data.

    Attributes:
        arrays: arrays by path, such as "env.PendulumEnv.state".
        meta: JSON data that refers to `arrays` by path. `meta["exact"]` is False if something could not be
            captured; then `meta["why"]` is a sentence for the user.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


_NUMERIC, _CODED = "biufc", "SUMmV"  # kinds of arrays of which a save holds the numbers, and the bytes
_CODE = ".dtype"  # ends the name of an array that holds the dtype and the shape of another one
# Values that cannot change, of which `values` makes equal ones.
_EXACT = (complex, range, slice, datetime.date, datetime.time, datetime.datetime, datetime.timedelta)
_EXACT += (decimal.Decimal, fractions.Fraction, uuid.UUID, type(pathlib.Path()))
# Packages whose objects have bytes that hold everything, so that equal bytes are equal objects.
_WHOLE = {"builtins", "collections", "datetime", "networkx", "numpy", "pandas", "polars", "pyarrow", "re"}
_WHOLE |= {"scipy", "shapely", "xml", "zoneinfo"}
_DICTS = (dict, collections.Counter, collections.OrderedDict, collections.defaultdict)
_ITERATORS = (itertools.cycle, itertools.count, itertools.repeat)
_CONTAINERS = {"list", "set", "deque", *(cls.__name__ for cls in _DICTS)}
_ITERATORS += (type(iter([])), type(iter(())), type(iter(range(0))))


class _NotCapturable(Exception):
    """Something cannot be captured, or a captured value does not fit the environment."""


@dataclasses.dataclass
class _Here:
    """The first environment of an adapter, as `Reached` is one in another process."""

    env: gym.Env
    outside: Outside
    constants: dict[str, Any] | None
    index: int = 0


def take(adapter: EnvAdapter) -> Snapshot:
    """Take a snapshot of an adapter between two steps. Called by every save of a run."""
    meta: dict[str, Any] = {
        "exact": True,
        "why": "",
        "seed": int(adapter.seed),
        "autoreset": adapter.autoreset,
        "episodes": adapter.statistics.episodes.tolist(),
    }
    if (given := adapter.given_seeds) is not None:
        meta["given"] = given
    try:
        if adapter.interrupted:
            raise _NotCapturable(f"it was interrupted in the middle of a step ({adapter.interrupted})")
        if adapter.unkept:
            raise _NotCapturable(adapter.unkept)
        layers = dict(_iterate_layers(adapter))
        writer = _Writer(layers)
        meta["layers"] = {name: writer.attributes(layer, name) for name, layer in layers.items()}
        writer.finish()
        if isinstance(adapter.env, Workers):
            if adapter.statistics.resetting.any():  # Gymnasium keeps that in a variable of the process
                raise _NotCapturable("an environment in another process waits for its reset")
            for captured in adapter.env.apply(_capture_one):
                if isinstance(captured, str):
                    raise _NotCapturable(captured)
                meta["layers"] |= captured[0]
                writer.arrays |= captured[1]
        else:
            for i, outside in enumerate(adapter.outside):
                meta["layers"] |= _capture_outside(outside, writer, f"env.{i}.{_OUTSIDE}")
        _compare_constants(adapter, writer)
    except _NotCapturable as problem:
        why = f"{adapter.env_id} cannot be resumed exactly, a new episode begins there: {problem}"
        return Snapshot({}, meta | {"exact": False, "why": why})
    return Snapshot(writer.arrays, meta)


def remember(adapter: EnvAdapter) -> None:
    """Remember what a reset has put into an adapter and a snapshot can only compare, such as tables.

    Called after a reset. Without it, the first snapshot remembers what it meets.
    """
    if isinstance(adapter.env, Workers):
        adapter.env.apply(_remember_one)
        return
    adapter.constants = {}
    with contextlib.suppress(_NotCapturable):  # `take` will say so
        adapter.constants = _find_constants(dict(_iterate_layers(adapter)))


def _remember_one(reached: Reached, _: None) -> None:
    """Remember constants of an environment in its own process."""
    reached.constants = {}
    with contextlib.suppress(_NotCapturable):
        reached.constants = _find_constants(dict(_iterate_wrappers(reached.env, f"env.{reached.index}")))


def _find_constants(layers: dict[str, Any]) -> dict[str, Any]:
    """Return what can only be compared, by digest."""
    writer = _Writer(layers, light=True)
    for name, layer in layers.items():
        with contextlib.suppress(_NotCapturable):
            writer.attributes(layer, name)
    writer.finish()
    return writer.constants


def _compare_constants(holder: EnvAdapter | Reached | _Here, writer: "_Writer") -> None:
    """Raise _NotCapturable if something that can only be compared is not what the last reset made."""
    if holder.constants is None:
        holder.constants = writer.constants
    for digest, value in writer.constants.items():
        if digest not in holder.constants:
            raise _NotCapturable(f"a {type(value).__name__} in it has changed, which can only be compared")


def restore(adapter: EnvAdapter, snapshot: Snapshot) -> str:
    """Restore an adapter to a snapshot that `take` made of an adapter of the same environment.

    The adapter is reset first. If the state cannot be restored exactly, a new episode starts; its seed is
    made of the run's seed and the number of finished episodes.

    Returns:
        "" if the state is exact; else one sentence for the user that says why a new episode started.
    """
    meta = snapshot.meta
    why = meta["why"]
    adapter.reset()  # so that all attributes that are set below exist
    remember(adapter)
    try:
        if meta["exact"]:
            if meta.get("autoreset", adapter.autoreset) != adapter.autoreset:
                raise _NotCapturable("it resets itself in another way now")
            layers, arrays, inside = dict(_iterate_layers(adapter)), snapshot.arrays, {}
            outside = {k: v for k, v in meta["layers"].items() if k.endswith(f".{_OUTSIDE}")}
            if isinstance(adapter.env, Workers):
                parts = [_part(meta["layers"], arrays, f"env.{i}.") for i in range(adapter.envs)]
                inside = {name: saved for of, _ in parts for name, saved in of.items()}
                if why := next(filter(None, adapter.env.apply(_restore_one, parts)), ""):
                    raise _NotCapturable(why)
            else:
                for i, own in enumerate(adapter.outside):
                    _restore_outside(own, outside, arrays, f"env.{i}.{_OUTSIDE}")
            there = {k: v for k, v in meta["layers"].items() if k not in inside and k not in outside}
            _set_attributes(layers, there, arrays)
            if "given" in meta:
                adapter.given_seeds = meta["given"]
            return ""
    except _NotCapturable as problem:
        why = f"{adapter.env_id} cannot be resumed exactly, a new episode begins: {problem}"
    episodes = np.asarray(meta["episodes"], np.int64)
    adapter.reseed(int(np.random.SeedSequence([meta["seed"], *meta["episodes"]]).generate_state(1)[0] >> 1))
    adapter.reset()
    adapter.statistics.episodes = episodes
    return one_line(why)


def _set_attributes(layers: dict[str, Any], saved: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Restore the attributes of layers, by name. Raises _NotCapturable if they do not fit."""
    if layers.keys() != saved.keys():
        raise _NotCapturable("it is wrapped in another way now")
    reader = _Reader(arrays, layers)
    for name, layer in layers.items():
        before = dict(vars(layer))
        reader.attributes(layer, saved[name], name)
        if isinstance(layer, EpisodeStatistics):
            _check_statistics(before, vars(layer))


def _check_statistics(made: dict[str, Any], read: dict[str, Any]) -> None:
    """Raise a ValueError if statistics of a snapshot have other names, types, shapes or impossible values.

    Args:
        made: those after a reset.
        read: those that the snapshot holds.
    """
    if made.keys() != read.keys():
        raise ValueError(f"the statistics of episodes are {', '.join(read)}, and not {', '.join(made)}")
    for name, own in made.items():
        value = read[name]
        if isinstance(own, np.ndarray):
            same = isinstance(value, np.ndarray) and (value.dtype, value.shape) == (own.dtype, own.shape)
        else:
            same = type(value) is type(own)
        if not same or (name in ("steps", "began", "episodes") and np.min(value) < 0):
            raise ValueError(f"the statistics of episodes hold {name} = {value!r}")
    if np.max(read["began"]) > read["steps"] + 1:  # the step that only resets comes after the end
        raise ValueError("an episode began after the last step")
    if not (np.isfinite(read["observation"]).all() and np.isfinite(read["ret"]).all()):
        raise ValueError("the observation or the return of an episode is not finite")


def _part(
    layers: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the layers and arrays of a snapshot whose names begin with `prefix`."""
    return tuple({k: v for k, v in of.items() if k.startswith(prefix)} for of in (layers, arrays))  # type: ignore[return-value]


def _capture_one(reached: Reached | _Here, _: None) -> tuple[dict[str, Any], dict[str, np.ndarray]] | str:
    """Return the layers and arrays of an environment in its own process, or why there are none."""
    name = f"env.{reached.index}"
    layers = dict(_iterate_wrappers(reached.env, name))
    writer = _Writer(layers)
    try:
        captured = {name: writer.attributes(layer, name) for name, layer in layers.items()}
        writer.finish()
        _compare_constants(reached, writer)
        captured |= _capture_outside(reached.outside, writer, f"{name}.{_OUTSIDE}")
        return captured, writer.arrays
    except _NotCapturable as problem:
        return str(problem)


def _restore_one(reached: Reached | _Here, part: tuple[dict[str, Any], dict[str, np.ndarray]]) -> str:
    """Restore an environment in its own process. Returns why it cannot be restored, or ""."""
    name, (saved, arrays) = f"env.{reached.index}", part
    outside = f"{name}.{_OUTSIDE}"
    try:
        _restore_outside(reached.outside, saved, arrays, outside)
        there = {k: v for k, v in saved.items() if k != outside}
        _set_attributes(dict(_iterate_wrappers(reached.env, name)), there, arrays)
    except _NotCapturable as problem:
        return str(problem)
    return ""


def _capture_outside(outside: Outside, writer: "_Writer", name: str) -> dict[str, Any]:
    """Return what an environment keeps outside its instance as a layer; none if that is nothing."""
    own = outside.read()
    return {name: {key: writer.value(value, f"{name}.{key}") for key, value in own.items()}} if own else {}


def _restore_outside(
    outside: Outside, saved: dict[str, Any], arrays: dict[str, np.ndarray], name: str
) -> None:
    """Restore what `_capture_outside` returned. Raises _NotCapturable if it does not fit."""
    reader, own = _Reader(arrays), saved.get(name, {})
    if why := outside.write({key: reader.value(data, None, f"{name}.{key}") for key, data in own.items()}):
        raise _NotCapturable(why)


class First(NamedTuple):
    """The state of the first environment of an adapter.

    Attributes:
        layers, arrays: as in a `Snapshot`; empty if it could not be captured.
        why_not: why; "" if it could be.
    """

    layers: dict[str, Any]
    arrays: dict[str, np.ndarray]
    why_not: str = ""


def _find_first(adapter: EnvAdapter) -> _Here | None:
    """Return the first environment of an adapter; None if this process does not step it by itself."""
    if adapter.first is None:
        return None
    return _Here(adapter.first, adapter.outside[0], adapter.constants)


def take_first(adapter: EnvAdapter) -> First:
    """Capture the first environment of an adapter, in this process or in one of its own."""
    here = _find_first(adapter)
    taken: Any = "this process does not step it" if here is None else _capture_one(here, None)
    if isinstance(adapter.env, Workers):
        taken = adapter.env.apply(_capture_one)[0]
    return First({}, {}, taken) if isinstance(taken, str) else First(*taken)


def restore_first(adapter: EnvAdapter, taken: First) -> str:
    """Restore the first environment of an adapter, which this process steps, after a reset of it.

    Returns:
        Why it cannot be restored; "" if it was.
    """
    here = _find_first(adapter)
    assert here is not None
    adapter.reset_first()  # so that all attributes that are set exist
    return _restore_one(here, (taken.layers, taken.arrays))


def _iterate_layers(adapter: EnvAdapter) -> Iterator[tuple[str, Any]]:
    """Yield by name everything that may have state: the adapter's statistics, wrappers, environments."""
    yield "adapter", adapter.statistics
    yield from _iterate_wrappers(adapter.env, "env")


def _iterate_wrappers(env: gym.Env | VectorEnv, name: str) -> Iterator[tuple[str, Any]]:
    """Yield an environment, its wrappers and sub-environments, by name."""
    if isinstance(env, Workers):
        return  # `take` and `restore` ask each process
    if isinstance(env, AsyncVectorEnv):
        raise _NotCapturable("its environments run in other processes")
    if isinstance(env, EnvPoolEnv):
        raise _NotCapturable("EnvPool does not show the state of its environments")
    yield f"{name}.{type(env).__name__}", env
    if isinstance(env, gym.Wrapper | VectorWrapper):
        yield from _iterate_wrappers(env.env, f"{name}.env")
    elif isinstance(env, SyncVectorEnv):
        for i, one in enumerate(env.envs):
            yield from _iterate_wrappers(one, f"{name}.{i}")


def _is_mujoco(value: Any, kind: str) -> bool:
    """Return whether the value is an instance of the MuJoCo class `kind`."""
    mujoco: Any = sys.modules.get("mujoco")  # an MjData can only exist if it was imported
    return mujoco is not None and isinstance(value, getattr(mujoco, kind))


def _has_bytes(value: np.ndarray | np.generic) -> bool:
    """Return whether bytes are all that an array holds: no objects."""
    return value.dtype.kind in _NUMERIC + _CODED and not value.dtype.hasobject


def _open(iterator: Any) -> Any:
    """Return what is inside an iterator of Python, as data from which `_close` makes one like it.

    None if Python does not tell: of those of itertools from Python 3.14 on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of copies of itertools; there is no other way
        try:
            _, arguments, *state = iterator.__reduce__()
        except TypeError:
            return None
    return [list(arguments), *state]


def _close(kind: str, parts: Any) -> Any:
    """Return an iterator of `_ITERATORS` from what `_open` returned."""
    arguments, *state = parts
    cls = next(cls for cls in _ITERATORS if cls.__name__ == kind)
    made: Any = cls(*arguments) if cls.__module__ == "itertools" else iter(*arguments)
    if state and state[0] is not None:  # Python 3.13 gives None for a range
        made.__setstate__(state[0])
    return made


class _Whole(pickle.Pickler):
    """Pickles objects of which bytes are known to hold everything. Its output is compared and never read."""

    def reducer_override(self, value: Any) -> Any:
        """Refuse an object whose bytes may leave out what changes."""
        places = type(value).__module__, str(getattr(value, "__module__", ""))  # of functions the second
        if isinstance(value, type | types.FunctionType | enum.Enum) or _is_plain(value):
            return NotImplemented
        if any(place.partition(".")[0] in _WHOLE for place in places):
            return NotImplemented
        raise TypeError(f"the bytes of a {type(value).__name__} may not hold all of it")


def _digest(value: Any) -> str:
    """Return a checksum of what a value holds. Raises an error if that cannot be read.

    Equal objects give equal checksums, whichever of their parts are one object.
    """
    if hasattr(value, "to_xml") and type(value).__module__.startswith("mujoco"):
        return hashlib.sha256(value.to_xml().encode()).hexdigest()
    written = io.BytesIO()
    pickler = _Whole(written, protocol=4)
    pickler.fast = True  # without it, bytes tell which parts are one object
    pickler.dump(value)
    return hashlib.sha256(written.getbuffer()).hexdigest()


def _stateless_name(value: Any) -> str | None:
    """Return the name of a value that has no state; None for other values."""
    if isinstance(value, _FIXED) or _is_mujoco(value, "MjModel"):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return None


def _owner(value: Any) -> Any:
    """Return the object whose method `value` is; None for other values, and for methods of classes."""
    if not isinstance(value, types.MethodType | types.BuiltinFunctionType):
        return None
    owner = value.__self__
    return None if isinstance(owner, type | types.ModuleType) else owner


def _is_plain(value: Any) -> bool:
    """Return whether an object's whole state is its `__dict__`; `__reduce_ex__` shows any other state."""
    if (
        type(value).__reduce__ is not object.__reduce__
        or type(value).__reduce_ex__ is not object.__reduce_ex__
    ):
        return False
    try:
        _, made_of, state, items, pairs = (*value.__reduce_ex__(2), None, None)[:5]
    except Exception:  # its class decides which, such as a bare Exception of CasADi's symbols
        return False
    if items is not None or pairs is not None:
        return False
    if not isinstance(made_of, tuple) or len(made_of) > 1:  # bytes, a subclass of int, ...
        return False
    return state is None or state is getattr(value, "__dict__", None)


def _type_name(value: Any) -> str:
    """Return the full name of a value's type, which snapshots store."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _iterate_generators(space: gym.Space) -> Iterator[np.random.Generator | None]:
    """Yield the random generators of a space and its parts; None for a generator that was never used."""
    return (part._np_random for part in iterate_spaces(space))


class _Writer:
    """Turns attributes into JSON data that refers to `arrays` by path.

    Layers are written one by one. A layer that is an attribute of another layer is not written twice.
    """

    def __init__(self, layers: dict[str, Any], light: bool = False):
        """Begin a snapshot of layers; `light`: copy no arrays, of which only paths are wanted."""
        self.layers = {id(layer): name for name, layer in layers.items()}
        self.light = light
        self.arrays: dict[str, np.ndarray] = {}
        self.constants: dict[str, Any] = {}  # what can only be compared, by digest
        self.simulated: list[tuple[dict[str, Any], np.ndarray, str]] = []  # views of foreign memory
        self.fields: list[np.ndarray] = []  # MuJoCo's memory that is in the snapshot
        # First path and object, by id; the reference keeps the object alive, so that its id stays unique.
        self.seen: dict[int, tuple[str, Any]] = {}

    def attributes(self, layer: Any, path: str) -> dict[str, Any]:
        """Return the data of an object's attributes, by name."""
        self.seen[id(layer)] = path, layer
        data = {}
        for name, value in getattr(layer, "__dict__", {}).items():
            try:
                if not self.is_skipped(layer, name, value):
                    data[name] = self.value(value, f"{path}.{name}")
            except _NotCapturable:
                raise
            except Exception as problem:  # of code of the value's class, or values too deep for a recursion
                raise _NotCapturable(f"{path}.{name} cannot be read ({describe(problem)})") from problem
        for name, value in vars(layer).items() if data else ():
            if name in data and isinstance(value, list | tuple | dict | str | set | frozenset):
                data[name] = self.shorten(data[name], f"{path}.{name}")
        return data

    def shorten(self, data: Any, path: str) -> Any:
        """Return the data of a value; as an array of its text if that is long, which saves store once."""
        text = json.dumps(data).encode()
        if len(text) < LONG:
            return data
        self.keep(np.frombuffer(text, np.uint8), f"{path}.json")
        return {"json": f"{path}.json"}

    def is_skipped(self, layer: Any, name: str, value: Any) -> bool:
        """Return whether an attribute is left out: another layer, an object for rendering, or a constant."""
        if name == "envs":
            return id(layer) in self.layers and isinstance(layer, SyncVectorEnv)
        if name in _BUFFERS:
            return isinstance(layer, SyncVectorEnv)
        if name in _CONSTANT:
            return isinstance(layer, gym.Env | VectorEnv) and isinstance(value, _CONSTANT[name])
        drawing = name in _DRAWING and type(value).__module__.startswith(_DRAWN_BY)
        return drawing or (name == "env" and id(value) in self.layers)

    def value(self, value: Any, path: str) -> Any:
        """Return the data of one value: the value itself, or {kind: content}.

        Raises _NotCapturable for a value of another type.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in _EXACT:
            with contextlib.suppress(TypeError):  # of a time zone, such as files do not hold
                return {"value": encode(value)}
        if type(value) in (bytes, bytearray):
            self.keep(np.frombuffer(bytes(value), np.uint8), path)
            return {type(value).__name__: path}
        if id(value) in self.layers:
            return {"same": self.layers[id(value)]}
        if isinstance(value, np.str_):
            return {"text": str(value)}
        if isinstance(value, np.ndarray | np.generic):
            is_known = type(value) is np.ndarray or isinstance(value, np.generic)
            return self.array(value, path) if is_known and _has_bytes(value) else self.constant(value, path)
        for kind, (read, _) in _RANDOM.items():
            if type(value) is kind:
                return {"random": self.value(read(value), path)}
        if type(value) is tuple:
            return {"tuple": self.parts(value, path)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"fields": [_type_name(value), self.parts(value, path)]}
        if type(value) is frozenset:
            return {"frozenset": self.parts(value, path)}
        if type(value) in _ITERATORS and (inside := _open(value)):
            return {"iterator": [type(value).__name__, self.value(inside, path)]}
        if type(value) in (list, set, collections.deque, *_DICTS):
            first, _ = self.seen.setdefault(id(value), (path, value))
            kind = type(value).__name__
            if first != path:
                return {"same": first}
            if not isinstance(value, dict):
                return {kind: self.parts(value, path)}
            pairs = enumerate(value.items())
            return {
                kind: [[self.value(k, f"{path}.k{i}"), self.value(v, f"{path}.{i}")] for i, (k, v) in pairs]
            }
        if isinstance(value, enum.Enum):
            return {"member": [_type_name(value), value.name]}
        if _is_mujoco(value, "MjModel"):
            fields = [*_parameters(value).values()]
            self.fields += fields
            self.arrays[path] = np.concatenate([field.ravel() for field in fields])
            return {"model": path}
        if (owner := _owner(value)) is not None:
            return {"bound": [getattr(value, "__name__", ""), self.value(owner, f"{path}.of")]}
        if isinstance(value, functools.partial):
            return {"partial": self.parts((value.func, value.args, value.keywords), path)}
        if isinstance(value, gym.Space) and any(draws := [*_iterate_generators(value)]):
            return {"space": [draw and self.value(draw.bit_generator.state, path) for draw in draws]}
        if (name := _stateless_name(value)) is not None:
            return {"fixed": name}
        if _is_mujoco(value, "MjData"):
            return {"mujoco": self.mujoco(value, path)}
        if _is_plain(value) or isinstance(value, gym.Env | VectorEnv):
            known = self.seen.get(id(value))
            return (
                {"same": known[0]} if known else {"thing": [_type_name(value), self.attributes(value, path)]}
            )
        return self.constant(value, path)

    def constant(self, value: Any, path: str) -> dict[str, Any]:
        """Return the data of a value that can be compared and not restored, such as a table.

        Raises _NotCapturable for a value that cannot be compared either.
        """
        try:
            digest = _digest(value)
        except Exception:
            kind = type(value).__name__ + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
            raise _NotCapturable(f"{path} ({kind}) is neither a number nor an array") from None
        self.constants[digest] = value
        return {"constant": [_type_name(value), digest]}

    def keep(self, array: np.ndarray, path: str) -> None:
        """Put a copy of an array into the snapshot."""
        self.arrays[path] = array if self.light else np.array(array)

    def parts(self, values: Iterable[Any], path: str) -> list[Any]:
        """Return the data of several values."""
        return [self.value(part, f"{path}.{i}") for i, part in enumerate(values)]

    def array(self, value: np.ndarray | np.generic, path: str) -> dict[str, Any]:
        """Return the data of a scalar or array; one array under two names is stored once.

        Of a view, the array is stored of which it is a part, and the place there. A view of MuJoCo's memory
        is made again by a reset, and the model and the data are restored on their own.

        Raises _NotCapturable for other views of foreign memory, and for parts of an array of another kind.
        """
        if isinstance(value, np.generic):
            self.store(np.asarray(value), path)
            return {"scalar": path}
        owner: Any = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if owner.base is not None:
            if not value.flags.writeable:
                owner = value
            elif type(owner.base).__name__ == "PyCapsule":
                data: dict[str, Any] = {"simulated": [value.dtype.str, list(value.shape)]}
                self.simulated.append((data, value, path))
                return data
            else:
                raise _NotCapturable(f"{path} is a view of foreign memory")
        known = id(owner) in self.seen
        first, _ = self.seen.setdefault(id(owner), (path if owner is value else f"{path}.whole", owner))
        if owner is value:
            if not known:
                self.store(value, path)
            return {"array": first}
        flags = owner.flags
        if (
            type(owner) is not np.ndarray
            or not _has_bytes(owner)
            or not (flags.c_contiguous or flags.f_contiguous)
        ):
            raise _NotCapturable(f"{path} is a part of a {type(owner).__name__} of {owner.dtype}")
        if not known:
            self.store(owner, first)
        start, whole = (of.__array_interface__["data"][0] for of in (value, owner))
        descr, layout = np.lib.format.dtype_to_descr(value.dtype), [start - whole, list(value.strides)]
        return {"view": [first, descr, list(value.shape), *layout, bool(value.flags.writeable)]}

    def finish(self) -> None:
        """Find out which views of foreign memory are MuJoCo's and in the snapshot; compare the others."""
        for data, value, path in self.simulated:
            if not any(np.may_share_memory(value, field) for field in self.fields):
                data.clear()
                data |= self.constant(value, path)

    def store(self, array: np.ndarray, path: str) -> None:
        """Put an array into the snapshot; one that is not of numbers as bytes, with its dtype and shape."""
        if array.dtype.kind in _NUMERIC:
            self.keep(array, path)
            return
        self.keep(np.frombuffer(array.tobytes("A"), np.uint8), path)
        is_turned = not array.flags.c_contiguous and array.flags.f_contiguous
        about = np.lib.format.dtype_to_descr(array.dtype), list(array.shape), is_turned
        descr = json.dumps(about)
        self.keep(np.frombuffer(descr.encode(), np.uint8), f"{path}{_CODE}")

    def mujoco(self, data: Any, path: str) -> str:
        """Capture MuJoCo's integration state (with the solver's warm start) and the derived quantities.

        Derived quantities are captured, not computed again: an environment may read positions of bodies
        before it steps, and these positions are one substep old.
        """
        mujoco: Any = sys.modules["mujoco"]
        if self.light:
            return path
        state = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.arrays[f"{path}.state"] = state
        for name, field in _derived(data).items():
            self.fields.append(field)
            self.arrays[f"{path}.derived.{name}"] = field.copy()
        return path


def _derived(data: Any) -> dict[str, np.ndarray]:
    """Return the array fields of `data` that do not depend on contacts; those are empty in a new MjData."""
    new = type(data)(data.model)
    fields = {name: getattr(new, name) for name in dir(new) if not name.startswith(("_", "plugin"))}
    return {
        name: getattr(data, name)
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and field.size
    }


def _parameters(model: Any) -> dict[str, np.ndarray]:
    """Return a model's numbers: positions, masses, friction, gains; but not meshes and textures (large)."""
    shapes = ("_", "mesh_", "hfield_", "tex_", "skin_", "flex_", "key_")
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith(shapes)}
    return {
        name: field
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and field.dtype == np.float64
    }


def _as_descr(data: Any) -> Any:
    """Return a dtype's description as NumPy reads it: JSON has made lists of its tuples."""
    if isinstance(data, str):
        return data
    return [(name, _as_descr(kind), *map(tuple, shape)) for name, kind, *shape in data]


class _Reader:
    """Restores what `_Writer` wrote."""

    def __init__(self, arrays: dict[str, np.ndarray], layers: dict[str, Any] | None = None):
        """Begin to restore `layers`, an attribute of which may be another one, from these arrays."""
        self.arrays, self.layers = arrays, layers or {}
        self.things: dict[str, list[Any]] | None = None  # objects after a reset, by class
        self.constants: dict[str, Any] | None = None  # what can only be compared, by digest
        self.made: dict[str, np.ndarray] = {}
        self.objects: dict[str, Any] = dict(self.layers)  # layers, objects and lists by their first path
        self.filled: set[int] = set()  # ids of the objects that were restored already

    def attributes(self, layer: Any, saved: dict[str, Any], path: str) -> None:
        """Restore the attributes of an object."""
        for name, data in saved.items():
            if isinstance(data, dict) and "json" in data:
                data = json.loads(self.arrays[data["json"]].tobytes())
            if name in _BUFFERS and isinstance(layer, SyncVectorEnv):
                continue
            attributes = vars(layer)  # setattr would fail on frozen dataclasses
            attributes[name] = self.value(data, attributes.get(name), f"{path}.{name}")

    def value(self, data: Any, old: Any, path: str) -> Any:
        """Return the value that `data` describes.

        Args:
            data: what `_Writer.value` returned.
            old: the value after a reset; objects are changed in place.
            path: the path of the value, for messages.

        Raises:
            _NotCapturable: the value does not fit what a reset puts there.
        """
        if not isinstance(data, dict):
            return data
        ((kind, content),) = data.items()
        if kind == "array":
            return self.array(content)
        if kind == "view":
            first, descr, shape, offset, strides, is_writeable = content
            dtype, whole = np.lib.format.descr_to_dtype(_as_descr(descr)), self.array(first)
            memory: Any = whole if whole.flags.c_contiguous else whole.T
            made = np.ndarray(shape, dtype, memory, offset, strides)
            made.flags.writeable = is_writeable
            return made
        if kind == "simulated":
            dtype, shape = content
            if not isinstance(old, np.ndarray) or [old.dtype.str, list(old.shape)] != [dtype, shape]:
                raise _NotCapturable(f"{path} is a view of MuJoCo's memory, which a reset does not put there")
            return old
        if kind == "scalar":
            return self.array(content)[()]
        if kind == "value":
            return decode(content)
        if kind in ("bytes", "bytearray"):
            return (bytes if kind == "bytes" else bytearray)(self.arrays[content].tobytes())
        if kind == "frozenset":
            return frozenset(self.parts(content, None, path))
        if kind == "iterator":
            name, inside = content
            return _close(name, self.value(inside, None, path))
        if kind == "text":
            return np.str_(content)
        if kind == "same":
            if content not in self.objects:
                raise _NotCapturable(f"{path} and {content} are one, in a ring")
            return self.objects[content]
        if kind == "tuple":
            return tuple(self.parts(content, old, path))
        if kind in _CONTAINERS:
            self.objects[path] = made = self.container(kind, content, old, path)
            return made
        if kind == "constant":
            saved_type, digest = content
            if saved_type == _type_name(old) and digest == _digest(old):
                return old
            self.constants = _find_constants(self.layers) if self.constants is None else self.constants
            if digest not in self.constants:
                raise _NotCapturable(f"{path} ({saved_type}) holds something else after a reset")
            return self.constants[digest]
        if kind == "thing":
            old = self.find_thing(content[0], old, path)
        if old is None:
            raise _NotCapturable(f"a {kind} that existed when it was saved does not exist after a reset")
        if kind in ("thing", "fields", "member"):
            saved_type, content = content
            if saved_type != _type_name(old):
                raise _NotCapturable(f"{path} is a {saved_type} where a reset puts a {_type_name(old)}")
        if kind == "bound":
            name, content = content
            if _owner(old) is None or getattr(old, "__name__", "") != name:
                raise _NotCapturable(
                    f"{path} is the method {name} of an object, which a reset does not put there"
                )
            owner = self.value(content, _owner(old), f"{path}.of")
            return old if owner is _owner(old) else getattr(owner, name)
        if kind == "partial":
            if not isinstance(old, functools.partial):
                raise _NotCapturable(f"{path} is a partial where a reset puts a {_type_name(old)}")
            made = self.parts(content, (old.func, old.args, old.keywords), path)
            return functools.partial(made[0], *made[1], **made[2])
        if kind == "fields":
            return type(old)(*self.parts(content, old, path))
        if kind == "member":
            return getattr(type(old), content)
        if kind == "fixed" and _stateless_name(old) != content:
            raise _NotCapturable(f"it holds {content} where a reset puts {_stateless_name(old)}")
        if kind == "random":
            _RANDOM[type(old)][1](old, self.value(content, None, path))
        elif kind == "thing":
            self.filled.add(id(old))
            self.objects[path] = old
            self.attributes(old, content, path)
        elif kind == "space":
            self.space(old, content, path)
        elif kind == "mujoco":
            self.mujoco(old, content)
        elif kind == "model":
            self.model(old, content)
        elif kind != "fixed":
            raise _NotCapturable("an earlier version wrote it in another way")
        return old

    def array(self, path: str) -> np.ndarray:
        """Return an array of the snapshot, the same one at each call."""
        if path not in self.made:
            made = self.arrays[path].copy(order="K")
            if (code := self.arrays.get(f"{path}{_CODE}")) is not None:
                descr, shape, is_turned = json.loads(code.tobytes())
                dtype = np.lib.format.descr_to_dtype(_as_descr(descr))
                made = np.ndarray(shape, dtype, bytearray(made.tobytes()), order="F" if is_turned else "C")
                made = made.copy(order="K")
            self.made[path] = made
        return self.made[path]

    def find_thing(self, name: str, old: Any, path: str) -> Any:
        """Return the object that becomes the saved one: that at its place, if it is of the class and free.

        Otherwise another one of its class, which no saved object is yet, or a copy of one: lists may hold
        objects in another order, or more of them, than after a reset.
        """
        if old is not None and _type_name(old) == name and id(old) not in self.filled:
            return old
        if self.things is None:
            found = _Writer(self.layers, light=True)
            with contextlib.suppress(_NotCapturable):
                for layer_name, layer in self.layers.items():
                    found.attributes(layer, layer_name)
            self.things = collections.defaultdict(list)
            for _, thing in found.seen.values():
                self.things[_type_name(thing)].append(thing)
        like = self.things.get(name, [])
        for thing in like:
            if id(thing) not in self.filled:
                return thing
        if like:
            try:
                made = copy.deepcopy(like[0], {id(layer): layer for layer in self.layers.values()})
            except Exception as problem:
                raise _NotCapturable(f"{path} cannot be copied ({problem})") from problem
            like.append(made)
            return made
        if old is None or _type_name(old) != name:
            return old
        raise _NotCapturable("two objects that differed when it was saved are one after a reset")

    def container(self, kind: str, content: list[Any], old: Any, path: str) -> Any:
        """Restore a list, deque, set or dict; its elements are restored into those of `old`."""
        if kind == "list":
            return self.parts(content, old, path)
        if kind == "set":
            return set(self.parts(content, None, path))
        if kind == "deque":
            if not isinstance(old, collections.deque):  # a snapshot does not hold its greatest length
                raise _NotCapturable(f"{path} is a deque, which a reset does not put there")
            return collections.deque(self.parts(content, old, path), old.maxlen)
        before = old if isinstance(old, dict) else {}
        keys = [self.value(key, None, f"{path}.k{i}") for i, (key, _) in enumerate(content)]
        made = {
            key: self.value(part, before.get(key), f"{path}.{i}")
            for i, (key, (_, part)) in enumerate(zip(keys, content, strict=True))
        }
        if kind == "defaultdict":
            if not isinstance(old, collections.defaultdict):  # a snapshot does not hold what makes new parts
                raise _NotCapturable(f"{path} is a defaultdict, which a reset does not put there")
            return collections.defaultdict(old.default_factory, made)
        return made if kind == "dict" else getattr(collections, kind)(made)

    def parts(self, content: list[Any], old: Any, path: str) -> list[Any]:
        """Restore several values; `old` is the list, tuple or deque after a reset."""
        before = list(old) if isinstance(old, list | tuple | collections.deque) else []
        before += [None] * (len(content) - len(before))
        return [
            self.value(part, was, f"{path}.{i}")
            for i, (part, was) in enumerate(zip(content, before, strict=False))
        ]

    def space(self, space: gym.Space, content: list[Any], path: str) -> None:
        """Restore the random generators of a space and its parts."""
        spaces = [*iterate_spaces(space)]
        if len(spaces) != len(content):
            raise _NotCapturable(f"{path} is another space now")
        for part, state in zip(spaces, content, strict=True):
            if state is not None:
                part.np_random.bit_generator.state = self.value(state, None, path)

    def model(self, model: Any, path: str) -> None:
        """Restore the numbers of a MuJoCo model."""
        fields, numbers = _parameters(model).values(), self.arrays[path]
        if sum(field.size for field in fields) != numbers.size:
            raise _NotCapturable("it has another MuJoCo model now")
        ends = np.cumsum([field.size for field in fields])
        for field, part in zip(fields, np.split(numbers, ends[:-1]), strict=True):
            field[...] = part.reshape(field.shape)

    def mujoco(self, data: Any, path: str) -> None:
        """Restore MuJoCo's simulation state and the derived quantities."""
        mujoco: Any = sys.modules["mujoco"]
        state = self.arrays[f"{path}.state"]
        if len(state) != mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION):
            raise _NotCapturable("it has another MuJoCo model now")
        mujoco.mj_setState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, field in _derived(data).items():  # mj_forward would change the warm start
            field[...] = self.arrays[f"{path}.derived.{name}"]
