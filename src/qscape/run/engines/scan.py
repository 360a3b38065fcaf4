"""Environments in JAX: steps, learning and episode statistics in one compiled program.

The host calls the program for a chunk of steps, or of rollouts. A chunk ends where an evaluation, a log line,
a save or the end of the run is due, and after about half a second, so that a request to stop is seen in time.
Its length is an argument of the program: n steps in one chunk equal n chunks of one step to the bit.

A schedule that waits for ends of episodes (TD7's checkpoints) decides on the host, by the rule of the host
loop: the program returns after the first step in which an episode ends, and the burst of updates follows.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qscape.envs import EnvAdapter, Episode
from qscape.envs.native import JaxEnv
from qscape.envs.snapshot import Snapshot
from qscape.envs.world import EpisodeLog, World, reset_world
from qscape.errors import NotFinite, UnfitAgent
from qscape.offpolicy.agent import Agent
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.run import scan, scan_rollouts
from qscape.run.chunks import ChunkLength
from qscape.run.devices import jit_on, make_mesh, place
from qscape.run.engines.base import EndedEpisode, Limit, Progress, SavedSeed, copy_buffers
from qscape.run.engines.replay import ReplayLearner
from qscape.run.engines.rollout import RolloutLearner, describe_rollouts
from qscape.run.plan import Plan
from qscape.run.processes import first_of, gather
from qscape.run.seeds import Seeds
from qscape.types import Key, stream

MOST = 1024  # steps of a chunk
ROOM = 65_536  # episodes that can end in a chunk
AFRESH = "the environments begin new episodes"


class Worlds:
    """The environments in JAX of a run, of one seed or of several, on one device or split over several.

    The adapter has one environment, of which nothing is stepped: it gives the task, the names and the units.

    Attributes:
        env: the environment.
        envs: E, the number of its copies in each seed.
        seeds: the axis of seeds.
        mesh: the devices that the run is split over; None: one device.
        now: the states of the copies; None before the first step, unless restored.
    """

    now: World = None  # type: ignore[assignment]

    def __init__(self, plan: Plan, adapter: EnvAdapter, seeds: Seeds, mesh: Mesh | None) -> None:
        assert adapter.jax_env is not None
        self.env: JaxEnv = adapter.jax_env
        self.plan, self.adapter, self.envs, self.seeds, self.mesh = plan, adapter, plan.envs, seeds, mesh

    def describe(self) -> str:
        """Return a sentence for the user."""
        where = f", split over {self.mesh.size} devices" if self.mesh is not None else ""
        if jax.process_count() > 1:
            where += f" of {jax.process_count()} processes"
        return f"the whole run in one program: {self.envs} environments in JAX{where}"

    def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compile a function for the devices of the run."""
        return jit_on(self.mesh, function, **options)

    def place(self, tree: Any) -> Any:
        """Copy arrays into buffers of their own on the devices of the run."""
        tree = copy_buffers(tree)
        return tree if self.mesh is None else place(tree, self.mesh)

    def _begin(self, env: JaxEnv, key: Key) -> World:
        return reset_world(env, self.envs, stream(key, "world.begin"))

    def start(self) -> None:
        """Begin an episode in every copy."""
        self.now = self.jit(self.seeds.map(self._begin, (None, 0)))(self.env, self.seeds.key)

    def begin_again(self) -> None:
        """Do nothing: a step in the program raises no error."""

    def template(self, counters: Mapping[str, Any]) -> Any:
        """Return the shapes of a seed's copies in a save with these counters; None if it has none."""
        key = self.seeds.take(self.seeds.key, 0)
        return None if counters["fresh"] else jax.eval_shape(self._begin, self.env, key)

    def save(self, seed: int, arrays: Mapping[str, Any], counters: Mapping[str, Any]) -> SavedSeed:
        """Return the content of a save with these arrays, and the states of a seed's copies among them."""
        replay = {**arrays["replay"], "world": gather(self.seeds.take(self.now, seed))}
        return SavedSeed({**arrays, "replay": replay}, counters, Snapshot({}, {"world": True}))

    def restore(self, saves: Sequence[SavedSeed]) -> None:
        """Continue from a save of each seed."""
        self.now = self.place(self.seeds.join([save.arrays["replay"]["world"] for save in saves]))

    def read_log(self, log: EpisodeLog, before: int, after: int) -> Progress:
        """Return the ends of episodes in a chunk that began and ended at these environment steps.

        Raises:
            RunError: an observation or a reward was NaN or infinite.
        """
        log = jax.tree.map(np.asarray, log)
        ended = []
        for k in range(len(self.seeds)):
            of_seed = self.seeds.take(log, k)
            if not of_seed.finite:
                masks = ", or an action mask is all false," if self.adapter.spec.mask else ""
                raise NotFinite(
                    f"{self.adapter.env_id}: an observation or a reward is NaN or infinite{masks} between "
                    f"steps {before} and {after}: nothing can be learnt from it"
                )
            ended += [
                EndedEpisode(k, before + (step + 1) * self.envs, one) for step, one in self.episodes(of_seed)
            ]
        return Progress(ended)

    def episodes(self, log: EpisodeLog) -> Iterator[tuple[int, Episode]]:
        """Yield the step of the chunk and the episode, for every episode of one seed that ended."""
        reports = self.env.reports_success
        # Cut on the host: on the device every other number of rows would be another program.
        for step, env, length, ret, success in np.asarray(log.rows)[: int(log.ended)].tolist():
            yield int(step), Episode(int(env), int(length), ret, success if reports else None)


def _mesh(plan: Plan, agent: Agent | OnPolicyAgent, waits: bool) -> Mesh | None:
    """Return the devices that a run is split over; None for one device."""
    count = plan.devices * jax.process_count()
    if count == 1:
        return None
    if waits:
        flag = "--devices" if plan.devices > 1 else "--processes"
        raise UnfitAgent(
            f"{agent.recipe} decides on the host when episodes end, which {flag} does not split: "
            "leave checkpoints out, or train on one device.",
            field=flag.removeprefix("--"),
        )
    return make_mesh(count, plan.envs, agent.base.batch_size)


class ReplayScan:
    """Off-policy runs whose whole cycle is one program.

    Attributes:
        learner: networks, replay and updates.
        envs: E, the number of environments side by side, in each seed.
        worlds: the environments.
        length: the length of chunks.
    """

    def __init__(self, plans: Sequence[Plan], agent: Agent, adapters: Sequence[EnvAdapter]) -> None:
        """Set up a run before its first step; the plans differ in their seed only."""
        plan, adapter = plans[0], adapters[0]
        self.plan, self.envs, self.seeds = plan, plan.envs, Seeds([plan.seed for plan in plans])
        base = agent.base
        waits = not agent.schedule.learns_by_steps or (base.warmup_to_episode_end and base.warmup > 0)
        mesh = _mesh(plan, agent, waits)
        self.worlds = Worlds(plan, adapter, self.seeds, mesh)
        self.learner = ReplayLearner(agent, adapter.spec, self.envs, self.seeds, mesh, plan.save_shards)
        self.length = ChunkLength(min(MOST, ROOM // self.envs))
        self._compiled: dict[bool, Callable[..., Any]] = {}

    @property
    def ready(self) -> bool:
        return not self.learner.pending

    def notes(self, saves: bool) -> list[str]:
        return [*self.learner.notes(self.plan, saves), self.worlds.describe()]

    def start(self) -> None:
        self.worlds.start()
        self._begin_acting()

    def _begin_acting(self) -> None:
        """Give the carry what a program needs: observations, actions and their columns."""
        layout, carry, mesh = self.learner.layout, self.learner.carry, self.worlds.mesh
        rows = *self.seeds.shape, layout.envs
        columns = {name: jnp.zeros((*rows, *shape)) for name, shape in layout.columns}
        carry = carry._replace(
            observation=jnp.copy(self.worlds.now.observation),
            first=jnp.asarray(carry.first),
            action=jnp.zeros((*rows, layout.action_size)) if carry.action is None else carry.action,
            columns=carry.columns or columns,
        )
        self.learner.carry = carry if mesh is None else place(carry, mesh)

    def _chunk(self, until_end: bool) -> Callable[..., Any]:
        """Return the program of a chunk, which was compiled by an earlier call with the same argument."""
        if until_end not in self._compiled:
            room = max(ROOM, self.envs)
            chunk = partial(scan.run_chunk, self.learner.agent, room=room, until_end=until_end)
            axes = (None, scan.RUN_AXES, 0, None, None, None), (scan.RUN_AXES, None, 0)
            self._compiled[until_end] = self.worlds.jit(self.seeds.map(chunk, *axes), donate_argnums=1)
        return self._compiled[until_end]

    @property
    def _waits(self) -> bool:
        """Does the host decide after the next end of an episode?"""
        agent = self.learner.agent
        waits = not agent.schedule.learns_by_steps
        return waits or (agent.base.warmup_to_episode_end and not self.learner.learning)

    def advance(self, limit: Limit) -> Progress:
        """Make a chunk of steps, or the updates that are due between chunks."""
        learner, waits = self.learner, self._waits
        if learner.pending:
            learner.learn_pending()
            return Progress()
        _ = learner.storage  # allocated now
        base, before = learner.agent.base, learner.env_steps
        left = limit.step - before
        if before < base.warmup:
            left = min(left, base.warmup - before)
        steps = min(-(-left // self.envs), self.length.steps)
        counts = np.zeros(MOST, np.int32)
        for k in range(0 if waits else steps):  # a schedule by steps is known before they are made
            learner.count(self.envs, [])
            counts[k], learner.pending = learner.pending, 0
        warmup = base.warmup
        if base.warmup_to_episode_end:
            warmup = 0 if learner.learning or learner.refill else np.iinfo(np.int32).max
        begun = time.perf_counter()
        run, made, log = self._chunk(until_end=waits)(
            self.worlds.env,
            scan.ReplayRun(learner.carry, self.worlds.now),
            self.seeds.key,
            counts,
            np.int32(steps),
            np.int32(warmup),
        )
        learner.carry, self.worlds.now = run
        made = int(made)
        self.length.took(first_of(time.perf_counter() - begun), made)
        if before < base.warmup <= before + made * self.envs:
            self.length.restart()
        if waits:
            episodes = [episode for _, episode in self.worlds.episodes(log)]
            for k in range(made):
                learner.count(self.envs, episodes if k == made - 1 else [])
        else:
            learner.updates += int(counts.sum())
        return self.worlds.read_log(log, before, learner.env_steps)

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        return self.learner.counters(seed)

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        templates = self.learner.templates(counters)
        return templates | {"replay": templates["replay"] | {"world": self.worlds.template(counters)}}

    def save(self, seed: int = 0) -> SavedSeed:
        return self.worlds.save(seed, self.learner.arrays(seed), self.counters(seed))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        self.learner.restore(saves)
        if "replay" not in saves[0].arrays:
            first = np.ones((*self.seeds.shape, self.envs), bool)
            none: Any = None
            self.learner.carry = self.learner.carry._replace(first=first, action=none, columns={})
            self.start()
            return [*self.learner.empty_replay(), AFRESH]
        self.worlds.restore(saves)
        if not saves[0].counters["fresh"]:
            self._begin_acting()
        return []


class RolloutScan:
    """On-policy runs: rollouts, advantages and passes in one program.

    Rollouts are always whole, so a run may make a few steps more than it was asked for.

    Attributes:
        learner: networks and updates.
        envs: E, the number of environments side by side, in each seed.
        worlds: the environments.
        rollout: environment steps of a rollout; of a rollout of whole episodes the most steps.
        length: the length of chunks, in rollouts.
    """

    def __init__(self, plans: Sequence[Plan], agent: OnPolicyAgent, adapters: Sequence[EnvAdapter]) -> None:
        """Set up a run before its first step; the plans differ in their seed only."""
        plan, adapter = plans[0], adapters[0]
        self.plan, self.envs, self.seeds = plan, plan.envs, Seeds([plan.seed for plan in plans])
        bound = agent.on(adapter.spec)
        self.worlds = Worlds(plan, adapter, self.seeds, _mesh(plan, bound, waits=False))
        self.rollout = -(-bound.base.rollout // self.envs) * self.envs
        self.length = ChunkLength(min(MOST, ROOM // self.rollout))
        state = self.worlds.jit(self.seeds.map(partial(bound.init, envs=self.envs)))(self.seeds.key)
        self.learner = RolloutLearner(bound, self.seeds, state)
        programs, env = self.learner.programs, self.worlds.env
        key = jax.random.key(0)
        run = jax.eval_shape(partial(scan_rollouts.start, bound, env, envs=self.envs), key)
        programs.metrics = scan_rollouts.metric_names(bound, env, run, key)
        self.learner.values = self.seeds.tile(jnp.full(len(programs.metrics), jnp.nan, jnp.float32))
        chunk = partial(scan_rollouts.run_chunk, bound, room=max(ROOM, self.rollout))
        mapped = self.seeds.map(chunk, (None, 0, 0, 0, None, None))
        self._chunk = self.worlds.jit(mapped, donate_argnums=(1, 2))

    @property
    def ready(self) -> bool:
        return True

    def notes(self, saves: bool) -> list[str]:
        return [describe_rollouts(self.learner.agent, self.rollout, self.envs), self.worlds.describe()]

    def start(self) -> None:
        self.worlds.start()

    def advance(self, limit: Limit) -> Progress:
        """Make a chunk of rollouts, each with its update."""
        learner, before = self.learner, self.learner.env_steps
        updates = min(-(-(limit.step - before) // self.rollout), self.length.steps)
        begun = time.perf_counter()
        run, learner.values, log = self._chunk(
            self.worlds.env,
            scan_rollouts.RolloutRun(learner.state, self.worlds.now),
            learner.values,
            self.seeds.key,
            np.int32(updates),
            np.float32(limit.total),
        )
        learner.state, self.worlds.now = run
        learner.env_steps = int(np.max(learner.state.env_steps))  # the same for all seeds
        learner.updates += updates
        self.length.took(first_of(time.perf_counter() - begun), updates)
        return self.worlds.read_log(log, before, learner.env_steps)

    # --- saving and resuming ------------------------------------------------------------------------

    def counters(self, seed: int = 0) -> dict[str, Any]:
        return {}

    def templates(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        return self.learner.arrays() | {"replay": {"world": self.worlds.template(counters)}}

    def save(self, seed: int = 0) -> SavedSeed:
        return self.worlds.save(seed, self.learner.arrays(seed), self.counters(seed))

    def restore(self, saves: Sequence[SavedSeed]) -> list[str]:
        self.learner.restore(saves)
        self.learner.state, self.learner.values = self.worlds.place((self.learner.state, self.learner.values))
        if "replay" not in saves[0].arrays:
            self.start()
            return [AFRESH]
        self.worlds.restore(saves)
        return []
