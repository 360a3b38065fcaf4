"""The page of `qscape landscape --kind curvature --html`: second derivatives of Q with values on hover."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from qscape.report import page
from qscape.report.curvature import NAMES, ORANGE, Surface, axis_names, colour_range, describe_method
from qscape.report.figures import add_break_points
from qscape.report.labels import describe_shared
from qscape.report.landscape_charts import encode_array
from qscape.report.marks import list_shared, name_agents
from qscape.report.page import escape

COLOUR_SCALES = {"mixed": "Viridis", "eigenvalue": "RdBu"}

Agents = Mapping[str, Mapping[str, Any]]  # results of `measure_curvature`, by agent


def render_page(findings: Mapping[str, Any]) -> str:
    """Render the page as text.

    Each state has the charts `mixed-STATE-AGENT` and `eigenvalue-STATE-AGENT`, both counted from 0.

    `findings`: the result of `measure_curvature`, or the contents of RUN/inspect/curvature.json.
    """
    agents, figures, parts = name_agents(findings), {}, []
    for k, surface in enumerate(findings["surfaces"]):
        placed = []
        for kind, quantity in NAMES.items():
            scale = colour_range(agents, k, kind)
            for a, (name, agent) in enumerate(agents.items()):
                figures[f"{kind}-{k}-{a}"] = surface_chart(agent["surfaces"][k], kind, scale)
                title = f"{add_break_points(name)}: {quantity}" if len(agents) > 1 else quantity
                placed.append(page.figure(f"{kind}-{k}-{a}", "", title))
        episode, _, step = surface["place"].partition(":")
        parts += [f"<h3>Episode {escape(episode)}, step {escape(step)}</h3>", page.charts(*placed)]
    title = ": ".join(filter(None, ["Curvature of Q", findings["env"]]))
    said = describe_shared(list_shared(findings))
    shared = f'<p class="quiet">{escape(add_break_points(said))}</p>' if said else ""
    lead = "\n".join(f'<p class="lead">{escape(_describe(*of))}</p>' for of in agents.items())
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>\n{shared}{lead}</header>",
            "<main>",
            page.section("surfaces", "Over observation and action", _reading_help(findings), *parts),
            page.section("numbers", "The numbers", *_number_tables(agents)),
            "</main>",
            f"<footer>{escape(_footer(findings))}</footer>",
        ]
    )
    return page.render_document(title, body, figures, {"curvature.csv": to_csv(findings)})


def surface_chart(surface: Surface, kind: str, scale: tuple[float, float]) -> dict[str, Any]:
    """Draw one quantity of a surface as a plotly figure (data and layout).

    Args:
        surface: an entry of `surfaces`.
        kind: "mixed" or "eigenvalue".
        scale: see `curvature.colour_range`.
    """
    x, y = surface["grid"]
    first, second = axis_names(surface)
    hover = f"{first} %{{x:.3f}}<br>action %{{y:.3f}}"
    values = encode_array([*zip(*surface[kind], strict=True)])  # rows of a heat map are along y
    colour_bar = {"orientation": "h", "thickness": 10, "outlinewidth": 0, "x": 0.5, "y": 1.0,
                  "yanchor": "bottom", "len": 1.0, "nticks": 5, "tickangle": 0}  # fmt: skip
    heat = {
        "type": "heatmap", "x": encode_array(x), "y": encode_array(y), "z": values,
        "zmin": scale[0], "zmax": scale[1], "colorscale": COLOUR_SCALES[kind], "colorbar": colour_bar,
        "hovertemplate": f"{hover}<br>{NAMES[kind]} %{{z:.4g}}<extra></extra>",
    }  # fmt: skip
    path = {"mode": "lines", "x": encode_array(x), "y": encode_array(surface["policy"]), "hoverinfo": "skip"}
    rim = {**path, "name": "the agent's action", "line": {"color": "#333333", "width": 4}}
    line = {**path, "showlegend": False, "line": {"color": "rgba(255, 255, 255, 0.95)", "width": 2}}
    dot = {
        "mode": "markers", "name": "its action at the state", "x": [float(surface["state"])],
        "y": [float(surface["action"])], "cliponaxis": False,
        "marker": {"color": ORANGE, "size": 11, "line": {"color": "#000000", "width": 1}},
        "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip
    axis = {"showgrid": False, "zeroline": False}
    layout = {"xaxis": {**axis, "title": first}, "yaxis": {**axis, "title": second}, "hovermode": "closest"}
    return {"data": [heat, rim, line, dot], "layout": layout}


def to_csv(findings: Mapping[str, Any]) -> str:
    """Format the measurements at the agents' actions as CSV: a row for each agent and visited state."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["agent", "step", "episode", "episode_step", "mixed", "eigenvalue"])
    for name, agent in name_agents(findings).items():
        for place, *numbers in zip(agent["place"], agent["mixed"], agent["eigenvalue"], strict=True):
            rows.writerow([name, agent["step"], *place, *numbers])
    return out.getvalue()


def _describe(name: str, agent: Mapping[str, Any]) -> str:
    """Describe one agent in a sentence."""
    summary = agent["summary"]
    return (
        f"{add_break_points(name)} at step {agent['step']:,}: over {summary['states']} visited states "
        f"{NAMES['mixed']} at its action is {summary['mixed']['p50']:.3g} at the median and "
        f"{summary['mixed']['max']:.3g} at most, and Q curves downwards in every action direction in "
        f"{summary['concave']:.0%} of them."
    )


def _reading_help(findings: Mapping[str, Any]) -> str:
    help_text = (
        f"{describe_method(findings)} Where ‖∂²Q/∂s∂a‖ is large, the slope that the actor climbs turns when "
        "the observation changes a little. Where the largest eigenvalue of ∂²Q/∂a² is not below zero, Q has "
        "no peak that would hold the action. One entry of the observation and one of the action vary; the "
        "others keep their values in that state and in the agent's action there. The line is the agent's "
        "action along the observation. Charts of one quantity and state share their colours, which end at "
        "the 99th percentile."
    )
    return f"<p>{escape(help_text)}</p>"


def _number_tables(agents: Agents) -> list[str]:
    """Render a table of both quantities for each agent, and the download of all states."""
    parts = []
    for name, agent in agents.items():
        summary = agent["summary"]
        rows = [
            [quantity, *(f"{summary[kind][key]:.4g}" for key in ("mean", "p50", "p90", "max"))]
            for kind, quantity in NAMES.items()
        ]
        caption = f"{add_break_points(name)}, step {agent['step']:,}: at the agent's action, over "
        caption += f"{summary['states']} states; the eigenvalue is negative in {summary['concave']:.1%}"
        columns = ["", "mean", "median", "90%", "largest"]
        parts.append(page.table(columns, rows, numbers=range(1, 5), caption=caption))
    parts.append(f'<p class="downloads">{page.download_link("curvature.csv")}</p>')
    return parts


def _footer(findings: Mapping[str, Any]) -> str:
    return (
        f"States visited by {findings['name']} with its deterministic policy, evaluation seed "
        f"{findings['eval_seed']}. Made by qscape landscape --kind curvature."
    )
