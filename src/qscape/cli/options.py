"""Command-line flags made from dataclasses: the options of a run, and the fields of the agent's parts."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from qscape.agents import PARTS, Agent, advise_part, build, difference, onpolicy, ours
from qscape.envs.lag import Lag
from qscape.errors import Conflict, MissingArgument, OutOfRange, UnknownField, WrongValue
from qscape.run.plan import Pace, anywhere
from qscape.run.processes import Place, read_place
from qscape.trusted import list_code, trust
from qscape.types import check_flags, setting
from qscape.values import decode, encode

T = TypeVar("T")
WIDEST = 100  # columns of help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Flags of commands whose run several processes can share."""

    processes: str = setting(
        "",
        "Split the run over several processes, of which this is one: HOST:PORT,COUNT,NUMBER, or slurm in the "
        "tasks of srun.",
    )
    join_seconds: float = setting(
        300.0, "Seconds that processes wait for each other at the start.", within="> 0"
    )

    @property
    def place(self) -> Place | None:
        """The place of this process among them; None if it is the only one."""
        check_flags(self)
        return read_place(self.processes, self.join_seconds) if self.processes else None


@dataclasses.dataclass(frozen=True)
class TrainOptions(Pace, Lag, Shared):
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


class Flag(NamedTuple):
    """A flag of the command line: a field of a dataclass.

    Attributes:
        part: of the agent, or "base"; "" for a flag of the command itself.
        field: name of the field.
        hint: its type.
        default: its value if the flag is not typed.
        help: a sentence.
    """

    part: str
    field: str
    hint: Any
    default: Any
    help: str


def parse(options: T, argv: Sequence[str], prog: str) -> T:
    """Return the options with the values of a command line; `--help` prints the flags and ends the program.

    Args:
        options: a dataclass, each of whose fields is a flag, with the defaults.
        argv: the flags with their values, `--name value ...` or `--name=value`.
        prog: the command before the flags, for messages, such as "qscape tune td3".

    Raises:
        UsageError: an unknown flag, or a value that does not fit. SystemExit: `--help` was given.
    """
    given = read_flags({"": options}, argv, prog)
    values: dict[str, Any] = {name: value for (_, name), value in given.items()}
    if values.get("seed", 0) < 0:
        raise OutOfRange(f"--seed is {values['seed']}; it must be 0 or more.", field="seed")
    made = dataclasses.replace(options, **values)  # type: ignore[type-var]
    check_flags(made)
    return made


def parse_after(options: T, argv: Sequence[str], what: str, prog: str, **needs: str) -> tuple[str, T]:
    """Split off the first argument, and parse the flags behind it.

    Args:
        options: as in `parse`.
        argv, what, prog: as in `positional`.
        **needs: for each flag that must not be left out: what it is, and an example.

    Returns:
        The argument, and the options.

    Raises:
        UsageError: as in `positional` and `parse`, or one of `needs` is missing. SystemExit: as in `parse`.
    """
    first, rest = positional(argv, what, prog)
    given = parse(options, rest, f"{prog} {what}")
    for field, need in needs.items():
        if not getattr(given, field):
            raise MissingArgument(f"{prog} {what} needs {need}.", field=field)
    return first, given


def read_flags(groups: Mapping[str, Any], argv: Sequence[str], prog: str) -> dict[tuple[str, str], Any]:
    """Return the values of the flags that were typed, by (part, field); flags that were not are absent.

    Args:
        groups: dataclasses whose fields are the flags, by part; "" for those of the command itself.
        argv: as in `parse`.
        prog: as in `parse`.

    Raises:
        UsageError: as in `parse`. SystemExit: `--help` was given.
    """
    if {"-h", "--help"} & {*argv}:
        print(describe_flags(groups, prog))
        raise SystemExit(0)
    known, found, position = flags_of(groups), {}, 0
    env_args: list[str] = []
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
        if switch not in known or (switch != flag and known[switch].hint is not bool):
            raise UnknownField(
                f"{prog} has no flag {flag}; {_nearest_flags(flag, known, prog)}", *_place(flag)
            )
        part, name, hint, *_ = known[switch]
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
    return f"{flag} {_kind(hint)}"


def _kind(hint: Any) -> str:
    """Return the kind of value of a type as text, such as `INT`, `INT ...` or `FLOAT|None`."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, kinds))
    if get_origin(hint) is tuple:
        return f"{_kind(kinds[0])} ..."
    if kinds:
        return "|".join(map(_kind, kinds))
    return "None" if hint is type(None) else hint.__name__.upper()


def flags_of(groups: Mapping[str, Any]) -> dict[str, Flag]:
    """Return all flags of dataclasses by their names, such as `--steps` and `--base.batch-size`.

    Of a dataclass, the fields of its own come before those that it inherits.

    Args:
        groups: as in `read_flags`.
    """
    found = {}
    for part, options in groups.items():
        hints, own = get_type_hints(type(options)), inspect.get_annotations(type(options))
        for field in sorted(dataclasses.fields(options), key=lambda field: field.name not in own):
            name = ".".join(filter(None, [part, field.name.rstrip("_")])).replace("_", "-")
            value, help_text = getattr(options, field.name), field.metadata.get("help", "")
            found[f"--{name}"] = Flag(part, field.name, hints[field.name], value, help_text)
    return found


def describe_flags(groups: Mapping[str, Any], prog: str) -> str:
    """Return the text that `--help` prints: every flag with its kind of value, its sentence and its default.

    Args:
        groups: as in `read_flags`.
        prog: as in `parse`.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [f"usage: {prog} [FLAGS]", "", "-h, --help: print this text."]
    for part, options in groups.items():
        about = (type(options).__doc__ or "").split("\n")[0]
        lines += ["", *textwrap.wrap(f"{part}: {about}" if part else about, width)]
        for flag, (_, _, hint, default, help_text) in flags_of({part: options}).items():
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            off = flag.replace(".", ".no-", 1) if part else flag.replace("--", "--no-", 1)
            head = f"{flag}, {off}" if hint is bool else _form(flag, hint)
            text = f"{help_text} (default: {shown or 'nothing'})"
            for words, indent in ((head, "  "), (text, "      ")):
                lines += textwrap.wrap(
                    words, width, initial_indent=indent, subsequent_indent=" " * 6, break_on_hyphens=False
                )
    return "\n".join(lines)


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
    parts = {"base": agent.base, **agent.parts}
    groups = {"": run, **{name: part for name, part in parts.items() if dataclasses.fields(part)}}
    typed = read_flags(groups, argv, f"qscape train {recipe}")
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
