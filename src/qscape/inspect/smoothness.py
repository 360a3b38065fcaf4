"""Does a policy chatter? Smoothness of actions along rollouts, and robustness to noise on the observations.

After Lee et al., "Stabilizing the Q-gradient field for policy smoothness in actor-critic methods", arXiv
2601.22970. The equations are in `qscape.ops.spectrum`, those of the shape of Q in `qscape.inspect.geometry`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from qscape.errors import UsageError
from qscape.inspect import geometry
from qscape.inspect.subject import Noise, Subject, in_units
from qscape.ops import spectrum
from qscape.run.evaluation import SEED, Rollout
from qscape.run.probes import Look

SIGMAS = (0.01, 0.05, 0.1)  # of the noise, in standard deviations of the observations
NOISE_EPISODES = 20
LEAST_SCALE = 1e-6
TRACE = 1000  # steps of an action trace that is written


class Smoothness:
    """The smoothness of every evaluation episode of a run: a probe."""

    columns = ("sm", "action_change", "oscillation")

    def __init__(self, agent: Any) -> None:
        need_distances(agent)
        self.agent = agent

    def __call__(self, look: Look) -> dict[str, list[float]]:
        found = per_episode(self.agent, look.rollouts)
        return {name: found[name] for name in self.columns}


def need_distances(agent: Any) -> None:
    """Refuse an agent whose actions are no points in a space.

    Raises:
        UsageError: they are the indices of a discrete set.
    """
    if agent.task.choices is not None:
        raise UsageError(
            f"the actions of {agent.recipe} are choices among {agent.task.choices}, which have no distance: "
            "smoothness is measured of continuous actions and of action tables."
        )


def per_episode(agent: Any, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """return, length, and sm, action_change and oscillation (`qscape.ops.spectrum`) of each episode."""
    units = [in_units(agent, r.action) for r in rollouts]
    return {
        "return": [float(r.episode.ret) for r in rollouts],
        "length": [float(r.episode.length) for r in rollouts],
        "sm": [spectrum.sm(a) for a in units],
        "action_change": [spectrum.action_change(np.clip(r.action, -1, 1), span=2.0) for r in rollouts],
        "oscillation": [spectrum.oscillation(a) for a in units],
    }


def measure(subject: Subject, episodes: int = 10, seed: int = SEED) -> dict[str, Any]:
    """All about the smoothness of a subject, as JSON-able numbers.

    Keys: what was measured (name, label, env, env_args, seed, step, policy, action_low, action_high,
    eval_seed); `per_episode`: see there; `geometry`: see `geometry.Geometry.along`, None for a run without Q;
    `geometry_environment_units`: None also where the action box is [-1, 1]; `trace`: the first episode's
    actions [n, A] in the environment's units; `spectrum`: frequencies [K] and amplitudes [K, A], means over
    episodes; `notes`: sentences for the reader.

    Raises:
        UsageError: no episode is asked for, all are too short for a spectrum, or actions are mere choices.
    """
    need_distances(subject.agent)
    done = subject.rollouts(episodes, seed)
    lengths = [len(r.action) for r in done]
    if max(lengths) < spectrum.SHORTEST:
        raise UsageError(
            f"{subject.name}: its longest episode has {max(lengths)} step(s), too short for a spectrum: "
            f"{spectrum.SHORTEST} are needed."
        )
    notes = []
    if short := sum(n < spectrum.SHORTEST for n in lengths):
        notes.append(f"{short} of {episodes} episodes are too short for a spectrum; they count as sm 0.")
    found = {
        **_about(subject),
        "eval_seed": seed,
        "per_episode": per_episode(subject.agent, done),
        **_geometry(subject, done, notes),
        "trace": in_units(subject.agent, done[0].action)[:TRACE].round(6).tolist(),
        "spectrum": _mean_spectrum([in_units(subject.agent, r.action) for r in done]),
    }
    return found | {"notes": notes}


def observation_scale(
    subject: Subject, episodes: int = NOISE_EPISODES, seed: int = SEED
) -> Float[np.ndarray, " S"]:
    """Standard deviation of each observation dimension over noise-free deterministic episodes, at least 1e-6.

    The paper takes it of the first run of the unregularised base and uses it for every method.
    """
    seen = np.concatenate([r.observation for r in subject.rollouts(episodes, seed)])
    return np.maximum(seen.std(axis=0, dtype=np.float64), LEAST_SCALE)


def robustness(
    subject: Subject,
    scale: Float[np.ndarray, " S"],
    sigmas: Sequence[float] = SIGMAS,
    episodes: int = NOISE_EPISODES,
    seed: int = SEED,
) -> dict[str, dict[str, list[float]]]:
    """`per_episode` under noise on the observations, by sigma; "0" is without noise.

    The policy sees clip(s + u ⊙ scale, low, high), u ~ U(-sigma, sigma) fresh for each step and dimension;
    the environment is untouched (the paper's protocol). Noise is drawn with `seed`, the same for every run.

    Raises:
        UsageError: a sigma that is not above 0, or a scale of another size.
    """
    if bad := [s for s in sigmas if not s > 0]:
        raise UsageError(f"the noise's sigma is {bad[0]}; it must be above 0, in standard deviations.")
    if len(scale) != subject.agent.task.observation_size:
        raise UsageError(
            f"{subject.name} has observations of {subject.agent.task.observation_size} numbers, "
            f"the scale of the noise has {len(scale)}."
        )
    noises = {"0": None} | {f"{sigma:g}": Noise(sigma, scale) for sigma in sigmas}
    return {
        name: per_episode(subject.agent, subject.rollouts(episodes, seed, noise))
        for name, noise in noises.items()
    }


def _about(subject: Subject) -> dict[str, Any]:
    record, task = subject.record, subject.agent.task
    return {
        "name": subject.name,
        "label": record.get("label") or subject.agent.recipe,
        "env": record.get("env"),
        "env_args": record.get("env_args", {}),
        "seed": record.get("seed"),
        "step": subject.step,
        "policy": subject.policy,
        "action_low": None if task.low is None else task.low.tolist(),
        "action_high": None if task.high is None else task.high.tolist(),
    }


def _geometry(subject: Subject, done: Sequence[Rollout], notes: list[str]) -> dict[str, Any]:
    if subject.q is None:
        notes.append("it has no Q(s, a): smoothness of its actions is measured, the geometry of Q is not.")
        return {"geometry": None, "geometry_environment_units": None}
    compiled = geometry.Geometry(subject.agent)
    found = compiled.along(subject.acting, done)
    if geometry.piecewise_linear(found):
        notes.append(
            "its critic is piecewise linear (ReLU), so every second derivative is 0 almost everywhere: "
            "only the gradient's direction says something of its geometry."
        )
    task = subject.agent.task
    unit = task.low is None or task.high is None or bool(np.all(task.low == -1) and np.all(task.high == 1))
    in_box = None if unit else compiled.along(subject.acting, done, environment_units=True)
    return {"geometry": found, "geometry_environment_units": in_box}


def _mean_spectrum(episodes: Sequence[Float[np.ndarray, "n A"]]) -> dict[str, list]:
    """Mean amplitudes over episodes, at the frequencies of the longest one."""
    longest = max(map(len, episodes))
    frequency = np.fft.rfftfreq(longest)
    whole = [spectrum.amplitudes(a) for a in episodes if len(a) >= spectrum.SHORTEST]
    on_grid = [np.stack([np.interp(frequency, f, column) for column in x.T], axis=1) for f, x in whole]
    return {"frequency": frequency.tolist(), "amplitude": np.mean(on_grid, axis=0).round(8).tolist()}
