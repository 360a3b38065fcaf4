"""The exact state of an edge as plain data, so that a resumed run goes on as if it had never stopped.

What is captured: every number, array, random generator and plain Python object that hangs on the environment
or on one of its wrappers, MuJoCo's simulation state and the numbers of its model (an environment may move a
door at every reset), and what the edge itself remembers. A thing that is none of these (a Box2D world,
another process) cannot be captured; then the snapshot says so, and `restore` begins a new episode with a seed
of its own. Nothing is pickled: loading runs no code.

Out of reach, and not noticed: state in global variables or function closures, altered shapes of an `MjModel`
(meshes, height fields), and contacts of MuJoCo that an environment reads before it steps.
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

from qscape.envs.adapter import EnvAdapter
from qscape.envs.native import Native

# Fixed when an environment is made, or only for the eye.
_FIXED = (
    gym.Space,
    EnvSpec,
    Native,
    functools.partial,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
)
_SKIPPED = {"spec", "metadata", "render_mode"}
_SKIPPED |= {"_cached_spec", "_metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
_SKIPPED |= {"env_fns", "_env_obs", "_observations"}  # of a vector environment: buffers

_DRAWING = {"screen", "clock", "surf", "viewer", "mujoco_renderer"}  # of Gymnasium, unless they are data
_DATA = (bool, int, float, str, list, tuple, dict, np.ndarray, np.generic)

_RANDOM = {  # how a random generator is read and set
    np.random.Generator: (
        lambda g: g.bit_generator.state,
        lambda g, state: setattr(g.bit_generator, "state", state),
    ),
    np.random.RandomState: (lambda g: g.get_state(legacy=False), lambda g, state: g.set_state(state)),
    random.Random: (lambda g: g.getstate(), lambda g, state: g.setstate(state)),
}


class Snapshot(NamedTuple):
    """`arrays` and JSON-able `meta`; `meta["exact"]` is False where something could not be captured, and
    `meta["why"]` is then the sentence for the user."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class _Unfit(Exception):
    """Something cannot be captured, or does not fit where it is put back."""


def take(adapter: EnvAdapter) -> Snapshot:
    """The state of `adapter` between two steps."""
    meta: dict[str, Any] = {
        "exact": True,
        "why": "",
        "seed": int(adapter.seed),
        "autoreset": adapter.autoreset,
        "episodes": adapter.tally.episodes.tolist(),
    }
    try:
        layers = dict(_layers(adapter))
        writer = _Writer(layers)
        meta["layers"] = {name: writer.attributes(layer, name) for name, layer in layers.items()}
    except _Unfit as problem:
        why = f"{adapter.env_id} cannot be resumed exactly, a new episode begins there: {problem}"
        return Snapshot({}, meta | {"exact": False, "why": why})
    return Snapshot(writer.arrays, meta)


def restore(adapter: EnvAdapter, snapshot: Snapshot) -> str:
    """Puts `adapter` into the state of `snapshot`, which `take` made of an edge of the same environment.

    Returns:
        "" where the edge goes on to the bit, else one sentence for the user that says why a new episode
        began, seeded from the seed of the run and the episodes it had finished.
    """
    meta = snapshot.meta
    why = meta["why"]
    adapter.reset()  # so that everything exists that is set below
    try:
        if meta["exact"]:
            layers = dict(_layers(adapter))
            if layers.keys() != meta["layers"].keys():
                raise _Unfit("it is wrapped in another way now")
            if meta.get("autoreset", adapter.autoreset) != adapter.autoreset:
                raise _Unfit("it resets itself in another way now")
            reader = _Reader(snapshot.arrays)
            reader.objects |= layers  # one may hold another
            for name, layer in layers.items():
                reader.attributes(layer, meta["layers"][name], name)
            return ""
    except _Unfit as problem:
        why = f"{adapter.env_id} cannot be resumed exactly, a new episode begins: {problem}"
    episodes = np.asarray(meta["episodes"], np.int64)
    adapter.reseed(int(np.random.SeedSequence([meta["seed"], *meta["episodes"]]).generate_state(1)[0] >> 1))
    adapter.reset()
    adapter.tally.episodes = episodes
    return why


def _layers(adapter: EnvAdapter) -> Iterator[tuple[str, Any]]:
    """Everything that may remember something, by name: the edge, wrappers, environments."""
    yield "adapter", adapter.tally
    yield from _chain(adapter.env, "env")


def _chain(env: gym.Env | VectorEnv, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(env, AsyncVectorEnv):
        raise _Unfit("its environments run in other processes")
    yield f"{name}.{type(env).__name__}", env
    if isinstance(env, gym.Wrapper | VectorWrapper):
        yield from _chain(env.env, f"{name}.env")
    elif isinstance(env, SyncVectorEnv):
        for i, one in enumerate(env.envs):
            yield from _chain(one, f"{name}.{i}")


def _is_mujoco(value: Any, kind: str) -> bool:
    mujoco: Any = sys.modules.get("mujoco")  # whoever holds an MjData has imported it
    return mujoco is not None and isinstance(value, getattr(mujoco, kind))


def _fixed(value: Any) -> str | None:
    """The name of a thing that has no state, else None."""
    if isinstance(value, _FIXED) or _is_mujoco(value, "MjModel"):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return None


def _is_plain(value: Any) -> bool:
    """Is this object nothing but its `__dict__`? (`__reduce_ex__` refuses memory outside of it.)"""
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


def _kind(value: Any) -> str:
    """The name of a type, by which a thing is known again."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _spaces(space: gym.Space) -> Iterator[gym.Space]:
    """A space and its parts."""
    yield space
    parts: Any = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from _spaces(part)


def _generators(space: gym.Space) -> Iterator[np.random.Generator | None]:
    """The random generators of a space and its parts; None where nothing was drawn yet."""
    return (part._np_random for part in _spaces(space))


class _Writer:
    """Turns attributes into JSON-able data that refers to `arrays` by name. `layers` are written one by one,
    not where one holds another."""

    def __init__(self, layers: dict[str, Any]):
        self.layers = {id(layer) for layer in layers.values()}
        self.arrays: dict[str, np.ndarray] = {}
        # By id, kept alive: the owner of an array, an object, a list.
        self.seen: dict[int, tuple[str, Any]] = {}

    def attributes(self, layer: Any, path: str) -> dict[str, Any]:
        self.seen[id(layer)] = path, layer
        items = getattr(layer, "__dict__", {}).items()
        return {
            name: self.value(value, f"{path}.{name}")
            for name, value in items
            if not self.is_skipped(layer, name, value)
        }

    def is_skipped(self, layer: Any, name: str, value: Any) -> bool:
        if name == "envs":
            return id(layer) in self.layers and isinstance(layer, SyncVectorEnv)
        drawing = name in _DRAWING and not isinstance(value, _DATA)
        return drawing or name in _SKIPPED or (name == "env" and id(value) in self.layers)

    def value(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
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
            return {"fields": [_kind(value), self.parts(value, path)]}
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
            return {"member": [_kind(value), value.name]}
        if _is_mujoco(value, "MjModel"):
            self.arrays[path] = np.concatenate([field.ravel() for field in _parameters(value).values()])
            return {"model": path}
        if isinstance(value, gym.Space) and any(draws := [*_generators(value)]):
            return {"space": [draw and self.value(draw.bit_generator.state, path) for draw in draws]}
        if (name := _fixed(value)) is not None:
            return {"fixed": name}
        if _is_mujoco(value, "MjData"):
            return {"mujoco": self.mujoco(value, path)}
        if _is_plain(value):
            known = self.seen.get(id(value))
            return {"same": known[0]} if known else {"thing": [_kind(value), self.attributes(value, path)]}
        raise _Unfit(f"{path} ({type(value).__name__}) is neither a number nor an array")

    def parts(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.value(part, f"{path}.{i}") for i, part in enumerate(values)]

    def array(self, value: np.ndarray | np.generic, path: str) -> dict[str, str]:
        """A scalar or array; two names of one array stay one, views of a shared memory are refused."""
        if value.dtype.kind not in "biufc":
            raise _Unfit(f"{path} is an array of {value.dtype}")
        if isinstance(value, np.ndarray):
            owner: Any = value
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if owner.base is not None and value.flags.writeable:
                raise _Unfit(f"{path} is a view of foreign memory")
            first, seen = self.seen.setdefault(id(owner), (path, value))
            if first != path:
                if seen is not value:
                    raise _Unfit(f"{path} and {first} share memory")
                return {"array": first}
        self.arrays[path] = np.array(value)
        return {("array" if isinstance(value, np.ndarray) else "scalar"): path}

    def mujoco(self, data: Any, path: str) -> str:
        """The integration state (the warm start of the solver belongs to it), and what MuJoCo derived.

        An environment may read positions of bodies before it steps, and those are one substep old.
        """
        mujoco: Any = sys.modules["mujoco"]
        state = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.arrays[f"{path}.state"] = state
        for name, field in _derived(data).items():
            self.arrays[f"{path}.derived.{name}"] = field.copy()
        return path


def _derived(data: Any) -> dict[str, np.ndarray]:
    """The fields of `data` whose size does not depend on contacts (those are empty in a new MjData)."""
    new = type(data)(data.model)
    fields = {name: getattr(new, name) for name in dir(new) if not name.startswith(("_", "plugin"))}
    return {
        name: getattr(data, name)
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and field.size
    }


def _parameters(model: Any) -> dict[str, np.ndarray]:
    """The numbers of a model: places, masses, friction, gains. Not its shapes and pictures, which are big."""
    shapes = ("_", "mesh_", "hfield_", "tex_", "skin_", "flex_", "key_")
    fields = {name: getattr(model, name) for name in dir(model) if not name.startswith(shapes)}
    return {
        name: field
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and field.dtype == np.float64
    }


class _Reader:
    """Puts back what `_Writer` wrote."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.made: dict[str, np.ndarray] = {}
        self.objects: dict[str, Any] = {}  # by the path of their first name: layers, things, lists
        self.filled: set[int] = set()  # ids of the things put back

    def attributes(self, layer: Any, found: dict[str, Any], path: str) -> None:
        for name, data in found.items():
            there = vars(layer)  # not setattr: some objects are frozen
            there[name] = self.value(data, there.get(name), f"{path}.{name}")

    def value(self, data: Any, old: Any, path: str) -> Any:
        """The value `data` stands for; `old` is what stands there now, and is kept where it is an object."""
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
                raise _Unfit(f"{path} and {content} are one, in a ring")
            return self.objects[content]
        if kind == "tuple":
            return tuple(self.parts(content, old, path))
        if kind in ("list", "deque", "dict"):
            self.objects[path] = made = self.container(kind, content, old, path)
            return made
        if old is None:
            raise _Unfit(f"a {kind} that existed when it was saved does not exist after a reset")
        if kind in ("thing", "fields", "member"):
            there, content = content
            if there != _kind(old):
                raise _Unfit(f"{path} is a {there} where a reset puts a {_kind(old)}")
        if kind == "fields":
            return type(old)(*self.parts(content, old, path))
        if kind == "member":
            return getattr(type(old), content)
        if kind == "fixed" and _fixed(old) != content:
            raise _Unfit(f"it holds {content} where a reset puts {_fixed(old)}")
        if kind == "random":
            _RANDOM[type(old)][1](old, self.value(content, None, path))
        elif kind == "thing":
            if id(old) in self.filled:
                raise _Unfit("two objects that differed when it was saved are one after a reset")
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
            raise _Unfit("an earlier version wrote it in another way")
        return old

    def container(self, kind: str, content: list[Any], old: Any, path: str) -> Any:
        if kind == "list":
            return self.parts(content, old, path)
        if kind == "deque":
            return collections.deque(self.parts(content, old, path), getattr(old, "maxlen", None))
        before = old if isinstance(old, dict) else {}
        keys = [self.value(key, None, f"{path}.k{i}") for i, (key, _) in enumerate(content)]
        return {
            key: self.value(part, before.get(key), f"{path}.{i}")
            for i, (key, (_, part)) in enumerate(zip(keys, content, strict=True))
        }

    def parts(self, content: list[Any], old: Any, path: str) -> list[Any]:
        before = list(old) if isinstance(old, list | tuple | collections.deque) else []
        before += [None] * (len(content) - len(before))
        return [
            self.value(part, was, f"{path}.{i}")
            for i, (part, was) in enumerate(zip(content, before, strict=False))
        ]

    def space(self, space: gym.Space, content: list[Any], path: str) -> None:
        spaces = [*_spaces(space)]
        if len(spaces) != len(content):
            raise _Unfit(f"{path} is another space now")
        for part, state in zip(spaces, content, strict=True):
            if state is not None:
                part.np_random.bit_generator.state = self.value(state, None, path)

    def model(self, model: Any, path: str) -> None:
        fields, numbers = _parameters(model).values(), self.arrays[path]
        if sum(field.size for field in fields) != numbers.size:
            raise _Unfit("it has another MuJoCo model now")
        ends = np.cumsum([field.size for field in fields])
        for field, part in zip(fields, np.split(numbers, ends[:-1]), strict=True):
            field[...] = part.reshape(field.shape)

    def mujoco(self, data: Any, path: str) -> None:
        mujoco: Any = sys.modules["mujoco"]
        state = self.arrays[f"{path}.state"]
        if len(state) != mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION):
            raise _Unfit("it has another MuJoCo model now")
        mujoco.mj_setState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, field in _derived(data).items():  # no mj_forward: it would move the warm start
            field[...] = self.arrays[f"{path}.derived.{name}"]
