"""The Python face: learn, predict, evaluate, save, load, callbacks."""

import dataclasses
import inspect
import pydoc
import resource
import shutil
import signal
import threading
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from refused import refused
from rows import slow
from tiny import Clock, Rooms, arrays, settings

import qscape as qs
from qscape.envs import make
from qscape.inspect.valid import find_valid_balls
from qscape.model import SEED
from qscape.run import evaluation, resume, training
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.session import Session


@pytest.fixture(scope="module")
def trained():
    """TD3 on Pendulum-v1, trained for a moment."""
    small = settings("td3", warmup=50)
    return qs.TD3("Pendulum-v1", seed=1, eval_every=100, eval_episodes=2, **small).learn(120)


def observations(n):
    return np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)


def test_learning_makes_updates_and_goes_on_where_it_was(trained):
    one = qs.TD3("Pendulum-v1", seed=1, eval_every=0, **trained.settings)
    assert one.env_steps == 0
    assert one.learn(70) is one
    assert one.env_steps == 70
    assert one.trainer.updates == 20
    one.learn(50)
    assert (one.env_steps, one.trainer.updates) == (120, 70)
    seen = observations(50)
    assert np.array_equal(one.predict(seen)[0], trained.predict(seen)[0])


@pytest.mark.parametrize("name", ["TD3", "SAC", "TD7", "PPO", "A2C", "REINFORCE", "TRPO"])
def test_named_agents_explain_themselves(name):
    """`help(qs.TD3)` shows the fields of the base with types, defaults and meanings."""
    cls = getattr(qs, name)
    agent = qs.agent(name)
    text = pydoc.plain(pydoc.render_doc(cls))
    shown = inspect.signature(cls).parameters
    for field in dataclasses.fields(agent.base):
        assert shown[field.name].default == getattr(agent.base, field.name)
        assert shown[field.name].annotation is not inspect.Parameter.empty
        assert f"{field.name}: {field.metadata['help']}" in text
    assert {"env", "seed", "envs", "eval_every"} <= shown.keys()
    assert issubclass(cls, qs.Model)


def test_everything_users_need_is_in_one_place():
    page = (Path(__file__).parent.parent / "docs" / "reference" / "python.md").read_text()
    assert set(qs.__all__) == {*qs._PLACES, *qs._MODULES}
    for name in qs.__all__:
        assert getattr(qs, name) is not None
        assert f"`qs.{name}`" in page
    assert set(qs.__all__) <= {*dir(qs)}


def test_fields_of_the_base_are_keywords_of_named_agents():
    model = qs.TD3("Pendulum-v1", discount=0.9, base={"batch_size": 8}, polyak={"rate": 0.1})
    assert model.recipe == "td3"
    assert model.settings == {"base": {"batch_size": 8, "discount": 0.9}, "polyak": {"rate": 0.1}}
    for name, hints in {
        "gamma": ["discount=..."],
        "tau": ["polyak={'rate': ...}"],
        "net_arch": ["actor_hidden=...", "critic_hidden=..."],
        "n_envs": ["envs=..."],
        "discoun": ["discount"],
    }.items():
        with refused("unknown-field", "TD3", *hints, field=name):
            qs.TD3("Pendulum-v1", **{name: 1})
    with refused("out-of-range", "2.0", "[0, 1]", part="base", field="discount"):
        qs.PPO("Pendulum-v1", discount=2.0)


def test_arguments_of_a_wrong_kind():
    model, obs = qs.TD3("Pendulum-v1", exploration="ou"), np.zeros((4, 3), np.float32)
    state = model.predict(obs[:1], deterministic=False)[1]
    plain, stacked = qs.TD3("Pendulum-v1"), qs.TD3("Pendulum-v1", history=2)
    for call, code, field, named in [
        (lambda: model.predict(obs, episode_start=[1, 0, 1]), "mismatch", "episode_start", (3, 4)),
        (lambda: model.predict(obs, state, deterministic=False), "mismatch", "state", (1, 4)),
        (lambda: model.predict(obs, np.zeros(3)), "wrong-value", "state", ("predict", None)),
        (lambda: plain.predict(obs[:1], state), "mismatch", "state", ("another policy",)),
        (lambda: stacked.predict(obs[0], plain.predict(obs[0])[1]), "mismatch", "state", ("another policy",)),
        (lambda: model.predict(obs[:1], (1, 2)), "mismatch", "state", ("another policy",)),
        (lambda: model.learn(10, callback=3), "wrong-value", "callback", ("3", "(model, event)")),
        (lambda: model.learn(10, callback=[3]), "wrong-value", "callback", ("[3]",)),
        (lambda: qs.TD3("Pendulum-v1", env_args="x"), "wrong-value", "env_args", ("'x'",)),
        (lambda: qs.Model(3, "Pendulum-v1"), "wrong-value", "recipe", (3,)),
    ]:
        with refused(code, *named, field=field):
            call()
    with refused("wrong-part", part="3"):
        qs.register(3)
    action, _ = model.predict(obs, model.predict(obs)[1], episode_start=True)
    assert action.shape == (4, 1)
    with refused("unknown-field", "evaluate", "episodes=", field="n_eval_episodes"):
        model.evaluate(n_eval_episodes=2)


def test_habits_of_stable_baselines3_are_answered():
    named = ("MlpPolicy", "PPO(env)", "actor_hidden=...", "critic_hidden=...")
    with refused("unknown-field", *named):
        qs.PPO("MlpPolicy", "CartPole-v1", seed=0, verbose=1)  # `seed` would be there twice
    with refused("unknown-field", *named):
        qs.PPO(policy="MlpPolicy", env="CartPole-v1")
    model = qs.TD3("Pendulum-v1")
    for name, hint in {
        "total_timesteps": "steps=...",
        "progress_bar": "progress=...",
        "callbacks": "callback",
    }.items():
        with refused("unknown-field", "learn", hint, field=name):
            model.learn(**{name: 1})
    for name, hint in {
        "train_freq": "updates_per_step=... (gradient_steps / train_freq)",
        "verbose": "learn(steps, progress=True)",
    }.items():
        with refused("unknown-field", "TD3", hint, field=name):
            qs.TD3("Pendulum-v1", **{name: 1})


def test_one_observation_and_batches(trained):
    seen = observations(7)
    batch, _ = trained.predict(seen)
    assert batch.shape == (7, 1)
    assert batch.dtype == np.float32
    assert len(np.unique(batch)) > 1
    one, _ = trained.predict(seen[3])
    assert one.shape == (1,)
    assert trained.adapter.env.action_space.contains(one)
    np.testing.assert_allclose(one, batch[3], atol=1e-5)
    assert np.array_equal(trained.predict(seen)[0], batch)  # deterministic
    with refused("mismatch", "(3,)", "(4,)"):
        trained.predict(np.zeros(4))
    for given, named in (
        ((seen[0], {}), ("tuple", "(observation, info)")),
        ([[0.0], [0.0, 1.0]], ("list",)),
        (["a", "b", "c"], ("list",)),
    ):
        with refused("mismatch", "(3,)", *named):
            trained.predict(given)


def test_exploring_draws_anew_at_every_call_and_repeats_itself_from_a_state(trained):
    seen = observations(5)
    first, state = trained.predict(seen, deterministic=False)
    second, _ = trained.predict(seen, state, np.zeros(5, bool), deterministic=False)
    third, _ = trained.predict(seen, deterministic=False)
    assert len({draw.tobytes() for draw in (first, second, third)}) == 3
    assert np.array_equal(trained.predict(seen, state, np.zeros(5, bool), deterministic=False)[0], second)
    assert np.abs(first - trained.predict(seen)[0]).max() < 2.0  # noise of 0.1 of half the range, 4 times


def test_a_save_that_is_interrupted_while_the_old_run_goes_leaves_the_new_one(trained, tmp_path, monkeypatch):
    folder, remove = trained.save(tmp_path / "run"), shutil.rmtree

    def interrupted(path, **given):
        if Path(path).name == ".old" and Path(path).exists():
            remove(path / "saves")
            raise KeyboardInterrupt
        remove(path, **given)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(folder)
    monkeypatch.undo()
    assert np.array_equal(qs.load(folder).predict(observations(5))[0], trained.predict(observations(5))[0])
    trained.save(folder)
    assert {path.name for path in folder.iterdir()} == {"run.json", "saves", ".lock"}


def test_a_save_that_fails_leaves_the_run_that_was_there(trained, tmp_path):
    folder = trained.save(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{}\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with refused("cannot-write", "free space"):
            trained.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert np.array_equal(qs.load(folder).predict(observations(5))[0], trained.predict(observations(5))[0])
    trained.save(folder)
    assert {path.name for path in folder.iterdir()} == {"run.json", "saves", ".lock"}


def test_atari_is_trained_on_lives_and_signs_and_evaluated_on_games():
    pytest.importorskip("ale_py")
    model = qs.PPO("ALE/Pong-v5", eval_episodes=1)
    assert "LifeEnds" in str(model.adapter.env)
    assert "LifeEnds" not in str(model.eval_adapter.env)


def evaluate_policy(model, env, episodes):
    """As other libraries' helpers call a model: positional observations of a vector environment, the keywords
    `state`, `episode_start` and `deterministic`; the state is handed back as it came."""
    returns, running = [], np.zeros(env.num_envs)
    seen, state, start = env.reset(seed=5)[0], None, np.ones(env.num_envs, bool)
    while len(returns) < episodes:
        action, state = model.predict(seen, state=state, episode_start=start, deterministic=True)
        seen, reward, terminated, truncated, _ = env.step(action)
        running, start = running + reward, terminated | truncated
        returns += running[start].tolist()
        running[start] = 0.0
    return returns


def test_helpers_of_other_libraries_can_evaluate_it(trained):
    mode = gym.vector.AutoresetMode.SAME_STEP
    env = SyncVectorEnv([lambda: gym.make("Pendulum-v1")] * 2, autoreset_mode=mode)
    returns = evaluate_policy(trained, env, 2)
    ours = make("Pendulum-v1", 2, seed=5)
    assert trained.trainer is not None
    done = qs.run.evaluation.evaluate(trained.trainer.learner.programs, trained.trainer.best, ours, 2, seed=5)
    assert returns == pytest.approx([e.ret for e in done], rel=1e-4)


def test_save_and_load(trained, tmp_path):
    path = trained.save(tmp_path / "model")
    again = qs.load(path)
    seen = observations(20)
    assert np.array_equal(again.predict(seen)[0], trained.predict(seen)[0])
    assert again.evaluate(3) == trained.evaluate(3)
    assert again.env_steps == 120
    twice = again.save(tmp_path / "twice")
    assert arrays(twice) == arrays(path)
    again.learn(30)
    *_, end = resume(path, steps=150)
    assert (again.env_steps, end.step) == (150, 150)
    assert arrays(again.save(tmp_path / "longer"), {"state", "replay", "environment"}) == arrays(
        path, {"state", "replay", "environment"}
    )


@pytest.mark.slow
def test_a_model_of_an_environment_without_an_id(tmp_path):
    class Bare(Clock):
        """Not registered."""

    small = settings("td3", warmup=20)
    model = qs.TD3(Bare(), seed=0, eval_every=0, **small).learn(50)
    path = model.save(tmp_path / "model")
    with refused("unmakeable-env", "Bare", "qs.load(", "env=..."):
        qs.load(path)
    one, other = qs.load(path, Bare()), qs.load(path, Bare, eval_env=Bare())
    model.learn(30)
    for again in (one, other):
        again.learn(30)
        assert arrays(again.save(tmp_path / "again")) == arrays(model.save(path))
    assert len(other.evaluate(2)) == 2

    class CartPole(Clock):  # the name of a registered environment, which would be made instead
        """Not registered either."""

    named = qs.TD3(CartPole, seed=0, eval_every=0, **small).save(tmp_path / "named")
    with refused("unmakeable-env", "CartPole_"):
        qs.load(named)
    assert qs.load(path, "Pendulum-v1", other_spaces=True).learn(30).env_steps == 110  # of the same sizes
    with pytest.raises(qs.UsageError, match=r"other spaces than those of the training"):
        qs.load(path, Rooms())
    with pytest.raises(qs.RunError, match=r"use the settings it was saved with"):
        qs.load(path, Rooms(), other_spaces=True)


def test_accelerators_multiply_in_full(monkeypatch):
    def precision():
        training.set_up_jax()
        return jax.config.values["jax_default_matmul_precision"]

    assert precision() is None  # a CPU rounds nothing
    monkeypatch.setattr(training.jax, "default_backend", lambda: "gpu")
    try:
        assert precision() == "float32"
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        assert precision() == "tensorfloat32"
    finally:
        jax.config.update("jax_default_matmul_precision", None)


def test_a_model_saved_before_it_learned(tmp_path):
    model = qs.TD3("Pendulum-v1", **settings("td3"))
    seen = observations(3)
    action, _ = model.predict(seen)
    loaded = qs.load(model.save(tmp_path / "new"))
    assert np.array_equal(loaded.predict(seen)[0], action)
    model.learn(60)  # the warm-up fits the run, although it predicted before it learned
    assert model.trainer.updates == 48
    assert loaded.learn(60).trainer.updates == 48  # so does that of the one that was loaded
    *_, ended = resume(tmp_path / "new", steps=60)  # and on the command line
    assert ended.updates == 48
    record = folders.read_record(tmp_path / "new")
    assert (record["steps"], record["settings"]["base"]["warmup"]) == (60, 12)
    shares = settings("td3", schedule="linear", epsilon_start=1.0, epsilon_end=0.5, epsilon_decay=0.5)
    base = qs.load(qs.TD3("Pendulum-v1", **shares).save(tmp_path / "s")).learn(60).trainer.agent.base
    assert (base.schedule_updates, base.epsilon_decay) == (60, 30.0)  # not those of a run without an end
    asked = qs.TD3("Pendulum-v1", **settings("td3", warmup=70)).save(tmp_path / "asked")
    with refused("out-of-range", 70, 60, part="base", field="warmup"):
        qs.load(asked).learn(60)


def test_an_environment_that_a_run_does_not_fit_is_named(tmp_path):
    path = qs.TD3("Pendulum-v1", **settings("td3")).save(tmp_path / "run")
    with pytest.raises(qs.UsageError, match=r"MountainCarContinuous-v0 has other spaces"):
        qs.load(path, env="MountainCarContinuous-v0")
    with pytest.raises(
        qs.RunError, match=r"does not fit MountainCarContinuous-v0, whose .* those of Pendulum-v1"
    ):
        qs.load(path, env="MountainCarContinuous-v0", other_spaces=True)


def test_a_run_in_one_program_is_loaded_with_an_environment_in_jax_only(tmp_path):
    small = {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 32, "batch_size": 16}
    qs.PPO("jax/CartPole-v1", eval_every=0, **small).learn(64).save(tmp_path / "run")
    for env in ("CartPole-v1", gym.make("CartPole-v1")):
        with refused("mismatch", "CartPole-v1", "without env", field="env"):
            qs.load(tmp_path / "run", env=env)
    again = qs.load(tmp_path / "run", env="jax/CartPole-v1")
    assert again.predict(np.zeros(4, np.float32))[0] in (0, 1)
    assert qs.load(tmp_path / "run").env_steps == 64


def test_a_run_that_python_stepped_goes_on_with_an_environment_in_jax(tmp_path):
    small = {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 32, "batch_size": 16}
    qs.PPO("jax/CartPole-v1", envs=2, loop="host", eval_every=0, **small).learn(40).save(tmp_path / "run")
    again = qs.load(tmp_path / "run", env="jax/CartPole-v1")
    assert again.adapter.envs == 2
    assert again.learn(40).env_steps == 80


def test_a_run_with_a_preset_is_loaded_with_an_environment_that_the_preset_does_not_know(tmp_path):
    model = qs.PPO("CartPole-v1", preset="tuned", eval_every=0)
    model.save(tmp_path / "run")
    again = qs.load(tmp_path / "run", lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), float))
    assert again.trainer.agent.base == model.trainer.agent.base
    again.learn(300)
    assert again.trainer.agent.base.learning_rate == model.trainer.agent.base.learning_rate


@pytest.mark.parametrize("how", ["argument", slow("limit"), "wrapper", "function", "vector"])
def test_an_environment_that_its_id_does_not_make_is_asked_for_again(how, tmp_path):
    def made(**args):
        return gym.make("Pendulum-v1", **args)

    env = {
        "argument": lambda: made(g=0.0),
        "limit": lambda: made(max_episode_steps=50),
        "wrapper": lambda: gym.wrappers.RescaleObservation(made(), -np.ones(3), np.ones(3)),
        "function": lambda: lambda: made(g=0.0),
        "vector": lambda: SyncVectorEnv([lambda: made(g=0.0)] * 2),
    }[how]()
    path = qs.TD3(env, eval_every=0, **settings("td3")).save(tmp_path / "model")
    for again in (qs.load, resume):
        with refused("unmakeable-env", "PendulumEnv", "qs.load("):
            list(again(path))
    same = qs.TD3(lambda: made(render_mode="rgb_array"), eval_every=0, **settings("td3"))
    assert qs.load(same.save(tmp_path / "same")).adapter.env_id == "Pendulum-v1"


def test_an_interrupt_loses_nothing():
    model = qs.TD3("Pendulum-v1", eval_every=0, **settings("td3", warmup=20))

    def interrupt(_, event):
        if isinstance(event, ev.EpisodeDone) and event.step == 1_000:
            assert model.trainer.engine.driver is not None  # in the midst of a compiled program
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        model.learn(40_000, interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert 1_000 <= model.env_steps < 40_000
    assert model.trainer.updates == int(model.trainer.learner.state.updates) == model.env_steps - 20
    steps = model.env_steps
    assert model.learn(10).env_steps == steps + 10


def test_a_run_without_an_update_says_so_and_so_do_its_parts(monkeypatch):
    monkeypatch.setattr(Session, "_new_warnings", lambda *_: ["c51: the support is too narrow"])
    with pytest.warns(UserWarning, match="too narrow|without one update") as said:
        qs.Model("td7", "Pendulum-v1", eval_every=0, **settings("td7", warmup=20)).learn(60)
    texts = " ".join(str(warning.message) for warning in said)
    assert "without one update: the random phase lasts" in texts
    assert "c51: the support is too narrow" in texts


def test_numbers_of_numpy_are_numbers(tmp_path):
    small = settings("td3", warmup=np.int64(20), discount=np.float32(0.5))
    args = {"g": np.float32(9.0)}
    model = qs.TD3("Pendulum-v1", seed=np.int64(3), env_args=args, eval_every=0, **small).learn(np.int64(30))
    assert model.env_steps == 30
    again = qs.load(model.save(tmp_path / "model"))
    assert (again.seed, again.trainer.plan.env_args) == (3, {"g": 9.0})


@pytest.mark.parametrize(
    ("field", "value", "code", "named"),
    [
        ("seed", -1, "out-of-range", ("-1", "0")),
        ("seed", 1.5, "wrong-value", ("1.5",)),
        ("envs", 0, "out-of-range", ("0", "1")),
        ("eval_episodes", 0, "out-of-range", ("0", "1")),
        ("eval_every", True, "wrong-value", ("True",)),
        ("probe", "smoothness", "wrong-value", ("'smoothness'",)),
        ("probe", ["smothness"], "unknown-name", ("smothness", "smoothness")),
        ("loop", "jit", "unknown-name", ("jit", "auto, host, compiled")),
        ("vectorise", "threads", "unknown-name", ("threads", "sync, async, envpool")),
        ("preset", True, "wrong-value", ("True",)),
    ],
)
def test_options_that_cannot_be_are_refused_before_learning(field, value, code, named):
    with refused(code, *named, field=field):
        qs.TD3("Pendulum-v1", **{field: value})


def test_what_is_no_environment_is_refused_before_learning():
    with refused("wrong-value", "['Pendulum-v1']", field="env"):
        qs.TD3("Pendulum-v1", eval_env=["Pendulum-v1"])


def test_one_environment_is_not_trained_in_and_evaluated_in(trained):
    env = Clock()
    for given in ({"env": env, "eval_env": env}, {"env": lambda: env, "eval_episodes": 1}):
        with refused("conflict", "eval_env", field="eval_env"):
            qs.TD3(**given, **settings("td3"))
    for given in ({"envs": 2}, {"eval_episodes": 2}):
        with refused("conflict", "2", field="envs"):
            qs.TD3(lambda: env, **given, **settings("td3"))
    with refused("out-of-range", "0", "1", field="episodes"):
        trained.evaluate(0)


class Shop(Clock):
    """Discrete; with `drawn`, every copy has a table of its own."""

    def __init__(self, drawn=False):
        super().__init__()
        self.action_space = gym.spaces.Discrete(20)
        self.action_table = np.random.default_rng(None if drawn else 0).normal(size=(20, 2))

    def step(self, action):
        return super().step(np.float32([action / 20]))


@pytest.mark.slow
def test_tables_that_differ_between_copies_are_refused(tmp_path):
    with refused("mismatch", "Shop", "action_table"):
        qs.TD3(lambda: Shop(drawn=True), envs=2, eval_every=0, **settings("td3", warmup=20))
    with refused("mismatch", "Shop", "action_table"):
        qs.TD3(lambda: Shop(drawn=True), eval_episodes=1, **settings("td3", warmup=20)).learn(30)
    path = qs.TD3(Shop, eval_episodes=2, **settings("td3", warmup=20)).learn(30).save(tmp_path / "model")
    with refused("mismatch", "Shop", "action_table"):
        qs.load(path, env=Shop(drawn=True))
    assert qs.load(path, env=Shop).learn(10).env_steps == 40


class Endless(Clock):
    """No episode ends; at step `given` of its life something goes wrong."""

    def step(self, action):
        if self.given and self.life == self.given:
            raise KeyError("door")
        return *super().step(action)[:2], False, False, {}


def test_an_evaluation_that_cannot_end_says_so(monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST", 50)
    with refused("broken-env", "Endless", "50", "max_episode_steps"):
        qs.TD3(lambda: Endless(0), eval_episodes=2, **settings("td3", warmup=20)).learn(30)
    limited = gym.wrappers.TimeLimit(Endless(0), 70)  # longer, but it ends
    assert len(qs.TD3(lambda: Endless(0), eval_env=limited, **settings("td3", warmup=20)).evaluate(2)) == 2


@pytest.mark.parametrize("envs", [1, slow(2)])
def test_what_an_environment_raises_is_one_sentence_with_its_cause(envs):
    model = qs.TD3(lambda: Endless(25), envs=envs, eval_every=0, **settings("td3", warmup=20))
    with refused("broken-env", "Endless", "step 26", "(KeyError: 'door')") as problem:
        model.learn(90)
    assert isinstance(problem.value.__cause__, KeyError)


def test_no_action_follows_from_nan(trained):
    with refused("out-of-range", "observation[1]", "nan"):
        trained.predict(np.array([[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]]))


def test_callbacks_see_events_and_stop(trained):
    model = qs.TD3(Clock, seed=0, eval_every=0, **settings("td3", warmup=20))
    seen = []

    def note(who, event):
        assert who is model
        seen.append(event)

    def stop(who, event):
        return not isinstance(event, ev.EpisodeDone) or event.step < 60

    model.learn(500, callback=[stop, note, lambda *_: 0, lambda *_: np.zeros(2)])  # False alone ends it
    assert isinstance(seen[0], ev.Started)
    assert [e.step for e in seen if isinstance(e, ev.EpisodeDone)] == [30, 60]
    assert isinstance(seen[-1], ev.Ended)
    assert seen[-1].interrupted
    assert model.env_steps == 60
    model.learn(40, callback=note)
    assert model.env_steps == 100
    assert not seen[-1].interrupted

    def fail(who, _):
        who.trainer.stop()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.learn(20, callback=fail)
    assert model.learn(20).env_steps == 120


def test_dict_observations_and_an_asymmetric_box():
    model = qs.TD3(Rooms, envs=2, eval_every=0, **settings("sac", warmup=40))
    lowest, highest = np.float32([-1, 10]), np.float32([3, 20])
    taken = []
    for env in model.adapter.env.envs:
        env.step = lambda action, step=env.step: taken.append(action) or step(action)
    model.learn(100)
    assert model.trainer.updates == 60
    random = np.stack(taken[:40])
    assert (random.min(0) < lowest + np.array([0.4, 1.0])).all()
    assert (random.max(0) > highest - np.array([0.4, 1.0])).all()
    space = Rooms().observation_space
    one = space.sample()
    action, _ = model.predict(one)
    assert action.shape == (2,)
    assert Rooms().action_space.contains(action)
    batch = {"map": np.stack([one["map"]] * 4), "self": {"speed": np.stack([one["self"]["speed"]] * 4)}}
    many, _ = model.predict(batch)
    assert many.shape == (4, 2)
    np.testing.assert_allclose(many, np.tile(action, (4, 1)), rtol=1e-5)
    assert len(model.evaluate(3)) == 3
    for given, code, named in (
        ({"map": one["map"]}, "mismatch", ("map (", "self.speed (", "dict", "'self'")),
        (np.zeros(3), "mismatch", ("map (", "self.speed (", "ndarray")),
        (batch | {"self": one["self"]}, "wrong-value", ("self.speed", "(4, ")),
    ):
        with refused(code, *named):
            model.predict(given)


def test_the_kept_policy_is_the_one_that_predicts():
    small = settings("td3+checkpoints", warmup=20)
    model = qs.Model("td3+checkpoints", Clock, eval_every=0, **small).learn(300)
    trainer = model.trainer
    seen = observations(9)
    kept = trainer.learner.programs.act(
        trainer.kept, None, seen, np.ones(9, bool), np.int32(0), qs.model.evaluation_key(), mode="evaluate"
    )[0]
    current = trainer.learner.programs.act(
        trainer.learner.acting,
        None,
        seen,
        np.ones(9, bool),
        np.int32(0),
        qs.model.evaluation_key(),
        mode="evaluate",
    )[0]
    assert not np.array_equal(kept, current)
    assert np.array_equal(model.predict(seen)[0], kept)  # the clock's actions are in [-1, 1] already
    assert model.trained_agent.policy == "kept"


def test_what_is_refused():
    with refused("unknown-recipe", "'td33'", "td3,"):
        qs.Model("td33", "Pendulum-v1")
    with refused("unknown-field", "discount", part="base", field="discunt"):
        qs.TD3("Pendulum-v1", base={"discunt": 0.9})
    with refused("unknown-field", "'td3'", "td3+lap", part="lap"):
        qs.TD3("Pendulum-v1", lap={"alpha": 0.9})
    with refused("out-of-range", "0", field="steps"):
        qs.TD3("Pendulum-v1", **settings("td3")).learn(0)
    with refused("out-of-range", "50", part="base", field="warmup"):
        qs.TD3("Pendulum-v1", **settings("td3", warmup=50)).learn(50)
    alone = qs.TD3(gym.make("Pendulum-v1"), **settings("td3"))
    with refused("missing-argument", field="eval_env"):
        alone.evaluate()


def test_measuring_leaves_the_environment_of_training_alone():
    class Counted(Clock):
        """Counts calls in one list, which copies do not share."""

        def __init__(self):
            super().__init__()
            self.calls = []

        def reset(self, **given):
            self.calls.append("reset")
            return super().reset(**given)

        def close(self):
            self.calls.append("close")

    env = Counted()
    model = qs.TD3(env, **settings("td3", warmup=20)).learn(40)
    before, place = [*env.calls], (env.episode, env.now)
    assert model.trained_agent.policy == "current"
    assert len(model.trained_agent.rollouts(2)) == 2
    assert find_valid_balls(model.trained_agent) is None
    assert (env.calls, (env.episode, env.now)) == (before, place)
    env.lock = threading.Lock()
    with refused("unfit-env", "(TypeError"):
        model.trained_agent.rollouts(1)


def test_a_setting_that_does_nothing_is_told():
    small = settings("td3", warmup=20)
    small["base"] = small["base"] | {"ou_rate": 0.3}
    with pytest.warns(UserWarning, match="ou_rate does nothing without Ornstein-Uhlenbeck"):
        qs.Model("td3", Clock, eval_every=0, **small).learn(30)


def test_arguments_of_a_function_are_saved_and_what_no_file_holds_as_text(tmp_path):
    def create(goal, how):
        return Clock(length=int(goal[0]) + how())

    given = {"goal": np.array([20.0]), "how": lambda: 10}
    model = qs.TD3(create, env_args=given, **settings("td3", warmup=20), eval_every=0).learn(40)
    path = model.save(tmp_path / "run")
    args = folders.read_plan(path).env_args
    assert args["goal"] == np.array([20.0])
    assert "lambda" in args["how"].text
    assert qs.load(path, lambda: create(**given)).learn(10).env_steps == 50


def test_an_environment_that_is_made_already_is_evaluated_in_another(tmp_path):
    env = gym.make("Pendulum-v1")
    model = qs.TD3(env, eval_env=gym.make("Pendulum-v1"), eval_every=50, eval_episodes=1, **settings("td3"))
    assert model.eval_adapter is not None
    assert model.eval_adapter.seed == SEED
    told = []
    model.learn(100, callback=lambda _, event: told.append(event))
    assert [e.step for e in told if isinstance(e, ev.Evaluated)] == [0, 50, 100]
    assert model.adapter.statistics.steps == 100
    for other, named in {"CartPole-v1": ("(4,)", "(3,)"), "Pendulum-v1": ("actions",)}.items():
        odd = gym.make(other)
        odd.action_space = gym.spaces.Box(-1, 1, (2,))
        with refused("mismatch", *named, field="eval_env"):
            qs.TD3(env, eval_env=odd)


def test_a_folder_that_is_no_run_is_not_written_to(trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with refused("taken", field="out") as caught:
        trained.save(tmp_path)
    assert "--" not in str(caught.value)  # Python has no --out
    with refused("not-found"):
        qs.load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
