"""Action collapse of a run: the distance of features and action layer from one simplex, over training.

After "Imitate Optimal Policy: Prevail and Induce Action Collapse in Policy Gradient", arXiv 2509.02737. The
equations are in `qscape.ops.collapse`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qscape.errors import OutOfRange, UnfitAgent
from qscape.inspect.trained_agent import TrainedAgent, load_saves, load_trained_agent
from qscape.onpolicy.agent import Agent
from qscape.ops.collapse import Collapse, action_collapse
from qscape.ops.landscape import span_axes
from qscape.run.evaluation import SEED
from qscape.run.folder import no_save
from qscape.run.probes import PolicyEvaluation
from qscape.tracking import track

STATES = 10_000
AT_A_TIME = 500  # states in one forward pass: an image state needs a megabyte
SHOWN = 1_000  # features in a plot
AT_BOUND = 1e-3  # features within this share of their greatest length count as at the bound
ACTIONS = 3  # a simplex of three vertices lies in a plane, which can be plotted


class LabelledStates(NamedTuple):
    """The states on which collapse is measured.

    Attributes:
        observation: raw observations.
        optimal: the optimal action of each; None if it is unknown, then the policy's greedy action labels it.
    """

    observation: Float[np.ndarray, "N S"]
    optimal: Int[np.ndarray, " N"] | None


class CollapseProbe:
    """Probe `collapse`: the metrics of action collapse on the states of every evaluation.

    States are labelled by the greedy action; the first 10,000 states of the evaluation count.
    """

    columns = (*Collapse._fields, "bound_share")

    def __init__(self, agent: Any) -> None:
        """Raise UsageError: the agent has no action layer over discrete actions."""
        require_action_layer(agent)
        self.agent = agent
        self.look = jax.jit(agent.get_distribution)

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, float]:
        seen = np.concatenate([r.observation for r in evaluation.rollouts])[:STATES]
        states = LabelledStates(seen, None)
        metrics, features, *_ = measure_policy(self.agent, evaluation.acting, states, self.look)
        return metrics._asdict() | {"bound_share": share_at_bound(features, self.agent.head.feature_bound)}


def share_at_bound(features: Float[np.ndarray, "N d"], energy: float | None) -> float:
    """Return the share of features whose length is √`energy`, up to a thousandth;
    NaN if they have no bound.
    """
    if energy is None:
        return float("nan")
    return float((np.linalg.norm(features, axis=1) > (1 - AT_BOUND) * energy**0.5).mean())


def require_action_layer(agent: Any) -> None:
    """Refuse an agent without an action layer over a few discrete actions.

    Raises:
        UsageError: it has no such layer.
    """
    if isinstance(agent, Agent) and agent.task.factors is not None:
        raise UnfitAgent(
            f"{agent.recipe} has {len(agent.task.factors)} action layers here, one for each factor of the "
            "action: action collapse is measured for actions of one index (Discrete), as in CartPole-v1."
        )
    if not isinstance(agent, Agent) or agent.task.choices is None:
        raise UnfitAgent(
            f"{agent.recipe} has no action layer here with a row for each action: action collapse is "
            "measured for on-policy agents with discrete actions, such as ppo+etf on CartPole-v1."
        )


def measure_policy(
    agent: Agent, acting: Any, states: LabelledStates, look: Any = None
) -> tuple[Collapse, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the collapse metrics of one policy, and the data they are computed from.

    Args:
        agent: an on-policy agent with discrete actions.
        acting: its acting state.
        states: where to measure.
        look: `jax.jit(agent.get_distribution)`, to compile it once for several calls; None: compile it here.

    Returns:
        The metrics, the features [N, d], the labels [N] and the action layer [K, d].
    """
    look, all_ = look or jax.jit(agent.get_distribution), states.observation
    parts = [look(acting, all_[i : i + AT_A_TIME]) for i in range(0, len(all_), AT_A_TIME)]
    dist = jax.tree.map(lambda *part: np.concatenate(part), *parts)
    labels = states.optimal
    if labels is None:  # the trained policy stands in for the optimal one
        labels = np.asarray(dist.mode())[:, 0].astype(int)
    own = acting.part_states.get(agent.head.name)
    features, w = np.asarray(dist.features), np.asarray(agent.head.action_layer(acting.networks.head, own))
    valid = agent.task.valid_actions(jnp.asarray(all_))
    metrics = action_collapse(features, labels, w, valid=None if valid is None else np.asarray(valid))
    return metrics, features, labels, w


def collect_states(trained: TrainedAgent, count: int = STATES, seed: int = SEED) -> LabelledStates:
    """Collect the states on which collapse is measured.

    A small grid with known values gives all its states, each with its optimal action. Any other environment
    gives the first `count` states of evaluation rollouts, or fewer if `count` episodes have fewer states.
    """
    adapter = trained.make(seed=seed)
    native: Any = adapter.jax_env
    adapter.close()
    if native is not None and hasattr(native, "optimal_q"):
        q = native.optimal_q(trained.agent.base.discount)
        return LabelledStates(np.eye(len(q), dtype=np.float32), q.argmax(1))
    rollouts, seen = [], 0
    while seen < count and len(rollouts) < count:
        more = trained.rollouts(10, seed + len(rollouts))
        rollouts += more
        seen += sum(len(r.observation) for r in more)
    return LabelledStates(np.concatenate([r.observation for r in rollouts])[:count], None)


def measure_collapse(folder: Path | str, count: int = STATES, seed: int = SEED) -> dict[str, Any]:
    """Measure the collapse of a run at each of its saves.

    Called by `qscape collapse`, which writes the result to RUN/inspect/collapse.json.

    Args:
        folder: a run folder, or a group folder that holds one run.
        count: number of states.
        seed: seed of the rollouts.

    Returns:
        Numbers ready for JSON: name, label, env, seed, `states` (their number), `labels` (how states are
        labelled); `history`, the step and the metrics of each save, each on the states of its own policy;
        `counts`, states of each action at the last save; and the keys of `project_on_simplex`.

    Raises:
        UsageError: the folder holds several runs, the agent has no action layer over discrete actions, or
            `count` is below 1.
        RunError: the folder holds no run, or the run has no save.
    """
    if count < 1:
        raise OutOfRange(f"--states is {count}; it must be at least 1.", field="states")
    last = load_trained_agent(folder)
    require_action_layer(last.agent)
    look, history = jax.jit(last.agent.get_distribution), []
    features = labels = w = states = None
    for trained in track([*load_saves(last)], "saves"):
        states = collect_states(trained, count, seed)
        metrics, features, labels, w = measure_policy(trained.agent, trained.acting, states, look)
        share = share_at_bound(features, trained.agent.head.feature_bound)
        history.append({"step": trained.step, **metrics._asdict(), "bound_share": share})
    if features is None or labels is None or w is None or states is None:
        raise no_save(Path(last.name))
    record = last.record
    return {
        "name": last.name,
        "label": record["label"],
        "env": record["env"],
        "seed": record["seed"],
        "states": len(states.observation),
        "labels": "greedy actions" if states.optimal is None else "optimal actions",
        "history": history,
        "counts": np.bincount(labels, minlength=len(w)).tolist(),
        **project_on_simplex(features, labels, w),
    }


def project_on_simplex(
    features: Float[np.ndarray, "N d"], labels: Int[np.ndarray, " N"], w: Float[np.ndarray, "K d"]
) -> dict[str, Any]:
    """Project features on the plane of the simplex of the three most frequent actions (or of two).

    The plane passes through the class means of these actions. The rows of W complete it if fewer than three
    actions occur.

    Args:
        features: last-layer features.
        labels: the action of each row.
        w: the action layer.

    Returns:
        `shown`, the actions; `occurring`, those with at least one feature; `points` [n, 2] with their
        `actions` [n], at most 1,000; the `means` [3, 2]; and `rows` [3, 2], the directions of the rows of W,
        scaled to the mean length of the means.
    """
    counts = np.bincount(labels, minlength=len(w))
    shown = sorted(np.argsort(-counts, kind="stable")[:ACTIONS].tolist())
    occurring = [k for k in shown if counts[k]]
    means = np.stack([features[labels == k].mean(0) for k in occurring])
    rows = w[shown] - w[shown].mean(0)
    centre = means.mean(0)
    basis = span_axes(np.concatenate([means, means[0] + rows], dtype=float), 2)
    basis = np.vstack([basis, np.zeros((2 - len(basis), w.shape[1]))])
    chosen = np.flatnonzero(np.isin(labels, shown))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).astype(int)]
    on_plane = (means - centre) @ basis.T
    size = np.linalg.norm(on_plane, axis=1).mean() or 1.0
    directions = rows @ basis.T
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return {
        "shown": shown,
        "occurring": occurring,
        "points": ((features[chosen] - centre) @ basis.T).round(6).tolist(),
        "actions": labels[chosen].tolist(),
        "means": on_plane.tolist(),
        "rows": (size * directions / np.maximum(lengths, 1e-12)).tolist(),
    }
