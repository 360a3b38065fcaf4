"""Command-line flags made from dataclasses: the options of a run, and the fields of the agent's parts."""

import ast
import contextlib
import dataclasses
import difflib
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from qscape.agents import PARTS, Agent, advise_part, build, difference, onpolicy, ours
from qscape.errors import Conflict, MissingArgument, OutOfRange, UnknownField, WrongValue
from qscape.run.plan import Pace, anywhere
from qscape.trusted import list_code, trust
from qscape.types import setting
from qscape.values import decode, encode

T = TypeVar("T")
WIDEST = 100  # columns of help


@dataclasses.dataclass(frozen=True)
class TrainOptions(Pace):
    """Flags of `qscape train` beside those of the agent."""

    env: str = setting("", "Environment: a Gymnasium id, module:Env-v0, brax/ant, module:make.")
    config: str = setting("", "Recipe, settings and options of this run.json; other flags win over them.")
    dataset: str = setting("", "Learn from this dataset. Then --steps counts updates; --env only evaluates.")
    steps: int = setting(1_000_000, "Environment steps of each run, over all its parallel environments.")
    from_: str = setting("", "Start with the networks of this run.")
    keep_data: bool = setting(False, "With --from: start with that run's dataset in the replay.")
    seeds: tuple[int, ...] = setting((0,), "One run for each seed; several run in parallel.")
    seeds_as: Literal["auto", "processes", "vmap"] = setting(
        "auto",
        "Run several seeds in a process each, or in one vmapped program. auto: vmap on accelerators and for "
        "environments in JAX.",
    )
    out: str | None = setting(None, "Folder for the folders of the seeds. None: runs/ENV/RECIPE.")
    envs: int = setting(1, "Parallel environments in one run.")
    preset: str | None = setting(
        None,
        "Settings for this environment, of a paper, tuned, or our best (qscape list presets). Flags win "
        "over them.",
    )
    env_args: tuple[str, ...] = setting(
        (), "Arguments of the environment, e.g. continuous=False; --env.continuous False is the same."
    )
    overwrite: bool = setting(False, "Replace a run in the same folder.")
    log: tuple[str, ...] = setting((), "Additional loggers: wandb, trackio, mlflow, your own module:Class.")
    log_project: str = setting("", "Project of these loggers (MLflow: experiment). '': qscape-ENV.")
    log_group: str = setting("", "Group of the run there. '': the agent's label, which all seeds share.")
    log_tags: tuple[str, ...] = setting((), "Tags of the run there.")
    log_videos: bool = setting(False, "Send a video of an episode after every save, to wandb alone.")
    quiet: bool = setting(False, "Show no progress, only warnings, failures and the last lines.")


def parse(cls: type[T], argv: Sequence[str], prog: str) -> T:
    """Make a dataclass from the flags of a command line; `--help` prints the flags and ends the program.

    Args:
        cls: a dataclass of `flags_of` or `command_of`; each field is a flag, a nested one `--part.field`.
        argv: the flags with their values, `--name value ...` or `--name=value`.
        prog: the command before the flags, for messages, such as "qscape tune td3".

    Raises:
        UsageError: an unknown flag, or a value that does not fit. SystemExit: `--help` was given.
    """
    given = read_flags(cls, argv, prog)
    values: dict[str, Any] = {name: value for (part, name), value in given.items() if not part}
    if values.get("seed", 0) < 0:
        raise OutOfRange(f"--seed is {values['seed']}; it must be 0 or more.", field="seed")
    return cls(**values)


def read_flags(cls: type, argv: Sequence[str], prog: str) -> dict[tuple[str, str], Any]:
    """Return the values of the flags that were typed, by (part, field); without a dot, the part is "".

    Flags that were not typed are absent. Arguments and errors are those of `parse`.
    """
    known, found, position = _flags(cls), {}, 0
    env_args: list[str] = []
    if {"-h", "--help"} & {*argv}:
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, WIDEST))
        tyro.cli(cls, args=["--help"], prog=prog)
    while position < len(argv):
        flag, sign, first = argv[position].partition("=")
        if not flag.startswith("--"):
            raise WrongValue(f"{prog} does not take '{argv[position]}'; see {prog} --help.")
        words = [first] if sign else []
        position += 1
        while position < len(argv) and not argv[position].startswith("--"):
            words.append(argv[position])
            position += 1
        if flag.startswith("--env.") and "--env-args" in known:
            env_args.append(_env_argument(flag, words, prog))
            continue
        flag = flag.replace("_", "-")
        switch = flag if flag in known else flag.replace("--no-", "--", 1).replace(".no-", ".", 1)
        if switch not in known or (switch != flag and known[switch][2] is not bool):
            raise UnknownField(
                f"{prog} has no flag {flag}; {_nearest_flags(flag, known, prog)}", *_place(flag)
            )
        part, name, hint = known[switch]
        value = _read_value(switch, hint, words, prog) if hint is not bool else switch == flag
        if hint is bool and words:
            raise WrongValue(
                f"{prog} does not take '{words[0]}' after {flag}; see {prog} --help.", *_place(flag)
            )
        if isinstance(value, tuple) and (part, name) in found:
            raise Conflict(f"{flag} is there twice; name all its values after one.", *_place(flag))
        found[part, name] = value
    if env_args:
        found["", "env_args"] = (*found.get(("", "env_args"), ()), *env_args)
    _trust_typed(found)
    return found


def _trust_typed(found: Mapping[tuple[str, str], Any]) -> None:
    """Allow files to name the environment, its arguments and the probes that the user typed as well."""
    env, args, probe = (found.get(("", name)) for name in ("env", "env_args", "probe"))
    trust(*list_code(env or "", env_args(args or ()), probe or ()))


def _env_argument(flag: str, words: Sequence[str], prog: str) -> str:
    """Convert `--env.name value`, which is `--env-args name=value`, to the pair."""
    if len(words) != 1:
        raise MissingArgument(f"{flag} needs one value, like --env.max-episode-steps 500.", *_place(flag))
    return f"{flag.removeprefix('--env.').replace('-', '_')}={words[0]}"


def _nearest_flags(flag: str, known: Mapping[str, Any], prog: str) -> str:
    """Return the end of the error about an unknown flag: its name in qscape, or similar flags."""
    if names := ours(flag, (other[2:] for other in known)):
        written = f"{' and '.join(f'--{n}' for n in names)} here{difference(flag, names)}"
        return f"what others call {flag[2:].split('.')[-1]} is {written}."
    close = difflib.get_close_matches(flag, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"see {prog} --help."


def _read_value(flag: str, hint: Any, words: Sequence[str], prog: str) -> Any:
    """Convert the words after a flag to the type of its field.

    Raises:
        UsageError: there are too many or too few words, or one is not of the type.
    """
    row = next((kind for kind in (hint, *get_args(hint)) if get_origin(kind) is tuple), None)
    if row and (row is hint or (words and words != ["None"])):
        if get_args(row)[0] is str and not words:  # of numbers, none may be meant: no hidden layers
            raise MissingArgument(f"{flag} needs a value: {_form(flag, str)}.", *_place(flag))
        return tuple(_read_word(flag, get_args(row)[0], word) for word in words)
    if not words:
        raise MissingArgument(f"{flag} needs a value: {_form(flag, hint)}.", *_place(flag))
    if len(words) > 1:
        raise WrongValue(f"{prog} does not take '{words[1]}' after {flag}; see {prog} --help.", *_place(flag))
    return _read_word(flag, hint, words[0])


def _read_word(flag: str, hint: Any, word: str) -> Any:
    """Convert one word to the type `hint`. Raises UsageError if it is not of this type."""
    options = get_args(hint)
    if not word:
        raise MissingArgument(f"{flag} is empty; it is {_form(flag, hint)}.", *_place(flag))
    if get_origin(hint) is Literal:
        if word in map(str, options):
            return next(option for option in options if str(option) == word)
    elif options:  # float | None and the like
        kind = next(option for option in options if option is not type(None))
        return None if word == "None" else _read_word(flag, kind, word)
    elif hint is bool:
        if word in ("True", "False"):
            return word == "True"
    else:
        with contextlib.suppress(ValueError):
            return hint(word)
        with contextlib.suppress(ValueError):  # 1e6 is a whole number
            if hint is int and float(word).is_integer():
                return int(float(word))
    raise WrongValue(f"{flag} is '{word}'; it is {_form(flag, hint)}.", *_place(flag))


def _place(flag: str) -> tuple[str | None, str]:
    """Return the part, or None, and the field that a flag sets: of `--lap.alpha`, "lap" and "alpha"."""
    part, _, field = flag.lstrip("-").replace("-", "_").rpartition(".")
    return part or None, field


def _form(flag: str, hint: Any) -> str:
    """Return a flag with its kind of value as text, such as `--steps INT`."""
    if get_origin(hint) is Literal:
        return f"{flag} {'|'.join(map(str, get_args(hint)))}"
    kinds = get_args(hint) or (hint,)
    return f"{flag} {'|'.join('None' if k is type(None) else k.__name__.upper() for k in kinds)}"


def _flags(cls: type, part: str = "") -> dict[str, tuple[str, str, Any]]:
    """Return all flags of a dataclass with their part, field and type; flags of nested fields have a dot."""
    found: dict[str, tuple[str, str, Any]] = {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _flags(hints[field.name], field.name)
        else:
            name = ".".join(filter(None, [part, field.name.rstrip("_")])).replace("_", "-")
            found[f"--{name}"] = (part, field.name, hints[field.name])
    return found


def flags_of(value: Any, only: set[str] | None = None) -> type:
    """Make a dataclass whose fields are flags: those of `value`, with its values as defaults.

    Args:
        value: a dataclass; the metadata `help` of its fields explains the flags.
        only: names of the fields to take; None: all.
    """
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


def command_of(recipe: str, agent: Agent, run: TrainOptions) -> type:
    """Make the dataclass whose fields are the flags of `qscape train RECIPE`.

    Its fields are those of the run, and nested dataclasses for `base` and each part that has fields.

    Args:
        recipe: as the user typed it.
        agent: the agent of this recipe; its fields are the defaults of the flags.
        run: the defaults of the run's own flags.
    """
    own = flags_of(run)
    fields: list[tuple[str, Any, Any]] = [(f.name, f.type, f) for f in dataclasses.fields(own)]
    of_pace = Pace.__annotations__
    fields.sort(key=lambda field: field[0] in of_pace)  # these come last
    parts: dict[str, Any] = {"base": agent.base, **agent.parts}
    for name, part in parts.items():
        if dataclasses.fields(part):
            cls = flags_of(part)
            fields.append((name, cls, dataclasses.field(default_factory=cls)))
    made = dataclasses.make_dataclass("Train", fields, frozen=True)
    made.__doc__ = f"Train {recipe}."
    return made


def refuse_absent_parts(argv: Sequence[str], recipe: str, agent: Agent) -> None:
    """Refuse flags of parts that are not in the recipe; the error names a recipe with the part, if it can be.

    Raises:
        UsageError: there is such a flag.
    """
    for arg in argv:
        name = arg[2:].split(".", 1)[0].replace("-", "_") if arg.startswith("--") and "." in arg else ""
        if name in PARTS | onpolicy.PARTS and name not in agent.parts:
            raise UnknownField(
                f"{arg.split('=')[0]} belongs to {name}; {advise_part(recipe, name)}.", part=name
            )


def train_command(
    recipe: str,
    argv: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    run: TrainOptions | None = None,
) -> tuple[TrainOptions, dict[str, dict[str, Any]]]:
    """Read the flags of `qscape train RECIPE`, on top of the values of a config file.

    Args:
        recipe: base and parts joined by +.
        argv: the flags after the recipe.
        settings: fields by part from a config; flags win over them. None: no settings.
        run: the run's options from a config; flags win over them. None: the defaults.

    Returns:
        The run's options, and the settings by part: the config's and those that were typed. A field that was
        typed is a setting even if its value is the default.

    Raises:
        UsageError: an unknown recipe or flag, or a value that does not fit.
    """
    run = run or TrainOptions()
    agent = build(recipe, settings)
    refuse_absent_parts(argv, recipe, agent)
    typed = read_flags(command_of(recipe, agent, run), argv, f"qscape train {recipe}")
    given: dict[str, dict[str, Any]] = {k: dict(v) for k, v in (settings or {}).items()}
    for (part, field), value in typed.items():
        if part:
            given.setdefault(part, {})[field] = value
    own = {name: value for (part, name), value in typed.items() if not part}
    is_other = own.get("env", run.env) != run.env or (
        run.dataset and anywhere(own.get("dataset", run.dataset)) != run.dataset
    )
    if is_other:  # the config's environment is not that of this run, or of its dataset
        run = dataclasses.replace(run, env="", env_args=())
    elif "env_args" in own:  # of the config's environment: its other arguments stay
        own["env_args"] = (*run.env_args, *own["env_args"])
    return dataclasses.replace(run, **own), given


def env_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs as Python values; a value that is no literal is a string.

    A value may be written as run.json writes it (`qscape.values`): `{'$path': 'maps/one'}`.

    Raises:
        UsageError: a pair without =, `true` and `false`, which as strings would both be true, or a value of a
            type that run.json does not know.
    """
    args = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not all(part.isidentifier() for part in name.split(".")):
            raise WrongValue(
                f"--env-args {pair} is no name=value pair, like continuous=False.", field="env_args"
            )
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if value in ("true", "false"):
                raise WrongValue(
                    f"--env-args {pair}: write {name}={value.title()}, as in Python.", field="env_args"
                ) from None
            read = value
        try:
            args[name] = decode(read)
        except ValueError as problem:
            raise WrongValue(f"--env-args {pair}: {problem}.", field="env_args") from problem
    return args


def env_pair(name: str, value: Any) -> str:
    """Return the pair that `env_args` reads as this argument."""
    with contextlib.suppress(ValueError, SyntaxError):
        if encode(decode(ast.literal_eval(repr(value)))) == encode(value):
            return f"{name}={value!r}"
    return f"{name}={encode(value)!r}"


def positional(argv: Sequence[str], what: str, prog: str, flags_for: str = "RUN") -> tuple[str, list[str]]:
    """Split off the first argument, which must not be a flag.

    Args:
        argv: the arguments after the command.
        what: the name of the argument in messages, such as RECIPE.
        prog: the command, for messages.
        flags_for: the argument to return for --help alone, so that the caller prints flags.

    Returns:
        The argument, and the rest.

    Raises:
        UsageError: the argument is missing.
    """
    if not argv or not argv[0] or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            from qscape.cli import COMMANDS

            print(f"usage: {prog} {COMMANDS[prog.split()[-1]][1]}")
            return flags_for, ["--help"]  # the caller parses --help, which prints the flags
        raise MissingArgument(f"{prog} needs {what} first, e.g. {prog} {what}.")
    return argv[0], list(argv[1:])


def positionals(argv: Sequence[str], what: str, prog: str) -> tuple[list[str], list[str]]:
    """Split off the arguments before the first flag, at least one. Arguments are those of `positional`.

    Returns:
        These arguments, and the rest.

    Raises:
        UsageError: the first argument is missing or a flag.
    """
    first, rest = positional(argv, what, prog)
    at = next((k for k, a in enumerate(rest) if a.startswith("-")), len(rest))
    return [first, *rest[:at]], rest[at:]
