"""DQN: the values of a few discrete actions in one pass, of which the greatest is executed.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015. Double Q-learning: van
Hasselt, Guez, Silver 2016, arXiv 1509.06461. Dueling networks: Wang et al. 2016, arXiv 1511.06581.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.nets import Critic, InputStage
from qscape.nets.conv import Convolutions, describe_small_image
from qscape.nets.heads import Point
from qscape.nets.mlp import Body
from qscape.nets.per_action import ActionCritic, Dueling
from qscape.offpolicy.base import Base
from qscape.offpolicy.exploration import apply_epsilon_greedy
from qscape.offpolicy.plain import Plain
from qscape.offpolicy.sockets import (
    ActingStep,
    ActorlessSelector,
    Architecture,
    BoundNetworks,
    Composition,
    Context,
    PartState,
    combine_heads,
)
from qscape.types import Key, Policy, QFn, Spec, setting


@dataclasses.dataclass(frozen=True)
class PerAction(Plain):
    """Critics see the observation and compute an output for each discrete action.

    On images they are the convolutions of the Nature DQN; `base.critic_hidden` are the layers behind them.
    """

    name: ClassVar[str] = "per_action"
    indexes_actions: ClassVar[bool] = True
    takes_images: ClassVar[bool] = True
    dueling: bool = setting(
        False, "Compute Q as V(s) + A(s, a) − mean A, with a hidden layer for V and one for A."
    )

    def conflict(self, agent: Composition) -> str | None:
        if self.dueling and not agent.network.has_linear_outputs:
            return (
                f"per_action.dueling makes output layers of its own, and so does {agent.network.name}; "
                "leave one of them out."
            )
        return None

    def notes(self, agent: Composition) -> list[str]:
        if not self.dueling or agent.base.init == Base().init:
            return []
        return ["per_action.dueling makes its two streams without base.init"]

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.frame is None:
            return None
        for field in ("critic_activation", "critic_norm", "init"):
            if (value := getattr(base, field)) != getattr(Base(), field):
                return f"its convolutions are orthogonal with ReLU: leave base.{field} = {value} out."
        return describe_small_image(spec.frame)

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        assert spec.choices is not None
        base, network, outputs = architecture.base, architecture.network, architecture.value.outputs
        k_torso, k_out = jax.random.split(key)
        if spec.frame is not None:
            torso = Convolutions(k_torso, spec.frame, base.critic_hidden)
        else:
            torso = network.torso(k_torso, spec.observation_size + conditioning, "critic", base)
        width = base.critic_hidden[-1]
        if self.dueling:
            out = Dueling(k_out, width, spec.choices, outputs, base.critic_activation)
        else:
            out = network.output(k_out, width, spec.choices * outputs, "critic", base)
        return ActionCritic(InputStage(), Body(torso, out), architecture.value, spec.choices)


@dataclasses.dataclass(frozen=True)
class Argmax(ActorlessSelector):
    """Executes the discrete action of greatest Q, and explores by ε-greedy actions."""

    name: ClassVar[str] = "argmax"
    indexes_actions: ClassVar[bool] = True

    double: bool = setting(
        True,
        "Online critics choose the action at s' that the target critics value; off: the target critics "
        "choose it, too.",
    )

    def conflict(self, agent: Composition) -> str | None:
        base = agent.base
        if base.head != "deterministic":
            return "argmax has no policy with a density: base.head = deterministic, or sac as the base."
        if base.exploration != "gaussian" or base.exploration_noise or base.target_noise:
            return (
                "argmax acts by the index of an action, to which no noise can be added: leave out what sets "
                "base.exploration, base.exploration_noise or base.target_noise."
            )
        if base.epsilon_mode != "greedy":
            return "argmax explores by ε-greedy actions: base.epsilon_mode = greedy."
        return None

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.choices is not None:
            return None
        if spec.factors is not None:
            return (
                "argmax values each of N discrete actions, and an action has several parts; take ppo or td3."
            )
        return "argmax values each of N discrete actions, and actions are continuous here; take td3 or sac."

    def policy(self, actor: PyTree, state: PartState, context: BoundNetworks) -> Policy:
        return greedy_policy(context, context.q)

    def target_policy(
        self,
        actor: PyTree,
        actor_target: PyTree,
        state: PartState,
        context: Context,
        next_obs: Array,
        key: Key,
    ) -> Policy:
        """Return the policy that is greedy by the target critics, or with `double` by the online critics."""
        return greedy_policy(context, context.q if self.double else context.q_target)

    def decide(
        self, actor: PyTree, state: PartState, context: Context, step: ActingStep
    ) -> tuple[Array, dict[str, Array], PyTree]:
        action = context.policy(step.observation).mode()
        if step.mode == "explore":
            action = apply_epsilon_greedy(context, step.observation, action, step.key)
        return action, {}, step.noise_state


def greedy_policy(context: BoundNetworks, q: QFn) -> Policy:
    """Return the policy whose action [*b, 1] is the index of the greatest value, the first one of equals.

    With several critics the value is the one that `base.actor_objective` names.
    """

    def policy(obs: Float[Array, "*b S"]) -> Point:
        actions = jnp.asarray(context.spec.action_rows)
        values = combine_heads(context.base, q(obs[..., None, :], actions))
        valid = context.spec.valid_actions(obs)
        values = values if valid is None else jnp.where(valid, values, -jnp.inf)
        return Point(obs, values.argmax(-1, keepdims=True).astype(jnp.float32))

    return policy
