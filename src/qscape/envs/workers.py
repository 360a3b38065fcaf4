"""Environments side by side that this process does not step: one process each, or the threads of EnvPool."""

import contextlib
import copy
import importlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from gymnasium.vector.utils import batch_space

from qscape.envs.answers import pack_infos
from qscape.envs.outside import Outside
from qscape.errors import Mismatch, QscapeError, UnknownName, UnmakeableEnv, describe, need_extra
from qscape.system import safe_path, start_method

PATIENCE = 5.0  # seconds that a process gets to finish its step and end
HANGUP = getattr(signal, "SIGHUP", None)


class WorkerError(Exception):
    """An environment in another process failed; the text is `errors.describe` of its error."""


class WorkerDied(WorkerError):
    """The process of an environment has ended."""


def has_died(problem: BaseException | None) -> bool:
    """Return whether an error was caused by the end of an environment's process."""
    return problem is not None and (isinstance(problem, WorkerDied) or has_died(problem.__cause__))


class Workers(AsyncVectorEnv):
    """One process for each environment, whose state can be read and set.

    Errors of environments and of their processes are raised as `WorkerError`. The processes ignore Ctrl-C,
    which the terminal sends to all of them, so that a run can save; `close` ends them.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], autoreset_mode: AutoresetMode) -> None:
        """Start the processes.

        Args:
            env_fns: make the environments, in their processes.
            autoreset_mode: when an environment whose episode ended is reset.

        Raises:
            WorkerError: an environment cannot be made there.
        """
        self.parent_pipes, self.processes = [], []
        with safe_path(), contextlib.ExitStack() as stack:
            stack.callback(self.close)
            super().__init__(env_fns, context=start_method(), worker=_work, autoreset_mode=autoreset_mode)
            stack.pop_all()

    def apply(self, function: Callable[["Reached", Any], Any], given: Sequence[Any] | None = None) -> Any:
        """Call `function(reached, argument)` in every process; return the results, in order.

        Args:
            function: a function of a module; it must not raise an error.
            given: the argument of each call. None: None.
        """
        self._ask(super().set_attr, "given", [None] * self.num_envs if given is None else [*given])
        return self._ask(super().call, "apply", function)

    def reset(self, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reset all environments."""
        return self._ask(super().reset, **options)

    def step(self, actions: Any) -> Any:
        """Step all environments."""
        return self._ask(super().step, actions)

    def _add_info(
        self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        return pack_infos(None, self.num_envs, vector_infos, env_info, env_num)

    def close_extras(self, timeout: float | None = PATIENCE, terminate: bool = False) -> None:
        """End all processes, after the step that they are in; one that takes longer is killed."""
        pipes = [pipe for pipe in self.parent_pipes if pipe is not None]
        for pipe in pipes:
            with contextlib.suppress(OSError):  # the process has ended
                pipe.send(("close", None))
        for pipe in pipes:
            with contextlib.suppress(EOFError, OSError):  # the end of the process
                while pipe.poll(timeout):
                    pipe.recv()
            pipe.close()
        for process in self.processes:
            if process.pid is None:  # it could not be started
                continue
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method that talks to the processes; the end of one of them becomes a WorkerError."""
        try:
            return call(*arguments, **options)
        except (EOFError, OSError) as problem:
            ended = wait([process.sentinel for process in self.processes], PATIENCE)
            for index, process in enumerate(self.processes):
                if process.sentinel in ended:
                    process.join()
                    code: Any = process.exitcode
                    how = (
                        f"was killed ({signal.Signals(-code).name})"
                        if code < 0
                        else f"ended with code {code}"
                    )
                    raise WorkerDied(f"the process of environment {index} {how}") from problem
            raise

    def _check_spaces(self) -> None:
        self._ask(super()._check_spaces)

    def _raise_if_errors(self, successes: Any) -> None:
        """Raise the error of the first environment that failed; Gymnasium would print tracebacks as well."""
        failed = sorted(self.error_queue.get()[:3] for ok in successes if not ok)
        if failed:
            self._state = AsyncState.DEFAULT
            _, _, problem = failed[0]
            raise (
                problem if isinstance(problem, QscapeError | WorkerError) else WorkerError(describe(problem))
            )


class Reached(gym.Wrapper):
    """The environment inside its process: `Workers.apply` reaches it, and its errors can be sent.

    Attributes:
        index: its number.
        outside: what it keeps outside its instance.
        constants: what `snapshot.remember` found.
    """

    given: Any = None  # `Workers.apply` sets it
    constants: dict[str, Any] | None = None

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.index, self.outside = index, Outside(env)

    def apply(self, function: Callable[["Reached", Any], Any]) -> Any:
        """Call a function with this environment and what was given."""
        return function(self, self.given)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Reset the environment."""
        with _sendable_errors():
            return self.outside.reset(self.env, seed)

    def step(self, action: Any) -> Any:
        """Step the environment."""
        with _sendable_errors():
            observation, reward, terminated, truncated, info = self.outside.call(self.env.step, action)
            if terminated or truncated:  # they are sent after the reset, which may write to their arrays
                observation, info = copy.deepcopy((observation, info))
            return observation, reward, terminated, truncated, info


@contextlib.contextmanager
def _sendable_errors() -> Iterator[None]:
    """Turn errors of environments into a WorkerError: others may be of a class that cannot be sent."""
    try:
        yield
    except QscapeError:
        raise
    except BaseException as problem:
        raise WorkerError(describe(problem)) from None


def _work(index: int, env_fn: Callable[[], gym.Env], pipe: Any, *rest: Any) -> None:
    """Make an environment and obey the commands for it, in a process of its own. Gymnasium calls it."""
    for number in (signal.SIGINT, *([HANGUP] if HANGUP else [])):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):  # the process that trains has ended
        try:
            with _sendable_errors():
                env = Reached(env_fn(), index)
        except (QscapeError, WorkerError) as problem:
            _, _, errors, *_ = rest
            pipe.recv()  # the first command, which is answered by the error
            errors.put((index, type(problem), problem, ""))
            pipe.send((None, False))
        else:
            _async_worker(index, lambda: env, pipe, *rest)


class EnvPoolEnv(VectorEnv):
    """Environments that EnvPool steps in threads of C++. Needs the extra `envpool`.

    Args:
        env_id: an id that both EnvPool and Gymnasium have.
        envs: the number of environments.
        args: arguments of `envpool.make`.
        example: Gymnasium's environment of that id, whose spaces and time limit the pool must have.

    Raises:
        UsageError: EnvPool is missing, has no such environment, or has another one of that name.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (as in Gymnasium)

    def __init__(self, env_id: object, envs: int, args: Mapping[str, Any], example: gym.Env) -> None:
        with need_extra("--vectorise envpool", "envpool"):
            envpool: Any = importlib.import_module("envpool")
        if env_id not in envpool.list_all_envs():
            raise UnknownName(f"EnvPool has no {env_id}; leave --vectorise envpool out.", field="env")
        limit = getattr(example.spec, "max_episode_steps", None)
        args = ({"max_episode_steps": limit} if limit else {}) | dict(args)
        self._make: Callable[..., Any] = partial(
            envpool.make, env_id, env_type="gymnasium", num_envs=envs, **args
        )
        try:
            self.pool = self._make(seed=0)
        except Exception as problem:
            raise UnmakeableEnv(
                f"EnvPool cannot make {env_id} with env_args {args} ({describe(problem)}).", field="env_args"
            ) from problem
        self.num_envs = envs
        self.single_observation_space = self.pool.single_observation_space
        self.single_action_space = self.pool.single_action_space
        self.observation_space = batch_space(self.single_observation_space, envs)
        self.action_space = batch_space(self.single_action_space, envs)
        for name in ("observation_space", "action_space"):
            ours, theirs = getattr(self, f"single_{name}"), getattr(example, name)
            if not _are_alike(ours, theirs):
                raise Mismatch(
                    f"EnvPool's {env_id} has another {name} ({ours}) than Gymnasium's ({theirs}), which "
                    "evaluates; leave --vectorise envpool out."
                )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start new episodes. EnvPool takes a seed only when it is made, so a seed makes another pool."""
        if seed is not None:
            self.pool.close()
            self.pool = self._make(seed=seed)
        return self.pool.reset()

    def step(self, actions: Any) -> Any:
        """Step all environments; one whose episode ended in the step before is reset instead."""
        return self.pool.step(actions)

    def close_extras(self, **_: Any) -> None:
        """End the threads."""
        self.pool.close()


def _are_alike(space: gym.Space, other: gym.Space) -> bool:
    """Return whether two spaces are the same but for the precision of their numbers."""
    if not (isinstance(space, Box) and isinstance(other, Box)):
        return space == other
    if space.shape != other.shape:
        return False
    return all(np.allclose(getattr(space, name), getattr(other, name)) for name in ("low", "high"))
