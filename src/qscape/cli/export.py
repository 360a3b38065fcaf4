"""The command `qscape export RUN --onnx FILE|--c FILE`."""

import dataclasses
import shlex
from importlib.resources import files as files_of
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console, show_tracks
from qscape.errors import MissingArgument, OutOfRange, WrongValue
from qscape.export import c_header, card, policy
from qscape.inspect.store import write_atomically
from qscape.run.folder import one_run
from qscape.run.training import set_up_jax
from qscape.types import setting

RUNNER = "run_policy.py"  # a program of its own, which is also a file of the package


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Flags of `qscape export`."""

    onnx: str | None = setting(None, "Write an ONNX file that runs without qscape.")
    c: str | None = setting(None, "Write a header in C99 that needs nothing but math.h.")
    prefix: str | None = setting(None, "With --c, what all names in the header begin with; by default FILE.")
    npz: str | None = setting(None, "Write the arrays as .npz, with a description in .json beside it.")
    tolerance: float = setting(
        policy.TOLERANCE,
        "Largest accepted difference from the library, as a share of half an action's range; above it no "
        "file is written.",
    )
    episodes: int = setting(10, "Number of evaluation episodes for the model card.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")
    runner: bool = setting(False, f"With --onnx, write {RUNNER} beside the file: it needs no qscape.")


def main(argv: list[str]) -> int:
    """Export the policy of one run, check it, and write its model card."""
    path, given = options.parse_after(ExportOptions(), argv, "RUN", "qscape export")
    if not given.tolerance > 0:
        raise OutOfRange(f"--tolerance is {given.tolerance:g}; it must be above 0.", field="tolerance")
    onnx, npz = _path_with_suffix(given.onnx, "onnx"), _path_with_suffix(given.npz, "npz")
    header = _path_with_suffix(given.c, "c", ".h")
    files = [file for file in (onnx, header, npz) if file is not None]
    if not files:
        raise MissingArgument(
            "qscape export RUN needs a file to write: add --onnx FILE, --c FILE or --npz FILE.", field="onnx"
        )
    if given.prefix is not None and header is None:
        raise MissingArgument("--prefix is of a header in C: add --c FILE.", field="c")
    prefix = c_header.check_prefix(given.prefix or (header.stem if header else "policy"))
    if header is not None:
        policy.refuse_foreign(header, c_header.MARK)
    policy.refuse_foreign(files[0].with_suffix(".md"), "library_name: qscape")  # before any is written
    if given.runner and onnx is None:
        raise MissingArgument("--runner runs an ONNX file: add --onnx FILE.", field="onnx")
    runner = files[0].with_name(RUNNER)
    if given.runner:
        policy.refuse_foreign(runner, "Run an exported policy")
    if npz is not None:
        policy.refuse_foreign(npz.with_suffix(".json"), f'"format": "{policy.FORMAT}"')
    set_up_jax()
    with show_tracks():
        made = policy.load_source(one_run(Path(path)), given.episodes, given.current)
    console, checked, found = plain_console(), None, None

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    if onnx is not None:
        with show_tracks():
            checked = policy.write_onnx(made, onnx, given.tolerance)
        say(
            f"{onnx}: largest difference {checked.difference:.1e} on {policy.CHECKED:,} observations, "
            f"single and batched (the library from itself: {checked.rounding:.1e}); "
            f"p50 {checked.p50:.3f} ms, p99 {checked.p99:.3f} ms on one core"
        )
    if header is not None:
        with show_tracks():
            found = c_header.write_header(made, header, prefix, given.tolerance)
        say(f"{header}: {card.describe_header(found)}")
    if given.runner:
        write_atomically(runner, (files_of("qscape.export") / RUNNER).read_bytes())
        say(f"{runner}: {shlex.join(['python', str(runner), str(onnx)])}")
    if npz is not None:
        files.append(policy.write_arrays(made, npz))
        say(f"{npz}, {files[-1]}")
    written = card.write_card(made, files, checked, found)
    say(f"{written}: {card.describe_evaluation(made).replace('**', '')}")
    return 0


def _path_with_suffix(name: str | None, flag: str, suffix: str | None = None) -> Path | None:
    """Return the path that a flag gives; without a suffix it gets `suffix`, by default the flag's name.

    Raises:
        UsageError: it has another suffix.
    """
    if name is None:
        return None
    path, suffix = Path(name), suffix or f".{flag}"
    path = path if path.suffix else path.with_suffix(suffix)
    if path.suffix != suffix:
        raise WrongValue(
            f"--{flag} {name}: the file name must end in {suffix}, like {path.with_suffix(suffix)}.",
            field=flag,
        )
    return path
