"""Spaces as JSON: what a save keeps of those it was trained in, and how it compares them when it is loaded.

Networks take numbers without names, and give actions in [-1, 1]. So in another space of the same size they
act, and mean something else. Spaces that differ are refused, unless the user says that they may.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from qscape.errors import Mismatch
from qscape.values import decode, encode

MOST = 4_096  # bounds of a Box that are kept one by one; of more, their digest
SHOWN = 8  # bounds of a Box that a sentence lists

Record = Mapping[str, Any]

_others = False


def accept_others(accepted: bool = True) -> None:
    """Let saves be loaded in other spaces than those of their training, in this process and its workers."""
    global _others
    _others = accepted


def accepts_others() -> bool:
    """Return whether saves may be loaded in other spaces."""
    return _others


def describe_space(space: spaces.Space) -> dict[str, Any]:
    """Return a space as JSON, without its random generators."""
    if isinstance(space, spaces.Box):
        bounds = {name: _describe_bound(getattr(space, name)) for name in ("low", "high")}
        return {"kind": "Box", "dtype": str(space.dtype), "shape": [*space.shape], **bounds}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"n": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"kind": "MultiDiscrete", **sizes, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": [*space.shape]}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "parts": [[str(k), describe_space(v)] for k, v in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [[str(k), describe_space(v)] for k, v in enumerate(space.spaces)]}
    return {"kind": type(space).__name__, "text": str(space)}


def _describe_bound(bound: np.ndarray) -> Any:
    """Return one bound of a Box as JSON: a number if all entries are equal, a list, or a digest of many."""
    if bound.size and (bound == bound.flat[0]).all():
        return encode(bound.flat[0].item())
    if bound.size <= MOST:
        return encode(bound.ravel().tolist())
    digest = hashlib.sha256(np.ascontiguousarray(bound, np.float64).tobytes()).hexdigest()
    return {"least": encode(bound.min().item()), "greatest": encode(bound.max().item()), "sha256": digest}


def order_like(space: spaces.Space, record: Record) -> spaces.Space:
    """Return a space whose keys stand in the order of `record`, also in nested Dicts.

    The space itself where the keys are others: then the spaces differ.
    """
    if not isinstance(space, spaces.Dict) or record["kind"] != "Dict":
        return space
    there = dict(record["parts"])
    if space.spaces.keys() != there.keys():
        return space
    return spaces.Dict([(key, order_like(space.spaces[key], part)) for key, part in there.items()])


def are_equal(one: Record, other: Record) -> bool:
    """Do two records describe equal spaces? The order of keys and rounding of bounds do not count."""
    if one["kind"] != other["kind"]:
        return False
    if one["kind"] == "Dict":
        mine, theirs = dict(one["parts"]), dict(other["parts"])
        return mine.keys() == theirs.keys() and all(are_equal(mine[key], theirs[key]) for key in mine)
    if one["kind"] == "Tuple":
        pairs = [*zip(one["parts"], other["parts"], strict=False)]
        return len(one["parts"]) == len(other["parts"]) and all(are_equal(a[1], b[1]) for a, b in pairs)
    if one["kind"] != "Box":
        return dict(one) == dict(other)
    same = (one["shape"], one["dtype"]) == (other["shape"], other["dtype"])
    return same and all(_equal_bounds(one[name], other[name]) for name in ("low", "high"))


def _equal_bounds(one: Any, other: Any) -> bool:
    if "sha256" in (keys := {*_keys(one), *_keys(other)}) or keys - {"$float"}:
        return one == other
    mine, theirs = (np.asarray(decode(bound), np.float64) for bound in (one, other))
    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-6, atol=0, equal_nan=True)


def _keys(bound: Any) -> Any:
    return bound if isinstance(bound, dict) else ()


def show_space(record: Record) -> str:
    """Return a record as text, as Gymnasium writes spaces."""
    kind = record["kind"]
    if kind == "Box":
        low, high = (_show_bound(record[name]) for name in ("low", "high"))
        return f"Box({low}, {high}, {tuple(record['shape'])}, {record['dtype']})"
    if kind in ("Dict", "Tuple"):
        names = "" if kind == "Tuple" else "{}: "
        return f"{kind}({', '.join(names.format(key) + show_space(part) for key, part in record['parts'])})"
    if kind in ("Discrete", "MultiDiscrete"):
        start = f", start={record['start']}" if np.any(record["start"]) else ""
        return f"{kind}({record['n']}{start}, {record['dtype']})"
    return f"MultiBinary({record['shape']})" if kind == "MultiBinary" else str(record["text"])


def _show_bound(bound: Any) -> str:
    if "sha256" in _keys(bound):
        return f"{decode(bound['least'])} to {decode(bound['greatest'])} [{bound['sha256'][:8]}]"
    value = decode(bound)
    if not isinstance(value, list):
        return str(value)
    listed = ", ".join(map(str, value[:SHOWN]))
    return f"[{listed}, ...]" if len(value) > SHOWN else f"[{listed}]"


def list_differences(saved: Record, own: Record) -> list[str]:
    """Return a phrase on each space that differs from the one that a save keeps, with both written out.

    Args:
        saved: `EnvAdapter.spaces` of the training, as a save keeps it.
        own: the same of the environment in which it is loaded.
    """
    found = [
        f"{name}s are {show_space(own[name])}, and were {show_space(saved[name])} in training"
        + _first_bound(saved[name], own[name])
        for name in ("observation", "action")
        if not are_equal(saved[name], own[name])
    ]
    there, here = (of.get("critics_only") for of in (saved, own))
    if there != here:
        found.append(f"critics alone see {here or 'nothing'}, and saw {there or 'nothing'} in training")
    return found


def _first_bound(saved: Record, own: Record) -> str:
    """Return where bounds differ first, for Boxes that are else equal and have too many for a sentence."""
    if {saved["kind"], own["kind"]} != {"Box"} or saved["shape"] != own["shape"]:
        return ""
    for name in ("low", "high"):
        there, here = (decode(of[name]) if "sha256" not in _keys(of[name]) else None for of in (saved, own))
        if isinstance(there, list) and isinstance(here, list) and there[:SHOWN] == here[:SHOWN]:
            at = int(np.argmax(~np.isclose(there, here)))
            if there[at] != here[at]:
                return f" ({name}[{at}] is {here[at]}, and was {there[at]})"
    return ""


def refuse_other_spaces(env_id: str, saved: Record | None, own: Record) -> None:
    """Refuse an environment whose spaces differ from those that a save keeps.

    Args:
        env_id: name of the environment, for the error.
        saved: what the save keeps; None: nothing, as saves of version 0.2, so nothing is compared.
        own: `EnvAdapter.spaces` of the environment.

    Raises:
        UsageError: the spaces differ, and nobody called `accept_others`.
    """
    if saved is None or _others or not (found := list_differences(saved, own)):
        return
    raise Mismatch(
        f"{env_id} has other spaces than those of the training, so networks would see and do something else: "
        f"its {'; its '.join(found)}. Give the environment of the training, or add --other-spaces (in Python "
        "other_spaces=True) if this is meant."
    )
