"""Does an environment repeat itself: after equal seeds, and after a save?

A run asks this once, of a copy for evaluations; `qscape check` asks it of copies of its own.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import jax
import numpy as np
from jaxtyping import Float

from qscape.envs import snapshot
from qscape.envs.adapter import EnvAdapter, Step
from qscape.errors import one_line
from qscape.types import Transition

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


def name_check(env_id: str) -> str:
    """Return the end of a warning about an environment: how to look at it closer."""
    known = env_id in gym.registry or ":" in env_id or "/" in env_id
    command = f"qscape check {env_id}" if known else "qs.check_env"
    return f"{command} looks closer"


class SaveWitness:
    """Verifies once in a run that a snapshot of its environment holds the whole state.

    In one step of training, the first environment is captured before, restored into the first one of
    evaluations, and both make the step. If they differ, `EnvAdapter.unkept` says so from then on. The
    environment of evaluations gets its own state back.

    Args:
        other: the adapter of evaluations, in this process.
        after: the step at which it happens, so that it is not that of a reset.
    """

    def __init__(self, other: EnvAdapter, after: int) -> None:
        self.other, self.left = other, after

    def __call__(
        self, adapter: EnvAdapter, action: Float[np.ndarray, "E A"]
    ) -> Callable[[Transition], None] | None:
        self.left -= 1
        if self.left > 0 or adapter.statistics.resetting[0]:
            return None
        adapter.witness = None
        taken, kept = snapshot.take_first(adapter), snapshot.take_first(self.other)
        if taken.why_not or kept.why_not or taken.layers.keys() != kept.layers.keys():
            return None  # every save says why; or training has wrappers of its own
        with contextlib.suppress(Exception):  # a copy that cannot do this shows nothing
            if why := snapshot.restore_first(self.other, taken):
                adapter.unkept = why
                return None
            return functools.partial(self._compare, adapter, adapter.to_first(action), kept)
        return None

    def _compare(
        self, adapter: EnvAdapter, action: np.ndarray, kept: snapshot.First, made: Transition
    ) -> None:
        """Make the same step in the other environment, compare, and restore that one."""
        step = int(adapter.statistics.steps)
        with contextlib.suppress(Exception):
            row, reward, terminated, truncated = self.other.step_first(action)
            pairs = {
                "observation": (made.next_observation[0], row),
                "reward": (made.reward[0], np.float32(reward)),
                "terminated": (made.terminated[0], terminated),
                "truncated": (made.truncated[0], truncated),
            }
            wrong = [name for name, two in pairs.items() if not np.array_equal(*two, equal_nan=True)]
            if wrong:
                adapter.unkept = describe_false_snapshot(adapter.env_id, Difference(wrong[0], step))
        with contextlib.suppress(Exception):
            snapshot.restore_first(self.other, kept)


def watch_saves(adapter: EnvAdapter, other: EnvAdapter | None, after: int) -> None:
    """Let a `SaveWitness` look at the steps of training, if there is a copy that it can use."""
    if other is not None and other.first is not None and adapter.jax_env is None and other is not adapter:
        adapter.witness = SaveWitness(other, after)


def seed_resets(*adapters: EnvAdapter | None) -> list[str]:
    """Find out whether resets without a seed draw entropy; then give every reset a seed of its own.

    Asked of the last adapter, whose environments are seeded again before they are used. Environments that are
    known to go on with their seed are not asked.

    Returns:
        A sentence if an adapter cannot give seeds; else [].
    """
    *others, asked = adapters
    if asked is None or asked.first is None or asked.jax_env is not None or asked.is_host_only:
        return []
    rows: list[np.ndarray] = []
    with contextlib.suppress(Exception):  # its own reset says what is wrong with it
        seeds = (asked.seed, None, asked.seed, None)
        rows = [asked.reset_first(seed) for seed in seeds]
    if len(rows) < 4 or compare_starts(rows[0], rows[2]) or not compare_starts(rows[1], rows[3]):
        return []
    for adapter in (*others, asked):
        if adapter is not None:
            adapter.seed_every_reset()
    if any(adapter is not None and adapter.first is None for adapter in others):
        why = "resets without a seed draw entropy, and only environments of this process get one each"
        return [f"{asked.env_id}: {why}: runs of one seed differ; {name_check(asked.env_id)}"]
    return []


def warn_of_starts(adapter: EnvAdapter, other: EnvAdapter | None) -> list[str]:
    """Compare the start of training with that of a copy of the same seed.

    Args:
        adapter: the adapter of training, after its first reset.
        other: the adapter of evaluations, which are seeded again; None: there is none.

    Returns:
        A sentence if both differ; else [].
    """
    first = None if other is None or adapter.jax_env is not None else other.first
    if other is None or first is None:
        return []
    with contextlib.suppress(Exception):  # its own reset says what is wrong with it
        row = other.reset_first(adapter.seed)
        if compare_starts(adapter.observation[0], row) is not None:
            takes = "seed" in inspect.signature(type(first.unwrapped).__init__).parameters
            helps = "--env.seed 0 gives it one" if takes else "let reset draw from self.np_random alone"
            what = f"two copies of {adapter.env_id} start elsewhere after reset(seed={adapter.seed})"
            return [f"{what}, so runs of one seed differ: {helps}; {name_check(adapter.env_id)}"]
    return []
