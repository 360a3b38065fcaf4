"""Masks and candidate sets: packing, the search of valid rows, masked distributions, and whole runs."""

import dataclasses
import sys
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from rows import slow, slow_except
from tiny import assert_same_run, settings, stop_at

import qscape as qs
from qscape.cli import main
from qscape.envs import make as make_adapter
from qscape.envs.masks import MaskReader
from qscape.envs.recsim import RecSim, RecSimEnv, greedy
from qscape.errors import RunError, UsageError
from qscape.inspect.collapse import LabelledStates, measure_policy
from qscape.inspect.landscape import SurveyedState
from qscape.inspect.survey import Surveyor
from qscape.masks import ActionMask
from qscape.model import Policy
from qscape.nets.distributions import Categorical
from qscape.nets.heads import unsnap
from qscape.offpolicy.sockets import bind_critics, bind_network
from qscape.offpolicy.update import Stage, _fixed_targets, _look_ahead
from qscape.ops import landscape
from qscape.ops.collapse import action_collapse
from qscape.ops.nearest import ActionTable
from qscape.replay.storage import rows_at
from qscape.run import Plan, resume, train
from qscape.run.policy import LoadedPolicy, make_programs
from qscape.run.scan import spec_of
from qscape.run.scan import train as scan_train
from qscape.types import Batch, Event, Spec


def draw_masks(rng, count, actions):
    """Random masks, from a single valid action to all of them."""
    share = rng.uniform(0, 1, (count, 1))
    valid = rng.uniform(size=(count, actions)) < share
    valid[np.arange(count), rng.integers(actions, size=count)] = True
    return valid


@pytest.mark.parametrize("bits", [24, 8])
@pytest.mark.parametrize("actions", [1, 8, 24, 25, 100])
def test_packed_bits_hold_every_mask(bits, actions):
    mask, valid = ActionMask(actions, bits=bits), draw_masks(np.random.default_rng(0), 50, actions)
    words = mask.pack(valid)
    assert words.dtype == np.float32
    expected = [[sum(2**i for i in range(bits) if w * bits + i < actions and row[w * bits + i])
                 for w in range(words.shape[1])] for row in valid]  # fmt: skip
    assert (words == np.array(expected)).all()
    assert (np.asarray(mask.pack(jnp.asarray(valid))) == words).all()
    assert (np.asarray(mask.unpack(jnp.asarray(words))) == valid).all()
    assert np.isnan(mask.pack(np.zeros((1, actions), bool))).all()


def test_an_index_that_is_given_twice_counts_once():
    mask = ActionMask(50, candidates=2)
    for kind in (np.array, jnp.array):
        np.testing.assert_array_equal(mask.pack_rows(kind([[1, 1, 2], [7, 7, 7]])), [[1, 2], [7, 7]])


def test_candidates_are_sorted_and_filled_up():
    mask = ActionMask(50, candidates=4)
    words = mask.pack_rows(np.array([[7, 3, -1, 7, 20], [49, -1, -1, -1, -1]]))
    index, valid = mask.members(jnp.asarray(words))
    held = [set(np.asarray(i)[np.asarray(v)].tolist()) for i, v in zip(index, valid, strict=True)]
    assert held == [{3, 7, 20}, {49}]
    assert np.flatnonzero(np.asarray(mask.unpack(jnp.asarray(words)))[0]).tolist() == [3, 7, 20]
    assert np.isnan(mask.pack_rows(np.full((1, 4), -1))).all()


@pytest.mark.parametrize("candidates", [None, 30])
def test_random_actions_are_valid_and_uniform(candidates):
    mask = ActionMask(30, candidates)
    valid = np.zeros(30, bool)
    valid[[2, 3, 29]] = True
    words = jnp.asarray(np.tile(mask.pack(valid), (3000, 1)))
    counts = np.bincount(np.asarray(mask.sample(words, jax.random.key(0))[..., 0]), minlength=30)
    assert (np.flatnonzero(counts) == [2, 3, 29]).all()
    assert (abs(counts[[2, 3, 29]] - 1000) < 120).all()  # 4.6 standard deviations


def nearest_by_hand(rows, x, valid, k):
    """The k nearest valid rows by brute force in double precision; the nearest one fills up."""
    distance = np.where(valid, np.square(rows.astype(float) - x).sum(1), np.inf)
    order = np.argsort(distance, kind="stable")[: min(k, valid.sum())]
    return np.concatenate([order, np.full(k - len(order), order[0])])


@pytest.mark.parametrize("search", ["exact", "clustered"])
@pytest.mark.parametrize("k", [1, 3])
def test_masked_search_equals_brute_force(search, k, monkeypatch):
    monkeypatch.setattr("qscape.ops.nearest.CHUNK", 100)  # several chunks
    rng = np.random.default_rng(k)
    rows = rng.uniform(-1, 1, (257, 3)).astype(np.float32)
    rows[5] = rows[200]  # a tie
    mask, x = ActionMask(257), rng.uniform(-1, 1, (1000, 3)).astype(np.float32)
    x[::7] = rows[rng.integers(257, size=len(x[::7]))]
    valid = draw_masks(rng, 1000, 257)
    valid[:100] = False
    valid[np.arange(100), rng.integers(257, size=100)] = True  # fewer than k
    table = ActionTable(rows, search, probes=16, mask=mask)  # probes: all of 16 clusters
    found = np.asarray(jax.jit(lambda x, w: table.nearest(x, k, w))(x, mask.pack(valid)))
    expected = np.stack([nearest_by_hand(rows, *row, k) for row in zip(x, valid, strict=True)])
    assert np.take_along_axis(valid, found, 1).all()
    distance = [np.square(rows[i].astype(float) - x[:, None]).sum(-1) for i in (found, expected)]
    np.testing.assert_allclose(*distance, atol=1e-6)
    if search == "exact":
        assert (found == expected).mean() > 0.999  # apart from rounding


def test_few_probes_still_find_a_valid_row():
    """The only valid row is far from the query, in a cluster that an unmasked search would not read."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    mask, x = ActionMask(400), rows[:200]
    valid = np.zeros((200, 400), bool)
    valid[np.arange(200), 399 - np.arange(200)] = True
    table = ActionTable(rows, "clustered", probes=1, mask=mask)
    assert (
        np.asarray(table.nearest(x, words=jnp.asarray(mask.pack(valid))))[:, 0] == 399 - np.arange(200)
    ).all()


@pytest.mark.parametrize("k", [1, 4])
def test_search_among_candidates_equals_brute_force(k):
    rng = np.random.default_rng(0)
    rows, mask = rng.uniform(-1, 1, (500, 3)).astype(np.float32), ActionMask(500, candidates=6)
    x, listed = rng.uniform(-1, 1, (1000, 3)).astype(np.float32), rng.integers(-1, 500, (1000, 6))
    listed[:, 0] = rng.integers(500, size=1000)
    valid = np.zeros((1000, 501), bool)
    valid[np.arange(1000)[:, None], listed] = True  # -1 writes to the last column
    words = jnp.asarray(mask.pack_rows(listed))
    found = np.asarray(ActionTable(rows, mask=mask).nearest(jnp.asarray(x), k, words))
    expected = np.stack([nearest_by_hand(rows, a, v[:500], k) for a, v in zip(x, valid, strict=True)])
    assert (found == expected).mean() > 0.999


def test_a_search_under_vmap_has_the_mask_of_each_state():
    rng = np.random.default_rng(0)
    rows, mask = rng.uniform(-1, 1, (60, 2)).astype(np.float32), ActionMask(60)
    words = jnp.asarray(mask.pack(draw_masks(rng, 5, 60)))
    table, x = ActionTable(rows, mask=mask), jnp.asarray(rng.uniform(-1, 1, (7, 5, 2)), jnp.float32)
    together = table.nearest(x, words=words)
    assert (jax.vmap(lambda x: table.nearest(x, words=words))(x) == together).all()
    assert (jax.vmap(lambda x, w: table.nearest(x, words=w), (1, 0), 1)(x, words) == together).all()


def test_masked_softmax_and_its_gradients():
    """Against softmax over the valid logits alone, in NumPy."""
    rng = np.random.default_rng(0)
    logits, other = rng.normal(0, 3, (2, 40, 7))
    valid, action = draw_masks(rng, 40, 7), np.zeros(40, int)
    for i in range(40):
        action[i] = rng.choice(np.flatnonzero(valid[i]))
    p, q, gradients = np.zeros((40, 7)), np.zeros((40, 7)), np.zeros((2, 40, 7))
    for i in range(40):
        v = valid[i]
        p[i, v] = np.exp(logits[i, v]) / np.exp(logits[i, v]).sum()
        q[i, v] = np.exp(other[i, v]) / np.exp(other[i, v]).sum()
        gradients[0, i] = np.where(v, np.eye(7)[action[i]] - p[i], 0)  # of log π(a)
        logs = np.log(p[i, v])
        gradients[1, i, v] = -p[i, v] * (logs - (p[i, v] * logs).sum())  # of H(π)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(valid, p * np.log(p), 0).sum(1)
        kl = np.where(valid, p * np.log(p / q), 0).sum(1)

    def make(z):
        return Categorical(jnp.zeros((40, 1)), jnp.asarray(z, jnp.float32)).masked(jnp.asarray(valid))

    taken = jnp.asarray(action[:, None], jnp.float32)
    np.testing.assert_allclose(make(logits).log_prob(taken), np.log(p[np.arange(40), action]), atol=2e-5)
    np.testing.assert_allclose(make(logits).entropy(), entropy, atol=2e-5)
    np.testing.assert_allclose(make(logits).kl(make(other)), kl, atol=2e-5)
    for what, expected in zip((lambda d: d.log_prob(taken), lambda d: d.entropy()), gradients, strict=True):
        found = jax.grad(lambda z, what=what: what(make(z)).sum())(jnp.asarray(logits, jnp.float32))
        np.testing.assert_allclose(found, expected, atol=2e-5)
    drawn = jax.vmap(lambda k: make(logits).sample(k)[0][:, 0])(jax.random.split(jax.random.key(0), 200))
    assert valid[np.arange(40), np.asarray(drawn).astype(int)].all()
    assert valid[np.arange(40), np.asarray(make(logits).mode())[:, 0].astype(int)].all()


# --- agents ----------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(3).uniform(-1, 1, (40, 2)).astype(np.float32)


class Forbidden(gym.Env):
    """The last of 40 actions has by far the greatest reward, is never valid, and raises an error if taken.

    A third of the others is valid in a state, and the observation tells nothing about them.

    Args:
        how: "info", "observation" or "candidates": how it says which actions are valid.
        empty_at: the step, counted over all episodes, whose state allows nothing; 0: none.
    """

    action_table = ROWS
    action_space = spaces.Discrete(40)

    def __init__(self, how="info", empty_at=0):
        self.how, self.empty_at, self.life, self.t = how, empty_at, 0, 0
        box = spaces.Box(-1, 1, (3,), np.float32)
        parts = {"taste": box, "action_mask": spaces.MultiBinary(40)}
        self.observation_space = spaces.Dict(parts) if how == "observation" else box
        self.masks_actions = how == "info"
        self.max_candidates = 13 if how == "candidates" else None
        self.valid = np.zeros(40, bool)

    def shown(self):
        self.valid = np.zeros(40, bool)
        if not self.t or self.life != self.empty_at:
            self.valid[self.np_random.choice(39, 13, replace=False)] = True
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        if self.how == "observation":
            return {"taste": seen, "action_mask": self.valid.astype(np.int8)}, {}
        if self.how == "candidates":
            return seen, {"candidates": np.flatnonzero(self.valid)}
        return seen, {"action_mask": self.valid.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.shown()

    def step(self, action):
        assert self.valid[action]
        self.t, self.life = self.t + 1, self.life + 1
        shown, info = self.shown()
        return shown, float(action == 39) - 0.01 * float(action), self.t == 7, self.t == 9, info


if "Forbidden-v0" not in gym.registry:
    gym.register("Forbidden-v0", Forbidden)

SPEC = Spec(3, 2, table=ROWS, mask=ActionMask(40))


def make_agent(recipe, **base):
    given = settings(recipe, target_noise=0.0, **base)
    return qs.agent(recipe, given).on(SPEC)


def observe(rng, count):
    valid = draw_masks(rng, count, 40)
    valid[:, 39], valid[np.arange(count), rng.integers(39, size=count)] = False, True
    seen = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    return jnp.asarray(np.concatenate([seen, SPEC.mask.pack(valid)], 1)), valid


def test_the_number_of_candidates_is_a_whole_number():
    for count in (np.int64(1), 1):
        env = Forbidden("candidates")
        env.max_candidates = count
        assert make_adapter(env).spec.mask == ActionMask(40, 1)
    for count in (True, 0, 41, 13.0):
        env.max_candidates = count
        with pytest.raises(
            UsageError, match=f"max_candidates is {count}; choose a whole number from 1 to 40"
        ):
            make_adapter(env)


CHOOSERS = ("td3", "td3+savo", "td3+wolpertinger", "td3+cem", "td3+ensemble", "td3+joint", "sac")


@pytest.mark.parametrize("recipe", slow_except(("td3", "td3+savo", "td3+wolpertinger"), CHOOSERS))
@pytest.mark.parametrize("mode", ["warm_up", "explore", "evaluate"])
def test_every_chooser_takes_valid_actions_only(recipe, mode):
    agent = make_agent(recipe, exploration_noise=1.0)
    acting = agent.acting(agent.init(jax.random.key(0)))
    obs, valid = observe(np.random.default_rng(0), 300)
    noise, first = agent.selector.init_noise(SPEC, 300, agent.base), jnp.ones(300, bool)
    act = jax.jit(lambda obs: agent.act(acting, noise, obs, first, 1, jax.random.key(1), mode)[:2])
    action, columns = act(obs)
    table = ActionTable(ROWS)
    assert valid[np.arange(300), np.asarray(table.index(action))].all()
    for proposal in np.moveaxis(np.asarray(columns.get("proposals", action[:, None])), 1, 0):
        assert valid[np.arange(300), np.asarray(table.index(jnp.asarray(proposal)))].all()


def test_the_target_bootstraps_from_valid_actions_of_the_next_state():
    """y = r + γ (1 − terminated) min_j Q̄_j(s', the nearest valid row to π̄(s')), with the mask of s'."""
    agent, rng = make_agent("td3"), np.random.default_rng(0)
    state, (obs, _), (next_obs, valid) = agent.init(jax.random.key(0)), observe(rng, 50), observe(rng, 50)
    reward, terminated = rng.normal(size=50).astype(np.float32), rng.uniform(size=50) < 0.3
    action = ROWS[rng.integers(40, size=50)]
    batch = Batch(obs, *map(jnp.float32, (action, reward, terminated)), next_obs, 0.9)
    zero = jnp.zeros((), jnp.int32)
    stage = Stage(agent, batch, Event(zero, zero, zero > 0, zero > 0), jax.random.key(1))
    y = np.asarray(_fixed_targets(stage, state, _look_ahead(stage, state)))[:, 0]
    seen = next_obs[:, :3]
    proposal = np.asarray(bind_network(agent.representation, None, state.actor_target)(seen).mode())
    nearest = np.stack([nearest_by_hand(ROWS, *row, 1)[0] for row in zip(proposal, valid, strict=True)])
    unmasked = np.square(ROWS.astype(float) - proposal[:, None]).sum(-1).argmin(1)
    assert (nearest != unmasked).mean() > 0.2  # the masks matter here
    q = bind_critics(agent.representation, None, state.critics_target)(seen, jnp.asarray(ROWS[nearest]))
    expected = reward + 0.9 * (1 - terminated) * np.min(q, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_networks_do_not_see_the_mask():
    """The mask changes the action, but neither proposals nor values."""
    agent = make_agent("td3+normalise")
    state, rng = agent.init(jax.random.key(0)), np.random.default_rng(0)
    obs, _ = observe(rng, 20)
    other = jnp.concatenate([obs[:, :3], observe(rng, 20)[0][:, 3:]], 1)
    event = Event(jnp.int32(1), jnp.int32(1), jnp.array(False), jnp.array(False))
    context = agent.functions(state, event)
    rows = jnp.asarray(ROWS[:20])
    assert (context.q(obs, rows)[0] == context.q(other, rows)[0]).all()
    assert (unsnap(context.policy(obs)).mode() == unsnap(context.policy(other)).mode()).all()
    assert (context.policy(obs).mode() != context.policy(other).mode()).any()
    assert agent.see(state, obs).part_states["normalise"].extra.mean.shape == (3,)


def run_of(how, steps, recipe="td3", **more):
    off_policy = recipe in ("td3", "dqn")
    base = {"warmup": 20} if off_policy else {"rollout": 64}
    small = settings(recipe, **base) if off_policy else {"base": {"actor_hidden": (8,), **base}}
    small |= {"etf": {"width": 40}} if "etf" in recipe else {}
    return Plan(recipe, "Forbidden-v0", steps, env_args={"how": how}, settings=small,
                eval_every=steps, eval_episodes=2, **more)  # fmt: skip


@pytest.mark.parametrize("how", ["info", slow("observation"), slow("candidates")])
@pytest.mark.parametrize("envs", [slow(1), 2])
def test_a_run_takes_valid_actions_only(how, envs, tmp_path):
    """The environment raises an error if a masked action is taken, in training or in evaluation."""
    *_, end = train(run_of(how, 60, envs=envs), tmp_path / "run")
    assert not end.interrupted


@pytest.mark.parametrize("recipe", ["dqn", "ppo+etf", slow("a2c"), slow("trpo+normalise"), slow("reinforce")])
def test_runs_of_other_agents_take_valid_actions_only(recipe, tmp_path):
    *_, end = train(run_of("info", 64, recipe, envs=2), tmp_path / "run")
    assert not end.interrupted


def test_collapse_is_measured_on_valid_actions():
    spec = Spec(3, 1, choices=40, mask=ActionMask(40))
    agent = qs.agent("ppo", {"base": {"actor_hidden": (8,)}}).on(spec)
    acting = agent.acting(agent.init(jax.random.key(0)))
    obs, valid = observe(np.random.default_rng(0), 50)
    found, h, y, w = measure_policy(agent, acting, LabelledStates(np.asarray(obs), None))
    assert (y == np.where(valid, h @ w.T, -np.inf).argmax(1)).all()
    assert found == action_collapse(h, y, w, valid=valid)
    assert found.nearest_mean_agreement > action_collapse(h, y, w).nearest_mean_agreement


class ForbiddenValues(gym.Env):
    """A product of sets in which some values of each factor are valid; raises an error at others."""

    masks_actions, sizes = True, (3, 2, 4)

    def __init__(self):
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.MultiDiscrete(self.sizes, start=[0, 1, 0])

    def shown(self):
        self.valid = [self.np_random.uniform(size=n) < 0.5 for n in self.sizes]
        for part in self.valid:
            part[self.np_random.integers(len(part))] = True
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, {"action_mask": np.concatenate(self.valid)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.shown()

    def step(self, action):
        assert all(part[i] for part, i in zip(self.valid, action - self.action_space.start, strict=True))
        self.t += 1
        seen, info = self.shown()
        return seen, float(action.sum()), False, self.t == 9, info


if "ForbiddenValues-v0" not in gym.registry:
    gym.register("ForbiddenValues-v0", ForbiddenValues)


@pytest.mark.parametrize("recipe", ["ppo", slow("ppo+carsm"), "td3"])
def test_values_of_factors_may_be_masked(recipe, tmp_path, monkeypatch, capsys):
    """Also at random: the warm-up of td3, and an exploration of ppo; and in the environment by a file."""
    made = run_of("info", 64, recipe, envs=2)
    plan = dataclasses.replace(made, env="ForbiddenValues-v0", env_args={})
    if recipe == "ppo":
        plan.settings["base"]["exploration"] = 0.3
    *_, end = train(plan, tmp_path / "run")
    assert not end.interrupted
    pytest.importorskip("onnxruntime")
    from qscape.export import run_policy

    file = str(tmp_path / "p.onnx")
    assert main(["export", str(tmp_path / "run"), "--onnx", file, "--episodes", "2"]) == 0
    monkeypatch.setattr(sys, "argv", ["run_policy.py", file, "--env", plan.env, "--episodes", "2"])
    run_policy.main()
    assert "over 2 episodes" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    ran = {}
    exec(Path("p.md").read_text().split("```python")[1].split("```")[0], ran)  # the card's example
    assert ran["action"].shape == (3,)


def test_every_factor_needs_a_valid_value():
    mask, rng = ActionMask(9, factors=(3, 2, 4)), np.random.default_rng(0)
    valid = draw_masks(rng, 200, 9)
    words = mask.pack(valid)
    enough = valid[:, :3].any(1) & valid[:, 3:5].any(1) & valid[:, 5:].any(1)
    assert (np.isfinite(words[:, 0]) == enough).all()
    assert 0 < enough.sum() < 200
    drawn = np.asarray(mask.sample(jnp.asarray(words[enough]), jax.random.key(0)))
    for factor, part in enumerate((valid[enough, :3], valid[enough, 3:5], valid[enough, 5:])):
        assert part[np.arange(len(part)), drawn[:, factor]].all()
    split = np.asarray(mask.split(jnp.asarray(valid)))
    assert (split[:, 1, :2] == valid[:, 3:5]).all()
    assert not split[:, 1, 2:].any()


def test_without_its_mask_the_environment_is_broken(tmp_path, monkeypatch):
    """The two tests above can fail."""
    monkeypatch.setattr(MaskReader, "read", lambda self, o, i, needed: np.tile(
        self.mask.pack(np.ones(40, bool)), (len(needed), 1)))  # fmt: skip
    with pytest.raises(RunError, match="Forbidden-v0 broke in step"):
        list(train(run_of("info", 60), tmp_path / "run"))


def test_a_mask_without_a_valid_action_is_one_sentence():
    adapter = make_adapter("Forbidden-v0", env_args={"empty_at": 3})
    adapter.reset()
    take = lambda: adapter.step(ROWS[[np.flatnonzero(adapter.env.unwrapped.valid)[0]]])  # noqa: E731
    take()
    take()
    with pytest.raises(RunError, match="no action is valid in environment 0, step 3 of its episode 1"):
        take()


def test_a_terminal_state_needs_no_valid_action():
    adapter = make_adapter("Forbidden-v0", env_args={"empty_at": 7})
    adapter.reset()
    for _ in range(7):
        step = adapter.step(ROWS[[np.flatnonzero(adapter.env.unwrapped.valid)[0]]])
    assert step.transition.terminated
    assert np.isfinite(step.transition.next_observation).all()


@pytest.mark.parametrize("how", ["info", slow("candidates")])
def test_a_masked_run_goes_on_as_if_it_had_never_stopped(how, tmp_path):
    plan = run_of(how, 60, envs=2, save_every=20)
    list(train(plan, tmp_path / "whole"))
    *_, end = train(plan, tmp_path / "parts", on_trainer=stop_at(30))
    assert end.interrupted
    list(resume(tmp_path / "parts"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_recsim_offers_a_part_of_its_items():
    env = RecSim.of(200, availability=0.5)
    state, obs = env.reset(jax.random.key(0))
    masks = []
    for t in range(20):
        valid = np.asarray(env.mask.unpack(obs[30:]))
        item = greedy(env, state, obs, jax.random.key(0))
        assert valid[item]
        masks.append(valid)
        state, outcome = env.step(state, item, jax.random.key(t))
        obs = outcome.observation
    assert abs(np.mean(masks) - 0.5) < 0.04  # 5 standard deviations
    assert RecSim.of(200).mask is None


def test_host_and_compiled_recsim_agree_on_masks():
    """The adapter packs the mask of the Gymnasium face to the bits of the environment in JAX."""
    face = RecSimEnv(60, availability=0.3)
    adapter = make_adapter(face, seed=5)
    obs = adapter.reset()
    expected = face.native.reset(jax.random.key(face.episode_seed))[1]
    assert adapter.spec.mask == face.native.mask == spec_of(face.native).mask
    assert (obs[0, 30:] == np.asarray(expected)[30:]).all()


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_takes_available_items_only():
    env = RecSim.of(60, availability=0.3)
    agent = qs.agent("td3+savo", settings("td3+savo", warmup=10)).on(spec_of(env))
    layout = agent.layout(2)
    run = jax.jit(lambda key: scan_train(agent, env, key, envs=2, steps=60)[0])(jax.random.key(0))
    carry = run.carry
    rows = rows_at(layout, carry.storage, carry.replay_state, jnp.arange(30), 1, 0.9)
    valid = np.asarray(env.mask.unpack(rows.observation[:, 30:]))
    index = np.asarray(ActionTable(agent.task.table).index(rows.action))
    assert valid[np.arange(30), index].all()


# --- what is measured and exported -------------------------------------------------------------------------


def trained(spec=SPEC, **base):
    given = settings("td3", target_noise=0.0, actor_hidden=(8,), critic_hidden=(8,), **base)
    agent = qs.agent("td3", given).on(spec)
    acting = agent.acting(agent.init(jax.random.key(0)))
    return agent, acting


def test_optima_of_a_table_are_among_the_neighbours_that_are_valid():
    agent, acting = trained()
    obs, valid = observe(np.random.default_rng(0), 8)
    surveyor = Surveyor(agent)
    survey = surveyor(acting, np.asarray(obs))
    shown = []
    for i in range(8):
        q = surveyor.entries(acting, np.asarray(obs[i]))[valid[i]]
        least = landscape.prominence_threshold(q.min(), q.max())
        peaks = landscape.find_peaks(q, landscape.nearest_edges(ROWS[valid[i]])).above(least)
        assert survey.all_optima[i] == len(peaks.node)
        spot = SurveyedState(surveyor, acting, np.asarray(obs[i]), survey.rows(i, i + 1), "td3", "", None)
        np.testing.assert_allclose(spot.table().optima_q, q[peaks.node], rtol=1e-6)
        alone = np.where(valid[i], surveyor.q(acting, np.asarray(obs[i]), ROWS), np.nan)
        shown.append(len(landscape.find_peaks(alone, surveyor.edges).above(least).node))
    assert survey.all_optima.sum() < sum(shown)  # neighbours among all 40 entries would find too many


def test_a_landscape_finds_the_valid_one_of_equal_entries():
    rows = np.tile(ROWS[: len(ROWS) // 2], (2, 1))
    agent, acting = trained(dataclasses.replace(SPEC, table=rows))
    obs = np.asarray(observe(np.random.default_rng(0), 20)[0])
    survey = Surveyor(agent)(acting, obs)
    assert np.isfinite(survey.gap).all()
    assert np.isfinite(survey.proposals_q).all()


def test_a_landscape_counts_valid_entries_only():
    agent, acting = trained()
    obs, valid = observe(np.random.default_rng(0), 4)
    surveyor = Surveyor(agent)
    survey = surveyor(acting, np.asarray(obs))
    for i in range(4):
        q = surveyor.q(acting, np.asarray(obs[i]), ROWS)
        shown = surveyor.entries(acting, np.asarray(obs[i]))
        np.testing.assert_array_equal(np.isfinite(shown), valid[i])
        np.testing.assert_allclose(shown[valid[i]], q[valid[i]], rtol=1e-6)
        own = np.flatnonzero((survey.action[i] == ROWS).all(1))[0]
        assert valid[i, own]
        assert survey.best_q[i] == pytest.approx(q[valid[i]].max(), abs=1e-6)
        assert survey.span[i] == pytest.approx(np.ptp(q[valid[i]]), abs=1e-6)
        assert survey.rank[i] == 1 + (q[valid[i]] > q[own] + 1e-7).sum()
    seen = np.asarray(obs[0])
    spot = SurveyedState(surveyor, acting, seen, surveyor(acting, seen[None]), "td3", "", None)
    assert spot.compute_landscape(None, None).to_dict()["entries"] == valid[0].sum()
    assert any(
        np.nanmax(surveyor.q(acting, np.asarray(obs[i]), ROWS)) > survey.best_q[i] + 1e-6 for i in range(4)
    )


@pytest.mark.parametrize("search", ["exact", "chunks", "clustered"])
def test_an_exported_policy_takes_the_mask_as_a_second_input(search, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from qscape.export import convert, policy, run_policy

    if search == "chunks":
        monkeypatch.setattr("qscape.ops.nearest.CHUNK", 7)  # of 40 rows, so that the last one is filled up
    adapter = make_adapter("Forbidden-v0")
    how = {"nearest": "clustered"} if search == "clustered" else {}
    agent, acting = trained(adapter.spec, **how)  # whose table is scaled to [-1, 1]
    made = policy.PolicySource(
        Path("run"),
        {},
        LoadedPolicy(make_programs(agent), acting, adapter, 0, "current"),
        [],
        np.zeros((1, 3)),
    )
    obs, valid = observe(np.random.default_rng(1), 100)
    model = convert.to_onnx(policy.make_policy_function(made.loaded), 3, {}, actions=40)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"observation": np.asarray(obs[:, :3]), "action_mask": valid})[0]
    assert valid[np.arange(100), found].all()
    np.testing.assert_array_equal(found, policy.act_as_library(made.loaded, np.asarray(obs)))
    seen = np.asarray(obs[:, :3])
    np.testing.assert_array_equal(found, run_policy.act(session, seen, valid))
    for info in ({"action_mask": valid[0]}, {"candidates": [*np.flatnonzero(valid[0]), -1]}):
        (source,) = info
        mask = run_policy.read_mask(session, {"mask": source}, seen[0], info)
        np.testing.assert_array_equal(mask, valid[0])
        assert run_policy.act(session, seen[0], mask) == found[0]
    np.testing.assert_array_equal(
        run_policy.read_mask(
            session, {"mask": "observation"}, {"action_mask": valid[0]}, {"action_mask": ~valid[0]}
        ),
        valid[0],
    )


def test_predict_takes_a_mask():
    adapter = make_adapter("Forbidden-v0")
    agent, acting = trained(adapter.spec)
    choose = Policy(adapter, make_programs(agent), acting, 0).predict
    seen, valid = np.zeros((20, 3), np.float32), draw_masks(np.random.default_rng(0), 20, 40)
    assert valid[np.arange(20), choose(seen, action_mask=valid)[0]].all()
    only = np.arange(40) == 7
    assert choose(seen[0], action_mask=only)[0] == 7
    with pytest.raises(UsageError, match="at least one of them true"):
        choose(seen[0], action_mask=np.zeros(40, bool))


def test_predict_refuses_masks_that_cannot_be_packed():
    few = make_adapter("Forbidden-v0", env_args={"how": "candidates"})
    few.masks = dataclasses.replace(few.masks, mask=ActionMask(40, candidates=13))  # bits are shorter
    with pytest.raises(UsageError, match="at most 13 valid actions"):
        few.observations(np.zeros(3))
    few.observations(np.zeros(3), np.arange(40) < 13)
    parts = make_adapter(ForbiddenValues, index_actions=True)
    sizes = parts.spec.factors
    with pytest.raises(UsageError, match="a part of the action without a valid value"):
        parts.observations(np.zeros(parts.spec.observation_size), np.arange(sum(sizes)) < sizes[0])
