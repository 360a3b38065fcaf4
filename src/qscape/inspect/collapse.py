"""Action collapse of a run: how near features and action layer come to one simplex, and how that went.

After "Imitate Optimal Policy: Prevail and Induce Action Collapse in Policy Gradient", arXiv 2509.02737. The
equations are in `qscape.ops.collapse`.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import numpy as np
from jaxtyping import Float, Int

from qscape.envs.native import find_jax_env
from qscape.errors import RunError, UsageError
from qscape.inspect.subject import Subject, of_run
from qscape.onpolicy.agent import Agent
from qscape.ops.collapse import Collapse, action_collapse
from qscape.run import saves
from qscape.run.evaluation import SEED
from qscape.run.probes import Look

STATES = 10_000
AT_A_TIME = 500  # states in one pass: of images each needs a megabyte
SHOWN = 1_000  # features that a picture shows
ACTIONS = 3  # whose simplex has a plane to draw


class States(NamedTuple):
    """Where collapse is measured: raw observations, and the optimal action of each (None: not known)."""

    observation: Float[np.ndarray, "N S"]
    optimal: Int[np.ndarray, " N"] | None


class Probe:
    """The metrics of action collapse on the states of every evaluation, by the greedy action: a probe."""

    columns = Collapse._fields

    def __init__(self, agent: Any) -> None:
        need_layer(agent)
        self.agent = agent
        self.look = jax.jit(agent.get_distribution)

    def __call__(self, look: Look) -> dict[str, float]:
        seen = np.concatenate([r.observation for r in look.rollouts])[:STATES]
        return of_policy(self.agent, look.acting, States(seen, None), self.look)[0]._asdict()


def need_layer(agent: Any) -> None:
    """Refuse an agent without an action layer over a few discrete actions.

    Raises:
        UsageError: it has none.
    """
    if not isinstance(agent, Agent) or agent.task.choices is None:
        raise UsageError(
            f"{agent.recipe} has no action layer here with a row for each action: action collapse is "
            "measured of on-policy agents, such as ppo+etf on CartPole-v1."
        )


def of_policy(
    agent: Agent, acting: Any, states: States, look: Any = None
) -> tuple[Collapse, np.ndarray, np.ndarray, np.ndarray]:
    """The metrics, and what they are of: features [N, d], labels [N], action layer [K, d]."""
    look, all_ = look or jax.jit(agent.get_distribution), states.observation
    parts = [look(acting, all_[i : i + AT_A_TIME]) for i in range(0, len(all_), AT_A_TIME)]
    dist = jax.tree.map(lambda *part: np.concatenate(part), *parts)
    labels = states.optimal
    if labels is None:  # the trained policy stands for the optimal one
        labels = np.asarray(dist.mode())[:, 0].astype(int)
    own = acting.part_states.get(agent.head.name)
    features, w = np.asarray(dist.features), np.asarray(agent.head.action_layer(acting.networks.head, own))
    return action_collapse(features, labels, w), features, labels, w


def states_of(subject: Subject, count: int = STATES, seed: int = SEED) -> States:
    """The states of evaluation rollouts, at least `count` of them where episodes are long enough; of a small
    grid with known values all its states, each with its optimal action."""
    adapter = subject.make(seed=seed)
    native: Any = find_jax_env(adapter.env) if isinstance(adapter.env, gym.Env) else None
    adapter.close()
    if native is not None and hasattr(native, "optimal_q"):
        q = native.optimal_q(subject.agent.base.discount)
        return States(np.eye(len(q), dtype=np.float32), q.argmax(1))
    done, seen = [], 0
    while seen < count and len(done) < count:
        more = subject.rollouts(10, seed + len(done))
        done += more
        seen += sum(len(r.observation) for r in more)
    return States(np.concatenate([r.observation for r in done])[:count], None)


def measure(folder: Path | str, count: int = STATES, seed: int = SEED) -> dict[str, Any]:
    """All about the collapse of a run, as JSON-able numbers, over its saves.

    Keys: what was measured (name, label, env, seed, states, labels); `history`: of each save the step and the
    metrics, each on the states of its own policy; `counts`: states of each action at the last save; and
    what `plane` gives: features of the three most frequent actions in the plane of their simplex.

    Raises:
        UsageError: the agent has no action layer over discrete actions, or no state is asked for.
        RunError: no run, or no save.
    """
    if count < 1:
        raise UsageError(f"--states is {count}; it must be at least 1.")
    last = of_run(folder)
    need_layer(last.agent)
    look, history = jax.jit(last.agent.get_distribution), []
    features = labels = w = states = None
    for step, subject in _over_saves(last, Path(folder)):
        states = states_of(subject, count, seed)
        found, features, labels, w = of_policy(subject.agent, subject.acting, states, look)
        history.append({"step": step, **found._asdict()})
    if features is None or labels is None or w is None or states is None:
        raise RunError(f"{folder} has no save yet; let it train on: qscape resume {folder}.")
    record = last.record
    return {
        "name": str(folder),
        "label": record["label"],
        "env": record["env"],
        "seed": record["seed"],
        "states": len(states.observation),
        "labels": "greedy actions" if states.optimal is None else "optimal actions",
        "history": history,
        "counts": np.bincount(labels, minlength=len(w)).tolist(),
        **plane(features, labels, w),
    }


def _over_saves(last: Subject, folder: Path):
    """The policy of each save of a run, oldest first."""
    place = folder / "saves"
    for name in saves.names(place):
        trees, meta = saves.read(place / name, {"acting": last.acting})
        last.agent.check_part_states(trees["acting"].part_states)
        yield meta["numbers"]["env_steps"], dataclasses.replace(last, acting=trees["acting"])


def plane(
    features: Float[np.ndarray, "N d"], labels: Int[np.ndarray, " N"], w: Float[np.ndarray, "K d"]
) -> dict[str, Any]:
    """The three most frequent actions (or two, where there are no more) in the plane of their simplex.

    The plane is spanned by the class means of these actions less their mean (by the rows of W where only one
    action occurs): `points` [n, 2] with `actions` [n], the `means` [3, 2] of those `occurring`, and the
    directions `rows` [3, 2] of W, scaled to the mean length of the means; `shown` names the actions.
    """
    counts = np.bincount(labels, minlength=len(w))
    shown = sorted(np.argsort(-counts, kind="stable")[:ACTIONS].tolist())
    occurring = [k for k in shown if counts[k]]
    means = np.stack([features[labels == k].mean(0) for k in occurring])
    rows = w[shown] - w[shown].mean(0)
    centre = means.mean(0)
    span = means - centre if len(occurring) > 1 else rows
    basis = np.linalg.svd(span, full_matrices=False)[2][:2]
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
