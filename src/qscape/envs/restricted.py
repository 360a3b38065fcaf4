"""Restricted actions: only balls of the action space are valid, and anything else does one fixed thing.

The restricted MuJoCo tasks of SAVO (Jain et al., arXiv 2410.11833): Q becomes a landscape with many peaks.
The paper names the rule but no numbers; number, radii and places of the balls here keep about a third of the
space valid.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from jaxtyping import Float

from qscape.envs.build import build_env
from qscape.errors import UsageError

# The valid intervals of the two pendulums: centre, half-width.
INTERVALS = np.array([[-0.80, 0.08], [-0.45, 0.06], [-0.15, 0.04], [0.20, 0.05], [0.50, 0.07], [0.85, 0.08]])


def spheres(
    size: int, count: int, radii: tuple[float, float], seed: int
) -> tuple[Float[np.ndarray, "n D"], Float[np.ndarray, " n"]]:
    """Random balls in [-1, 1]^D: centres and radii, float64. First all radii are drawn, then all centres."""
    random = np.random.default_rng(seed)
    r = random.uniform(*radii, size=count)
    return random.uniform(-1.0, 1.0, size=(count, size)), r


class Restricted(gym.Wrapper):
    """Any environment with bounded Box actions, restricted to balls in its normalised action space [-1, 1]^D.

    Args:
        env: the environment.
        centres, radii: `[n, D]` and `[n]`; an action is valid in one of the closed balls.
        null: `[D]` what is done instead of an invalid action, in the environment's units; or one number.
        control_cost: c of a reward that holds -c ‖a‖². The requested action is what is paid for, so that an
            invalid action is not cheaper than it was.

    Raises:
        UsageError: actions that are not a bounded Box, or balls or a null action of another dimension.
    """

    def __init__(
        self,
        env: gym.Env,
        centres: Float[np.ndarray, "n D"],
        radii: Float[np.ndarray, " n"],
        null: Float[np.ndarray, " D"] | float = 0.0,
        control_cost: float = 0.0,
    ):
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, spaces.Box) or not space.is_bounded():
            raise UsageError(f"only a bounded Box of actions can be restricted, {env} has {space}")
        size = int(np.prod(space.shape))
        if np.shape(centres) != (len(radii), size) or not len(radii):
            shapes = f"{np.shape(centres)} and radii {np.shape(radii)}"
            raise UsageError(f"balls of centres {shapes} do not lie in {size} dimensions")
        self.centres, self.radii = np.array(centres, np.float64), np.array(radii, np.float64)
        null = np.asarray(null, space.dtype).ravel()
        if null.size not in (1, size):
            raise UsageError(f"a null action of {null.size} numbers is none where actions have {size}")
        self.null = np.broadcast_to(null, size).reshape(space.shape).copy()
        self.control_cost = control_cost
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.middle = (low + high) / 2
        self.half = np.where(high > low, (high - low) / 2, 1.0)  # without width the only action is the middle

    def valid(self, action: Float[np.ndarray, "D"]) -> bool:
        """Does a normalised action lie in one of the balls?"""
        offset = np.asarray(action, np.float64).ravel() - self.centres
        return bool((np.square(offset).sum(1) <= self.radii**2).any())

    def project(self, action: Float[np.ndarray, "*b D"]) -> Float[np.ndarray, "*b D"]:
        """Normalised actions, each moved into the ball nearest to it; for controls and diagnostics only."""
        action = np.asarray(action, np.float64)
        offset = action[..., None, :] - self.centres
        distance = np.linalg.norm(offset, axis=-1)
        nearest = (distance - self.radii).argmin(-1)[..., None]
        offset = np.take_along_axis(offset, nearest[..., None], -2)[..., 0, :]
        distance = np.take_along_axis(distance, nearest, -1)
        radius = self.radii[nearest]
        on_the_border = self.centres[nearest[..., 0]] + offset * (radius / np.maximum(distance, radius))
        return np.where(distance <= radius, action, on_the_border)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """A step with the action, or with the null action; `info["valid"]` says which."""
        action = np.asarray(action)
        valid = self.valid((action - self.middle) / self.half)
        observation, reward, terminated, truncated, info = self.env.step(action if valid else self.null)
        if not valid and self.control_cost:
            more = np.square(action).sum() - np.square(self.null).sum()
            reward = float(reward) - self.control_cost * float(more)
        return observation, reward, terminated, truncated, info | {"valid": valid}


def locomotion(base: str, count: int, radii: tuple[float, float], seed: int = 1, **args: Any) -> gym.Env:
    """Hopper or Walker2d: random balls, an invalid action is no torque (but its control cost is paid)."""
    env = _unlimited(base, args)
    size = int(np.prod(env.action_space.shape or ()))
    weight = args.get("ctrl_cost_weight", 1e-3)
    return Restricted(env, *spheres(size, count, radii, seed), null=0.0, control_cost=weight)


def pendulum(base: str, null_action: str = "raw", **args: Any) -> gym.Env:
    """The two pendulums: six intervals; an invalid action is -1 in the environment's units.

    Args:
        null_action: "raw": -1 (a third of InvertedPendulum's ±3); "normalised": the lower bound.
    """
    env = _unlimited(base, args)
    if null_action not in ("raw", "normalised"):
        raise UsageError(f"null_action is raw or normalised, not {null_action!r}")
    assert isinstance(env.action_space, spaces.Box)
    null = -1.0 if null_action == "raw" else env.action_space.low
    return Restricted(env, INTERVALS[:, :1], INTERVALS[:, 1], null)


def restrict(
    env: str = "HalfCheetah-v5",
    count: int = 20,
    low: float = 0.8,
    high: float = 1.0,
    seed: int = 1,
    limited: bool = True,
    **args: Any,
) -> gym.Env:
    """`restricted/Any-v0`: any environment of bounded Box actions in random balls; else the middle action.

    Args:
        env: its id; further arguments are that environment's.
        count, low, high, seed: number of balls, range of their radii (the cube has side 2), generator.
        limited: does its own time limit hold? `qscape.envs.make` puts max_episode_steps in its place.
    """
    made = build_env(env, args if limited else args | {"max_episode_steps": -1})
    if not isinstance(made.action_space, spaces.Box) or not made.action_space.is_bounded():
        raise UsageError(f"only a bounded Box of actions can be restricted, {env} has {made.action_space}")
    if count < 1 or not 0 < low <= high:
        raise UsageError(f"{count} balls of radii {low} to {high}: give at least one, and 0 < low <= high")
    size = int(np.prod(made.action_space.shape))
    middle = (made.action_space.low + made.action_space.high) / 2
    return Restricted(made, *spheres(size, count, (low, high), seed), null=middle)


def _unlimited(base: str, args: dict[str, Any]) -> gym.Env:
    """The environment below a registered id, without wrappers: the outer id has the time limit.

    Versions v4, whose numbers the paper reports: v5 shows the double pendulum otherwise and does not pay
    the step in which a pendulum falls. Made from the class, because `gymnasium.make` warns of old versions.
    """
    creator: Any = load_env_creator(str(gym.spec(base).entry_point))
    return creator(**args)
