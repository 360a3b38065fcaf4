"""An actor is caught at the lower of two peaks; the points of Q3C find the higher one.

A bandit: one state, one action, and a reward with two peaks. TD3 and Q3C learn from the same uniform actions.
TD3's actor, and all points of Q3C's critics, begin at the lower peak. An actor follows the slope of Q, which
rises to this peak from both sides of it. Q3C's action is the highest of its points, which separation spreads.

    python examples/two_peaks.py --png two-peaks.png
"""

import argparse
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import qscape as qs
from qscape.types import Event, Transition

PEAKS = (-0.5, 1.0, 0.2), (0.6, 2.0, 0.2)  # where, how high, how wide
ACTIONS = 700
RATES = {"actor": 1e-4, "critic": 1e-3}  # the actor is slow, so that it meets critics that know the peaks
STATE = jnp.ones((1, 1))


class Learned(NamedTuple):
    """What a recipe learned.

    Attributes:
        start, end: the greedy action before and after learning.
        actions, q: a grid of actions, and Q of the first critic there.
        points: actions that the agent chooses from, and Q there.
    """

    start: float
    end: float
    actions: np.ndarray
    q: np.ndarray
    points: tuple[np.ndarray, np.ndarray]


def reward(action: jax.Array) -> jax.Array:
    """Return the reward [...] of actions [..., 1]."""
    bumps = [height * jnp.exp(-0.5 * ((action[..., 0] - at) / width) ** 2) for at, height, width in PEAKS]
    return jnp.stack(bumps).sum(0)


def move_to(state: Any, action: float) -> Any:
    """Return the agent's state with its actor, or with all points of its critics, near an action."""
    peak = np.arctanh(action)

    def move(layer: eqx.nn.Linear) -> eqx.nn.Linear:
        assert layer.bias is not None
        moved = 0.1 * layer.weight, 0.1 * layer.bias + peak
        return eqx.tree_at(lambda x: (x.weight, x.bias), layer, moved)

    if state.actor is not None:
        actor = eqx.tree_at(lambda net: net.head.out, state.actor, replace_fn=move)
        return state._replace(actor=actor, actor_target=actor)
    critics = [eqx.tree_at(lambda net: net.proposer.out, critic, replace_fn=move) for critic in state.critics]
    return state._replace(critics=critics, critics_target=critics)


def learn(recipe: str, seed: int = 0, updates: int = 1_500, begin: float = PEAKS[0][0]) -> Learned:
    """Learn the bandit from an action on, the lower peak; the recipe is td3 or q3c."""
    base: dict[str, Any] = {"batch_size": 64, "replay_capacity": 1_024, "warmup": 0}
    for net, rate in RATES.items():
        base |= {f"{net}_hidden": (32, 32), f"{net}_learning_rate": rate}
    base |= {"schedule_updates": updates} if recipe == "q3c" else {}
    agent = qs.agent(recipe, {"base": base}).on(qs.Spec(1, 1))
    layout, key = agent.layout(envs=1), jax.random.key(seed)

    # Every action ends an episode, so that Q is the reward.
    observations = jnp.ones((ACTIONS, 1, 1))
    action = jax.random.uniform(key, observations.shape, minval=-1.0)
    ends = jnp.ones((ACTIONS, 1), bool)
    rows = Transition(observations, action, reward(action), ends, ~ends, observations)

    @jax.jit
    def run(state: Any) -> Any:
        def insert(replay: Any, row: Any) -> Any:
            return agent.insert(layout, *replay, row), None

        (storage, index), _ = jax.lax.scan(insert, agent.init_replay(layout), rows)

        def update(_: Any, carry: Any) -> Any:
            return agent.update(layout, carry[0], storage, carry[1], key)[:2]

        return jax.lax.fori_loop(0, updates, update, (state, index))[0]

    @jax.jit
    def look(state: Any, actions: jax.Array) -> Any:
        acting, no = agent.acting(state), jnp.array(False)
        done, _, _ = agent.act(acting, None, STATE, jnp.zeros(1, bool), 0, key)
        proposals = agent.proposals(acting, STATE)[0]
        context = agent.functions(state, Event(state.updates, state.env_steps, no, no))
        q = [context.q(STATE, at)[0] for at in (actions, proposals)]
        return done[0, 0], q[0], proposals[:, 0], q[1]

    grid = jnp.linspace(-1.0, 1.0, 401)[:, None]
    before = move_to(agent.init(key), begin)
    start, *_ = look(before, grid)
    end, q, points, heights = map(np.asarray, look(run(before), grid))
    return Learned(float(start), float(end), np.asarray(grid[:, 0]), q, (points, heights))


def draw(found: dict[str, Learned], file: str) -> None:
    """Draw Q of every recipe, where its action began and where it ended."""
    from matplotlib.figure import Figure

    figure = Figure((9.0, 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for ax, (recipe, of) in zip(axes, found.items(), strict=True):
        ax.plot(of.actions, reward(of.actions[:, None]), color="0.6", ls="--", label="reward")
        ax.plot(of.actions, of.q, label="Q of the first critic")
        ax.plot(*of.points, "o", ms=4, color="tab:green", label="what it chooses from")
        ax.axvline(of.start, color="tab:red", ls=":", label="its action before")
        ax.axvline(of.end, color="tab:red", label="its action after")
        ax.set(title=recipe, xlabel="action")
    axes[0].set_ylabel("value")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--png", default="", help="file for a picture")
    options = parser.parse_args()
    found = {recipe: learn(recipe, options.seed, options.updates) for recipe in ("td3", "q3c")}
    for recipe, of in found.items():
        print(f"{recipe}: from {of.start:.2f} to {of.end:.2f}; the peaks are at -0.50 (1.0) and 0.60 (2.0)")
    if options.png:
        draw(found, options.png)


if __name__ == "__main__":
    main()
