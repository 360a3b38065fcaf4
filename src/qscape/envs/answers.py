"""Read what environments answer: rewards, flags, success, and the infos of several copies.

Of infos only success, last observations and action masks are read. All else that an environment puts there
may be anything, and differ between copies and steps.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from qscape.errors import BrokenEnv, show

SUCCESS = ("success", "is_success")  # the first that is not None counts
_READ = {*SUCCESS, "action_mask", "candidates", "final_obs"}


def read_reward(reward: Any, env_id: str) -> float:
    """Return a reward as a number; an array of one entry is one.

    Raises:
        BrokenEnv: it is no real number, or several.
    """
    if type(reward) is float:  # nearly always
        return reward
    if np.size(reward) == 1 and not np.ma.is_masked(reward):
        with contextlib.suppress(TypeError, ValueError):
            value = np.ravel(reward)[0]
            if not isinstance(value, str | bytes | complex | np.complexfloating):
                return float(value)
    raise BrokenEnv(describe_reward(reward, env_id))


def describe_reward(reward: Any, env_id: str) -> str:
    """Return the error for a reward that is no number."""
    what = f"{env_id}: the reward is {show(reward, str)}"
    if np.size(reward) > 1:
        return (
            f"{what}, {np.size(reward)} numbers; an agent maximises one: weigh them, as "
            "mo_gymnasium.wrappers.LinearReward does"
        )
    return f"{what}; it must be one real number"


def read_rewards(reward: Any, envs: int, env_id: str) -> Float[np.ndarray, " E"]:
    """Return the rewards of a vector environment as numbers.

    Raises:
        BrokenEnv: they are not one real number for each environment.
    """
    rows = np.asarray(reward)
    if rows.shape == (envs,) and rows.dtype.kind in "fiub":
        return rows
    if len(np.atleast_1d(rows)) != envs:
        raise BrokenEnv(
            f"{env_id}: the rewards are {rows.shape}; they must be ({envs},), one for each environment"
        )
    return np.array([read_reward(one, env_id) for one in rows])


def read_flag(flag: Any, env_id: str) -> bool:
    """Return whether an episode ended, as `terminated` or `truncated` says.

    Raises:
        BrokenEnv: it is neither true nor false.
    """
    if isinstance(flag, bool | np.bool_):
        return bool(flag)
    if np.size(flag) == 1 and np.asarray(flag).dtype.kind in "biuf" and np.ravel(flag)[0] in (0, 1):
        return bool(np.ravel(flag)[0])
    raise BrokenEnv(
        f"{env_id}: terminated and truncated must be True or False, and one of them is {show(flag)}"
    )


def read_success(info: Mapping[str, Any], env_id: str) -> float | None:
    """Return the success that an info reports; None if it reports none.

    Raises:
        BrokenEnv: it is no number.
    """
    for key in SUCCESS:
        value = info.get(key)
        if value is None or not np.size(value):
            continue
        first = np.ravel(value)[0]
        if first is None:
            continue
        if not isinstance(first, bool | int | float | np.bool_ | np.integer | np.floating):
            what = f'{env_id}: info["{key}"] is {show(value)}'
            raise BrokenEnv(f"{what}; success must be True, False or a number from 0 to 1")
        return float(first)
    return None


def pack_infos(
    others: Callable[..., dict[str, Any]] | None,
    envs: int,
    packed: dict[str, Any],
    info: dict[str, Any],
    i: int,
) -> dict[str, Any]:
    """Pack the info of one of several copies, in place of Gymnasium's `VectorEnv._add_info`.

    What is read from infos is copied, since a reset may write to it, and packed as it is into arrays of
    objects.

    Args:
        others: Gymnasium's method, which packs all else; what it cannot pack is left out. None: leave all
            else out.
        envs: E, the number of copies.
        packed: the infos so far; each key has a mask of the copies that gave it, under `_key`.
        info: the info of one copy.
        i: which copy.

    Returns:
        `packed` with the info.
    """
    for key, value in info.items():
        if key == "final_info":
            packed[key] = pack_infos(others, envs, packed.get(key, {}), value, i)
        elif key in _READ:
            packed.setdefault(key, np.full(envs, None, object))[i] = copy.deepcopy(value)
        else:
            if others is not None:
                with contextlib.suppress(Exception):
                    packed = others(packed, {key: value}, i)
            continue
        packed.setdefault(f"_{key}", np.zeros(envs, bool))[i] = True
    return packed
