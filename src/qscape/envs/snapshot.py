"""The exact state of an `EnvAdapter` as plain data, so that a resumed run equals an uninterrupted one.

A snapshot captures numbers, arrays, random generators and plain Python objects that are attributes of the
environment or its wrappers; MuJoCo's simulation state and the numbers of its model (an environment may move a
door at every reset); and the adapter's `EpisodeStatistics`. Environments in other processes (`Workers`) are
asked there. Other objects (a Box2D world, EnvPool's threads) cannot be captured, nor can an environment in
another process that waits for its reset (next-step autoreset). Then the snapshot says so, and `restore`
starts a new episode with a seed of its own. Nothing of it is loaded by pickle, so loading a snapshot runs no
code.

The following state is not captured, without a warning: global variables and function closures, changed shapes
of an `MjModel` (meshes, height fields), and MuJoCo contacts that an environment reads before it steps.
"""

import collections
import enum
import functools
import random
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

from qscape.envs.adapter import EnvAdapter, EpisodeStatistics
from qscape.envs.native import JaxEnv
from qscape.envs.workers import EnvPoolEnv, Workers
from qscape.errors import one_line

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


class _NotCapturable(Exception):
    """Something cannot be captured, or a captured value does not fit the environment."""


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
        if isinstance(adapter.env, Workers):
            if adapter.statistics.resetting.any():  # Gymnasium keeps that in a variable of the process
                raise _NotCapturable("an environment in another process waits for its reset")
            for captured in adapter.env.apply(_capture_one):
                if isinstance(captured, str):
                    raise _NotCapturable(captured)
                meta["layers"] |= captured[0]
                writer.arrays |= captured[1]
    except _NotCapturable as problem:
        why = f"{adapter.env_id} cannot be resumed exactly, a new episode begins there: {problem}"
        return Snapshot({}, meta | {"exact": False, "why": why})
    return Snapshot(writer.arrays, meta)


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
    try:
        if meta["exact"]:
            if meta.get("autoreset", adapter.autoreset) != adapter.autoreset:
                raise _NotCapturable("it resets itself in another way now")
            layers, arrays, inside = dict(_iterate_layers(adapter)), snapshot.arrays, {}
            if isinstance(adapter.env, Workers):
                parts = [_part(meta["layers"], arrays, f"env.{i}.") for i in range(adapter.envs)]
                inside = {name: saved for of, _ in parts for name, saved in of.items()}
                if why := next(filter(None, adapter.env.apply(_restore_one, parts)), ""):
                    raise _NotCapturable(why)
            _set_attributes(layers, {k: v for k, v in meta["layers"].items() if k not in inside}, arrays)
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
    reader = _Reader(arrays)
    reader.objects |= layers  # an attribute of a layer may be another layer
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


def _capture_one(env: gym.Env, index: int, _: None) -> tuple[dict[str, Any], dict[str, np.ndarray]] | str:
    """Return the layers and arrays of an environment in its own process, or why there are none."""
    layers = dict(_iterate_wrappers(env, f"env.{index}"))
    writer = _Writer(layers)
    try:
        return {name: writer.attributes(layer, name) for name, layer in layers.items()}, writer.arrays
    except _NotCapturable as problem:
        return str(problem)


def _restore_one(env: gym.Env, index: int, part: tuple[dict[str, Any], dict[str, np.ndarray]]) -> str:
    """Restore an environment in its own process. Returns why it cannot be restored, or ""."""
    try:
        _set_attributes(dict(_iterate_wrappers(env, f"env.{index}")), *part)
    except _NotCapturable as problem:
        return str(problem)
    return ""


class First(NamedTuple):
    """The state of the first environment of an adapter.

    Attributes:
        layers, arrays: as in a `Snapshot`; empty if it could not be captured.
        why_not: why; "" if it could be.
    """

    layers: dict[str, Any]
    arrays: dict[str, np.ndarray]
    why_not: str = ""


def take_first(adapter: EnvAdapter) -> First:
    """Capture the first environment of an adapter, in this process or in one of its own."""
    if isinstance(adapter.env, Workers):
        taken = adapter.env.apply(_capture_one)[0]
    elif adapter.first is not None:
        taken = _capture_one(adapter.first, 0, None)
    else:
        taken = "this process does not step it"
    return First({}, {}, taken) if isinstance(taken, str) else First(*taken)


def restore_first(adapter: EnvAdapter, taken: First) -> str:
    """Restore the first environment of an adapter, which this process steps, after a reset of it.

    Returns:
        Why it cannot be restored; "" if it was.
    """
    assert adapter.first is not None
    adapter.first.reset()  # so that all attributes that are set exist
    return _restore_one(adapter.first, 0, (taken.layers, taken.arrays))


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
    except TypeError:
        return False
    if items is not None or pairs is not None:
        return False
    if not isinstance(made_of, tuple) or len(made_of) > 1:  # bytes, a subclass of int, ...
        return False
    return state is None or state is getattr(value, "__dict__", None)


def _type_name(value: Any) -> str:
    """Return the full name of a value's type, which snapshots store."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _iterate_spaces(space: gym.Space) -> Iterator[gym.Space]:
    """Yield a space and, recursively, its parts."""
    yield space
    parts: Any = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from _iterate_spaces(part)


def _iterate_generators(space: gym.Space) -> Iterator[np.random.Generator | None]:
    """Yield the random generators of a space and its parts; None for a generator that was never used."""
    return (part._np_random for part in _iterate_spaces(space))


class _Writer:
    """Turns attributes into JSON data that refers to `arrays` by path.

    Layers are written one by one. A layer that is an attribute of another layer is not written twice.
    """

    def __init__(self, layers: dict[str, Any]):
        self.layers = {id(layer): name for name, layer in layers.items()}
        self.arrays: dict[str, np.ndarray] = {}
        # First path and object, by id; the reference keeps the object alive, so that its id stays unique.
        self.seen: dict[int, tuple[str, Any]] = {}

    def attributes(self, layer: Any, path: str) -> dict[str, Any]:
        """Return the data of an object's attributes, by name."""
        self.seen[id(layer)] = path, layer
        items = getattr(layer, "__dict__", {}).items()
        return {
            name: self.value(value, f"{path}.{name}")
            for name, value in items
            if not self.is_skipped(layer, name, value)
        }

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
        if id(value) in self.layers:
            return {"same": self.layers[id(value)]}
        if isinstance(value, np.str_):
            return {"text": str(value)}
        if isinstance(value, np.ndarray | np.generic):
            return self.array(value, path)
        for kind, (read, _) in _RANDOM.items():
            if type(value) is kind:
                return {"random": self.value(read(value), path)}
        if type(value) is tuple:
            return {"tuple": self.parts(value, path)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"fields": [_type_name(value), self.parts(value, path)]}
        if type(value) in (list, dict, collections.deque):
            first, _ = self.seen.setdefault(id(value), (path, value))
            if first != path:
                return {"same": first}
            if type(value) is not dict:
                return {type(value).__name__: self.parts(value, path)}
            pairs = enumerate(value.items())
            return {
                "dict": [[self.value(k, f"{path}.k{i}"), self.value(v, f"{path}.{i}")] for i, (k, v) in pairs]
            }
        if isinstance(value, enum.Enum):
            return {"member": [_type_name(value), value.name]}
        if _is_mujoco(value, "MjModel"):
            self.arrays[path] = np.concatenate([field.ravel() for field in _parameters(value).values()])
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
        if _is_plain(value):
            known = self.seen.get(id(value))
            return (
                {"same": known[0]} if known else {"thing": [_type_name(value), self.attributes(value, path)]}
            )
        raise _NotCapturable(f"{path} ({type(value).__name__}) is neither a number nor an array")

    def parts(self, values: Iterable[Any], path: str) -> list[Any]:
        """Return the data of several values."""
        return [self.value(part, f"{path}.{i}") for i, part in enumerate(values)]

    def array(self, value: np.ndarray | np.generic, path: str) -> dict[str, str]:
        """Return the data of a scalar or array; one array under two names is stored once.

        Raises _NotCapturable for views, arrays of objects and subclasses of arrays, which may hold more.
        """
        if not isinstance(value, np.generic) and type(value) is not np.ndarray:
            raise _NotCapturable(f"{path} is a {type(value).__name__}")
        if value.dtype.kind not in "biufc":
            raise _NotCapturable(f"{path} is an array of {value.dtype}")
        if isinstance(value, np.ndarray):
            owner: Any = value
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if owner.base is not None and value.flags.writeable:
                raise _NotCapturable(f"{path} is a view of foreign memory")
            first, seen = self.seen.setdefault(id(owner), (path, value))
            if first != path:
                if seen is not value:
                    raise _NotCapturable(f"{path} and {first} share memory")
                return {"array": first}
        self.arrays[path] = np.array(value)
        return {("array" if isinstance(value, np.ndarray) else "scalar"): path}

    def mujoco(self, data: Any, path: str) -> str:
        """Capture MuJoCo's integration state (with the solver's warm start) and the derived quantities.

        Derived quantities are captured, not computed again: an environment may read positions of bodies
        before it steps, and these positions are one substep old.
        """
        mujoco: Any = sys.modules["mujoco"]
        state = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.arrays[f"{path}.state"] = state
        for name, field in _derived(data).items():
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


class _Reader:
    """Restores what `_Writer` wrote."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.made: dict[str, np.ndarray] = {}
        self.objects: dict[str, Any] = {}  # layers, objects and lists by their first path
        self.filled: set[int] = set()  # ids of the objects that were restored already

    def attributes(self, layer: Any, saved: dict[str, Any], path: str) -> None:
        """Restore the attributes of an object."""
        for name, data in saved.items():
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
            if content not in self.made:
                self.made[content] = self.arrays[content].copy()
            return self.made[content]
        if kind == "scalar":
            return self.arrays[content][()]
        if kind == "text":
            return np.str_(content)
        if kind == "same":
            if content not in self.objects:
                raise _NotCapturable(f"{path} and {content} are one, in a ring")
            return self.objects[content]
        if kind == "tuple":
            return tuple(self.parts(content, old, path))
        if kind in ("list", "deque", "dict"):
            self.objects[path] = made = self.container(kind, content, old, path)
            return made
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
            if id(old) in self.filled:
                raise _NotCapturable("two objects that differed when it was saved are one after a reset")
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

    def container(self, kind: str, content: list[Any], old: Any, path: str) -> Any:
        """Restore a list, deque or dict; its elements are restored into those of `old`."""
        if kind == "list":
            return self.parts(content, old, path)
        if kind == "deque":
            if not isinstance(old, collections.deque):  # a snapshot does not hold its greatest length
                raise _NotCapturable(f"{path} is a deque, which a reset does not put there")
            return collections.deque(self.parts(content, old, path), old.maxlen)
        before = old if isinstance(old, dict) else {}
        keys = [self.value(key, None, f"{path}.k{i}") for i, (key, _) in enumerate(content)]
        return {
            key: self.value(part, before.get(key), f"{path}.{i}")
            for i, (key, (_, part)) in enumerate(zip(keys, content, strict=True))
        }

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
        spaces = [*_iterate_spaces(space)]
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
