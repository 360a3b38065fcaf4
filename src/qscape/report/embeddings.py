"""Plots of a learned geometry, from the results of `qscape embedding` (RUN/inspect/embedding.json)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qscape.report import require_extra
from qscape.report.figures import COLOURS, new_figure

with require_extra("Pictures"):
    import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = COLOURS[0], COLOURS[1]
SHADES = "viridis"  # monotonic for colour-blind readers and in grey


def draw_embedding(findings: Mapping[str, Any]) -> "Figure":
    """Draw similarity, action map and kernel side by side."""
    figure = new_figure((16.5, 5.0))
    similarity, projection, kernel = figure.subplots(1, 3)
    draw_similarity(findings, similarity)
    draw_actions(findings, projection)
    draw_kernel(findings, kernel)
    figure.suptitle(f"{findings['label']} on {findings['env']}, step {findings['step']:,}", fontsize=11)
    return figure


def draw_similarity(findings: Mapping[str, Any], ax: "Axes") -> "Axes":
    """Draw the cosine of two pairs against their difference of value, with SAVGO's target T."""
    gap, cosine = (np.asarray(findings["pairs"][k], float) for k in ("difference", "cosine"))
    ax.scatter(
        gap, cosine, s=6, alpha=0.25, color=BLUE, lw=0, label="pairs of state and action", rasterized=True
    )
    if findings["gap_scale"]:
        x, wanted, label = target_cosines(findings)
        ax.plot(x, wanted, color=ORANGE, lw=2, label=f"T: {label}")
    ax.set(xlabel="difference of value |q - q'|", ylabel="cosine of the embeddings", ylim=(-1.05, 1.05))
    ax.set_title(
        f"Close values, close pairs?  rank correlation {findings['rank_correlation']:.2f}", fontsize=10
    )
    ax.legend(fontsize=8, loc="lower left", framealpha=0.85)
    return _style_axes(ax)


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


def draw_actions(findings: Mapping[str, Any], ax: "Axes") -> "Axes":
    """Draw the actions of one state on the two principal axes of their embeddings, coloured by value."""
    actions, candidates, own = findings["actions"], findings["candidates"], findings["own"]
    values = np.concatenate([actions["value"], candidates["value"], [own["value"]]])
    shade = {"cmap": SHADES, "vmin": values.min(), "vmax": values.max()}
    x, y = np.transpose(actions["at"])
    dots = ax.scatter(x, y, c=actions["value"], s=9, lw=0, label="actions, uniform over the box", **shade)
    x, y = np.transpose(candidates["at"])
    ax.scatter(x, y, c=candidates["value"], s=34, lw=0.8, edgecolor="black", label="candidates", **shade)
    ax.scatter(
        *own["at"], c=[own["value"]], marker="*", s=260, lw=1.0, edgecolor=ORANGE,
        label="the policy's action", **shade,
    )  # fmt: skip
    ax.figure.colorbar(dots, ax=ax, label="Q (minimum of the target critics)")
    shares = [f"{100 * share:.0f}% of the variance" for share in findings["explained"]]
    ax.set(xlabel=f"first principal component ({shares[0]})", ylabel=f"second ({shares[1]})")
    episode, step = findings["state"]
    ax.set_title(f"Actions of one state on the map (episode {episode}, step {step})", fontsize=10)
    ax.legend(fontsize=8, framealpha=0.85)
    return _style_axes(ax)


def draw_kernel(findings: Mapping[str, Any], ax: "Axes") -> "Axes":
    """Draw the weights of the candidates against their cosine to the policy's action, coloured by value."""
    candidates = findings["candidates"]
    k = len(candidates["weight"])
    dots = ax.scatter(
        candidates["cosine"], k * np.asarray(candidates["weight"], float), c=candidates["value"], cmap=SHADES,
        s=34, lw=0.5, edgecolor="black", label="candidates",
    )  # fmt: skip
    ax.axhline(1.0, color="#6E6E6E", ls="--", lw=1, label="uniform weights")
    ax.figure.colorbar(dots, ax=ax, label="Q (minimum of the target critics)")
    ax.set(xlabel="cosine to the policy's action", ylabel="weight × number of candidates")
    ax.set_title(f"Kernel weights of the {k} candidates at that state", fontsize=10)
    ax.legend(fontsize=8, framealpha=0.85)
    return _style_axes(ax)


def _style_axes(ax: "Axes") -> "Axes":
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
