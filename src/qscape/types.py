"""Types that all layers share: tasks, batches, events, distributions and parts."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable
from zlib import crc32

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qscape.errors import Mismatch, OutOfRange, UnfitAgent
from qscape.masks import ActionMask

Key: TypeAlias = jax.Array
Scalar: TypeAlias = Float[Array, ""]
Metrics: TypeAlias = dict[str, Scalar]


# Ranges that a setting may have: a test of its value, and the end of the sentence that refuses a value.
LARGEST = 2**31 - 1  # whole numbers are int32 inside of compiled programs
RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "> 0": (lambda x: 0 < x < math.inf, "be a number above 0"),
    ">= 0": (lambda x: 0 <= x < math.inf, "be a number, 0 or more"),
    ">= 1": (lambda x: 1 <= x < math.inf, "be at least 1"),
    "(0, 1000]": (lambda x: 0 < x <= 1000, "be above 0 and at most 1,000"),
    "(0, inf]": (lambda x: x > 0, "be above 0"),
    "[0, 1]": (lambda x: 0 <= x <= 1, "lie in [0, 1]"),
    "(0, 1]": (lambda x: 0 < x <= 1, "lie in (0, 1]"),
    "(0, 1)": (lambda x: 0 < x < 1, "lie in (0, 1)"),
    "[0, 1)": (lambda x: 0 <= x < 1, "lie in [0, 1)"),
}


def setting(
    default: Any,
    help: str,
    *,
    within: str | None = None,
    tune: tuple | None = None,
    only_if: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Return a dataclass field that is also a command-line flag and a line of documentation.

    Args:
        default: the paper's value.
        help: one sentence; `qscape train RECIPE --help` and the reference show it.
        within: the range of its values, one of `RANGES`; of a tuple, the range of each entry, and the tuple
            must not be empty. None is always allowed. Without a range every value of the type is.
        tune: the range that `qscape tune` searches: `(low, high)`, `(low, high, "log")` or
            `("choice", a, b, ...)`; None: the field is not tuned.
        only_if: when the field does anything: conditions that all have to hold (see `holds`), each with the
            end of a sentence that begins "it does nothing" and is said where it does not hold. The sentence
            may name `{part.name}`, or a part of the agent, such as `{agent.network.name}`.
    """
    about = {"help": help, "within": within, "tune": tune, "only_if": only_if}
    return dataclasses.field(default=default, metadata=about)


# The ranges of an optimiser's learning rate, and of the weight of a term in a loss: arguments of `setting`.
LEARNING_RATE: Mapping[str, Any] = MappingProxyType({"within": "> 0", "tune": (1e-5, 1e-2, "log")})
LOSS_WEIGHT: Mapping[str, Any] = MappingProxyType({"within": ">= 0", "tune": (1e-3, 10.0, "log")})


def holds(condition: str, part: Any, agent: "Bound") -> bool:
    """Evaluate a condition of `only_if`: claims joined by " or ".

    A claim is the name of a value, `name=value`, `name!=value` or `not name`. A name is a field or property
    of the part, else of the agent, such as `base.target_actor`, `selector.has_actor` or `spec.frame`. What
    the agent's part does not have is None. A claim on the task holds as long as the agent is bound to none.

    Args:
        condition: such as "exploration=ou" or "network.keeps_target_critics or base.target_actor".
        part: the part, or the base, whose field it is about.
        agent: the agent that has the part.
    """
    return any(_is_so(claim, part, agent) for claim in condition.split(" or "))


def _is_so(claim: str, part: Any, agent: "Bound") -> bool:
    """Return whether one claim of a condition holds."""
    name, sign, wanted = claim.partition("=")
    denied = name.startswith("not ") or name.endswith("!")
    path = name.removeprefix("not ").removesuffix("!").split(".")
    if path[0] == "spec" and agent.spec is None:
        return True
    value: Any = part if hasattr(part, path[0]) else agent
    for attribute in path:
        value = getattr(value, attribute, None)
    if sign:
        return (str(value) == wanted) != denied
    return bool(len(value) if hasattr(value, "__len__") else value) != denied


def check_ranges(settings: Any, name: str) -> None:
    """Check that the fields of a dataclass lie in their ranges; `name` is that of the part, or "base".

    Raises:
        UsageError: a field does not.
    """
    for field in dataclasses.fields(settings):
        within, value = field.metadata.get("within"), getattr(settings, field.name)
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, int) and abs(entry) > LARGEST:
                sentence = f"{name}.{field.name} is {entry}; a whole number is at most {LARGEST:,}."
                raise OutOfRange(sentence, name, field.name)
        if why := explain_range(value, within):
            otherwise = ", or None" if field.default is None else ""
            raise out_of_range(settings, name, field.name, f"{why}{otherwise}.")


def out_of_range(settings: Any, name: str, field: str, why: str) -> OutOfRange:
    """Return the refusal of a field's value; `name` is as in `check_ranges`, `why` says what would work."""
    return OutOfRange(f"{name}.{field} is {getattr(settings, field)}; {why}", name, field)


def check_flags(flags: Any) -> None:
    """Check that the fields of a dataclass of flags lie in their ranges.

    Raises:
        UsageError: a field does not.
    """
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if why := explain_range(value, field.metadata.get("within")):
            flag = field.name.replace("_", "-")
            raise OutOfRange(f"--{flag} is {value}; {why}.", field=field.name)


def explain_range(value: Any, within: str | None) -> str:
    """Return what a value must be if it is not `within` its range; "" if it is, as None always is."""
    if within is None or value is None:
        return ""
    is_inside, rule = RANGES[within]
    entries = value if isinstance(value, tuple) else (value,)
    if entries and all(map(is_inside, entries)):
        return ""
    what = "it has one entry or more, and each must" if isinstance(value, tuple) else "it must"
    return f"{what} {rule}"


def stream(key: Key, name: str) -> Key:
    """Return the key of the random stream called `name` below `key`.

    Streams have names rather than an order, so that adding a part to an agent does not change the random
    numbers of other parts.
    """
    return jax.random.fold_in(key, np.uint32(crc32(name.encode())))


def split_key(key: Key | None, number: int) -> list[Key | None]:
    """Return `number` keys drawn from one; without a key, a list of None."""
    return [None] * number if key is None else [*jax.random.split(key, number)]


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """What an agent needs to know of its task. Agents act in [-1, 1]^A.

    Attributes:
        observation_size: S, length of the flattened observation that networks see.
        action_size: A, length of the action vector (of one row of the table, for discrete actions).
        table: [N, A] vectors of a discrete action set; None for continuous actions.
        low, high: [A] bounds of the action in the environment's units; None if there are none.
        choices: N if an action is the index of one of N actions (then A = 1); None otherwise.
        factors: N_k of each entry k if an action is a vector of A indices (MultiDiscrete, MultiBinary); None
            otherwise.
        frame: shape of the image that an observation begins with, in whole numbers from 0 to 255; None for
            vectors. What follows the image is a vector.
        actor_size: actors see the first `actor_size` entries of an observation only, critics all S; None:
            actors see everything.
        time_limit: steps after which an episode is truncated; None: no limit is known.
        mask: how the valid actions are packed into the words that follow an observation; None: all actions
            are valid, and observations have no such words.
        goal_size: entries of the goal, which an observation contains, in a task that can be relabelled; None:
            the task has no goals.

    Raises:
        UsageError: `actor_size` leaves nothing for the actor, or nothing that critics alone see.
    """

    observation_size: int
    action_size: int
    table: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    choices: int | None = None
    factors: tuple[int, ...] | None = None
    frame: tuple[int, ...] | None = None
    actor_size: int | None = None
    time_limit: int | None = None
    mask: ActionMask | None = None
    goal_size: int | None = None

    def __post_init__(self) -> None:
        if self.actor_size is not None and not 0 < self.actor_size < self.observation_size:
            raise OutOfRange(
                f"actors should see the first {self.actor_size} of {self.observation_size} entries of an "
                f"observation: choose from 1 to {self.observation_size - 1}, or None for all.",
                field="actor_size",
            )
        actions = sum(self.index_sizes or ()) or (0 if self.table is None else len(self.table))
        fits = self.mask is None or (self.mask.actions, self.mask.factors) == (actions, self.factors or ())
        if self.mask is not None and not fits:
            raise Mismatch(
                f"the action mask has {self.mask.actions} entries, and there are {actions:,} actions."
            )

    @property
    def row_size(self) -> int:
        """Length S + M of an observation with its mask, as environments return it and replay stores it."""
        return self.observation_size + (0 if self.mask is None else self.mask.width)

    def visible(self, obs: Array) -> Array:
        """Return the entries [..., S] of observations [..., S + M] that networks see."""
        return obs if self.mask is None else jax.lax.slice_in_dim(obs, 0, self.observation_size, axis=-1)

    def _words(self, obs: Array) -> Array:
        """Return the words [..., M] behind observations."""
        return jax.lax.slice_in_dim(obs, self.observation_size, None, axis=-1)

    def mask_words(self, obs: Array) -> Array | None:
        """Return the words [..., M] of observations that say which actions are valid; None: all are."""
        return None if self.mask is None else jax.lax.stop_gradient(self._words(obs))

    def valid_actions(self, obs: Array) -> Array | None:
        """Return which actions are valid at observations, bool [..., N], or [..., K, C] of K factors.

        C is the largest number of values of a factor. None: all actions are valid.
        """
        if self.mask is None:
            return None
        valid = self.mask.unpack(self._words(obs))
        return self.mask.split(valid) if self.mask.factors else valid

    def draw_indices(self, obs: Array, key: Key) -> Array:
        """Draw the indices [..., K] of a valid action at each observation, all with the same probability.

        K is 1 unless actions have factors.
        """
        if self.mask is not None:
            return self.mask.sample(self._words(obs), key)
        sizes = self.index_sizes or (1 if self.table is None else len(self.table),)
        return jax.random.randint(key, (*obs.shape[:-1], len(sizes)), 0, jax.numpy.array(sizes))

    def draw_actions(self, obs: Float[Array, "*b _"], key: Key) -> Float[Array, "*b A"]:
        """Draw a uniform action per observation: in [-1, 1]^A, a valid row of the table, or a valid index."""
        if self.choices is not None:
            return self.draw_indices(obs, key).astype(jax.numpy.float32)
        if self.table is None:
            return jax.random.uniform(key, (*obs.shape[:-1], self.action_size), minval=-1.0, maxval=1.0)
        return jax.numpy.asarray(self.table)[self.draw_indices(obs, key)[..., 0]]

    def change_visible(self, change: Callable[[Array], Array], obs: Array) -> Array:
        """Return observations [..., S + M] with `change` made to what networks see; masks stay."""
        if self.mask is None:
            return change(obs)
        return jax.numpy.concatenate([change(self.visible(obs)), self._words(obs)], -1)

    def actor_part(self, obs: Array) -> Array:
        """Return the entries of observations [..., S + M] that actors see."""
        obs = self.visible(obs)
        return obs if self.actor_size is None else jax.lax.slice_in_dim(obs, 0, self.actor_size, axis=-1)

    @property
    def index_sizes(self) -> tuple[int, ...] | None:
        """The number of values of each entry of an action whose entries are indices; None for vectors."""
        return self.factors if self.choices is None else (self.choices,)

    def of_factor(self, size: int) -> "Spec":
        """Return the task as the head of one factor sees it: a discrete set of `size` actions."""
        return dataclasses.replace(self, action_size=1, choices=size, factors=None, mask=None)

    @property
    def action_rows(self) -> np.ndarray | None:
        """Every discrete action [N, A]: the rows of the table, or the indices; None if continuous."""
        if self.choices is not None:
            return np.arange(self.choices, dtype=np.float32)[:, None]
        return self.table

    @property
    def pixels(self) -> int:
        """The entries of an observation, its first ones, that are an image; 0 for vectors."""
        return 0 if self.frame is None else math.prod(self.frame)

    @property
    def of_actor(self) -> "Spec":
        """The task as an actor sees it, to build its networks."""
        if self.actor_size is None:
            return self
        return dataclasses.replace(self, observation_size=self.actor_size, actor_size=None)


AgentT = TypeVar("AgentT", bound="Bound")  # typing.Self, which beartype does not check in functions


class Bound:
    """An agent, which `on` binds to a task. Subclasses are frozen dataclasses."""

    recipe: str
    base: Any
    spec: Spec | None

    def on(self: AgentT, spec: Spec) -> AgentT:
        """Bind the agent to a task. Called once the environment is known, before `init`.

        Args:
            spec: sizes of observations and actions, and the action table if actions are discrete.

        Returns:
            A copy of the agent with `spec` set.

        Raises:
            UsageError: a part or a setting does not fit the task.
        """
        if why := self.fits(spec):
            whose = (name for name, part in self.parts.items() if part.fits(spec, self.base) == why)
            raise UnfitAgent(f"'{self.recipe}' does not fit this environment: {why}", part=next(whose, None))
        return dataclasses.replace(self, spec=spec)  # type: ignore[type-var]

    def fits(self, spec: Spec) -> str | None:
        """Check all parts against a task.

        Returns:
            One sentence that says why the agent cannot work on it; None if it works.
        """
        return next((why for part in self.parts.values() if (why := part.fits(spec, self.base))), None)

    @property
    def parts(self) -> Mapping[str, Any]:
        """All parts of the agent by name."""
        raise NotImplementedError

    def conflict(self) -> str | None:
        """Check that all parts work together.

        Returns:
            One sentence that says why they do not; None if they do.
        """
        return next((why for part in self.parts.values() if (why := part.conflict(self))), None)

    def moot_fields(self) -> dict[str, str]:
        """Find the fields that do nothing in this agent: the user is told, and no search tries them.

        Returns:
            By `part.field`, the end of a sentence that begins "it does nothing". Some fields show only on an
            agent that is bound to its task.
        """
        found = {}
        for name, part in {"base": self.base, **self.parts}.items():
            for field in dataclasses.fields(part):
                conditions = {**getattr(part, "only_if", {}), **field.metadata.get("only_if", {})}
                otherwise = (why for condition, why in conditions.items() if not holds(condition, part, self))
                if why := next(otherwise, None):
                    found[f"{name}.{field.name}"] = why.format(part=part, agent=self)
        return found

    @property
    def task(self) -> Spec:
        """The task that the agent is bound to.

        Raises:
            ValueError: the agent is bound to no task.
        """
        if self.spec is None:
            raise ValueError("this agent is bound to no task yet: use agent.on(spec)")
        return self.spec


class Transition(NamedTuple):
    """One step of each of E environments, from the environments to replay; or T such steps, a rollout.

    Its arrays are numpy's on the host, and JAX's in compiled programs.

    Attributes:
        observation: what was acted on, in the environment's units.
        action: in [-1, 1]; discrete actions of on-policy agents are indices, as floats (`Spec.index_sizes`).
        reward: in the environment's units.
        terminated: True where the episode ended in a terminal state; cuts the bootstrap.
        truncated: True where a time limit or the like ended it; does not cut the bootstrap.
        next_observation: the true successor s', also where an episode ends.
        valid: False for rows that are no environment steps, but resets or padding; None: all rows are steps.
        columns: further replay columns that the action selector emitted with the actions, by name.
    """

    observation: Float[Any, "*T E S"]
    action: Float[Any, "*T E A"]
    reward: Float[Any, "*T E"]
    terminated: Bool[Any, "*T E"]
    truncated: Bool[Any, "*T E"]
    next_observation: Float[Any, "*T E S"]
    valid: Bool[Any, "*T E"] = None
    columns: Mapping[str, Float[Any, "..."]] = {}

    @property
    def starts_episode(self) -> Bool[Any, "*T E"]:
        """True where the next action starts an episode, or (next-step autoreset) only resets."""
        ended = self.terminated | self.truncated
        return ended if self.valid is None else ended | ~self.valid


class Batch(NamedTuple):
    """B transitions as the losses see them.

    Attributes:
        observation: normalised if the agent normalises observations, like all observations here.
        action: in [-1, 1].
        reward: the reward; for n-step returns the discounted sum of up to n rewards.
        terminated: 1.0 after a terminal state, 0.0 otherwise and at time limits.
        next_observation: the observation that is bootstrapped from, n steps later for n-step returns.
        discount: factor of the next state's value: γ, or γ^k for a sum of k rewards.
        extra: columns that parts declared (`columns`, `derived_columns`), by name.
    """

    observation: Float[Array, "B S"]
    action: Float[Array, "B A"]
    reward: Float[Array, " B"]
    terminated: Float[Array, " B"]
    next_observation: Float[Array, "B S"]
    discount: Float[Array, " B"] | float
    extra: Mapping[str, Float[Array, "B ..."]] = MappingProxyType({})


class Event(NamedTuple):
    """The counters of one update.

    Attributes:
        update: number of this update, starting at 1.
        env_steps: environment steps made, the current one included.
        actor_moved: true if the actor moves in this update (every `policy_delay`-th).
        synced: true if this update is a sync (every `sync_every`-th).
    """

    update: Int[Array, ""]
    env_steps: Int[Array, ""]
    actor_moved: Array
    synced: Array


@runtime_checkable
class Dist(Protocol):
    """A distribution over actions at observations [..., S]: what a policy returns."""

    @property
    def features(self) -> Array:
        """The actor's last hidden layer [..., F]."""
        ...

    def mode(self) -> Array:
        """Return the action [..., A] of evaluation and export."""
        ...

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Return a random action [..., A] and its log-probability [...]."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Return the log-probability [...] of an action [..., A]."""
        ...


Policy: TypeAlias = Callable[[Array], Dist]
QFn: TypeAlias = Callable[[Array, Array], list[Array]]
Columns: TypeAlias = Mapping[str, tuple[int, ...]]


class Part:
    """A part of a recipe. Subclasses are frozen dataclasses whose fields are hyperparameters.

    Attributes:
        name: the part's name in recipes, settings, flags and saves.
        socket: the place that the part fills in an agent.
        derived_columns: columns of `Batch.extra` that the part reads and replay computes from neighbouring
            rows: "successor", "previous_observation", "last_observation", "truncated".
        takes_images: the part works where observations begin with an image. False for parts whose own
            networks or statistics are of raw observations, and for representations without convolutions.
        only_if: conditions for all fields of the part, as those of a `setting`.
    """

    name: ClassVar[str]
    socket: ClassVar[str]
    derived_columns: ClassVar[frozenset[str]] = frozenset()
    takes_images: ClassVar[bool] = True
    only_if: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __post_init__(self) -> None:
        """Check the fields. A subclass that checks more calls `super().__post_init__()` first.

        Raises:
            UsageError: a field is out of its range.
        """
        check_ranges(self, self.name)

    def out_of_range(self, field: str, why: str) -> OutOfRange:
        """Return the refusal of a field's value; `why` says what would work."""
        return out_of_range(self, self.name, field, why)

    def overrides(self, agent: Any) -> Mapping[str, Any]:
        """Return values of base fields that this part changes. Called when a recipe is built.

        Args:
            agent: the agent with all its parts; its base does not hold any part's overrides yet.

        Returns:
            Field names of the base with their new values. A user's own setting wins over them.
        """
        return {}

    def conflict(self, agent: Any) -> str | None:
        """Check the part against the rest of the agent. Called once, when a recipe is built.

        Args:
            agent: the agent with all its parts and its final base. Ask for capabilities of other parts
                (`agent.policy_loss.climbs_q`), not for their names.

        Returns:
            One sentence that says why the recipe cannot work and what to do; None if it works.
        """
        return None

    def fits(self, spec: Spec, base: Any) -> str | None:
        """Check the part against a task. Called once, when the agent is bound to it (`Agent.on`).

        Returns:
            One sentence that says why the part cannot work on this task; None if it works.
        """
        return None

    def notes(self, agent: Any) -> list[str]:
        """Return sentences that a user should read before a run with this agent begins; they stop nothing."""
        return []

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Check the metrics of a log line. Called at every log line until it returns a sentence.

        Args:
            metrics: the newest value of each metric by name.

        Returns:
            A sentence that the user reads once in the run; None if all is well.
        """
        return None

    def columns(self, spec: Spec) -> Columns:
        """Return further replay columns that acting emits: the shape of one row by name."""
        return {}
