"""Stable-Baselines3: its own loop, its defaults, made equal where they differ from the task's sizes."""

from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from peers import BATCH, CAPACITY, ENV, EXPLORATION, LEARNING_RATE, WARM_UP, WIDTHS, Contender, PPOTask


def build(name: str) -> Contender:
    if "ppo" in name:
        return ppo(PPOTask.of(name))
    return contender({"sb3-td3": TD3, "sb3-sac": SAC}[name], deterministic=name.endswith("td3"))


def contender(
    algorithm: type[Any], deterministic: bool = False, policy: str = "MlpPolicy", widths: Any = WIDTHS
) -> Contender:
    """SBX takes the same arguments, so this serves both libraries.

    The replay's pages are touched as they fill, so a capacity of 1M costs no memory here.
    """
    settings: dict[str, Any] = {}
    if deterministic:
        size = 6  # HalfCheetah's actions
        settings = {
            "policy_delay": 2,
            "action_noise": NormalActionNoise(np.zeros(size), np.full(size, EXPLORATION)),
        }
    model = algorithm(
        policy,
        ENV,
        learning_rate=LEARNING_RATE,
        buffer_size=CAPACITY,
        learning_starts=WARM_UP,
        batch_size=BATCH,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": widths if isinstance(widths, dict) else list(widths)},
        seed=0,
        device="cpu",
        **settings,
    )

    def advance(steps: int) -> None:
        model.learn(steps, log_interval=None, reset_num_timesteps=False)

    advance(WARM_UP)
    return Contender(advance, lambda: model._n_updates)


def ppo(task: PPOTask) -> Contender:
    """Its environments stand in one process, as it recommends for cheap ones."""
    model = PPO(
        "MlpPolicy",
        make_vec_env(task.env, task.envs, seed=0),
        n_steps=task.steps,
        batch_size=task.batch,
        n_epochs=task.passes,
        seed=0,
        device="cpu",
    )

    def advance(steps: int) -> None:
        model.learn(steps, log_interval=None, reset_num_timesteps=False)

    return Contender(advance, lambda: model._n_updates // task.passes, task.rollout, task.rollout)
