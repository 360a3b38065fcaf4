"""Off-policy agents that learn from images: shifts, encoder, bytes in replay, Dicts, and whole runs."""

import dataclasses
from functools import partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from small import same
from test_half_replay import COLUMNS, A, random_steps, same_bits
from tiny import SIZES, Spot, assert_same_run, stop_at

import qscape as qs
from qscape import agents
from qscape.cli import main as qscape
from qscape.envs import make
from qscape.errors import RunError, UsageError
from qscape.methods.conv import Conv
from qscape.ops.shift import random_shift
from qscape.replay import Layout, Uniform, rows_at, storage
from qscape.run import Plan, resume, train
from qscape.run.folder import read_plan, read_record
from qscape.types import Batch, Event, Spec, Transition, stream

STACK = (4, 84, 84)


@pytest.mark.parametrize("shape", [(3, 7, 6), (7, 6, 2), (7, 6)])
def test_a_shift_is_a_crop_of_the_padded_image(shape):
    images = np.random.default_rng(0).integers(0, 256, (300, *shape)).astype(np.float32)
    shifted = np.asarray(random_shift(jax.random.key(0), images.reshape(300, -1), shape, 2))
    height = 1 if shape[0] == 3 else 0
    around = [(2, 2) if axis in (height, height + 1) else (0, 0) for axis in range(len(shape))]
    found = set()
    for image, ours in zip(images, shifted.reshape(images.shape), strict=True):
        padded, crops = np.pad(image, around, mode="edge"), {}
        for y in range(5):
            for x in range(5):
                rows = np.take(padded, np.arange(y, y + 7), axis=height)
                crops[y, x] = np.take(rows, np.arange(x, x + 6), axis=height + 1)
        which = [at for at, crop in crops.items() if np.array_equal(crop, ours)]
        assert len(which) == 1
        found.add(which[0])
    assert len(found) == 25, "every shift occurs"


def build(recipe: str, spec: Spec, conv=None, **base):
    sizes = {"batch_size": 8, "replay_capacity": 64, "actor_hidden": (16,), "critic_hidden": (16,)}
    small = {"channels": 4, "strides": (2, 1), "width": 8, "shift": 1}
    return agents.build(recipe, {"base": sizes | base, "conv": small | (conv or {})}).on(spec)


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_encoder_of_drqv2_by_hand():
    for channels, parameters in ((4, 28_928), (9, 30_368)):
        frame = (channels, 84, 84)
        spec = Spec(channels * 84 * 84 + 3, 2, frame=frame)
        agent = agents.build("drqv2").on(spec)
        state = jax.eval_shape(lambda agent=agent: agent.init(jax.random.key(0)))
        encoder = state.part_states["conv"].params
        assert count(encoder) == parameters == 32 * (9 * channels + 1) + 3 * 32 * (9 * 32 + 1)
        features = jax.eval_shape(lambda f, x: f(x), encoder, jnp.zeros((5, channels * 84 * 84)))
        assert features.shape == (5, 32 * 35 * 35)
        trunk = 39_200 * 50 + 50 + 2 * 50  # linear layer, layer norm
        actor = (50 + 3 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 2
        critic = (50 + 3 + 2 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1)
        assert (count(state.actor), count(state.critics)) == (trunk + actor, 2 * (trunk + critic))


def test_networks_see_the_trunk_of_the_image_beside_the_vector():
    spec = Spec(9 * 9 + 2, 3, frame=(9, 9))
    agent = build("td3+conv", spec)
    state, rng = agent.init(jax.random.key(0)), np.random.default_rng(0)
    encoder, critic = state.part_states["conv"].params, state.critics[0]
    image, vector, action = rng.integers(0, 256, (5, 81)), rng.normal(size=(5, 2)), rng.normal(size=(5, 3))
    features = encoder(jnp.float32(image))
    # f: x / 255 - 0.5, and a first convolution whose patches are in the order of rows.
    x = image.reshape(5, 9, 9) / 255 - 0.5
    first = np.stack(
        [[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].reshape(5, 9) for j in range(4)] for i in range(4)]
    )
    first = np.maximum(first @ np.asarray(encoder.kernels[0].weight).T, 0)  # [4, 4, 5, channels]
    second = np.stack(
        [
            [first[i : i + 3, j : j + 3].transpose(2, 0, 1, 3).reshape(5, -1) for j in range(2)]
            for i in range(2)
        ]
    )
    second = np.maximum(second @ np.asarray(encoder.kernels[1].weight).T, 0).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(features, second.reshape(5, -1), atol=1e-5)
    stage = critic.stage
    z = features @ stage.linear.weight.T
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    seen = np.concatenate([np.tanh(z), vector, action], 1)
    obs = jnp.float32(np.concatenate([image, vector], 1))
    np.testing.assert_allclose(stage(jnp.concatenate([obs, action], 1), features), seen, atol=1e-5)
    together = critic(obs, action, [features])
    np.testing.assert_allclose(
        critic(obs[:, None], jnp.float32(action)[:, None].repeat(2, 1), [features[:, None]])[:, 1],
        together,
        atol=1e-5,
    )


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("vector", [("float32", 0), ("float32", 2), ("bfloat16", 3)])
def test_replay_keeps_pixels_as_bytes(n_step, vector):
    kind, numbers = vector
    pixels, envs, ring = 6, 3, 11
    whole = Layout(pixels + numbers, A, COLUMNS, False, envs, envs * ring, observations=kind)
    packed = dataclasses.replace(whole, pixels=pixels)
    assert packed.dtype == np.uint32
    assert packed.slices["observation"].stop == 2 + (numbers if kind == "float32" else 2)
    both = (dataclasses.replace(whole, observations="float32"), packed)
    held = [Uniform().init(layout) for layout in both]
    inserts = [jax.jit(partial(Uniform().insert, layout)) for layout in both]

    def read(layout, rows, index):
        names = {"previous_observation", "last_observation", "successor"}
        return rows_at(layout, rows, index, jnp.arange(envs * ring), n_step, 0.9, names)

    reads = [jax.jit(partial(read, layout)) for layout in both]
    rng = np.random.default_rng(0)
    for k, step in enumerate(random_steps(pixels + numbers, envs, 30)):
        for rows in (step.observation, step.next_observation):
            rows[:, :pixels] = rng.integers(0, 256, (envs, pixels))
            rows[:, pixels:] = np.asarray(jnp.asarray(rows[:, pixels:], kind), np.float32)
        held = [insert(*one, step) for insert, one in zip(inserts, held, strict=True)]
        if k % 5 == 4:
            same_bits(*[look(*one) for look, one in zip(reads, held, strict=True)])


def test_the_bytes_of_a_stack_of_frames(monkeypatch):
    agent = agents.build("sac+conv").on(Spec(4 * 84 * 84, 3, frame=STACK))
    layout = agent.layout()
    assert layout.width == 4 * 84 * 84 // 4 + 3 + 4, "a stack once, action, reward, two ends, valid"
    assert layout.nbytes == 4 * 7063 * 100_000
    monkeypatch.setattr(storage, "_available_bytes", lambda: 2**30)
    with pytest.raises(
        RunError, match=r"2\.6 GiB but 1\.0 GiB are available; use --base\.replay-capacity below \d+\."
    ):
        storage.check_memory(layout)


def test_the_critics_loss_alone_trains_the_encoder():
    """The encoder's first step is Adam's on the gradient of Σ_j mean (q_j - y)², written out here."""
    spec = Spec(9 * 9, 2, frame=(9, 9))
    settings = {"target_noise": 0.0, "policy_delay": 1, "critic_learning_rate": 1e-3, "n_step": 1}
    agent = build("td3+conv", spec, {"shift": 0}, **settings)
    layout, rng = agent.layout(), np.random.default_rng(0)
    rows, index = agent.init_replay(layout)
    insert = jax.jit(partial(agent.insert, layout))
    for _ in range(40):
        seen, after = rng.integers(0, 256, (2, 1, 81)).astype(np.float32)
        step = Transition(
            seen, rng.uniform(-1, 1, (1, 2)), rng.normal(size=1), *np.zeros((2, 1), bool), after
        )
        rows, index = insert(rows, index, step)
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    after, _, _ = jax.jit(partial(agent.update, layout))(state, rows, index, key)
    assert not same(after.actor, state.actor), "the actor moved too"

    number = jax.random.fold_in(key, 1)
    picked = agent.replay.sample(layout, rows, index, stream(number, "uniform.sample"), 8)
    batch = rows_at(layout, rows, index, picked, 1, 0.99)
    encoder = state.part_states["conv"].params

    def loss(params):
        f, g = (params(x) for x in (batch.observation, batch.next_observation))
        target = state.actor_target(batch.next_observation, [g]).mode()
        y = [critic(batch.next_observation, target, [g]) for critic in state.critics_target]
        y = jax.lax.stop_gradient(batch.reward + 0.99 * jnp.minimum(*y))
        return sum(jnp.square(c(batch.observation, batch.action, [f]) - y).mean() for c in state.critics)

    gradient = jax.tree.leaves(jax.grad(loss)(encoder))
    for before, now, g in zip(
        jax.tree.leaves(encoder), jax.tree.leaves(after.part_states["conv"].params), gradient, strict=True
    ):
        clear = np.abs(g) > 1e-4  # smaller ones are rounding, which Adam's first step makes as large
        np.testing.assert_allclose((now - before)[clear], (-1e-3 * np.sign(g))[clear], rtol=1e-2, atol=1e-7)
        assert clear.any()


def test_every_observation_of_a_batch_is_shifted_by_itself():
    spec = Spec(9 * 9 + 1, 2, frame=(9, 9))
    obs = np.random.default_rng(0).integers(0, 256, (64, 82)).astype(np.float32)
    zeros = jnp.zeros(64)
    batch = Batch(obs, zeros[:, None], zeros, zeros, obs, 0.9, {"successor": obs, "truncated": zeros})
    made = Conv(shift=2).augment(batch, spec, jax.random.key(0))
    views = [np.asarray(x) for x in (made.observation, made.next_observation, made.extra["successor"])]
    for k, one in enumerate(views):
        np.testing.assert_array_equal(one[:, 81], obs[:, 81])
        assert (one[:, :81] != obs[:, :81]).any(1).sum() > 50
        assert all((one != other).any(1).sum() > 50 for other in views[:k])
    assert Conv(shift=0).augment(batch, spec, jax.random.key(0)) is batch


# --- environments ---------------------------------------------------------------------------------------


class Both(gym.Env):
    """A picture and a vector; the keys are sorted, so that the vector comes first."""

    privileged_keys = None

    def __init__(self, **more):
        parts = {
            "a_speed": spaces.Box(-1, 1, (2,), np.float32),
            "camera": spaces.Box(0, 255, (9, 9, 1), np.uint8),
        }
        self.observation_space = spaces.Dict(parts | more)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(9999)))
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("envs", [1, 2])
def test_a_dict_of_an_image_and_a_vector(envs):
    adapter = make(Both, envs)
    assert (adapter.spec.frame, adapter.spec.pixels, adapter.spec.observation_size) == ((9, 9, 1), 81, 83)
    assert [path for path, _ in adapter.leaves] == [("camera",), ("a_speed",)]
    seen = adapter.reset()
    assert (seen.shape, seen.dtype) == ((envs, 83), np.float32)
    assert seen[:, :81].max() > 9
    assert np.abs(seen[:, 81:]).max() <= 1
    hidden = make(Both, env_args={"critic_observation": "a_speed"})
    assert (hidden.spec.frame, hidden.spec.actor_size) == ((9, 9, 1), 81)
    agent = build("td3+conv", hidden.spec)
    state, no = jax.eval_shape(lambda: agent.init(jax.random.key(0))), jnp.array(False)
    assert state.actor.torso.layers[0].weight.shape == (16, 8)
    assert state.critics[0].body.torso.layers[0].weight.shape == (16, 8 + 2 + 2)
    steps = jnp.zeros((), jnp.int32)
    context = agent.functions(agent.init(jax.random.key(0)), Event(steps, steps, no, no))
    slopes = np.abs(
        jax.jacobian(lambda x: context.policy(x[None]).mode()[0])(jnp.asarray(hidden.reset()[0]))
    ).sum(0)
    assert slopes[:81].any()
    assert not slopes[81:].any()


def test_what_does_not_fit_is_refused_in_a_sentence():
    camera = spaces.Box(0, 255, (9, 9), np.uint8)
    for more, says in (
        ({"second": camera}, r"several images \(camera, second\)"),
        ({"camera": spaces.Dict(inner=camera)}, r"its image at camera\.inner"),
    ):
        with pytest.raises(UsageError, match=says):
            make(lambda more=more: Both(**more))
    with pytest.raises(UsageError, match="the image camera to critics only"):
        make(Both, env_args={"critic_observation": "camera"})
    with pytest.raises(
        UsageError, match=r"an image \(9, 9, 1\) in a Dict: dqn and on-policy agents see a single image"
    ):
        make(Both, index_actions=True)
    stack = Spec(4 * 84 * 84, 2, frame=STACK)
    for recipe, says in (
        ("td7", "sale is for vectors, and it shows images .*take a recipe with conv in its place"),
        ("td3", "plain is for vectors, and it shows images"),
        ("td3+conv+normalise", "normalise is for vectors.*leave normalise out"),
        ("sac+conv+savgo", "savgo is for vectors"),
        ("td3+conv+savo", "savo is for vectors"),
        ("iql+conv", "iql is for vectors"),
    ):
        with pytest.raises(UsageError, match=says):
            agents.build(recipe).on(stack)
    with pytest.raises(
        UsageError, match="conv is for images, and observations here are vectors; leave conv out"
    ):
        agents.build("td3+conv").on(Spec(5, 2))
    for frame in ((4, 14, 84), (3, 84, 84, 3)):
        with pytest.raises(UsageError, match="images of at least 15 × 15 with one axis of channels"):
            agents.build("td3+conv").on(Spec(int(np.prod(frame)), 2, frame=frame))
    with pytest.raises(UsageError, match="both fill one place"):
        agents.build("td7+conv")


@pytest.mark.parametrize(
    ("recipe", "becomes"),
    [("sac", "sac+conv"), ("td3+pave", "td3+pave+conv"), ("drqv2", "drqv2"), ("td7", "td7"), ("ppo", "ppo")],
)
def test_recipes_without_an_encoder_get_one(recipe, becomes):
    found, notes = agents.recipe_for_images(recipe)
    assert (found, len(notes)) == (becomes, int(found != recipe))


def test_the_recipe_of_the_paper():
    agent = agents.build("drqv2").on(Spec(4 * 84 * 84, 2, frame=STACK))
    base = agent.base
    assert (base.n_step, base.batch_size, base.updates_per_step, agent.target_update.rate) == (
        3,
        256,
        0.5,
        0.01,
    )
    assert (base.actor_learning_rate, base.critic_learning_rate, base.target_noise_clip) == (1e-4, 1e-4, 0.3)
    assert (base.next_observation, base.replay_capacity) == ("derived", 100_000)


# --- runs ------------------------------------------------------------------------------------------------

SMALL = {"channels": 8, "strides": (2, 2), "width": 16, "shift": 1}


@pytest.mark.slow
def test_td3_learns_where_the_spot_is():
    base = SIZES | {"batch_size": 32, "warmup": 100, "policy_delay": 1, "target_noise": 0.0}
    base |= {f"{net}_learning_rate": 1e-3 for net in ("actor", "critic")}
    base |= {f"{net}_hidden": (32, 32) for net in ("actor", "critic")}
    settings = {"base": base, "conv": SMALL, "polyak": {"rate": 0.1}}
    model = qs.Model("td3+conv", partial(Spot, 1), eval_every=0, **settings)
    model.learn(700)
    for place in (-1, 1):
        np.testing.assert_allclose(model.predict(Spot.show(place))[0], 0.6 * place, atol=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 60 steps that began as `sac`, and its flags."""
    settings = {"base.actor-hidden": 8, "base.critic-hidden": 8, "base.warmup": 20, "base.batch-size": 8}
    settings |= {"base.replay-capacity": 40, "eval-episodes": 2, "eval-every": 30, "save-every": 20}
    given = ["--env", "tiny:Spot-v0", "--steps", "60"]
    given += [str(x) for name, value in settings.items() for x in (f"--{name}", value)]
    # Twelve pixels are too few for the usual four convolutions.
    given += ["--conv.strides", "2", "2"]
    folder = tmp_path_factory.mktemp("pixels") / "run"
    assert qscape(["train", "sac+conv", *given, "--out", str(folder)]) == 0
    return folder / "0"


@pytest.mark.slow
def test_a_resumed_run_equals_a_whole_one(run, tmp_path):
    plan = dataclasses.replace(read_plan(run), label="")
    for hold in (stop_at(33), None):
        go_on = resume if (tmp_path / "run").exists() else partial(train, plan)
        *_, end = go_on(tmp_path / "run", **({"on_trainer": hold} if hold else {}))
    assert not end.interrupted
    assert_same_run(tmp_path / "run", run)


@pytest.mark.slow
def test_what_can_be_done_with_a_run(run, tmp_path, capsys):
    assert qscape(["evaluate", str(run), "--episodes", "2"]) == 0
    assert (
        qscape(
            ["landscape", str(run), "--states", "2", "--episodes", "1", "--json", str(tmp_path / "x.json")]
        )
        == 0
    )
    pytest.importorskip("onnxruntime")
    assert qscape(["export", str(run), "--episodes", "2", "--onnx", str(tmp_path / "policy.onnx")]) == 0


def test_recipes_change_by_themselves_with_a_note(tmp_path, capsys):
    """`sac` needs images of 15 × 15 there; these are refused, after the recipe has changed."""
    assert qscape(["train", "sac", "--env", "tiny:Spot-v0", "--steps", "50", "--out", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'sac+conv' does not fit this environment: conv needs images of at least 15 × 15" in said
    plan = Plan(
        "td3", "tiny:Spot-v0", 40, eval_every=0, settings={"base": SIZES | {"warmup": 38, "n_step": 2}}
    )
    with pytest.raises(UsageError, match=r"'td3\+conv' does not fit"):
        list(train(plan, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.long
def test_car_racing_from_pixels(tmp_path, capsys):
    pytest.importorskip("Box2D")
    pytest.importorskip("cv2")
    small = [
        "--base.warmup",
        "16",
        "--base.batch-size",
        "4",
        "--base.replay-capacity",
        "100",
        "--eval-every",
        "0",
    ]
    assert (
        qscape(["train", "sac", "--env", "CarRacing-v3", "--steps", "20", *small, "--out", str(tmp_path)])
        == 0
    )
    assert "observations hold an image: sac becomes sac+conv" in capsys.readouterr().out
    record = read_record(tmp_path / "0")
    assert record["recipe"] == "sac+conv"
    assert record["label"] == "sac+conv[base.batch_size=4,base.replay_capacity=100,base.warmup=16]"
