"""What a run is asked to do: everything that `run.json` needs to start it again."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from qscape.agents import (
    Agent,
    Settings,
    apply_overrides,
    build,
    changed_fields,
    merge_settings,
    plugins,
    preset,
    recipe_for_dataset,
    settings_of,
)
from qscape.data import RECORDED, home
from qscape.errors import UsageError
from qscape.run import probes
from qscape.types import setting

LONGEST = 250  # bytes of a folder's name; file systems take 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How often a run stops to look at itself."""

    eval_every: int = setting(5_000, "Environment steps between evaluations; 0: none.")
    eval_episodes: int = setting(10, "Episodes of one evaluation.")
    log_every: int = setting(1_000, "Environment steps between two lines of metrics.")
    save_every: int | None = setting(
        None, "Environment steps between saves; None: a tenth of the run, at most 25,000."
    )
    keep_saves: int = setting(2, "Saves kept; only the newest holds the replay.")
    milestones: float = setting(0.1, "Share of the run after which a save is kept for good.")
    probe: tuple[str, ...] = setting(
        (),
        "Further measures of evaluations: smoothness, geometry, landscape, collapse, or a module:Class.",
    )


@dataclasses.dataclass(frozen=True)
class Plan(Pace):
    """Agent, environment, seed and budget of one run."""

    recipe: str
    env: str
    steps: int
    seed: int = 0
    envs: int = 1
    env_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    label: str = ""  # the recipe with the fields that the user changed
    preset: str | None = None  # whose settings hold where `settings` say nothing
    dataset: str = ""  # learn from this; then a step is an update, and `env` is where policies are evaluated
    reference: tuple[float, float] | None = None  # returns that the dataset's score calls 0 and 100
    start: str = ""  # the run whose networks this one begins with
    keep_data: bool = False  # does the replay begin with the dataset of that run?

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps is {self.steps}: a run needs at least one environment step.")
        for name in ("envs", "log_every", "eval_episodes", "keep_saves"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1."
                )
        if self.dataset and self.envs > 1:
            raise UsageError("--envs: nothing is stepped when learning from a dataset; leave it out.")
        if self.dataset and self.keep_data:
            raise UsageError(
                "--keep-data keeps the dataset of the run that --from names beside what an environment "
                "gives; with --dataset a replay holds that one alone: leave one of them out."
            )
        if self.eval_every < 0:
            raise UsageError(f"--eval-every is {self.eval_every}; it must be 0 (never) or more.")
        if self.save_every is not None and self.save_every < 1:
            raise UsageError(f"--save-every is {self.save_every}; it must be at least 1.")
        if not 0 < self.milestones <= 1:
            raise UsageError(f"--milestones is {self.milestones}; it must lie in (0, 1].")
        probes.check_names(self.probe)
        if self.probe and not self.eval_every:
            raise UsageError(f"--probe {' '.join(self.probe)} measures evaluations, but --eval-every is 0.")

    @property
    def saves_every(self) -> int:
        """Steps between saves: as asked, or a tenth of the run, but at most 25,000."""
        return self.save_every or max(1, min(self.steps // 10, 25_000))

    @property
    def milestone_every(self) -> int:
        """Steps between the acting states that are kept for good."""
        return max(1, round(self.steps * self.milestones))


def prepare(plan: Plan) -> tuple[Plan, Agent, list[str]]:
    """The plan with a warm-up (or rollout) that leaves updates, its agent, and what the user has to be told.

    The paper's warm-up stands unless the run is shorter than twice it; then it becomes a fifth of the run.
    A number that the user gave stands in any case. The settings of a preset become the plan's own.

    Raises:
        UsageError: the warm-up that was asked for leaves no update; the preset has nothing for the run.
    """
    own, given, notes = plan.settings, {}, []
    if plan.dataset:
        plan, notes = _on_dataset(plan)
    if plan.preset:
        given, source = preset(plan.preset, plan.recipe, plan.env)
        notes += [f"preset {plan.preset} ({source}): {_format_settings(given) or 'the defaults'}"]
        plan = dataclasses.replace(plan, settings=merge_settings(given, own))
    agent = build(plan.recipe, plan.settings)
    plan = dataclasses.replace(plan, label=plan.label or label(agent, plan.preset, given))
    notes += describe_overrides(agent) + part_notes(agent)
    if plan.dataset:
        return plan, agent, notes
    field, wait = agent.base.waits()
    asked = field in own.get("base", {})
    if asked and (wait > plan.steps if field == "rollout" else wait >= plan.steps):
        raise UsageError(
            f"--base.{field} {wait} leaves no update in {plan.steps} steps; "
            f"use less than {plan.steps}, or more steps."
        )
    if plan.start and field == "warmup" and not asked:
        notes.append("a policy is there already: base.warmup = 0")
        plan = _with_base(plan, {field: 0})
    elif not asked and plan.steps < 2 * wait:
        fields = agent.base.fitted(plan.steps, frozenset(own.get("base", {})))
        fifth = " (a fifth of it)" if fields[field] == max(1, plan.steps // 5) else ""
        others = "".join(f", base.{name} = {value}" for name, value in fields.items() if name != field)
        notes.append(f"the run is short: base.{field} = {fields[field]}{fifth} instead of {wait}{others}")
        plan = _with_base(plan, fields)
    if shares := agent.base.shares(plan.steps):
        told = [f"base.{name} = {value:g} steps, of a run of {plan.steps}" for name, value in shares.items()]
        notes, plan = notes + told, _with_base(plan, shares)
    return plan, build(plan.recipe, plan.settings), notes


def _on_dataset(plan: Plan) -> tuple[Plan, list[str]]:
    """The plan with the recipe as it learns from data, and the dataset's environment where none is named."""
    recipe, notes = recipe_for_dataset(plan.recipe)
    plan = dataclasses.replace(plan, recipe=recipe)
    found = home(plan.dataset)
    if plan.env:
        return dataclasses.replace(plan, reference=found.reference), notes
    if found.env:
        args = found.env_args | dict(plan.env_args)
        return dataclasses.replace(plan, env=found.env, env_args=args, reference=found.reference), notes
    if plan.probe:
        raise UsageError(
            f"--probe measures evaluations: {plan.dataset} names no environment; add one with --env."
        )
    args = {"dataset": plan.dataset}
    plan = dataclasses.replace(plan, env=RECORDED, env_args=args, eval_every=0, reference=found.reference)
    return plan, notes + found.notes


def _with_base(plan: Plan, fields: Mapping[str, Any]) -> Plan:
    """The plan with these fields of the base set."""
    base = {**plan.settings.get("base", {}), **fields}
    return dataclasses.replace(plan, settings={**plan.settings, "base": base})


def describe_overrides(agent: Agent) -> list[str]:
    """Fields of the base that parts moved and the user left alone, one sentence each."""
    return [str(m) for m in apply_overrides(agent)[1] if getattr(agent.base, m.field) == m.after]


def part_notes(agent: Agent) -> list[str]:
    """What parts say of themselves in this agent, one sentence each."""
    return [note for part in agent.parts.values() for note in part.notes(agent)]


def label(agent: Agent, preset: str | None = None, given: Settings | None = None) -> str:
    """The recipe, with the fields that differ from its defaults, e.g. `td3+lap[lap.alpha=0.6]`, or from what
    a preset has given: `td3+pave[preset=paper,pave.sigma=0.1]`."""
    fields = ({"preset": preset} if preset else {}) | changed_fields(agent, given)
    listed = ",".join(f"{name}={_format_value(value)}" for name, value in fields.items())
    return f"{agent.recipe}[{listed}]" if listed else agent.recipe


def folder_name(label: str) -> str:
    """The label; where it is too long for a folder, its beginning and 8 digits that tell it from others."""
    if len(label.encode()) <= LONGEST:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{label.encode()[: LONGEST - 9].decode(errors='ignore')}~{digest}"


def _format_settings(settings: Settings) -> str:
    fields = [f"{part}.{name} = {value}" for part, of in settings.items() for name, value in of.items()]
    return ", ".join(fields)


def _format_value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def to_json(plan: Plan, agent: Agent) -> dict[str, Any]:
    """The plan as JSON, with every field of every part and the origin of parts of other packages."""
    origins = {name: plugins.ORIGINS[name] for name in agent.parts if name in plugins.ORIGINS}
    record = dataclasses.asdict(plan) | {"settings": settings_of(agent), "moved": describe_overrides(agent)}
    return record | ({"plugins": origins} if origins else {})


def from_json(data: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` wrote; keys that are no field of a plan are left out."""
    known = {f.name for f in dataclasses.fields(Plan)}
    return Plan(**{k: v for k, v in data.items() if k in known})
