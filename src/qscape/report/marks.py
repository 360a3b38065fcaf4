"""The marks in a landscape and its description in words, shared by all kinds of plots."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from qscape.report import require_extra
from qscape.report.charts import COLOURS
from qscape.report.labels import shorten_labels

with require_extra("Pictures"):
    import numpy as np

PROMINENT = 0.01  # prominence above which a local optimum is marked, as a share of Q's range in the plot
INDEX = "index of the action"  # the axis of discrete actions without vectors
MOST_TOLD_APART = 8  # proposals that have a mark and a row each; more have one mark together
ON_PLANE = 0.02  # distance from the plane up to which a point counts as on it
ORANGE, GREEN, PINK = COLOURS[1], COLOURS[2], COLOURS[3]  # the action or the chosen one, the best, optima
SHADES = ("#FFFFFF", COLOURS[5], COLOURS[4], COLOURS[0])  # colours of proposal 0, 1, ...
SYMBOLS = (
    "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left", "triangle-right",
    "hexagon",
)  # fmt: skip


class Mark(NamedTuple):
    """n points of one kind.

    Attributes:
        kind: "optima" of the line or plane, the "best" action found, the agent's "action" if it makes one
            proposal only, a "proposal", or the "chosen" proposal.
        name: for the legend.
        place: index of a proposal in the agent's list; 0 for many proposals together, and else.
        at: `[n, d]` coordinates in the plot.
        q: `[n]` Q there.
        action: `[n, A]` the actions.
        off: the points lie off the plane; the plot beneath it does not show its Q.
    """

    kind: Literal["optima", "best", "action", "proposal", "chosen"]
    name: str
    place: int
    at: "np.ndarray"
    q: "np.ndarray"
    action: "np.ndarray"
    off: bool = False


def choose_look(mark: Mark) -> tuple[str, float, str]:
    """Return the symbol of a mark, its width in pixels of a page, and its colour."""
    return {
        "optima": ("x-thin", 9, PINK),
        "best": ("star", 17, GREEN),
        "chosen": ("circle", 20, ORANGE),
        "action": ("circle", 11, ORANGE),
        "proposal": (SYMBOLS[mark.place % len(SYMBOLS)], 11, SHADES[mark.place % len(SHADES)]),
    }[mark.kind]


def list_marks(fields: Mapping[str, Any]) -> list[Mark]:
    """List all marks of one landscape, in drawing order."""
    survey, marks = fields["survey"], []
    if fields["kind"] != "table":
        marks.append(_optima(fields))
    marks.append(_point(fields, "best", "best found", 0, survey["best"], survey["best_q"]))
    done = survey["action"], survey["action_q"]
    if len(survey["proposals"]) == 1:  # a refiner may have changed it, so that it is not what is done
        return [*marks, _point(fields, "action", "the agent's action", 0, *done)]
    if len(survey["proposals"]) > MOST_TOLD_APART and not fields["surrogates"]:  # which have one each
        marks.append(_crowd(fields, survey["proposals"], survey["proposals_q"]))
    else:
        for k, (action, value) in enumerate(zip(survey["proposals"], survey["proposals_q"], strict=True)):
            marks.append(_point(fields, "proposal", f"proposal {k}", k, action, value))
    return [*marks, _point(fields, "chosen", "chosen", 0, *done)._replace(name="chosen")]


def _optima(fields: Mapping[str, Any]) -> Mark:
    q, axes = np.asarray(fields["q"], float), np.asarray(fields["plane"]["axes"], float)
    high = np.asarray(fields["prominence"]) > PROMINENT * (np.nanmax(q) - np.nanmin(q))
    at = np.asarray(fields["optima"], float).reshape(-1, len(axes))[high]
    action = np.asarray(fields["plane"]["origin"], float) + at @ axes
    return Mark("optima", "local optima", 0, at, np.asarray(fields["optima_q"], float)[high], action)


def _point(fields: Mapping[str, Any], kind: Any, name: str, place: int, action: Any, q: Any) -> Mark:
    origin, axes = (np.asarray(fields["plane"][k], float) for k in ("origin", "axes"))
    action = np.asarray(action, float)
    at = (action - origin) @ axes.T
    off = fields["kind"] != "table" and np.linalg.norm(action - origin - at @ axes) > ON_PLANE
    where = " (off the plane)" if off else ""
    return Mark(kind, name + where, place, at[None], np.asarray([q], float), action[None], bool(off))


def _crowd(fields: Mapping[str, Any], proposals: Any, q: Any) -> Mark:
    """Return one mark for all of many proposals."""
    each = [_point(fields, "proposal", "", 0, *one) for one in zip(proposals, q, strict=True)]
    off = [mark.off for mark in each]
    where = " (off the plane)" if all(off) else " (some off the plane)" if any(off) else ""
    at, heights, actions = (
        np.concatenate([getattr(mark, of) for mark in each]) for of in ("at", "q", "action")
    )
    return Mark("proposal", f"{len(each)} proposals{where}", 0, at, heights, actions, all(off))


def list_gaps(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the gaps of a summary by their names: that of the action and, unless they are many, of each
    proposal.
    """
    proposals = summary["proposals"]
    if len(proposals) == 1:
        return {"action": summary["action"]}
    told = proposals if len(proposals) <= MOST_TOLD_APART else []
    return {"chosen action": summary["action"]} | {f"proposal {k}": gaps for k, gaps in enumerate(told)}


def axis_name(fields: Mapping[str, Any], k: int, between: str = ", ") -> str:
    """Name an axis. Actions are scaled to [-1, 1], those of a table too; indices are not."""
    name = fields["plane"]["names"][k]
    if name == INDEX:
        return name
    mixed = np.abs(np.asarray(fields["plane"]["axes"], float)[k]).max() < 1 - 1e-9  # coordinates may exceed 1
    return f"{name}{between}{'actions ' if mixed else ''}scaled to [−1, 1]"


def is_number(number: float | None) -> bool:
    """Return whether a value is a finite number: missing values are NaN in memory and null in JSON."""
    return number is not None and bool(np.isfinite(number))


def format_gap_share(survey: Mapping[str, Any]) -> str:
    """Format the action's gap as a share of Q's range."""
    return f"{survey['gap'] / survey['span']:.1%}" if survey["span"] > 0 else "0%"


def describe_briefly(fields: Mapping[str, Any]) -> str:
    """Describe gap, optima and rank of one landscape, for a title."""
    survey = fields["survey"]
    text = f"state {fields['place']}: " if fields["place"] else ""
    text += f"gap {survey['gap']:.3g} = {format_gap_share(survey)} of Q's range"
    if is_number(survey["optima"]):
        text += f"; local optima: {survey['optima']:.0f}"
    if is_number(survey["rank"]):
        text += f"; rank {survey['rank']:,.0f} of {fields['entries']:,}"
    return text


def describe(fields: Mapping[str, Any], step: int) -> str:
    """Describe one landscape in sentences."""
    survey = fields["survey"]
    share = survey["gap"] / survey["span"] if survey["span"] > 0 else 0.0
    below = f"lies {share:.1%} of Q's range below the best found"
    values = f"Q {format_number(survey['action_q'])}, best {format_number(survey['best_q'])}"
    text = f"At step {step:,} the action {below if share > 0.0005 else 'is the best one found'} ({values})"
    if is_number(survey["optima"]):
        count = int(survey["optima"])
        text += f"; Q has {count} local optim{'um' if count == 1 else 'a'}"
    if is_number(survey["rank"]):
        text += f"; the action ranks {survey['rank']:,.0f} of {fields['entries']:,}"
    text += "."
    return text if len(survey["proposals"]) == 1 else f"{text} {_describe_choice(survey)}"


def _describe_choice(survey: Mapping[str, Any]) -> str:
    """Describe which proposal was chosen and its gain over the first."""
    off = np.linalg.norm(np.asarray(survey["proposals"], float) - np.asarray(survey["action"], float), axis=1)
    gained = survey["action_q"] - survey["proposals_q"][0]
    share = abs(gained) / survey["span"] if survey["span"] > 0 else 0.0
    which = f"It is proposal {off.argmin()}" if off.min() < 1e-4 else "It is none of these proposals"
    if share < 0.0005:
        return f"{which}{'' if off.argmin() == 0 else ', worth as much as proposal 0'}."
    return f"{which}, {share:.1%} of Q's range {'above' if gained > 0 else 'below'} proposal 0."


def format_number(x: float) -> str:
    """Format four significant digits, with a typographic minus sign."""
    return f"{x:.4g}".replace("-", "−")


def list_shared(marks: Mapping[str, Any]) -> list[str]:
    """Return the settings that two measured agents share, which `name_agents` takes out of their names."""
    return shorten_labels([marks["label"], marks["other"]["label"]])[1] if "other" in marks else []


def shown_names(agents: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of each measured agent by its label, which selects its colour."""
    names = {agent["label"]: name for name, agent in agents.items()}
    return names if len(names) == len(agents) else {name: name for name in agents}


def name_steps(agents: Mapping[str, Mapping[str, Any]]) -> str:
    """Name what the steps of measured agents are: on a dataset each one is an update."""
    return "updates" if all(agent.get("dataset") for agent in agents.values()) else "environment steps"


def name_agents(marks: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the one or two measured agents by name.

    The name is the label, without the settings that both share; equal labels get the folder added, equal
    folders their position too.
    """
    if "other" not in marks:
        return {marks["label"]: marks}
    both = (marks, marks["other"])
    short, _ = shorten_labels([agent["label"] for agent in both])
    if len(short) > 1:
        return {short[agent["label"]]: agent for agent in both}
    for name in ("{label} ({name})", "{label} ({name}, {place})"):
        named = {name.format_map({**agent, "place": k + 1}): agent for k, agent in enumerate(both)}
        if len(named) == len(both):
            break
    return named
