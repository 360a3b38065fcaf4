"""What a session asks of an engine.

A session decides when to evaluate, log, save and stop. An engine makes the steps in between, and its learner
holds what is learned from them. Engines differ in where experience comes from: `replay` and `rollout` step
environments on the host, `scan` has them in the program, `dataset` has none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qscape.envs import Episode
from qscape.envs.snapshot import Snapshot
from qscape.run.seeds import Seeds


class Limit(NamedTuple):
    """How far one call of `Engine.advance` may go.

    Attributes:
        step: environment steps at which an evaluation, a log line, a save or the end of the run is due.
        total: environment steps of the whole run, which schedules follow.
        stopped: asked during a long call: shall it return?
    """

    step: int
    total: int
    stopped: Callable[[], bool]


class EndedEpisode(NamedTuple):
    """An episode that ended.

    Attributes:
        seed: index of the seed.
        step: environment steps made when it ended.
        episode: return, length and success.
    """

    seed: int
    step: int
    episode: Episode


class Progress(NamedTuple):
    """What one call of `Engine.advance` brought.

    Attributes:
        ended: the episodes that ended, of all seeds.
    """

    ended: Sequence[EndedEpisode] = ()


class SavedSeed(NamedTuple):
    """The content of a save, of one seed.

    Attributes:
        arrays: its trees by name, in the structure of `Engine.templates`. Only the newest saves keep the tree
            "replay"; without it the run goes on with the networks alone.
        counters: its numbers: those of the session and of the engine.
        environment: the state of the environments.
    """

    arrays: Mapping[str, Any]
    counters: Mapping[str, Any]
    environment: Snapshot


class Learner:
    """What is learned: networks, optimisers and metrics, of one seed or of several.

    Attributes:
        agent: the agent, bound to its task.
        seeds: the axis of seeds.
        programs: the compiled functions by which the policy of one seed acts.
        state: networks, optimiser states and counters; leading axis: seeds, if there are several.
        values: the newest value of every metric, in the order of `programs.metrics`; NaN before the first.
        env_steps, updates: environment steps and updates made so far, in each seed.
    """

    agent: Any
    seeds: Seeds
    programs: Any
    state: Any
    values: Any
    env_steps: int
    updates: int
    _shown: Any = None
    _acting: Any = None

    @property
    def acting(self) -> Any:
        """The current acting state of all seeds; the same object as long as `state` is the same object."""
        if self._shown is not self.state:
            self._shown, self._acting = self.state, self.agent.acting(self.state)
        return self._acting

    def policies(self, seed: int = 0) -> dict[str, Any]:
        """Return the acting states of a seed: "current", and "kept" if the schedule keeps one."""
        return {"current": self.seeds.take(self.acting, seed)}

    def metrics(self, seed: int = 0) -> dict[str, float]:
        """Return the newest value of every metric by name; NaN before the first."""
        values = np.asarray(self.seeds.take(self.values, seed)).tolist()
        return dict(zip(self.programs.metrics, values, strict=True))

    def guard(self, seed: int = 0) -> dict[str, int]:
        """Return the update at which each quantity of `guard_names` was found not finite; 0: none."""
        raise NotImplementedError


@runtime_checkable
class Engine(Protocol):
    """How a run advances. An engine holds all arrays of the run, those of its learner included.

    Attributes:
        learner: what is learned.
        seeds: the axis of seeds.
    """

    learner: Any
    seeds: Seeds

    @property
    def ready(self) -> bool:
        """Is everything done that precedes the next step? Then a session may evaluate, log and save."""
        ...

    def notes(self, saves: bool) -> list[str]:
        """Return sentences for the user when training starts; `saves`: whether the run is saved.

        What takes the memory that they announce is allocated by the first `advance`.
        """
        ...

    def start(self) -> None:
        """Begin an episode in every environment, before the first step of a run."""
        ...

    def begin_again(self) -> None:
        """Begin new episodes in all environments, since an error ended a step of one before its end."""
        ...

    def advance(self, limit: Limit) -> Progress:
        """Make some of the updates that precede the next step; if it is `ready`, make one step or more.

        With `Plan.overlap` the updates and the next step are made together, unless something is due before.
        """
        ...

    def counters(self, seed: int = 0) -> dict[str, Any]:
        """Return the engine's numbers of a seed as JSON data."""
        ...

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the structure of `SavedSeed.arrays` in a save with these counters."""
        ...

    def save(self, seed: int = 0) -> SavedSeed:
        """Return the content of a save: all arrays of a seed, the engine's counters, its environments."""
        ...

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        """Continue from a save of each seed. Return notes, such as why new episodes begin."""
        ...


def copy_buffers(tree: PyTree) -> PyTree:
    """Copy a tree into buffers of its own, which may be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
