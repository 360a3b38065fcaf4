"""The on-policy agent: one part in every socket, its initial state, how it acts and how it learns."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from qscape.errors import DamagedSave
from qscape.nets.layers import dense
from qscape.nets.orthogonal import orthogonal_linear
from qscape.onpolicy import factors, plain
from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import Clipped
from qscape.onpolicy.heads import Learnable
from qscape.onpolicy.sockets import (
    ActionHead,
    ActionRefiner,
    Distribution,
    Estimator,
    FeatureExtractor,
    Maskable,
    NetworkOutputs,
    Normaliser,
    PolicyUpdate,
    Scaling,
    UpdateContext,
)
from qscape.onpolicy.state import ActingState, Networks, State
from qscape.types import Bound, Key, Metrics, Part, Scalar, Spec, Transition, stream

PartStates = dict[str, PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Agent(Bound):
    """One part in every socket and the settings of the base. Holds no arrays; hashed by identity.

    `agents.build` makes it from a recipe; `on` binds it to a task. Its methods are pure functions of the
    state.

    Attributes:
        index_actions: discrete actions are passed by index, not as rows of an action table.
        recipe: the name it was made from, `base+part+part`.
        base: the settings.
        extractor, head, estimator, policy_update, scaling, refiner, normaliser: the part in each socket.
        spec: the task; None until `on` binds the agent to one.
    """

    index_actions: ClassVar[bool] = True

    recipe: str = "ppo"
    base: Base = Base()
    extractor: FeatureExtractor = plain.Plain()
    head: ActionHead = Learnable()
    estimator: Estimator = plain.GAE()
    policy_update: PolicyUpdate = Clipped()
    scaling: Scaling = plain.NoScaling()
    refiner: ActionRefiner = plain.AsDrawn()
    normaliser: Normaliser | plain.Raw = plain.Raw()
    spec: Spec | None = None

    # --- what the agent is made of ----------------------------------------------------------------

    def fits(self, spec: Spec) -> str | None:
        if self.base.exploration and not spec.index_sizes:
            return "base.exploration is for discrete actions; continuous policies already sample with noise."
        if spec.frame is not None and self.normalises:
            return f"{self.normaliser.name} is for vectors; images are divided by 255: leave it out."
        if spec.actor_size is not None and self.base.shared_torso:
            return (
                "the critic is a layer on the actor's features, and here critics see more than the actor "
                "may: base.shared_torso = False."
            )
        if why := factors.find_misfit(self.head, spec, self.base):
            return why
        others = (part for part in self.parts.values() if part is not self.head)
        return next((why for part in others if (why := part.fits(spec, self.base))), None)

    @property
    def parts(self) -> dict[str, Any]:
        """All parts, by name."""
        filled: tuple[Part | Normaliser, ...] = (
            self.extractor,
            self.head,
            self.estimator,
            self.policy_update,
            self.scaling,
            self.refiner,
            self.normaliser,
        )
        return {part.name: part for part in filled}

    @property
    def normalises(self) -> bool:
        """Does the normaliser do anything?"""
        return getattr(self.normaliser, "changes_observations", True)

    @property
    def has_critic(self) -> bool:
        """Is there a critic?"""
        return self.estimator.needs_critic or self.policy_update.has_own_critic

    @property
    def has_critic_torso(self) -> bool:
        """Has the critic hidden layers? As far as is known, where the agent is bound to no task."""
        return not (self.base.shared_torso if self.spec is None else self.has_shared_torso)

    @property
    def has_shared_torso(self) -> bool:
        """Is the critic one linear layer on the actor's features?"""
        if self.policy_update.has_own_critic:
            return False
        if self.base.shared_torso is None:
            return self.task.frame is not None and self.policy_update.allows_shared_torso
        return self.base.shared_torso

    @property
    def follows_progress(self) -> bool:
        """Does an update depend on the share of the run that is done?"""
        return self.base.anneal or self.policy_update.follows_progress

    # --- the state --------------------------------------------------------------------------------

    def init(self, key: Key, envs: int = 1) -> State:
        """Return the initial state for `envs` environments. Every leaf has its own buffer, as donation
        requires.
        """
        spec, base, torso = self.task, self.base, self.extractor
        k_actor, k_head, k_critic, k_value = (
            stream(key, name) for name in ("actor", f"{self.head.name}.init", "critic", "critic.value")
        )
        width = torso.width(spec.of_actor, base, base.actor_hidden)
        learned, fixed = factors.init_heads(self.head, k_head, spec, base, width)
        critic, own = None, None
        if self.policy_update.has_own_critic:
            critic, own = self.policy_update.init_critic(k_critic, spec, base)
        elif self.estimator.needs_critic and self.has_shared_torso:
            critic = (None, orthogonal_linear(k_value, width, 1, 1.0))
        elif self.estimator.needs_critic:
            critic_torso = torso.init(k_critic, spec, base, base.critic_hidden)
            critic = (
                critic_torso,
                orthogonal_linear(k_value, torso.width(spec, base, base.critic_hidden), 1, 1.0),
            )
        networks = Networks(torso.init(k_actor, spec.of_actor, base, base.actor_hidden), learned, critic)
        part_states = {self.head.name: fixed, self.policy_update.name: own}
        part_states |= {p.name: p.init_state(spec, envs) for p in (self.estimator, self.scaling)}
        refiner = self.refiner
        part_states[refiner.name] = refiner.init(stream(key, f"{refiner.name}.init"), spec, base)
        if self.normalises:
            part_states[self.normaliser.name] = self.normaliser.init(key, None, spec, base, None)
        optimiser = base.make_optimiser()
        state = State(
            networks=networks,
            part_states={k: v for k, v in part_states.items() if v is not None},
            optimisers={
                k: optimiser.init(v) for k, v in self.policy_update.optimised_params(networks).items()
            },
            updates=jnp.zeros((), jnp.int32),
            env_steps=jnp.zeros((), jnp.int32),
        )
        # Adam's zeros share one buffer, and a shared buffer cannot be donated.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def check_part_states(self, part_states: PartStates) -> None:
        """Check part states that were read from a save: a fixed action layer must not have changed.

        Raises:
            RunError: it has changed.
        """
        fixed = part_states.get(self.head.name)
        if fixed is not None and (why := factors.explain_damage(self.head, self.task, fixed)):
            raise DamagedSave(f"the save of '{self.recipe}' cannot be used: {why}.")

    # --- the networks as functions ------------------------------------------------------------------

    def apply_networks(self, part_states: PartStates, networks: Networks, obs: Array) -> NetworkOutputs:
        """Return distribution, values and penalty at normalised observations [*b, S]."""
        features = networks.torso(self.task.actor_part(obs))
        dist, penalty = self._apply_head(part_states, networks.head, features, obs)
        is_usual = networks.critic is not None and not self.policy_update.has_own_critic
        value = _value(networks.critic, features, self.task.visible(obs)) if is_usual else None
        return NetworkOutputs(dist, value, penalty)

    def distribution(self, part_states: PartStates, actor: tuple[PyTree, PyTree], obs: Array) -> Distribution:
        """Return the policy's distribution at normalised observations [*b, S]; `actor` is the pair (torso,
        head).
        """
        torso, head = actor
        features = torso(self.task.actor_part(obs))
        return self._apply_head(part_states, head, features, obs)[0]

    def _apply_head(
        self, part_states: PartStates, head: PyTree, features: Array, obs: Array
    ) -> tuple[Distribution, Array | None]:
        """Return distribution over the valid actions and penalty at features [*b, F] of the torso."""
        fixed = part_states.get(self.head.name)
        dist, penalty = factors.apply_heads(self.head, self.task, head, fixed, features)
        valid = self.task.valid_actions(obs)
        if valid is None:
            return dist, penalty
        assert isinstance(dist, Maskable)
        return dist.masked(valid), penalty

    def value(self, part_states: PartStates, networks: Networks, obs: Array) -> Array:
        """Return the critic's values [*b] at normalised observations [*b, S]."""
        obs = self.task.visible(obs)
        features = networks.torso(obs) if self.has_shared_torso else None
        return _value(networks.critic, features, obs)

    def make_context(self, state: State, progress: Scalar | float, key: Key) -> UpdateContext:
        """Return the functions and settings that `PolicyUpdate.improve` receives;
        arguments as in `update`.
        """
        part_states, base = state.part_states, self.base
        own = part_states.get(self.estimator.name)
        rate = base.learning_rate * (1.0 - progress) if base.anneal else base.learning_rate
        return UpdateContext(
            normalise=lambda obs: self.normalise_obs(part_states, obs),
            scale=lambda reward: reward,
            apply_networks=lambda networks, obs: self.apply_networks(part_states, networks, obs),
            distribution=lambda actor, obs: self.distribution(part_states, actor, obs),
            value=lambda critic, obs: _value(critic, None, self.task.visible(obs)),
            estimate=lambda trajectory: self.estimator.estimate(own, base, trajectory)[:2],
            spec=self.task,
            base=base,
            progress=progress,
            rate=jnp.asarray(rate, jnp.float32),
            key=key,
        )

    def normalise_obs(self, part_states: PartStates, obs: Array) -> Array:
        """Return raw observations [*b, S] as the networks see them."""
        if not self.normalises:
            return obs
        apply = partial(self.normaliser.apply, part_states[self.normaliser.name])
        return self.task.change_visible(apply, obs)

    def update_normaliser(self, state: State, obs: Array, weight: Array | None) -> State:
        """Return the state after the normaliser's statistics took in the raw observations [T, E, S] of a
        rollout.

        `weight` [T, E] is 0 for rows that are no environment steps; None: all rows are steps.
        """
        if not self.normalises:
            return state
        name = self.normaliser.name
        rows = None if weight is None else weight.reshape(-1)
        statistics = self.normaliser.update_statistics(
            state.part_states[name], self.task.visible(obs).reshape(-1, self.task.observation_size), rows
        )
        return state._replace(part_states=state.part_states | {name: statistics})

    def update(
        self, state: State, rollout: Transition, progress: Scalar | float, key: Key
    ) -> tuple[State, Metrics]:
        """Train on one rollout: see `qscape.onpolicy.update.update`."""
        from qscape.onpolicy.update import update  # which is about agents, and imports this file

        return update(self, state, rollout, progress, key)

    # --- acting -----------------------------------------------------------------------------------

    def acting(self, state: State) -> ActingState:
        """Return the part of a state that acting needs."""
        needed = (self.head.name, self.refiner.name, self.normaliser.name)
        return ActingState(state.networks, {k: v for k, v in state.part_states.items() if k in needed})

    def get_distribution(self, acting: ActingState, obs: Array) -> Distribution:
        """Return the policy's distribution at raw observations [B, S]."""
        networks = acting.networks
        obs = self.normalise_obs(acting.part_states, obs)
        return self.distribution(acting.part_states, (networks.torso, networks.head), obs)

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
        """Return actions [E, A] for raw observations [E, S]; the indices of discrete actions, as floats.

        Args:
            noise_state, first: unused; off-policy exploration noise needs them.
            env_steps: folded into the key; the same key and step give the same action.
            mode: "evaluate" (the mode of the distribution), "sample" (a sample of it) or "explore" (that of a
                rollout: a sample that a refiner moves, or a random action in its place); static.

        Returns:
            The actions, no further replay columns, and no noise state.
        """
        dist = self.get_distribution(acting, obs)
        if mode == "evaluate":
            return dist.mode(), {}, None
        key = stream(jax.random.fold_in(key, env_steps), f"{self.head.name}.act")
        if mode == "sample":
            return dist.sample(key)[0], {}, None
        if not self.base.exploration:
            states, refiner = acting.part_states, self.refiner
            action = dist.sample(key)[0]
            return refiner.refine(states.get(refiner.name), self.normalise_obs(states, obs), action), {}, None
        k_sample, k_choose, k_uniform = jax.random.split(key, 3)
        action = dist.sample(k_sample)[0]
        uniform = self.task.draw_indices(obs, k_uniform).astype(jnp.float32)
        is_random = jax.random.bernoulli(k_choose, self.base.exploration, (*action.shape[:-1], 1))
        return jnp.where(is_random, uniform, action), {}, None


def _value(critic: Any, features: Array | None, obs: Array) -> Array:
    """Return the critic's value [*b]; `features` are the actor's, for a critic that shares the torso."""
    torso, out = critic
    if torso is not None:
        features = torso(obs)
    assert features is not None
    return dense(out, features)[..., 0]
