"""The PPO contenders learn once from every rollout; each runs where its library is installed."""

import importlib

import pytest

from peers import MODULES, ON_POLICY, PPOTask

LIBRARIES = {"sb3": "stable_baselines3", "qscape_": "qscape"}


@pytest.mark.parametrize("name", [name for name in ON_POLICY if "tuned" in name])
def test_an_update_after_every_rollout(name, monkeypatch):
    pytest.importorskip(LIBRARIES[MODULES[name]])
    module = importlib.import_module(f"peers.{MODULES[name]}")
    if MODULES[name] == "qscape_":
        monkeypatch.setattr(module, "NATIVE", 512)
    contender = module.build(name)
    assert contender.every == PPOTask.of(name).rollout == 256
    assert contender.updates() == 0
    for times in (1, 2):
        contender.advance(512)
        assert contender.updates() == 2 * times
