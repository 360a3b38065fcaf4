"""The page of `qscape landscape --html`: interactive landscapes, a choice of states, a slider over saves."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from qscape.report import page
from qscape.report.curves import training_charts
from qscape.report.figures import add_break_points
from qscape.report.interactive import render_chart
from qscape.report.labels import describe_shared
from qscape.report.landscape_charts import format_action, landscape_chart
from qscape.report.marks import (
    INDEX,
    describe,
    format_gap_share,
    format_number,
    list_gaps,
    list_marks,
    list_shared,
    name_agents,
)
from qscape.report.page import escape

Agents = Mapping[str, Mapping[str, Any]]  # results of `measure_landscapes`, by agent


def render_page(findings: Mapping[str, Any]) -> str:
    """Render the page as text.

    Every agent has a chart, `landscape-0` or `landscape-1`. The page's script shows in it the view of the
    chosen state and save, with a description beside it.

    `findings`: the result of `measure_landscapes`, or the contents of RUN/inspect/landscape.json.
    """
    agents = name_agents(findings)
    over_training = all("over_training" in agent for agent in agents.values())
    moments = [agent["over_training"] if over_training else [agent] for agent in agents.values()]
    steps = sorted({moment["step"] for saves in moments for moment in saves})
    if not over_training:  # each agent has one save; the steps may differ
        steps = steps[-1:]
    figures = {
        f"landscape-{a}": landscape_chart(saves[-1]["landscapes"][0]) for a, saves in enumerate(moments)
    }
    parts = [
        page.section(
            "landscape",
            "The landscape",
            _controls(findings, steps),
            _columns(agents),
            _reading_help(findings),
        )
    ]
    if over_training:
        curves = dict(zip(("training-gap", "training-optima"), training_charts(agents), strict=False))
        small = {"height": 280, "showlegend": len(agents) > 1}
        figures |= {name: render_chart(chart).update_layout(small) for name, chart in curves.items()}
        placed = [page.figure(name, "", chart.title) for name, chart in curves.items()]
        parts.append(page.section("training", "Over training", page.charts(*placed)))
    parts.append(page.section("numbers", "The numbers", *_number_tables(agents)))
    title = ": ".join(filter(None, ["Q over actions", findings["env"]]))
    said = describe_shared(list_shared(findings))
    shared = f'<p class="quiet">{escape(add_break_points(said))}</p>' if said else ""
    head = f"<header><h1>{escape(title)}</h1>\n{shared}{_lead_paragraphs(agents)}</header>"
    views = [
        _view(a, m, s, moment, fields)
        for a, saves in enumerate(moments)
        for m, moment in enumerate(saves)
        for s, fields in enumerate(moment["landscapes"])
    ]
    # At each slider position an agent is shown at its newest save so far, before that at its first save.
    shown = [[max(0, sum(m["step"] <= step for m in saves) - 1) for step in steps] for saves in moments]
    plan = _embed_json("plan", {"steps": steps, "shown": shown})
    body = "\n".join([head, "<main>", *parts, "</main>", _footer(findings), plan, *views])
    return page.render_document(title, body, figures, {"landscape.csv": to_csv(findings)}, _script())


def _script() -> str:
    return (files("qscape.report") / "data" / "landscape.js").read_text(encoding="utf-8")


def to_csv(findings: Mapping[str, Any]) -> str:
    """Format the measurements at every state as CSV: a row for each agent, save and state."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["agent", "step", "episode", "episode_step", "gap", "gap_share", "local_optima"])
    for name, agent in name_agents(findings).items():
        for moment in agent.get("over_training", [agent]):
            columns = (moment["gap"], moment["gap_share"], moment["optima"])
            for place, *numbers in zip(agent["place"], *columns, strict=True):
                rows.writerow([name, moment["step"], *place, *numbers])
    return out.getvalue()


def _lead_paragraphs(agents: Agents) -> str:
    paragraphs = (
        f"{_describe_newest(name, agent)} {_describe_change(agent)}" for name, agent in agents.items()
    )
    return "\n".join(f'<p class="lead">{escape(sentences.strip())}</p>' for sentences in paragraphs)


def _describe_newest(name: str, agent: Mapping[str, Any]) -> str:
    """Describe one agent's newest save in a sentence."""
    summary = agent["summary"]
    share = summary["action"]["share"]
    sentence = (
        f"{add_break_points(name)} at step {agent['step']:,}: over {summary['states']} visited states its "
        f"action lies {share['mean']:.1%} of Q's range below the best found, in nine of ten states at most "
        f"{share['p90']:.1%}"
    )
    if optima := summary["optima"]:
        sentence += f"; Q has {optima['mean']:.2f} local optima on average, "
        sentence += f"several in {summary['several']:.0%} of states"
    if rank := summary["rank"]:
        sentence += f"; the action ranks {rank['p50']:,.0f} at the median"
    return sentence + "."


def _describe_change(agent: Mapping[str, Any]) -> str:
    """Describe the change from the first to the last save in a sentence."""
    if "over_training" not in agent:
        return ""
    first, last = (agent["over_training"][k] for k in (0, -1))
    old, new = first["summary"], last["summary"]
    sentence = (
        f"From step {first['step']:,} to {last['step']:,}: mean gap "
        f"{old['action']['share']['mean']:.1%} → {new['action']['share']['mean']:.1%}"
    )
    if old["optima"] and new["optima"]:
        sentence += f", local optima {old['optima']['mean']:.2f} → {new['optima']['mean']:.2f}"
    return sentence + "."


def _controls(findings: Mapping[str, Any], steps: Sequence[int]) -> str:
    options = []
    for k, fields in enumerate(findings["landscapes"]):
        episode, _, step = fields["place"].partition(":")
        options.append(f'<option value="{k}">episode {escape(episode)}, step {escape(step)}</option>')
    parts = [f'<label>State <select id="state">{"".join(options)}</select></label>']
    if len(steps) > 1:
        last = len(steps) - 1
        parts.append(
            '<label class="wide">Save <output id="step"></output>'
            f'<input id="save" type="range" min="0" max="{last}" step="1" value="{last}"></label>'
        )
    return f'<div class="controls">{"".join(parts)}</div>'


def _columns(agents: Agents) -> str:
    """Place a chart and a description for each agent."""
    placed = []
    for a, (name, agent) in enumerate(agents.items()):
        drawn = page.figure(f"landscape-{a}", "", add_break_points(name) if len(agents) > 1 else "")
        readout = f'<p class="quiet readout" id="readout-{a}"></p>' if is_cut(agent) else ""
        description = f'<div id="said-{a}" aria-live="polite"></div>'
        placed += (
            [f"<div>{drawn}{readout}{description}</div>"]
            if len(agents) > 1
            else [f"<div>{drawn}{readout}</div>", description]
        )
    return page.charts(*placed)


def is_cut(agent: Mapping[str, Any]) -> bool:
    """Return whether the plot is a cut through more action dimensions than it shows."""
    fields = agent["landscapes"][0]
    return fields["kind"] != "table" and len(fields["plane"]["origin"]) > len(fields["grid"])


def _reading_help(findings: Mapping[str, Any]) -> str:
    fields, several = findings["landscapes"][0], len(findings["landscapes"][0]["survey"]["proposals"]) > 1
    help_text = {
        "line": "The upper curve is Q at one state, over the action; the lower one is its slope. Where the "
        "slope is positive, gradient ascent on Q moves the actor to the right; it stops where the slope "
        "crosses zero.",
        "plane": "The colours are Q at one state, over actions. The arrows are the gradient field, which an "
        "actor follows and which PAVE smooths: they point uphill, and grow with the root of the slope.",
        "table": "Each dot is an action of the table, placed by the table's principal components; the "
        "colour is Q. At most 3,000 are drawn, evenly over their order by Q.",
    }[fields["kind"]]
    if fields["plane"]["names"][0] == INDEX:
        help_text = "Each dot is the Q of an action, over the action's index."
    if fields["kind"] == "line" and len(fields.get("valid", ())):
        help_text += " The shaded actions are those that the environment accepts."
    if fields["kind"] == "line" and fields.get("surrogates"):
        help_text += " A click on a Ψ shows the objective of that proposal's actor: Q, but at least the Q of "
        help_text += "the best earlier proposal, or the network that is fitted to it."
    help_text += " The star is the best action found by search."
    if fields["kind"] != "table":
        help_text += " Crosses are local optima that stand out by more than 1% of Q's range."
        help_text += " Actions are scaled to [−1, 1] in each dimension."
    if several:
        help_text += (
            " Proposals are numbered in the order in which they are made; the ring marks the chosen one."
        )
    if is_cut(findings):
        through = (
            "the same one in all plots of a state"
            if "other" in findings
            else "through the actions of its own save"
        )
        help_text += f" Each plot is a cut through more dimensions, {through}; "
        help_text += "hollow marks lie off the cut, and the colour beneath them is not their Q."
    return f"<details><summary>How to read it</summary><p>{escape(help_text)}</p></details>"


def _view(a: int, m: int, s: int, moment: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Render one state of one save of one agent: chart and description."""
    name = f"{a}-{m}-{s}"
    figure = landscape_chart(fields)
    figure["layout"]["meta"] = {k: _to_list(fields["plane"][k]) for k in ("origin", "axes")}
    survey, rows = fields["survey"], []
    for mark in list_marks(fields):
        if mark.kind != "optima":
            gap = format_gap_share({**survey, "gap": survey["best_q"] - mark.q[0]})
            rows.append([mark.name, format_action(mark.action[0]), format_number(mark.q[0]), gap])
    columns = ["", "action", "Q", "gap"]
    description = f"<p>{escape(describe(fields, moment['step']))}</p>" + page.table(
        columns, rows, numbers=(2, 3)
    )
    return f'{_embed_json(f"view-{name}", figure)}\n<template id="said-{name}">{description}</template>'


def _to_list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _embed_json(name: str, content: Any) -> str:
    """Embed JSON for the page's script; `<` is escaped, so that the data cannot end its element."""
    dumped = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    return f'<script type="application/json" id="{name}">{dumped}</script>'


def _number_tables(agents: Agents) -> list[str]:
    """Render a table of gaps for each agent at its newest save, and the download of all states."""
    parts = []
    for name, agent in agents.items():
        summary = agent["summary"]
        rows = [
            [
                what,
                *(f"{gaps['gap'][key]:.4g}" for key in ("mean", "p50", "p90", "max")),
                f"{gaps['share']['mean']:.1%}",
                f"{gaps['share']['p90']:.1%}",
            ]
            for what, gaps in list_gaps(summary).items()
        ]
        columns = ["", "mean gap", "median", "90%", "largest", "mean share of Q's range", "90%"]
        caption = f"{add_break_points(name)}, step {agent['step']:,}: best Q found minus Q, "
        caption += f"over {summary['states']} states"
        parts.append(page.table(columns, rows, numbers=range(1, 7), caption=caption))
    parts.append(f'<p class="downloads">{page.download_link("landscape.csv")}</p>')
    return parts


def _footer(findings: Mapping[str, Any]) -> str:
    sentence = (
        f"States visited by {findings['name']} with its deterministic policy, evaluation seed "
        f"{findings['eval_seed']}. The best action is found by search, so the true gaps are at least those "
        "shown. "
        "Made by qscape landscape."
    )
    return f"<footer>{escape(sentence)}</footer>"
