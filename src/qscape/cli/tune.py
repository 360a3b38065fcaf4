"""`qscape tune RECIPE --env ID --trials N --steps M`."""

import dataclasses
import itertools
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from rich.console import Console
from rich.table import Table

from qscape import trusted
from qscape.agents import build, register_named
from qscape.cli import options
from qscape.cli.running import LiveBoard, clock, plain_console, table
from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.build import refuse_without_version
from qscape.envs.lag import Lag
from qscape.envs.repeats import make_draw
from qscape.errors import MissingArgument, RunsFailed
from qscape.jobs.ranges import find_ranges
from qscape.jobs.trials import Metric, Search, State, Trial
from qscape.jobs.tune import Tuner, find_influences, open_search
from qscape.run.plan import Plan, folder_name, moot_notes, prepare
from qscape.system import count_cores, file_name
from qscape.types import setting

SHOWN = 10  # maximal number of trials in the table at the end


@dataclasses.dataclass(frozen=True)
class TuneOptions(Lag):
    """Flags of `qscape tune`; those of the agent, such as --base.batch-size 64, fix fields."""

    env: str = setting("", "Environment: a Gymnasium id, or module:Env-v0.")
    trials: int = setting(20, "Trials in all, with those that were pruned or failed.", within=">= 1")
    steps: int = setting(100_000, "Environment steps of one run.")
    seeds: int = setting(1, "Runs of one trial, with the seeds 0, 1, ...; their mean counts.", within=">= 1")
    fields: tuple[str, ...] = setting((), "Fields to search, e.g. base.discount; none: all with a range.")
    ranges: str | None = setting(None, "TOML file with ranges of further fields, or others of these.")
    metric: Metric = setting("final", "What a trial is worth: its last evaluation or its best.")
    seed: int = setting(0, "Of the sampler.")
    workers: int | None = setting(None, "Runs side by side; None: one to a core.", within=">= 1")
    storage: str | None = setting(
        None, "Journal file of the search, e.g. journal.log, which several processes and machines share."
    )
    out: str | None = setting(None, "Folder of the search; None: runs/tune/ENV/RECIPE.")
    eval_every: int | None = setting(
        None, "Environment steps between evaluations; None: a tenth of the run.", within=">= 1"
    )
    eval_episodes: int = setting(10, "Episodes of one evaluation.")
    preset: str | None = setting(
        None, "Settings of a paper for this environment, e.g. paper; flags win over it."
    )
    env_args: tuple[str, ...] = setting((), "Arguments of the environment, e.g. continuous=False.")


def main(argv: list[str]) -> int:
    """Search the fields of one agent. Returns the exit code."""
    recipe, rest = options.positional(argv, "RECIPE", "qscape tune", flags_for="RECIPE")
    register_named(recipe)
    own, agents = split(rest)
    given = options.parse(TuneOptions(), own, f"qscape tune {recipe}")
    settings = options.train_command(recipe, agents)[1]
    if not given.env:
        raise MissingArgument(
            f"qscape tune {recipe} needs an environment, e.g. --env Pendulum-v1.", field="env"
        )
    plan = Plan(
        recipe=recipe,
        env=given.env,
        steps=given.steps,
        env_args=options.env_args(given.env_args),
        settings=settings,
        preset=given.preset,
        **given.lag.changes,
        eval_every=given.eval_every or max(1, given.steps // 10),
        eval_episodes=given.eval_episodes,
    )
    refuse_without_version(plan.env)
    for note in moot_notes(prepare(plan)[1].moot_fields(), settings):  # a searched field may change that
        plain_console().print(note, soft_wrap=True)
    ranges = find_ranges(plan, given.fields, Path(given.ranges) if given.ranges else None)
    index_actions = build(recipe, settings).index_actions
    args = dict(plan.env_args)
    adapter = make_adapter(plan.env, env_args=args, index_actions=index_actions, lag=plan.lag)
    by_success = reports_success(adapter)
    adapter.close()  # made so that an unfit environment is refused before a folder is created
    folder = Path(given.out) if given.out else Path("runs", "tune", file_name(plan.env), folder_name(recipe))
    journal = Path(given.storage) if given.storage else None
    search = Search(plan, ranges, folder, given.seeds, given.metric, given.seed, journal, by_success)
    return run(search, given.trials, given.workers or count_cores(), shlex.join(["qscape", "tune", *argv]))


def reports_success(adapter: EnvAdapter) -> bool:
    """Return whether an environment sets goals and reports success in its first step.

    Trials of one that reports it in successful steps only are judged by return, as before a first success
    nobody knows that it reports any.
    """
    if adapter.spec.goal_size is None:
        return False
    adapter.reset()
    ended = adapter.step(make_draw()(adapter)).finished
    return bool(np.isfinite(adapter.statistics.success).any() or any(e.success is not None for e in ended))


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into flags of the command and flags of the agent, each with its values.

    Flags of the agent have a dot, such as --base.batch-size; --env.NAME is an argument of the environment.
    """
    own: list[str] = []
    agents: list[str] = []
    taken = own
    for arg in argv:
        if arg.startswith("--"):
            name = arg.split("=", 1)[0]
            taken = agents if "." in name and not name.startswith("--env.") else own
        taken.append(arg)
    return own, agents


def run(search: Search, trials: int, workers: int, command: str) -> int:
    """Run a search until it has its trials; one that exists is continued.

    Args:
        search: the search.
        trials: total number of trials.
        workers: maximal number of runs in parallel.
        command: the command line, printed if the search was interrupted.

    Returns:
        The exit code: 0, or 130 after an interrupt.

    Raises:
        RunError: no trial was finished.
    """
    board = SearchBoard(search, trials, plain_console())
    with open_search(search, board.changed, board.warned) as tuner:
        board.tuner = tuner
        board.say(board.counts())
        if tuner.changes:
            board.say(
                f"trials from before and from now are not of one program: {'; '.join(tuner.changes)}; "
                "another --out begins anew"
            )
        with board.live():
            whole = tuner.run(trials, workers)
        board.ending()
    if not whole:
        board.say(f"to continue: {command}{trusted.parts_flag()}")
        return 130
    if tuner.best is None:
        raise RunsFailed(f"none of {len(tuner.trials)} trials came to its end; see above.")
    return 0


class SearchBoard(LiveBoard):
    """A search on the screen: one live table on a terminal, else one line for each change."""

    tuner: Tuner

    def __init__(self, search: Search, trials: int, console: Console) -> None:
        super().__init__(console)
        self.search, self.trials = search, trials
        self.begun: tuple[float, float] | None = None  # the time and the progress when this process began

    def changed(self, trial: Trial) -> None:
        """Print the new state of a trial; on a terminal only if it failed, since the table has no reasons."""
        if not self.console.is_terminal or trial.why:
            self.say(self.line(trial))

    def warned(self, trial: Trial, seed: int, warning: str) -> None:
        """Print a warning of one of a trial's runs."""
        self.say(f"trial {trial.number} seed {seed}: {warning}")

    def line(self, trial: Trial) -> str:
        """Describe the state of a trial in one line."""
        if trial.state == "running":
            text = fields(trial)
        elif trial.state == "failed":
            text = trial.why
        else:
            at = f" at step {trial.step:,}" if trial.state == "pruned" else ""
            best = self.tuner.best
            so_far = f"; best so far: trial {best.number}, {self.search.show(best.score)}" if best else ""
            text = f"{self.search.measure} {self.search.show(trial.score)}{at}{so_far}"
        if trial.state != "running" and (left := self.left()) is not None:
            text += f"; about {clock(left)} left"
        return f"trial {trial.number:>3}  {trial.state:<8} {text}"

    def counts(self) -> str:
        """Return the number of trials in each state and the best trial, as text."""
        of = self.tuner.of
        ended = len(of("done", "pruned", "failed"))
        states: list[State] = ["running", "pruned", "failed"]
        more = [f"{len(of(state))} {state}" for state in states if of(state)]
        best = self.tuner.best
        text = f"{self.search.plan.recipe} on {self.search.plan.env}: {ended} of {self.trials} trials"
        text += f" ({', '.join(more)})" if more else ""
        text += f"; best: trial {best.number}, {self.search.show(best.score)}" if best else ""
        left = self.left()
        return text if left is None else f"{text}; about {clock(left)} left"

    def left(self) -> float | None:
        """Estimate the seconds that are left from the steps of this process; None before the first ones."""
        made = min(self.trials, sum(trial.progress for trial in self.tuner.trials.values()))
        if self.begun is None:
            self.begun = time.monotonic(), made
        begun, before = self.begun
        if made == before or made == self.trials:
            return None
        return (time.monotonic() - begun) * (self.trials - made) / (made - before)

    def table(self, trials: list[Trial]) -> Table:
        """Make a table of trials with their fields."""
        rows = [
            [
                str(t.number),
                t.state,
                f"{t.step:,}",
                "" if t.score is None else self.search.show(t.score),
                fields(t),
            ]
            for t in trials
        ]
        made = table(self.counts(), ["trial", "state", "step", self.search.measure, "fields"], rows)
        made.columns[-1].justify = "left"
        made.min_width = min(len(self.counts()), self.console.width)
        return made

    def short_table(self) -> Table:
        """Make the table of the trials that fit on the screen: the running ones, then the best ones."""
        room = max(self.console.height - 6, 3)
        return self.table([*self.tuner.of("running"), *self.ranking()][:room])

    def ranking(self) -> list[Trial]:
        """Return the finished trials, the best first."""
        return sorted(self.tuner.of("done"), key=lambda t: -(t.score or 0.0))

    def ending(self) -> None:
        """Print the best trials, the fields that mattered, and the best trial as a command."""
        best = self.tuner.best
        if best is None:
            return
        self.console.print(self.table(self.ranking()[:SHOWN]))
        influences = find_influences(self.tuner.study)
        if influences is not None:
            trials = len(self.tuner.of("done"))
            named = ", ".join(f"{name} {share:.2f}" for name, share in influences.items())
            by = f"by the best {-(-trials // 10)} of {trials} finished trials"
            self.say(f"what mattered, of 1, {by}: {named or 'no field stands out'}")
        over = f", mean of {self.search.seeds} seeds" if self.search.seeds > 1 else ""
        self.say(
            f"best: trial {best.number}, {self.search.metric} {self.search.measure} "
            f"{self.search.show(best.score)}{over}; as a command:"
        )
        self.say(f"  {shlex.join(train_command(best))}{trusted.parts_flag()}")


def fields(trial: Trial) -> str:
    """Return a trial's fields as text, with 4 digits."""
    text = {name: f"{v:.4g}" if isinstance(v, float) else v for name, v in trial.fields.items()}
    return ", ".join(f"{name} {value}" for name, value in text.items())


def train_command(trial: Trial) -> list[str]:
    """Return the command that repeats a trial's runs, as a list of arguments.

    Fields that do nothing in this trial, which `qscape train` refuses, are left out.
    """
    plan, search = trial.plan(0), trial.search
    command = ["qscape", "train", plan.recipe, "--env", plan.env, "--steps", str(plan.steps)]
    command += ["--eval-every", str(plan.eval_every), "--eval-episodes", str(plan.eval_episodes)]
    if plan.env_args:
        command += ["--env-args", *itertools.starmap(options.env_pair, plan.env_args.items())]
    for name, value in plan.lag.changes.items():
        command += flag(name, value, isinstance(value, bool))
    if plan.preset:
        command += ["--preset", plan.preset]
    if search.seeds > 1:
        command += ["--seeds", *map(str, range(search.seeds))]
    agent = prepare(plan)[1]
    moot = agent.moot_fields()
    for part, fields in trial.settings.items():
        hints = get_type_hints(type(agent.base if part == "base" else agent.parts[part]))
        for field, value in fields.items():
            if (name := f"{part}.{field}") not in moot:
                command += flag(name, value, hints[field] is bool)
    return [*command, "--out", str(search.folder / "best")]


def flag(name: str, value: Any, switch: bool) -> list[str]:
    """Return the flag that sets a field `part.field` to a value, as arguments; a switch takes no value."""
    if switch:
        part, dot, field = name.rpartition(".")
        return [f"--{part}{dot}{'' if value else 'no-'}{field}".replace("_", "-")]
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [f"--{name}".replace("_", "-"), *map(str, values)]
