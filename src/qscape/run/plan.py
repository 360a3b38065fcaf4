"""The plan of a run: everything that is needed to start the run again; `run.json` stores it."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from qscape.agents import (
    Agent,
    Settings,
    build,
    changed_fields,
    flatten,
    list_overrides,
    merge_settings,
    parse,
    plugins,
    preset,
    recipe_for_dataset,
    settings_of,
    with_base,
)
from qscape.data import RECORDED, normalised_score, read_origin
from qscape.envs.build import refuse_other_rewards
from qscape.envs.lag import NO_LAG, Lag
from qscape.errors import Conflict, OutOfRange, UnfitEnv, UnknownName, WrongValue
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.run.probes import PROBES
from qscape.system import file_name
from qscape.trusted import check_class_names
from qscape.types import LARGEST, check_flags, setting
from qscape.values import decode_args, encode_args

REPLAYS = 2  # newest saves that hold the replay
LONGEST = 250  # bytes of a folder's name; file systems take 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How often a run is evaluated, logged and saved, and by which loop it is made."""

    eval_every: int | None = setting(
        None,
        "Environment steps between evaluations; 0 switches them off. None: 5,000, or a 200th of the run if "
        "that is more.",
        within=">= 0",
    )
    eval_episodes: int = setting(10, "Episodes in each evaluation.", within=">= 1")
    log_every: int | None = setting(
        None,
        "Environment steps between two lines of metrics.jsonl. None: 1,000, or a 1,000th of the run if that "
        "is more.",
        within=">= 1",
    )
    save_every: int | None = setting(
        None, "Environment steps between saves. None: a tenth of the run, but at most 25,000.", within=">= 1"
    )
    keep_saves: int = setting(2, "Number of saves to keep. The newest two hold the replay.", within=">= 1")
    milestones: float = setting(
        0.1, "Fraction of the run between saves that are never deleted.", within="(0, 1]"
    )
    probe: tuple[str, ...] = setting(
        (),
        "Further measures of every evaluation: smoothness, geometry, landscape, bias, collapse, or "
        "module:Class.",
    )
    loop: Literal["auto", "host", "compiled"] = setting(
        "auto",
        "host: Python steps the environments. compiled: steps and updates are one program, which needs an "
        "environment in JAX. auto: compiled where possible.",
    )
    vectorise: Literal["sync", "async", "envpool"] = setting(
        "sync",
        "How the host steps parallel environments. sync: one after the other. async: a process for each. "
        "envpool: EnvPool's environments of that id, in threads.",
    )
    overlap: bool = setting(
        False,
        "Make updates while the environments step: actions come from parameters that are a step older.",
    )
    stop_at: float | None = setting(
        None, "End the run when the mean return of an evaluation reaches this. None: not so."
    )
    stop_times: int = setting(1, "Evaluations in a row that have to reach --stop-at for that.", within=">= 1")
    patience: int | None = setting(
        None,
        "End the run after so many evaluations in a row without a new best one. None: not so.",
        within=">= 1",
    )
    step_seconds: float = setting(
        600.0,
        "Seconds that one step or reset of the environments may take; after them the run is saved and ends. "
        "0: as long as it likes.",
        within=">= 0",
    )
    devices: int = setting(
        1, "Devices that a compiled run is split over: environments, replay and batches.", within=">= 1"
    )
    save_shards: bool = setting(
        False,
        "Let each process save its own rows of the replay, by Orbax. For runs over several devices.",
    )


@dataclasses.dataclass(frozen=True)
class Plan(Pace, Lag):
    """Agent, environment, seed and budget of one run.

    Attributes:
        recipe: base and parts of the agent, e.g. `td3+lap`.
        env: a Gymnasium id; "": the environment that the dataset names.
        steps: environment steps, over all sub-environments; updates where `dataset` is given.
        seed: seed of all random numbers of the run.
        envs: sub-environments that are stepped in parallel.
        env_args: arguments of the environment, of types that run.json gives back (`qscape.values`).
        settings: fields of the base and of parts that the user gave, by part; `prepare` adds others.
        label: the recipe with the fields that the user changed; "" until `prepare` writes it.
        preset: name of a preset, e.g. "paper"; `settings` win over it. None: no preset.
        dataset: the dataset to learn from; then `env` only evaluates. "": no dataset.
        reference: (random, expert) returns that the normalised score maps to 0 and 100; None: no score.
        start: folder of the run whose networks this run starts with; "": new networks.
        keep_data: whether the dataset of that run is in the replay from the start.
        typed: the settings before `prepare` added any; None until it did, and in older run.json files.

    Raises:
        UsageError: a value is out of its range, or two values exclude each other.
    """

    recipe: str
    env: str
    steps: int
    seed: int = 0
    envs: int = dataclasses.field(default=1, metadata={"within": ">= 1"})
    env_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    label: str = ""
    preset: str | None = None
    dataset: str = ""
    reference: tuple[float, float] | None = None
    start: str = ""
    keep_data: bool = False
    typed: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise OutOfRange(f"--seeds {self.seed}: a seed is 0 or more.", field="seed")
        for name in ("recipe", "env", "label", "dataset", "start"):
            if not getattr(self, name).isprintable():
                raise WrongValue(
                    f"{name} is {getattr(self, name)!r}: a name holds no control characters.", field=name
                )
        refuse_unkept(self.env_args)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value > LARGEST:
                flag = "seeds" if field.name == "seed" else field.name.replace("_", "-")
                why = f"--{flag} is {value}; a whole number is at most {LARGEST:,}."
                raise OutOfRange(why, field=field.name)
        if self.steps < 1:
            raise OutOfRange(
                f"--steps is {self.steps}: a run needs at least one environment step.", field="steps"
            )
        check_flags(self)
        for name in ("loop", "vectorise"):
            known = get_args(Pace.__annotations__[name])
            if getattr(self, name) not in known:
                raise UnknownName(
                    f"--{name} {getattr(self, name)} is unknown; choose {', '.join(known)}.", field=name
                )
        if self.vectorise != "sync" and (self.loop == "compiled" or self.dataset):
            flag = "--dataset" if self.dataset else "--loop compiled"
            raise Conflict(
                f"--vectorise {self.vectorise} is how the host steps environments, which it does not with "
                f"{flag}; leave one of them out.",
                field="vectorise",
            )
        if self.vectorise == "async" and self.envs == 1:
            raise Conflict(
                "--vectorise async steps several environments side by side; add --envs 4.", field="vectorise"
            )
        if self.loop == "compiled" and (self.dataset or self.start):
            flag = "--dataset" if self.dataset else "--from"
            raise Conflict(
                f"--loop compiled trains from the start on an environment; leave {flag} out.", field="loop"
            )
        if self.devices > 1 and (self.loop == "host" or self.dataset or self.start):
            raise Conflict(
                f"--devices {self.devices} splits a compiled run; leave it out with --loop host, --dataset "
                "and --from.",
                field="devices",
            )
        if self.overlap and (self.loop == "compiled" or self.dataset):
            flag = "--dataset" if self.dataset else "--loop compiled"
            raise Conflict(
                f"--overlap makes updates while the host steps environments, which it does not with {flag}; "
                "leave one of them out.",
                field="overlap",
            )
        if self.dataset and self.envs > 1:
            why = "--envs: nothing is stepped when learning from a dataset; leave it out."
            raise Conflict(why, field="envs")
        if self.dataset and self.keep_data:
            raise Conflict(
                "--keep-data keeps the dataset of the run that --from names beside what an environment "
                "gives; with --dataset a replay holds that one alone: leave one of them out.",
                field="keep_data",
            )
        if self.lag != NO_LAG and (self.dataset or self.keep_data):
            flag, field = ("--dataset", "dataset") if self.dataset else ("--keep-data", "keep_data")
            first = next(iter(self.lag.changes))
            raise Conflict(
                f"--{first.replace('_', '-')} changes what an agent sees and does in an environment, and a "
                f"dataset is as it was recorded: leave it or {flag} out.",
                field=field,
            )
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise OutOfRange(f"--stop-at is {self.stop_at}; it must be a finite number.", field="stop_at")
        if self.stop_times > 1 and self.stop_at is None:
            raise Conflict(
                f"--stop-times {self.stop_times} is how often --stop-at is reached; add --stop-at 200.",
                field="stop_times",
            )
        if self.may_stop_early and not self.evals_every:
            flag = "--patience" if self.stop_at is None else "--stop-at"
            raise Conflict(f"{flag} judges evaluations, but --eval-every is 0.", field="eval_every")
        check_class_names("probe", self.probe, PROBES)
        if "bias" in self.probe:
            refuse_other_rewards(self.env, dict(self.env_args))
        if self.probe and not self.evals_every:
            raise Conflict(
                f"--probe {' '.join(self.probe)} measures evaluations, but --eval-every is 0.", field="probe"
            )

    @property
    def may_stop_early(self) -> bool:
        """May an evaluation end the run before its steps are made?"""
        return self.stop_at is not None or self.patience is not None

    @property
    def evals_every(self) -> int:
        """Steps between evaluations; 0: never."""
        return max(5_000, self.steps // 200) if self.eval_every is None else self.eval_every

    @property
    def logs_every(self) -> int:
        """Steps between log lines."""
        return self.log_every or max(1_000, self.steps // 1_000)

    @property
    def saves_every(self) -> int:
        """Steps between saves: `save_every`, or a tenth of the run, but at most 25,000."""
        return self.save_every or max(1, min(self.steps // 10, 25_000))

    @property
    def milestone_every(self) -> int:
        """Steps between saves that are never deleted."""
        return max(1, round(self.steps * self.milestones))


def anywhere(name: str, dataset: bool = True) -> str:
    """Make a path absolute; of a dataset, a name such as local/pendulum-v0 is returned unchanged."""
    is_path = not dataset or name.startswith(".") or not re.search(r"-v\d+$", name)
    return str(Path(name).absolute()) if name and is_path and Path(name).exists() else name


def refuse_unkept(env_args: Mapping[str, Any]) -> None:
    """Raise a UsageError if run.json cannot give back one of an environment's arguments."""
    try:
        encode_args(env_args)
    except TypeError as problem:
        why = (
            f"env_args: {problem}, which run.json cannot give back: it holds None, numbers, texts, bytes, "
            "paths, dates, arrays of NumPy, and lists, tuples, sets, ranges and dicts of these; pass one of "
            "them, or a function that makes the environment."
        )
        raise WrongValue(why, field="env_args") from problem


class Prepared(NamedTuple):
    """A run that can begin.

    Attributes:
        plan: the completed plan.
        agent: its agent, bound to no task.
        notes: sentences that the user should read.
    """

    plan: Plan
    agent: Agent
    notes: list[str]


def prepare(plan: Plan) -> Prepared:
    """Complete a plan before its run begins: preset, dataset, and a warm-up that leaves time to learn.

    The paper's warm-up (or rollout) is kept unless the run is shorter than twice its length; then it becomes
    a fifth of the run. A user's value is always kept. The settings of a preset are added to the plan's own.

    Raises:
        UsageError: the user's warm-up leaves no update, or the preset has no settings for the run.
    """
    own, given, notes = plan.settings, {}, []
    if plan.dataset:
        plan, notes = _on_dataset(plan)
    if plan.preset:
        given, source = preset(plan.preset, plan.recipe, plan.env)
        moot = {"replay_capacity"} if plan.dataset else set()  # the replay takes the dataset's size
        if own.get("base", {}).get("discount_rule") == "time_limit":
            moot.add("discount")
        if moot & given.get("base", {}).keys():
            given = {**given, "base": {name: v for name, v in given["base"].items() if name not in moot}}
        notes += [f"preset {plan.preset} ({source}): {_format_settings(given) or 'the defaults'}"]
        plan = dataclasses.replace(plan, settings=merge_settings(given, own))
    agent = build(plan.recipe, plan.settings)
    if plan.overlap:
        _refuse_overlap(agent)
    plan = dataclasses.replace(plan, label=plan.label or label(agent, plan.preset, given, plan))
    if plan.typed is None:
        fields = settings_of(agent)  # as its own types, which JSON can hold
        typed = {part: {name: fields[part][name] for name in of} for part, of in own.items()}
        plan = dataclasses.replace(plan, typed=typed)
    notes += describe_overrides(agent) + part_notes(agent)
    notes += moot_notes(agent.moot_fields(), plan.typed or {})
    if plan.dataset:
        base = dataclasses.replace(agent.base, updates_per_step=1.0)  # a step is an update
        return Prepared(*_scale_to_run(plan, agent, base, notes), notes)
    _refuse_large_batch(plan, agent)
    if fields := agent.base.scale_to_envs(plan.envs):
        counted = ", ".join(f"base.{name} = {value:g}" for name, value in fields.items() if name != "counts")
        notes.append(f"a step of all {plan.envs} environments is {plan.envs} environment steps: {counted}")
        plan, agent = _with_base(plan, agent, fields)
    field, wait = agent.base.find_learning_start()
    asked = field in own.get("base", {})
    if asked and (wait > plan.steps if field == "rollout" else wait >= plan.steps):
        raise OutOfRange(
            f"--base.{field} {wait} leaves no update in {plan.steps} steps; "
            f"use less than {plan.steps}, or more steps.",
            part="base",
            field=field,
        )
    if plan.start and field == "warmup" and not asked:
        notes.append("a policy is there already: base.warmup = 0")
        plan, agent = _with_base(plan, agent, {field: 0})
    elif not asked and plan.steps < 2 * wait:
        fields = agent.base.shorten_for_run(plan.steps, frozenset(own.get("base", {})))
        fifth = " (a fifth of it)" if fields[field] == max(1, plan.steps // 5) else ""
        others = "".join(f", base.{name} = {value}" for name, value in fields.items() if name != field)
        notes.append(f"the run is short: base.{field} = {fields[field]}{fifth} instead of {wait}{others}")
        plan, agent = _with_base(plan, agent, fields)
    return Prepared(*_scale_to_run(plan, agent, agent.base, notes), notes)


def _scale_to_run(plan: Plan, agent: Agent, base: Any, notes: list[str]) -> tuple[Plan, Agent]:
    """Return plan and agent with the fields of `base` that follow from the run's length; add their notes."""
    fields = base.scale_to_run(plan.steps)
    for name, value in fields.items():
        unit = "updates" if name == "schedule_updates" else "steps"
        notes.append(f"base.{name} = {value:.0f} {unit}, of a run of {plan.steps}")
    return _with_base(plan, agent, fields) if fields else (plan, agent)


def _refuse_overlap(agent: Agent) -> None:
    """Raise UsageError if an agent's updates do not follow from its steps alone."""
    if not isinstance(agent, OffPolicyAgent):
        raise Conflict(
            f"--overlap lets actions come from older parameters, and {agent.recipe} learns from rollouts of "
            "its newest policy alone; leave --overlap out.",
            field="overlap",
        )
    if not agent.schedule.learns_by_steps:
        name = agent.schedule.name
        raise Conflict(
            f"--overlap makes the updates of each step during the next one, and those of {name} do not "
            f"follow from steps alone; leave --overlap or {name} out.",
            part=name,
            field="overlap",
        )


def _refuse_large_batch(plan: Plan, agent: Agent) -> None:
    """Raise UsageError if a batch has more rows than replay holds, so that most of them would be repeated."""
    capacity = getattr(agent.base, "replay_capacity", math.inf)  # on-policy agents have no replay
    if 2 * plan.envs <= capacity < agent.base.batch_size:  # a smaller replay is refused by its layout
        raise OutOfRange(
            f"base.batch_size is {agent.base.batch_size}, more than the {capacity} transitions that replay "
            "holds; make it smaller, or base.replay_capacity larger.",
            part="base",
            field="batch_size",
        )


def _on_dataset(plan: Plan) -> tuple[Plan, list[str]]:
    """Adapt a plan to its dataset: the recipe and, unless the user named one, the environment.

    Returns:
        The plan, and notes for the user.
    """
    recipe, notes = recipe_for_dataset(plan.recipe)
    plan = dataclasses.replace(plan, recipe=recipe)
    found = read_origin(plan.dataset, plan.env)
    if plan.env:
        return dataclasses.replace(plan, reference=found.reference), notes
    if found.env:
        args = found.env_args | dict(plan.env_args)
        return dataclasses.replace(plan, env=found.env, env_args=args, reference=found.reference), notes
    if plan.probe:
        raise UnfitEnv(
            f"--probe measures evaluations: {plan.dataset} names no environment; add one with --env.",
            field="probe",
        )
    if plan.env_args:
        raise UnfitEnv(
            f"--env-args: {plan.dataset} names no environment; add one with --env.", field="env_args"
        )
    args = {"dataset": plan.dataset}
    plan = dataclasses.replace(plan, env=RECORDED, env_args=args, eval_every=0, reference=found.reference)
    return plan, notes + found.notes


def _with_base(plan: Plan, agent: Agent, fields: Mapping[str, Any]) -> tuple[Plan, Agent]:
    """Return the plan and its agent with other values of some fields of the base."""
    base = {**plan.settings.get("base", {}), **fields}
    plan = dataclasses.replace(plan, settings={**plan.settings, "base": base})
    return plan, with_base(agent, fields)


def describe_overrides(agent: Agent) -> list[str]:
    """Return one sentence for each field of the base that a part overrides and the user does not set."""
    moot = agent.moot_fields()
    kept = [m for m in list_overrides(agent) if getattr(agent.base, m.field) == m.after]
    return [str(m) for m in kept if f"base.{m.field}" not in moot]


def part_notes(agent: Agent) -> list[str]:
    """Return the notes of all parts for users of this agent, one sentence each."""
    return [note for part in agent.parts.values() for note in part.notes(agent)]


def moot_notes(moot: Mapping[str, str], typed: Settings) -> list[str]:
    """Return one sentence for each field that the user set and that is among `moot` (`Bound.moot_fields`)."""
    return [f"{name} does nothing {moot[name]}" for name in flatten(typed) if name in moot]


def label(
    agent: Agent, preset: str | None = None, given: Settings | None = None, plan: Plan | None = None
) -> str:
    """Return an agent's name in tables and folders: its recipe and the fields that differ from the defaults.

    Args:
        agent: the agent, with the settings of the run.
        preset: name of the preset, which the label shows; None: no preset.
        given: the settings that the preset gave; fields that differ from them are shown.
        plan: of the run, if it says more: that actions come from older parameters, which is another
            algorithm, or that networks come from another run.

    Returns:
        E.g. `td3+lap[lap.alpha=0.6]` or `td3+pave[preset=paper,pave.sigma=0.1]`.
    """
    fields: dict[str, Any] = {"preset": preset} if preset else {}
    if plan is not None and plan.overlap:
        fields["overlap"] = True
    if plan is not None and plan.start:
        parts = [part for part in Path(plan.start).parts if not part.isdigit()]  # without that of the seed
        fields["from"] = parts[-1] if parts else plan.start
        fields |= {"keep_data": True} if plan.keep_data else {}
    fields |= changed_fields(agent, given)
    listed = ",".join(f"{name}={_format_value(value)}" for name, value in fields.items())
    return f"{agent.recipe}[{listed}]" if listed else agent.recipe


def folder_name(label: str) -> str:
    """Return a label or a name as that of a folder; a long one is cut and gets 8 digits of its hash."""
    name = file_name(label)
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore')}~{digest}"


def _format_settings(settings: Settings) -> str:
    return ", ".join(f"{name} = {value}" for name, value in flatten(settings).items())


def _format_value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def to_json(plan: Plan, agent: Agent) -> dict[str, Any]:
    """Return the plan as JSON, with the recipe's parts and every field of every part."""
    origins = {name: plugins.ORIGINS[name] for name in agent.parts if name in plugins.ORIGINS}
    record = dataclasses.asdict(plan) | {"settings": settings_of(agent), "moved": describe_overrides(agent)}
    record["parts"] = [*parse(plan.recipe)[1]]
    record["env_args"] = encode_args(plan.env_args)
    return record | ({"plugins": origins} if origins else {})


def fill_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the defaults of those fields of a plan that it lacks.

    One without `loop` was written when every run was stepped by the host.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Plan):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return {**found, "loop": "host", **record}


def from_json(data: Mapping[str, Any]) -> Plan:
    """Return the plan that `to_json` wrote. Keys that are no field of a plan are ignored.

    Raises:
        UsageError: a value is of another type than its field, or out of its range. TypeError: one is missing.
        ValueError: an argument of the environment is none that `to_json` writes.
    """
    hints = get_type_hints(Plan)
    fields: dict[str, Any] = {}
    for name, value in fill_defaults(data).items():
        if name in hints:
            value = decode_args(value) if name == "env_args" else value
            fields[name] = _as_field(name, hints[name], value)
    return Plan(**fields)


def _as_field(name: str, hint: Any, value: Any) -> Any:
    """Return a value from JSON as a field of a plan. Raises UsageError if it is of another type."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        if isinstance(value, bool) and hint is not bool:
            raise TypeCheckError("is True or False")
        return check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as problem:
        raise WrongValue(f"{name} is {value!r}: {str(problem).splitlines()[0]}.", field=name) from problem


def score(plan: Plan, ret: float) -> float | None:
    """Return the normalised score 100 · (ret − random) / (expert − random), or None.

    None: the plan has no reference returns, which a dataset may provide.
    """
    return None if plan.reference is None else normalised_score(ret, plan.reference)
