"""A dataset as one table of transitions, whatever file it came from, and what there is to say about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float

from qscape.errors import UsageError

BINS = 20  # of each action dimension, for the coverage
EDGE = 0.99  # beyond this an action in [-1, 1] counts as one at its bound


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """N transitions, episode after episode; the last one of each is terminated or truncated.

    Attributes:
        name: as it was asked for.
        observation: raw. `next_observation` is the true successor, at an episode's end as well.
        action: in [-1, 1].
        observation_space, action_space: of the environment it was recorded in.
        env, env_args: what `gymnasium.make` takes to make that environment, or None where it is not known.
        reference: returns that normalise to 0 and to 100, where the dataset defines them.
        notes: sentences for the user.
    """

    name: str
    observation: Float[np.ndarray, "N S"]
    action: Float[np.ndarray, "N A"]
    reward: Float[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]
    next_observation: Float[np.ndarray, "N S"]
    observation_space: gym.Space
    action_space: spaces.Box
    env: str | None = None
    env_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def ends(self) -> Bool[np.ndarray, " N"]:
        """The last transition of each episode."""
        return self.terminated | self.truncated

    @property
    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Undiscounted return of each episode."""
        starts = np.concatenate([[0], np.flatnonzero(self.ends)[:-1] + 1])
        return np.add.reduceat(self.reward.astype(np.float64), starts)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode."""
        return np.diff(np.concatenate([[-1], np.flatnonzero(self.ends)]))

    def score(self, ret: float) -> float | None:
        """The normalised score of a return; None where the dataset defines no reference."""
        return None if self.reference is None else normalised_score(ret, self.reference)


def normalised_score(ret: float, reference: tuple[float, float]) -> float:
    """100 · (return − low) / (high − low)."""
    low, high = reference
    return 100.0 * (ret - low) / (high - low)


def checked(found: Dataset) -> Dataset:
    """The dataset, if something can be learnt from it.

    Raises:
        UsageError: no transition, NaN, or actions outside their space.
    """
    if not len(found):
        raise UsageError(f"{found.name} holds no transition: there is nothing to learn from.")
    for column in ("observation", "action", "reward", "next_observation"):
        rows = getattr(found, column)
        if not np.isfinite(rows).all():
            row = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise UsageError(
                f"{found.name}: {column} holds NaN or infinity in episode {int(found.ends[:row].sum())}, "
                f"transition {row}; leave that episode out."
            )
    far = np.abs(found.action).max(axis=0)
    if (far > 1.0 + 1e-4).any():
        k = int(far.argmax())
        low, high = found.action_space.low.ravel()[k], found.action_space.high.ravel()[k]
        centre, scale = (low + high) / 2, (high - low) / 2
        worst = found.action[np.abs(found.action[:, k]).argmax(), k] * scale + centre
        raise UsageError(
            f"{found.name}: action[{k}] reaches {worst:.4g}, outside its range [{low:.4g}, {high:.4g}]; "
            "name the environment it was recorded in with --env."
        )
    return dataclasses.replace(found, action=np.clip(found.action, -1.0, 1.0))


def inward(space: gym.Space, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width [A] of a box of actions: (a − centre) / half lies in [−1, 1].

    Raises:
        UsageError: it is no box, or an unbounded one.
    """
    if not isinstance(space, spaces.Box):
        raise UsageError(
            f"{name} has {type(space).__name__} actions: offline agents take a bounded Box of actions."
        )
    low, high = (np.asarray(x, np.float64).ravel() for x in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UsageError(f"{name} has unbounded actions: offline agents take a bounded Box of actions.")
    return low / 2 + high / 2, high / 2 - low / 2


def summary(found: Dataset) -> list[tuple[str, str]]:
    """What `qscape dataset` prints: (what, how much)."""
    returns, lengths = found.returns, found.lengths
    quantiles = np.percentile(returns, [0, 25, 50, 75, 100])
    terminated, truncated = (int(x.sum()) for x in (found.terminated, found.truncated & ~found.terminated))
    lines = [
        ("environment", f"{found.env} {dict(found.env_args) or ''}".strip() if found.env else "not known"),
        (
            "size",
            f"{len(found):,} transitions in {len(returns):,} episodes, {_nbytes(found) / 2**20:,.2f} MiB",
        ),
        ("length", f"mean {lengths.mean():,.1f}, from {lengths.min():,} to {lengths.max():,}"),
        ("ends", f"{terminated:,} terminated, {truncated:,} truncated"),
        ("return", f"mean {returns.mean():,.2f}, standard deviation {returns.std():,.2f}"),
        ("", "least {:,.2f}, quartiles {:,.2f} {:,.2f} {:,.2f}, greatest {:,.2f}".format(*quantiles)),
        (
            "reward",
            f"mean {found.reward.mean():.4g}, from {found.reward.min():.4g} to {found.reward.max():.4g}",
        ),
    ]
    if found.reference is not None:
        scores = [found.score(float(x)) for x in (returns.mean(), returns.max())]
        low, high = found.reference
        lines.append(
            ("score", f"mean {scores[0]:.1f}, greatest {scores[1]:.1f} (0 is {low:g}, 100 is {high:g})")
        )
    cover, bound = coverage(found)
    lines += [
        (f"action[{k}]", f"{100 * c:.0f}% of {BINS} equal bins hold some, {100 * b:.1f}% lie at the bounds")
        for k, (c, b) in enumerate(zip(cover, bound, strict=True))
    ]
    rows = zip(found.observation.min(0), found.observation.mean(0), found.observation.max(0), strict=True)
    lines += [
        (f"observation[{k}]", f"from {low:.4g} to {high:.4g}, mean {mean:.4g}")
        for k, (low, mean, high) in enumerate(rows)
    ]
    return lines


def coverage(found: Dataset) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
    """By action dimension: the share of 20 equal bins of its range that hold an action, and of actions at a
    bound."""
    bins = np.minimum(((found.action + 1.0) / 2.0 * BINS).astype(int), BINS - 1)
    filled = np.array([len(np.unique(column)) / BINS for column in bins.T])
    return filled, (np.abs(found.action) > EDGE).mean(axis=0)


def _nbytes(found: Dataset) -> int:
    columns = (found.observation, found.action, found.reward, found.next_observation)
    return sum(x.nbytes for x in columns) + 2 * len(found)
