"""The ids of the project's own environments."""

import warnings
from typing import Any

import gymnasium as gym

# id: (module:function in qscape.envs, arguments of gymnasium.register)
IDS: dict[str, tuple[str, dict[str, Any]]] = {
    "restricted/Hopper-v0": (
        "restricted:locomotion",
        {"max_episode_steps": 1000, "kwargs": {"base": "Hopper-v4", "count": 10, "radii": (0.35, 0.55)}},
    ),
    "restricted/Walker2d-v0": (
        "restricted:locomotion",
        {"max_episode_steps": 1000, "kwargs": {"base": "Walker2d-v4", "count": 20, "radii": (0.80, 1.00)}},
    ),
    "restricted/InvertedPendulum-v0": (
        "restricted:pendulum",
        {"max_episode_steps": 1000, "kwargs": {"base": "InvertedPendulum-v4"}},
    ),
    "restricted/InvertedDoublePendulum-v0": (
        "restricted:pendulum",
        {"max_episode_steps": 1000, "kwargs": {"base": "InvertedDoublePendulum-v4"}},
    ),
    **{
        f"restricted/{name}-v1": (
            "restricted:released",
            {"max_episode_steps": 1000, "kwargs": {"base": f"{name}-v4"} | pendulum},
        )
        for name, pendulum in (
            ("InvertedPendulum", {"null": -1.0, "first_is_free": True}),
            ("InvertedDoublePendulum", {"null": -1.0, "first_is_free": True}),
            ("Hopper", {}),
            ("Walker2d", {}),
            ("HalfCheetah", {}),
            ("Ant", {}),
        )
    },
    "restricted/Any-v0": ("restricted:restrict", {}),
    "mineworld/MineWorld-v0": ("mineworld:MineWorldEnv", {"max_episode_steps": 100}),
    "mineworld/MineWorld-v1": ("mineworld:MineFieldEnv", {"max_episode_steps": 100}),
    "recsim/500-v1": ("recsim_released:BudgetRecSimEnv", {"max_episode_steps": 20, "kwargs": {"items": 500}}),
    "recsim/10k-v1": (
        "recsim_released:BudgetRecSimEnv",
        {"max_episode_steps": 20, "kwargs": {"items": 10_000}},
    ),
    "recsim/10k-v0": ("recsim:RecSimEnv", {"max_episode_steps": 20, "kwargs": {"items": 10_000}}),
    "recsim/100k-v0": ("recsim:RecSimEnv", {"max_episode_steps": 20, "kwargs": {"items": 100_000}}),
    "recsim/500k-v0": ("recsim:RecSimEnv", {"max_episode_steps": 20, "kwargs": {"items": 500_000}}),
    "recsim/Data-v0": ("recsim_data:RecSimDataEnv", {"max_episode_steps": 20}),
    "recsim/DataSynthetic-v0": ("recsim_data:RecSimDataSyntheticEnv", {"max_episode_steps": 20}),
    "cliff/IdealCliffWalking-v0": ("cliff:IdealCliffWalkingEnv", {"max_episode_steps": 100}),
    "goal/Reach-v0": ("reach:ReachEnv", {"max_episode_steps": 50}),
    "jax/CartPole-v1": ("cartpole:CartPoleEnv", {"max_episode_steps": 500, "reward_threshold": 475.0}),
    "pixels/CartPole-v1": (
        "rendered:rendered",
        {"reward_threshold": 475.0, "kwargs": {"env": "CartPole-v1"}},
    ),
    "pixels/Any-v0": ("rendered:rendered", {}),
}


def register() -> None:
    """Register the project's environments with Gymnasium. Called when `qscape.envs` is imported."""
    # Of SAVO's tasks neither version is out of date, as Gymnasium says of the lower one.
    of_savo = r".*The environment (restricted|mineworld|recsim)/\S+ is out of date"
    warnings.filterwarnings("ignore", of_savo, DeprecationWarning)
    for env_id, (place, about) in IDS.items():
        if env_id not in gym.registry:
            gym.register(env_id, f"qscape.envs.{place}", **about)
