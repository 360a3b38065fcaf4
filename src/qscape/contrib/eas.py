"""EAS: a particle swarm evolves the actor's action under Q (Ma et al. 2022, arXiv 2201.04286).

The winner is executed. `imitate` lets the actor learn from winners; together they are EAS-TD3.
docs/methods/refiners.md says what is inferred.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qscape.contrib._refine import Refiner
from qscape.methods._proposals import take_candidate
from qscape.offpolicy.sockets import PartState
from qscape.types import Key, setting


@dataclasses.dataclass(frozen=True)
class EAS(Refiner):
    """Executes the best action of a particle swarm around the actor's action; Q is the fitness."""

    name: ClassVar[str] = "eas"

    particles: int = setting(10, "n: actions in the swarm.", within=">= 1", tune=("choice", 5, 10, 20))
    rounds: int = setting(10, "T: moves of the swarm.", within=">= 0", tune=("choice", 5, 10, 20))
    spread: float = setting(0.1, "Standard deviation of the first swarm around the action.", within=">= 0")
    inertia: float = setting(1.2, "ω: factor of a particle's velocity at every move.", within=">= 0")
    own_pull: float = setting(1.5, "c1: pull of the particle's own best position.", within=">= 0")
    swarm_pull: float = setting(1.5, "c2: pull of the swarm's best position.", within=">= 0")
    max_speed: float = setting(
        0.1, "Bound on every entry of a velocity; actions lie in [-1, 1].", within=">= 0", tune=(0.02, 0.5)
    )
    trust: float | None = setting(
        None, "Bound on the distance from the actor's action in every entry; None: no bound.", within="> 0"
    )
    fitness: Literal["q1", "min"] = setting("q1", "Fitness: the first critic, or the minimum of all.")
    includes_own: bool = setting(
        True, "The actor's action is one of the particles, so that the winner is never worse by the fitness."
    )
    pulls_by: Literal["entry", "particle"] = setting(
        "entry", "Whether every entry of a velocity draws its own random pulls, or the particle draws one."
    )

    def improve(
        self, state: PartState, values: Callable[[Array], list[Array]], action: Float[Array, "*b A"], key: Key
    ) -> Float[Array, "*b A"]:
        """Return the swarm's best action by the fitness."""
        reach = 2.0 if self.trust is None else self.trust  # 2: the box itself

        def inside(x: Array) -> Array:
            return jnp.clip(jnp.clip(x, action - reach, action + reach), -1.0, 1.0)

        def fitness(x: Float[Array, "n *b A"]) -> Float[Array, "n *b"]:
            def value(candidate: Array) -> Array:
                heads = values(candidate)
                return heads[0] if self.fitness == "q1" else jnp.stack(heads).min(0)

            # Under vmap, what depends on the observation alone is computed once for all particles.
            return jax.vmap(value)(x)

        def move(t: Array, swarm: tuple[Array, ...]) -> tuple[Array, ...]:
            x, speed, best, value = swarm
            entries = action.shape[-1] if self.pulls_by == "entry" else 1
            own, other = jax.random.uniform(
                jax.random.fold_in(k_pulls, t), (2, self.particles, *action.shape[:-1], entries)
            )
            speed = self.inertia * speed + self.own_pull * own * (best - x)
            speed += self.swarm_pull * other * (take_candidate(best, value.argmax(0)) - x)
            speed = jnp.clip(speed, -self.max_speed, self.max_speed)
            x = inside(x + speed)
            new = fitness(x)
            better = new > value
            return x, speed, jnp.where(better[..., None], x, best), jnp.where(better, new, value)

        k_start, k_speed, k_pulls = jax.random.split(key, 3)
        shape = (self.particles, *action.shape)
        x = inside(action + self.spread * jax.random.normal(k_start, shape))
        if self.includes_own:
            x = x.at[0].set(action)
        speed = jax.random.uniform(k_speed, shape, minval=-self.max_speed, maxval=self.max_speed)
        _, _, best, value = jax.lax.fori_loop(0, self.rounds, move, (x, speed, x, fitness(x)))
        return take_candidate(best, value.argmax(0))
