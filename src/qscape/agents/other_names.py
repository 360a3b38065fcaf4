"""Names that other libraries use for our fields, so that errors can name ours."""

from collections.abc import Iterable

# By name in Stable-Baselines3, CleanRL, Tianshou or papers: our fields. An agent has only some of them.
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
    """Translate a name of another library to our fields.

    Args:
        name: the other library's name, as `gamma`, `base.gamma` or `--base.gamma`, with _ or -.
        known: the fields `part.field` and options of the agent, with _ or -.

    Returns:
        The names among `known` that mean the same, as they are written there; empty if the name is unknown or
        the agent has no such field.
    """
    wanted = OTHER_NAMES.get(name.lstrip("-").split(".")[-1].replace("-", "_"), ())
    return [other for other in known if other.replace("-", "_") in wanted]
