"""The command line: parses arguments and prints. Exit code 2: wrong usage; 1: failure; 130: interrupted.

This module imports nothing heavy, so that `qscape --help` is fast.
"""

import difflib
import importlib
import io
import signal
import sys
import threading

from qscape.errors import QscapeError, WrongValue, WrongVersion, describe, memory_error, one_line
from qscape.versions import find_wrong_versions

INTERRUPTED = 130  # exit code
FLAGS = "--debug", "--trust", "--other-spaces"  # of every command
COMMANDS = {
    "train": ("train an agent on an environment", "RECIPE --env ID [--steps N] [--seeds 0 1]"),
    "resume": ("continue a run, or make it longer", "RUN [--steps N]"),
    "reproduce": ("run a run again, compare every number", "RUN [--out DIR]"),
    "study": (
        "run agents on environments",
        "run|status STUDY [--budget quick]",
    ),
    "tune": ("search for better fields of an agent", "RECIPE --env ID --trials N --steps M"),
    "watch": ("watch a run while it trains", "RUN [--show METRIC] [--once]"),
    "evaluate": ("run whole episodes with a trained policy", "RUN [--episodes N]"),
    "compare": ("compare runs statistically", "RUNS... [--html|--png|--csv|--json FILE]"),
    "plot": ("draw the learning curves of runs", "RUNS... --png FILE"),
    "video": ("film a trained policy", "RUN [--mp4 FILE]"),
    "landscape": (
        "draw Q over actions, measure its optima",
        "RUN [RUN2] [--over-training]",
    ),
    "smoothness": ("measure how smoothly policies act", "RUN... [--robustness] [--json|--png FILE]"),
    "embedding": ("draw the geometry that savgo learned", "RUN [--state-from EPISODE:STEP]"),
    "check": ("run an environment as training would", "ENV [--envs N] [--json FILE]"),
    "record": ("record episodes of a policy as a dataset", "RUN --episodes N --dataset NAME"),
    "dataset": ("show what a dataset holds", "NAME"),
    "collapse": ("measure action collapse of on-policy agents", "RUN... [--states N] [--json|--png FILE]"),
    "export": ("write a policy as a file for other programs", "RUN --onnx FILE [--c FILE]"),
    "push": ("upload a run to the Hugging Face hub", "RUN --repo OWNER/NAME"),
    "pull": ("fetch a run from the Hugging Face hub", "OWNER/NAME [--out RUN]"),
    "import": ("make a run of a Stable-Baselines3 file", "FILE --env ID [--out RUN]"),
    "cache": ("show or clear compiled programs", "[--clear]"),
    "list": ("show agents, parts, presets, environments", "[agents|parts|presets|envs|studies]"),
}


def usage() -> str:
    """Return the text that `qscape --help` prints."""
    lines = [
        "qscape: learn, shape and search the action-value landscape",
        "",
        "usage: qscape COMMAND ARGUMENTS",
        "",
    ]
    lines += [f"  {name:<12}{says:<45}{args}" for name, (says, args) in COMMANDS.items()]
    lines += [
        "",
        "A recipe is a base and parts joined by +: td3, sac, td7, td3+sale+lap. Flags follow the recipe:",
        "qscape train td7 --help shows those of td7. --debug shows tracebacks. --parts module:Class imports",
        "a part of your own, e.g. for a run that was trained with it. --trust imports modules that a run, a",
        "dataset or a study names; without it, files run no code. --other-spaces loads a run where",
        "bounds, keys or dtypes of the environment are others than in its training.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return the exit code.

    `argv`: the arguments after `qscape`; None: those of this process, which ends after them.
    """
    if argv is None:
        if sys.argv[1:2] and sys.argv[1] in COMMANDS:
            from qscape.system import collect_seldom  # a third of the time that `qscape --help` takes

            collect_seldom()
        return _run(sys.argv[1:])
    before = signal.getsignal(signal.SIGINT)
    try:
        return _run(argv)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _run(argv: list[str]) -> int:
    """Run a command line and return the exit code. After an interrupt, SIGINT may have no effect any more."""
    argv = [*argv]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 has no ±, σ or ‖
            stream.reconfigure(errors="replace")
    debug, trusting, other_spaces = (flag in argv for flag in FLAGS)
    argv, places = _without_parts([a for a in argv if a not in FLAGS])
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"qscape {version('qscape')}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=2)
        others = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"qscape: there is no command '{one_line(argv[0])}'; {others}", file=sys.stderr)
        return 2
    try:
        from qscape import trusted

        if other_spaces:
            from qscape.envs.kept_spaces import accept_others

            accept_others()
        if trusting:
            trusted.trust(trusted.EVERYTHING)
        if places:
            from qscape.agents import register

            for place in places:
                register(place)
            trusted.keep_parts(*places)
        module = {"import": "import_policy", "list": "list_parts"}.get(argv[0], argv[0])
        return importlib.import_module(f"qscape.cli.{module}").main(argv[1:])
    except QscapeError as problem:
        if debug:
            raise
        print(f"qscape: {problem}", file=sys.stderr)
        return problem.status
    except BrokenPipeError:  # e.g. `qscape list | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("qscape: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as problem:  # a folder without permission, a name that is too long, a full disk
        if debug:
            raise
        print(f"qscape: {problem.filename or 'a file'}: {problem.strerror or problem}.", file=sys.stderr)
        return 1
    except Exception as problem:
        full = memory_error(problem)
        if isinstance(problem, ValueError) and "embedded null" in str(problem):
            full = WrongValue("a file's name holds a NUL byte, on the command line or in a file; remove it.")
        elif full is None and not debug and (wrong := find_wrong_versions()):
            full = WrongVersion(f"{'; '.join(wrong)} ({describe(problem)}).")
        if debug or full is None:
            raise
        print(f"qscape: {full}", file=sys.stderr)
        return full.status


def _without_parts(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into those without `--parts module:Class`, and the places that `--parts` names."""
    rest: list[str] = []
    places: list[str] = []
    given = iter(argv)
    for arg in given:
        name, _, value = arg.partition("=")
        if name == "--parts":
            places += (value or next(given, "")).split(",")
        else:
            rest.append(arg)
    return rest, places


def entry() -> None:
    """Run the console script `qscape`."""
    code = main()
    if code == INTERRUPTED:  # a further Ctrl-C would disturb how Python and JAX end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
