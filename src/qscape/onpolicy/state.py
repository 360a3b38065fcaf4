"""The state of an on-policy agent: one pytree with everything that a run saves."""

from typing import NamedTuple

from jaxtyping import Array, Int, PyTree


class Networks(NamedTuple):
    """The parameters that gradients move.

    Attributes:
        torso: feature extractor of the actor, and of the critic if they share it.
        head: trained parameters of the action head.
        critic: (torso or None if shared, output layer); None if the agent has no critic.
    """

    torso: PyTree
    head: PyTree
    critic: PyTree


class State(NamedTuple):
    """Networks, optimiser states and counters.

    Attributes:
        part_states: arrays of parts that the policy's gradient does not move (fixed action layers, running
            moments, a refiner's critics), by the part's name.
        optimisers: optimiser states, by the names of `PolicyUpdate.optimised_params`.
        updates: number of rollouts the agent has trained on.
        env_steps: environment steps made so far, over all environments.
    """

    networks: Networks
    part_states: dict[str, PyTree]
    optimisers: dict[str, PyTree]
    updates: Int[Array, ""]
    env_steps: Int[Array, ""]


class ActingState(NamedTuple):
    """The part of a `State` that acting needs; evaluation, export and saves of policies use it.

    Attributes:
        part_states: those of the action head, the refiner and the normaliser, by the part's name.
    """

    networks: Networks
    part_states: dict[str, PyTree]
