"""The few nouns everything speaks."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable
from zlib import crc32

import jax
import numpy as np
from jaxtyping import Array, Float, Int

Key: TypeAlias = jax.Array
Scalar: TypeAlias = Float[Array, ""]
Metrics: TypeAlias = dict[str, Scalar]


def setting(default: Any, help: str, *, tune: tuple | None = None) -> Any:
    """A dataclass field that is also a command-line flag and a line of documentation.

    Args:
        default: the paper's value.
        help: one sentence; shown by `qscape train RECIPE --help` and in the reference.
        tune: what `qscape tune` searches: `(low, high)`, `(low, high, "log")` or a tuple of choices
            wrapped as `("choice", a, b, ...)`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "tune": tune})


def stream(key: Key, name: str) -> Key:
    """The random stream called `name` below `key`.

    Streams are told apart by name, not by order of drawing, so that adding a part to an agent
    never changes another part's random numbers.
    """
    return jax.random.fold_in(key, np.uint32(crc32(name.encode())))


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What an agent has to know of its task. Inside, actions live in [-1, 1]^A.

    Attributes:
        observation_size: S, length of the flattened observation.
        action_size: A, length of the action vector (of a representation, for large discrete sets).
        table: `[N, A]` representations of a discrete action set, or None for continuous actions.
        low, high: `[A]` bounds of the action in the environment's units, where it has any.
        choices: N, where an action is the index of one of N (then A = 1); None for all others.
        frame: shape of the image of which an observation is the row of bytes; None for vectors.
    """

    observation_size: int
    action_size: int
    table: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    choices: int | None = None
    frame: tuple[int, ...] | None = None


class Bound:
    """What can be bound to a task."""

    spec: Spec | None

    @property
    def parts(self) -> Mapping[str, Any]:
        """All parts of the agent by name."""
        raise NotImplementedError

    def conflict(self) -> str | None:
        """Checks that all parts work together.

        Returns:
            One sentence that says why they do not; None if they do.
        """
        return next((why for part in self.parts.values() if (why := part.conflict(self))), None)

    @property
    def task(self) -> Spec:
        """The task the agent is bound to.

        Raises:
            ValueError: it is bound to none.
        """
        if self.spec is None:
            raise ValueError("this agent is bound to no task yet: use agent.on(spec)")
        return self.spec


class Batch(NamedTuple):
    """B transitions as the losses see them (normalised if the agent normalises observations)."""

    observation: Float[Array, "B S"]
    action: Float[Array, "B A"]
    reward: Float[Array, " B"]  # n-step sum, discounted, where n > 1
    terminated: Float[Array, " B"]  # 1.0 only for a real end; time limits are 0.0
    next_observation: Float[Array, "B S"]
    discount: Float[Array, " B"] | float  # of the next value: γ, or γ^k for n-step returns
    extra: Mapping[str, Float[Array, "B ..."]] = MappingProxyType({})  # the columns that parts declared


class Event(NamedTuple):
    """The counters of one update; `update` starts at 1, `env_steps` is already increased."""

    update: Int[Array, ""]
    env_steps: Int[Array, ""]
    actor_moved: Array  # does the actor move in this update?
    synced: Array  # is this a synchronisation update (every 250th)?


@runtime_checkable
class Dist(Protocol):
    """What a policy says about one observation."""

    @property
    def features(self) -> Array: ...  # last hidden layer
    def mode(self) -> Array: ...  # evaluation, export
    def sample(self, key: Key) -> tuple[Array, Array]: ...  # action, log-probability
    def log_prob(self, action: Array) -> Array: ...


Policy: TypeAlias = Callable[[Array], Dist]
QFn: TypeAlias = Callable[[Array, Array], list[Array]]
Columns: TypeAlias = Mapping[str, tuple[int, ...]]


class Part:
    """What a recipe is made of. Subclasses are frozen dataclasses whose fields are hyperparameters."""

    name: ClassVar[str]
    socket: ClassVar[str]
    derived_columns: ClassVar[frozenset[str]] = frozenset()  # columns that replay computes from its indices

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        """Values of base fields that this part changes. Called when a recipe is built.

        Args:
            agent: the agent with all its parts; its base does not hold any part's overrides yet.

        Returns:
            Field names of the base with their new values. A user's own setting wins over them.
        """
        return {}

    def conflict(self, agent: Any) -> str | None:
        """Checks the part against the rest of the agent. Called once, when a recipe is built.

        Args:
            agent: the agent with all its parts and its final base. Ask for capabilities of other parts
                (`agent.policy_loss.climbs_q`), not for their names.

        Returns:
            One sentence that says why the recipe cannot work and what to do; None if it works.
        """
        return None

    def fits(self, spec: Spec, base: Any) -> str | None:
        """Checks the part against a task. Called once, when the agent is bound to it (`Agent.on`).

        Returns:
            One sentence that says why the part cannot work on this task; None if it works.
        """
        return None

    def notes(self, agent: Any) -> list[str]:
        """Sentences that a user should read before a run with this agent begins; they stop nothing."""
        return []

    def columns(self, spec: Spec) -> Columns:
        """Further columns of replay that acting emits: name to shape."""
        return {}
