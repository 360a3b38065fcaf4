"""The geometry that SAVGO has learned: do pairs of close value lie close, and which candidates count?

Of a run with `+savgo`: cosines of embeddings against differences of value over visited states; and of one
state its actions on the two main axes of their embeddings, with the candidates that the kernel weighs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qscape.errors import RunError, UsageError
from qscape.inspect.landscape import visited
from qscape.inspect.subject import Subject, of_run
from qscape.methods.savgo import SAVGO, Weighed
from qscape.offpolicy.agent import Agent
from qscape.offpolicy.state import State
from qscape.ops.geometry import rank_correlation
from qscape.ops.landscape import principal_axes
from qscape.run import saves
from qscape.run.evaluation import SEED, Rollout
from qscape.run.folder import newest_save
from qscape.types import Event, stream

EPISODES = 5  # whose states are visited
STATES = 128  # visited states; each gives a pair with the policy's own action and one with a random action
SHOWN = 3_000  # points of the scatter plot; the correlation is of all
ACTIONS = 1_000  # of one state, uniform over the action box


class Sight(NamedTuple):
    """What the networks say of N pairs of observation and action, and of one state."""

    embedding: Float[Array, "N H"]  # by the online encoder, unit vectors
    value: Float[Array, " N"]  # of the lesser slow critic; v2 of the method adds rewards
    own: Float[Array, " A"]  # the policy's action at the one state
    own_embedding: Float[Array, " H"]
    own_value: Float[Array, ""]
    weighed: Weighed  # the candidates of that state, [1, ...]
    candidates: Float[Array, "K H"]  # their embeddings by the online encoder


def measure(
    folder: Path | str, at: tuple[int, int] | None = None, states: int = STATES, seed: int = SEED
) -> dict[str, Any]:
    """All about the geometry of a run's newest save, as JSON-able numbers.

    Keys: what was measured (name, label, env, step); `rank_correlation`: Spearman's, of cosine and value
    difference over all pairs (-1: the geometry orders them perfectly); `gap_scale`: β; `exponent`: λ;
    `pairs`: cosine and difference of some of them; `state`: the episode and step looked at; `actions`: value
    and coordinates of actions drawn uniformly there; `candidates`: value, cosine to the policy's action,
    weight and coordinates of the K candidates; `parts`: value and coordinates of the policy's action;
    `explained`: the share of the embeddings' variance along each of the two axes.

    Args:
        at: episode and step of the one state; None: the middle of the first episode.

    Raises:
        UsageError: it was not trained with savgo, or there is no such step. RunError: no readable save.
    """
    subject = of_run(folder, current=True)
    agent = subject.agent
    if not isinstance(agent, Agent) or not isinstance(agent.policy_loss, SAVGO):
        raise UsageError(f"{folder} was trained without savgo and has no embedding; sac+savgo has one.")
    state = full_state(Path(folder), agent)
    rng, done = np.random.default_rng(seed), subject.rollouts(max(EPISODES, 1 + (at[0] if at else 0)), seed)
    episode, step = at or (0, len(done[0].action) // 2)
    obs, action = pairs(done, states, rng)
    here = visited(done, episode, step)
    drawn = rng.uniform(-1.0, 1.0, (ACTIONS, action.shape[1])).astype(np.float32)
    all_obs = np.concatenate([obs, np.broadcast_to(here, (ACTIONS, len(here)))])
    seen = jax.device_get(
        jax.jit(look, static_argnums=0)(agent, state, all_obs, np.concatenate([action, drawn]), here[None])
    )
    n = len(obs)
    return {
        **about(subject),
        **of_pairs(seen.embedding[:n], seen.value[:n], rng),
        "gap_scale": float(state.part_states["savgo"].extra.scale),
        "exponent": agent.policy_loss.exponent,
        # v2 compares r + γ q: rewards of actions that nobody took are unknown, and left out.
        "value_weight": 1.0 if agent.policy_loss.variant == "v1" else agent.base.discount,
        "state": [episode, step],
        **of_state(seen, n),
    }


def look(agent: Agent, state: State, obs: Array, action: Array, here: Array) -> Sight:
    """The networks at pairs `[N, S]`, `[N, A]`, and the kernel at the state `here` `[1, S]`."""
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
    weighed = part.weigh(dist, here, mode, own, context, stream(jax.random.key(0), "embedding"))
    there = jnp.broadcast_to(here, (part.candidates, here.shape[1]))
    return Sight(
        part.embed(encoder, obs, action),
        least(obs, action),
        mode[0],
        part.embed(encoder, here, mode)[0],
        least(here, mode)[0],
        weighed,
        part.embed(encoder, there, weighed.drawn[0]),
    )


def full_state(folder: Path, agent: Agent) -> State:
    """All that the run's newest full save holds: the encoder is no part of what acting needs.

    Raises:
        RunError: there is none.
    """
    path = newest_save(folder, "state")
    if path is None:
        raise RunError(
            f"{folder} has no save that holds its encoder; let it train on: qscape resume {folder}."
        )
    like = jax.eval_shape(agent.init, jax.random.key(0))
    return saves.read(path, {"state": like})[0]["state"]


def pairs(done: list[Rollout], states: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Visited observations [2 N, S], each with the policy's action and with a random one [2 N, A]."""
    obs = np.concatenate([r.observation for r in done])
    action = np.concatenate([r.action for r in done])
    chosen = rng.choice(len(obs), min(states, len(obs)), replace=False)
    obs, action = obs[chosen], action[chosen]
    drawn = rng.uniform(-1.0, 1.0, action.shape).astype(np.float32)
    return np.concatenate([obs, obs]), np.concatenate([action, drawn])


def of_pairs(z: np.ndarray, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Cosine against difference of value."""
    i, j = np.triu_indices(len(z), 1)
    cosine, gap = (z @ z.T)[i, j], np.abs(value[i] - value[j])
    some = rng.choice(len(i), min(SHOWN, len(i)), replace=False)
    return {
        "rank_correlation": float(rank_correlation(jnp.asarray(cosine), jnp.asarray(gap))),
        "pairs": {"cosine": _numbers(cosine[some]), "difference": _numbers(gap[some])},
    }


def of_state(seen: Any, n: int) -> dict[str, Any]:
    """One state's actions on the two main axes of their embeddings. `seen`: a `Sight` of numpy arrays, whose
    first n pairs are not of that state."""
    z = seen.embedding[n:].astype(float)
    axes, centre = principal_axes(z, 2), z.mean(0)
    variance = np.square((z - centre) @ axes.T).mean(0) / np.square(z - centre).sum(1).mean()

    def at(points: np.ndarray) -> list[list[float]]:
        return [_numbers(row) for row in (np.atleast_2d(points) - centre) @ axes.T]

    weighed = seen.weighed
    return {
        "explained": _numbers(variance),
        "actions": {"value": _numbers(seen.value[n:]), "at": at(z)},
        "candidates": {
            "action": [_numbers(a) for a in weighed.drawn[0]],
            "value": _numbers(weighed.value[0]),
            "cosine": _numbers(weighed.near[0]),
            "weight": _numbers(weighed.weights[0]),
            "at": at(seen.candidates),
        },
        "own": {
            "action": _numbers(seen.parts),
            "value": float(seen.own_value),
            "at": at(seen.own_embedding)[0],
        },
    }


def about(subject: Subject) -> dict[str, Any]:
    """What was looked at."""
    record = subject.record
    return {"name": subject.name, "label": record["label"], "env": record["env"], "step": subject.step}


def _numbers(x: np.ndarray) -> list[float]:
    return [float(f"{v:.6g}") for v in x]
