"""Stable-Baselines3's TD3 and SAC act in qscape as they do at home. Needs the extra `bench`."""

import numpy as np
import pytest
import tiny

import qscape as qs
from qscape.cli import main, train
from qscape.errors import RunError, UsageError
from qscape.export import stable_baselines
from qscape.export.stable_baselines import convert_file
from qscape.run.plan import prepare

torch = pytest.importorskip("torch")
sb3 = pytest.importorskip("stable_baselines3")
NETS = {
    "TD3": {},
    "DDPG": {"policy_kwargs": {"net_arch": {"pi": [24, 16], "qf": [32]}}},
    "SAC": {"policy_kwargs": {"net_arch": [24, 16], "activation_fn": torch.nn.ELU}},
}


@pytest.fixture(scope="module", params=NETS)
def home(request, tmp_path_factory):
    """A model of Stable-Baselines3, a little trained, and its file."""
    model = getattr(sb3, request.param)(
        "MlpPolicy",
        "Pendulum-v1",
        seed=1,
        device="cpu",
        buffer_size=300,
        learning_starts=20,
        **NETS[request.param],
    ).learn(40)
    file = tmp_path_factory.mktemp("sb3") / "m.zip"
    model.save(file)
    return model, file


def test_actions_and_values_are_equal(home, tmp_path, capsys):
    model, file = home
    assert main(["import", str(file), "--env", "Pendulum-v1", "--out", str(tmp_path / "r")]) == 0
    assert "largest difference" in capsys.readouterr().out
    mine = qs.load(tmp_path / "r")
    obs = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    np.testing.assert_allclose(mine.predict(obs)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
    action = np.random.default_rng(1).uniform(-1, 1, (500, 1)).astype(np.float32)
    with torch.no_grad():
        theirs = model.critic(torch.as_tensor(obs), torch.as_tensor(action))
        slow = model.critic_target(torch.as_tensor(obs), torch.as_tensor(action))
    state = mine.trainer.learner.state
    for critics, values in ((state.critics, theirs), (state.critics_target, slow)):
        assert len(critics) == len(values)
        for critic, value in zip(critics, values, strict=True):
            np.testing.assert_allclose(critic(obs, action, []), value[:, 0], atol=1e-5)
    if hasattr(model, "log_ent_coef"):
        assert float(state.part_states["soft"].actor_params) == pytest.approx(
            float(model.log_ent_coef.detach())
        )
    base = mine.trainer.agent.base
    assert (mine.env_steps, base.warmup, base.replay_capacity) == (40, 20, 300)
    if hasattr(model, "policy_delay"):
        smoothing = model.target_policy_noise, model.target_noise_clip
        assert (base.policy_delay, base.target_noise, base.target_noise_clip) == (
            model.policy_delay,
            *smoothing,
        )
    else:
        assert mine.trainer.agent.policy_loss.target_entropy == model.target_entropy


def test_training_goes_on_without_another_random_phase(home, tmp_path, monkeypatch):
    _, file = home
    convert_file(file, "Pendulum-v1", tmp_path / "r" / "0")
    numbers = tiny.numbers(tmp_path / "r" / "0")
    assert (numbers["env_steps"], numbers["learning"], numbers["refill"]) == (40, False, 40 + 256), (
        "by the policy"
    )
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    again = [
        "train",
        "--config",
        str(tmp_path / "r/0/run.json"),
        "--from",
        str(tmp_path / "r"),
        "--steps",
        "900",
    ]
    assert main([*again, "--out", str(tmp_path / "a")]) == 0
    assert main([*again, "--out", str(tmp_path / "b"), "--base.warmup", "7"]) == 0
    assert [prepare(job.plan)[1].base.warmup for job in jobs] == [0, 7]


def test_a_fixed_temperature_stays_fixed(tmp_path):
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", device="cpu", ent_coef=0.2, buffer_size=300)
    model.save(tmp_path / "m.zip")
    convert_file(tmp_path / "m.zip", "Pendulum-v1", tmp_path / "r")
    assert qs.load(tmp_path / "r").trainer.agent.policy_loss.temperature == 0.2


def test_what_does_not_fit_is_refused(home, tmp_path):
    _, file = home
    with pytest.raises(UsageError, match="name the environment it was trained in"):
        convert_file(file, "MountainCarContinuous-v0", tmp_path / "a")
    with pytest.raises(UsageError, match="takes actions whose low"):
        convert_file(file, "NarrowPendulum-v0", tmp_path / "a")
    (tmp_path / "bad.zip").write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read as a Stable-Baselines3 file"):
        convert_file(tmp_path / "bad.zip", "Pendulum-v1", tmp_path / "a")
    with pytest.raises(UsageError, match="does not exist"):
        convert_file(tmp_path / "none.zip", "Pendulum-v1", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_algorithm_is_refused(tmp_path):
    sb3.PPO("MlpPolicy", "Pendulum-v1", device="cpu").save(tmp_path / "p.zip")
    with pytest.raises(UsageError, match="holds no TD3 or SAC"):
        convert_file(tmp_path / "p.zip", "Pendulum-v1", tmp_path / "a")


@pytest.mark.parametrize("other", ["quantiles", "norms"])
def test_an_algorithm_with_the_names_of_sac_is_refused(monkeypatch, tmp_path, other):
    """TQC's critics end in 25 numbers, and networks of CrossQ have batch norms."""
    ends = 25 if other == "quantiles" else 1
    sizes = {"actor.latent_pi.0": (8, 3), "actor.mu": (1, 8), "actor.log_std": (1, 8)}
    sizes |= {
        f"{critic}.qf0.{k}": n
        for critic in ("critic", "critic_target")
        for k, n in ((0, (8, 4)), (2, (ends, 8)))
    }
    arrays = {f"{name}.weight": np.ones(n, np.float32) for name, n in sizes.items()}
    arrays |= {f"{name}.bias": np.ones(n[0], np.float32) for name, n in sizes.items()}
    if other == "norms":
        arrays |= {"actor.latent_pi.1.running_mean": np.ones(8, np.float32)}
    monkeypatch.setattr(stable_baselines, "_read", lambda file: (arrays, {}))
    with pytest.raises(UsageError, match="holds no TD3 or SAC"):
        convert_file(tmp_path / "p.zip", "Pendulum-v1", tmp_path / "a")


class Narrow(tiny.gym.Wrapper):
    """Pendulum whose box of actions is half as wide."""

    def __init__(self, render_mode=None):
        super().__init__(tiny.gym.make("Pendulum-v1", render_mode=render_mode))
        self.action_space = tiny.spaces.Box(-1.0, 1.0, (1,), np.float32)


if "NarrowPendulum-v0" not in tiny.gym.registry:
    tiny.gym.register("NarrowPendulum-v0", Narrow)
