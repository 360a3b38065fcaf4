"""One pytree that holds everything an agent learns."""

from typing import NamedTuple

from jaxtyping import Array, Int, PyTree

from qscape.nets import Critic
from qscape.types import Part


class PartState(NamedTuple):
    """What a part carries in the state.

    Attributes:
        params: moved by the gradient of the part's own `learn`, with its own optimiser.
        actor_params: moved by the gradient of the actor's loss, with its own optimiser.
        extra: slow copies, moving averages, bounds: whatever `post_update` returns.
    """

    params: PyTree = None
    actor_params: PyTree = None
    extra: PyTree = None


class State(NamedTuple):
    """Networks, optimisers and counters. The counters stay unbatched under `vmap` over seeds: a batched
    predicate would turn every `cond` into a `select` that computes both branches."""

    actor: PyTree
    actor_target: PyTree  # None where the base keeps no target actor
    critics: list[Critic]
    critics_target: list[Critic]
    part_states: dict[str, PartState]
    optimisers: dict[str, PyTree]
    updates: Int[Array, ""]
    env_steps: Int[Array, ""]

    def part(self, part: Part) -> PartState:
        """What a part carries; empty for one that carries nothing."""
        return self.part_states.get(part.name, PartState())


# in_axes and out_axes of `vmap` for a state whose leaves lead with a seed axis.
SEED_AXES = State(0, 0, 0, 0, 0, 0, None, None)  # type: ignore[arg-type]


class ActingState(NamedTuple):
    """All that acting needs: what is kept by checkpoints, evaluated, exported and saved."""

    actor: PyTree
    critics: list[Critic]
    part_states: dict[str, PartState]  # of representation, maximiser and normaliser
