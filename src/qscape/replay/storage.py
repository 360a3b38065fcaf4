"""The storage of every replay: one packed float32 array in which each environment owns a ring of rows.

A row holds a whole transition, so that inserting touches one buffer and sampling reads one stretch of memory
per transition. Ring e is `rows[e * C : (e + 1) * C]`; consecutive rows of a
ring are consecutive steps of environment e.

The next observation is a column of its own ("stored"), or is read from the following row ("derived"),
which halves the memory. For the latter an insert also writes the next observation into the following row,
the head of the ring. At the end of an episode the head is left behind as a pad row: it keeps the final
observation, and the next episode starts after it. Head and pads are no transitions: their `valid` is 0.

Observations may be kept as bfloat16, two in one word of a row, and the pixels of an image as bytes, four in
one word. The array then is one of unsigned integers, because such a word may look like a subnormal number or
a NaN, whose bits a sum over devices changes. The other columns are the bits of their float32 numbers.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, UInt32

from qscape.errors import OutOfMemory, OutOfRange, UnknownName
from qscape.ops.devices import device_count, on_each_device, replicate
from qscape.types import Batch, Transition

Storage: TypeAlias = Float[Array, "rows W"] | UInt32[Array, "rows W"]

# Derived columns that are observations: they are normalised if the agent normalises observations.
OBSERVATIONS = frozenset({"successor", "previous_observation", "last_observation"})
DERIVED = OBSERVATIONS | {"next_observation", "truncated"}
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")  # holds a container's memory limits


class Priorities(NamedTuple):
    """Priorities of the rows.

    Attributes:
        tree: a sum tree over all rows (`qscape.ops.sum_tree`).
        max_priority: the priority of a new row.
    """

    tree: Float[Array, " nodes"]
    max_priority: Float[Array, ""]


class ReplayState(NamedTuple):
    """Positions and priorities of a replay. Donate it to jitted functions: the tree of priorities is large.

    Attributes:
        position: [E], the row of each ring that is written next.
        size: [E], rows of each ring in use; those of them that are valid can be sampled.
        priorities: None for uniform replay.
        scaling: what the agent's `scaling` part keeps of all rewards so far; None: nothing.
    """

    position: Int[Array, " E"]
    size: Int[Array, " E"]
    priorities: Priorities | None = None
    scaling: PyTree = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows are packed; hashable, so that it is static under jit.

    Attributes:
        observation_size: S.
        action_size: A.
        columns: further columns that parts declared, (name, shape of one row).
        stores_next: is the next observation a column, or derived from the following row?
        envs: E, parallel environments, each with a ring of its own.
        capacity: rows of all rings together.
        observations: how observations are kept; bfloat16 takes half the memory.
        pixels: how many of the first entries of an observation are whole numbers from 0 to 255, which are
            kept as bytes.

    Raises:
        UsageError: the capacity leaves less than two rows for an environment, or more than 2^31 in all.
    """

    observation_size: int
    action_size: int
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    stores_next: bool
    envs: int
    capacity: int
    observations: Literal["float32", "bfloat16"] = "float32"
    pixels: int = 0

    def __post_init__(self) -> None:
        if self.ring < 2 or self.capacity >= 2**31:
            raise OutOfRange(
                f"--base.replay-capacity {self.capacity} with {self.envs} environments does not work: "
                f"choose from {2 * self.envs} to {2**31 - 1} rows.",
                part="base",
                field="replay_capacity",
            )

    @property
    def ring(self) -> int:
        """C, rows of one environment."""
        return self.capacity // self.envs

    @property
    def slices(self) -> dict[str, slice]:
        """The slice of a row's words that each column takes, by name."""
        packed = 1 if self.observations == "float32" else 2  # entries in one word
        observation = self.image_words - (self.pixels - self.observation_size) // packed
        widths = {"observation": observation, "action": self.action_size}
        widths |= {"reward": 1, "terminated": 1, "truncated": 1}
        widths |= {"next_observation": observation} if self.stores_next else {"valid": 1}
        widths |= {name: prod(shape) for name, shape in sorted(self.columns)}
        slices, start = {}, 0
        for name, width in widths.items():
            slices[name] = slice(start, start + width)
            start += width
        return slices

    @property
    def width(self) -> int:
        """W, the words in one row; each takes four bytes."""
        return max(s.stop for s in self.slices.values())

    @property
    def image_words(self) -> int:
        """The words that hold the pixels of an observation, which are its first ones."""
        return -(-self.pixels // 4)

    @property
    def dtype(self) -> np.dtype:
        """Type of the words."""
        packs = self.pixels or self.observations != "float32"
        return np.dtype(np.uint32 if packs else np.float32)

    @property
    def nbytes(self) -> int:
        """Size of all rows in bytes."""
        return 4 * self.envs * self.ring * self.width


def create(layout: Layout, *seeds: int) -> Storage:
    """Allocate empty storage [*seeds, E * C, W]; with `seeds`, one for each of that many seeds.

    Raises:
        RunError: the machine has not enough memory left.
    """
    check_memory(layout, prod(seeds))
    return jnp.zeros((*seeds, layout.envs * layout.ring, layout.width), layout.dtype)


def create_state(layout: Layout) -> ReplayState:
    """Return the positions and sizes of an empty replay."""
    position, size = jnp.zeros((2, layout.envs), jnp.int32)
    return ReplayState(position, size)


def pieces(layout: Layout, rows: Array, used: int, nbytes: int, first_ring: int = 0) -> Iterator[np.ndarray]:
    """Yield the first `used` rows of every ring, one ring after the other, in arrays of at most `nbytes`.

    An array holds the words [n, W] of n rows of one ring. One array at a time takes memory, on the host and
    on the device. Of storage that is split over devices, each ring is read on the device that holds it. If
    these are devices of several processes, all of them call this together, and each gets every array.

    Args:
        first_ring: the first of the layout's rings, if `rows` holds the storage of several seeds.
    """
    most = max(1, min(layout.ring, nbytes // (4 * layout.width)))
    for ring in range(first_ring, first_ring + layout.envs):
        held, first = _holder(rows, ring * layout.ring) or (None, 0)
        for start in range(0, used, most):
            at = min(
                start, layout.ring - most
            )  # all stretches have one length, so that one program serves all
            stretch = _shared(None if held is None else _stretch(held, first + at, most), most, layout)
            yield stretch[start - at : used - at]


def _holder(rows: Array, first: int) -> tuple[Array, int] | None:
    """Return the array of the device that holds the row `first`, and the number of that row in it.

    None if it is a device of another process.
    """
    if len(rows.sharding.device_set) == 1:
        return rows, first
    spans = _spans(rows.sharding, rows.shape)
    for shard in rows.addressable_shards:
        start, stop = spans[shard.device]
        if start <= first < stop:
            return shard.data, first - start
    return None


def _shared(words: Array | None, rows: int, layout: Layout) -> np.ndarray:
    """Return the rows that one process gives to all; None: another one gives them."""
    if jax.process_count() == 1:
        return np.asarray(words)
    given = np.zeros((rows, layout.width), np.uint32) if words is None else np.asarray(words).view(np.uint32)
    # As whole numbers, since the processes sum what they give: -0.0 + 0.0 would be another float.
    return multihost_utils.broadcast_one_to_all(given, words is not None).view(layout.dtype)


def _spans(sharding: Sharding, shape: tuple[int, ...]) -> dict[Any, tuple[int, int]]:
    """Return the first row, and the row behind the last one, that each device holds."""
    parts = sharding.devices_indices_map(shape).items()
    spans = ((device, (index or [slice(None)])[0].indices(shape[0])) for device, index in parts)
    return {device: (start, stop) for device, (start, stop, _) in spans}


def restored(
    layout: Layout, used: int, saved: Iterable[np.ndarray], split: NamedSharding | None = None
) -> Storage:
    """Allocate storage that begins with the saved rows of another one.

    Args:
        used: saved rows of every ring.
        saved: arrays from `pieces`; each holds rows of one ring only.
        split: how to split the storage over devices; no device holds more than its share of it at any time.

    Raises:
        RunError: the machine has not enough memory left.
    """
    if split is not None:
        return _restored_split(layout, used, iter(saved), split)
    return _filled(layout, create(layout), used, saved)


def restored_seeds(layout: Layout, saved: Sequence[tuple[int, Iterable[np.ndarray]]]) -> Storage:
    """Allocate storage of several seeds [seeds, E * C, W] that begins with the saved rows of each.

    Args:
        saved: for each seed, its saved rows of every ring, and arrays from `pieces`.

    Raises:
        RunError: the machine has not enough memory left.
    """
    rows = create(layout, len(saved))
    for k, (used, of_seed) in enumerate(saved):
        rows = _filled(layout, rows, used, of_seed, k * layout.envs)
    return rows


def _filled(
    layout: Layout, rows: Storage, used: int, saved: Iterable[np.ndarray], first_ring: int = 0
) -> Storage:
    count = 0
    for piece in saved:
        ring, at = divmod(count, used)
        ring += first_ring
        rows = jax.block_until_ready(
            _put(rows, piece, ring * layout.ring + at)
        )  # otherwise all pieces wait in memory
        count += len(piece)
    return rows


def _restored_split(layout: Layout, used: int, saved: Iterator[np.ndarray], split: NamedSharding) -> Storage:
    shape = layout.envs * layout.ring, layout.width
    shares = []
    for device, (start, stop) in sorted(_spans(split, shape).items(), key=lambda item: item[1]):
        mine = _take_rows(saved, (stop - start) // layout.ring * used)
        if device not in split.addressable_devices:
            collections.deque(mine, maxlen=0)  # another process keeps them
            continue
        share = jnp.zeros((stop - start, layout.width), layout.dtype, device=device)
        shares.append(_filled(layout, share, used, mine))
    next(saved, None)  # its end, where it closes its file
    return jax.make_array_from_single_device_arrays(shape, split, shares)


def _take_rows(saved: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield the next pieces that hold `count` rows together."""
    while count > 0:
        piece = next(saved)
        count -= len(piece)
        yield piece


@partial(jax.jit, static_argnums=2)
def _stretch(rows: Array, at: int, n: int) -> Storage:
    # Reshaping is free inside a program; outside it copies.
    return jax.lax.dynamic_slice_in_dim(rows.reshape(-1, rows.shape[-1]), at, n)


@partial(jax.jit, donate_argnums=0)
def _put(rows: Storage, piece: ArrayLike, at: int) -> Storage:
    flat = rows.reshape(-1, rows.shape[-1])  # of several seeds; free inside a program
    return jax.lax.dynamic_update_slice_in_dim(flat, piece, at, 0).reshape(rows.shape)


def insert(
    layout: Layout, rows: Storage, replay_state: ReplayState, new: Transition
) -> tuple[Storage, ReplayState]:
    """Write the valid rows of a step of every environment, over the oldest row if its ring is full.

    Jit it by itself with `rows` and `replay_state` donated: in one program with sampling XLA may copy the
    storage. Rows may be invalid only between two episodes (the idle step of an environment that resets
    itself): within an episode, the rows before and after the gap would count as consecutive.
    """
    mask = valid_rows(layout, new)
    # Sampling needs the positions and sizes of all rings, and they are small: several devices all hold them.
    before = replicate(replay_state.position)
    at = before[:, None]
    packed = _pack(layout, new)[:, None]
    advance = jnp.ones(layout.envs, jnp.int32)
    if not layout.stores_next:
        head = jnp.zeros_like(packed)
        final = _observation_words(layout, jnp.float32(new.next_observation))
        head = head.at[:, 0, layout.slices["observation"]].set(final)
        at = jnp.concatenate([at, (at + 1) % layout.ring], axis=1)
        packed = jnp.concatenate([packed, head], axis=1)
        advance += jnp.logical_or(new.terminated, new.truncated).astype(jnp.int32)
    at = jnp.where(mask[:, None], at, layout.ring)
    rows = on_each_device(partial(_write, layout.ring), rows, at, packed)
    advance = replicate(jnp.where(mask, advance, 0))
    position = (before + advance) % layout.ring
    size = jnp.minimum(replicate(replay_state.size) + advance, layout.ring)
    return rows, replay_state._replace(position=position, size=size)


def valid_rows(layout: Layout, new: Transition) -> Bool[Array, " E"]:
    """Return `new.valid`, or that all rows are valid."""
    return jnp.ones(layout.envs, bool) if new.valid is None else jnp.asarray(new.valid)


def _write(ring: int, rows: Storage, at: Int[Array, "rings k"], packed: Array) -> Storage:
    """Write the rows `packed` [rings, k, W] at the positions `at` of their rings; drops those at `ring`."""
    first = jnp.arange(len(at), dtype=jnp.int32)[:, None] * ring
    i = jnp.where(at < ring, first + at, len(rows))
    return rows.at[i.reshape(-1)].set(packed.reshape(-1, packed.shape[-1]), mode="drop")


def cut(layout: Layout, rows: Storage, replay_state: ReplayState) -> tuple[Storage, ReplayState]:
    """End running episodes as a time limit does, so that the next inserted rows begin new ones."""
    newest = neighbour(layout, write_rows(layout, replay_state)[0], -1)
    outcome = slice(layout.slices["terminated"].start, layout.slices["truncated"].stop)
    under_way = (replay_state.size > 0) & (take_numbers(rows, newest, outcome).sum(-1) == 0)
    if not layout.stores_next:  # behind an episode that ended lies a pad
        under_way &= take_numbers(rows, newest, layout.slices["valid"])[:, 0] > 0
    where = jnp.where(under_way, newest, len(rows))
    true = np.float32(1.0).view(layout.dtype)
    rows = rows.at[where, layout.slices["truncated"].start].set(true, mode="drop")
    if layout.stores_next:
        return rows, replay_state
    advance = under_way.astype(jnp.int32)  # the head becomes the pad
    position, size = (
        (replay_state.position + advance) % layout.ring,
        jnp.minimum(replay_state.size + advance, layout.ring),
    )
    return rows, replay_state._replace(position=position, size=size)


def write_rows(layout: Layout, replay_state: ReplayState) -> tuple[Int[Array, " E"], Int[Array, " E"]]:
    """Return the row that the next insert writes in each ring, and the row after it."""
    written = jnp.arange(layout.envs, dtype=jnp.int32) * layout.ring + replay_state.position
    return written, neighbour(layout, written, 1)


def rows_at(
    layout: Layout,
    rows: Storage,
    replay_state: ReplayState,
    i: Int[Array, " B"],
    n_step: int,
    discount: float,
    derived_names: Collection[str] = (),
    bootstrap_at_time_limits: bool = True,
) -> Batch:
    """Read the batch of transitions that start at the rows i.

    For n_step > 1 the reward is the discounted sum over up to n consecutive rows of the ring, fewer if the
    episode ends or the newest row is reached. Next observation and `terminated` are those of the last row
    used, and the discount is γ^k for k rows. No sum reaches across a reset.

    Args:
        i: rows of the storage [B].
        derived_names: columns to add to `extra`. "previous_observation": the observation one step earlier,
            or the row's own at the first step of an episode and at the oldest row. "last_observation": the
            observation that was acted on before, which at the first step of an episode is one of the
            previous episode. "successor": the observation one step later, whatever n_step is. "truncated":
            whether a time limit ended the last row used. "next_observation" adds nothing.
        bootstrap_at_time_limits: if False, `terminated` is 1 at a time limit too.

    Raises:
        UsageError: a derived name is unknown.
    """
    if unknown := set(derived_names) - DERIVED:
        raise UnknownName(f"Replay cannot derive {sorted(unknown)}; it knows {sorted(DERIVED)}.")
    columns = layout.slices
    words = take(rows, i, slice(0, layout.width))
    taken = _numbers(words)
    observation = _observations(layout, words[:, columns["observation"]])
    if n_step == 1:
        reward, terminated = taken[:, columns["reward"].start], taken[:, columns["terminated"].start]
        last, power = i, discount
    else:
        reward, terminated, last, power = _n_step(layout, rows, replay_state, i, n_step, discount)
    if n_step == 1 and layout.stores_next:
        next_observation = _observations(layout, words[:, columns["next_observation"]])
    else:
        next_observation = _next_observation(layout, rows, last)
    extra = {name: taken[:, columns[name]].reshape(-1, *shape) for name, shape in layout.columns}
    if "previous_observation" in derived_names:
        extra["previous_observation"] = _previous_observation(layout, rows, replay_state, i, observation)
    if "last_observation" in derived_names:
        extra["last_observation"] = _last_observation(layout, rows, replay_state, i, observation)
    if "successor" in derived_names:
        extra["successor"] = next_observation if n_step == 1 else _next_observation(layout, rows, i)
    if "truncated" in derived_names:
        extra["truncated"] = take_numbers(rows, last, columns["truncated"])[:, 0]
    if not bootstrap_at_time_limits:
        terminated = jnp.maximum(terminated, take_numbers(rows, last, columns["truncated"])[:, 0])
    action = taken[:, columns["action"]]
    return Batch(observation, action, reward, terminated, next_observation, power, extra)


def take(rows: Storage, i: Int[Array, "*n"], columns: slice) -> Array:
    """Read the words [*n, columns] of neighbouring columns of the rows i, without touching other columns."""
    width = columns.stop - columns.start
    dimensions = jax.lax.GatherDimensionNumbers(
        offset_dims=(i.ndim,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )
    start = replicate(jnp.stack([i, jnp.full_like(i, columns.start)], axis=-1))
    taken = jax.lax.gather(rows, start, dimensions, (1, width), mode="promise_in_bounds")
    # Of several devices each reads the rows that it holds, and zeros for the others; the sum is the rows.
    return replicate(taken)


def take_numbers(rows: Storage, i: Int[Array, "*n"], columns: slice) -> Float[Array, "*n columns"]:
    """Read neighbouring columns that are not observations, as `take` does."""
    return _numbers(take(rows, i, columns))


def neighbour(layout: Layout, i: Int[Array, "..."], step: int | Int[Array, "..."]) -> Int[Array, "..."]:
    """Return the row `step` rows after i in the ring of i; i and step broadcast."""
    first = i // layout.ring * layout.ring
    return first + (i - first + step) % layout.ring


def _n_step(layout: Layout, rows: Storage, replay_state: ReplayState, i: Array, n: int, discount: float):
    steps = jnp.arange(n)[:, None]
    at = neighbour(layout, i, steps)  # [n, B]
    outcome = take_numbers(rows, at, slice(layout.slices["reward"].start, layout.slices["truncated"].stop))
    reward, terminated, truncated = jnp.moveaxis(outcome, -1, 0)
    newest = neighbour(layout, at, 1) % layout.ring == replay_state.position[i // layout.ring]
    stop = (terminated + truncated > 0) | newest
    used = jnp.cumsum(stop, axis=0) - stop == 0  # nothing stopped before this row
    powers = jnp.asarray([discount**k for k in range(n + 1)], jnp.float32)
    count = jnp.sum(used, axis=0)
    total = jnp.sum(jnp.where(used, powers[:n, None] * reward, 0.0), axis=0)
    last = at[count - 1, jnp.arange(i.size)]
    terminated = jnp.max(jnp.where(used, terminated, 0.0), axis=0)
    # If several devices split this, they would have to send each other the rows to read.
    return replicate((total, terminated, last, powers[count]))


def _next_observation(layout: Layout, rows: Storage, i: Array) -> Array:
    if layout.stores_next:
        return _take_observations(layout, rows, i, "next_observation")
    return _take_observations(layout, rows, neighbour(layout, i, 1), "observation")


def _previous_observation(
    layout: Layout, rows: Storage, replay_state: ReplayState, i: Array, observation: Array
) -> Array:
    columns = layout.slices
    before = neighbour(layout, i, -1)
    words = take(rows, before, slice(0, columns["truncated"].stop + (not layout.stores_next)))
    previous = _numbers(words)
    first = (previous[:, columns["terminated"].start] + previous[:, columns["truncated"].start]) > 0
    if layout.stores_next:
        first |= _oldest(layout, replay_state, i)
    else:
        first |= previous[:, columns["valid"].start] == 0  # so is the row before the oldest: head or pad
    return jnp.where(first[:, None], observation, _observations(layout, words[:, columns["observation"]]))


def _last_observation(
    layout: Layout, rows: Storage, replay_state: ReplayState, i: Array, observation: Array
) -> Array:
    columns, before = layout.slices, neighbour(layout, i, -1)
    if layout.stores_next:
        gone = _oldest(layout, replay_state, i)
    else:  # an invalid row is a pad between two episodes, or at the row written next: there history ends
        written = replay_state.position[i // layout.ring]
        pad = take_numbers(rows, before, columns["valid"])[:, 0] == 0
        gone = (i % layout.ring == written) | (pad & (before % layout.ring == written))
        before = jnp.where(pad, neighbour(layout, i, -2), before)
        gone |= take_numbers(rows, before, columns["valid"])[:, 0] == 0
    return jnp.where(gone[:, None], observation, _take_observations(layout, rows, before, "observation"))


def _oldest(layout: Layout, replay_state: ReplayState, i: Array) -> Array:
    """Return whether the rows i are the oldest of their rings; for storage with next observations."""
    oldest = jnp.where(replay_state.size == layout.ring, replay_state.position, 0)
    return i % layout.ring == oldest[i // layout.ring]


def _pack(layout: Layout, new: Transition) -> Storage:
    values = new._asdict() | {"valid": jnp.ones(layout.envs)} | dict(new.columns)
    words = {"observation": _observation_words, "next_observation": _observation_words}
    parts = []
    for name in layout.slices:
        column = jnp.asarray(values[name], jnp.float32).reshape(layout.envs, -1)
        parts.append(words.get(name, _number_words)(layout, column))
    return jnp.concatenate(parts, axis=1)


def _number_words(layout: Layout, numbers: Float[Array, "..."]) -> Array:
    """Return numbers as words of the storage, without a change of their bits."""
    return numbers if layout.dtype == np.float32 else jax.lax.bitcast_convert_type(numbers, jnp.uint32)


def _numbers(words: Array) -> Float[Array, "..."]:
    """Return the numbers of words; those of observations in bfloat16 mean nothing."""
    return words if words.dtype == np.float32 else jax.lax.bitcast_convert_type(words, jnp.float32)


def _observation_words(layout: Layout, observation: Float[Array, "E S"]) -> Array:
    """Return observations as words of the storage: pixels as bytes, other entries as the layout says.

    A rounding to bfloat16 is to the nearest, of two equally near ones to the even.
    """
    image, vector = jnp.split(observation, [layout.pixels], axis=1)
    if layout.observations == "float32":
        words = _number_words(layout, vector)
    else:
        halves = jax.lax.bitcast_convert_type(vector.astype(jnp.bfloat16), jnp.uint16)
        words = _pack_entries(halves, 2)
    if not layout.pixels:
        return words
    pixels = jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
    return jnp.concatenate([_pack_entries(pixels, 4), words], axis=1)


def _observations(layout: Layout, words: Array) -> Float[Array, "B S"]:
    """Return the observations that `_observation_words` made words of."""
    image, words = jnp.split(words, [layout.image_words], axis=1)
    if layout.observations == "float32":
        vector = _numbers(words)
    else:  # a bfloat16 is the upper half of the float32 that it stands for
        halves = _unpack_entries(words, 2, layout.observation_size - layout.pixels)
        vector = jax.lax.bitcast_convert_type(halves << 16, jnp.float32)
    if not layout.pixels:
        return vector
    pixels = _unpack_entries(image, 4, layout.pixels).astype(jnp.float32)
    return jnp.concatenate([pixels, vector], axis=1)


def _pack_entries(entries: Array, n: int) -> UInt32[Array, "E W"]:
    """Return words of n unsigned integers each; zeros fill the last ones."""
    entries = jnp.pad(entries.astype(jnp.uint32), [(0, 0), (0, -entries.shape[1] % n)])
    # A word holds entries k, k + W, ..., not neighbours: reading then joins n pieces and moves no entry.
    first, *others = jnp.split(entries, n, axis=1)
    return sum((piece << (32 // n * k) for k, piece in enumerate(others, 1)), first)


def _unpack_entries(words: Array, n: int, size: int) -> UInt32[Array, "B size"]:
    """Return the `size` unsigned integers that `_pack_entries` made words of n of."""
    bits = 32 // n
    pieces = [words >> (bits * k) & np.uint32(2**bits - 1) for k in range(n)]
    return jnp.concatenate(pieces, axis=1)[:, :size]


def _take_observations(layout: Layout, rows: Storage, i: Array, name: str) -> Float[Array, "B S"]:
    return _observations(layout, take(rows, i, layout.slices[name]))


def check_memory(layout: Layout, seeds: int = 1) -> None:
    """Check that the storage of all seeds fits into memory.

    Raises:
        RunError: the machine has not enough memory left.
    """
    available, needed = _available_bytes(), layout.nbytes * seeds
    if available is None or needed <= available:
        return
    saving = " or --base.next-observation derived" if layout.stores_next else ""
    wide = layout.observations == "float32" and layout.pixels < layout.observation_size / 2
    saving += " or --base.replay-observations bfloat16" if wide else ""
    fits = available // (4 * layout.width * seeds)
    each = f" for each of {seeds} seeds" if seeds > 1 else ""
    raise OutOfMemory(
        f"A replay of {layout.capacity} rows{each} needs {needed / GIB:.1f} GiB but "
        f"{available / GIB:.1f} GiB are available; use --base.replay-capacity below {fits}{saving}."
    )


def _available_bytes() -> int | None:
    """Return the free memory in bytes of the default device, or of as many like it as split the program.

    Of several processes without an accelerator each counts as a machine like this one. None if it is
    unknown.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats["bytes_in_use"]) * device_count()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    if "MemAvailable" not in fields:
        return None
    free = min([1024 * int(fields["MemAvailable"].split()[0]), *_container_bytes_left(CGROUP)])
    return free * jax.process_count()


def _container_bytes_left(group: Path) -> list[int]:
    """Return the bytes that a container may still allocate, in a list; an empty list without a limit."""
    try:
        limit, used, stat = ((group / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return []
    if limit.strip() == "max":
        return []
    cached = dict(line.split() for line in stat.splitlines()).get("inactive_file", 0)  # is given back
    return [max(int(limit) - int(used) + int(cached), 0)]
