"""Split a run inside one program over several devices.

    mesh = devices.make_mesh(4, envs=1024, batch_size=4096)
    begin = devices.jit_on(mesh, partial(scan.start, agent, envs=1024))
    further = devices.jit_on(mesh, partial(scan.run_steps, agent), donate_argnums=1)
    run = begin(env, key)
    run, history = further(env, run, key, counts)

The environments and their rings in replay are split over the devices, as are the rows of every batch.
Networks, optimiser states and priorities are replicated. A run is the same as on one device up to rounding:
it draws the same random numbers and the same rows, and only adds sums over a batch in another order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from qscape.envs.world import World
from qscape.errors import OutOfRange
from qscape.offpolicy.cycle import Carry
from qscape.ops.devices import AXIS

Run = TypeVar("Run", bound=PyTree)

# Fields of a carry whose leading axis is that of the environments, or of their rings.
SPLIT = ("storage", "noise_state", "observation", "first", "action", "columns")


def make_mesh(count: int, envs: int, batch_size: int = 0) -> Mesh:
    """Return a mesh of `count` devices: of the first ones, and of several processes the first ones of each.

    Args:
        count: number of devices; of several processes each has the same share of them.
        envs: E, the number of environments of the run.
        batch_size: rows of a batch, or of a minibatch; 0: the batches are whole rollouts.

    Raises:
        UsageError: there are fewer devices, or the environments or the batch do not divide by them.
    """
    devices, processes = jax.devices(), jax.process_count()
    of_each = [[d for d in devices if d.process_index == k][: count // processes] for k in range(processes)]
    chosen = [device for own in of_each for device in own]
    if count < 1 or len(chosen) != count:
        each = f" of {processes} processes, and all use as many" if processes > 1 else ""
        raise OutOfRange(
            f"{count} devices are asked for and JAX sees {len(devices)} ({devices[0].platform}){each}; "
            f"choose from 1 to {len(devices)}.",
            field="devices",
        )
    for number, what in ((envs, "environments"), (batch_size, "rows of a batch")):
        if number % count:
            raise OutOfRange(
                f"{number} {what} cannot be split evenly over {count} devices; choose a multiple of {count}, "
                "or fewer devices.",
                field="devices",
            )
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def shard_run(run: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """Return where every array of a run lives: split over the devices by environments, or on each of them.

    Args:
        run: `scan.ReplayRun`, `scan_rollouts.RolloutRun` or any tree that holds a `World` or a `Carry`; its
            leaves may be shapes (`jax.eval_shape`). Everything outside of these two is replicated.
        mesh: from `make_mesh`.

    Returns:
        The tree with a sharding in the place of each array.
    """
    split, whole = split_rows(mesh), NamedSharding(mesh, P())

    def shard(tree: PyTree) -> PyTree:
        if isinstance(tree, World):
            return by_rows(tree, len(tree.length))
        if isinstance(tree, Carry):
            fields = {name: by_rows(getattr(tree, name), None) for name in SPLIT}
            return jax.tree.map(lambda _: whole, tree)._replace(**fields)
        return whole

    def by_rows(tree: PyTree, envs: int | None) -> PyTree:
        # An environment's state may hold arrays that all environments share.
        return jax.tree.map(
            lambda x: split if envs is None or (x.ndim and x.shape[0] == envs) else whole, tree
        )

    return jax.tree.map(shard, run, is_leaf=lambda tree: isinstance(tree, World | Carry))


def split_rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose leading axis is split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def place(run: Run, mesh: Mesh) -> Run:
    """Move a run that was made or read elsewhere onto the devices of a mesh.

    The arrays may share memory with those given, so these must not be used once the run was donated. Of
    several processes each gives the whole run, of which its devices keep their share.
    """
    # `device_put` would compare the numbers of all processes, and call metrics that are NaN different.
    return jax.jit(lambda run: run, out_shardings=shard_run(run, mesh))(run)


def jit_on(mesh: Mesh | None, function: Callable[..., Any], **options: Any) -> Any:
    """Return a function jitted for a mesh; without a mesh that of `jax.jit`."""
    return jax.jit(function, **options) if mesh is None else MeshProgram(mesh, function, **options)


class MeshProgram:
    """A function jitted for a mesh, whose result is split as `shard_run` says.

    So a run comes out as it went in: its memory can be donated, and the next call needs no new program.

    Args:
        mesh: from `make_mesh`.
        function: takes arrays, and returns a run or a tree that holds one.
        options: further arguments of `jax.jit`.
    """

    def __init__(self, mesh: Mesh, function: Callable[..., Any], **options: Any) -> None:
        self.mesh, self.options = mesh, options
        self._jitted: Any = None

        def strongly_typed(*args: Any, **static: Any) -> Any:
            return jax.tree.map(_strong, function(*args, **static))

        self.function = strongly_typed

    def __call__(self, *args: Any, **static: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self._jit(*args, **static)(*args, **static)

    def lower(self, *args: Any, **static: Any) -> jax.stages.Lowered:
        """Return the program for arguments of these shapes before XLA compiles it."""
        with jax.set_mesh(self.mesh):
            return self._jit(*args, **static).lower(*args, **static)

    @property
    def compiled(self) -> int:
        """The number of programs compiled so far."""
        return 0 if self._jitted is None else self._jitted._cache_size()

    def _jit(self, *args: Any, **static: Any) -> Any:
        if self._jitted is None:
            # Traced once: the second program finds the trace of the first.
            shapes = jax.jit(self.function, **self.options).eval_shape(*args, **static)
            shardings = shard_run(shapes, self.mesh)
            self._jitted = jax.jit(self.function, out_shardings=shardings, **self.options)
        return self._jitted


def _strong(x: jax.Array) -> jax.Array:
    """Return an array whose type is its own; that of a Python number would need a program of its own."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.astype(x.dtype)
