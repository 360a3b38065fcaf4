"""Control points: critics that interpolate N actions of their own, of which the best is their maximum.

Q3C (NeurIPS 2025, arXiv 2510.18828; code USC-Lira/Q3C at 4a5456b), after the wire fitting of Baird and Klopf
1993. docs/methods/q3c.md says what of it is inferred.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qscape.errors import Conflict
from qscape.nets import Body, Conditioning, Critic, InputStage, concatenate_inputs
from qscape.offpolicy.base import Base
from qscape.offpolicy.plain import Plain
from qscape.offpolicy.sockets import Architecture, Composition, Net, Nets, PartState, Version
from qscape.ops.wire import interpolate, wire_weights
from qscape.types import Batch, Event, Key, Spec, setting

POWERS = {"quadratic": 2, "linear": 1, "constant": 0}


class WireCritic(Critic):
    """Proposes N actions with their heights, and interpolates the heights between them (`ops.wire`).

    `body` computes the height of one proposal, the same layers for all of them.

    Attributes:
        proposer: the layers that compute the N actions of a state, before tanh.
        count: N.
        nearest: how many points are interpolated.
        normalise: heights are scaled to [0, 1] where they smooth.
        smoothing: C; None until the representation adapts the critic.
    """

    proposer: Body
    count: int = eqx.field(static=True)
    nearest: int = eqx.field(static=True)
    normalise: bool = eqx.field(static=True)
    smoothing: Float[Array, ""] | None = None

    def propose(self, obs: Float[Array, "*b S"]) -> tuple[Float[Array, "*b N A"], Float[Array, "*b N"]]:
        """Return the points of observations, and their heights."""
        raw = jnp.tanh(self.proposer(obs))
        points = raw.reshape(*raw.shape[:-1], self.count, -1)
        raw = self.body(self.stage(concatenate_inputs([obs[..., None, :], points])))
        return points, self.readout.read(raw)

    def outputs(
        self,
        obs: Array,
        action: Array,
        embeddings: object,
        conditioning: Conditioning | None = None,
        key: Key | None = None,
    ) -> Float[Array, "*b 1"]:
        assert self.smoothing is not None, "the representation adapts its critics"
        points, heights = self.propose(obs)
        weights = wire_weights(points, heights, action, self.smoothing, self.normalise)
        return interpolate(heights, weights, self.nearest)[..., None]


class Smoothing(NamedTuple):
    """How much the critics are smoothed.

    Attributes:
        now: C.
        steps: environment steps until C is 0.
    """

    now: Float[Array, ""]
    steps: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class ControlPoints(Plain):
    """Critics that are an interpolation of N points; their maximum is one of the points."""

    name: ClassVar[str] = "control_points"
    takes_images: ClassVar[bool] = False
    makes_points: ClassVar[bool] = True

    points: int = setting(20, "N: points of a critic.", tune=("choice", 10, 20, 30))
    nearest: int = setting(
        10, "k: points of greatest weight that are interpolated.", within=">= 1", tune=("choice", 5, 10, 20)
    )
    normalise: bool = setting(
        True, "Scale heights to [0, 1] in the smoothing, so that C does not depend on the scale of rewards."
    )
    smoothing: float = setting(
        0.01, "C at the start: how much low points are flattened.", within=">= 0", tune=(1e-6, 1.0, "log")
    )
    decay: Literal["quadratic", "linear", "constant"] = setting(
        "quadratic", "How C falls to 0 over the run.", only_if={"smoothing": "without smoothing"}
    )
    smoothing_steps: int | None = setting(
        None,
        "Environment steps until C is 0; None: those of the learning rates' schedule.",
        within=">= 1",
        only_if={
            "smoothing": "without smoothing",
            "decay!=constant": "with a C that stays, control_points.decay = constant",
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            why = "it must be at least 2: of one point the value is the same for all actions."
            raise self.out_of_range("points", why)
        if self.nearest > self.points:
            why = f"it must be at most control_points.points = {self.points}."
            raise self.out_of_range("nearest", why)

    def conflict(self, agent: Composition) -> str | None:
        network, value = agent.network, agent.value
        if not agent.selector.acts_by_points:
            return (
                f"control_points has critics whose best point is the action, and {agent.selector.name} "
                "chooses another one; add best_point and leave other ways to choose out."
            )
        if network.trains_on_joint_batch or network.drops_units:
            layers = "dropout" if network.drops_units else "batch normalisation"
            return f"control_points has critics without {layers}; leave {network.name} out."
        if value.outputs != 1:
            return f"control_points interpolates numbers, and {value.name} has distributions; leave it out."
        for part in agent.regularisers:
            if part.differentiates_actions:
                return (
                    f"{part.name} needs the curvature of Q, and control_points has critics with kinks; leave "
                    "one of the two out."
                )
        return None

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.action_rows is None and spec.factors is None:
            return None
        return "control_points places its points anywhere, and actions are discrete here; take td3 or dqn."

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        base, network = architecture.base, architecture.network

        def body(key: Key, size: int, outputs: int) -> Body:
            k_torso, k_out = jax.random.split(key)
            out = network.output(k_out, base.critic_hidden[-1], outputs, "critic", base)
            return Body(network.torso(k_torso, size, "critic", base), out)

        k_points, k_heights = jax.random.split(key)
        heights = body(k_heights, spec.observation_size + spec.action_size, architecture.value.outputs)
        proposer = body(k_points, spec.observation_size, self.points * spec.action_size)
        sizes = self.points, self.nearest, self.normalise
        return WireCritic(InputStage(), heights, architecture.value, proposer, *sizes)

    def propose(
        self, critic: Critic, obs: Float[Array, "*b S"]
    ) -> tuple[Float[Array, "*b N A"], Float[Array, "*b N"]]:
        assert isinstance(critic, WireCritic)
        return critic.propose(obs)

    # --- smoothing ----------------------------------------------------------------------------------

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        steps = self.smoothing_steps
        if steps is None and self.smoothing and self.decay != "constant":
            if base.schedule_updates is None:
                raise Conflict(
                    "control_points smooths less and less over the run, and nothing says how long it is: "
                    "train for a number of steps with base.schedule = delayed, or set "
                    "control_points.smoothing_steps.",
                    part="control_points",
                    field="smoothing_steps",
                )
            steps = base.schedule_updates / base.updates_per_step
        return PartState(extra=Smoothing(jnp.float32(self.smoothing), jnp.float32(steps or 1)))

    def encoder_params(self, state: PartState, which: Version) -> Any:
        """Return C [], which is the same for all critics."""
        return state.extra.now

    def adapt_network(self, encoder: PyTree, net: Net) -> Net:
        return dataclasses.replace(net, smoothing=encoder) if isinstance(net, WireCritic) else net

    def post_update(self, state: PartState, batch: Batch, event: Event) -> PartState:
        left = jnp.maximum(1.0 - event.env_steps / state.extra.steps, 0.0)
        now = self.smoothing * left ** POWERS[self.decay]
        return state._replace(extra=state.extra._replace(now=jnp.float32(now)))
