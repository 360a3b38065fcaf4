"""The bias of Q: what critics predict against the discounted return that followed.

Van Hasselt et al. (AAAI 2016) and Fujimoto et al. (ICML 2018) measure it at the pairs (s_t, a_t) of a
policy's own episodes; Chen et al. (ICLR 2021, section 3) divide mean and spread by the size of the return.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.envs.build import refuse_other_rewards
from qscape.errors import UnfitAgent
from qscape.inspect.trained_agent import TrainedAgent, critic_values, has_q
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import ActingState
from qscape.run import saves
from qscape.run.evaluation import Rollout
from qscape.run.folder import newest_save
from qscape.run.probes import PolicyEvaluation
from qscape.values import decode_args

CHUNK = 512  # pairs in one call of the compiled program


class BiasProbe:
    """Measures the bias of one agent's Q, the mean of its critics; also the probe `bias` of evaluations."""

    columns = ("q_bias", "q_bias_std", "q_bias_share")

    def __init__(self, agent: Any) -> None:
        """Raise UsageError: the agent learns no Q."""
        if not isinstance(agent, Agent):
            raise UnfitAgent(f"{agent.recipe} has no Q(s, a), which the bias of Q needs.")
        self.agent = agent
        self.program = jax.jit(partial(_mean_value, agent))

    def __call__(self, evaluation: PolicyEvaluation) -> dict[str, float]:
        """Raise UsageError: the agent has no Q."""
        if not has_q(evaluation.acting):
            raise UnfitAgent(
                "--probe bias needs a Q(s, a), which this agent does not have; leave it out.", field="probe"
            )
        return self.measure(evaluation.acting, evaluation.rollouts, evaluation.reward_divisor)

    def measure(
        self, acting: ActingState, rollouts: Sequence[Rollout], reward_divisor: float = 1.0
    ) -> dict[str, float]:
        """Compare Q with the discounted return at every step of some episodes.

        Where an episode was truncated, Q at its last step stands for what would have followed. So a Q that is
        wrong by b differs from that return by b times 1 − γᵏ only, the share of the return that was seen, k
        steps before the last. Steps count by that share, and differences are divided by it; it is 1 in
        episodes that terminated.

        Args:
            acting: the acting state with its critics.
            rollouts: the episodes.
            reward_divisor: what the critics' rewards are divided by.

        Returns:
            q_bias: mean of Q(s_t, a_t) − G_t, in units of Q; above 0 the critics promise too much.
            q_bias_std: √(Σ (d − s q_bias)² / Σ s) of the differences d before that division, with s the
                share: the standard deviation of Q − G, where episodes terminated.
            q_bias_share: q_bias divided by the mean of |G_t|.
            All three are NaN if no share of any return was seen.
        """
        base = self.agent.base
        joined = (np.concatenate([getattr(r, name) for r in rollouts]) for name in ("observation", "action"))
        values = reward_divisor * self.values(acting, *joined)
        ends = np.cumsum([len(rollout.reward) for rollout in rollouts])[:-1]
        parts = []
        for rollout, q in zip(rollouts, np.split(values, ends), strict=True):
            goes_on = base.bootstrap_at_time_limits and not rollout.terminated
            returns, seen = discounted_returns(rollout.reward, base.discount, q[-1] if goes_on else None)
            parts.append((q - returns, returns, seen))
        difference, returned, seen = map(np.concatenate, zip(*parts, strict=True))
        if not seen.any():
            return dict.fromkeys(self.columns, np.nan)
        bias = difference.sum() / seen.sum()
        spread = np.sqrt(np.square(difference - bias * seen).sum() / seen.sum())
        size = (seen * np.abs(returned)).sum() / seen.sum()
        share = bias / size if size > 0 else np.nan
        return dict(zip(self.columns, (float(bias), float(spread), float(share)), strict=True))

    def values(
        self, acting: ActingState, obs: Float[np.ndarray, "n S"], action: Float[np.ndarray, "n A"]
    ) -> Float[np.ndarray, " n"]:
        """Compute Q at n pairs, in chunks: one program for any n."""
        index = np.arange(-(-len(obs) // CHUNK) * CHUNK) % len(obs)  # pads the last chunk
        chunks = [self.program(acting, obs[rows], action[rows]) for rows in index.reshape(-1, CHUNK)]
        return np.concatenate(chunks)[: len(obs)].astype(np.float64)


def discounted_returns(
    reward: Float[np.ndarray, " n"], discount: float, tail: float | None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Compute G_t = Σ_k γᵏ r_{t+k} for every step of an episode.

    Args:
        reward: reward of each step.
        discount: γ.
        tail: value of the last step, if the episode was truncated there and more would have followed; it
            takes the place of the last reward. None: the episode ended by itself.

    Returns:
        The returns, and the share of each that was seen: 1 − γᵏ, k steps before the tail; 1 without a tail.
    """
    returns, following = np.empty(len(reward)), 0.0
    for t in range(len(reward) - 1, -1, -1):
        last = t == len(reward) - 1 and tail is not None
        following = float(tail) if last else float(reward[t]) + discount * following  # type: ignore[arg-type]
        returns[t] = following
    weight = discount ** np.arange(len(reward) - 1, -1, -1.0)
    return returns, np.ones(len(reward)) if tail is None else 1.0 - weight


def measure_bias(trained: TrainedAgent, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Compare the Q of a trained agent with the returns of its episodes; see `BiasProbe.measure`.

    Raises:
        UsageError: the agent has no Q, a Q of clipped rewards, or one of scaled rewards whose scale is in no
            save, as that of a kept policy.
    """
    trained.require_q("the bias of Q")
    if trained.record:
        refuse_other_rewards(trained.record["env"], decode_args(trained.record["env_args"]))
    return BiasProbe(trained.agent).measure(trained.acting, rollouts, _read_reward_divisor(trained))


def _read_reward_divisor(trained: TrainedAgent) -> float:
    """Read what the rewards of the last update were divided by from the newest save of a run."""
    scaling = trained.agent.scaling
    if not scaling.changes_rewards:
        return 1.0
    if trained.policy == "kept":  # its critics are of an earlier scale
        raise UnfitAgent(
            f"{trained.name} keeps a policy whose Q is of scaled rewards ({scaling.name}), and no save tells "
            "the scale of that time; measure the newest policy with --current."
        )
    save = newest_save(Path(trained.name), "loop") if trained.record else None
    found = {} if save is None else saves.read_arrays(save, "loop")

    def leaf(path: Any, like: Array) -> np.ndarray:
        return found["scaling/" + jax.tree_util.keystr(path, simple=True, separator="/")]

    try:
        return float(scaling.divisor(jax.tree_util.tree_map_with_path(leaf, scaling.init_state(1))))
    except KeyError:
        raise UnfitAgent(
            f"{trained.name} has a Q of scaled rewards ({scaling.name}), and no save of it tells the scale; "
            "train with --probe bias."
        ) from None


def _mean_value(
    agent: Agent, acting: ActingState, obs: Float[Array, "n S"], action: Float[Array, "n A"]
) -> Float[Array, " n"]:
    """Compute the mean of the critics at n pairs."""
    return jnp.stack(critic_values(agent, acting, obs, action)).mean(0)
