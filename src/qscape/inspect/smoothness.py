"""Smoothness of a policy's actions along rollouts, and its robustness to observation noise.

After Lee et al., "Stabilizing the Q-gradient field for policy smoothness in actor-critic methods", arXiv
2601.22970. The equations are in `qscape.ops.spectrum`, those of the geometry of Q in
`qscape.inspect.geometry`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from qscape.errors import Mismatch, MissingArgument, OutOfRange, UnfitEnv
from qscape.inspect import geometry
from qscape.inspect.trained_agent import ObservationNoise, TrainedAgent, require_distances, to_env_units
from qscape.ops import spectrum
from qscape.report import changed_lag
from qscape.run.evaluation import SEED, Rollout
from qscape.run.probes import PolicyEvaluation

SIGMAS = (0.01, 0.05, 0.1)  # noise amplitudes, in standard deviations of the observations
NOISE_EPISODES = 20
LEAST_SCALE = 1e-6
TRACE = 1000  # steps of the action trace that is written to JSON, at most


class SmoothnessProbe:
    """Probe `smoothness`: sm, action change and oscillation of every evaluation episode."""

    columns = ("sm", "action_change", "oscillation")

    def __init__(self, agent: Any) -> None:
        """Raise UsageError: the actions are indices of a discrete set."""
        require_distances(agent)
        self.agent = agent

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, list[float]]:
        metrics = measure_episodes(self.agent, evaluation.rollouts)
        return {name: metrics[name] for name in self.columns}


def measure_episodes(agent: Any, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """Compute return, length, sm, action_change and oscillation of each episode (`qscape.ops.spectrum`)."""
    units = [to_env_units(agent, r.action) for r in rollouts]
    return {
        "return": [float(r.episode.ret) for r in rollouts],
        "length": [float(r.episode.length) for r in rollouts],
        "sm": [spectrum.sm(a) for a in units],
        "action_change": [spectrum.action_change(np.clip(r.action, -1, 1), span=2.0) for r in rollouts],
        "oscillation": [spectrum.oscillation(a) for a in units],
    }


def measure_smoothness(trained: TrainedAgent, episodes: int = 10, seed: int = SEED) -> dict[str, Any]:
    """Measure the smoothness of a trained agent over evaluation episodes.

    Called by `qscape smoothness`, which writes the result to RUN/inspect/smoothness.json.

    Returns:
        Numbers ready for JSON: name, label, env, env_args, dataset, seed, step, policy, action_low,
        action_high, eval_seed; `per_episode`, see `measure_episodes`; `geometry`, see
        `geometry.GeometryProbe.measure`, None for an agent without Q; `geometry_environment_units`, None also
        if the action box is [-1, 1]; `trace`, the first episode's actions [n, A] in the environment's units,
        at most 1,000 steps; `spectrum`, frequencies [K] and amplitudes [K, A], means over episodes; `notes`,
        sentences for the reader.

    Raises:
        UsageError: `episodes` is below 1, all episodes are too short for a spectrum, or actions are indices.
    """
    require_distances(trained.agent)
    rollouts = trained.rollouts(episodes, seed)
    lengths = [len(r.action) for r in rollouts]
    if max(lengths) < spectrum.SHORTEST:
        raise UnfitEnv(
            f"{trained.name}: its longest episode has {max(lengths)} step(s), too short for a spectrum: "
            f"{spectrum.SHORTEST} are needed."
        )
    notes = []
    if short := sum(n < spectrum.SHORTEST for n in lengths):
        notes.append(f"{short} of {episodes} episodes are too short for a spectrum; they count as sm 0.")
    metrics = {
        **_describe_run(trained),
        "eval_seed": seed,
        "per_episode": measure_episodes(trained.agent, rollouts),
        **_measure_geometry(trained, rollouts, notes),
        "trace": to_env_units(trained.agent, rollouts[0].action)[:TRACE].round(6).tolist(),
        "spectrum": _mean_spectrum([to_env_units(trained.agent, r.action) for r in rollouts]),
    }
    return metrics | {"notes": notes}


def measure_observation_scale(
    trained: TrainedAgent, episodes: int = NOISE_EPISODES, seed: int = SEED
) -> Float[np.ndarray, " S"]:
    """Compute the standard deviation of each observation dimension over noise-free episodes.

    A dimension that does not change has 1e-6. The paper takes the scale from the first run of the
    unregularised base and uses it for every method.
    """
    size = trained.agent.task.observation_size
    seen = np.concatenate([r.observation[:, :size] for r in trained.rollouts(episodes, seed)])
    spread = seen.std(axis=0, dtype=np.float64)
    rounded = np.finfo(np.float32).eps * np.abs(seen).max(axis=0)  # of an entry that does not change
    return np.where(spread > rounded, spread, LEAST_SCALE)


def measure_robustness(
    trained: TrainedAgent,
    scale: Float[np.ndarray, " S"],
    sigmas: Sequence[float] = SIGMAS,
    episodes: int = NOISE_EPISODES,
    seed: int = SEED,
) -> dict[str, dict[str, list[float]]]:
    """Measure `measure_episodes` under observation noise, for each sigma; the key "0" is without noise.

    The policy sees clip(s + u ⊙ scale, low, high), u ~ U(-sigma, sigma), drawn for each step and dimension;
    the environment itself is unchanged (the paper's protocol). `seed` fixes episodes and noise.

    Raises:
        UsageError: there is no sigma, one is not above 0 and finite, or `scale` has another size than the
            observations.
    """
    if len(sigmas) == 0:  # may be an array
        raise MissingArgument(
            "--sigmas names no amplitude of noise; write e.g. --sigmas 0.1 0.2.", field="sigmas"
        )
    if bad := [s for s in sigmas if not 0 < s < np.inf]:
        raise OutOfRange(
            f"the noise's sigma is {bad[0]}; it must be above 0 and finite, in standard deviations.",
            field="sigmas",
        )
    if len(scale) != trained.agent.task.observation_size:
        raise Mismatch(
            f"{trained.name} has observations of {trained.agent.task.observation_size} numbers, "
            f"the scale of the noise has {len(scale)}."
        )
    noises = {"0": None} | {f"{sigma:g}": ObservationNoise(sigma, scale) for sigma in sigmas}
    return {
        name: measure_episodes(trained.agent, trained.rollouts(episodes, seed, noise))
        for name, noise in noises.items()
    }


def _describe_run(trained: TrainedAgent) -> dict[str, Any]:
    """Return which agent was measured."""
    record, task = trained.record, trained.agent.task
    return {
        "name": trained.name,
        "label": record.get("label") or trained.agent.recipe,
        "env": record.get("env"),
        "env_args": record.get("env_args", {}),
        **changed_lag(record),
        "dataset": record.get("dataset"),
        "seed": record.get("seed"),
        "step": trained.step,
        "policy": trained.policy,
        "action_low": None if task.low is None else task.low.tolist(),
        "action_high": None if task.high is None else task.high.tolist(),
    }


def _measure_geometry(trained: TrainedAgent, rollouts: Sequence[Rollout], notes: list[str]) -> dict[str, Any]:
    """Measure the geometry of Q if the agent has one; appends notes for the reader."""
    if trained.q is None:
        notes.append("no Q(s, a): the smoothness of its actions is measured, the geometry of Q is not.")
        return {"geometry": None, "geometry_environment_units": None}
    compiled = geometry.GeometryProbe(trained.agent)
    metrics = compiled.measure(trained.acting, rollouts)
    if geometry.is_piecewise_linear(metrics):
        notes.append(
            "its critic is piecewise linear (ReLU), so every second derivative is 0 almost everywhere: "
            "only the gradient's direction is informative about its geometry."
        )
    task = trained.agent.task
    unit = task.low is None or task.high is None or bool(np.all(task.low == -1) and np.all(task.high == 1))
    in_box = None if unit else compiled.measure(trained.acting, rollouts, environment_units=True)
    return {"geometry": metrics, "geometry_environment_units": in_box}


def _mean_spectrum(episodes: Sequence[Float[np.ndarray, "n A"]]) -> dict[str, list]:
    """Average amplitudes over episodes, at the frequencies of the longest one."""
    longest = max(map(len, episodes))
    frequency = np.fft.rfftfreq(longest)
    whole = [spectrum.amplitudes(a) for a in episodes if len(a) >= spectrum.SHORTEST]
    on_grid = [spectrum.resample(frequency, *of) for of in whole]
    return {"frequency": frequency.tolist(), "amplitude": np.mean(on_grid, axis=0).round(8).tolist()}
