"""Workers on a Ray cluster. Needs the extra `cluster`.

A remote worker is a Ray actor with one core. It runs the job in a process of its own, like a local worker,
and forwards the events. If its node shares the head's disk, the job writes directly into the run folder;
otherwise the worker sends the files back with every save. If a worker is lost, so is the work since the last
save; another worker continues the run from there.
"""

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qscape.errors import RunError, Unreachable, WrongValue, need_extra
from qscape.jobs.parcel import Packer, Parcel, unpack
from qscape.jobs.pool import LocalWorker
from qscape.jobs.worker import Job
from qscape.run.folder import locked
from qscape.system import count_cores

LOOPBACK = "127.0.0.1"
PATIENCE = 12.0  # seconds for a cluster to answer


class Cluster:
    """A connection to a Ray cluster that starts workers on it.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or "auto" for a local cluster bound to loopback.
        folder: the study's folder; a marker file in it shows which nodes share the disk.
        workers: maximal number of workers; None: one per core of the cluster.

    Raises:
        UsageError: Ray is missing, or the address is malformed.
        RunError: no cluster answers.
    """

    def __init__(self, address: str, folder: Path, workers: int | None = None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address == "auto":
            # Ray replaces loopback by the machine's address unless this variable forbids clusters.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        with need_extra("--ray", "cluster"):
            self.ray: Any = importlib.import_module("ray")
        ray = self.ray
        if address == "auto":
            where: dict[str, Any] = {"_node_ip_address": LOOPBACK, "include_dashboard": False}
            where["num_cpus"] = workers or count_cores()
        else:
            _check_reachable(address)
            where = {"address": address}
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except Exception as problem:  # Ray raises errors of many classes here
            why = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise Unreachable(f"--ray {address}: Ray does not start ({why}).") from problem
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.actor = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=2)(RemoteJob)
        self.token = uuid.uuid4().hex
        self.marker = folder.resolve() / f".seen-{self.token}"
        self.marker.write_text(self.token)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *problem: object) -> None:
        self.marker.unlink(missing_ok=True)
        self.ray.shutdown()

    def start(self, job: Job) -> "RayWorker":
        """Start a worker for a job; it begins as soon as the cluster has a free core."""
        return RayWorker(self, job)


def _check_reachable(address: str) -> None:
    """Raise an error if no Ray cluster answers at an address; Ray itself would retry for minutes.

    Raises:
        UsageError: the address is malformed. RunError: no cluster answers, or it requires a token.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise WrongValue(
            f"--ray {address} is not an address; give HOST:PORT, or auto for a local cluster.", field="ray"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
        command = [sys.executable, "-P", "-c", "import ray, sys; ray.init(address=sys.argv[1])", address]
        subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
        lines = (problem.stderr or b"").decode(errors="replace").strip().splitlines()
        raise _unreachable_error(address, lines[-1].split("] ")[-1] if lines else "no answer") from problem
    except (OSError, OverflowError) as problem:
        raise _unreachable_error(address, str(problem)) from problem


def _unreachable_error(address: str, why: str) -> RunError:
    if "AuthToken" in why:
        return Unreachable(
            f"--ray {address} requires a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the cluster."
        )
    return Unreachable(f"--ray {address} does not answer as a Ray cluster ({why}); is one running there?")


class RayWorker:
    """The head's side of a job on the cluster; implements `pool.Worker`."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.ray, self.job = cluster.ray, replace(job, folder=job.folder.resolve())
        self.remote = cluster.actor.remote()
        self.seen = self.remote.sees.remote(str(cluster.marker), cluster.token)
        self.begun = False

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the job's events as JSON; files that the worker sends are written before their event.

        An error ends the events with one of kind "Failed"; `lost` is true if the worker was lost.
        """
        folder = self.job.folder
        try:
            shared = self.ray.get(self.seen)
            with contextlib.nullcontext() if shared else locked(folder):
                files = None if shared else Packer(folder).pack()
                event = self.remote.run.options(num_returns="streaming").remote(self.job.to_json(), files)
                self.begun = True
                for reference in event:
                    data = self.ray.get(reference)
                    if isinstance(data, Parcel):
                        unpack(data, folder)
                    else:
                        yield data
        except self.ray.exceptions.RayTaskError as problem:  # an error in `RemoteJob`
            yield {"kind": "Failed", "why": str(problem.cause)}
        except self.ray.exceptions.RayError as problem:
            yield {"kind": "Failed", "why": f"lost its worker ({type(problem).__name__})", "lost": True}
        finally:
            self.kill()

    def stop(self) -> None:
        """Ask the job to save and end."""
        if self.begun:
            self.remote.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """End the job now."""
        self.ray.kill(self.remote)


class RemoteJob:
    """The node's side of a job on the cluster: the Ray actor."""

    def __init__(self) -> None:
        self.worker: LocalWorker | None = None
        self.stopping = False

    def sees(self, marker: str, token: str) -> bool:
        """Return whether this node shares the head's disk: whether the marker file holds the token here."""
        try:
            return Path(marker).read_text() == token
        except OSError:
            return False

    def run(self, data: dict[str, Any], files: Parcel | None) -> Iterator[dict[str, Any] | Parcel]:
        """Run a job and yield its events as JSON.

        Args:
            data: the job as JSON.
            files: the files of the run folder if this node does not share the head's disk; then the job runs
                in a temporary folder, and its changes are yielded as parcels before every "Saved" and at the
                end. None: the job writes into the run folder.
        """
        job = Job.from_json(data)
        with contextlib.ExitStack() as stack:
            if files is not None:
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="qscape-"))
                job = replace(job, folder=Path(place) / "run")
                unpack(files, job.folder)
            packer = Packer(job.folder)
            self.worker = LocalWorker(job)
            if self.stopping:
                self.worker.stop()
            for event in self.worker.events():
                if files is not None and event["kind"] == "Saved":
                    yield packer.pack()
                if event["kind"] != "EpisodeDone":  # frequent, and unused on the head
                    yield event
            if files is not None:
                yield packer.pack()

    def stop(self) -> None:
        """Ask the job to save and end."""
        self.stopping = True
        if self.worker is not None:
            self.worker.stop()
