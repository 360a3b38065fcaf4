"""Loss-adjusted prioritized replay (Fujimoto, Meger, Precup 2020, arXiv 2007.06049), as TD7 uses it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qscape.ops import sum_tree
from qscape.ops.td import lap_priority
from qscape.replay import storage
from qscape.replay.base import Replay
from qscape.replay.storage import Layout, Priorities, ReplayState, Rows, Storage
from qscape.replay.uniform import sample_uniformly
from qscape.types import Event, Key, setting

PRIORITIES = {"prioritised": "without priorities (lap.prioritised)"}


@dataclasses.dataclass(frozen=True)
class LAP(Replay):
    """Samples row i with probability p_i / Σ p, where p_i = max(max_k |δ_ik|, minimum)^α over the critics k.

    There are no importance weights: with the Huber loss that this part sets for the critics, the expected
    gradient is that of a uniformly sampled loss. New rows get the largest priority since the last sync; at a
    sync it becomes the largest stored priority.
    """

    name: ClassVar[str] = "lap"

    alpha: float = setting(
        0.4, "Exponent α of the priorities; 0: uniform.", within=">= 0", tune=(0.0, 1.0), only_if=PRIORITIES
    )
    min_priority: float = setting(
        1.0, "Lower bound of the TD errors that make priorities.", within="> 0", only_if=PRIORITIES
    )
    prioritised: bool = setting(True, "If off, sample uniformly but keep the Huber loss (an ablation).")
    reset_highest: bool = setting(
        True,
        "Let the priority of new rows fall at syncs, as in TD7; off: the original LAP.",
        only_if=PRIORITIES,
    )

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        return {"critic_loss": "lap_huber"}

    def init_state(self, layout: Layout) -> ReplayState:
        replay_state = super().init_state(layout)
        if not self.prioritised:
            return replay_state
        tree = sum_tree.create(layout.envs * layout.ring)
        return replay_state._replace(priorities=Priorities(tree, jnp.ones((), jnp.float32)))

    def insert(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, new: Rows, mask: Bool[Array, " E"]
    ) -> tuple[Storage, ReplayState]:
        rows, inserted = super().insert(layout, rows, replay_state, new, mask)
        if replay_state.priorities is None:
            return rows, inserted
        tree, max_priority = replay_state.priorities
        i, following = storage.write_rows(layout, replay_state)
        p = jnp.full(layout.envs, max_priority)
        if not layout.stores_next:  # the row behind becomes head or pad: never drawn
            i, mask = jnp.concatenate([i, following]), jnp.concatenate([mask, mask])
            p = jnp.concatenate([p, jnp.zeros_like(p)])
        p = jnp.where(mask, p, sum_tree.leaves(tree, i))
        return rows, inserted._replace(priorities=Priorities(sum_tree.set(tree, i, p), max_priority))

    def sample(
        self, layout: Layout, rows: Storage, replay_state: ReplayState, key: Key, batch_size: int
    ) -> Int[Array, " B"]:
        if replay_state.priorities is None:
            return sample_uniformly(layout, rows, replay_state, key, batch_size)
        return sum_tree.sample(replay_state.priorities.tree, key, batch_size)

    def update_priorities(
        self, replay_state: ReplayState, i: Int[Array, " B"], td_error: Float[Array, "B critics"]
    ) -> ReplayState:
        """Sets the priorities of the rows i by their TD errors; of a row drawn twice the later entry
        counts."""
        if replay_state.priorities is None:
            return replay_state
        tree, max_priority = replay_state.priorities
        p = lap_priority(td_error, self.alpha, self.min_priority)
        p = jnp.where(sum_tree.leaves(tree, i) > 0, p, 0.0)  # pads and heads keep priority 0
        max_priority = jnp.maximum(max_priority, jnp.max(p))
        return replay_state._replace(priorities=Priorities(sum_tree.set(tree, i, p), max_priority))

    def post_update(self, replay_state: ReplayState, event: Event) -> ReplayState:
        """At a sync, sets the priority of new rows to the largest stored priority."""
        if replay_state.priorities is None or not self.reset_highest:
            return replay_state
        tree, max_priority = replay_state.priorities

        def largest() -> Array:
            largest_priority = jnp.max(tree[tree.size // 2 :])
            return jnp.where(largest_priority > 0, largest_priority, max_priority)

        max_priority = jax.lax.cond(event.synced, largest, lambda: max_priority)
        return replay_state._replace(priorities=Priorities(tree, max_priority))
