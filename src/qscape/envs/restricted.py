"""Restricted actions: only balls of the action space are valid; a null action replaces all others.

The restricted MuJoCo tasks of SAVO (Jain et al., arXiv 2410.11833), in which Q(s, ·) has many peaks. The
paper states the rule but no numbers. In version v0, number, radii and centres of the balls are ours, and keep
about a third of the space valid. Version v1 has those of the authors' released code, which keep 71 to 88% of
it valid, and a reward of -10 in place of the one that follows an invalid action.
"""

import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from jaxtyping import Float

from qscape.envs.build import build_env
from qscape.envs.spaces import is_bounded
from qscape.errors import Mismatch, OutOfRange, UnfitEnv, WrongValue

# The valid intervals of the two pendulums: centre, half-width.
INTERVALS = np.array([[-0.80, 0.08], [-0.45, 0.06], [-0.15, 0.04], [0.20, 0.05], [0.50, 0.07], [0.85, 0.08]])


def draw_balls(
    size: int, count: int, radii: tuple[float, float], seed: int
) -> tuple[Float[np.ndarray, "n D"], Float[np.ndarray, " n"]]:
    """Return random balls in [-1, 1]^D: centres [n, D] and radii [n], in float64.

    Args:
        size: D.
        count: n.
        radii: range of the radii, uniform.
        seed: of the generator, which draws all radii first.
    """
    random = np.random.default_rng(seed)
    r = random.uniform(*radii, size=count)
    return random.uniform(-1.0, 1.0, size=(count, size)), r


def place_balls(size: int, factor: float | None = None) -> tuple[np.ndarray, Float[np.ndarray, " n"]]:
    """Return the balls of the released code, in [-1, 1]^D: centres [n, D] and radii [n], in float64.

    There are n = 33 D, whose centres are uniform in the cube, so that they overlap and stick out of it. The
    volume of all together is `factor` · 0.6 D times that of the cube.

    Args:
        size: D.
        factor: of the volume; None: 3 in one dimension, 1.65 in three, 20 in seventeen, else 1.

    Raises:
        UsageError: `factor` is no number above 0.
    """
    factor = {1: 3.0, 3: 1.65, 17: 20.0}.get(size, 1.0) if factor is None else factor
    if not 0 < factor < math.inf:
        raise OutOfRange(f"factor is {factor}; it must be a number above 0", field="env_args")
    count = 33 * size
    centres = np.random.RandomState(123).random_sample((count, size))
    of_unit_ball = math.pi ** (size / 2) / math.gamma(size / 2 + 1)
    radius = (factor * 0.6 * size / count / of_unit_ball) ** (1 / size)
    return 2 * centres - 1, np.full(count, 2 * radius)


class Restricted(gym.Wrapper):
    """Any environment with bounded Box actions, restricted to balls in its normalised action space [-1, 1]^D.

    Args:
        env: the environment.
        centres, radii: `[n, D]` and `[n]`; an action is valid in one of the closed balls.
        null: `[D]` the null action, in the environment's units; or one number for all dimensions.
        control_cost: c, if the reward contains -c ‖a‖². The cost is that of the requested action, so that an
            invalid action is not cheaper.
        penalty: the reward of a step with an invalid action, in place of the environment's; None: that one.
        first_is_free: is every action valid in an episode's first step?

    Raises:
        UsageError: actions that are not a bounded Box, balls or a null action of another dimension, or a
            penalty that is not finite.
    """

    def __init__(
        self,
        env: gym.Env,
        centres: Float[np.ndarray, "n D"],
        radii: Float[np.ndarray, " n"],
        null: Float[np.ndarray, " D"] | float = 0.0,
        control_cost: float = 0.0,
        penalty: float | None = None,
        first_is_free: bool = False,
    ):
        super().__init__(env)
        space = env.action_space
        if not is_bounded(space):
            raise UnfitEnv(f"only a bounded Box of actions can be restricted, {env} has {space}")
        size = int(np.prod(space.shape))
        if np.shape(centres) != (len(radii), size) or not len(radii):
            shapes = f"{np.shape(centres)} and radii {np.shape(radii)}"
            raise Mismatch(f"balls of centres {shapes} do not lie in {size} dimensions")
        self.centres, self.radii = np.array(centres, np.float64), np.array(radii, np.float64)
        null = np.asarray(null, space.dtype).ravel()
        if null.size not in (1, size):
            raise Mismatch(f"a null action of {null.size} numbers is none where actions have {size}")
        self.null = np.broadcast_to(null, size).reshape(space.shape).copy()
        if not (penalty is None or (isinstance(penalty, int | float) and math.isfinite(penalty))):
            raise OutOfRange(
                f"penalty is {penalty}; it must be a finite number, or None to leave rewards as they are",
                field="env_args",
            )
        self.control_cost, self.penalty = control_cost, penalty
        self.first_is_free, self.is_first = first_is_free, False
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.middle = (low + high) / 2
        self.half = np.where(high > low, (high - low) / 2, 1.0)  # zero width: the middle is the only action

    def is_valid(self, action: Float[np.ndarray, "D"]) -> bool:
        """Return whether a normalised action, in [-1, 1]^D, lies in one of the balls."""
        offset = np.asarray(action, np.float64).ravel() - self.centres
        return bool((np.square(offset).sum(1) <= self.radii**2).any())

    def project(self, action: Float[np.ndarray, "*b D"]) -> Float[np.ndarray, "*b D"]:
        """Return normalised actions, each moved to the nearest point of the balls; for diagnostics only."""
        action = np.asarray(action, np.float64)
        offset = action[..., None, :] - self.centres
        distance = np.linalg.norm(offset, axis=-1)
        nearest = (distance - self.radii).argmin(-1)[..., None]
        offset = np.take_along_axis(offset, nearest[..., None], -2)[..., 0, :]
        distance = np.take_along_axis(distance, nearest, -1)
        radius = self.radii[nearest]
        on_the_border = self.centres[nearest[..., 0]] + offset * (radius / np.maximum(distance, radius))
        return np.where(distance <= radius, action, on_the_border)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode."""
        self.is_first = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with the action if it is valid, else with the null action; `info["valid"]` says which."""
        action = np.asarray(action)
        is_free = self.first_is_free and self.is_first
        valid = is_free or self.is_valid((action - self.middle) / self.half)
        self.is_first = False
        observation, reward, terminated, truncated, info = self.env.step(action if valid else self.null)
        if not valid and self.control_cost:
            more = np.square(action).sum() - np.square(self.null).sum()
            reward = float(reward) - self.control_cost * float(more)
        if not valid and self.penalty is not None:
            reward = self.penalty
        return observation, reward, terminated, truncated, info | {"valid": valid}


def locomotion(base: str, count: int, radii: tuple[float, float], seed: int = 1, **args: Any) -> gym.Env:
    """Return Hopper or Walker2d with random balls. The null action is zero torque.

    Args:
        base: id of the environment.
        count, radii, seed: as in `draw_balls`.
        args: arguments of the environment.
    """
    env = _unlimited(base, args)
    size = int(np.prod(env.action_space.shape or ()))
    weight = args.get("ctrl_cost_weight", 1e-3)
    return Restricted(env, *draw_balls(size, count, radii, seed), null=0.0, control_cost=weight)


def pendulum(base: str, null_action: str = "raw", **args: Any) -> gym.Env:
    """Return a pendulum whose valid actions are the six `INTERVALS`.

    Args:
        base: id of the environment.
        null_action: "raw": -1 in the environment's units (a third of InvertedPendulum's ±3); "normalised":
            the lower bound.
        args: arguments of the environment.

    Raises:
        UsageError: `null_action` is neither.
    """
    env = _unlimited(base, args)
    if null_action not in ("raw", "normalised"):
        raise WrongValue(f"null_action is raw or normalised, not {null_action!r}", field="env_args")
    assert isinstance(env.action_space, spaces.Box)
    null = -1.0 if null_action == "raw" else env.action_space.low
    return Restricted(env, INTERVALS[:, :1], INTERVALS[:, 1], null)


def released(
    base: str,
    null: float = 0.0,
    first_is_free: bool = False,
    penalty: float | None = -10.0,
    factor: float | None = None,
    **args: Any,
) -> gym.Env:
    """Return `restricted/*-v1`: the tasks of the released code.

    Args:
        base: id of the environment.
        null: the null action, the same in all dimensions, in the environment's units.
        first_is_free: as in `Restricted`.
        penalty: reward of a step with an invalid action; None: the environment's own (the paper's text).
        factor: of the balls' volume, as in `place_balls`.
        args: arguments of the environment.
    """
    env = _unlimited(base, args)
    balls = place_balls(int(np.prod(env.action_space.shape or ())), factor)
    return Restricted(env, *balls, null, penalty=penalty, first_is_free=first_is_free)


def restrict(
    env: str = "HalfCheetah-v5",
    count: int = 20,
    low: float = 0.8,
    high: float = 1.0,
    seed: int = 1,
    limited: bool = True,
    **args: Any,
) -> gym.Env:
    """Make `restricted/Any-v0`, an environment with random balls. The null action is the middle of the
    bounds.

    Args:
        env: id of the environment; further arguments are that environment's.
        count, low, high, seed: number of balls, range of their radii (the cube has side 2), seed.
        limited: keep the environment's own time limit? False if `max_episode_steps` replaces it.

    Raises:
        UsageError: the actions are no bounded Box, or the balls are not valid.
    """
    made = build_env(env, args, limited)
    if not is_bounded(made.action_space):
        raise UnfitEnv(f"only a bounded Box of actions can be restricted, {env} has {made.action_space}")
    if count < 1 or not 0 < low <= high:
        raise OutOfRange(f"{count} balls of radii {low} to {high}: give at least one, and 0 < low <= high")
    size = int(np.prod(made.action_space.shape))
    middle = (made.action_space.low + made.action_space.high) / 2
    return Restricted(made, *draw_balls(size, count, (low, high), seed), null=middle)


def _unlimited(base: str, args: dict[str, Any]) -> gym.Env:
    """Return the environment of a registered id without wrappers, because the outer id has the time limit.

    The paper reports numbers of versions v4. In v5 the double pendulum has other observations, and the step
    in which a pendulum falls has no reward. `gymnasium.make` warns of old versions, so the class is called.
    """
    creator: Any = load_env_creator(str(gym.spec(base).entry_point))
    return creator(**args)
