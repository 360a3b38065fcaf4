"""Mutants of the core: one wrong line each, which the quick tests have to notice.

    python tests/mutants.py                        # all of them, against `-m "not slow"`
    python tests/mutants.py --select "" 3 17       # two of them, against every test of the files named

Each is applied to a temporary copy of the tree, in which the test files named beside it run until the first
failure. A mutant that no test notices is printed as SURVIVED.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A wrong change of the code.

    Attributes:
        file: the file below src/qscape.
        old: text that occurs once in the file.
        new: the text that replaces it.
        tests: the tests that run: files of tests/ without "test_" and ".py", or FILE::test[row]. Those of
            tests/contrib run whole, as `make test` leaves them out.
    """

    file: str
    old: str
    new: str
    tests: str


ORACLE = "oracles::test_agent_equals_its_oracle_to_the_bit"
MUTANTS = [
    Mutant("ops/td.py", "(1.0 - terminated) * discount", "discount", ORACLE + "[td3-32-300]"),
    Mutant("ops/td.py", "jnp.abs(td_error).max(-1)", "jnp.abs(td_error).min(-1)", "td7_checks lap"),
    Mutant("ops/td.py", "0.5 * jnp.square(x), x)", "0.5 * jnp.square(x), 2.0 * x)", ORACLE + "[td7-32-520]"),
    Mutant("offpolicy/update.py", "total = base.critic_loss_scale *", "total = 1.0 *", "pave contract"),
    Mutant(
        "offpolicy/update.py",
        "return total, (q - mean, mean,",
        "return total, (2 * (q - mean), mean,",
        ORACLE + "[td7-32-520]",
    ),
    Mutant(
        "offpolicy/update.py",
        "if number == 0 else jax.lax.stop_gradient(",
        "if number != 0 else jax.lax.stop_gradient(",
        "savo contract",
    ),
    Mutant(
        "offpolicy/update.py",
        "delayed = stage.agent.base.policy_delay > 1",
        "delayed = False",
        "contract oracles",
    ),
    Mutant(
        "offpolicy/update.py",
        "_replace(actor_target=actor_target,",
        "_replace(actor_target=state.actor,",
        ORACLE + "[td3-32-300]",
    ),
    Mutant("replay/storage.py", "% layout.ring\n    size =", "% (layout.ring + 1)\n    size =", "replay"),
    Mutant(
        "replay/storage.py", "jnp.cumsum(stop, axis=0) - stop == 0", "jnp.cumsum(stop, axis=0) == 0", "replay"
    ),
    Mutant(
        "replay/storage.py",
        "stop = (terminated + truncated > 0) | newest",
        "stop = (terminated > 0) | newest",
        "replay",
    ),
    Mutant("replay/uniform.py", 'side="right"', 'side="left"', "replay"),
    Mutant("offpolicy/update.py", '"next": raw[size:]', '"next": raw[:size]', "contrib/networks"),
    Mutant(
        "methods/asap.py",
        "(moved, statistics)",
        "(moved, split_statistics(state.extra)[1])",
        "contrib/networks",
    ),
    Mutant(
        "methods/sale.py",
        "lambda old: (new, old[0]), (fixed, fixed_target)",
        "lambda old: (new, old[1]), (fixed, fixed_target)",
        ORACLE + "[td7-32-520]",
    ),
    Mutant(
        "methods/sale.py",
        'return fixed if which == "fixed" else fixed_target',
        "return fixed",
        ORACLE + "[td7-32-520]",
    ),
    Mutant(
        "methods/value_clip.py",
        "jnp.maximum(bounds.run_max, target_values.max())",
        "target_values.max()",
        "td7_checks contract oracles",
    ),
    Mutant("methods/checkpoints.py", "score >= best", "score > best", "td7_checks"),
    Mutant(
        "methods/checkpoints.py",
        "event.update <= self.switch < event.update + updates",
        "event.update < self.switch <= event.update + updates",
        "td7_checks",
    ),
    Mutant("methods/pave.py", "jax.nn.relu(c + self.delta)", "jax.nn.relu(c - self.delta)", "pave"),
    Mutant(
        "methods/pave.py",
        "jax.random.rademacher(",
        "jax.random.normal(",
        "pave " + ORACLE + "[td3+pave-32-300]",
    ),
    Mutant(
        "methods/savo.py",
        "q[1 : i + 1].max(0)",
        "q[1 : i + 2].max(0)",
        "savo::test_agent_equals_its_oracle_to_the_bit savo",
    ),
    Mutant(
        "methods/savo.py",
        "rows = jnp.concatenate([executed[None], context.snap(proposals, obs)])",
        "rows = points",
        "savo_released",
    ),
    Mutant("offpolicy/exploration.py", "noise - base.ou_rate * before", "noise - before", "savo_released"),
    Mutant(
        "methods/savo.py",
        "jnp.where(value >= stop(floor), value, stop(floor))",
        "jnp.maximum(value, floor)",
        "savo savo_checks landscape",
    ),
    Mutant("methods/savgo.py", "loss - (1.0 - w) * kernel_value", "loss - kernel_value", "savgo_checks"),
    Mutant(
        "methods/savgo.py",
        "discount * (1.0 - batch.terminated) * q",
        "discount * q",
        ORACLE + "[sac+savgo-32-300]",
    ),
    Mutant(
        "onpolicy/update.py",
        "segment_end = done.at[-1].set(1.0)",
        "segment_end = done",
        "onpolicy onpolicy_oracles",
    ),
    Mutant("onpolicy/update.py", "target = target / scale", "pass", "onpolicy"),
    Mutant(
        "ops/returns.py",
        "(1.0 - segment_end) * discount * decay * after",
        "(1.0 - segment_end) * decay * after",
        "onpolicy",
    ),
    Mutant("ops/returns.py", "sum_ * (1.0 - done), sum_", "sum_, sum_", "onpolicy"),
    Mutant(
        "run/engines/replay.py",
        "self.learner.env_steps >= base.warmup",
        "self.learner.env_steps > base.warmup",
        "run td7_checks",
    ),
    Mutant(
        "run/engines/replay.py",
        "if keep:\n            self.kept",
        "if not keep:\n            self.kept",
        "run::test_training_is_the_same_with_and_without_evaluation",
    ),
    Mutant(
        "run/engines/replay.py",
        "asked = self.updates + self.pending",
        "asked = self.updates",
        "td7_checks run",
    ),
    Mutant("run/episodes.py", "(keys, t + 1)", "(keys, t)", "episodes"),
    Mutant("run/episodes.py", "jnp.where(running, reward, 0.0)", "reward", "episodes"),
    Mutant("run/evaluation.py", "np_random(seed + i)", "np_random(seed)", "episodes"),
    Mutant("envs/native.py", "min(limits,", "max(limits,", "episodes"),
    Mutant(
        "run/saves.py",
        "for name in names(folder)[: -keep or None]",
        "for name in names(folder)[:-keep]",
        "saves",
    ),
    Mutant(
        "run/saves.py",
        'if leaf["crc32"] != info.CRC:',
        'if leaf["crc32"] is None:',
        "saves",
    ),
]


def judge(mutant: Mutant, copy: Path, select: str) -> str:
    """Run a mutant's tests in a copy of the tree, and restore the copy.

    Args:
        copy: the copy.
        select: pytest's -m.

    Returns:
        "killed by TEST", "SURVIVED", or why the mutant could not be applied or run.
    """
    source = copy / "src/qscape" / mutant.file
    text = source.read_text()
    if text.count(mutant.old) != 1:
        return f"NOT APPLICABLE: {text.count(mutant.old)} places"
    source.write_text(text.replace(mutant.old, mutant.new))
    try:
        files = [
            f"tests/{folder}{slash}test_{file}.py{at}{row}"
            for place, at, row in (t.partition("::") for t in mutant.tests.split())
            for folder, slash, file in [place.rpartition("/")]
        ]
        select = "" if mutant.tests.startswith("contrib/") else select
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-m", select, *files]
        path = os.pathsep.join([str(copy / "src"), str(copy)])
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
    finally:
        source.write_text(text)
    if done.returncode == 0:
        return "SURVIVED"
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"killed by {failed[0]}" if done.returncode == 1 and failed else f"NOT RUN: {done.stdout[-400:]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, help="only these, counted from 0")
    parser.add_argument("--select", default="not slow", help="pytest's -m")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the tree to copy")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("src", "tests", "reference", "docs", "examples"):
            if (asked.tree / name).exists():
                shutil.copytree(asked.tree / name, copy / name)
        shutil.copy(asked.tree / "pyproject.toml", copy)
        for number in asked.numbers or range(len(MUTANTS)):
            mutant, start = MUTANTS[number], time.monotonic()
            verdict = judge(mutant, copy, asked.select)
            line = " ".join(mutant.new.split())
            print(
                f"{number:3d} {time.monotonic() - start:4.0f} s  {verdict}  ({mutant.file}: {line})",
                flush=True,
            )


if __name__ == "__main__":
    main()
