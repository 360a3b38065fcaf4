"""Training on environments in JAX: steps, replay, updates and episode statistics in one compiled program.

The host calls the program for a chunk of steps. A chunk ends where an evaluation, a log line, a save or the
end of the run is due, and after about half a second, so that a request to stop is seen in time. Its length is
an argument of the program: n steps in one chunk equal n chunks of one step to the bit.

A schedule that waits for ends of episodes (TD7's checkpoints) decides on the host, by the rule of the host
loop: the program returns after the first step in which an episode ends, and the burst of updates follows.
"""

import functools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qscape.envs import Episode
from qscape.envs.native import JaxEnv
from qscape.envs.snapshot import Snapshot
from qscape.envs.world import EpisodeLog, World, reset_world
from qscape.errors import RunError, UsageError
from qscape.offpolicy.cycle import Carry
from qscape.replay import storage as ring_buffer
from qscape.run import events as ev
from qscape.run import scan, scan_rollouts
from qscape.run.chunks import ChunkLength
from qscape.run.devices import jit_on, make_mesh, place, split_rows
from qscape.run.loop import Loop, copy_buffers
from qscape.run.rollouts import RolloutPrograms, describe_rollouts
from qscape.run.trainer import Trainer
from qscape.types import Key, stream

MOST = 1024  # steps of a chunk
ROOM = 65_536  # episodes that can end in a chunk


class InProgram(Loop):
    """What compiled runs of off-policy and on-policy agents share.

    The adapter has one environment, of which nothing is stepped: it gives the task, the names and the units.

    Attributes:
        env: the environment in JAX.
        world: the states of its E copies; None before the first step, unless restored.
        length: the length of chunks.
    """

    env: JaxEnv
    world: World = None  # type: ignore[assignment]
    length: ChunkLength

    @property
    def envs(self) -> int:
        return self.plan.envs

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        """The devices that the run is split over; None for one device."""
        base = self.agent.base
        if self.plan.devices == 1:
            return None
        if self._waits:
            raise UsageError(
                f"{self.agent.recipe} decides on the host when episodes end, which --devices does not split: "
                "leave checkpoints out, or train on one device."
            )
        return make_mesh(self.plan.devices, self.envs, base.batch_size)

    def _in_program(self) -> str:
        """Return a sentence for the user."""
        where = f", split over {self.plan.devices} devices" if self.plan.devices > 1 else ""
        return f"the whole run in one program: {self.envs} environments in JAX{where}"

    def _jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compile a function for the devices of the run."""
        return jit_on(self._mesh, function, **options)

    def _place(self, tree: Any) -> Any:
        """Copy arrays into buffers of their own on the devices of the run."""
        tree = copy_buffers(tree)
        return tree if self._mesh is None else place(tree, self._mesh)

    @property
    def _waits(self) -> bool:
        """Does the host decide after the next end of an episode?"""
        return False

    def _map(self, function: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        """Map a function over runs; the identity here, `vmap` over seeds where several share a program."""
        return function

    def _begin_world(self, env: JaxEnv, key: Key) -> World:
        return reset_world(env, self.envs, stream(key, "world.begin"))

    def _reset_environments(self) -> None:
        self.world = self._jit(self._map(self._begin_world, (None, 0)))(self.env, self.key)

    def _blank_world(self, counters: dict[str, Any]) -> Any:
        """Return the shapes of the `world` in a save with these counters; None if it has none."""
        return None if counters["fresh"] else jax.eval_shape(self._begin_world, self.env, self.key)

    def _finished(self, log: EpisodeLog, steps_before: int) -> Iterator[ev.EpisodeDone]:
        """Yield the episodes of a chunk; `steps_before`: environment steps made before it.

        Raises:
            RunError: an observation or a reward was NaN or infinite.
        """
        if not log.finite:
            masks = ", or an action mask is all false," if self.adapter.spec.mask else ""
            raise RunError(
                f"{self.adapter.env_id}: an observation or a reward is NaN or infinite{masks} between steps "
                f"{steps_before} and {self.env_steps}: nothing can be learnt from it"
            )
        for step, episode in self._episodes(log):
            self.returns.append(episode.ret)
            yield ev.EpisodeDone(steps_before + (step + 1) * self.envs, *episode)

    def _episodes(self, log: EpisodeLog) -> Iterator[tuple[int, Episode]]:
        """Yield the step of the chunk and the episode, for every episode that ended."""
        reports = self.env.reports_success
        # Cut on the host: on the device every other number of rows would be another program.
        for step, env, length, ret, success in np.asarray(log.rows)[: int(log.ended)].tolist():
            yield int(step), Episode(int(env), int(length), ret, success if reports else None)

    def snapshot(self) -> Snapshot:
        """Return an empty snapshot: the environments' states are arrays of the run."""
        return Snapshot({}, {"world": True})

    def restore_environments(self, saved: Snapshot) -> str:
        return ""

    def on_empty_replay(self) -> list[str]:
        return [*super().on_empty_replay(), "the environments begin new episodes"]


class CompiledTrainer(InProgram, Trainer):
    """A run of an off-policy agent whose whole cycle is one program."""

    def __init__(self, plan: Any, agent: Any, adapter: Any, eval_adapter: Any = None, saver: Any = None):
        self.env = adapter.jax_env
        super().__init__(plan, agent, adapter, eval_adapter, saver)
        self.length = ChunkLength(min(MOST, ROOM // self.envs))
        self._compiled: dict[bool, Callable[..., Any]] = {}

    def _chunk(self, until_end: bool) -> Callable[..., Any]:
        """Return the program of a chunk, which was compiled by an earlier call with the same argument."""
        if until_end not in self._compiled:
            chunk = partial(scan.run_chunk, self.agent, room=max(ROOM, self.envs), until_end=until_end)
            axes = (None, scan.RUN_AXES, 0, None, None, None), (scan.RUN_AXES, None, 0)
            self._compiled[until_end] = self._jit(self._map(chunk, *axes), donate_argnums=1)
        return self._compiled[until_end]

    def _notes(self) -> list[str]:
        return [*super()._notes(), self._in_program()]

    def _reset_environments(self) -> None:
        super()._reset_environments()
        self.carry = self._acted(self.carry)

    def _acted(self, carry: Carry) -> Carry:
        """Return a carry with the arrays that a program needs: observations, actions and their columns."""
        rows = *self.key.shape, self.layout.envs  # with an axis of seeds where several share the program
        columns = {name: jnp.zeros((*rows, *shape)) for name, shape in self.layout.columns}
        carry = carry._replace(
            observation=jnp.copy(self.world.observation),
            first=jnp.asarray(carry.first),
            action=jnp.zeros((*rows, self.layout.action_size)) if carry.action is None else carry.action,
            columns=carry.columns or columns,
        )
        return carry if self._mesh is None else place(carry, self._mesh)

    def _start(self) -> Carry:
        if self._mesh is None:
            return super()._start()
        with jax.set_mesh(self._mesh):  # the memory of all devices counts
            carry = super()._start()
        create = partial(ring_buffer.create, self.layout)
        self._allocate = jax.jit(create, out_shardings=split_rows(self._mesh))
        return carry

    @property
    def _waits(self) -> bool:
        """Does the host decide after the next end of an episode?"""
        base = self.agent.base
        waits = not self.agent.schedule.learns_by_steps
        return waits or (base.warmup_to_episode_end and not self.learning)

    def _prepare(self) -> bool:
        """Make the updates that are due between chunks."""
        if self.pending:
            self._learn_pending()
        return not self.pending

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Make a chunk of steps."""
        base, before, waits = self.agent.base, self.env_steps, self._waits
        left = self._next_due() - before
        if before < base.warmup:
            left = min(left, base.warmup - before)
        steps = min(-(-left // self.envs), self.length.steps)
        counts = np.zeros(MOST, np.int32)
        for k in range(0 if waits else steps):  # a schedule by steps is known before they are made
            self._count(self.envs, [])
            counts[k], self.pending = self.pending, 0
        warmup = base.warmup
        if base.warmup_to_episode_end:
            warmup = 0 if self.learning or self.refill else np.iinfo(np.int32).max
        begun = time.perf_counter()
        run, made, log = self._chunk(until_end=waits)(
            self.env,
            scan.Run(self.carry, self.world),
            self.key,
            counts,
            np.int32(steps),
            np.int32(warmup),
        )
        self.carry, self.world = run
        made = int(made)
        self.length.took(time.perf_counter() - begun, made)
        if before < base.warmup <= before + made * self.envs:
            self.length.restart()
        if waits:
            episodes = [episode for _, episode in self._episodes(log)]
            for k in range(made):
                self._count(self.envs, episodes if k == made - 1 else [])
        else:
            self.updates += int(counts.sum())
        yield from self._finished(log, before)

    # --- saving and resuming ------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        arrays = super().arrays()
        return arrays | {"replay": arrays["replay"] | {"world": self.world}}

    def templates(self, counters: dict[str, Any]) -> dict[str, Any]:
        self.world = self._blank_world(counters)
        return super().templates(counters)

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        super().restore(arrays, counters)
        if "replay" not in arrays:
            self.carry = self.carry._replace(first=np.ones(self.envs, bool), action=None, columns={})
            self._reset_environments()
            return
        self.world = self._place(arrays["replay"]["world"])
        if self._mesh is not None and counters["used_rows"]:
            pieces, split = arrays["replay"]["storage"].pieces(), split_rows(self._mesh)
            self._allocate = lambda: ring_buffer.restored(self.layout, counters["used_rows"], pieces, split)
        if not self.fresh:
            self.carry = self._acted(self.carry)


class CompiledRollouts(InProgram):
    """A run of an on-policy agent: rollouts, advantages and passes in one program.

    Rollouts are always whole, so a run may make a few steps more than it was asked for.

    Attributes:
        rollout: environment steps of a rollout; of a rollout of whole episodes the most steps.
    """

    def __init__(self, plan: Any, agent: Any, adapter: Any, eval_adapter: Any = None, saver: Any = None):
        self.env = adapter.jax_env
        super().__init__(plan, agent, adapter, eval_adapter, saver)
        self.rollout = -(-self.agent.base.rollout // self.envs) * self.envs
        self.length = ChunkLength(min(MOST, ROOM // self.rollout))
        self._start()

    def _start(self) -> None:
        """Make the initial state and the program of a chunk."""
        self.programs = RolloutPrograms(self.agent)
        self.state = self._jit(self._map(partial(self.agent.init, envs=self.envs)))(self.key)
        begin = partial(scan_rollouts.start, self.agent, self.env, envs=self.envs)
        key = jax.random.key(0)
        run = jax.eval_shape(begin, key)
        self.programs.metrics = scan_rollouts.metric_names(self.agent, self.env, run, key)
        self.metrics = jnp.full((*self.key.shape, len(self.programs.metrics)), jnp.nan, jnp.float32)
        chunk = partial(scan_rollouts.run_chunk, self.agent, room=max(ROOM, self.rollout))
        self._chunk = self._jit(self._map(chunk, (None, 0, 0, 0, None, None)), donate_argnums=(1, 2))

    def _notes(self) -> list[str]:
        return [describe_rollouts(self.agent, self.rollout, self.envs), self._in_program()]

    def _prepare(self) -> bool:
        return True

    def _environment_step(self) -> Iterator[ev.RunEvent]:
        """Make a chunk of rollouts, each with its update."""
        before = self.env_steps
        updates = min(-(-(self._next_due() - before) // self.rollout), self.length.steps)
        begun = time.perf_counter()
        run, self.metrics, log = self._chunk(
            self.env,
            scan_rollouts.Run(self.state, self.world),
            self.metrics,
            self.key,
            np.int32(updates),
            np.float32(self.until),
        )
        self.state, self.world = run
        self.env_steps = int(np.max(self.state.env_steps))  # the same for all seeds
        self.updates += updates
        self.length.took(time.perf_counter() - begun, updates)
        yield from self._finished(log, before)

    # --- saving and resuming ------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        loop = {"metrics": self.metrics, "key": self.key}
        return {
            "acting": self.acting,
            "state": self.state,
            "replay": {"world": self.world},
            "loop": loop,
        }

    def templates(self, counters: dict[str, Any]) -> dict[str, Any]:
        self.world = self._blank_world(counters)
        return self.arrays()

    def restore(self, arrays: dict[str, Any], counters: dict[str, Any]) -> None:
        self.agent.check_part_states(arrays["state"].part_states)
        kept = ("state", "replay", "loop")
        arrays = self._place({name: tree for name, tree in arrays.items() if name in kept})
        self.state, self.metrics = arrays["state"], arrays["loop"]["metrics"]
        if "replay" in arrays:
            self.world = arrays["replay"]["world"]
        else:
            self._reset_environments()
        super().restore(arrays, counters)
