"""What differs between operating systems. Linux, macOS and Windows have the same functions here.

The tests take the functions away that others have not. Only Linux is tried.
"""

import _thread
import contextlib
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None

WINDOWS = os.name == "nt"
# Windows allows none of these in a name, and no dot or space at its end.
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]+$')


def count_cores() -> int:
    """Return the number of cores that this process may use; all of the machine where nothing limits it."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collect_seldom() -> None:
    """Let Python look for unused cycles of objects after 100,000 new objects, not after 700.

    For processes of our own: what they make while they import and trace stays, and looking for cycles in it
    takes a fifteenth of a start.
    """
    gc.set_threshold(100_000)


def peak_memory() -> int:
    """Return the most memory in bytes that this process has held so far; 0 where the system is silent."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def file_name(text: str) -> str:
    """Return a text as the name of a file or folder that every system allows: `-` for what one forbids."""
    return FORBIDDEN.sub("-", text)


def start_method() -> str:
    """Return how multiprocessing starts processes: never by a fork, which may hang beside JAX's threads."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def draw_without_screen() -> None:
    """Let MuJoCo and pygame draw on a machine that has no screen."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Let Python processes that start inside the `with` block import nothing from the current folder."""
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def detached() -> dict[str, Any]:
    """Return the arguments of Popen by which Ctrl-C in the terminal does not reach the new process."""
    if WINDOWS:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # pyright: ignore[reportAttributeAccessIssue]
    return {"start_new_session": True}


def signal_self(number: signal.Signals) -> None:
    """Let this process handle a signal in its main thread; called in any thread."""
    if WINDOWS:  # os.kill would end the process at once
        _thread.interrupt_main(number)
    else:  # also wakes a main thread that waits
        os.kill(os.getpid(), number)


def ask_to_stop(worker: subprocess.Popen) -> None:
    """Ask a worker process to save and end.

    Windows has no signal for that. There, its standard input is closed, as at the end of this process.
    """
    if WINDOWS:
        assert worker.stdin is not None
        worker.stdin.close()
    else:
        worker.terminate()
