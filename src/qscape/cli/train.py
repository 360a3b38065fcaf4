"""`qscape train RECIPE --env ID`."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax

from qscape import trusted
from qscape.agents import (
    Agent,
    Settings,
    recipe_for_dataset,
    recipe_for_images,
    register_named,
    set_fields,
)
from qscape.cli import options
from qscape.cli.running import Job, plain_console, run_all, run_among
from qscape.data import RECORDED
from qscape.envs.build import refuse_without_version
from qscape.envs.lag import Lag
from qscape.envs.simulators import is_simulator
from qscape.errors import BadFile, Conflict, MissingArgument, MootSetting, OutOfRange, WrongValue
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.report import environment_label
from qscape.run.adapters import adapt_to_images, open_adapter
from qscape.run.engines import may_compile, why_not_together
from qscape.run.folder import refuse_taken
from qscape.run.plan import Pace, Plan, anywhere, fill_defaults, folder_name, prepare
from qscape.run.trackers import TRACKERS, Tracking
from qscape.sealed import read_json
from qscape.values import decode_args, encode_args

MOST_SEEDS = 1_000


def main(argv: list[str]) -> int:
    """Train one agent with one or several seeds. Returns the exit code."""
    recipe, settings, config = "", None, None
    argv = [x for arg in argv for x in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 >= len(argv):
            raise MissingArgument(
                "--config needs a file, e.g. runs/Hopper-v5/td7/0/run.json.", field="config"
            )
        recipe, settings, config = read_config(Path(argv[at + 1]))
        argv = argv[:at] + argv[at + 2 :]
    if config is None or (argv and not argv[0].startswith("-")):
        recipe, argv = options.positional(argv, "RECIPE", "qscape train", flags_for="td3")
        register_named(recipe)
    notes: list[str] = []
    if any(arg.split("=")[0] == "--dataset" for arg in argv) or (config and config.dataset):
        recipe, notes = recipe_for_dataset(recipe)  # before flags are read: it changes the parts
    if settings and any(arg.split("=")[0] == "--from" for arg in argv):
        settings.get("base", {}).pop("warmup", None)  # of new networks: those of --from are past it
    run, given = options.train_command(recipe, argv, settings, config)
    if config is not None:
        named = trusted.list_code(run.env, options.env_args(run.env_args), run.probe)
        trusted.refuse_untrusted(named, "--config")
    if run.config:  # a second one; the first was removed from argv above
        raise Conflict("--config is there twice; name one run.json.", field="config")
    if not (run.env or run.dataset):
        raise MissingArgument(
            f"qscape train {recipe} needs an environment, e.g. --env HalfCheetah-v5.", field="env"
        )
    if run.keep_data and not run.from_:
        raise Conflict(
            "--keep-data keeps the dataset of the run that --from names; name one.", field="keep_data"
        )
    trusted.check_class_names("log", run.log, TRACKERS)
    if run.log_videos and "wandb" not in run.log:
        raise Conflict(
            "--log-videos sends videos to wandb; add --log wandb, or see `qscape video`.", field="log_videos"
        )
    tracking = Tracking(run.log_project, run.log_group, run.log_tags, run.log_videos)
    if not run.log and (run.log_project or run.log_group or run.log_tags):
        raise Conflict(
            "--log-project, --log-group and --log-tags are for loggers; name one with --log.", field="log"
        )
    if not run.seeds or len(set(run.seeds)) < len(run.seeds) or min(run.seeds) < 0:
        raise WrongValue(
            f"--seeds {' '.join(map(str, run.seeds[:9]))}: name each seed once, 0 or more.", field="seeds"
        )
    if len(run.seeds) > MOST_SEEDS:
        raise OutOfRange(
            f"--seeds names {len(run.seeds):,} seeds; one command takes at most {MOST_SEEDS:,}.",
            field="seeds",
        )
    plans = [
        Plan(
            recipe=recipe,
            env=run.env,
            steps=run.steps,
            seed=seed,
            envs=run.envs,
            env_args=options.env_args(run.env_args),
            settings=given,
            preset=run.preset,
            dataset=anywhere(run.dataset),
            start=anywhere(run.from_, dataset=False),
            keep_data=run.keep_data,
            **{f.name: getattr(run, f.name) for f in (*dataclasses.fields(Pace), *dataclasses.fields(Lag))},
        )
        for seed in run.seeds
    ]
    if (place := run.place) is not None and len(plans) > 1:
        raise Conflict(
            f"--processes splits one run, and --seeds names {len(plans)}; name one seed, or give each a "
            "run of its own.",
            field="processes",
        )
    refuse_without_version(plans[0].env)
    prepared = prepare(plans[0])  # refuses an impossible plan before a folder is created
    plan, agent, _ = prepared
    _refuse_moot(given, settings or {}, agent)  # a config may hold all fields, also those that do nothing
    in_jax = False
    seen = not recipe_for_images(plan.recipe)[1] or is_simulator(plan.env)
    if not plan.dataset and (len(plans) > 1 or not seen):  # else the run itself checks that all fits
        adapter = open_adapter(dataclasses.replace(plan, envs=1, vectorise="sync"), agent)
        adapted = [adapt_to_images(p, adapter) for p in plans]
        if changes := adapted[0][1]:  # before the label of the agent names a folder
            plans, notes = [p for p, _ in adapted], notes + changes
            prepared = plan, agent, _ = prepare(plans[0])
        agent.on(adapter.spec)
        in_jax = may_compile(plan) and adapter.jax_env is not None
        adapter.close()
    together = place is None and _together(run.seeds_as, plans, agent, in_jax, run.log)
    task = (str(Path(run.dataset)) if run.dataset else run.env).strip("/\\")
    args = encode_args(plans[0].env_args)
    where = folder_name(environment_label({"env": task, "env_args": args, **plans[0].lag.changes}))
    group = Path(run.out) if run.out else Path("runs") / where / folder_name(plan.label)
    for note in notes:
        plain_console().print(note, soft_wrap=True)
    jobs = [
        Job(
            "train",
            group / str(p.seed),
            p,
            overwrite=run.overwrite,
            trackers=list(run.log),
            tracking=tracking,
        )
        for p in plans
    ]
    if place is not None:
        code = run_among(jobs[0], place, run.quiet)
    else:
        for job in jobs:
            refuse_taken(job.folder, run.overwrite)
        code = run_all(jobs, together, run.quiet, prepared)
    if code == 0 and run.env and not run.quiet and (place is None or place.number == 0):
        _name_views(jobs, agent)
    return code


def _name_views(jobs: Sequence[Job], agent: Agent) -> None:
    """Print the commands that show finished runs: curves and table; Q, or episodes of agents without."""
    first, console = jobs[0].folder, plain_console()
    group = first.parent if len(jobs) > 1 else first
    look = "landscape" if isinstance(agent, OffPolicyAgent) else "evaluate"
    views = [f"{look} {shlex.quote(str(first))}{trusted.flag()}"]
    if jobs[0].plan and jobs[0].plan.eval_every != 0:
        views.insert(0, f"compare {shlex.quote(str(group))}")
    for view in views:
        console.print(f"to look at it: qscape {view}", soft_wrap=True)


def _refuse_moot(given: Settings, there: Settings, agent: Agent) -> None:
    """Raise UsageError for the first typed field that does nothing; fields that were `there` are passed."""
    for name, why in agent.moot_fields().items():
        part, _, field = name.partition(".")
        value = given.get(part, {}).get(field, ...)
        if value is not ... and there.get(part, {}).get(field, ...) != value:
            flag = f"--{name.replace('_', '-')}"
            raise MootSetting(f"{flag} does nothing {why}; leave it out.", part=part, field=field)


def _together(how: str, plans: list[Plan], agent: Agent, in_jax: bool, loggers: Sequence[str] = ()) -> bool:
    """Return whether the seeds are trained in one vmapped program.

    Args:
        how: the flag --seeds-as: "auto", "processes" or "vmap".
        plans: one plan for each seed.
        agent: their agent.
        in_jax: whether environments in JAX are part of the program.
        loggers: further loggers, which need one process per run.

    Raises:
        UsageError: "vmap" was required, and these seeds cannot share a program.
    """
    slow = jax.default_backend() == "cpu" and not in_jax
    if how == "processes" or (how == "auto" and (len(plans) == 1 or slow)):
        return False
    loop = plans[0].loop if in_jax else "host"
    needs = why_not_together(dataclasses.replace(plans[0], loop=loop), agent)
    if loggers:
        needs = f"seeds without --log {' '.join(loggers)}, which takes one run in a process"
    if needs and how == "vmap":
        raise Conflict(f"--seeds-as vmap needs {needs}; leave it out.", field="seeds_as")
    return needs is None


class _Config(TypedDict):
    """What is read of the run.json of --config; the types of the other options are those of their flags."""

    recipe: str
    env: str
    steps: int
    settings: NotRequired[dict[str, dict[str, Any]]]
    typed: NotRequired[dict[str, dict[str, Any]] | None]
    env_args: NotRequired[dict[str, Any]]
    start: NotRequired[str]


def read_config(path: Path) -> tuple[str, dict[str, dict[str, Any]], options.TrainOptions]:
    """Read recipe, settings and options from a run.json, without importing the parts that it names.

    The settings are those that its user gave, not what followed from them, such as a shortened warm-up. An
    older run.json does not tell them apart; then all of its fields count as given.

    Raises:
        UsageError: the file cannot be read, or is no run.json.
    """
    try:
        record = fill_defaults(read_json(path.read_bytes(), _Config))
        given = record["settings"] if record["typed"] is None else record["typed"]
        recipe, settings = record["recipe"], {name: dict(of) for name, of in given.items()}
        fields = {name: record[name] for name in ("env", "steps", "envs")}
        pace = [f.name for f in dataclasses.fields(Pace) if f.name != "loop"]  # which follows from the rest
        names = ["dataset", "keep_data", "preset", *pace, *(f.name for f in dataclasses.fields(Lag))]
        fields |= {name: record[name] for name in names if record.get(name) is not None}
        fields |= {"from_": record["start"]}
        fields["env_args"] = [*itertools.starmap(options.env_pair, decode_args(record["env_args"]).items())]
        if fields["env"] == RECORDED:  # a stand-in, whose spaces are those of that run's dataset
            fields |= {"env": "", "env_args": [], "eval_every": options.TrainOptions().eval_every}
    except (OSError, ValueError) as problem:
        raise BadFile(
            f"--config {path} cannot be read as a run.json ({problem}).", field="config"
        ) from problem
    return recipe, settings, set_fields(options.TrainOptions(), str(path), fields)
