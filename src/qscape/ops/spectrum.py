"""Measures of oscillation in a sequence of actions.

In float64 with numpy, because episodes have any length and JAX would compile a program for each length.
"""

import numpy as np
from jaxtyping import Float

SHORTEST = 4  # steps; in shorter episodes `sm` uses only the bin of frequency 0 and is always 0


def amplitudes(
    signal: Float[np.ndarray, "n A"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K A"]]:
    """Return one-sided amplitude spectrum of each dimension: K = n // 2 + 1 frequencies from 0 to 0.5 a step.

    A cosine of amplitude c at one of the frequencies has amplitude c there and 0 elsewhere. The mean is at
    frequency 0.

    Raises:
        ValueError: the signal has fewer than two steps.
    """
    n = len(signal)
    if n < 2:
        raise ValueError(f"a signal of {n} step(s) is too short for a spectrum: two are needed")
    amplitude = np.abs(np.fft.rfft(np.asarray(signal, np.float64), axis=0)) * 2 / n
    amplitude[0] /= 2
    if n % 2 == 0:
        amplitude[-1] /= 2  # like bin 0, the Nyquist bin has no mirror image
    return np.fft.rfftfreq(n), amplitude


def resample(
    frequency: Float[np.ndarray, " F"], own: Float[np.ndarray, " K"], amplitude: Float[np.ndarray, "K A"]
) -> Float[np.ndarray, "F A"]:
    """Interpolate an amplitude spectrum at other frequencies, the first of which is 0.

    The mean stays at frequency 0: it is no neighbour of the lowest oscillation.
    """
    columns = [np.interp(frequency[1:], own[1:], column) for column in amplitude[1:].T]
    return np.concatenate([amplitude[:1], np.stack(columns, axis=1)])


def sm(actions: Float[np.ndarray, "n A"]) -> float:
    """Return smoothness `sm` of one episode's actions in the environment's units; lower is smoother.

    sm_i = (2 / n) Σ_{k=0}^{⌊n/2⌋-1} (k / n) Y_{k,i} with Y = |DFT over time|, unnormalised, averaged over the
    dimensions i; 0 for n < 2. It is the amplitude spectrum weighted by frequency (Lee et al.,
    "Stabilizing the Q-gradient field for policy smoothness in actor-critic methods", arXiv 2601.22970, after
    Mysore et al., CAPS, arXiv 2012.06644).

    Limits:
        It leaves out the Nyquist bin k = n / 2: for even n, an action that flips its sign at every step,
        (-1)^t, scores exactly 0. Read it beside `action_change`, which is largest there. It ignores mean and
        phase, and grows with the length (as √n for white noise) and with the action box. So compare episodes
        of similar length in one environment, and never concatenate episodes. Episodes of fewer than
        `SHORTEST` = 4 steps always score 0.
    """
    n = len(actions)
    if n < 2:
        return 0.0
    frequency, amplitude = amplitudes(actions)
    half = n // 2
    return float((frequency[:half, None] * amplitude[:half]).sum(0).mean())


def action_change(actions: Float[np.ndarray, "n A"], span: Float[np.ndarray, " A"] | float = 2.0) -> float:
    """Return mean of |a_t - a_{t-1}| / span over steps and dimensions; 1 if every step goes from bound to
    bound.

    `span` is high - low, 2 for actions in [-1, 1]. 0 for fewer than two steps. Unlike `sm` it counts the
    Nyquist frequency and does not depend on the length or the action box.
    """
    return 0.0 if len(actions) < 2 else float((np.abs(_steps(actions)) / span).mean())


def oscillation(actions: Float[np.ndarray, "n A"]) -> float:
    """Return mean of ‖a_t - a_{t-1}‖₂ over steps, in the environment's units; 0 for n < 2. `sm`'s authors log
    it.
    """
    return 0.0 if len(actions) < 2 else float(np.linalg.norm(_steps(actions), axis=1).mean())


def _steps(actions: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n-1 A"]:
    """Return a_t - a_{t-1}."""
    return np.diff(np.asarray(actions, np.float64), axis=0)
