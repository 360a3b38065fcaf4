"""Agents learn environments of which the right Q and the best action are known, each in a few seconds."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow, slow_except

from qscape import agents
from qscape.envs import make
from qscape.envs.probes import PROBES, ProbeTimeLimit
from qscape.run.evaluation import evaluate
from qscape.run.plan import Plan
from qscape.run.session import Session
from qscape.run.training import make_session
from qscape.types import Event

DISCOUNT = 0.8
NETS = {"actor_hidden": (32, 32), "critic_hidden": (32, 32), "batch_size": 64}
SETTINGS = {
    "base": NETS
    | {
        "discount": DISCOUNT,
        "warmup": 100,
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
        "sync_every": 10,
        "replay_capacity": 4096,
    },
    "polyak": {"rate": 0.1},
    "sale": {"width": 32, "hidden": (32,), "learning_rate": 3e-3},
    "soft": {"initial_temperature": 0.01},
    "c51": {"low": -8.0, "high": 8.0, "atoms": 65},
    "hl_gauss": {"low": -8.0, "high": 8.0, "atoms": 65},
    "droq": {"rate": 0.001},
}
STEPS = 1_000


def learn(recipe: str, env, steps: int = STEPS, settings=SETTINGS) -> Session:
    """A trainer that made its steps on an environment."""
    settings = {name: own for name, own in settings.items() if name in ("base", *agents.build(recipe).parts)}
    plan = Plan(recipe, str(env), steps, settings=settings, eval_every=0)
    trainer = make_session(plan, agents.build(recipe, settings), make(env))
    for _ in trainer.events(steps):
        pass
    assert trainer.updates > 0.8 * steps
    return trainer


def values(trainer: Session, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Every critic's value `[B, critics]` of observations and actions `[B]`."""
    counters = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.array(False), jnp.array(False)
    context = trainer.agent.functions(trainer.learner.state, Event(*counters))
    return np.stack(context.q(jnp.float32(observation)[:, None], jnp.float32(action)[:, None]), -1)


def choices(trainer: Session, observation: np.ndarray) -> np.ndarray:
    """The deterministic policy's actions `[B]`."""
    obs, first = np.float32(observation)[:, None], np.ones(len(observation), bool)
    return np.asarray(
        trainer.learner.programs.act(trainer.learner.acting, None, obs, first, 0, trainer.learner.seeds.key)[
            0
        ]
    )[:, 0]


@pytest.mark.parametrize("recipe", ["td3", slow("sac"), slow("td7")])
@pytest.mark.parametrize("probe", PROBES)
def test_probe(recipe, probe):
    check_probe(recipe, probe)


def check_probe(recipe: str, probe: str, settings=SETTINGS) -> None:
    """Checks Q and the policy of an agent that learned an environment."""
    trainer, kind = learn(recipe, probe, settings=settings), PROBES[probe]
    shown = np.unique(
        np.asarray(trainer.learner.storage)[: int(trainer.learner.carry.replay_state.size[0]), 0]
    )
    observation, action = (x.ravel() for x in np.meshgrid(shown, np.linspace(-0.9, 0.9, 7)))
    known = kind.q(observation, action, DISCOUNT)
    found = values(trainer, observation, action)
    np.testing.assert_allclose(found, np.stack([known] * found.shape[1], -1), rtol=0.03, atol=0.08)
    if kind.best_action(shown) is not None:
        np.testing.assert_allclose(choices(trainer, shown), kind.best_action(shown), atol=0.1)


KINDS = ("td3+c51", "td3+hl_gauss", "td3+quantile", "tqc", "sac+droq", "sac+redq")
KINDS += ("td3+c51+own_target", "td3+quantile+mean_target", "sac+simba", "sac+bronet")


QUICK = ("td3+c51", "qscape/ProbeDiscount-v0")


CASES = [*itertools.product(KINDS, PROBES)]
TWICE = [case for case in CASES if case != QUICK and case[0] in ("sac+redq", "td3+c51+own_target")]


@pytest.mark.parametrize("case", slow_except([QUICK], CASES, TWICE), ids=" ".join)
def test_probe_of_critics_of_other_kinds(case):
    recipe, probe = case
    fewer = {"updates_per_step": 2.0, "policy_delay": 2} if recipe.endswith(("redq", "droq")) else {}
    check_probe(recipe, probe, SETTINGS | {"base": SETTINGS["base"] | fewer})


class Cut(ProbeTimeLimit):
    """The time limit told as a real end: what an agent sees that cuts the bootstrap at truncation."""

    def move(self):
        return super().move()[::-1]


def test_a_bootstrap_cut_at_the_time_limit_would_be_seen():
    found = values(learn("td3", Cut), np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(found, 1 / (1 - DISCOUNT * 5 / 7), rtol=0.2)
    assert found.max() < 0.6 / (1 - DISCOUNT), "far from what the probe asks for"


LEARNERS = ("sac", "fast_td3", "fast_sac", "crossq", "tqc", "droq")
LONG_LEARNERS = ("simba", "simbav2", "bro", "crossq_wn", "xqc", "redq")


@pytest.mark.parametrize("recipe", slow_except((), LEARNERS + LONG_LEARNERS, LONG_LEARNERS))
def test_pendulum_is_learned(recipe):
    base = {"actor_hidden": (64, 64), "critic_hidden": (64, 64), "batch_size": 64, "warmup": 500}
    base |= {"actor_learning_rate": 2e-3, "critic_learning_rate": 2e-3, "replay_capacity": 5_000}
    base |= {"updates_per_step": 1.0, "schedule_updates": 5_000}
    settings = {"base": base, "soft": {"learning_rate": 2e-3}}
    if recipe.startswith("fast"):  # the others scale rewards
        settings["c51"] = {"low": -1600.0, "high": 0.0}
    trainer, adapter = learn(recipe, "Pendulum-v1", 5_000, settings), make("Pendulum-v1", 10)
    learned = [
        episode.ret for episode in evaluate(trainer.learner.programs, trainer.learner.acting, adapter, 10)
    ]

    rng, chance = np.random.default_rng(0), []
    adapter.reset()
    while len(chance) < 10:
        chance += [episode.ret for episode in adapter.step(rng.uniform(-1, 1, (10, 1))).finished]
    assert np.mean(chance) < -900
    assert np.mean(learned) > -500
    assert max(chance) < np.median(learned)
