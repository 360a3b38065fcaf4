"""How an environment says which of its actions are valid, and the mask as words behind its observation.

There are three ways; `docs/how-to/add-an-environment.md` explains them. A Dict observation has a key
`action_mask`. Or the environment sets `masks_actions = True` and gives `info["action_mask"]` with every reset
and step. Or it sets `max_candidates = K` and gives `info["candidates"]`, indices of at most K valid actions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float

from qscape.envs.native import GymnasiumEnv
from qscape.envs.spaces import list_sizes
from qscape.errors import BrokenEnv, WrongEnv
from qscape.masks import ActionMask

KEY = "action_mask"


@dataclasses.dataclass(frozen=True)
class MaskReader:
    """Reads masks from what an environment returns and packs them.

    Attributes:
        mask: how they are packed.
        source: "observation", "action_mask" or "candidates": the key of the observation, or that of info.
        env_id: name of the environment, for errors.
        dtype: of the words; bytes behind an image.
        factors: N_k of a product of sets that an off-policy agent searches as a table; the environment gives
            the masks of the factors one after the other, and an action is valid if all its values are.
    """

    mask: ActionMask
    source: str
    env_id: str
    dtype: Any = np.float32
    factors: tuple[int, ...] = ()

    @property
    def entries(self) -> int:
        """The number of entries of a mask as the environment gives it."""
        return sum(self.factors) or self.mask.actions

    def pack(self, valid: Bool[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b M"]:
        """The words of masks as the environment gives them."""
        return self.mask.pack(self.to_rows(valid))

    def to_rows(self, valid: Bool[Any, "*b n"]) -> Bool[Any, "*b N"]:
        """Masks as the environment gives them, as masks of the N actions; works on NumPy and JAX arrays."""
        if not self.factors:
            return valid
        xp = jnp if isinstance(valid, jax.Array) else np
        parts = xp.split(valid, np.cumsum(self.factors)[:-1], axis=-1)
        return functools.reduce(
            lambda a, b: (a[..., None] & b[..., None, :]).reshape(*a.shape[:-1], -1), parts
        )

    def from_rows(self, valid: Bool[np.ndarray, "b N"]) -> Bool[np.ndarray, "b n"]:
        """The inverse of `to_rows`: each factor's values that are valid in some action."""
        if not self.factors:
            return valid
        grid, axes = valid.reshape(-1, *self.factors), range(1, 1 + len(self.factors))
        return np.concatenate([grid.any(tuple(a for a in axes if a != axis)) for axis in axes], -1)

    def read(
        self, observation: Any, info: Mapping[str, Any], needed: Bool[np.ndarray, " E"]
    ) -> Float[np.ndarray, "E M"]:
        """The words of E environments, NaN where no action is valid.

        Args:
            observation: what the environments returned: a Dict of arrays, or a list of E Dicts.
            info: arrays or lists of E entries.
            needed: environments that gave a mask; the words of the others are those of all actions valid.

        Raises:
            RunError: there is no mask, or it has another form.
        """
        if self.source != "observation":
            given = info.get(self.source)
            reported = np.asarray(info.get(f"_{self.source}", True))
            if given is None or not np.broadcast_to(reported, needed.shape)[needed].all():
                raise BrokenEnv(
                    f'{self.env_id}: info["{self.source}"] is missing; give it with every reset and step'
                )
        else:
            given = [one[KEY] for one in observation] if isinstance(observation, list) else observation[KEY]
        pack = self._pack_candidates if self.source == "candidates" else self._pack_mask
        everything = np.zeros(0) if needed.all() else self.mask.pack(np.ones(self.mask.actions, bool))
        return np.stack(
            [pack(one) if is_needed else everything for one, is_needed in zip(given, needed, strict=True)]
        )

    def _pack_mask(self, given: Any) -> Float[np.ndarray, " M"]:
        """The words of one environment's mask."""
        valid = np.asarray(given).ravel()
        if len(valid) != self.entries:
            raise BrokenEnv(
                f"{self.env_id}: {KEY} has {len(valid)} entries; it needs one for each of "
                f"{self.entries} actions"
            )
        return self.pack(valid.astype(bool))

    def _pack_candidates(self, given: Any) -> Float[np.ndarray, " M"]:
        """The words of one environment's candidates."""
        limit, rows = self.mask.candidates or self.mask.actions, np.asarray(given)
        whole = rows.ndim == 1 and (np.issubdtype(rows.dtype, np.integer) or not rows.size)
        held = np.unique(rows[rows >= 0]) if whole else rows
        if not whole or len(held) > limit or (held >= self.mask.actions).any():
            raise BrokenEnv(
                f'{self.env_id}: info["candidates"] is {np.array2string(rows, threshold=6)}; it has to hold '
                f"indices of at most {limit} of {self.mask.actions} actions, filled up with -1"
            )
        return self.mask.pack_rows(np.append(held, -1).astype(np.int64))

    def add_words(
        self, rows: np.ndarray, words: Float[np.ndarray, "E M"], terminated: Bool[np.ndarray, " E"]
    ) -> np.ndarray:
        """Observations `[E, S]` followed by their masks.

        In a terminal state no action is taken, so all of them count as valid if the environment allows none.

        Raises:
            RunError: an image's state allows no action. In other observations NaN stands for it, which
                `describe_not_finite` reports with environment and step.
        """
        if (over := terminated & np.isnan(words).any(1)).any():
            words = np.where(over[:, None], self.mask.pack(np.ones(self.mask.actions, bool)), words)
        if self.dtype != np.float32 and np.isnan(words).any():
            raise BrokenEnv(describe_no_action(self.env_id))
        return np.concatenate([rows, words.astype(self.dtype)], 1)


def describe_no_action(env_id: str, where: str = "") -> str:
    """The error for a mask that is all false; `where`: which state has it."""
    return f"{env_id}: no action is valid{where}: an action mask needs at least one true entry"


def find_mask(
    env_id: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    native: GymnasiumEnv | None,
    declared: Callable[[str], Any],
    is_image: bool,
    index_actions: bool,
) -> tuple[spaces.Space, MaskReader | None]:
    """Finds out whether and how an environment masks its actions.

    Args:
        env_id: name of the environment, for errors.
        observation_space, action_space: of one environment.
        native: the environment, if it is made of a `JaxEnv`.
        declared: an attribute of the environment or of one of its wrappers by name; None: there is none.
        is_image: are observations images of bytes?
        index_actions: are actions indices? If not, those of a product of sets are rows of a table.

    Returns:
        The space of what networks see, and the reader of masks; None: all actions are valid.

    Raises:
        UsageError: what the environment declares does not fit its spaces.
    """
    candidates = declared("max_candidates")
    in_space = isinstance(observation_space, spaces.Dict) and KEY in observation_space.spaces
    masks = {
        "candidates": candidates is not None,
        "action_mask": bool(declared("masks_actions")),
        "observation": in_space and not isinstance(action_space, spaces.Box),
    }
    if native is not None and native.native.mask is not None:
        return observation_space, MaskReader(native.native.mask, "action_mask", env_id)
    source = next((name for name, is_so in masks.items() if is_so), None)
    if source is None:
        return observation_space, None
    sizes = list_sizes(action_space)
    if not sizes:
        raise WrongEnv(
            f"{env_id} masks its actions, which are {action_space}: only discrete ones have a mask"
        )
    actions, factors = sum(sizes), () if isinstance(action_space, spaces.Discrete) else sizes
    if factors and source == "candidates":
        raise WrongEnv(
            f"{env_id}: max_candidates is for one discrete set; a product of sets has an action_mask"
        )
    if source == "candidates":
        whole = isinstance(candidates, int | np.integer) and not isinstance(candidates, bool)
        if not whole or not 1 <= candidates <= actions:
            raise WrongEnv(
                f"{env_id}: max_candidates is {candidates!r}; choose a whole number from 1 to {actions}, the "
                "number of actions"
            )
    if in_space and isinstance(observation_space, spaces.Dict):
        space = observation_space.spaces[KEY]
        if spaces.flatdim(space) != actions and source == "observation":
            raise WrongEnv(
                f"{env_id}: the key {KEY} of the observation is {space}; it needs one entry for each of "
                f"{actions} actions"
            )
        rest = {key: part for key, part in observation_space.spaces.items() if key != KEY}
        observation_space = spaces.Dict(rest)
    if is_image:
        mask = ActionMask(actions, bits=8, factors=factors)
        return observation_space, MaskReader(mask, source, env_id, np.uint8)
    if factors and not index_actions:
        return observation_space, MaskReader(ActionMask(math.prod(factors)), source, env_id, factors=factors)
    mask = ActionMask(actions, factors=factors)
    if source == "candidates" and candidates < mask.width:  # otherwise bits are shorter
        mask = ActionMask(actions, int(candidates))
    return observation_space, MaskReader(mask, source, env_id)


def declared_by(about: gym.Env | Any) -> Callable[[str], Any]:
    """Returns a function that finds an attribute of an environment or one of its wrappers; None: absent."""

    def find(name: str) -> Any:
        if isinstance(about, gym.Env):
            return about.get_wrapper_attr(name) if about.has_wrapper_attr(name) else None
        return getattr(about.unwrapped, name, None)

    return find
