"""Memory and uniform replay against plain Python lists."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qscape.errors import RunError, UsageError
from qscape.replay import Layout, ReplayState, Uniform, rows_at, storage
from qscape.replay.storage import OBSERVATIONS
from qscape.types import Event, Transition

S, A = 2, 3
COLUMNS = (("zeta", (2, 2)), ("alpha", ()))  # not in sorted order on purpose


def make_layout(envs: int, ring: int, *, stores_next: bool, columns=COLUMNS) -> Layout:
    return Layout(S, A, columns, stores_next, envs, envs * ring)


@dataclasses.dataclass(frozen=True)
class Step:
    id: float  # differs for every transition of every environment
    reward: float
    terminated: bool
    truncated: bool

    @property
    def ends(self) -> bool:
        return self.terminated or self.truncated


class Reference:
    """One environment's whole history as a list, and which transition each slot of its ring holds."""

    def __init__(self, env: int, ring: int, stores_next: bool, rng: np.random.Generator):
        self.history: list[Step] = []
        self.slots: list[int | None] = [None] * ring
        self.position, self.stores_next, self.rng, self.env = 0, stores_next, rng, env
        self.left = 1
        self.idle = False

    def step(self) -> Step | None:
        """The next step; sometimes None (an idle step), but only between two episodes."""
        if self.idle:
            self.idle = False
            return None
        self.left -= 1
        ends = self.left == 0
        terminated = ends and bool(self.rng.integers(2))
        if ends:
            self.left = int(self.rng.choice([1, 2, 3, 7]))
            self.idle = bool(self.rng.integers(2))
        new = Step(
            1000.0 * (self.env + 1) + len(self.history),
            float(self.rng.integers(-4, 5)),
            terminated,
            ends and not terminated,
        )
        self.slots[self.position] = len(self.history)
        self.history.append(new)
        following = (self.position + 1) % len(self.slots)
        if not self.stores_next:
            self.slots[following] = None
        self.position = (following + (ends and not self.stores_next)) % len(self.slots)
        return new

    def batch(self, t: int, n: int, discount: float) -> dict[str, float]:
        """What replay must say of transition t."""
        reward, k = 0.0, 0
        while True:
            last = self.history[t + k]
            reward += discount**k * last.reward
            k += 1
            if k == n or last.ends or t + k == len(self.history):
                break
        before = self.history[t - 1] if t > 0 and not self.history[t - 1].ends else None
        there = t > 0 and t - 1 in self.slots
        alive = before is not None and there
        return {
            "observation": self.history[t].id,
            "reward": reward,
            "terminated": float(last.terminated),
            "next_observation": next_observation(last),
            "discount": discount**k,
            "previous_observation": self.history[t - 1].id if alive else self.history[t].id,
            "last_observation": self.history[t - 1].id if there else self.history[t].id,
            "successor": next_observation(self.history[t]),
        }


def next_observation(step: Step) -> float:
    # A final observation belongs to no row: a value of its own shows every reach across a reset.
    return step.id + 0.5 if step.ends else step.id + 1


def pack(steps: list[Step | None]) -> Transition:
    nothing = Step(np.nan, np.nan, True, True)
    filled = [step or nothing for step in steps]
    ids = np.array([step.id for step in filled], np.float32)
    return Transition(
        observation=np.stack([ids, -ids], 1),
        action=np.stack([ids + k for k in range(A)], 1),
        reward=np.array([step.reward for step in filled], np.float32),
        terminated=np.array([step.terminated for step in filled]),
        truncated=np.array([step.truncated for step in filled]),
        next_observation=np.stack(
            [sign * np.array([next_observation(s) for s in filled]) for sign in (1, -1)], 1
        ),
        valid=np.array([step is not None for step in steps]),
        columns={"alpha": ids + 7, "zeta": np.stack([ids + k for k in range(4)], 1).reshape(-1, 2, 2)},
    )


def valid_rows(layout: Layout, rows, index: ReplayState) -> np.ndarray:
    if layout.stores_next:
        return np.concatenate([np.arange(layout.ring) < size for size in np.asarray(index.size)])
    return np.asarray(rows)[:, layout.slices["valid"].start] == 1


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
@pytest.mark.parametrize("envs", [1, 3])
def test_batches_equal_a_list_of_transitions(envs, stores_next, n_step):
    ring, discount = 11, 0.5  # 0.5: float32 sums are exact
    layout = make_layout(envs, ring, stores_next=stores_next)
    replay = Uniform()
    insert = jax.jit(partial(replay.insert, layout), donate_argnums=(0, 1))
    read = jax.jit(
        lambda rows, index: rows_at(
            layout, rows, index, jnp.arange(envs * ring), n_step, discount, OBSERVATIONS
        )
    )
    references = [Reference(e, ring, stores_next, np.random.default_rng(e)) for e in range(envs)]
    rows, index = replay.init(layout)
    for _ in range(50):  # around the ring several times
        rows, index = insert(rows, index, pack([reference.step() for reference in references]))
        batch = jax.tree.map(np.asarray, read(rows, index))
        batch = batch._replace(discount=np.broadcast_to(batch.discount, envs * ring))
        slots = [t for reference in references for t in reference.slots]
        valid = valid_rows(layout, rows, index)
        np.testing.assert_array_equal(valid, [t is not None for t in slots])
        for i in np.flatnonzero(valid):
            expected = references[i // ring].batch(slots[i], n_step, discount)
            first, last = (expected.pop(name) for name in ("observation", "next_observation"))
            for name in OBSERVATIONS:
                wanted = expected.pop(name)
                np.testing.assert_array_equal(batch.extra[name][i], [wanted, -wanted], err_msg=name)
            got = {name: float(getattr(batch, name)[i]) for name in expected}
            assert got == expected
            np.testing.assert_array_equal(batch.observation[i], [first, -first])
            np.testing.assert_array_equal(batch.next_observation[i], [last, -last])
            np.testing.assert_array_equal(batch.action[i], first + np.arange(A))
            np.testing.assert_array_equal(batch.extra["alpha"][i], first + 7)
            np.testing.assert_array_equal(batch.extra["zeta"][i], first + np.arange(4).reshape(2, 2))
    assert all(len(reference.history) > 3 * ring for reference in references)


def test_one_step_keeps_the_discount_a_number():
    layout = make_layout(1, 4, stores_next=True)
    rows, index = Uniform().init(layout)
    batch = rows_at(layout, rows, index, jnp.zeros(2, jnp.int32), 1, 0.99)
    assert isinstance(batch.discount, float)
    assert set(batch.extra) == {"alpha", "zeta"}


def test_an_unknown_derived_name_is_refused():
    layout = make_layout(1, 4, stores_next=True)
    rows, index = Uniform().init(layout)
    with pytest.raises(UsageError, match="next_reward"):
        rows_at(layout, rows, index, jnp.zeros(2, jnp.int32), 1, 0.99, {"next_reward"})


@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
def test_masked_environments_do_not_move(stores_next):
    layout = make_layout(3, 5, stores_next=stores_next)
    rows, index = Uniform().init(layout)
    new = pack([Step(float(e), 0.0, False, True) for e in range(3)])
    rows, index = Uniform().insert(layout, rows, index, new)
    before, index_before = np.array(rows), index
    rows, index = Uniform().insert(layout, rows, index, new._replace(valid=np.array([False, True, False])))
    moved = np.flatnonzero((np.asarray(rows) != before).any(axis=1))
    assert moved.size > 0
    assert (moved // 5 == 1).all()
    np.testing.assert_array_equal(np.asarray(index.position != index_before.position), [False, True, False])
    np.testing.assert_array_equal(np.asarray(index.size != index_before.size), [False, True, False])


@pytest.mark.parametrize("steps", [4, 23], ids=["filling", "full"])
@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
@pytest.mark.parametrize("envs", [1, 3])
def test_draws_are_uniform_over_valid_rows(envs, stores_next, steps):
    layout = make_layout(envs, 12, stores_next=stores_next)
    references = [Reference(e, 12, stores_next, np.random.default_rng(e)) for e in range(envs)]
    rows, index = Uniform().init(layout)
    insert = jax.jit(partial(Uniform().insert, layout))
    for _ in range(steps):
        rows, index = insert(rows, index, pack([reference.step() for reference in references]))
    n = 200_000
    sample = jax.jit(partial(Uniform().sample, layout, batch_size=n))
    frequency = np.bincount(sample(rows, index, jax.random.key(0)), minlength=envs * 12) / n
    valid = valid_rows(layout, rows, index)
    p = 1 / valid.sum()
    assert (frequency[~valid] == 0).all()
    np.testing.assert_allclose(frequency[valid], p, rtol=0, atol=4 * np.sqrt(p * (1 - p) / n))


def test_update_and_after_change_nothing():
    _, index = Uniform().init(make_layout(1, 4, stores_next=True))
    one = jnp.ones((), jnp.int32)
    assert Uniform().update_priorities(index, jnp.zeros(3, jnp.int32), jnp.ones((3, 2))) is index
    assert Uniform().post_update(index, Event(one, one, one > 0, one > 0)) is index


def test_columns_stand_in_the_documented_order():
    stored = make_layout(1, 4, stores_next=True).slices
    assert list(stored) == [
        *("observation", "action", "reward", "terminated", "truncated", "next_observation", "alpha", "zeta")
    ]
    assert [s.stop - s.start for s in stored.values()] == [S, A, 1, 1, 1, S, 1, 4]
    assert make_layout(1, 4, stores_next=True).width == 15
    assert make_layout(1, 4, stores_next=False).width == 14


def test_a_million_rows_of_humanoid():
    stored = Layout(348, 17, (), True, 1, 10**6)
    assert stored.nbytes < 3.2 * 2**30
    assert dataclasses.replace(stored, stores_next=False).nbytes < 1.8 * 2**30
    small = dataclasses.replace(stored, capacity=10)
    assert Uniform().init(small)[0].nbytes == small.nbytes


def test_too_little_memory_is_said_before_it_is_taken():
    huge = Layout(10**5, 17, (), True, 1, 2 * 10**9)
    with pytest.raises(
        RunError, match=r"GiB.*--base.replay-capacity below \d+ or --base.next-observation derived"
    ):
        Uniform().init(huge)
    with pytest.raises(RunError) as error:
        Uniform().init(dataclasses.replace(huge, stores_next=False))
    assert "derived" not in str(error.value)


@pytest.mark.parametrize("used", [1, 4, 10, 11])
@pytest.mark.parametrize("envs", [1, 3])
def test_a_memory_comes_apart_and_together_again(envs, used):
    layout = make_layout(envs, 11, stores_next=True)
    rows = jnp.arange(2.0 * layout.envs * layout.ring * layout.width).reshape(2, -1, layout.width)
    for seed, mine in enumerate(np.asarray(rows).reshape(2, envs, 11, -1)):
        pieces = list(storage.pieces(layout, rows, used, 4 * 4 * layout.width + 1, seed * envs))
        assert max(map(len, pieces)) <= 4
        np.testing.assert_array_equal(np.concatenate(pieces), mine[:, :used].reshape(envs * used, -1))
        again = np.asarray(storage.restored(layout, used, pieces)).reshape(envs, 11, -1)
        np.testing.assert_array_equal(again[:, :used], mine[:, :used])
        assert not again[:, used:].any()


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_its_pieces_are_all_that_is_copied(seeds):
    layout = make_layout(1, 30_000, stores_next=True)
    rows = storage.create(layout, *seeds)
    assert rows.shape == (*seeds, 30_000, layout.width)
    assert_copies_nothing_of(layout.capacity, storage._stretch.lower(rows, 0, 100).compile())
    if not seeds:
        compiled = storage._put.lower(rows, np.ones((100, layout.width), np.float32), 0).compile()
        assert_copies_nothing_of(layout.capacity, compiled)
        assert compiled.memory_analysis().alias_size_in_bytes >= layout.nbytes


@pytest.mark.parametrize(("envs", "capacity"), [(4, 7), (1, 2**31)])
def test_impossible_capacities_are_usage_errors(envs, capacity):
    with pytest.raises(UsageError, match="replay-capacity"):
        Layout(S, A, (), True, envs, capacity)


def assert_copies_nothing_of(capacity: int, compiled, scratch: int | None = None) -> None:
    """No copy of a shape of at least `capacity` elements, and less than `scratch` bytes of scratch memory."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", compiled.as_text())
    sizes = [int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes]
    assert max(sizes, default=0) < capacity
    assert compiled.memory_analysis().temp_size_in_bytes < (scratch or 4 * capacity)


@pytest.mark.parametrize("stores_next", [True, False], ids=["stored", "derived"])
@pytest.mark.parametrize("envs", [1, 3])
def test_insert_and_sample_copy_nothing(envs, stores_next):
    layout = make_layout(envs, 30_000, stores_next=stores_next)
    rows, index = Uniform().init(layout)
    new = pack([Step(1.0, 0.0, False, False)] * envs)
    insert = jax.jit(partial(Uniform().insert, layout), donate_argnums=(0, 1))
    compiled = insert.lower(rows, index, new).compile()
    assert_copies_nothing_of(layout.capacity, compiled)
    assert compiled.memory_analysis().alias_size_in_bytes >= layout.nbytes

    def sample(rows, index, key):
        i = Uniform().sample(layout, rows, index, key, 64)
        return rows_at(layout, rows, index, i, 3, 0.99, {"previous_observation"})

    assert_copies_nothing_of(layout.capacity, jax.jit(sample).lower(rows, index, jax.random.key(0)).compile())
