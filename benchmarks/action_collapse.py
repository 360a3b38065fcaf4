"""Compare action layers on JAX-native environments, with all seeds of a head in one compiled program.

    python benchmarks/action_collapse.py cliff     # Ideal Cliff Walking: metrics of collapse over training
    python benchmarks/action_collapse.py enumerate # the same with exact gradients: no rollouts
    python benchmarks/action_collapse.py cartpole  # CartPole: steps to a mean return of 475, up to 200,000
    python benchmarks/action_collapse.py cartpole --seeds 50 --algorithms reinforce --out FILE \
        --heads learnable "learnable, projector and ball" etf "fixed_orthogonal, energy of ETF"

Writes benchmarks/results/action_collapse/NAME.json or FILE: the settings, and one row for each head,
algorithm, seed and measurement. The script averages nothing. It keeps finished parts in runs/action_collapse,
so an interrupted run continues from there.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qscape import agents
from qscape.envs.cartpole import CartPole
from qscape.envs.cliff import IdealCliffWalking
from qscape.onpolicy.agent import Agent
from qscape.ops.collapse import action_collapse
from qscape.run import scan, scan_rollouts
from qscape.run.folder import origin

PLACE = Path(__file__).parent / "results" / "action_collapse"
DONE = Path("runs/action_collapse")
Rows = list[dict[str, Any]]
BRANCH = {"projector": "linear", "bound": "ball"}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {  # parts added to the base, and their settings
    "learnable": ("", {}),
    "learnable, projector and ball": ("", {"learnable": BRANCH}),
    "etf": ("+etf", {}),
    "etf, no bound": ("+etf", {"etf": {"bound": "none"}}),
    "fixed_gaussian": ("+fixed_gaussian", {}),
    "fixed_orthogonal": ("+fixed_orthogonal", {}),
    "fixed_orthogonal, energy of ETF": ("+fixed_orthogonal", {"fixed_orthogonal": {"centred": True}}),
    "cosine": ("+cosine", {}),
}
ALGORITHMS = ["reinforce", "ppo"]
ENVS = 8
SOLVED, LAST = 475.0, 100  # a seed is solved at this mean return over this many episodes


def build(recipe: str, head: str, env: Any, **settings: Any) -> Agent:
    """Build the agent of a base and a head, bound to its environment."""
    added, of_head = HEADS[head]
    agent = agents.build(recipe + added, settings | of_head)
    assert isinstance(agent, Agent)
    return agent.on(scan.spec_of(env, index_actions=True))


def once(name: str, make: Callable[[], Rows]) -> Rows:
    """Return the rows of `make`, or the stored rows of an earlier call with the same name."""
    file = DONE / f"{name}.json"
    if not file.exists():
        begun, rows = time.perf_counter(), make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    return json.loads(file.read_text())


def cliff(heads: list[str], seeds: int, updates: int, moments: int) -> dict[str, Any]:
    """Run REINFORCE on Ideal Cliff Walking with some heads."""
    asked, rows = f"cliff-{seeds}x{updates}/{moments}", []
    for head in heads:
        rows += once(f"{asked}/{head}", partial(cliff_of, head, seeds, updates, moments))
    return {"environment": "cliff/IdealCliffWalking-v0", "updates": updates, "rows": rows}


def cliff_of(head: str, seeds: int, updates: int, moments: int) -> Rows:
    """Train all seeds of one head in one program, and measure collapse at `moments` points of training."""
    env, rows = IdealCliffWalking(), []
    keys = jax.random.split(jax.random.key(0), seeds)
    agent = build("reinforce", head, env, base={"rollout": 100 * ENVS})
    each = updates // moments
    run = jax.jit(jax.vmap(partial(scan_rollouts.start, agent, env, envs=ENVS)))(keys)
    go = partial(scan_rollouts.run_updates, agent, env, updates=each, total=updates)
    further = jax.jit(jax.vmap(go), donate_argnums=0)
    look = look_at_cells(agent)
    for moment in range(1, moments + 1):
        run, history = further(run, keys)
        for seed, found in enumerate(measure_cells(agent, env, run.state, look)):
            about = {"env_steps": int(run.state.env_steps[seed])}
            about |= {"return": float(jnp.nanmean(history.returned[seed][-50:]))}
            rows += [{"head": head, "seed": seed, "update": moment * each} | about | found]
    return rows


def look_at_cells(agent: Agent) -> Callable[[Any], Any]:
    """Return a compiled function from the states of all seeds to their distributions in the eight cells."""
    return jax.jit(jax.vmap(lambda state: agent.get_distribution(agent.acting(state), jnp.eye(8))))


def measure_cells(agent: Agent, env: IdealCliffWalking, states: Any, look: Callable) -> Rows:
    """Measure collapse in the eight cells and whether the greedy policy is right in all, for each seed."""
    best, dist, rows = env.optimal_q(0.95).argmax(1), look(states), []
    for seed, features in enumerate(np.asarray(dist.features)):
        state = jax.tree.map(lambda x, seed=seed: x[seed], states)
        w = np.asarray(agent.head.action_layer(state.networks.head, state.part_states.get(agent.head.name)))
        found = {
            centre: action_collapse(features, best, w, centre)._asdict() for centre in ("classes", "samples")
        }
        rows += [{"solved": bool((np.asarray(dist.mode())[seed, :, 0] == best).all())} | found]
    return rows


def enumerated(heads: list[str], seeds: int, updates: int, moments: int) -> dict[str, Any]:
    """Ascend the exact policy gradient on Ideal Cliff Walking with some heads."""
    asked, rows = f"enumerate-{seeds}x{updates}/{moments}", []
    for head in heads:
        rows += once(f"{asked}/{head}", partial(enumerated_of, head, seeds, updates, moments))
    return {"environment": "cliff/IdealCliffWalking-v0", "updates": updates, "rows": rows}


def enumerated_of(head: str, seeds: int, updates: int, moments: int) -> Rows:
    """Train all seeds of one head by Σ_s 1/8 Σ_a ∇π(a|s) Q^π(s, a): all eight cells, exact Q, no rollouts."""
    env, rows = IdealCliffWalking(), []
    agent = build("reinforce", head, env)
    optimiser, each = agent.base.make_optimiser(), updates // moments

    def objective(actor: Any, state: Any) -> Any:
        probabilities = jax.nn.softmax(agent.distribution(state.part_states, actor, jnp.eye(8)).logits)
        q = jax.lax.stop_gradient(env.policy_q(probabilities, agent.base.discount))
        return -(probabilities * q).sum(1).mean()

    def step(carry: tuple, _: None) -> tuple:
        state, moments = carry
        actor = (state.networks.torso, state.networks.head)
        direction, moments = optimiser.update(jax.grad(objective)(actor, state), moments)
        torso, layers = jax.tree.map(lambda p, d: p - agent.base.learning_rate * d, actor, direction)
        return (state._replace(networks=state.networks._replace(torso=torso, head=layers)), moments), None

    def begin(key: Any) -> tuple:
        state = agent.init(key)
        return state, optimiser.init((state.networks.torso, state.networks.head))

    carry = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.key(0), seeds))
    further = jax.jit(jax.vmap(lambda carry: jax.lax.scan(step, carry, None, each)[0]))
    look = look_at_cells(agent)
    for moment in range(1, moments + 1):
        carry = further(carry)
        found = measure_cells(agent, env, carry[0], look)
        rows += [{"head": head, "seed": i, "update": moment * each} | row for i, row in enumerate(found)]
    return rows


def cartpole(heads: list[str], algorithms: list[str], seeds: int, steps: int) -> dict[str, Any]:
    """Run some algorithms on CartPole with some heads."""
    asked, rows = f"cartpole-{seeds}x{steps}", []
    for base in algorithms:
        for head in heads:
            found = once(f"{asked}/{base}, {head}", partial(cartpole_of, base, head, seeds, steps))
            rows += [row | {"solved_at": find_solved(**row["curve"])} for row in found]
    return {"environment": "jax/CartPole-v1", "steps": steps, "rows": rows}


def cartpole_of(base: str, head: str, seeds: int, steps: int) -> Rows:
    """Train all seeds of one algorithm and head in one program."""
    env, rows = CartPole(), []
    keys = jax.random.split(jax.random.key(0), seeds)
    agent = build(base, head, env)
    updates = 50 if base == "reinforce" else steps // agent.base.rollout // 4
    run = jax.jit(jax.vmap(partial(scan_rollouts.start, agent, env, envs=ENVS)))(keys)
    total = 10**9 if base == "reinforce" else steps // agent.base.rollout
    go = partial(scan_rollouts.run_updates, agent, env, updates=updates, total=total)
    further, told = jax.jit(jax.vmap(go), donate_argnums=0), []
    while not told or min(told[-1].env_steps[:, -1]) < steps:
        run, history = further(run, keys)
        told.append(jax.tree.map(np.asarray, history))
    for seed in range(seeds):
        before, returned, episodes = (
            np.concatenate([getattr(h, name)[seed] for h in told])
            for name in ("env_steps", "returned", "episodes")
        )
        within = (before < steps) & (episodes > 0)
        if base == "reinforce":  # it learns from whole episodes, and each step of one returns 1
            learned = np.cumsum(np.rint(returned * episodes)).astype(int)
        else:
            learned = before + agent.base.rollout
        curve = {"steps": learned, "return": np.round(returned, 2), "episodes": episodes}
        curve = {name: column[within].tolist() for name, column in curve.items()}
        rows += [{"algorithm": base, "head": head, "seed": seed, "curve": curve}]
    return rows


def find_solved(steps: list[float], episodes: list[int], **other: list[float]) -> int | None:
    """Find the step at which one seed was solved; None: it never was.

    A seed is solved when the mean return of its last 100 sampled episodes reaches 475.

    Args:
        steps: steps that were learned from, up to the end of each rollout.
        episodes: number of the episodes in each rollout.
        other: "return", the mean return of these episodes.
    """
    returned, counted = np.array(other["return"]), np.array(episodes)
    for end in range(1, len(returned) + 1):
        back = np.cumsum(counted[:end][::-1])
        if back[-1] < LAST:
            continue
        window = int(np.searchsorted(back, LAST)) + 1  # fewest last rollouts with LAST episodes
        last = slice(end - window, end)
        if np.average(returned[last], weights=counted[last]) >= SOLVED:
            return int(steps[end - 1])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cliff", "enumerate", "cartpole"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=4_000, help="of Ideal Cliff Walking")
    parser.add_argument("--moments", type=int, default=20, help="at which collapse is measured")
    parser.add_argument("--steps", type=int, default=200_000, help="of CartPole")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=[*HEADS])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS, help="on CartPole")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.what == "cliff":
        found = cliff(given.heads, given.seeds, given.updates, given.moments)
    elif given.what == "enumerate":
        found = enumerated(given.heads, given.seeds, given.updates, given.moments)
    else:
        found = cartpole(given.heads, given.algorithms, given.seeds, given.steps)
    file = given.out or PLACE / f"{given.what}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    heads = {name: [*HEADS[name]] for name in given.heads}
    about = origin() | {"envs": ENVS, "heads": heads, "command": shlex.join(["python", *sys.argv])}
    file.write_text(json.dumps(about | found, separators=(",", ":")) + "\n")
    print(file)


if __name__ == "__main__":
    main()
