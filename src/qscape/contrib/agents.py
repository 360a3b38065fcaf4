"""Agents that have a name of their own and need a part of `qscape.contrib`."""

from collections.abc import Mapping
from typing import Any

TWO_UPDATES = {"updates_per_step": 2.0}
# The temperature of SimBa, SimbaV2 and XQC.
CAUTIOUS = {"initial_temperature": 0.01, "entropy_per_action": -0.5, "temperature_loss": "alpha"}
# By name: base and parts, what it is and where it comes from, and its settings by part; the fields of
# `qscape.agents.Expansion`.
# FlashSAC for one environment, as on MuJoCo, the DeepMind Control Suite, HumanoidBench and MyoSuite.
FLASH_SAC = {
    "base": {"batch_size": 512, "warmup": 10_000, "noise_repeat": 16}
    | {"schedule": "cosine", "rate_end": 0.5, "actor_horizon": "updates"},
    "soft": {"initial_temperature": 0.01, "target_std": 0.15, "temperature_loss": "alpha"},
    "polyak": {"rate": 0.01},
}
# For 1,024 environments of a simulator on a GPU: learning starts at 100,000 transitions.
FLASH_SAC_PARALLEL = FLASH_SAC | {
    "base": FLASH_SAC["base"]
    | {"counts": "vector_steps", "warmup": 98, "updates_per_step": 2.0, "batch_size": 2048}
    | {"replay_capacity": 10_000_000},
}
AGENTS: dict[str, tuple[str, str, Mapping[str, Mapping[str, Any]]]] = {
    "eas_td3": (
        "td3+eas+imitate",
        "TD3 whose actions a particle swarm evolves, and which imitates winners (Ma et al. 2022, arXiv "
        "2201.04286).",
        {"base": {"actor_hidden": (400, 300), "critic_hidden": (400, 300), "batch_size": 100}},
    ),
    "rip": (
        "td3+implicit+rip",
        "Regularised implicit policy, for datasets (Yang et al. 2022, arXiv 2202.09673).",
        {
            "base": {"batch_size": 512, "actor_hidden": (400, 300), "critic_hidden": (400, 300)}
            | {"actor_activation": "leaky_relu", "actor_learning_rate": 2e-4, "actor_adam_b1": 0.4}
            | {"critic_loss": "huber", "huber_threshold": 500.0},
        },
    ),
    "lsflow": (
        "td3+lsflow",
        "A flow policy on the sphere, for continuous actions (Kong et al. 2026, arXiv 2601.22211).",
        {
            "base": {"batch_size": 64, "replay_capacity": 100_000, "warmup": 1_000}
            | {"critic_learning_rate": 4e-4, "gradient_clip": 10.0}
            | {"critic_loss": "huber", "huber_threshold": 5.0},
        },
    ),
    "crossq": (
        "sac+crossq",
        "SAC with batch normalisation and no target critics (Bhatt et al. 2024, arXiv 1902.05605).",
        {"soft": {"learning_rate": 1e-3, "temperature_loss": "alpha"}},
    ),
    "crossq_wn": (
        "sac+crossq_wn",
        "CrossQ with weight normalisation, five updates a step (Palenicek et al. 2025, arXiv 2502.07523).",
        {"base": {"updates_per_step": 5.0}, "soft": {"learning_rate": 1e-4, "entropy_per_action": -0.5}},
    ),
    "simba": (
        "sac+simba+normalise",
        "SAC with layer-normalised residual networks (Lee et al. 2025, arXiv 2410.09754).",
        {
            "base": TWO_UPDATES | {"discount_rule": "time_limit"},
            "soft": CAUTIOUS | {"learning_rate": 1e-4},
            "normalise": {"epsilon_under_root": True},
        },
    ),
    "simbav2": (
        "sac+simbav2+c51+reward_scale+normalise",
        "SAC with networks on the unit sphere and categorical critics (Lee et al. 2025, arXiv 2502.15280).",
        {
            "base": TWO_UPDATES | {"discount_rule": "time_limit", "schedule": "linear", "rate_end": 0.5},
            "soft": CAUTIOUS | {"learning_rate": 1e-4},
            "normalise": {"epsilon_under_root": True},
        },
    ),
    "bro": (
        "sac+bronet+quantile+mean_target+resets",
        "SAC with large residual quantile critics, no pessimism and resets, ten updates a step; with "
        "+dual_policy also the paper's second policy (Nauman et al. 2024, arXiv 2405.16158).",
        {
            "base": {"batch_size": 128, "updates_per_step": 10.0, "warmup": 2_500}
            | {"actor_objective": "mean"},
            "quantile": {"quantiles": 100, "loss_sum": "sum"},
            "resets": {"at": (15_000, 50_000, 250_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_000_000)},
            "soft": {"entropy_per_action": -0.5, "temperature_loss": "alpha", "adam_b1": 0.5},
        },
    ),
    "xqc": (
        "sac+xqc+c51+reward_scale",
        "SAC with batch and weight normalisation and categorical critics (Palenicek et al. 2026, arXiv "
        "2509.25174).",
        {
            "base": TWO_UPDATES
            | {"discount_rule": "time_limit", "schedule": "linear", "actor_horizon": "updates"}
            | {"policy_phase": 1},
            "reward_scale": {"bound": None},
            "soft": CAUTIOUS,
        },
    ),
    "flash_sac": (
        "sac+flashsac+c51+reward_scale",
        "SAC with residual batch-normalised networks, repeated noise and few updates on large batches "
        "(FlashSAC 2026, arXiv 2604.04539).",
        FLASH_SAC,
    ),
    "flash_sac_parallel": (
        "sac+flashsac+c51+reward_scale",
        "FlashSAC for about 1,024 environments at once (FlashSAC 2026, arXiv 2604.04539).",
        FLASH_SAC_PARALLEL,
    ),
    "redq": (
        "sac+redq",
        "SAC with ten critics, two of them drawn for a target, at 20 updates per step (Chen et al. 2021, "
        "arXiv 2101.05982).",
        {"base": {"log_std_min": -20.0, "init": "xavier"}},
    ),
    "droq": (
        "sac+droq",
        "SAC whose critics have dropout and layer norm, at 20 updates per step (Hiraoka et al. 2022, arXiv "
        "2110.02034).",
        {"base": {"log_std_min": -20.0}},
    ),
    "fast_td3": (
        "td3+fast+c51+normalise",
        "TD3 with large batches and distributional critics, for many environments (Seo et al. 2025, arXiv "
        "2505.22642).",
        {
            "c51": {"low": -250.0, "high": 250.0},
            "normalise": {"epsilon": 0.01},
            "polyak": {"rate": 0.1, "when": "always"},
        },
    ),
    "q3c": (
        "td3+control_points+best_point+separate",
        "Q-learning without an actor: the best of N points of a critic is its maximum (NeurIPS 2025, arXiv "
        "2510.18828).",
        {
            "base": {"critic_hidden": (400, 300), "critic_learning_rate": 1e-3, "schedule": "delayed"}
            | {"gradient_clip": 10.0, "critic_clip": "each", "critic_loss_scale": 0.5, "policy_delay": 1}
            | {"warmup": 30_000, "replay_capacity": 100_000, "updates_per_step": 0.25},
            "polyak": {"when": "always"},
        },
    ),
    "fast_sac": (
        "sac+fast+c51+own_target+normalise",
        "SAC with large batches and distributional critics, for many environments (Seo et al. 2025, arXiv "
        "2512.01996).",
        {
            "c51": {"low": -20.0, "high": 20.0},
            "normalise": {"epsilon": 0.01},
            "polyak": {"rate": 0.125},
            "soft": {"initial_temperature": 0.001, "entropy_per_action": 0.0, "temperature_loss": "alpha"},
        },
    ),
}
