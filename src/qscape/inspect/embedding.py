"""The geometry learned by SAVGO: are pairs of close value close in the embedding, and which candidates count?

For a run with `+savgo`: cosines of embeddings against differences of value over visited states; and, at one
state, the actions on the two principal axes of their embeddings with the candidates that the kernel weighs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import UnfitAgent
from qscape.inspect.landscape import observation_at
from qscape.inspect.trained_agent import TrainedAgent, load_trained_agent
from qscape.methods.savgo import SAVGO, WeightedCandidates
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import State
from qscape.ops.landscape import principal_axes
from qscape.ops.ranking import rank_correlation
from qscape.run import saves
from qscape.run.evaluation import SEED, Rollout
from qscape.run.folder import newest_save, no_save
from qscape.types import Event, stream

EPISODES = 5  # evaluation episodes from which states are sampled
STATES = 128  # visited states; each gives a pair with the policy's own action and one with a random action
SHOWN = 3_000  # points of the scatter plot; the correlation uses all pairs
ACTIONS = 1_000  # actions of the one state, uniform over the action box


class PairOutputs(NamedTuple):
    """Outputs of the networks at N pairs of observation and action, and at one state."""

    embedding: Float[Array, "N H"]  # by the online encoder, unit vectors
    value: Float[Array, " N"]  # of the lesser slow critic; v2 of the method adds rewards
    own: Float[Array, " A"]  # the policy's action at the one state
    own_embedding: Float[Array, " H"]
    own_value: Float[Array, ""]
    weighed: WeightedCandidates  # the candidates of that state, [1, ...]
    candidates: Float[Array, "K H"]  # their embeddings by the online encoder


def measure_embedding(
    folder: Path | str, at: tuple[int, int] | None = None, states: int = STATES, seed: int = SEED
) -> dict[str, Any]:
    """Measure the embedding of a run's newest save.

    Called by `qscape embedding`, which writes the result to RUN/inspect/embedding.json.

    Args:
        folder: a run folder or a group of one run.
        at: episode and step of the state whose actions are shown; None for the middle of the first episode.
        states: number of visited states; each gives a pair with the policy's action and one with a random
            action.
        seed: seed of the rollouts and of all draws.

    Returns:
        Numbers ready for JSON. name, label, env, step; `rank_correlation`, Spearman's correlation of cosine
        and value difference over all pairs (-1: the geometry orders them perfectly); `gap_scale`, β;
        `exponent`, λ; `value_weight`; `pairs`, cosine and difference of at most 3,000 pairs; `state`, the
        episode and step shown; `actions`, value and coordinates of 1,000 actions drawn uniformly there;
        `candidates`, value, cosine to the policy's action, weight and coordinates of the K candidates; `own`,
        value and coordinates of the policy's action; `explained`, the share of the embeddings' variance along
        each of the two axes.

    Raises:
        UsageError: the run was trained without savgo, or the episode has no such step.
        RunError: the run has no readable save.
    """
    trained = load_trained_agent(folder, current=True)
    agent = trained.agent
    if not isinstance(agent, Agent) or not isinstance(agent.policy_loss, SAVGO):
        raise UnfitAgent(f"{folder} was trained without savgo and has no embedding; train sac+savgo.")
    state = load_full_state(Path(trained.name), agent)  # the run, where `folder` is its group
    rng, rollouts = (
        np.random.default_rng(seed),
        trained.rollouts(max(EPISODES, 1 + (at[0] if at else 0)), seed),
    )
    episode, step = at or (0, len(rollouts[0].action) // 2)
    obs, action = sample_pairs(rollouts, states, rng)
    here = observation_at(rollouts, episode, step)
    drawn = rng.uniform(-1.0, 1.0, (ACTIONS, action.shape[1])).astype(np.float32)
    all_obs = np.concatenate([obs, np.broadcast_to(here, (ACTIONS, len(here)))])
    seen = jax.device_get(
        jax.jit(evaluate_networks, static_argnums=0)(
            agent, state, all_obs, np.concatenate([action, drawn]), here[None]
        )
    )
    n = len(obs)
    return {
        **describe_run(trained),
        **summarise_pairs(seen.embedding[:n], seen.value[:n], rng),
        "gap_scale": float(state.part_states["savgo"].extra.scale),
        "exponent": agent.policy_loss.exponent,
        # v2 compares r + γ q. The reward of an action that was never taken is unknown and left out.
        "value_weight": 1.0 if agent.policy_loss.variant == "v1" else agent.base.discount,
        "state": [episode, step],
        **summarise_state(seen, n),
    }


def evaluate_networks(agent: Agent, state: State, obs: Array, action: Array, here: Array) -> PairOutputs:
    """Evaluate encoder and critics at N pairs, and the kernel at one state.

    Args:
        agent: an agent with SAVGO.
        state: its training state.
        obs: raw observations [N, S].
        action: actions [N, A] in [-1, 1].
        here: the raw observation [1, S] of the one state.
    """
    part, own = agent.policy_loss, state.part(agent.policy_loss)
    assert isinstance(part, SAVGO)
    no = jnp.array(False)
    context = agent.functions(state, Event(state.updates, state.env_steps, no, no))
    encoder = own.extra.encoder if own.params is None else own.params
    obs, here = (agent.normaliser.apply(state.part(agent.normaliser), x) for x in (obs, here))

    def least(obs: Array, action: Array) -> Array:
        return jnp.stack(context.q_target(obs, action)).min(0)

    dist = context.policy(here)
    mode = dist.mode()
    weighed = part.kernel_weights(dist, here, mode, own, context, stream(jax.random.key(0), "embedding"))
    there = jnp.broadcast_to(here, (part.candidates, here.shape[1]))
    return PairOutputs(
        part.embed(encoder, obs, action),
        least(obs, action),
        mode[0],
        part.embed(encoder, here, mode)[0],
        least(here, mode)[0],
        weighed,
        part.embed(encoder, there, weighed.drawn[0]),
    )


def load_full_state(folder: Path, agent: Agent) -> State:
    """Load the training state of a run's newest save; acting states do not hold the encoder.

    Raises:
        RunError: the run has no save with a training state.
    """
    path = newest_save(folder, "state")
    if path is None:
        raise no_save(folder, "that holds its encoder")
    like = jax.eval_shape(agent.init, jax.random.key(0))
    return saves.read(path, {"state": like})[0]["state"]


def sample_pairs(
    rollouts: list[Rollout], states: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample visited observations [2 N, S] with the policy's action, then with random ones [2 N, A]."""
    obs = np.concatenate([r.observation for r in rollouts])
    action = np.concatenate([r.action for r in rollouts])
    chosen = rng.choice(len(obs), min(states, len(obs)), replace=False)
    obs, action = obs[chosen], action[chosen]
    drawn = rng.uniform(-1.0, 1.0, action.shape).astype(np.float32)
    return np.concatenate([obs, obs]), np.concatenate([action, drawn])


def summarise_pairs(z: np.ndarray, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Compare cosine and difference of value over all pairs of rows of `z` [n, H] and `value` [n]."""
    i, j = np.triu_indices(len(z), 1)
    cosine, gap = (z @ z.T)[i, j], np.abs(value[i] - value[j])
    some = rng.choice(len(i), min(SHOWN, len(i)), replace=False)
    return {
        "rank_correlation": float(rank_correlation(jnp.asarray(cosine), jnp.asarray(gap))),
        "pairs": {"cosine": _round(cosine[some]), "difference": _round(gap[some])},
    }


def summarise_state(seen: Any, n: int) -> dict[str, Any]:
    """Project the actions of one state on the two principal axes of their embeddings.

    Args:
        seen: `PairOutputs` as numpy arrays.
        n: number of leading pairs that belong to other states.
    """
    z = seen.embedding[n:].astype(float)
    axes, centre = principal_axes(z, 2), z.mean(0)
    variance = np.square((z - centre) @ axes.T).mean(0) / np.square(z - centre).sum(1).mean()

    def at(points: np.ndarray) -> list[list[float]]:
        return [_round(row) for row in (np.atleast_2d(points) - centre) @ axes.T]

    weighed = seen.weighed
    return {
        "explained": _round(variance),
        "actions": {"value": _round(seen.value[n:]), "at": at(z)},
        "candidates": {
            "action": [_round(a) for a in weighed.drawn[0]],
            "value": _round(weighed.value[0]),
            "cosine": _round(weighed.near[0]),
            "weight": _round(weighed.weights[0]),
            "at": at(seen.candidates),
        },
        "own": {
            "action": _round(seen.own),
            "value": float(seen.own_value),
            "at": at(seen.own_embedding)[0],
        },
    }


def describe_run(trained: TrainedAgent) -> dict[str, Any]:
    """Name, label, environment and step of the run."""
    record = trained.record
    return {"name": trained.name, "label": record["label"], "env": record["env"], "step": trained.step}


def _round(x: np.ndarray) -> list[float]:
    return [float(f"{v:.6g}") for v in x]
