"""What adapters of simulators share: a state as a tuple of arrays, environments with a `State` object."""

import contextlib
import copy
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PyTree

from qscape.envs.native import JaxEnv, Outcome
from qscape.errors import QscapeError, UnknownName, WrongEnv, WrongVersion
from qscape.types import Key

ASYMMETRIC = "asymmetric"  # the choice of both: actors see the first, critics both
STATE, PRIVILEGED = "state", "privileged_state"  # names that Brax and Playground give them


class Simulated(NamedTuple):
    """State of an adapter. Snapshots store it under this name.

    Attributes:
        leaves: the arrays of the package's own state, in the order of `jax.tree.leaves`.
        steps: steps of the episode so far.
    """

    leaves: tuple[Array, ...]
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """How a package's state becomes a tuple of arrays, and back.

    Simulators write into dicts of their state, and return numbers whose type changes between reset and step.
    A tuple of arrays shares no dict, and every leaf keeps the shape and type that it has after a reset.

    Attributes:
        tree: structure of the state.
        shapes: shape of every leaf.
        dtypes: type of every leaf.
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, state: PyTree) -> "StateLayout":
        """Return the layout of a state after a reset; `jax.eval_shape` gives one without computing it."""
        leaves, tree = jax.tree.flatten(state)
        arrays = [jax.eval_shape(jnp.asarray, leaf) for leaf in leaves]
        return cls(tree, tuple(a.shape for a in arrays), tuple(np.dtype(a.dtype) for a in arrays))

    def pack(self, state: PyTree) -> tuple[Array, ...]:
        """Return the arrays of a state.

        Raises:
            UsageError: the state has another structure, shape or kind of number than after a reset.
        """
        leaves, tree = jax.tree.flatten(state)
        if tree != self.tree:
            raise WrongEnv("the simulator's state has another structure after a step than after a reset")
        arrays = [jnp.asarray(leaf) for leaf in leaves]
        for array, shape, dtype in zip(arrays, self.shapes, self.dtypes, strict=True):
            if array.size != np.prod(shape) or jnp.promote_types(array.dtype, dtype) != dtype:
                raise WrongEnv(
                    f"the simulator's state has an array {array.dtype}{list(array.shape)} after a step "
                    f"where a reset puts {dtype}{list(shape)}"
                )
        # `astype` alone would keep a weak type, which changes in the next step.
        return tuple(
            jax.lax.convert_element_type(jnp.reshape(array, shape), dtype)
            for array, shape, dtype in zip(arrays, self.shapes, self.dtypes, strict=True)
        )

    def unpack(self, leaves: tuple[Array, ...]) -> Any:
        """Return the state of these arrays, with dicts of its own."""
        return jax.tree.unflatten(self.tree, leaves)


@functools.lru_cache(maxsize=2)
def _renderer(model: Any) -> Any:
    """Return MuJoCo's renderer of a model. It is kept, because making one takes longer than many pictures."""
    return importlib.import_module("mujoco").Renderer(model, height=480, width=640)


def draw_bodies(model: Any, **place: Any) -> np.ndarray:
    """Return the picture of a `mujoco.MjModel` from its first camera, which follows the robot in most models.

    Args:
        model: the model.
        place: entries of `mujoco.MjData`: `qpos`, `qvel`, `mocap_pos`, `mocap_quat`.
    """
    mujoco: Any = importlib.import_module("mujoco")
    renderer, data = _renderer(model), mujoco.MjData(model)
    for name, value in place.items():
        getattr(data, name)[...] = np.reshape(value, getattr(data, name).shape)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, camera=0 if model.ncam else -1)
    return renderer.render()


@contextlib.contextmanager
def explain_failure(sim: Any) -> Iterator[None]:
    """Turn an error inside a simulator, such as a function that JAX no longer has, into one sentence."""
    try:
        yield
    except QscapeError:
        raise
    except Exception as problem:
        package, what = type(sim).__module__.partition(".")[0], str(problem).strip().partition("\n")[0]
        raise WrongVersion(
            f"{type(sim).__name__} of {package} fails beside JAX {jax.__version__}: {what}"
        ) from problem


def _on_no_device(x: PyTree) -> PyTree:
    """Return an array that a program for several devices may take: MJX binds those of a model to one."""
    bound = isinstance(x, jax.Array) and x.committed
    return jnp.asarray(np.asarray(x)) if bound else x


class StateEnv(JaxEnv):
    """An environment `sim` with `sim.reset(rng) -> State` and `sim.step(state, action) -> State`.

    `State` has obs, reward, done (0 or 1) and info. Brax and MuJoCo Playground have this interface. An
    observation or a reward that is not finite ends the episode: it is terminated, the observation before it
    is repeated, and the reward is 0.

    Attributes:
        model: arrays of the physical model, which are arguments of a compiled program.
        sim: the package's environment.
        layout: of its state.
        size: length of the observation.
        key: name of the observation that the agent sees, if the environment makes several; else "".
        repeat: times that an action is applied in one step; the rewards are summed.
        privileged: name of an observation that critics see beside it, or "".
        size_of_actor: length of what actors see; None: everything.
    """

    MODEL: ClassVar[str] = ""  # attribute of `sim` that holds the model

    model: PyTree
    sim: Any = eqx.field(static=True)
    layout: StateLayout = eqx.field(static=True)
    size: int = eqx.field(static=True)
    key: str = eqx.field(static=True, default="")
    repeat: int = eqx.field(static=True, default=1)
    privileged: str = eqx.field(static=True, default="")
    size_of_actor: int | None = eqx.field(static=True, default=None)

    @classmethod
    def wrap(cls, sim: Any, time_limit: int, key: str | None = None, repeat: int = 1) -> Self:
        """Return the adapter of an environment.

        Args:
            sim: the environment, without wrappers.
            time_limit: steps after which an episode is truncated.
            key: name of the observation, if the environment makes several; None: "state"; "asymmetric":
                "state" for actors, and "privileged_state" beside it for critics.
            repeat: times that an action is applied in one step.

        Raises:
            UsageError: there is no such observation.
        """
        model = jax.tree.map(_on_no_device, getattr(sim, cls.MODEL, None))
        rng = jax.random.key_data(jax.random.key(0))
        with explain_failure(sim):
            state: Any = jax.eval_shape(lambda model, rng: cls._with_model(sim, model).reset(rng), model, rng)
        privileged = ""
        if isinstance(state.obs, dict):
            key = key or STATE
            if key == ASYMMETRIC and {STATE, PRIVILEGED} <= state.obs.keys():
                key, privileged = STATE, PRIVILEGED
            if key not in state.obs:
                raise UnknownName(
                    f"observation is {key!r}, but there are only {', '.join(state.obs)}", field="env_args"
                )
        elif key:
            raise UnknownName(
                f"observation is {key!r}, but the environment makes one without a name", field="env_args"
            )
        seen: Any = state.obs[key] if key else state.obs
        size = int(np.prod(seen.shape))
        return cls(
            model=model,
            sim=sim,
            layout=StateLayout.of(state),
            size=size + (int(np.prod(state.obs[privileged].shape)) if privileged else 0),
            key=key or "",
            repeat=repeat,
            privileged=privileged,
            size_of_actor=size if privileged else None,
            time_limit=time_limit,
        )

    @classmethod
    def _with_model(cls, sim: Any, model: PyTree) -> Any:
        """Return a copy of the environment with this model, which may be traced."""
        if model is None:
            return sim
        sim = copy.copy(sim)
        setattr(sim, cls.MODEL, model)
        return sim

    @property
    def render_fps(self) -> int:
        """Steps in a second of simulated time; 30 if the environment has no bodies."""
        return 30 if self.model is None else max(1, round(1 / (float(self.sim.dt) * self.repeat)))

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (self.size,), np.float32)

    @property
    def actor_size(self) -> int | None:
        return self.size_of_actor

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (int(self.sim.action_size),), np.float32)

    def reset(self, key: Key) -> tuple[Simulated, Float[Array, " S"]]:
        """Return a start state that the simulator draws."""
        # Numbers instead of a typed key: the simulator keeps them in its state, and snapshots store numbers.
        with explain_failure(self.sim):
            state = self._with_model(self.sim, self.model).reset(jax.random.key_data(key))
        return Simulated(self.layout.pack(state), jnp.int32(0)), self._observe(state)

    def step(self, state: Simulated, action: Array, key: Key) -> tuple[Simulated, Outcome]:
        """Make one step, or `repeat` of them. Random numbers come from the state, not from `key`."""
        sim, before = self._with_model(self.sim, self.model), self.layout.unpack(state.leaves)

        def advance(leaves: tuple[Array, ...]) -> Any:
            with explain_failure(sim):
                return sim.step(self.layout.unpack(leaves), action)

        def once(carry: tuple, _: None) -> tuple[tuple, None]:
            leaves, reward, done = carry
            after = advance(leaves)
            new = (self.layout.pack(after), reward + after.reward, after.done > 0)
            return jax.tree.map(lambda x, y: jnp.where(done, x, y), carry, new), None

        if self.repeat == 1:
            after = advance(state.leaves)
            leaves, reward, done = self.layout.pack(after), after.reward, jnp.asarray(after.done) > 0
        else:
            start = (state.leaves, jnp.float32(0), jnp.bool_(False))
            (leaves, reward, done), _ = jax.lax.scan(once, start, length=self.repeat)
        seen, reward = self._observe(self.layout.unpack(leaves)), jnp.asarray(reward, jnp.float32).reshape(())
        sound = jnp.isfinite(seen).all() & jnp.isfinite(reward)
        steps = state.steps + 1
        outcome = Outcome(
            jnp.where(sound, seen, self._observe(before)),
            jnp.where(sound, reward, 0),
            done.reshape(()) | ~sound,
            steps >= self.time_limit,
            self._success(self.layout.unpack(leaves)),
        )
        return Simulated(leaves, steps), outcome

    def renew(self, state: Simulated, key: Key) -> Simulated:
        """Return the state with other random numbers ahead, so that equal starts lead to different
        episodes.
        """
        ours = self.layout.unpack(state.leaves)
        if "rng" not in ours.info:
            return state
        ours.info["rng"] = jax.random.key_data(key)
        return state._replace(leaves=self.layout.pack(ours))

    def _observe(self, state: Any) -> Float[Array, " S"]:
        seen = state.obs[self.key] if self.key else state.obs
        if self.privileged:
            seen = jnp.concatenate([jnp.ravel(seen), jnp.ravel(state.obs[self.privileged])])
        return jax.lax.convert_element_type(jnp.ravel(seen), jnp.float32)

    def _success(self, state: Any) -> Bool[Array, ""]:
        return jnp.bool_(False)
