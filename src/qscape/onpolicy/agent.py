"""An agent: one part in every socket, how its state begins, and how it acts."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from qscape.errors import RunError, UsageError
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy import plain
from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import Clipped
from qscape.onpolicy.heads import Learnable
from qscape.onpolicy.sockets import (
    ActionHead,
    Context,
    Distribution,
    Estimator,
    FeatureExtractor,
    Normaliser,
    PolicyUpdate,
    Rollout,
    Scaling,
    StatefulPart,
    Views,
)
from qscape.onpolicy.state import ActingState, Networks, State
from qscape.onpolicy.update import update
from qscape.types import Bound, Key, Metrics, Part, Scalar, Spec, stream

PartStates = dict[str, PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Bound):
    """One part in every socket, and the settings of the base. Holds no arrays; hashed by identity.

    Attributes:
        recipe: the name it was made from, `base+part+part`.
        spec: the task; None until `on` binds the agent to one.
    """

    by_index: ClassVar[bool] = True  # discrete actions are taken by their index, not by a table's row

    recipe: str = "ppo"
    base: Base = Base()
    extractor: FeatureExtractor = plain.Plain()
    head: ActionHead = Learnable()
    estimator: Estimator = plain.GAE()
    policy_update: PolicyUpdate = Clipped()
    scaling: Scaling = plain.AsTheyAre()
    normaliser: Normaliser | plain.Raw = plain.Raw()
    spec: Spec | None = None

    # --- what the agent is made of ----------------------------------------------------------------

    def on(self, spec: Spec) -> "Agent":
        """The agent bound to a task.

        Raises:
            UsageError: a part is not defined for it.
        """
        for part in self.parts.values():
            why = part.fits(spec, self.base) if isinstance(part, StatefulPart) else None
            if why:
                raise UsageError(f"'{self.recipe}' does not fit this environment: {why}")
        if self.base.exploration and not spec.choices:
            raise UsageError(
                "base.exploration is for discrete actions; continuous ones have noise of their own."
            )
        if spec.frame is not None and self.normalises:
            raise UsageError(
                f"{self.normaliser.name} is for vectors; images are divided by 255: leave it out."
            )
        return dataclasses.replace(self, spec=spec)

    @property
    def parts(self) -> dict[str, Any]:
        """All parts by name."""
        filled: tuple[Part | Normaliser, ...] = (
            self.extractor,
            self.head,
            self.estimator,
            self.policy_update,
            self.scaling,
            self.normaliser,
        )
        return {part.name: part for part in filled}

    @property
    def normalises(self) -> bool:
        """Does the normaliser do anything?"""
        return not isinstance(self.normaliser, plain.Raw)

    @property
    def shared(self) -> bool:
        """Is the critic one layer on the actor's torso?"""
        if self.base.shared_torso is None:
            return self.task.frame is not None and self.policy_update.shares
        return self.base.shared_torso

    # --- the state --------------------------------------------------------------------------------

    def init(self, key: Key, envs: int = 1) -> State:
        """A fresh state for E environments; every leaf in a buffer of its own."""
        spec, base, torso = self.task, self.base, self.extractor
        k_actor, k_head, k_critic, k_value = (
            stream(key, name) for name in ("actor", f"{self.head.name}.init", "critic", "critic.value")
        )
        width = torso.width(spec, base, base.actor_hidden)
        learned, fixed = self.head.init(k_head, spec, base, width)
        critic = None
        if self.estimator.critic and self.shared:
            critic = (None, orthogonal_linear(k_value, width, 1, 1.0))
        elif self.estimator.critic:
            critic_torso = torso.init(k_critic, spec, base, base.critic_hidden)
            critic = (
                critic_torso,
                orthogonal_linear(k_value, torso.width(spec, base, base.critic_hidden), 1, 1.0),
            )
        networks = Networks(torso.init(k_actor, spec, base, base.actor_hidden), learned, critic)
        part_states = {self.head.name: fixed}
        part_states |= {p.name: p.init_state(spec, envs) for p in (self.estimator, self.scaling)}
        if not isinstance(self.normaliser, plain.Raw):
            part_states[self.normaliser.name] = self.normaliser.init(key, None, spec, base, None)
        descent = base.descent()
        state = State(
            networks=networks,
            part_states={k: v for k, v in part_states.items() if v is not None},
            optimisers={k: descent.init(v) for k, v in self.policy_update.optimised(networks).items()},
            updates=jnp.zeros((), jnp.int32),
            env_steps=jnp.zeros((), jnp.int32),
        )
        # Donation needs every leaf in a buffer of its own: Adam's zeros share theirs.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def check(self, part_states: PartStates) -> None:
        """Look at what came out of a save: an action layer that must not change has not changed.

        Raises:
            RunError: it has.
        """
        if self.head.name in part_states and (why := self.head.damage(part_states[self.head.name])):
            raise RunError(f"the save of '{self.recipe}' cannot be used: {why}.")

    # --- the networks as functions ------------------------------------------------------------------

    def views(self, part_states: PartStates, networks: Networks, obs: Array) -> Views:
        """Distribution and value at normalised observations [..., S]."""
        features = networks.torso(obs)
        dist, penalty = self.head.dist(networks.head, part_states.get(self.head.name), features)
        value = None if networks.critic is None else _value(networks.critic, features, obs)
        return Views(dist, value, penalty)

    def dist(self, part_states: PartStates, actor: tuple[PyTree, PyTree], obs: Array) -> Distribution:
        """The distribution at normalised observations, by (torso, head) alone."""
        torso, head = actor
        return self.head.dist(head, part_states.get(self.head.name), torso(obs))[0]

    def value(self, part_states: PartStates, networks: Networks, obs: Array) -> Array:
        """The critic at normalised observations [..., S]."""
        features = networks.torso(obs) if self.shared else None
        return _value(networks.critic, features, obs)

    def functions(self, state: State, progress: Scalar | float, key: Key) -> Context:
        """What an improvement receives."""
        part_states, base = state.part_states, self.base
        rate = base.learning_rate * (1.0 - progress) if base.anneal else base.learning_rate
        return Context(
            views=lambda networks, obs: self.views(part_states, networks, obs),
            dist=lambda actor, obs: self.dist(part_states, actor, obs),
            value=lambda critic, obs: _value(critic, None, obs),
            base=base,
            rate=jnp.asarray(rate, jnp.float32),
            key=key,
        )

    def normalised(self, part_states: PartStates, obs: Array) -> Array:
        """Observations as networks see them."""
        if isinstance(self.normaliser, plain.Raw):
            return obs
        return self.normaliser.apply(part_states[self.normaliser.name], obs)

    def see(self, state: State, obs: Array, weight: Array | None) -> State:
        """Let the normaliser see the observations [T, E, S] of a rollout."""
        if isinstance(self.normaliser, plain.Raw):
            return state
        name = self.normaliser.name
        rows = None if weight is None else weight.reshape(-1)
        seen = self.normaliser.update_from_rollout(
            state.part_states[name], obs.reshape(-1, obs.shape[-1]), rows
        )
        return state._replace(part_states=state.part_states | {name: seen})

    # --- acting -----------------------------------------------------------------------------------

    def acting(self, state: State) -> ActingState:
        """All that acting needs of a state."""
        needed = (self.head.name, self.normaliser.name)
        return ActingState(state.networks, {k: v for k, v in state.part_states.items() if k in needed})

    def look(self, acting: ActingState, obs: Array) -> Distribution:
        """The distribution at raw observations [B, S]; its `features` are what the action layer sees."""
        networks = acting.networks
        obs = self.normalised(acting.part_states, obs)
        return self.dist(acting.part_states, (networks.torso, networks.head), obs)

    def act(
        self,
        acting: ActingState,
        noise_state: None,
        obs: Array,
        first: Array,
        env_steps: Int[Array, ""] | int,
        key: Key,
        mode: str = "evaluate",
    ) -> tuple[Array, dict[str, Array], None]:
        """Actions [E, A] for raw observations [E, S]; the index of a discrete action, as a float.

        Args:
            env_steps: counts the draws: the same key and step give the same action.
            mode: "evaluate" (the mode of the distribution) or "explore" (a sample); static.
        """
        dist = self.look(acting, obs)
        if mode == "evaluate":
            return dist.mode(), {}, None
        key = stream(jax.random.fold_in(key, env_steps), f"{self.head.name}.act")
        if not self.base.exploration:
            return dist.sample(key)[0], {}, None
        k_sample, k_choose, k_uniform = jax.random.split(key, 3)
        action = dist.sample(k_sample)[0]
        anything = jax.random.randint(k_uniform, action.shape, 0, self.task.choices or 1).astype(jnp.float32)
        blind = jax.random.bernoulli(k_choose, self.base.exploration, action.shape)
        return jnp.where(blind, anything, action), {}, None

    # --- learning ---------------------------------------------------------------------------------

    def update(
        self, state: State, rollout: Rollout, progress: Scalar | float, key: Key
    ) -> tuple[State, Metrics]:
        """Learn from one rollout: see `update.update`."""
        return update(self, state, rollout, progress, key)


def _value(critic: Any, features: Array | None, obs: Array) -> Array:
    """The value [...] by a critic with a torso of its own, or on the features of the actor's."""
    torso, out = critic
    if torso is not None:
        features = torso(obs)
    assert features is not None
    return dense(out, features)[..., 0]
