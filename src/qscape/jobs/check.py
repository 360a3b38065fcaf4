"""`qscape check`: run an environment as training would, in a process of its own, and say what holds.

`check_env` starts the process and watches it; `python -m qscape.jobs.check` is the process. It writes one
JSON object a line: findings, and twice a second a sign of life. So an environment that hangs, even with
Python's lock, or that ends its process, is a finding like any other.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, Queue
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper

from qscape import errors, system, trusted
from qscape.agents import BASES, build, onpolicy, recipe_for_images
from qscape.envs import EnvAdapter
from qscape.envs.checks import CheckedEnv, Finding, guarded, open_first, run_checks
from qscape.envs.patience import Call, Caller, Patience, describe_hung
from qscape.errors import Conflict, OutOfRange, QscapeError, UsageError, WrongValue, describe
from qscape.run.plan import Plan, prepare
from qscape.run.training import make_session, set_up_jax

SECONDS, STEP_SECONDS = 60.0, 10.0  # of all checks, and of one call of the environment
BEAT = 0.5  # seconds between two signs of life
SLACK = 10.0  # seconds without one, beyond `step_seconds`: JAX may hold Python's lock when it is imported
UPDATES = 60  # that are timed
RANDOM = 200  # random steps before them


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check_env` found.

    Attributes:
        env: the environment's name.
        findings: in the order of the checks.
        seconds: duration.
    """

    env: str
    findings: list[Finding]
    seconds: float

    @property
    def sound(self) -> bool:
        """Can agents be trained on it? True if nothing failed."""
        return not any(finding.verdict == "FAIL" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        findings = [finding._asdict() for finding in self.findings]
        return {"env": self.env, "sound": self.sound, "seconds": self.seconds, "findings": findings}

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), self.summary])

    @property
    def summary(self) -> str:
        """The last line: is training sound?"""
        failed, warned = (sum(f.verdict == kind for f in self.findings) for kind in ("FAIL", "warn"))
        if failed:
            return f"{self.env}: training is not sound, {failed} of {len(self.findings)} checks failed"
        warnings = f", with {warned} warning{'s' if warned > 1 else ''}" if warned else ""
        return f"{self.env}: training is sound{warnings}"


class Request(NamedTuple):
    """What the process is asked to check; arguments of `check_env`."""

    env: Any
    env_args: Mapping[str, Any]
    envs: int
    vectorise: str
    seconds: float
    step_seconds: float
    spec: Any
    trusted: list[str]


def check_env(
    env: Any,
    env_args: Mapping[str, Any] | None = None,
    *,
    envs: int = 1,
    vectorise: str = "sync",
    seconds: float = SECONDS,
    step_seconds: float = STEP_SECONDS,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> CheckReport:
    """Run an environment as training would, in a process of its own, and return what holds and what does not.

    Args:
        env: as for `qs.TD3`: an id, `module:make`, a function that makes an environment, or an environment;
            also a vector environment or a function that makes one. An object is sent to the process as a
            copy.
        env_args: arguments of the environment.
        envs: environments side by side.
        vectorise: how they are stepped, "sync" or "async".
        seconds: of all checks; those that do not fit are skipped.
        step_seconds: seconds that one step, reset or constructor may take.
        on_finding: called with each finding as it is made.

    Raises:
        UsageError: there is no such environment, its arguments are wrong, or it cannot be sent to another
            process.
    """
    for name, value in {"seconds": seconds, "step_seconds": step_seconds}.items():
        if not value > 0:
            raise OutOfRange(f"{name} is {value}: it must be more than 0.", field=name)
    if envs < 1:
        raise OutOfRange(f"envs is {envs}: at least one environment is needed.", field="envs")
    if vectorise not in ("sync", "async"):
        raise WrongValue(f"vectorise is {vectorise!r}; choose sync or async.", field="vectorise")
    if isinstance(env, gym.Env | VectorEnv) and (env_args or envs > 1):
        raise Conflict(
            "an environment that is made already takes no env_args and cannot be multiplied: "
            "give its id or a function that makes it.",
            field="env_args",
        )
    begun = time.monotonic()
    spec = gym.registry.get(env.rpartition(":")[2]) if isinstance(env, str) else None
    asked: Any = Request(
        env, dict(env_args or {}), envs, vectorise, seconds, step_seconds, spec, trusted.trusted_places()
    )
    try:
        sent = pickle.dumps(CloudpickleWrapper(asked))
    except Exception as problem:
        raise WrongValue(
            f"{env!r} cannot be sent to the process that checks it ({describe(problem)}): give its id or a "
            "function that makes it.",
            field="env",
        ) from problem
    findings = []
    for finding in _watch(_Process(sent), seconds, step_seconds, _name(env)):
        findings.append(finding)
        on_finding(finding)
    return CheckReport(_name(env), findings, time.monotonic() - begun)


def _name(env: Any) -> str:
    """Return a name for what was given."""
    if isinstance(env, str):
        return env
    name = getattr(env, "__name__", "")
    kind = type(getattr(env, "unwrapped", env)).__name__
    return (name if name != "<lambda>" else "the environment") if callable(env) and name else kind


class _Process:
    """The process that checks, and the lines that it writes."""

    def __init__(self, sent: bytes) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qscape.jobs.check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},
            **system.detached(),
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; the end of its lines says so
            self.process.stdin.write(json.dumps(sys.path).encode() + b"\n" + sent)
            self.process.stdin.close()
        self.lines: Queue[dict[str, Any] | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                self.lines.put(json.loads(line))
        self.lines.put(None)

    def end(self) -> int:
        """End the process and return its exit code."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


def _watch(process: _Process, seconds: float, step_seconds: float, name: str) -> Iterator[Finding]:
    """Yield the findings of the process, and how it ended if that was no proper end."""
    deadline, beat = time.monotonic() + seconds + SLACK, time.monotonic()
    doing = "the start of the process"
    try:
        while True:
            silence = beat + step_seconds + 2 * SLACK - time.monotonic()
            try:
                line = process.lines.get(timeout=max(0.0, min(silence, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    yield Finding(
                        "time", "skip", f"{seconds:g} seconds are over in {doing}", "give --seconds more"
                    )
                else:
                    why = describe_hung(name, doing, step_seconds)
                    yield Finding("returns", "FAIL", f"{why}, and holds Python's lock", _END)
                return
            if line is None:
                code = process.process.wait()
                how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
                yield Finding("process", "FAIL", f"the process {how} in {doing}", _DIED)
                return
            beat, doing = time.monotonic(), line.get("doing", doing)
            if "finding" in line:
                yield Finding(*line["finding"])
            elif "failed" in line:
                kind = getattr(errors, line["kind"], UsageError)
                raise kind(line["failed"], line["part"], line["field"])
            elif "over" in line:
                return
    finally:
        process.end()


_END = "a run would wait as long as its --step-seconds says, save and end; find what it waits for"
_DIED = "a run would end there without a save; --vectorise async gives each environment a process of its own"


# --- in the process ----------------------------------------------------------------------------------


def main() -> None:
    """Check what standard input names; write findings to standard output as JSON lines."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the environment prints does not mix with the findings
    source, lock = sys.stdin.buffer, threading.Lock()
    sys.path[:] = json.loads(source.readline())

    def tell(**line: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            out.write(json.dumps(line, default=str) + "\n")

    try:
        asked = Request(*pickle.loads(source.read()).fn)
        _check(asked, tell)
    except QscapeError as problem:
        about = {"part": problem.part, "field": problem.field}
        tell(failed=str(problem), kind=type(problem).__name__, **about)
    except Exception as problem:
        why = (
            f"it cannot be made in another process ({describe(problem)}): give its id or a function of a "
            "module."
        )
        tell(failed=why, kind="WrongValue", part=None, field="env")
    else:
        tell(over=True)
    out.flush()
    os._exit(0)  # an environment's threads and handlers do not keep it


def _check(asked: Request, tell: Callable[..., None]) -> None:
    """Run all checks, and tell the findings and which call is running."""
    begun = time.monotonic()
    trusted.trust(*asked.trusted)
    if asked.spec is not None:
        gym.registry.setdefault(asked.spec.id, asked.spec)
    subject = CheckedEnv(
        _as_source(asked.env), asked.env_args, asked.envs, asked.vectorise, begun + asked.seconds
    )
    subject.env_id = _name(asked.env)
    is_jax = False

    def beat() -> None:
        while True:
            calls = [caller.called for caller in subject.callers if caller.called is not None]
            tell(doing=calls[0].what if calls else "the checks")
            time.sleep(BEAT)

    def hung(caller: Caller, call: Call) -> None:
        why = describe_hung(caller.env_id, call.what, asked.step_seconds)
        tell(finding=Finding("returns", "FAIL", why, _END))
        tell(over=True)
        os._exit(0)

    threading.Thread(target=beat, daemon=True).start()
    # Programs in JAX are compiled within calls.
    callers = lambda: () if is_jax else tuple(subject.callers)  # noqa: E731
    with Patience(callers, asked.step_seconds, hung):
        set_up_jax()
        adapter, found = open_first(subject)
        for finding in found:
            tell(finding=finding)
        if adapter is None:
            return
        is_jax = adapter.jax_env is not None
        for finding in run_checks(subject, adapter):
            tell(finding=finding)
        for name, check in (("recipes", find_recipes), ("speed", find_speed)):
            for finding in guarded(name, lambda check=check: check(subject, adapter)):
                tell(finding=finding)


def _as_source(env: Any) -> Any:
    """Return what makes an environment: of one that is made already, a function that copies it."""
    if not isinstance(env, gym.Env | VectorEnv):
        return env
    made: Any = env
    sent = pickle.dumps(CloudpickleWrapper(made))
    return lambda: pickle.loads(sent).fn


def find_recipes(subject: CheckedEnv, adapter: EnvAdapter) -> Iterator[Finding]:
    """Say which agents fit the environment."""
    fits, others = list_recipes(adapter, subject.index_actions)
    if not fits:
        yield Finding(
            "recipes", "FAIL", others[0] if others else "none fits", "no agent can be trained on it"
        )
        return
    why = f"; not {'; not '.join(others)}" if others else ""
    yield Finding("recipes", "ok", f"{', '.join(fits)} fit{why}")


def list_recipes(adapter: EnvAdapter, index_actions: bool) -> tuple[list[str], list[str]]:
    """Return the recipes that fit an environment, and those that do not, with the reasons."""
    fits, others = [], []
    for name in (*[name for name in BASES if name not in ("bc", "iql")], "td7", *onpolicy.BASES):
        try:
            recipe, _ = recipe_for_images(name) if adapter.spec.frame else (name, [])
            agent = build(recipe)
            seen = adapter
            if agent.index_actions != index_actions:
                seen = EnvAdapter(adapter.env, env_id=adapter.env_id, index_actions=agent.index_actions)
            agent.on(seen.spec)
        except UsageError as problem:
            others.append(f"{name} ({str(problem).rstrip('.')})")
        else:
            fits.append(recipe)
    return fits, others


def find_speed(subject: CheckedEnv, adapter: EnvAdapter) -> Iterator[Finding]:
    """Train for some updates, and compare the time of a step with that of an update."""
    name = "speed"
    fits, _ = list_recipes(adapter, subject.index_actions)
    recipe = next((fit for fit in fits if fit.split("+")[0] in BASES), None)
    if recipe is None:
        return
    if subject.deadline - time.monotonic() < SHARE_OF_TRAINING:
        yield Finding(name, "skip", "there is no time left to train", "give --seconds more")
        return
    base = {"warmup": RANDOM, "updates_per_step": 1.0, "replay_capacity": 10_000}
    plan = Plan(recipe, "", 10_000, envs=adapter.envs, eval_every=0, loop="host", settings={"base": base})
    plan, agent, _ = prepare(plan)
    made = subject.open(index_actions=agent.index_actions)
    session = make_session(plan, agent, made)
    for _ in session.events(RANDOM + UPDATES):  # compiles
        pass
    stepping, step = [], made.step

    def timed(action: np.ndarray) -> Any:
        start = time.perf_counter()
        try:
            return step(action)
        finally:
            stepping.append(time.perf_counter() - start)

    made.step = timed  # type: ignore[method-assign]
    updates, start = session.updates, time.perf_counter()
    for _ in session.events(session.env_steps + UPDATES * adapter.envs):
        pass
    whole, count = time.perf_counter() - start, session.updates - updates
    if not count:
        yield Finding(name, "skip", f"{recipe} made no update in {session.env_steps:,} steps")
        return
    ours = (whole - sum(stepping)) / count
    theirs = sum(stepping) / len(stepping)
    whose = f"all {adapter.envs} environments" if adapter.envs > 1 else "the environment"
    made_by = f"an update of {recipe} {_time(ours)} ({session.updates} were made)"
    detail = f"a step of {whose} takes {_time(theirs)}, {made_by}"
    if theirs > 3 * ours and theirs > 1e-3:
        yield Finding(
            name,
            "ok",
            detail,
            "most time goes into the environment: --envs 4 --vectorise async steps several at once",
        )
        return
    yield Finding(name, "ok", detail)


SHARE_OF_TRAINING = 20.0  # seconds that must be left to compile an update and to train


def _time(seconds: float) -> str:
    """Return a duration as text."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    main()
