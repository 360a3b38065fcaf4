"""The preset "tuned": settings that train td3, sac, td7 and ppo on Gymnasium's own tasks, and ppo on Brax's.

The numbers are those of RL Baselines3 Zoo (github.com/DLR-RM/rl-baselines3-zoo, `hyperparams/*.yml`), which
searched them with Optuna, and the defaults of the agents' authors. The zoo is for older versions of the
environments. What qscape lacks is left out: state-dependent exploration, a clipping range that decreases, and
initial weights that are not orthogonal (PPO's wide networks).

Settings of PPO on Brax's tasks are those of Brax's notebook (github.com/google/brax,
`notebooks/training.ipynb`) and the defaults of its trainer, but for the policy: a normal distribution whose
log standard deviations start at -1 (see docs/methods/ppo.md). Rewards are not scaled: actor and critic share
nothing, and Adam's step does not depend on the loss's scale.
"""

from typing import Any

from qscape.agents.recipes import Settings
from qscape.agents.settings import merge_settings
from qscape.agents.sources import Paper

MUJOCO = (
    "HalfCheetah",
    "Hopper",
    "Walker2d",
    "Ant",
    "Humanoid",
    "HumanoidStandup",
    "Swimmer",
    "Reacher",
    "Pusher",
)
MUJOCO += ("InvertedPendulum", "InvertedDoublePendulum")
SAC_MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer")  # the zoo's
WIDE = {"actor_hidden": (400, 300), "critic_hidden": (400, 300)}
LINEAR = {"schedule": "linear", "rate_end": 0.0}


def _td3(rate: float, **base: Any) -> Settings:
    """Return TD3's settings.

    The zoo makes an episode's updates after each episode, except on BipedalWalkerHardcore. Here every step
    makes one, and a batch has 256 rows.
    """
    return {
        "base": {"warmup": 10_000, "actor_learning_rate": rate, "critic_learning_rate": rate, **WIDE, **base}
    }


TD3: dict[str, Settings] = {
    "MountainCarContinuous-v0": {"base": {"warmup": 100, "exploration": "ou", "exploration_noise": 0.5}},
    **dict.fromkeys(
        ("Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"),
        _td3(1e-3, discount=0.98, replay_capacity=200_000),
    ),
    "BipedalWalkerHardcore-v3": _td3(7e-4, **LINEAR),
}

SAC_START: Settings = {"base": {"warmup": 10_000}}
SAC_RATE = {"actor_learning_rate": 7.3e-4, "critic_learning_rate": 7.3e-4}
SAC: dict[str, Settings] = {
    "Pendulum-v1": {
        "base": {"warmup": 100, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3},
        "soft": {"learning_rate": 1e-3},
    },
    "LunarLander-v3": {
        "base": {"warmup": 10_000} | WIDE | SAC_RATE | LINEAR,
        "soft": {"learning_rate": 7.3e-4},
        "polyak": {"rate": 0.01},
    },
    "BipedalWalker-v3": {
        "base": {"warmup": 10_000, "discount": 0.98, "replay_capacity": 300_000} | WIDE | SAC_RATE,
        "soft": {"learning_rate": 7.3e-4},
        "polyak": {"rate": 0.02},
        "every_step": {"every": 64},
    },
    "BipedalWalkerHardcore-v3": {
        "base": {"warmup": 10_000} | WIDE | SAC_RATE | LINEAR,
        "soft": {"temperature": 0.005},
        "polyak": {"rate": 0.01},
    },
}


def _ppo(
    rollout: int,
    batch: int = 64,
    passes: int = 10,
    discount: float = 0.99,
    decay: float = 0.95,
    rate: float = 3e-4,
    bound: float = 0.2,
    **base: Any,
) -> Settings:
    """Return PPO's settings; `rollout` is over all environments."""
    # Where the zoo's batch is larger than its rollout, it is the whole rollout.
    steps = {"rollout": rollout, "batch_size": min(batch, rollout), "passes": passes}
    return {
        "base": {**steps, "discount": discount, "learning_rate": rate, **base},
        "gae": {"decay": decay},
        "clipped": {"bound": bound},
    }


def _ppo_on_mujoco(*row: int | float, wide: bool = True) -> Settings:
    """Return PPO's settings of a row.

    The numbers are rollout, batch, discount, learning rate, entropy, bound, passes, λ, gradient clip, value.
    """
    rollout, batch, discount, rate, entropy, bound, passes, decay, clip, value = row
    base = {"entropy_coefficient": entropy, "gradient_clip": clip, "value_coefficient": value}
    if wide:
        base |= {"actor_hidden": (256, 256), "critic_hidden": (256, 256), "activation": "relu"}
    made = _ppo(int(rollout), int(batch), int(passes), discount, decay, rate, bound, **base)
    return merge_settings(made, {"learnable": {"log_std": -2.0}} if wide else {})


# Environment, number of parallel environments, does the source normalise?, settings.
PPO: list[tuple[str, int, bool, Settings]] = [
    ("CartPole-v1", 8, False, _ppo(256, 256, 20, 0.98, 0.8, 1e-3, anneal=True)),
    ("Pendulum-v1", 4, False, _ppo(4096, discount=0.9, rate=1e-3)),
    ("MountainCar-v0", 16, True, _ppo(256, passes=4, decay=0.98)),
    ("Acrobot-v1", 16, True, _ppo(4096, passes=4, decay=0.94)),
    (
        "LunarLander-v3",
        16,
        False,
        _ppo(16_384, passes=4, discount=0.999, decay=0.98, entropy_coefficient=0.01),
    ),
    ("BipedalWalker-v3", 32, True, _ppo(65_536, discount=0.999, bound=0.18)),
    (
        "BipedalWalkerHardcore-v3",
        16,
        True,
        _ppo(32_768, rate=2.5e-4, entropy_coefficient=0.001, anneal=True),
    ),
]
PPO_MUJOCO: dict[str, Settings] = {
    "HalfCheetah": _ppo_on_mujoco(512, 64, 0.98, 2.0633e-5, 4.01762e-4, 0.1, 20, 0.92, 0.8, 0.58096),
    "Hopper": _ppo_on_mujoco(512, 32, 0.999, 9.80828e-5, 2.29519e-3, 0.2, 5, 0.99, 0.7, 0.835671),
    "Walker2d": _ppo_on_mujoco(512, 32, 0.99, 5.05041e-5, 5.85045e-4, 0.1, 20, 0.95, 1.0, 0.871923),
    "Humanoid": _ppo_on_mujoco(512, 256, 0.95, 3.56987e-5, 2.38306e-3, 0.3, 5, 0.9, 2.0, 0.431892),
    "HumanoidStandup": _ppo_on_mujoco(512, 32, 0.99, 2.55673e-5, 3.62109e-6, 0.3, 20, 0.9, 0.7, 0.430793),
    "Reacher": _ppo_on_mujoco(512, 32, 0.9, 1.04019e-4, 7.52585e-8, 0.3, 5, 1.0, 0.9, 0.950368, wide=False),
    "InvertedPendulum": _ppo_on_mujoco(
        32, 64, 0.999, 2.22425e-4, 1.37976e-7, 0.4, 5, 0.9, 0.3, 0.19816, wide=False
    ),
    "InvertedDoublePendulum": _ppo_on_mujoco(
        128, 512, 0.98, 1.55454e-4, 1.05057e-6, 0.4, 10, 0.8, 0.5, 0.695929, wide=False
    ),
    "Swimmer": _ppo(4096, 256, discount=0.9999, decay=0.98, rate=6e-4),
    "Ant": {},
}


def _zoo() -> Paper:
    """Return the rows of the zoo."""
    rows: dict[tuple[str, str, str], Settings] = {("td3", "", env): row for env, row in TD3.items()}
    rows |= {("sac", "", env): row for env, row in SAC.items()}
    normalised = "+normalise+scale_rewards"
    meant_for = {}
    for env, envs, normalise, row in PPO:
        rows["ppo", "", env] = row
        meant_for["ppo", env] = f"ppo{normalised if normalise else ''} --envs {envs}"
    for version in (4, 5):
        for name in MUJOCO:
            env = f"{name}-v{version}"
            if name in SAC_MUJOCO:
                rows["sac", "", env] = SAC_START
            if name in PPO_MUJOCO:
                envs = " --envs 4" if name == "Swimmer" else ""
                rows["ppo", "", env], meant_for["ppo", env] = PPO_MUJOCO[name], f"ppo{normalised}{envs}"
        rows["sac", "", f"Swimmer-v{version}"] = merge_settings(SAC_START, {"base": {"discount": 0.9999}})
    meant_for |= {(base, "LunarLander-v3"): "--env-args continuous=True" for base in ("td3", "sac")}
    return Paper("RL Baselines3 Zoo, github.com/DLR-RM/rl-baselines3-zoo", rows, meant_for)


# Parallel environments, steps of an unroll, unrolls in a minibatch, minibatches, passes, γ, entropy.
BRAX: dict[str, tuple[int, int, int, int, int, float, float]] = {
    "ant": (4096, 5, 2048, 32, 4, 0.97, 0.01),
    "halfcheetah": (2048, 20, 512, 32, 8, 0.95, 0.001),
    "humanoid": (2048, 10, 1024, 32, 8, 0.97, 0.001),
    "humanoidstandup": (2048, 15, 1024, 32, 8, 0.97, 0.01),
    "inverted_double_pendulum": (2048, 5, 1024, 32, 4, 0.97, 0.01),
    "inverted_pendulum": (2048, 5, 1024, 32, 4, 0.97, 0.01),
    "pusher": (2048, 30, 512, 16, 8, 0.95, 0.01),
}


def _brax() -> Paper:
    """Return the rows of Brax's notebook that are of PPO and repeat no action."""
    shared = {
        "gradient_clip": None,
        "optimiser_epsilon": 1e-8,
        "actor_hidden": (32,) * 4,
        "critic_hidden": (256,) * 5,
        "activation": "silu",
    }
    rows, meant_for = {}, {}
    for task, (envs, unroll, size, minibatches, passes, discount, entropy) in BRAX.items():
        rate = 6e-4 if task == "humanoidstandup" else 3e-4
        base = {"entropy_coefficient": entropy, **shared}
        batch = size * unroll
        row = _ppo(batch * minibatches, batch, passes, discount, rate=rate, bound=0.3, **base)
        more = {"clipped": {"unroll": unroll}, "learnable": {"log_std": -1.0}}
        rows["ppo", "", f"brax/{task}"] = merge_settings(row, more)
        meant_for["ppo", f"brax/{task}"] = f"ppo+normalise --envs {envs}"
    return Paper("Brax, github.com/google/brax, notebooks/training.ipynb", rows, meant_for)


def _authors() -> Paper:
    """Return the rows of the authors of TD3 and TD7, who have one setting for all tasks of MuJoCo."""
    rows: dict[tuple[str, str, str], Settings] = {}
    for version in (4, 5):
        for name in MUJOCO:
            rows |= {(base, "", f"{name}-v{version}"): {} for base in ("td3", "td7")}
    return Paper("TD3, arXiv 1802.09477, and TD7, arXiv 2306.02451: the defaults", rows)


def _own() -> Paper:
    """Return our rows: TD7 outside MuJoCo, and SAC on the tasks of MuJoCo that the zoo lacks."""
    # Pendulum-v1 returns -140 with 5 seeds; benchmarks/results/README.md has the one seed of the next two.
    learned: dict[str, Settings] = {
        "Pendulum-v1": {"base": {"warmup": 1_000}},
        "MountainCarContinuous-v0": {
            "base": {"warmup": 1_000, "exploration": "ou", "exploration_noise": 0.5}
        },
        "LunarLander-v3": {"base": {"warmup": 1_000, "exploration": "ou", "exploration_noise": 0.1}},
        "BipedalWalker-v3": {"base": {"warmup": 10_000}},
        "BipedalWalkerHardcore-v3": {"base": {"warmup": 10_000}},
    }
    rows: dict[tuple[str, str, str], Settings] = {("td7", "", env): row for env, row in learned.items()}
    others = [name for name in MUJOCO if name not in SAC_MUJOCO]
    rows |= {("sac", "", f"{name}-v{version}"): SAC_START for version in (4, 5) for name in others}
    meant_for = {("td7", "LunarLander-v3"): "--env-args continuous=True"}
    return Paper("qscape, with random steps and noise as the zoo has for like tasks", rows, meant_for)


TUNED = [_zoo(), _brax(), _authors(), _own()]
