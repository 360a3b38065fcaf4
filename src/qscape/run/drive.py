"""The whole cycle of a run in one compiled program, which calls the environments.

Between two programs a step loses time: leaves are passed, threads wake up, caches are cold, and an
accelerator waits for each array that it is sent. Here only the environments' answers are passed. What was
not used for the milliseconds of an update is gone from the caches, so that each line of Python takes several
times as long as in a loop of its own: the callback does nothing that can be done before or after the program.
On a CPU the results equal those of `insert`, `learn` and `choose` in turn, to the bit.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from qscape.envs import Episode, Step
from qscape.offpolicy import cycle
from qscape.offpolicy.cycle import Carry
from qscape.run.callbacks import call_environments
from qscape.run.programs import Programs
from qscape.types import Key, Transition

SLICE = 0.25  # seconds after which the program returns, so that a request to stop is seen in time
MOST = 512  # steps after which it returns
REWARD, TERMINATED, TRUNCATED, VALID, ENDED, PROCEED = range(6)  # the numbers of an answer


@runtime_checkable
class Environments(Protocol):
    """What the driver needs of the environments: an `EnvAdapter`, or those of several seeds as one."""

    @property
    def observation(self) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> Step: ...


class Driver:
    """Runs cycles of training in one program; made and called by `ReplayEngine`.

    Attributes:
        waits: whether the agent learns between episodes. Then the program makes no updates, and chooses no
            action after a step in which an episode ended.
    """

    def __init__(self, programs: Programs, adapter: Environments) -> None:
        """Set up the program; the first call compiles it.

        Args:
            programs: those of the run; several seeds have vmapped ones.
            adapter: the environments, which are stepped in a thread of XLA.
        """
        self.adapter = adapter
        self.stopped: Callable[[], bool] = lambda: False
        self.waits = programs.agent.schedule.learns_between_episodes
        self.end = 0.0  # the time at which the program returns
        self.episodes: list[Episode] = []  # the episodes that ended in the last step
        self.error: BaseException | None = None
        seen = adapter.observation  # images of dqn are bytes
        answer = (
            jax.ShapeDtypeStruct((2, *seen.shape), seen.dtype),
            jax.ShapeDtypeStruct((PROCEED + 1, *seen.shape[:-1]), np.float32),
        )
        ask = call_environments(self._answer, answer)
        self.program = jax.jit(_program(programs, ask, self.waits), donate_argnums=0)

    def __call__(
        self,
        carry: Carry,
        updates: Int[np.ndarray, " MOST"],
        steps: int,
        env_steps: int,
        key: Key,
        stopped: Callable[[], bool],
    ) -> tuple[Carry, int]:
        """Run cycles; return after `steps`, at an episode's end, for a stop, or if the environment raises.

        Args:
            carry: the carry, with a chosen action; its buffers are donated.
            updates: how many updates follow each step.
            steps: the most steps to make, of all environments side by side; at most `MOST`.
            env_steps: environment steps made so far.
            key: the run's key.
            stopped: asked after every step, in a thread of XLA: shall the program return?

        Returns:
            The carry after the last step, and how many steps were made. It has a chosen action, unless the
            driver waits and an episode ended.
        """
        self.end, self.stopped = time.perf_counter() + SLICE, stopped
        carry, made = self.program(carry, updates, np.int32(steps), np.int32(env_steps), key)
        jax.block_until_ready(made)  # it waits without the interpreter's lock, which the environments need
        return carry, int(made)

    def finished(self) -> list[Episode]:
        """Return the episodes that ended in the last step. Call it after every call of the driver.

        Raises:
            RunError: the environment failed after the steps that were made. SystemExit and KeyboardInterrupt:
                it raised them.
        """
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.episodes

    def _answer(self, seen: np.ndarray, numbers: np.ndarray, action: np.ndarray) -> None:
        """Step the environments and write their answer.

        An exception must not propagate through the program. It is stored, and `finished` raises it.

        Args:
            seen: [2, E, S], takes the true successors and the observations to act on next.
            numbers: [6, E], takes what `REWARD` to `PROCEED` name.
            action: [E, A]. Of several seeds, all three have another axis before E.
        """
        try:
            step = self.adapter.step(action)
        except BaseException as error:
            self.error = error
            seen[...], numbers[...] = self.adapter.observation, 0.0
            return
        self.episodes = step.finished
        new = step.transition
        seen[0], seen[1] = new.next_observation, step.observation
        numbers[REWARD], numbers[TERMINATED], numbers[TRUNCATED] = new.reward, new.terminated, new.truncated
        numbers[VALID] = 1.0
        numbers[ENDED] = bool(step.finished)
        numbers[PROCEED] = not (step.finished or self.stopped() or time.perf_counter() > self.end)


def _program(
    programs: Programs, ask: Callable[[Array], Any], waits: bool
) -> Callable[..., tuple[Carry, Array]]:
    """Return the function to compile: a while_loop over cycles that asks the environments at each step."""
    agent, layout, over_seeds = programs.agent, programs.layout, programs.map
    insert = over_seeds(partial(cycle.insert, agent, layout), 0, 0)
    learn = over_seeds(partial(cycle.learn, agent, layout), None, None, 0)
    choose = over_seeds(partial(cycle.choose, agent), None, 0)

    def program(
        carry: Carry, updates: Int[Array, " MOST"], steps: Int[Array, ""], env_steps: Int[Array, ""], key: Key
    ) -> tuple[Carry, Array]:
        def step(now: tuple[Carry, Array, Array]) -> tuple[Carry, Array, Array]:
            carry, made, _ = now
            (after, observation), answer = ask(carry.action)
            reward, (terminated, truncated, valid, ended, proceed) = answer[REWARD], answer[TERMINATED:] > 0
            ends = terminated, truncated
            new = Transition(carry.observation, carry.action, reward, *ends, after, valid, carry.columns)
            carry = insert(carry, new, observation)
            answered = valid.ravel()[0]  # the environments did not fail
            count = jnp.where(answered, updates[made], 0)
            made += answered
            now_steps = env_steps + layout.envs * made
            if waits:
                carry = _unless(ended.ravel()[0], choose(carry, now_steps, key), carry)
            else:
                # As in the host loop, the state's `env_steps` changes only with an update.
                counted = jnp.where(count > 0, now_steps, carry.state.env_steps)
                carry = choose(learn(carry, count, counted, key), now_steps, key)
            return carry, made, proceed.ravel()[0] & (made < steps)

        begin = carry, jnp.int32(0), jnp.array(True)
        return jax.lax.while_loop(lambda now: now[2], step, begin)[:2]

    return program


def _unless(condition: Array, new: Carry, old: Carry) -> Carry:
    """Return the new carry, or the old one where the condition holds; leaves that both share are passed."""
    return jax.tree.map(lambda n, o: n if n is o else jnp.where(condition, o, n), new, old)
