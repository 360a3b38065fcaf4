"""What a run is asked to do: everything that `run.json` needs to start it again."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from qscape.agents import build, changed, overridden, settings_of
from qscape.errors import UsageError
from qscape.offpolicy.agent import Agent
from qscape.types import setting


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

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps is {self.steps}: a run needs at least one environment step.")
        for name in ("envs", "log_every", "eval_episodes", "keep_saves"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1."
                )
        if self.eval_every < 0:
            raise UsageError(f"--eval-every is {self.eval_every}; it must be 0 (never) or more.")
        if self.save_every is not None and self.save_every < 1:
            raise UsageError(f"--save-every is {self.save_every}; it must be at least 1.")
        if not 0 < self.milestones <= 1:
            raise UsageError(f"--milestones is {self.milestones}; it must lie in (0, 1].")

    @property
    def saves_every(self) -> int:
        """Steps between saves: as asked, or a tenth of the run, but at most 25,000."""
        return self.save_every or max(1, min(self.steps // 10, 25_000))

    @property
    def milestone_every(self) -> int:
        """Steps between the acting states that are kept for good."""
        return max(1, round(self.steps * self.milestones))


def fitted(plan: Plan) -> tuple[Plan, Agent, list[str]]:
    """The plan with a warm-up that leaves updates, its agent, and what the user has to be told.

    The paper's warm-up stands unless the run is shorter than twice it; then it becomes a fifth of the run.
    A number that the user gave stands in any case.

    Raises:
        UsageError: the warm-up that was asked for leaves no update.
    """
    agent = build(plan.recipe, plan.settings)
    plan = dataclasses.replace(plan, label=plan.label or label(agent))
    notes = moved(agent)
    asked = "warmup" in plan.settings.get("base", {})
    warmup = agent.base.warmup
    if asked and warmup >= plan.steps:
        raise UsageError(
            f"--base.warmup {warmup} leaves no update in {plan.steps} steps; "
            f"use less than {plan.steps}, or more steps."
        )
    if not asked and plan.steps < 2 * warmup:
        short = plan.steps // 5
        notes.append(f"the run is short: base.warmup = {short} (a fifth of it) instead of {warmup}")
        base = {**plan.settings.get("base", {}), "warmup": short}
        plan = dataclasses.replace(plan, settings={**plan.settings, "base": base})
        agent = build(plan.recipe, plan.settings)
    return plan, agent, notes


def moved(agent: Agent) -> list[str]:
    """Fields of the base that parts moved and the user left alone, one sentence each."""
    return [str(m) for m in overridden(agent)[1] if getattr(agent.base, m.field) == m.after]


def label(agent: Agent) -> str:
    """The recipe, with the fields that differ from its defaults, e.g. `td3+lap[lap.alpha=0.6]`."""
    fields = ",".join(f"{name}={_short(value)}" for name, value in changed(agent).items())
    return f"{agent.recipe}[{fields}]" if fields else agent.recipe


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def to_json(plan: Plan, agent: Agent) -> dict[str, Any]:
    """The plan as JSON, with every field of every part written out."""
    return dataclasses.asdict(plan) | {"settings": settings_of(agent), "moved": moved(agent)}


def from_json(data: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` wrote; keys that are no field of a plan are left out."""
    known = {f.name for f in dataclasses.fields(Plan)}
    return Plan(**{k: v for k, v in data.items() if k in known})
