"""Charts of a learned geometry, from the results of `qscape embedding` (RUN/inspect/embedding.json)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.charts import COLOURS, GREYS, Axis, Chart, Line, Points, Shades
from qscape.report.figures import draw_chart, new_figure

with require_extra("Pictures"):
    import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, RIM = "#000000", COLOURS[1]
VALUE = "Q (minimum of the target critics)"


def draw_embedding(findings: Mapping[str, Any]) -> "Figure":
    """Draw the charts of `embedding_charts` side by side."""
    figure = new_figure((16.5, 5.0))
    for chart, ax in zip(embedding_charts(findings), figure.subplots(1, 3), strict=True):
        draw_chart(chart, ax)
    figure.suptitle(f"{findings['label']} on {findings['env']}, step {findings['step']:,}", fontsize=11)
    return figure


def embedding_charts(findings: Mapping[str, Any]) -> list[Chart]:
    """Describe similarity, action map and kernel."""
    return [_similarity_chart(findings), _action_map_chart(findings), _kernel_chart(findings)]


def _similarity_chart(findings: Mapping[str, Any]) -> Chart:
    """Describe the cosine of two pairs against their difference of value, with SAVGO's target T."""
    pairs = findings["pairs"]
    traces: list[Line | Points] = [
        Points(pairs["difference"], pairs["cosine"], "pairs of state and action", COLOURS[0], 4, opacity=0.3)
    ]
    if findings["gap_scale"]:
        x, wanted, name = target_cosines(findings)
        traces.append(Line(x, wanted, f"T: {name}", COLOURS[1]))
    return Chart(
        f"Close values, close pairs? Rank correlation {findings['rank_correlation']:.2f} (−1: perfect)",
        Axis("difference of value |q − q′|", "|q − q′|"),
        Axis("cosine of the embeddings", "cosine", range=(-1.05, 1.05)),
        traces,
    )


def target_cosines(findings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
    """Compute SAVGO's target curve over differences of value.

    Returns:
        Abscissae, cosines T = 1 - 2 min(|q - q'| / β, 1)^λ, and a name for the legend.
    """
    x = np.linspace(0.0, max(findings["pairs"]["difference"]), 200)
    weight = findings.get("value_weight", 1.0)  # older files lack it
    near = np.clip(weight * x / findings["gap_scale"], 0.0, 1.0)
    rewards = "" if weight == 1.0 else " (rewards left out)"
    return x, 1.0 - 2.0 * near ** findings["exponent"], f"target from values alone{rewards}"


def _action_map_chart(findings: Mapping[str, Any]) -> Chart:
    """Describe the actions of one state on the two principal axes of their embeddings, coloured by value."""
    actions, candidates, own = findings["actions"], findings["candidates"], findings["own"]
    values = np.concatenate([actions["value"], candidates["value"], [own["value"]]])
    shades = Shades(values.min(), values.max())
    first, second = (f"{share:.0%} of the variance" for share in findings["explained"])
    episode, step = findings["state"]
    (x, y), (u, v), (own_x, own_y) = np.transpose(actions["at"]), np.transpose(candidates["at"]), own["at"]
    uniform, bar = "actions, uniform over the box", shades._replace(title=VALUE)
    return Chart(
        f"Actions of one state on the main axes of their embeddings (episode {episode}, step {step})",
        Axis(f"first principal component ({first})", "first"),
        Axis(f"second ({second})", "second"),
        [
            Points(x, y, uniform, actions["value"], shades=bar),
            Points(u, v, "candidates", candidates["value"], 8, edge=BLACK, shades=shades),
            Points(
                [own_x], [own_y], "the policy's action", [own["value"]], 17, "star", edge=RIM, shades=shades
            ),
        ],
    )


def _kernel_chart(findings: Mapping[str, Any]) -> Chart:
    """Describe the weights of the candidates by their cosine to the policy's action, coloured by value."""
    of, cosine = findings["candidates"], np.asarray(findings["candidates"]["cosine"], float)
    shades = Shades(min(of["value"]), max(of["value"]), VALUE)
    weight = len(of["weight"]) * np.asarray(of["weight"], float)
    return Chart(
        f"Kernel weights of the {len(weight)} candidates at that state",
        Axis("cosine to the policy's action", "cosine"),
        Axis("weight × number of candidates", "weight"),
        [
            Points(cosine, weight, "candidates", of["value"], 8, edge=BLACK, shades=shades),
            Line([cosine.min(), cosine.max()], [1.0, 1.0], "uniform weights", GREYS[1], 1.0, "dash"),
        ],
    )
