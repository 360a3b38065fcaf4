"""The contract of parts: checks that every agent of a table goes through.

A test module that has a TABLE of rows, QUICK_ROWS, AGAIN and ROOM, the package whose parts they are about,
imports the checks from here: `test_contract` for the core, `contrib/test_contract` for `qscape.contrib`.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rows import slow_except
from small import fill, fusion_emitters, make_spec, same, transitions

from qscape import agents
from qscape.methods.resets import Resets
from qscape.nets.batch_norm import split_statistics
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.cycle import Carry
from qscape.offpolicy.sockets import EpisodeEnd, StepEnd
from qscape.offpolicy.state import State
from qscape.run import saves
from qscape.run.programs import Programs

UPDATES, SYNC = 6, 4
WIDTH, CAPACITY = 8, 1024
FRAME = (2, 2)  # of the rows on images, whose observations are four pixels and one number
# Half the time to compile, and the same HLO: only the machine code made of it is less good.
SAME_HLO = {"xla_backend_optimization_level": 0}
QUICK = SAME_HLO | fusion_emitters(False)  # a third of the time
# Settings by part that make it small.
SMALL: dict[str, dict[str, Any]] = {
    "base": {"batch_size": WIDTH, "replay_capacity": CAPACITY, "sync_every": SYNC}
    | {f"{net}_hidden": (WIDTH, WIDTH) for net in ("actor", "critic")},
    "sale": {"width": WIDTH, "hidden": (WIDTH,)},
    "savgo": {"candidates": 4, "embedding": WIDTH, "hidden": (WIDTH,)},
    "conv": {"channels": 4, "kernel": 2, "strides": (1,), "width": WIDTH, "shift": 1},
}


def make(recipe: str, settings: dict[str, Any]) -> Agent:
    """The agent of a row, small and synchronising often."""
    agent = unbound(recipe, settings)
    frame = FRAME if agent.representation.name == "conv" else None
    return agent.on(make_spec(agent, time_limit=100, frame=frame))


def unbound(recipe: str, settings: dict[str, Any]) -> Agent:
    """The agent of a row before it is bound to its task."""
    agent = agents.build(recipe)
    small = {name: dict(own) for name, own in SMALL.items() if name in ("base", *agent.parts)}
    if agent.base.policy_delay > UPDATES:
        small["base"]["policy_delay"] = 2
    merged = {name: small.get(name, {}) | settings.get(name, {}) for name in small | settings}
    return agents.build(recipe, merged)


FILLED: dict[tuple, Any] = {}


def memory(agent: Agent, seed: int = 0) -> tuple[jax.Array, Any]:
    """A filled replay; filling it is compiled once for all rows that share it."""
    kind = (agent.replay, agent.scaling, agent.layout(1), seed)
    if kind not in FILLED:
        FILLED[kind] = fill(agent, *transitions(seed, agent.task.choices))
    return FILLED[kind]


def numpy(tree: Any) -> Any:
    """The tree on the host, in buffers of its own (the originals are donated)."""
    return jax.tree.map(np.array, tree)


def device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)


@contextlib.contextmanager
def watched():
    """Counts, while they run, the keys drawn from and the keys folded in programs traced in here."""
    drawn, folded = Counter(), Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal", "uniform", "randint", "split", "bernoulli", "rademacher", "choice", "fold_in"):
            original, seen = getattr(jax.random, name), folded if name == "fold_in" else drawn

            def watch(key, *args, original=original, seen=seen, **kwargs):
                jax.debug.callback(lambda data: seen.update([tuple(data.tolist())]), jax.random.key_data(key))
                return original(key, *args, **kwargs)

            patch.setattr(jax.random, name, watch)
        yield drawn, folded


class Case(NamedTuple):
    """A row of the table that made its updates."""

    agent: Agent
    go: Any  # one update and the next action: (carry, number) -> carry
    history: list[Carry]  # before the first update and after each, without the storage
    storage: jax.Array
    key: jax.Array
    actions: list[np.ndarray]
    drawn: Counter
    folded: Counter

    @property
    def states(self) -> list[State]:
        """The state before the first update and after each."""
        return [carry.state for carry in self.history]


def seen(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The observation acted on after an update; none is the first of its episode."""
    return np.asarray(transitions(1)[0].obs[number : number + 1]), np.zeros(1, bool)


def fresh(agent: Agent, seed: int = 0) -> tuple[Programs, Carry, jax.Array]:
    """The programs of an agent, a carry with a filled replay, and the run's key."""
    layout = agent.layout(1)
    programs = Programs(agent, layout)
    rows, index = memory(agent, seed)
    state, key = agent.init(jax.random.key(seed)), jax.random.key(seed + 1)
    observation, first = seen(0)
    carry = Carry(
        state=state,
        storage=rows,
        replay_state=device(index),
        noise_state=agent.selector.init_noise(agent.task, 1, agent.base),
        metrics=jnp.full(len(programs.metrics), jnp.nan),
        observation=observation,
        first=first,
        action=np.zeros((1, agent.task.action_size), np.float32),
        columns={name: np.zeros((1, *shape), np.float32) for name, shape in layout.columns},
    )
    return programs, carry, key


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the checks the rows of the table of the module that they run in."""
    module = metafunc.module
    if "case" in metafunc.fixturenames:
        rows = slow_except(module.QUICK_ROWS, module.TABLE, module.AGAIN)
        metafunc.parametrize("case", rows, indirect=True, scope="module")
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", module.TABLE.values(), ids=module.TABLE)


@pytest.fixture(scope="module")
def case(request) -> Case:
    agent = make(*request.module.TABLE[request.param])
    programs, carry, key = fresh(agent)
    one = np.int32(1)
    with watched() as (drawn, folded):
        lowered = programs.step.compiled.lower(*programs.step.arguments(carry, one, np.int32(0), key))
        step = lowered.compile(compiler_options=QUICK)

    def go(carry: Carry, number: int) -> Carry:
        observation, first = seen(number)
        carry = carry._replace(observation=observation, first=first)
        changed = step(*programs.step.arguments(carry, one, np.int32(number), key))
        return carry._replace(**dict(zip(programs.step.changes, changed, strict=True)))

    history, actions = [kept(carry)], []
    for number in range(UPDATES):
        carry = go(carry, number)
        history.append(kept(carry))
        actions.append(np.array(carry.action))
    jax.effects_barrier()
    return Case(agent, go, history, carry.storage, key, actions, +drawn, +folded)


def kept(carry: Carry) -> Carry:
    """The carry as numpy arrays, without the storage."""
    return numpy(carry._replace(storage=None))


def test_every_number_is_finite(case):
    # Before the first update a least and a greatest number so far are ∞ and −∞.
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(case.states[0]))
    for leaf in jax.tree.leaves(
        (
            case.states[1:],
            [c.replay_state for c in case.history],
            case.history[-1].noise_state,
            case.history[-1].metrics,
            case.actions,
        )
    ):
        assert np.isfinite(leaf).all()
    task = case.agent.task
    assert all(action.shape == (1, task.action_size) for action in case.actions)
    if task.choices is None:
        assert np.abs(case.actions).max() <= 1.0
    else:
        assert np.isin(case.actions, task.action_rows).all()
    assert case.states[-1].updates == UPDATES
    types = {leaf.dtype for leaf in jax.tree.leaves([(c.state, c.replay_state) for c in case.history])}
    assert types <= {np.dtype("float32"), np.dtype("int32")}


def test_no_random_key_is_used_twice(case):
    """Over updates and actions: each key is drawn from once, and none that is drawn from makes others."""
    assert len(case.drawn) >= UPDATES
    assert max(case.drawn.values()) == 1
    assert not case.drawn.keys() & case.folded.keys()


def test_only_what_may_move_moves(case):
    """Each network, its optimiser and all that a part carries move when their turn is, and only then."""
    base, follow = case.agent.base, case.agent.target_update
    for number, (old, new) in enumerate(zip(case.states[:-1], case.states[1:], strict=True), 1):
        climbs = (number - base.policy_phase) % base.policy_delay == 0
        syncs = number % base.sync_every == 0
        follows = syncs if follow.name == "periodic" else climbs or follow.when == "always"
        due = {"critics": True, "actor": climbs, "critics_target": follows, "actor_target": follows}
        if jax.tree.leaves(split_statistics(old.critics_target)[1]):
            due["critics_target"] = True  # running statistics are copied at every update
        if not case.agent.network.keeps_target_critics:
            due["critics_target"] = False
        if case.agent.network.refreshes_actor == "always":
            due["actor"] = True
        due |= {
            f"optimisers.{name}": climbs or not name.endswith(("actor", "actor_params"))
            for name in old.optimisers
        }
        due |= {
            f"part_states.{name}.params": True
            for name, own in old.part_states.items()
            if own.params is not None
        }
        due |= {
            f"part_states.{name}.actor_params": climbs
            for name, own in old.part_states.items()
            if own.actor_params is not None
        }
        if not base.target_actor:
            del due["actor_target"]
        if old.actor is None:
            del due["actor"]
        if isinstance(case.agent.reset, Resets) and number == case.agent.reset.every + 1:
            due = {name: due[name] or bool(jax.tree.leaves(pick(old, name))) for name in due}
        moved = {name: not same(*(pick(state, name) for state in (old, new))) for name in due}
        assert moved == due, f"at update {number}"
        assert_slow_copies(old, new, syncs)


def pick(state: State, name: str) -> Any:
    """What stands in the state under a dotted name (of optimisers and parts: with dots of their own)."""
    field, _, rest = name.partition(".")
    if field == "part_states":
        part, _, kind = rest.rpartition(".")
        return getattr(state.part_states[part], kind)
    return getattr(state, field)[rest] if rest else getattr(state, field)


def sale_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    (*was, saw), (*now, seen) = was, now
    online = dataclasses.replace(new.part_states["sale"].params, seen=seen)
    assert same(now, [online, was[0]] if syncs else was)
    assert seen is None or not same(saw, seen)


def value_clip_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert now.run_min <= was.run_min
    assert now.run_max >= was.run_max
    assert (now.low, now.high) == ((now.run_min, now.run_max) if syncs else (was.low, was.high))


def asap_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    assert_follows(was, now, type(was)(new.actor, new.part_states["asap"].actor_params), 0.01)


def savgo_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    learned = new.part_states["savgo"].params
    assert_follows(was.encoder, now.encoder, was.encoder if learned is None else learned)
    assert (learned is None) == same(now.scale, was.scale)


def normalise_moves(was: Any, now: Any, new: State, syncs: bool) -> None:
    np.testing.assert_allclose(now.seen, was.seen + 1)


# By part, how its `extra` moves in an update: (before, after, the state after, are networks synchronised?).
RULES: dict[str, Callable[[Any, Any, State, bool], None]] = {
    "sale": sale_moves,
    "value_clip": value_clip_moves,
    "asap": asap_moves,
    "savgo": savgo_moves,
    "normalise": normalise_moves,
}


def assert_follows(was: Any, now: Any, learned: Any, rate: float = 0.005) -> None:
    """Assert that a slow copy moved by a share of the way to what it copies."""
    slow = optax.incremental_update(learned, was, rate)
    for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def assert_slow_copies(old: State, new: State, syncs: bool) -> None:
    """Assert that what parts carry in `extra` moves by its own rule."""
    rests = {name: own.extra for name, own in old.part_states.items() if own.extra is not None}
    assert rests.keys() <= RULES.keys(), f"say by which rule these move: {rests.keys() - RULES.keys()}"
    for name, was in rests.items():
        RULES[name](was, new.part_states[name].extra, new, syncs)


def test_a_save_goes_on_to_the_bit(case, tmp_path):
    carry = case.history[-2]
    trees = {
        "state": carry.state,
        "replay_state": carry.replay_state,
        "acting": case.agent.acting(carry.state),
    }
    saves.write(tmp_path, "5", device(trees), {})
    likes = jax.eval_shape(lambda: device(trees))
    back, _ = saves.read(tmp_path / "5", likes)
    assert jax.tree.structure(back) == jax.tree.structure(trees)
    assert same(back, trees)
    acting = back.pop("acting")
    assert same(acting, case.agent.acting(carry.state))
    carry = case.go(device(carry._replace(**back))._replace(storage=case.storage), UPDATES - 1)
    assert same((carry.state, carry.replay_state), (case.states[-1], case.history[-1].replay_state))
    assert same(carry.action, case.actions[-1])


def test_schedules_speak_json(row):
    agent = make(*row)
    own, asked = agent.schedule.start(), 0
    for t in range(1, 41):
        for event in (StepEnd(2), *([EpisodeEnd(10, -float(t), asked)] if t % 5 == 0 else [])):
            own, updates, keep = agent.schedule.updates_due(json.loads(json.dumps(own)), event, agent.base)
            assert type(updates) is int
            assert updates >= 0
            assert not keep or agent.schedule.keeps_best_policy
            asked += updates
    assert 40 <= asked / agent.base.updates_per_step <= 80


def close(x: Any, y: Any) -> None:
    """Equal but for rounding, which Adam's first steps turn into a few percent of a step of 3e-4."""
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def assert_equal_ends(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    """Assert that two rows end alike but for the rounding of a program that XLA fuses otherwise."""
    ends = []
    for row in (one, other):
        agent = make(*row)
        rows, index = memory(agent)
        state, key = agent.init(jax.random.key(0)), jax.random.key(1)
        program = jax.jit(lambda *args, agent=agent: agent.update(agent.layout(1), *args)[:2])
        program = program.lower(state, rows, index, key).compile(compiler_options=QUICK)
        for _ in range(SYNC):
            state, index = program(state, rows, index, key)
        targets = state.critics_target or state.critics
        ends.append((state.actor, state.actor_target, state.critics, targets, index))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), *ends)


def is_in(part: Any, room: str) -> bool:
    """Return whether the class of a part is below a package."""
    return type(part).__module__.startswith(f"{room}.")


def test_every_part_has_a_quick_row(request):
    table = request.module.TABLE
    parts = {name for row in request.module.QUICK_ROWS for name in make(*table[row]).parts}
    assert parts >= {
        name
        for row in table.values()
        for name, part in make(*row).parts.items()
        if is_in(part, request.module.ROOM)
    }


def test_the_table_holds_every_choice(request):
    """Every option of every field that offers options stands in some row, and every part in two."""
    tried: dict[tuple[type, str], set] = {}
    for row in request.module.TABLE.values():
        agent = unbound(*row)
        for part in filter(partial(is_in, room=request.module.ROOM), (agent.base, *agent.parts.values())):
            for field in dataclasses.fields(part):
                tried.setdefault((type(part), field.name), set()).add(getattr(part, field.name))
    missing = {}
    for (kind, field), values in tried.items():
        hint = get_type_hints(kind)[field]
        options = {True, False} if hint is bool else set()
        if str(get_origin(hint)) == "typing.Literal":
            options = set(get_args(hint))
        if type(None) in get_args(hint):
            options, values = {True, False}, {value is None for value in values}
        if options - values:
            missing[f"{kind.__name__}.{field}"] = options - values
    assert missing == {}
