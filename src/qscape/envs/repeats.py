"""Does an environment repeat itself: after equal seeds, and after a save?

A run and `qscape check` ask the same questions by these functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qscape.envs import snapshot
from qscape.envs.adapter import EnvAdapter, Step
from qscape.errors import one_line

AFTER_RESET = "next episode's first observation"
Draw = Callable[[EnvAdapter], np.ndarray]  # actions for the adapter's observations


class Difference(NamedTuple):
    """Where two copies of an environment differ first.

    Attributes:
        what: "observation", "reward", "terminated", "truncated", or the first observation after an episode.
        step: of the episode; 0 is the reset.
    """

    what: str
    step: int

    def __str__(self) -> str:
        if self.what == AFTER_RESET:
            return f"the {self.what}"
        return f"the {self.what} of step {self.step}" if self.step else "the first observation"


def compare_starts(one: np.ndarray, other: np.ndarray) -> Difference | None:
    """Return whether two first observations differ; None: they are equal."""
    return None if np.array_equal(one, other, equal_nan=True) else Difference("observation", 0)


def compare_steps(one: EnvAdapter, other: EnvAdapter, draw: Draw, steps: int) -> Difference | None:
    """Step two adapters with the same actions.

    Args:
        one, other: adapters of the same environment, between two steps.
        draw: draws the actions from what `one` shows.
        steps: the number of steps.

    Returns:
        Where they differ first; None: nowhere.
    """
    for k in range(steps):
        action = draw(one)
        if what := _differ(one.step(action), other.step(action.copy())):
            return Difference(what, k + 1)
    return None


def _differ(one: Step, other: Step) -> str:
    """Return what differs between two steps; "": nothing."""
    ours, theirs = one.transition, other.transition
    pairs = {
        "observation": (ours.next_observation, theirs.next_observation),
        "reward": (ours.reward, theirs.reward),
        "terminated": (ours.terminated, theirs.terminated),
        "truncated": (ours.truncated, theirs.truncated),
        AFTER_RESET: (one.observation, other.observation),
    }
    return next((name for name, two in pairs.items() if not np.array_equal(*two, equal_nan=True)), "")


class Restored(NamedTuple):
    """What became of a snapshot of one copy that was restored into another one.

    Attributes:
        why_not: why it could not be restored exactly; "" if it says that it is exact.
        difference: where both copies differ afterwards; None: nowhere.
    """

    why_not: str
    difference: Difference | None


def compare_restored(adapter: EnvAdapter, other: EnvAdapter, draw: Draw, steps: int) -> Restored:
    """Restore a snapshot of one adapter into another one, and step both with the same actions.

    Args:
        adapter: the adapter, in the middle of an episode.
        other: an adapter of the same environment.
        draw: draws actions.
        steps: the number of steps.
    """
    taken = snapshot.take(adapter)
    if not taken.meta["exact"]:
        return Restored(taken.meta["why"], None)
    if why := snapshot.restore(other, taken):
        return Restored(why, None)
    if not np.array_equal(adapter.observation, other.observation):
        return Restored("", Difference("observation", 0))
    return Restored("", compare_steps(adapter, other, draw, steps))


def make_draw(seed: int = 0) -> Draw:
    """Return a function that draws random actions, uniform, for what an adapter shows; valid ones of masks.

    Two functions of one seed draw the same actions.
    """
    generator = np.random.default_rng(seed)

    def draw(adapter: EnvAdapter) -> Float[np.ndarray, "E A"]:
        spec, obs = adapter.spec, adapter.observation
        if spec.index_sizes is None and spec.table is None:
            return generator.uniform(-1, 1, (adapter.envs, spec.action_size)).astype(np.float32)
        key = jax.random.key(int(generator.integers(2**31)))
        index = np.asarray(spec.draw_indices(jax.numpy.asarray(obs), key))
        return index.astype(np.float32) if spec.table is None else spec.table[index[:, 0]].astype(np.float32)

    return draw


def describe_false_snapshot(name: str, difference: Difference) -> str:
    """Return the sentence about a snapshot that says "exact" and is not."""
    if difference.what == AFTER_RESET:
        why = "its resets draw from a random generator that no save sees"
    else:
        why = "it keeps state that no save sees (a handle of a physics engine, a table of a module)"
    return one_line(f"{name} is another one after a restore, since {why}: {difference} differs")
