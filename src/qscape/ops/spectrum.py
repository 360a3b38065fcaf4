"""How much a sequence of actions oscillates, in numbers.

In float64 with numpy: episodes have any length, and a compiled program would be made anew for each.
"""

import numpy as np
from jaxtyping import Float

SHORTEST = 4  # steps of the shortest episode in which `sm` can see anything: below, only its bin 0 is used


def amplitudes(
    signal: Float[np.ndarray, "n A"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K A"]]:
    """One-sided amplitude spectrum of each dimension: K = n // 2 + 1 frequencies from 0 to 0.5 a step.

    A cosine of amplitude c at one of the frequencies gives c there, 0 elsewhere; the mean level stands at 0.

    Raises:
        ValueError: a signal shorter than two steps has no spectrum.
    """
    n = len(signal)
    if n < 2:
        raise ValueError(f"a signal of {n} step(s) is too short for a spectrum: two are needed")
    found = np.abs(np.fft.rfft(np.asarray(signal, np.float64), axis=0)) * 2 / n
    found[0] /= 2
    if n % 2 == 0:
        found[-1] /= 2  # the Nyquist bin has no mirror image either
    return np.fft.rfftfreq(n), found


def sm(actions: Float[np.ndarray, "n A"]) -> float:
    """Smoothness `sm` of one episode's actions in the environment's units; lower is smoother.

    With Y = |DFT over time|, unnormalised: sm_i = (2 / n) Σ_{k=0}^{⌊n/2⌋-1} (k / n) Y_{k,i}, averaged over
    the dimensions i; 0 for n < 2. So it is the amplitude spectrum weighted by frequency (Lee et al.,
    "Stabilizing the Q-gradient field for policy smoothness in actor-critic methods", arXiv 2601.22970, after
    Mysore et al., CAPS, arXiv 2012.06644).

    What it does not see:
        The Nyquist bin k = n / 2 is left out: for even n an action that flips its sign at every step,
        (-1)^t, scores exactly 0. Read it beside `action_change`, which sees that best of all.
        It is blind to the mean level and to phase, grows with the length (white noise: as √n) and with the
        action box: compare episodes of like length in one environment, and never join episodes.
        Episodes below `SHORTEST` = 4 steps score 0 whatever they do.
    """
    n = len(actions)
    if n < 2:
        return 0.0
    frequency, amplitude = amplitudes(actions)
    half = n // 2
    return float((frequency[:half, None] * amplitude[:half]).sum(0).mean())


def action_change(actions: Float[np.ndarray, "n A"], span: Float[np.ndarray, " A"] | float = 2.0) -> float:
    """Mean over steps and dimensions of |a_t - a_{t-1}| / span: 1 for going from bound to bound each step.

    `span`: high - low; 2 for actions in [-1, 1]. 0 for fewer than two steps. It has no blind spot at the
    Nyquist frequency, unlike `sm`, and does not depend on length or on the action box.
    """
    return 0.0 if len(actions) < 2 else float((np.abs(_steps(actions)) / span).mean())


def oscillation(actions: Float[np.ndarray, "n A"]) -> float:
    """Mean over steps of ‖a_t - a_{t-1}‖₂ in the environment's units, as `sm`'s authors log; 0 for n < 2."""
    return 0.0 if len(actions) < 2 else float(np.linalg.norm(_steps(actions), axis=1).mean())


def _steps(actions: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n-1 A"]:
    return np.diff(np.asarray(actions, np.float64), axis=0)
