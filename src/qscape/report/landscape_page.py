"""The page of `qscape landscape --html`: landscapes to hover over, a state to choose, a slider over saves."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from qscape.report import page
from qscape.report.figures import COLOURS, add_break_points
from qscape.report.landscape_charts import format_action, landscape_chart
from qscape.report.marks import describe, format_number, list_marks, name_agents
from qscape.report.page import escape, wrap_for_plotly

Agents = Mapping[str, Mapping[str, Any]]  # by name: what `inspect.measure` found


def render_page(findings: Mapping[str, Any]) -> str:
    """The page as text, of what `inspect.measure` found or RUN/inspect/landscape.json holds.

    Every agent has a chart, `landscape-0` or `landscape-1`; the page's script puts into it the view of the
    chosen state and save, and beside it what is said of that view here.
    """
    agents = name_agents(findings)
    over_training = all("over_training" in agent for agent in agents.values())
    moments = [agent["over_training"] if over_training else [agent] for agent in agents.values()]
    steps = sorted({moment["step"] for one in moments for moment in one})
    if not over_training:  # each agent is shown at its only save, whatever the step
        steps = steps[-1:]
    figures = {f"landscape-{a}": landscape_chart(one[-1]["landscapes"][0]) for a, one in enumerate(moments)}
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
        figures["training-gap"], figures["training-optima"] = _gap_chart(agents), _optima_chart(agents)
        parts.append(page.section("training", "Over training", _training(agents)))
    parts.append(page.section("numbers", "The numbers", *_number_tables(agents)))
    title = ": ".join(filter(None, ["Q over actions", findings["env"]]))
    head = f"<header><h1>{escape(title)}</h1>\n{_lead_paragraphs(agents)}</header>"
    views = [
        _view(a, m, s, moment, fields)
        for a, one in enumerate(moments)
        for m, moment in enumerate(one)
        for s, fields in enumerate(moment["landscapes"])
    ]
    # Of two agents with different saves each is shown at its newest save so far, or else at its first.
    shown = [[max(0, sum(m["step"] <= step for m in one) - 1) for step in steps] for one in moments]
    plan = _embed_json("plan", {"steps": steps, "shown": shown})
    body = "\n".join([head, "<main>", *parts, "</main>", _footer(findings), plan, *views])
    return page.render_document(title, body, figures, {"landscape.csv": to_csv(findings)}, _script())


def _script() -> str:
    return (files("qscape.report") / "data" / "landscape.js").read_text(encoding="utf-8")


def to_csv(findings: Mapping[str, Any]) -> str:
    """What was measured at every state: a row for each agent, save and state."""
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
    said = (f"{_describe_newest(name, agent)} {_describe_change(agent)}" for name, agent in agents.items())
    return "\n".join(f'<p class="lead">{escape(sentences.strip())}</p>' for sentences in said)


def _describe_newest(name: str, agent: Mapping[str, Any]) -> str:
    """One agent's newest save in a sentence."""
    summary = agent["summary"]
    share = summary["action"]["share"]
    said = (
        f"{add_break_points(name)} at step {agent['step']:,}: over {summary['states']} visited states its action lies "
        f"{share['mean']:.1%} of Q's range below the best found, in nine of ten states less than "
        f"{share['p90']:.1%}"
    )
    if optima := summary["optima"]:
        said += f"; Q has {optima['mean']:.2f} local optima on average, "
        said += f"several in {summary['several']:.0%} of states"
    if rank := summary["rank"]:
        said += f"; the action ranks {rank['p50']:,.0f} at the median"
    return said + "."


def _describe_change(agent: Mapping[str, Any]) -> str:
    """How it got there in a sentence."""
    if "over_training" not in agent:
        return ""
    first, last = (agent["over_training"][k] for k in (0, -1))
    old, new = first["summary"], last["summary"]
    said = (
        f"From step {first['step']:,} to {last['step']:,}: mean gap "
        f"{old['action']['share']['mean']:.1%} → {new['action']['share']['mean']:.1%}"
    )
    if old["optima"] and new["optima"]:
        said += f", local optima {old['optima']['mean']:.2f} → {new['optima']['mean']:.2f}"
    return said + "."


def _controls(findings: Mapping[str, Any], steps: Sequence[int]) -> str:
    options = []
    for k, fields in enumerate(findings["landscapes"]):
        episode, _, step = fields["place"].partition(":")
        options.append(f'<option value="{k}">episode {escape(episode)}, step {escape(step)}</option>')
    made = [f'<label>State <select id="state">{"".join(options)}</select></label>']
    if len(steps) > 1:
        last = len(steps) - 1
        made.append(
            '<label class="wide">Save <output id="step"></output>'
            f'<input id="save" type="range" min="0" max="{last}" step="1" value="{last}"></label>'
        )
    return f'<div class="controls">{"".join(made)}</div>'


def _columns(agents: Agents) -> str:
    """A chart for each agent, and room for what is said of it."""
    placed = []
    for a, (name, agent) in enumerate(agents.items()):
        drawn = page.figure(f"landscape-{a}", "", add_break_points(name) if len(agents) > 1 else "")
        readout = f'<p class="quiet readout" id="readout-{a}"></p>' if is_cut(agent) else ""
        said = f'<div id="said-{a}" aria-live="polite"></div>'
        placed += (
            [f"<div>{drawn}{readout}{said}</div>"]
            if len(agents) > 1
            else [f"<div>{drawn}{readout}</div>", said]
        )
    return page.charts(*placed)


def is_cut(agent: Mapping[str, Any]) -> bool:
    """Is the picture a cut through more dimensions than it shows?"""
    fields = agent["landscapes"][0]
    return fields["kind"] != "table" and len(fields["plane"]["origin"]) > len(fields["grid"])


def _reading_help(findings: Mapping[str, Any]) -> str:
    fields, several = findings["landscapes"][0], len(findings["landscapes"][0]["survey"]["proposals"]) > 1
    said = {
        "line": "The curve above is Q at one state, over the action; below is its slope: where it is "
        "positive, an actor that climbs Q moves to the right, and it rests where the slope crosses zero.",
        "plane": "The colours are Q at one state, over actions. The arrows are its gradient field, which an "
        "actor climbs and which PAVE smooths: they point uphill, and grow with the root of the slope.",
        "table": "Each dot is an action of the table, where its vector lies on the table's principal "
        "components; the colour is Q. At most 3,000 are drawn, evenly over their order by Q.",
    }[fields["kind"]]
    if fields["kind"] == "line" and len(fields.get("valid", ())):
        said += " Shaded are the actions that the environment accepts."
    if fields["kind"] == "line" and fields.get("surrogates"):
        said += " A click on a Ψ shows what that proposal's actor climbs: Q cut off below at the best of the "
        said += "proposals before, or the network that is fitted to it."
    said += " The star is the best action found by search."
    if fields["kind"] != "table":
        said += " Crosses are local optima that stand out by more than 1% of Q's range."
        said += " Actions are scaled to [−1, 1] in each dimension."
    if several:
        said += (
            " Proposals are numbered in the order in which they are made; the ring is the one that is chosen."
        )
    if is_cut(findings):
        said += " Each picture is a cut through more dimensions, laid through the actions of its own save; "
        said += "hollow marks lie off it, and the colour beneath them is not their Q."
    return f"<details><summary>How to read it</summary><p>{escape(said)}</p></details>"


def _view(a: int, m: int, s: int, moment: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """One state of one save of one agent: its figure, and what is said of it."""
    name = f"{a}-{m}-{s}"
    figure = landscape_chart(fields)
    figure["layout"]["meta"] = {k: _to_list(fields["plane"][k]) for k in ("origin", "axes")}
    survey, rows = fields["survey"], []
    for mark in list_marks(fields):
        if mark.kind != "optima":
            q, share = mark.q[0], (survey["best_q"] - mark.q[0]) / (survey["span"] or 1)
            rows.append([mark.name, format_action(mark.action[0]), format_number(q), f"{share:.1%}"])
    columns = ["", "action", "Q", "gap"]
    said = f"<p>{escape(describe(fields, moment['step']))}</p>" + page.table(columns, rows, numbers=(2, 3))
    return f'{_embed_json(f"view-{name}", figure)}\n<template id="said-{name}">{said}</template>'


def _to_list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _embed_json(name: str, content: Any) -> str:
    """JSON that the page's script reads; unable to end the element it stands in."""
    dumped = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    return f'<script type="application/json" id="{name}">{dumped}</script>'


def _training(agents: Agents) -> str:
    n = next(iter(agents.values()))["summary"]["states"]
    return page.charts(
        page.figure(
            "training-gap", f"Mean over the same {n} states, as a share of Q's range", "Optimality gap"
        ),
        page.figure("training-optima", f"Mean over the same {n} states", "Local optima"),
    )


def _gap_chart(agents: Agents) -> dict[str, Any]:
    return _training_chart(agents, "% of Q's range", lambda s: 100 * s["action"]["share"]["mean"])


def _optima_chart(agents: Agents) -> dict[str, Any]:
    return _training_chart(agents, "local optima", lambda s: s["optima"] and s["optima"]["mean"])


def _training_chart(agents: Agents, unit: str, of: Any) -> dict[str, Any]:
    traces = [
        {
            "mode": "lines+markers", "name": wrap_for_plotly(name), "line": {"color": colour, "width": 2},
            "x": [moment["step"] for moment in agent["over_training"]],
            "y": [of(moment["summary"]) for moment in agent["over_training"]],
            "hovertemplate": "step %{x:,}<br>%{y:.3g} " + unit + "<extra></extra>",
        }
        for (name, agent), colour in zip(agents.items(), COLOURS, strict=False)
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": "environment steps"},
        "yaxis": {"title": unit, "rangemode": "tozero"},
        "showlegend": len(agents) > 1,
        "height": 280,
    }
    return {"data": traces, "layout": layout}


def _number_tables(agents: Agents) -> list[str]:
    """A table of gaps for each agent at its newest save, and the file of all states."""
    made = []
    for name, agent in agents.items():
        summary = agent["summary"]
        lines = {"chosen action" if len(summary["proposals"]) > 1 else "action": summary["action"]}
        if len(summary["proposals"]) > 1:
            lines |= {f"proposal {k}": said for k, said in enumerate(summary["proposals"])}
        rows = [
            [
                what,
                *(f"{said['gap'][key]:.4g}" for key in ("mean", "p50", "p90", "max")),
                f"{said['share']['mean']:.1%}",
                f"{said['share']['p90']:.1%}",
            ]
            for what, said in lines.items()
        ]
        columns = ["", "mean gap", "median", "90%", "largest", "mean share of Q's range", "90%"]
        caption = f"{add_break_points(name)}, step {agent['step']:,}: best Q found minus Q, over {summary['states']} states"
        made.append(page.table(columns, rows, numbers=range(1, 7), caption=caption))
    made.append(f'<p class="downloads">{page.download_link("landscape.csv")}</p>')
    return made


def _footer(findings: Mapping[str, Any]) -> str:
    said = (
        f"States visited by {findings['name']} with its deterministic policy, evaluation seed "
        f"{findings['eval_seed']}. The best action is searched, so true gaps are at least what is shown. "
        "Made by qscape landscape."
    )
    return f"<footer>{escape(said)}</footer>"
