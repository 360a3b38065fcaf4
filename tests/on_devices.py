"""Train on four devices of the host and on one; print how they differ as JSON.

`python tests/on_devices.py CASE` runs in a process of its own, because the number of host devices is fixed
when JAX starts.
"""

import json
import os
import re
import sys
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

COUNT = 4
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={COUNT}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from test_contract import QUICK  # noqa: E402
from test_native_offpolicy import Line  # noqa: E402

from qscape import agents  # noqa: E402
from qscape.envs.cartpole import CartPole  # noqa: E402
from qscape.envs.native import JaxEnv  # noqa: E402
from qscape.errors import UsageError  # noqa: E402
from qscape.ops.devices import on_each_device  # noqa: E402
from qscape.replay import storage  # noqa: E402
from qscape.run import devices, scan, scan_rollouts  # noqa: E402

E, BATCH, KEY = 8, 32, jax.random.key(0)
HIDDEN = {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}
LEARNER = {**HIDDEN, "batch_size": BATCH, "replay_capacity": E * 2_000, "warmup": 16}
# Rings that wrap around, pads between episodes, sums over rows, moments of observations.
ROWS = {"replay_capacity": E * 12, "next_observation": "derived", "n_step": 3}
SMALL_SALE = {"width": 16, "hidden": (16, 16), "input_width": 16}
OFFPOLICY = {
    "td3": ("td3", {}),
    "sac": ("sac", {}),
    "td7": ("td3+sale+lap+periodic+value_clip", {"base": {"sync_every": 10}, "sale": SMALL_SALE}),
    "rows": ("td3+normalise+reward_scale", {"base": ROWS}),
    "half": ("td3", {"base": {**ROWS, "replay_observations": "bfloat16"}}),
}
ONPOLICY = {"ppo": ("ppo", {"base": {"rollout": 128, "batch_size": BATCH, "passes": 2}}), "a2c": ("a2c", {})}


def train_offpolicy(name: str) -> dict[str, Any]:
    recipe, settings = OFFPOLICY[name]
    env = Line()
    settings = {**settings, "base": {**LEARNER, **settings.get("base", {})}}
    agent = agents.build(recipe, settings).on(scan.spec_of(env))
    counts = np.array([0, 0, *[2] * 18], np.int32).reshape(4, 5)  # two steps of warm-up
    begin, further = partial(scan.start, agent, envs=E), partial(scan.run_steps, agent)
    result = compare(env, begin, further, [(row,) for row in counts])
    layout, n = agent.layout(E), agent.base.n_step
    # A row; for derived observations also whether it is valid, the ends of n rows, and what follows the last.
    columns = (
        layout.width if layout.stores_next else layout.width + 1 + 3 * n + layout.slices["observation"].stop
    )
    return result | {"read": 4 * BATCH * columns}


def train_onpolicy(name: str) -> dict[str, Any]:
    recipe, settings = ONPOLICY[name]
    env = CartPole()
    spec = scan.spec_of(env, index_actions=True)
    agent = agents.build(recipe, {"base": {**HIDDEN, **settings.get("base", {})}}).on(spec)
    begin = partial(scan_rollouts.start, agent, envs=E)
    further = partial(scan_rollouts.run_updates, agent, updates=2, total=8)
    rollout = -(-agent.base.rollout // E) * E
    return compare(env, begin, further, [()] * 4) | {"observations": 4 * rollout * spec.observation_size}


def compare(env: JaxEnv, begin: Any, further: Any, chunks: list[tuple]) -> dict[str, Any]:
    """Make the same run on one device and on four, and look at the program for four."""
    quick = {"compiler_options": QUICK}
    start = jax.jit(begin, **quick)
    one = start(env, KEY)
    alone = jax.jit(further, **quick)
    for chunk in chunks:
        one, _ = alone(env, one, KEY, *chunk)

    mesh = devices.make_mesh(COUNT, E, BATCH)
    run = devices.jit_on(mesh, begin, **quick)(env, KEY)
    traced = []

    def traced_further(*args: Any) -> Any:
        traced.append(args)
        return further(*args)

    program = devices.jit_on(mesh, traced_further, donate_argnums=1, **quick)
    text = program.lower(env, run, KEY, *chunks[0]).compile().as_text()
    reused = []
    for chunk in chunks:
        before = jax.tree.leaves(run)
        run, _ = program(env, run, KEY, *chunk)
        reused.append(all(leaf.is_deleted() for leaf in before))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run)
    return {
        "difference": difference(one, run),
        "learned": difference(networks(start(env, KEY)), networks(one)),
        "traced": len(traced),
        "compiled": program.compiled,
        "reused": all(reused),
        "kept": shardings == devices.shard_run(run, mesh),
        "split": sorted({leaf.sharding.spec == P("envs") for leaf in jax.tree.leaves(run)}),
        "collectives": collectives(text),
        "gradients": 4 * sum(leaf.size for leaf in jax.tree.leaves(networks(run))),
    }


def networks(run: Any) -> Any:
    """Return the networks that gradients move."""
    state = run.state
    if isinstance(run, scan_rollouts.RolloutRun):
        return state.networks
    parts = [(part.params, part.actor_params) for part in state.part_states.values()]
    return state.actor, state.critics, parts


def difference(one: Any, other: Any) -> float:
    """Return the largest |a - b| / (|a| + 0.01) over all numbers of two trees."""
    found = []
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.float64(a), np.float64(b)
        assert a.shape == b.shape
        assert (np.isnan(a) == np.isnan(b)).all()
        found.append(np.nanmax(np.abs(a - b) / (np.abs(a) + 0.01), initial=0.0))
    return float(max(found))


SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def collectives(text: str) -> list[tuple[str, int]]:
    """Return what devices send each other in a compiled program: operations, and the bytes of results."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = []
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        found.append((kind, sum(SIZES[t] * prod(int(n) for n in s.split(",") if n) for t, s in arrays)))
    return found


def refuse() -> dict[str, Any]:
    """Return the errors of meshes that cannot be."""

    def error(*args: int) -> str:
        try:
            devices.make_mesh(*args)
        except UsageError as problem:
            return str(problem)
        return ""

    return {"envs": error(4, 6, 32), "batch": error(4, 8, 30), "count": error(5, 10), "fits": error(4, 8, 32)}


def save(observations: str) -> dict[str, Any]:
    """Read split storage in pieces, and put the pieces into split storage again."""
    layout = storage.Layout(2, 1, (), True, E, E * 11, observations)
    shape = E * 11, layout.width
    rows = jnp.arange(prod(shape), dtype=layout.dtype).reshape(shape)
    mesh = devices.make_mesh(COUNT, E)
    split = NamedSharding(mesh, P("envs"))
    wanted = list(storage.pieces(layout, rows, 7, 4 * 4 * layout.width))
    pieces = list(storage.pieces(layout, jax.device_put(rows, split), 7, 4 * 4 * layout.width))
    again = storage.restored(layout, 7, pieces, split)
    whole = np.asarray(again).reshape(E, 11, -1)
    return {
        "pieces": all(np.array_equal(a, b) for a, b in zip(wanted, pieces, strict=True)),
        "restored": bool(np.array_equal(whole[:, :7], np.asarray(rows).reshape(E, 11, -1)[:, :7])),
        "rest": float(whole[:, 7:].max()),
        "split": again.sharding == split,
    }


def iterate() -> dict[str, Any]:
    """Run a loop whose length depends on the row, as solvers in simulators do."""

    def halve(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, x)

    x = jnp.arange(8.0)
    mesh = devices.make_mesh(COUNT, E)
    split = NamedSharding(mesh, P("envs"))
    found = {}
    for name, function in (("all", jax.vmap(halve)), ("each", partial(on_each_device, jax.vmap(halve)))):
        with jax.set_mesh(mesh):
            program = jax.jit(function, out_shardings=split).lower(jax.device_put(x, split)).compile()
        same = np.array_equal(program(jax.device_put(x, split)), jax.vmap(halve)(x))
        found[name] = {"same": bool(same), "collectives": len(collectives(program.as_text()))}
    return found


if __name__ == "__main__":
    case = sys.argv[1]
    if case in OFFPOLICY:
        answer = train_offpolicy(case)
    elif case in ONPOLICY:
        answer = train_onpolicy(case)
    else:
        answer = {
            "refuse": refuse(),
            "save": {kind: save(kind) for kind in ("float32", "bfloat16")},
            "iterate": iterate(),
        }
    print(json.dumps(answer))
