"""Runs of SAVO as its authors released it: they learn, and go on to the bit after a stop."""

from typing import Any

import jax
import numpy as np
import pytest
from rows import slow
from tiny import assert_same_run, metrics, numbers

import qscape as qs
from qscape.run import events as ev

STEPS, WARMUP = 600, 200
SMALL = {"batch_size": 16, "replay_capacity": 2_000}
NARROW = SMALL | {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}
EVERY_SECOND = {"updates_per_step": 0.5}  # the preset's .02 would be 8 updates in 400 steps


def plan(env: str, steps: int, base: dict[str, Any], **more: Any) -> qs.Plan:
    """A run with the preset, of which `base` replaces settings."""
    return qs.Plan("td3+savo", env, steps, preset="released", settings={"base": base}, **more)


def networks(state: Any) -> dict[str, list[Any]]:
    """All that learns: its numbers by kind, network by network."""
    kinds = {"actors": state.actor, "critics": state.critics}
    kinds |= {"surrogates": state.part_states["savo"].params}
    return {kind: [jax.tree.map(np.array, net) for net in nets] for kind, nets in kinds.items()}


@pytest.mark.parametrize(
    ("env", "updates", "surrogates", "base"),
    [
        ("restricted/InvertedPendulum-v1", STEPS - WARMUP, 2, NARROW),
        slow("Hopper-v5", STEPS - WARMUP, 2, SMALL),
        slow("mineworld/MineWorld-v1", (STEPS - WARMUP) // 2, 3, NARROW | EVERY_SECOND),
        ("recsim/500-v1", (STEPS - WARMUP) // 2, 3, NARROW | EVERY_SECOND),
    ],
)
def test_the_preset_learns(env, updates, surrogates, base, tmp_path):
    """All actors, critics and surrogates move; one row has the preset's networks."""
    asked = plan(env, STEPS, base | {"warmup": WARMUP}, eval_every=STEPS, eval_episodes=2, log_every=50)
    began: list[Any] = []
    *_, end = qs.train(asked, tmp_path, on_trainer=lambda t: began.extend([t, networks(t.learner.state)]))
    assert isinstance(end, ev.Ended)
    assert (end.updates, end.interrupted) == (updates, False)
    trainer, before = began
    part = trainer.agent.selector
    assert (part.film, part.list_length, part.raw_vectors) == ("released", 3, surrogates == 3)

    after = networks(trainer.learner.state)
    assert [len(nets) for nets in after.values()] == [3, 2, surrogates]
    for kind, nets in after.items():
        for number, (net, was) in enumerate(zip(nets, before[kind], strict=True)):
            for new, old in zip(jax.tree.leaves(net), jax.tree.leaves(was), strict=True):
                assert np.isfinite(new).all()
                assert (new != old).any(), f"{kind}, number {number}"

    lines = [line for line in metrics(tmp_path) if line["step"] > WARMUP + 50]
    assert len(lines) >= 7
    for line in lines:
        losses = [line[f"{kind}_loss"] for kind in ("actor", "critic", "surrogate")]
        assert np.isfinite(losses).all()
        assert min(losses[1:]) > 0, "squared errors"


@pytest.mark.parametrize(
    ("env", "loop", "base"),
    [
        ("restricted/InvertedPendulum-v1", "host", {}),
        ("recsim/500-v1", "host", EVERY_SECOND),
        slow("recsim/500-v1", "compiled", EVERY_SECOND),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(env, loop, base, tmp_path):
    """It is asked to stop by its first save, half-way; noise, session and budget go on, too."""
    pace = {"eval_every": 60, "eval_episodes": 2, "log_every": 37, "save_every": 75, "milestones": 1.0}
    asked = plan(env, 150, NARROW | {"warmup": 30} | base, loop=loop, **pace)
    one, other = tmp_path / "whole", tmp_path / "resumed"
    list(qs.train(asked, one))
    stopped: list[Any] = []
    for event in qs.train(asked, other, on_trainer=stopped.append):
        if isinstance(event, ev.Saved):
            stopped[0].stop()
    assert 75 <= numbers(other)["env_steps"] < 100
    assert 0 < numbers(other)["updates"] < numbers(one)["updates"]
    list(qs.resume(other))
    assert_same_run(one, other)
