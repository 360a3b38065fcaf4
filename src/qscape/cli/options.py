"""Flags from dataclasses: those of the run, of the base, and of the parts that are present."""

import ast
import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from qscape.agents import PARTS, Agent, build, onpolicy, settings_of
from qscape.errors import UsageError
from qscape.run.plan import Pace
from qscape.types import setting

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Run(Pace):
    """What `qscape train` takes beside the agent's own flags."""

    env: str = setting("", "Environment: a Gymnasium id, or module:Env-v0.")
    config: str = setting("", "Recipe and settings of this run.json; what else is typed wins over them.")
    dataset: str = setting("", "Learn from this dataset; then steps are updates, and --env only evaluates.")
    steps: int = setting(1_000_000, "Environment steps, over all parallel environments.")
    from_: str = setting("", "A run whose networks this one begins with.")
    keep_data: bool = setting(False, "With --from: begin with that run's dataset in the replay.")
    seeds: tuple[int, ...] = setting((0,), "One run for each; several run side by side.")
    seeds_as: Literal["auto", "processes", "vmap"] = setting(
        "auto", "Several seeds: a process each, one to a core; or one vmapped program, as on an accelerator."
    )
    out: str | None = setting(None, "Folder of the group of seeds; None: runs/ENV/RECIPE.")
    envs: int = setting(1, "Environments side by side in one run.")
    preset: str | None = setting(
        None, "Settings of a paper for this environment, e.g. paper; flags win over it."
    )
    env_args: tuple[str, ...] = setting((), "Arguments of the environment, e.g. continuous=False.")
    overwrite: bool = setting(False, "Replace a run that is there.")
    log: tuple[str, ...] = setting((), "Further loggers: wandb, trackio.")


def parse(cls: type[T], argv: Sequence[str], prog: str) -> T:
    """A dataclass from flags; unknown flags are refused with the nearest ones.

    Raises:
        UsageError: an unknown flag, or a value that does not fit. SystemExit: help was asked for.
    """
    known = set(_flags(cls))
    for arg in argv:
        flag = arg.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and flag != "--help" and flag not in known:
            negated = (
                flag.replace("--no-", "--", 1) if flag.startswith("--no-") else flag.replace(".no-", ".", 1)
            )
            if negated in known:
                continue
            close = difflib.get_close_matches(flag, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else f"see {prog} --help."
            raise UsageError(f"{prog} has no flag {flag}; {hint}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = tyro.cli(cls, args=list(argv), prog=prog)
    except SystemExit as end:
        if end.code != 2:
            raise
        raise UsageError(_sentence(said.getvalue(), prog)) from None
    if getattr(given, "seed", 0) < 0:
        raise UsageError(f"--seed is {given.seed}; it must be 0 or more.")  # type: ignore[attr-defined]
    return given


def _sentence(box: str, prog: str) -> str:
    """What tyro says in a box, between its title and its first rule, as one sentence."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    is_rule = [not line.strip("─-") for line in lines]
    begin = is_rule.index(False)  # a box of ASCII has a rule beneath the title
    words = " ".join(lines[begin : is_rule.index(True, begin)]).removeprefix("Error parsing ").rstrip(".")
    form = re.search(r"helptext:\s*(--.*)", "\n".join(lines))
    words = words.replace("invalid literal for int() with base 10: ", "no whole number: ")
    return f"{words}; {f'it is {form[1]}' if form else f'see {prog} --help'}."


def _flags(cls: type, prefix: str = "--") -> list[str]:
    """All flags of a dataclass, nested ones with their dots."""
    found = []
    for field in dataclasses.fields(cls):
        name = prefix + field.name.rstrip("_").replace("_", "-")
        if dataclasses.is_dataclass(field.type):
            found += _flags(field.type, f"{name}.")  # type: ignore[arg-type]
        else:
            found.append(name)
    return found


def flags_of(value: Any, only: set[str] | None = None) -> type:
    """A dataclass type with a value's fields, its present values as defaults, and help from metadata."""
    hints = get_type_hints(type(value))
    fields = []
    for field in dataclasses.fields(value):
        if only is None or field.name in only:
            name = field.name.rstrip("_").replace("_", "-") if field.name.endswith("_") else None
            note = tyro.conf.arg(name=name, help=field.metadata.get("help", ""))
            default = dataclasses.field(default=getattr(value, field.name))
            fields.append((field.name, Annotated[hints[field.name], note], default))
    made = dataclasses.make_dataclass(type(value).__name__, fields, frozen=True)
    made.__doc__ = (type(value).__doc__ or "").split("\n")[0]
    return made


def command_of(recipe: str, agent: Agent) -> type:
    """The dataclass behind `qscape train RECIPE`: the run's flags, `base`, and each part with fields."""
    run = flags_of(Run())
    fields: list[tuple[str, Any, Any]] = [(f.name, f.type, f) for f in dataclasses.fields(run)]
    fields.sort(key=lambda field: field[0] not in Run.__annotations__)  # what comes from Pace goes last
    parts: dict[str, Any] = dict(agent.parts)
    named = {"base": agent.base} | {n: p for n, p in parts.items() if dataclasses.fields(p)}
    for name, part in named.items():
        cls = flags_of(part)
        fields.append((name, cls, dataclasses.field(default_factory=cls)))
    made = dataclasses.make_dataclass("Train", fields, frozen=True)
    made.__doc__ = f"Train {recipe}."
    return made


def refuse_absent_parts(argv: Sequence[str], recipe: str, agent: Agent) -> None:
    """A flag of a part that is not in the recipe gets the recipe that has it.

    Raises:
        UsageError: there is such a flag.
    """
    for arg in argv:
        name = arg[2:].split(".", 1)[0].replace("-", "_") if arg.startswith("--") and "." in arg else ""
        if name in PARTS | onpolicy.PARTS and name not in agent.parts:
            raise UsageError(f"{arg.split('=')[0]} belongs to {name}; write {recipe}+{name}.")


def train_command(
    recipe: str, argv: Sequence[str], settings: Mapping[str, Any] | None = None
) -> tuple[Run, dict[str, dict[str, Any]]]:
    """The run's options and the settings that were given on the command line or in a config.

    Raises:
        UsageError: an unknown recipe or flag.
    """
    agent = build(recipe, settings)
    refuse_absent_parts(argv, recipe, agent)
    parsed = parse(command_of(recipe, agent), argv, f"qscape train {recipe}")
    before = settings_of(agent)
    given: dict[str, dict[str, Any]] = {k: dict(v) for k, v in (settings or {}).items()}
    typed = {a.split("=", 1)[0].replace("_", "-").replace(".no-", ".") for a in argv if a.startswith("--")}
    for name, fields in before.items():
        for field in fields:
            # What was typed counts, also where it repeats the default: an explicit number wins.
            if f"--{name}.{field}".replace("_", "-") in typed:
                given.setdefault(name, {})[field] = getattr(getattr(parsed, name), field)
    run = Run(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(Run)})
    return run, given


def env_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs as Python values; what is no literal is a string.

    Raises:
        UsageError: a pair without =.
    """
    args = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--env-args {pair} is no name=value pair, like continuous=False.")
        try:
            args[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            args[name] = value
    return args


def positional(
    argv: Sequence[str], what: str, prog: str, flags_for: str | None = "RUN"
) -> tuple[str, list[str]]:
    """The first argument, which is not a flag, and the rest. A bare --help is asked of `flags_for`.

    Raises:
        UsageError: it is missing.
    """
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            from qscape.cli import COMMANDS

            print(f"usage: {prog} {COMMANDS[prog.split()[-1]][1]}")
            if flags_for is None:
                sys.exit(0)
            return flags_for, ["--help"]  # which prints the flags
        raise UsageError(f"{prog} needs {what} first, e.g. {prog} {what}.")
    return argv[0], list(argv[1:])


def positionals(argv: Sequence[str], what: str, prog: str) -> tuple[list[str], list[str]]:
    """The arguments before the first flag, at least one, and the rest.

    Raises:
        UsageError: there is none.
    """
    first, rest = positional(argv, what, prog)
    at = next((k for k, a in enumerate(rest) if a.startswith("-")), len(rest))
    return [first, *rest[:at]], rest[at:]
