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
    "policy_delay": ("base.policy_delay",),
    "policy_noise": ("base.target_noise",),
    "target_policy_noise": ("base.target_noise",),
    "noise_clip": ("base.target_noise_clip",),
    "target_noise_clip": ("base.target_noise_clip",),
    "action_noise": ("base.exploration_noise",),
    "exploration_noise": ("base.exploration_noise",),
    "exploration_fraction": ("base.epsilon_decay",),
    "exploration_initial_eps": ("base.epsilon_start",),
    "exploration_final_eps": ("base.epsilon_end",),
    "start_e": ("base.epsilon_start",),
    "end_e": ("base.epsilon_end",),
    "n_critics": ("base.critics",),
    "ent_coef": ("soft.temperature", "base.entropy_coefficient"),
    "alpha": ("soft.temperature",),
    "target_entropy": ("soft.target_entropy",),
    "vf_coef": ("base.value_coefficient",),
    "max_grad_norm": ("base.gradient_clip",),
    "clip_range": ("clipped.bound",),
    "clip_coef": ("clipped.bound",),
    "clip_range_vf": ("clipped.value_bound",),
    "clip_vloss": ("clipped.value_bound",),
    "target_update_interval": ("base.sync_every",),
    "target_network_frequency": ("base.sync_every",),
    "normalize_advantage": ("clipped.normalise_advantages",),
    "norm_adv": ("clipped.normalise_advantages",),
    "target_kl": ("clipped.target_kl", "trust_region.max_kl"),
    "cg_damping": ("trust_region.damping",),
    "cg_max_steps": ("trust_region.iterations",),
    "line_search_shrinking_factor": ("trust_region.backtrack",),
    "line_search_max_iter": ("trust_region.tries",),
    "n_critic_updates": ("trust_region.critic_steps",),
    "anneal_lr": ("base.anneal",),
    "rms_prop_eps": ("base.optimiser_epsilon",),
    "gae_lambda": ("gae.decay",),
    "n_steps": ("base.rollout", "base.n_step"),
    "num_steps": ("base.rollout",),
    "num_minibatches": ("base.batch_size",),
    "n_epochs": ("base.passes",),
    "update_epochs": ("base.passes",),
    "gradient_steps": ("base.updates_per_step",),
    "train_freq": ("base.updates_per_step",),
    "train_frequency": ("base.updates_per_step",),
    "utd": ("base.updates_per_step",),
    "n_quantiles": ("quantile.quantiles",),
    "top_quantiles_to_drop_per_net": ("quantile.drop",),
    "n_atoms": ("c51.atoms",),
    "v_min": ("c51.low",),
    "v_max": ("c51.high",),
    "n_envs": ("envs",),
    "num_envs": ("envs",),
    "env_id": ("env",),
    "total_timesteps": ("steps",),
    "timesteps": ("steps",),
    "eval_freq": ("eval_every",),
    "n_eval_episodes": ("eval_episodes", "episodes"),
    "save_freq": ("save_every",),
    "progress_bar": ("progress",),
    "track": ("log",),
    "wandb_project_name": ("log_project",),
}
# By their name and our field, what the value must be here, where it is not theirs.
DIFFERENCES = {
    ("n_steps", "base.rollout"): "steps of all environments together",
    ("num_steps", "base.rollout"): "steps of all environments together",
    ("num_minibatches", "base.batch_size"): "the rollout divided by num_minibatches",
    ("train_freq", "base.updates_per_step"): "gradient_steps / train_freq",
    ("train_frequency", "base.updates_per_step"): "1 / train_frequency",
    ("track", "log"): "such as wandb",
    ("clip_vloss", "clipped.value_bound"): "a number such as 0.2",
    ("target_update_interval", "base.sync_every"): "in updates, not steps",
    ("target_network_frequency", "base.sync_every"): "in updates, not steps",
}
# Agents of Stable-Baselines3 and CleanRL that are settings of ours.
OTHER_AGENTS = {
    "ddpg": "it is td3 with base.critics 1, base.policy_delay 1 and base.target_noise 0",
    "qrdqn": "it is dqn+quantile",
}
# Keywords of its agents that no keyword of ours replaces.
ELSEWHERE = {"verbose": "learn(steps, progress=True) prints evaluations"}
# What Stable-Baselines3 wants first, `TD3("MlpPolicy", env)`.
OTHER_POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


def ours(name: str, known: Iterable[str]) -> list[str]:
    """Translate a name of another library to our fields.

    Args:
        name: the other library's name, as `gamma`, `base.gamma` or `--base.gamma`, with _ or -.
        known: the fields `part.field` and options of the agent, with _ or -.

    Returns:
        The names among `known` that mean the same, as they are written there; empty if the name is unknown or
        the agent has no such field.
    """
    wanted = OTHER_NAMES.get(_theirs(name), ())
    return [other for other in known if other.replace("-", "_") in wanted]


def difference(name: str, found: Iterable[str]) -> str:
    """Return what differs from the other library's value, in brackets after a blank; "" if nothing does.

    Args:
        name: the other library's name, as for `ours`.
        found: the names that `ours` returned for it.
    """
    said = (DIFFERENCES.get((_theirs(name), other.replace("-", "_"))) for other in found)
    return "".join(f" ({text})" for text in said if text)


def _theirs(name: str) -> str:
    return name.lstrip("-").split(".")[-1].replace("-", "_")
