"""Resets: networks are re-initialised periodically and learn again from the whole replay.

Nikishin, Schwarzer, D'Oro, Bacon, Courville, "The Primacy Bias in Deep Reinforcement Learning", ICML 2022,
arXiv 2205.07802; here in the form of the ablation of SAVO (arXiv 2410.11833): every 200,000, 500,000 or 1M
environment steps all networks, or the last layers of actor and critics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from qscape.nets import Actor, Critic
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Reset
from qscape.offpolicy.state import State
from qscape.types import Event, setting


@dataclasses.dataclass(frozen=True)
class Resets(Reset):
    """Re-initialises networks, or their last layers, at fixed intervals; the replay is kept.

    Targets become copies of the online networks, and every optimiser is re-initialised. Counters, the replay
    with its priorities and the normaliser's statistics stay.
    """

    name: ClassVar[str] = "resets"
    every: int = setting(
        200_000,
        "Environment steps between two resets, without those of the random phase.",
        within=">= 1",
        tune=("choice", 200_000, 500_000, 1_000_000),
        only_if={"not at": "beside resets.at"},
    )
    at: tuple[int, ...] | None = setting(
        None,
        "Environment steps, random ones included, after which networks are reset; None: by `every`.",
        within=">= 1",
    )
    what: Literal["all", "last"] = setting(
        "all",
        "All parameters, or the last layers of all actors and critics, SAVO's surrogates included.",
    )

    def reset(self, state: State, make_initial_state: Callable[[], State], event: Event, base: Base) -> State:
        """Re-initialises networks in the first update after every period, or after the given steps.

        What is evaluated and saved at such a step has learned, then; a run that ends there, too.
        """
        # The number of updates is the same for all seeds of one program, so that `cond` stays one branch.
        made = event.update - 1
        if self.at is None:
            due = made % max(1, round(self.every * base.updates_per_step)) == 0
        else:
            updates = [round(max(0, step - base.warmup) * base.updates_per_step) for step in self.at]
            due = (made == jnp.array(updates)).any()
        return jax.lax.cond(
            due & (made > 0),  # what has not learned is not reset
            lambda: self._reinitialise(state, make_initial_state()),
            lambda: state,
        )

    def _reinitialise(self, old: State, initial: State) -> State:
        if self.what == "all":
            return initial
        mixed = jax.tree.map(
            _replace_last_layer, old, initial, is_leaf=lambda x: isinstance(x, Actor | Critic)
        )
        return mixed._replace(
            actor_target=None if old.actor_target is None else mixed.actor,
            critics_target=mixed.critics if old.critics_target else [],
            optimisers=initial.optimisers,
        )


def _replace_last_layer(old: Any, initial: Any) -> Any:
    """Returns an actor or critic with the last layer of `initial`; anything else unchanged."""
    if not isinstance(old, Actor | Critic):
        return old
    last = (lambda net: net.head) if isinstance(old, Actor) else (lambda net: net.body.out)
    return eqx.tree_at(last, old, last(initial))
