"""What other libraries call the fields of this one."""

from collections.abc import Iterable

# Names of Stable-Baselines3, CleanRL, Tianshou and papers; ours are those that the agent at hand has.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "gamma": ("base.discount",),
    "discount_factor": ("base.discount",),
    "tau": ("polyak.rate",),
    "polyak": ("polyak.rate",),
    "lr": ("base.learning_rate", "base.actor_learning_rate", "base.critic_learning_rate"),
    "learning_rate": ("base.learning_rate", "base.actor_learning_rate", "base.critic_learning_rate"),
    "actor_lr": ("base.actor_learning_rate",),
    "critic_lr": ("base.critic_learning_rate",),
    "q_lr": ("base.critic_learning_rate",),
    "policy_lr": ("base.actor_learning_rate",),
    "batch_size": ("base.batch_size",),
    "minibatch_size": ("base.batch_size",),
    "learning_starts": ("base.warmup",),
    "start_timesteps": ("base.warmup",),
    "random_steps": ("base.warmup",),
    "buffer_size": ("base.replay_capacity",),
    "replay_size": ("base.replay_capacity",),
    "net_arch": ("base.actor_hidden", "base.critic_hidden"),
    "hidden_sizes": ("base.actor_hidden", "base.critic_hidden"),
    "hidden_dims": ("base.actor_hidden", "base.critic_hidden"),
    "policy_kwargs": (
        "base.actor_hidden",
        "base.critic_hidden",
        "base.activation",
        "base.actor_activation",
        "base.critic_activation",
    ),
    "activation_fn": ("base.activation", "base.actor_activation", "base.critic_activation"),
    "policy_frequency": ("base.policy_delay",),
    "policy_freq": ("base.policy_delay",),
    "policy_noise": ("base.target_noise",),
    "target_policy_noise": ("base.target_noise",),
    "noise_clip": ("base.target_noise_clip",),
    "target_noise_clip": ("base.target_noise_clip",),
    "action_noise": ("base.exploration_noise",),
    "n_critics": ("base.critics",),
    "ent_coef": ("soft.temperature", "base.entropy_coefficient"),
    "alpha": ("soft.temperature",),
    "vf_coef": ("base.value_coefficient",),
    "max_grad_norm": ("base.gradient_clip",),
    "clip_range": ("clipped.bound",),
    "clip_coef": ("clipped.bound",),
    "gae_lambda": ("gae.decay",),
    "n_steps": ("base.rollout", "base.n_step"),
    "n_epochs": ("base.passes",),
    "update_epochs": ("base.passes",),
    "gradient_steps": ("base.updates_per_step",),
    "utd": ("base.updates_per_step",),
    "n_envs": ("envs",),
    "num_envs": ("envs",),
    "env_id": ("env",),
    "total_timesteps": ("steps",),
    "timesteps": ("steps",),
    "eval_freq": ("eval_every",),
    "n_eval_episodes": ("eval_episodes",),
}


def ours(name: str, known: Iterable[str]) -> list[str]:
    """What a name of another library is called here, among the `known` fields `part.field` and options.

    Args:
        name: `gamma`, `base.gamma` or `--base.gamma`, with _ or -.
        known: with _ or -.

    Returns:
        The known names, as they are written there; empty where the name is none of another library, or the
        agent has nothing of this kind.
    """
    wanted = OTHER_NAMES.get(name.lstrip("-").split(".")[-1].replace("-", "_"), ())
    return [other for other in known if other.replace("-", "_") in wanted]
