"""A run over several processes, each with devices of its own, which `jax.distributed` has joined.

Every process runs the same program with the same settings. So each calls the functions here in the same
order as the others, and waits in them for the others. What depends on the clock or on a signal is agreed on
before a process acts on it. Process 0 writes the run folder. One process is a run as ever: then nothing here
does anything.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from qscape.errors import WrongValue

SLURM_PORTS = 61_440, 4_096  # the first port and how many; two jobs on one node take different ones
Tree = TypeVar("Tree", bound=PyTree)


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among those that share a run.

    Attributes:
        address: HOST:PORT of process 0, at which it waits for the others.
        count: the number of processes.
        number: the number of this one, from 0.
        seconds: how long it waits for the others.
    """

    address: str
    count: int
    number: int
    seconds: float

    def __str__(self) -> str:
        return f"process {self.number} of {self.count}"


def read_place(text: str, seconds: float) -> Place:
    """Read the value of --processes.

    Args:
        text: `HOST:PORT,COUNT,NUMBER`, or `slurm`.
        seconds: how long to wait for the others.

    Raises:
        UsageError: the text is something else, or this is no task of SLURM.
    """
    if text == "slurm":
        text = _read_slurm(os.environ)
    found = re.fullmatch(r"(.+):(\d{1,5}),(\d{1,6}),(\d{1,6})", text)
    if not found:
        raise WrongValue(
            f"--processes is '{text}'; it is HOST:PORT,COUNT,NUMBER, such as node1:9911,2,0 in the first of "
            "two processes, or slurm in the tasks of srun.",
            field="processes",
        )
    port, count, number = map(int, found.groups()[1:])
    if not (0 < port < 2**16 and count > 1 and number < count):
        raise WrongValue(
            f"--processes {text}: a port is 1 to 65535, there are 2 processes or more, and they have the "
            "numbers 0, 1, ... below that.",
            field="processes",
        )
    return Place(f"{found[1]}:{port}", count, number, seconds)


def _read_slurm(given: Mapping[str, str]) -> str:
    """Return the place of a task of `srun` in the form of `--processes`."""
    names = "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"
    missing = [name for name in names if not given.get(name)]
    if missing:
        raise WrongValue(
            f"--processes slurm: {missing[0]} is not set, so this is no task of SLURM; start it with srun.",
            field="processes",
        )
    job, nodes, count, number = (given[name] for name in names)
    prefix, first = re.match(r"([^,\[]+)(?:\[([^],-]+))?", nodes).groups()  # type: ignore[union-attr]
    start, ports = SLURM_PORTS
    return f"{prefix}{first or ''}:{start + int(job) % ports},{count},{number}"


def join(place: Place) -> None:
    """Join the other processes; call it before anything uses a device. `place.address` is JAX's own.

    All processes must be there: JAX ends a process that waits for too long without a Python error.
    """
    jax.distributed.initialize(
        place.address,
        place.count,
        place.number,
        cluster_detection_method="deactivate",  # which devices a process sees is left to who starts it
        initialization_timeout=max(1, round(place.seconds)),
    )


def leave() -> None:
    """Wait until all other processes leave, too; process 0 is the last to go."""
    jax.distributed.shutdown()


def writes() -> bool:
    """Return whether this process writes the run folder."""
    return jax.process_index() == 0


def first_of(value: float) -> float:
    """Return the value that process 0 gave, rounded to float32; of one process the value itself."""
    return value if jax.process_count() == 1 else float(_of_each(np.float32(value))[0])


def word_of_first(word: str) -> str:
    """Return the text that process 0 gave; of one process the text itself."""
    if jax.process_count() == 1:
        return word
    given = os.fsencode(word)
    size = int(_of_each(np.int32(len(given)))[0])
    padded = np.frombuffer(given[:size].ljust(size, b" "), np.uint8)
    return os.fsdecode(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def any_of(value: bool) -> bool:
    """Return whether any process gave True."""
    return value if jax.process_count() == 1 else bool(_of_each(np.int32(value)).any())


def same(value: int) -> bool:
    """Return whether all processes gave the same number."""
    return jax.process_count() == 1 or len({*_of_each(np.int32(value)).tolist()}) == 1


def _of_each(value: np.generic) -> np.ndarray:
    """Return the values of all processes, by their numbers."""
    return np.asarray(multihost_utils.process_allgather(value))


def gather(tree: Tree) -> Tree:
    """Return a tree whose arrays this process can read: those that are split over processes are gathered.

    A gathered array takes its whole size on every device.
    """

    def is_split(x: PyTree) -> bool:
        return isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated

    def whole(x: PyTree) -> PyTree:
        if not is_split(x):
            return x
        assert isinstance(x.sharding, NamedSharding)
        return jax.jit(_unchanged, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)

    return tree if jax.process_count() == 1 else jax.tree.map(whole, tree)


def _unchanged(x: PyTree) -> PyTree:
    return x  # a function of the module, so that its programs are found again
