"""Say how the arrays of a compiled program are split over several devices.

A program runs on several devices if it is called under `jax.set_mesh` with a mesh that has the axis AXIS
(`qscape.run.devices`). Without such a mesh every function here returns what it was given, so that programs
for one device do not change.

The environments, their rings in replay and the rows of a batch are split over the axis; parameters are
replicated. XLA's partitioner follows these splits through the program and adds what the devices must send
each other, above all the sum of the gradients. It cannot know which way is cheapest in the few places where
arrays change from one to the other, so these functions are called there.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

AXIS = "envs"
Tree = TypeVar("Tree", bound=PyTree)


def device_count() -> int:
    """Return over how many devices the program being traced is split; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names:
        return 1
    axis = mesh.axis_names.index(AXIS)
    # Inside `on_each_device` the axis is manual: there the code sees one device.
    return mesh.axis_sizes[axis] if mesh.axis_types[axis] == AxisType.Auto else 1


def split_batch(batch: Tree, axis: int = 0) -> Tree:
    """Split one axis of every array over the devices, so that each computes with its own rows.

    An array whose rows the devices do not divide is replicated: every device computes with all of it.
    """
    devices = device_count()
    if devices == 1:
        return batch

    def split(x: Array) -> Array:
        divides = x.ndim > axis and x.shape[axis] % devices == 0
        return jax.lax.with_sharding_constraint(x, P(*[None] * axis, AXIS) if divides else P())

    return jax.tree.map(lambda x: split(x) if isinstance(x, jax.Array) else x, batch)


def replicate(tree: Tree) -> Tree:
    """Give every device the whole of every array."""
    if device_count() == 1:
        return tree
    return jax.tree.map(partial(jax.lax.with_sharding_constraint, shardings=P()), tree)


def on_each_device(function: Callable[..., Tree], *arrays: PyTree) -> Tree:
    """Call a function that treats the rows of its arguments independently, on each device with its own rows.

    Within the function the devices send each other nothing. It sees fewer rows than there are, so it must
    not count them.

    Args:
        function: takes the arrays, and returns arrays with the same leading axis.
        arrays: their leading axis is split over the devices; its length must be a multiple of their number.
    """
    if device_count() == 1:
        return function(*arrays)
    # Code that knows nothing of devices starts loops from constants, which the check would refuse.
    return jax.shard_map(function, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)(*arrays)
