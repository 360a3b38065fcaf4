"""One pytree that holds everything an agent learns."""

from typing import NamedTuple

from jaxtyping import Array, Int, PyTree


class Networks(NamedTuple):
    """All that a gradient moves."""

    torso: PyTree  # of the actor; of the critic as well where it is shared
    head: PyTree  # what the action head learns
    critic: PyTree  # None where nothing asks for values


class State(NamedTuple):
    """Networks, optimisers, counters; `parts` holds by part what no gradient moves: fixed action layers,
    running moments."""

    networks: Networks
    part_states: dict[str, PyTree]
    optimisers: dict[str, PyTree]
    updates: Int[Array, ""]  # rollouts that were learned from
    env_steps: Int[Array, ""]


class ActingState(NamedTuple):
    """All that acting needs: what is evaluated, exported and saved."""

    networks: Networks
    part_states: dict[str, PyTree]  # of head and normaliser
