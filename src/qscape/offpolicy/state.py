"""One pytree that holds everything an agent learns."""

from typing import NamedTuple

from jaxtyping import Array, Int, PyTree

from qscape.nets import Critic
from qscape.types import Part


class PartState(NamedTuple):
    """The arrays of one part. A part defines which of the three it has in its `init`.

    Attributes:
        params: parameters that the gradient of the part's own `learn` moves, with an optimiser of their own.
        actor_params: parameters that the gradient of the actor's loss moves, with an optimiser of their own.
        extra: everything that no gradient moves, such as slow copies, moving averages and bounds. A
            NamedTuple of the part, an array or None; `learn` and `post_update` return the next one.
    """

    params: PyTree = None
    actor_params: PyTree = None
    extra: PyTree = None


class State(NamedTuple):
    """Networks, optimisers and counters of an agent.

    The counters stay unbatched under `vmap` over seeds: a batched predicate would turn every `cond` into a
    `select` that computes both branches.

    Attributes:
        actor: what the selector's `actors` made: one actor, a list of actors, or None.
        actor_target: the target actor in the same form; None if `base.target_actor` is off.
        critics: the online critics, `base.critics` of them.
        critics_target: the target critics.
        part_states: the state of every part that has one, by the part's name.
        optimisers: optimiser states by name: "actor", "critics", "PART.params", "PART.actor_params".
        updates: number of updates made.
        env_steps: number of environment steps made.
    """

    actor: PyTree
    actor_target: PyTree
    critics: list[Critic]
    critics_target: list[Critic]
    part_states: dict[str, PartState]
    optimisers: dict[str, PyTree]
    updates: Int[Array, ""]
    env_steps: Int[Array, ""]

    def part(self, part: Part) -> PartState:
        """Return the state of a part; an empty `PartState` if the part has none."""
        return self.part_states.get(part.name, PartState())

    def with_part(self, name: str, part_state: PartState) -> "State":
        """Return the state with another state of the part `name`."""
        return self._replace(part_states=self.part_states | {name: part_state})


# in_axes and out_axes of `vmap` for a state whose leaves lead with a seed axis.
SEED_AXES = State(0, 0, 0, 0, 0, 0, None, None)  # type: ignore[arg-type]


class ActingState(NamedTuple):
    """The part of a `State` that acting needs. Checkpoints, evaluation and exports use it.

    Attributes:
        actor: as in `State`.
        critics: the online critics; selectors that choose among proposals ask them.
        part_states: states of the representation, the selector and the normaliser.
    """

    actor: PyTree
    critics: list[Critic]
    part_states: dict[str, PartState]

    def part(self, part: Part) -> PartState:
        """Return the state of a part; an empty `PartState` if the part has none."""
        return self.part_states.get(part.name, PartState())
