"""A contender's process, as the benchmark sees it."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BENCH_EXTRA = {"torch", "stable_baselines3", "sbx", "flax"}  # what the extra `bench` installs


class ContenderError(Exception):
    """A contender did not start, or stopped; the text is the line that says why."""


class Worker:
    """A contender's process. `python` is its interpreter."""

    def __init__(self, name: str, python: str, threads: int):
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the process
        started = time.perf_counter()
        try:
            self.process = subprocess.Popen(
                [python, "-m", "peers", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env=environment(threads),
                cwd=tempfile.gettempdir(),  # MuJoCo leaves a log file where it runs
            )
        except OSError as error:
            raise ContenderError(f"{python}: {error.strerror}") from error
        self.ready = self.receive()
        self.ready["process_seconds"] = time.perf_counter() - started
        trial = self.ready["trial"]
        self.rate = trial["steps"] / trial["seconds"]

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines()
            raise ContenderError(
                f"ended with code {self.process.wait()}: {said[-1] if said else 'no message'}"
            )
        answer = json.loads(line)
        if "error" in answer:
            if (answer["missing"] or "").split(".")[0] in BENCH_EXTRA:
                raise ContenderError(f"{answer['error']}; the extra brings it: pip install 'qscape[bench]'")
            raise ContenderError(answer["error"])
        return answer

    def start_turn(self, seconds: float, rate: float | None = None) -> None:
        """Ask for as many steps as take that long at a rate, by default that of its last turn.

        Should the machine have become slower, the turn ends after three times as long.
        """
        assert self.process.stdin
        block = self.ready["block"]
        steps = max(1, round((rate or self.rate) * seconds / block)) * block
        with contextlib.suppress(BrokenPipeError):  # the process is gone; `end_turn` tells why
            print(json.dumps({"steps": steps, "limit": 3 * seconds}), file=self.process.stdin, flush=True)

    def end_turn(self) -> dict[str, Any]:
        """Wait for the turn's answer: "steps" and "updates" made, "seconds", "cpu_seconds"."""
        answer = self.receive()
        if answer["updates"] * self.ready["every"] != answer["steps"]:
            raise ContenderError(f"made {answer['updates']} updates in {answer['steps']} steps")
        self.rate = answer["steps"] / answer["seconds"]
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def environment(threads: int) -> dict[str, str]:
    """A worker's environment: that many threads in PyTorch, BLAS and XLA, on the CPU."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    given = [
        str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry
    ]
    return os.environ | {
        **dict.fromkeys(variables, str(threads)),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *given]),
        "PYTHONWARNINGS": "ignore",
    }
