"""What selectors have in common whose actions are drawn by a network of their own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import ActorlessSelector, Composition


class Sampling(ActorlessSelector):
    """Base of selectors that learn to draw actions, and that value the next state themselves."""

    takes_images: ClassVar[bool] = False
    values_next_state: ClassVar[bool] = True

    learning_rate: float

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        """Turn off the base's target actor and noise: what is drawn has a target and noise of its own."""
        return {"target_actor": False, "target_noise": 0.0, "exploration_noise": 0.0}

    def learning_rates(self, base: Base) -> tuple[float, float]:
        return self.learning_rate, base.actor_learning_rate
