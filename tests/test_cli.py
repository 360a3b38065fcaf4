"""The command line: what it refuses, and with which sentence and code; what it prints and writes."""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rows import slow
from tiny import arrays, environment, flags, numbers, python, start, stop_at

import qscape
from qscape.agents import building, parse
from qscape.cli import COMMANDS, main, options, train
from qscape.envs import EnvAdapter
from qscape.errors import memory_error
from qscape.methods.resets import Resets
from qscape.run import events, saves, sinks, training
from qscape.run import folder as folders
from qscape.run.plan import Plan, anywhere, prepare, to_json

CLOCK = ["--env", "tiny:Clock-v0", "--eval-every", 0]
SHORT = [*CLOCK, *flags("td3", warmup=30), "--steps", 120]


def run(*argv):
    """The exit code of `qscape ARGV`, in this process."""
    try:
        return main([str(a) for a in argv])
    except SystemExit as end:  # help, and values that do not fit their flag
        return end.code


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; returns the one sentence it was refused with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # for the processes of several seeds

    def refuse(*argv, code=2):
        assert run(*argv) == code
        out, err = capsys.readouterr()
        assert err.startswith("qscape: ")
        assert err.count("\n") == 1
        assert "Traceback" not in out + err
        return err

    return refuse


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run; copy it before you write to it."""
    group = tmp_path_factory.mktemp("cli") / "group"
    assert run("train", "td3", *SHORT, "--out", group) == 0
    return group / "0"


# --- what cannot be asked for: exit code 2, and nothing is written -------------------------------------

NOT_A_NAME = [
    (["train", "td3", *CLOCK, "--seeds", 0, "--seeds", 1], "--seeds is there twice; name all its values"),
    (["xyz"], "there is no command 'xyz'; there are train, resume"),
    (["train", "td9", *CLOCK], "There is no agent 'td9'; near to it: td7, td3"),
    (["train", "ddpg", *CLOCK], "no agent 'ddpg'; it is td3 with base.critics 1, base.policy_delay 1 and ba"),
    (["train", "td3+action_change", *CLOCK], "own_target; a part of your own is written module:Class.\n"),
    (["train", "sale", *CLOCK], "'sale' is a part: write td3+sale"),
    (["train", "td3+salle", *CLOCK], "There is no part 'salle' (in 'td3+salle'); near to it: sale"),
    (["train", "td3+sac", *CLOCK], "'sac' is an agent and comes first"),
    (["train", "td3", "--env", "HalfCheeta-v5"], "'HalfCheeta-v5'; near to it: HalfCheetah-v5"),
    (["train", "td3", "--env", "qwertz"], "no environment is called 'qwertz'"),
    (["train", "td3", "--env", "nosuchmodule:Env-v0"], "nosuchmodule"),
    (["train", "td3", "--env", ":"], "names no environment"),
    (["train", "td3"], "needs an environment, e.g. --env HalfCheetah-v5"),
    (["train"], "needs RECIPE first"),
    (["list", "things"], "takes agents, parts, presets, envs, studies, not 'things'"),
    (
        ["train", "td3", *SHORT, "--log", "paper"],
        "--log paper is unknown; choose wandb, trackio, ml",
    ),
]
NOT_TOGETHER = [
    (["train", "td7+lap", *CLOCK], "'lap' cannot be added in 'td7+lap': td7 already has it; leave it out"),
    (["train", "td3+lap+lap", *CLOCK], "it is there twice"),
    (["train", "td3++lap", *CLOCK], "A name of 'td3++lap' is empty: write one + before each part"),
    (["train", "td3", "--env", "clock.py:Clock-v0"], "write clock:Clock-v0"),
    (["train", "td3", "--env", "CartPole-v1"], "CartPole-v1 has Discrete actions: off-policy agents"),
    (["train", "td3", "--env", "tiny:Picture-v0"], "'td3+conv' does not fit this environment: conv needs"),
    (["train", "sac", "--env", "tiny:Unbounded-v0"], "dimension 1 of the action is unbounded"),
    (["train", "td3", *CLOCK, "--env-args", "tall=True"], "cannot be made with env_args {'tall': True}"),
]  # fmt: skip
NOT_A_FLAG = [
    (["train", "td3", *CLOCK, "--lap.alpha", 0.5], "--lap.alpha belongs to lap; write td3+lap"),
    (["train", "td7", *CLOCK, "--polyak.rate", 1], "belongs to polyak; leave that out, since 'td7+pol"),
    (["train", "td3+lap", *CLOCK, "--value-clip.x", 1], "--value-clip.x belongs to value_clip; write td3+"),
    (["train", "td3", *CLOCK, "--base.discunt", 0.9], "no flag --base.discunt; did you mean --base.discount"),
    (["train", "td3", *CLOCK, "--fast"], "qscape train td3 has no flag --fast"),
    (["train", "ppo", "--num-steps", 9], "num-steps is --base.rollout here (steps of all environments toget"),
    (["train", "ppo", "--num-minibatches", 4], "is --base.batch-size here (the rollout divided by num_min"),
    (["evaluate", "runs", "--epsiodes", 3], "did you mean --episodes"),
    (["train", "td3", *CLOCK, "--env-args", "length"], "--env-args length is no name=value pair"),
    (["train", "td3", *CLOCK, "--log"], "--log needs a value: --log STR"),
    (["train", "td3", *CLOCK, "--env.tall", "false"], "--env-args tall=false: write tall=False"),
]  # fmt: skip
NOT_A_NUMBER = [
    (["train", "td3", *CLOCK, "--steps", 0], "--steps is 0: a run needs at least one environment step"),
    (["train", "td3", *CLOCK, "--steps", -5], "--steps is -5: a run needs at least one environment step"),
    (["train", "td3", *CLOCK, "--steps", 99, "--base.warmup", 99], "--base.warmup 99 leaves no update in 99"),
    (["train", "td3", *CLOCK, "--base.warmup", -1], "base.warmup is -1; it must be a number, 0 or more"),
    (["train", "td3", *CLOCK, "--base.discount", 1.5], "base.discount is 1.5; it must lie in [0, 1]"),
    (["train", "td3", *CLOCK, "--base.batch-size", 0], "base.batch_size is 0; it must be at least 1"),
    (["train", "td3", *CLOCK, "--envs", 0], "--envs is 0; it must be at least 1"),
    (["train", "td3", *CLOCK, "--seeds", 1, 1], "--seeds 1 1: name each seed once"),
    (["train", "td3", *CLOCK, "--milestones", 0], "--milestones is 0.0; it must lie in (0, 1]"),
    (["train", "td3", *SHORT, "--base.replay-capacity", 1], "--base.replay-capacity 1 with 1 environments"),
    (["tra\x1b[2Jin"], r"there is no command 'tra\x1b[2Jin'"),
    (["train", "--config", "no.json"], "--config no.json cannot be read as a run.json"),
    (["train", "td3", "--conf", "a"], "has no flag --conf; did you mean --config"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "why"),
    [*NOT_A_NAME, *NOT_TOGETHER, *NOT_A_FLAG, *NOT_A_NUMBER],
    ids=lambda x: " ".join(map(str, x))[:50] if isinstance(x, list) else "",
)
def test_usage_errors(refused, argv, why):
    assert why in refused(*argv)
    assert list(Path().iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--steps", "many"], "qscape: --steps is 'many'; it is --steps INT.\n"),
        (["--steps", "1.5e0"], "qscape: --steps is '1.5e0'; it is --steps INT.\n"),
        (["--steps"], "qscape: --steps needs a value: --steps INT.\n"),
        (["--seeds", 0, "a"], "--seeds is 'a'; it is --seeds INT.\n"),
        (["--save-every", "x"], "--save-every is 'x'; it is --save-every INT.\n"),
        (
            ["stray"],
            "qscape train td3 does not take 'stray' after --eval-every; see qscape train td3 --help.",
        ),
        (["--base.critic-loss", "l1"], "is 'l1'; it is --base.critic-loss mse|lap_huber|pal|huber.\n"),
        (["--overwrite", "yes"], "qscape train td3 does not take 'yes' after --overwrite"),
        (["--no-steps"], "qscape train td3 has no flag --no-steps; did you mean"),
        (["--gamma", 0.9], "has no flag --gamma; what others call gamma is --base.discount here.\n"),
        (["--base.tau", 0.9], "what others call tau is --polyak.rate here.\n"),
        (["--learning-starts", 9], "what others call learning-starts is --base.warmup here.\n"),
        (["--net_arch", 9], "net-arch is --base.actor-hidden and --base.critic-hidden here.\n"),
        (["--n-envs", 9], "what others call n-envs is --envs here.\n"),
        (["--train-freq", 9], "train-freq is --base.updates-per-step here (gradient_steps / train_freq).\n"),
        (["--track", "True"], "what others call track is --log here (such as wandb).\n"),
        (["--wandb-project-name", "a"], "what others call wandb-project-name is --log-project here.\n"),
        (["--lr", 9], "lr is --base.actor-learning-rate and --base.critic-learning-rate here.\n"),
        (["--batch-size", 9], "what others call batch-size is --base.batch-size here.\n"),
    ],
)
def test_values_that_do_not_fit_their_flag(refused, argv, why):
    assert why in refused("train", "td3", *CLOCK, *argv)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("flag", ["--env-args", "--env.g", "--base.discount", "--env=x", "--seeds"])
def test_a_resumed_run_is_not_changed(refused, done, tmp_path, flag):
    """And a command is named that begins a new run."""
    shutil.copytree(done, tmp_path / "runs" / "0")
    sentence = refused("resume", "runs", flag, "g=5.0")
    name = flag.partition("=")[0]
    assert f"qscape resume does not take {name}, since a run goes on as it began" in sentence
    assert f"qscape train --config runs/0/run.json --from runs/0 --out NEW {name}" in sentence


@pytest.mark.parametrize("command", ["resume", "evaluate", "video", "plot"])
def test_a_folder_that_is_no_run(refused, command):
    Path("other").mkdir()
    for path in ("nowhere", "other"):
        assert f"{path} is no run and holds none" in refused(command, path)
    if command != "plot":  # which takes whole studies
        study = Path("study") / "task" / "agent" / "0"
        study.mkdir(parents=True)
        (study / "run.json").touch()
        said = refused(command, "study")
        assert (
            "study is no run and no group of seeds, but holds some; name one, e.g. study/task/agent." in said
        )
        shutil.rmtree("study")
    assert "needs RUN" in refused(command)
    assert [p.name for p in Path().iterdir()] == ["other"]
    assert list(Path("other").iterdir()) == []


@pytest.mark.slow
def test_an_existing_run_is_refused_and_kept(refused, done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "runs" / "0")
    before = arrays(done)
    argv = ["train", "td3", *SHORT, "--out", "runs"]
    assert "runs/0 holds a run already; continue it: qscape resume runs/0, or add --overwrite" in refused(
        *argv
    )
    assert arrays(tmp_path / "runs" / "0") == before
    assert run(*argv, "--overwrite", "--base.discount", 0.9) == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "runs" / "0" / "run.json").read_text())
    assert record["settings"]["base"]["discount"] == 0.9
    assert arrays(tmp_path / "runs" / "0") != before
    lines = (tmp_path / "runs" / "0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # none of the run before
    assert "has made its 120 steps; to continue, ask for more" in refused("resume", "runs")


def test_a_folder_of_something_else_is_refused_and_left_alone(refused):
    Path("runs/0").mkdir(parents=True)
    Path("runs/0/thesis.txt").write_text("the only copy")
    for more in ([], ["--overwrite"]):
        assert "runs/0 exists and is no run" in refused("train", "td3", *SHORT, "--out", "runs", *more)
    assert [p.name for p in Path("runs/0").iterdir()] == ["thesis.txt"]


def test_commands_that_take_one_run_do_not_guess(refused, done):
    for seed in "01":
        shutil.copytree(done, f"runs/{seed}")
    assert "runs holds 2 runs; name one, e.g. runs/0" in refused("video", "runs")
    assert "--fps is -5; it must be at least 1" in refused("video", "runs/0", "--fps", -5)
    noise = ("--dataset", "local/a-v0", "--noise", 0.5)
    assert "--noise applies to --policy noisy only" in refused("record", "runs/0", *noise)


@pytest.mark.parametrize(
    ("module", "argv", "why"),
    [
        ("imageio", ["video", "RUN"], 'qscape video needs the extra: pip install "qscape[video]"'),
        ("matplotlib", ["plot", "RUN"], 'Pictures need the extra: pip install "qscape[report]"'),
        ("matplotlib", ["landscape", "RUN"], 'Pictures need the extra: pip install "qscape[report]"'),
        ("wandb", ["train", "td3", *SHORT, "--log", "wandb"], '--log wandb needs the extra: pip install "q'),
    ],
)  # fmt: skip
def test_a_missing_extra(refused, done, tmp_path, monkeypatch, module, argv, why):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails as if it were not there
    monkeypatch.delitem(sys.modules, "qscape.report.landscapes", raising=False)  # imports it at its top
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    folder = shutil.copytree(done, tmp_path / "runs" / "0")
    (folder / "evaluations.csv").write_text(
        "step,policy,episode,return,length,success,seconds\n0,current,0,1.0,30,,0.1\n"
    )
    assert why in refused(*[folder if a == "RUN" else a for a in argv])


# --- what breaks while running: exit code 1 ------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[0], slow([0, 1])])
def test_an_unwritable_folder(refused, seeds):
    """Under a regular file nobody can write, not even root."""
    Path("file").write_text("")
    why = refused("train", "td3", *SHORT, "--out", "file/out", "--seeds", *seeds, code=1)
    assert "cannot be written (Not a directory); choose another --out" in why


@pytest.mark.parametrize(
    ("what", "value"),
    [("observation", "nan"), slow("observation", "inf"), slow("reward", "nan"), ("reward", "inf")],
)
def test_numbers_that_are_not_finite_stop_the_run(refused, capsys, what, value):
    field = {"observation": "observation[1]", "reward": "reward"}[what]
    argv = ["train", "td3", *SHORT, "--save-every", 50, "--out", "runs", "--env-args", "fail_at=100"]
    why = refused(*argv, f"what={what}", f"value={value}", code=1)
    assert f"{field} is {value} in environment 0, step 10 of its episode 4" in why
    run_ = Path("runs/0")
    assert saves.names(run_ / "saves")[-1] == "000000096"  # a tenth of 120 is 12
    assert run(*argv, f"what={what}", f"value={value}", "--overwrite") == 1
    said = capsys.readouterr().out
    assert "the save of step 96 is kept; to continue: qscape resume runs/0 --trust" in said
    assert run("evaluate", run_, "--episodes", 2) == 0
    assert "96" in capsys.readouterr().out


def truncate(save):
    for name in ("acting.npz", "state.npz"):
        file = save / name
        file.write_bytes(file.read_bytes()[:-50])


def truncate_record(save):
    file = save / "save.json"
    file.write_text(file.read_text()[:-20])


def foreign(save):
    (save / "save.json").write_text('{"what": "another program\'s"}')


def newer(save):
    record = json.loads((save / "save.json").read_text())
    record["meta"]["qscape"] = "9.9"
    (save / "save.json").write_text(json.dumps(record | {"version": saves.VERSION + 1}))


def flipped(save):
    for name in ("acting.npz", "state.npz"):
        data = bytearray((save / name).read_bytes())
        data[len(data) // 2] ^= 1
        (save / name).write_bytes(data)


@pytest.mark.parametrize("command", ["resume", "evaluate"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, ".npz is truncated"),
        (truncate_record, "save.json is truncated or damaged"),
        (foreign, "is not a qscape save"),
        (newer, "was written by qscape 9.9 in save format "),
        (flipped, "does not match its checksum"),
    ],
)
def test_saves_that_cannot_be_read(refused, done, tmp_path, command, damage, why):
    folder = shutil.copytree(done, tmp_path / "runs" / "0")
    for name in saves.names(folder / "saves"):  # `resume` goes on from an older one that can be read
        damage(folder / "saves" / name)
    more = ["--steps", 200] if command == "resume" else []
    assert why in refused(command, folder, *more, code=1)


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_broken_run_json(refused, done, tmp_path, command):
    folder = shutil.copytree(done, tmp_path / "runs" / "0")
    (folder / "run.json").write_text('{"recipe": "td3"')
    assert "run.json cannot be read" in refused(command, folder, code=1)


def test_a_broken_run_of_a_group_stops_no_other(refused, done, tmp_path):
    broken, other = (shutil.copytree(done, tmp_path / "runs" / seed) for seed in "01")
    (broken / "run.json").write_text('{"recipe": "td3"')
    folders.write_record(other, folders.read_record(other) | {"steps": 130})
    why = refused("resume", "runs", code=1)
    assert "1 of 2 runs failed; runs/0: runs/0/run.json cannot be read" in why
    assert numbers(other)["env_steps"] == 130


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (
            ["td3", "--base.rate-end", 0.2],
            "--base.rate-end does nothing without a schedule, such as base.schedule = linear; leave it out.",
        ),
        (["td3", "--base.actor-horizon", "run"], "--base.actor-horizon does nothing without a schedule"),
        (["sac", "--base.decay", "decoupled"], "--base.decay does nothing without weight decay"),
        (
            ["sac", "--base.target-noise-clip", 0.3],
            "--base.target-noise-clip does nothing without noise to clip",
        ),
        (["td3", "--base.nearest-probes", 4], "--base.nearest-probes does nothing in an exact search"),
        (["td3", "--base.huber-threshold", 5.0], "--base.huber-threshold does nothing without Huber's loss"),
        (["td3", "--base.ou-rate", 0.3], "--base.ou-rate does nothing without Ornstein-Uhlenbeck noise"),
        (["td3", "--base.noise-max", 0.3], "--base.noise-max does nothing without noise of each environment"),
        (["td3", "--base.epsilon-decay", 0.3], "--base.epsilon-decay does nothing with an ε that stays"),
        (["sac", "--base.exploration", "ou"], "--base.exploration does nothing without exploration noise"),
        (
            ["sac", "--base.policy-phase", 1],
            "--base.policy-phase does nothing where the actor moves at every",
        ),
        (["td3", "--base.log-std-min", -9.0], "--base.log-std-min does nothing with a deterministic policy"),
        (
            ["td3+cem", "--base.actor-hidden", 8],
            "--base.actor-hidden does nothing with cem, which has no actor",
        ),
        (["dqn", "--base.policy-delay", 4], "--base.policy-delay does nothing without an actor"),
        (
            ["fast_td3", "--base.exploration-noise", 0.3],
            "--base.exploration-noise does nothing beside noise of each environment",
        ),
        (
            ["sac", "--soft.temperature", 0.2, "--soft.learning-rate", 1e-3],
            "--soft.learning-rate does nothing with an α that is fixed, by soft.temperature; leave it out.",
        ),
        (["bro", "--resets.every", 1000], "--resets.every does nothing beside resets.at"),
        (["td3+lap", "--lap.no-prioritised", "--lap.alpha", 0.6], "--lap.alpha does nothing without prior"),
        (
            ["trpo", "--base.value-coefficient", 0.3],
            "--base.value-coefficient does nothing with trust_region",
        ),
        (
            ["reinforce", "--base.critic-hidden", 8],
            "does nothing without a critic, and monte_carlo needs none",
        ),
        (
            ["ppo", "--learnable.width", 64],
            "does nothing without a projector, only with learnable.projector =",
        ),
        (["td3", "--log-project", "a"], "--log-tags are for loggers; name one with --log"),
    ],
)
def test_a_typed_option_that_does_nothing_is_refused(refused, argv, why):
    assert why in refused("train", *argv, *CLOCK, "--steps", 100)


def test_options_that_do_nothing_yet_were_not_typed_are_none_of_the_users_business(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    fine = ["td3", "--base.target-noise", 0], ["sac", "--base.rate-end", 0.2, "--base.schedule", "cosine"]
    fine += (["td3", "--base.decay-what", "weights", "--base.actor-weight-decay", 0.1],)
    fine += (["td3+ou", "--base.ou-rate", 0.3, "--base.epsilon-decay", 0.3],)
    fine += (["td3+greedy_td3", "--base.log-std-min", -9.0],)
    fine += (["fast_td3", "--base.exploration-noise", 0, "--base.batch-size", 8],)
    for n, argv in enumerate(fine):
        assert run("train", *argv, *CLOCK, "--steps", 100, "--out", tmp_path / str(n)) == 0
    plan, agent, _ = prepare(Plan("td3", "tiny:Clock-v0", 1_000))
    folders.write_record(tmp_path / "old", {**json.loads(json.dumps(to_json(plan, agent))), "typed": None})
    config = ["train", "--config", tmp_path / "old" / "run.json", "--out", tmp_path / "again"]
    assert run(*config) == 0
    assert run(*config, "--base.rate-end", 0.3) == 2
    assert len(jobs) == 7


def test_a_run_that_is_named_like_a_dataset_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("walker-v2").mkdir()
    assert anywhere("walker-v2") == "walker-v2"
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    assert run("train", "td3", *CLOCK, "--steps", 100, "--from", "walker-v2", "--out", "runs") == 0
    assert jobs[0].plan.start == str(tmp_path / "walker-v2")


def test_a_run_without_a_save_cannot_be_evaluated(refused, done, tmp_path):
    folder = shutil.copytree(done, tmp_path / "td3[preset=paper]" / "0")
    shutil.rmtree(folder / "saves")
    assert "has lost its saves. Nothing was changed. To begin again" in refused("evaluate", folder, code=1)
    folders.write_record(folder, folders.read_record(folder) | {"saved": False})
    why = refused("evaluate", "td3[preset=paper]", code=1)
    assert "has no save yet; continue training first: qscape resume 'td3[preset=paper]/0'." in why
    with folders.locked(folder):
        assert "no save yet; it is being trained, so wait until it saves" in refused(
            "evaluate", folder, code=1
        )


def test_a_run_that_ends_without_an_update(refused):
    """The warm-up of 9 lasts to the episode's end at 30; the next one would end at 60."""
    argv = ["train", "td3+checkpoints", *CLOCK, *flags("td3"), "--steps", 45, "--out", "runs"]
    why = refused(*argv, code=1)
    assert "the run ended after 45 steps without one update" in why
    assert run("resume", "runs", "--steps", 70) == 0
    assert numbers(Path("runs/0"))["updates"] == 30


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["train", "td3", *SHORT, "--overwrite", "--out", "runs"], "wait for it, or choose another --out"),
        (["resume", "runs"], "wait until it ends"),
    ],
)
def test_a_run_folder_in_use(refused, done, tmp_path, argv, advice):
    folder = shutil.copytree(done, tmp_path / "runs" / "0")
    with folders.locked(folder):
        assert f"runs/0 is in use by another process; {advice}." in refused(*argv, code=1)
    assert arrays(folder) == arrays(done)


@pytest.mark.slow
def test_one_failing_seed_leaves_the_other_alone(refused, done, tmp_path):
    """Two seeds run in two processes; the folder of one is in use."""
    with folders.locked(tmp_path / "runs" / "0"):
        why = refused("train", "td3", *SHORT, "--seeds", 0, 1, "--out", "runs", code=1)
    assert "1 of 2 runs failed; runs/0: runs/0 is in use by another process" in why
    assert numbers(tmp_path / "runs" / "1")["env_steps"] == 120
    command = json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["command"]
    assert shlex.split(command)[0] == "qscape"
    assert len(shlex.split(command)) == len(sys.argv), "what was typed, not how a worker is called"


def test_several_seeds_are_refused_as_one_is(refused, done, tmp_path):
    shutil.copytree(done, tmp_path / "runs" / "0")
    assert "runs/0 holds a run already" in refused("train", "td3", *SHORT, "--seeds", 0, 1, "--out", "runs")
    assert "no environment is called 'qwertz'" in refused("train", "td3", "--env", "qwertz", "--seeds", 0, 1)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0"]
    assert arrays(tmp_path / "runs" / "0") == arrays(done)


def test_a_missing_logger_leaves_the_run_that_is_to_be_replaced(refused, done, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "runs" / "0")
    monkeypatch.setitem(sys.modules, "wandb", None)
    argv = ["train", "td3", *SHORT, "--out", "runs", "--overwrite", "--log", "wandb"]
    assert "needs the extra" in refused(*argv)
    assert arrays(tmp_path / "runs" / "0") == arrays(done)


def test_names_of_loggers_are_checked(refused):
    assert "--log-tags 'a\\x07': give 1 to 64" in refused("train", "td3", *SHORT, "--log-tags", "a\a")
    assert "nowhere'); Python looked in the current folder and where PYTHONPATH says.\n" in refused(
        "train", "td3", *SHORT, "--log", "nowhere:Sink"
    )
    assert "--log tiny:Clock is no sink" in refused("train", "td3", *SHORT, "--log", "tiny:Clock")


def test_what_several_seeds_were_asked_for_and_cannot_be_is_a_usage_error_too(refused):
    argv = ["train", "td3", *SHORT, "--seeds", 0, 1, "--probe", "smoothness", "--eval-every", 60]
    assert "2 of 2 runs failed; runs/0: nowhere is no run" in refused(
        *argv, "--from", "nowhere", "--out", "runs"
    )


def test_a_negative_seed(refused, done):
    for command in ("evaluate", "video", "landscape", "smoothness"):
        assert "--seed is -1; it must be 0 or more." in refused(command, done, "--seed", -1)


def test_a_reader_that_goes_does_not_end_a_run(tmp_path):
    """`qscape train ... | head -1`"""
    argv = ["train", "td3", *SHORT, "--out", tmp_path / "group"]
    with start(*argv) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 0
    assert numbers(tmp_path / "group" / "0")["finished"]


def test_a_full_disk_ends_a_run_in_one_sentence(tmp_path):
    sink = sinks.FolderSink(tmp_path)

    def fill():
        for step in range(100_000):
            sink(events.Logged(step, step, {"loss": 0.1}))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, limits[1]))
    try:
        with pytest.raises(qscape.RunError, match=r"cannot be written .*; the last save stays"):
            fill()
        with pytest.raises(qscape.RunError, match=r"cannot be written"):
            sink.close()  # what is left in its buffers
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- in processes of their own -------------------------------------------------------------------------


def process(*argv):
    started = start(*argv)
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


def test_codes_and_sentences_of_a_real_process(done, tmp_path, capfd):
    code, out, err = process("train", "td7+lap", *CLOCK)
    assert (code, out) == (2, "")
    assert err == "qscape: 'lap' cannot be added in 'td7+lap': td7 already has it; leave it out.\n"

    folder = shutil.copytree(done, tmp_path / "run")
    truncate(folder / "saves" / "000000120")
    assert run("evaluate", folder, "--trust") == 1
    err = capfd.readouterr().err
    assert err.startswith("qscape: ")
    assert "Traceback" not in err
    code, _, err = process("evaluate", folder, "--trust", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "DamagedSave" in err


def test_help_is_quick_and_imports_nothing_heavy():
    """Less than half a second of processor time; a busy machine makes no difference."""
    used = []
    for _ in range(3):
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "qscape", "--help"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        used.append(usage.ru_utime + usage.ru_stime)
    assert min(used) < 0.5
    code = "import sys; from qscape.cli import main; print(main(['--help'])); print(*sys.modules)"
    *_, status, modules = python(code).splitlines()
    assert status == "0"
    assert not {"jax", "numpy", "rich", "gymnasium"} & set(modules.split())


def test_the_help_of_a_recipe_starts_no_backend():
    code = """
import sys
from qscape.cli import main
try:
    main(["train", "td7", "--help"])
except SystemExit as end:
    print(end.code)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    out = python(code)
    assert out.split()[-2:] == ["0", "False"]
    for flag in ("--env", "--base.discount", "--sale.width", "--lap.alpha", "--checkpoints.switch"):
        assert flag in out


# --- what it does --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "near"), [("trian", "train"), ("evalute", "evaluate"), ("smooth", "smoothness"), ("xyz", None)]
)
def test_a_command_that_does_not_exist_gets_near_names(typed, near, capsys):
    assert run(typed) == 2
    err = capsys.readouterr().err
    assert (f"did you mean {near}" in err) == (near is not None)
    assert near or all(command in err for command in COMMANDS)


def test_help_fits_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for argv in ([], ["study"], ["landscape"]):
        assert run(*argv, "--help") == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_help_version_and_list(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("train", "resume", "evaluate", "plot", "video", "list"))
    assert run() == 2
    assert run("--version") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("qscape 0.")
    assert run("train", "--help") == 0
    out = capsys.readouterr().out
    assert "RECIPE --env ID" in out
    assert "--eval-every" in out  # the flags of a run, shown with td3's
    for command, flag in {"evaluate": "--current", "landscape": "--plane", "tune": "--trials"}.items():
        assert run(command, "--help") == 0
        assert flag in capsys.readouterr().out
    assert run("list", "--help") == 0
    assert "usage: qscape list" in capsys.readouterr().out
    assert run("study", "--help") == 0
    out = capsys.readouterr().out
    assert "usage: qscape study run|status STUDY" in out
    assert all(flag in out for flag in ("--budget", "--runs", "--workers", "--ray", "--slurm"))
    assert run("train", "td3+lap", "--help") == 0
    out = capsys.readouterr().out
    assert "--lap.alpha" in out
    assert "--sale" not in out
    assert run("list") == 0
    out = capsys.readouterr().out
    for word in ("td3", "sac", "td7", "+sale", "+lap", "+checkpoints", "HalfCheetah-v5"):
        assert word in out
    assert run("list", "parts") == 0
    assert "HalfCheetah" not in capsys.readouterr().out
    assert run("list", "studies") == 0
    assert re.search(
        r"make-demo +What `make demo` trains: .* PAVE's smooth critics\. *\n", capsys.readouterr().out
    )


@pytest.mark.slow
def test_flags_reach_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["train", "td3+lap", "--env", "tiny:Clock-v0", *flags("td3+lap", warmup=20), "--steps", 60]
    argv += ["--env-args", "length=15", "--seeds", 4, "--eval-episodes", 3, "--lap.alpha=0.3"]
    assert run(*argv, "--base.no-target-actor", "--base.gradient-clip", 5) == 0
    out = capsys.readouterr().out
    (folder,) = Path("runs/tiny-Clock-v0(length=15)").glob("*/4")
    assert "lap.alpha=0.3" in folder.parent.name
    assert "gradient_clip=5.0" in folder.parent.name
    assert f"done: {folder}  60 steps, 40 updates" in out
    assert "lap sets base.critic_loss = lap_huber (was mse)" in out
    record = json.loads((folder / "run.json").read_text())
    assert (record["env_args"], record["seed"]) == ({"length": 15}, 4)
    base = record["settings"]["base"]
    assert (base["target_actor"], base["gradient_clip"], base["warmup"]) == (False, 5.0, 20)
    assert record["settings"]["lap"]["alpha"] == 0.3

    record["save_every"] = 30
    (folder / "run.json").write_text(json.dumps(record))
    again = ["train", "--config", folder / "run.json", "--out", "again", "--seeds", 4]
    assert run(*again) == 0
    other = json.loads(Path("again/4/run.json").read_text())
    assert other["settings"] == record["settings"]
    assert other["save_every"] == 30
    assert arrays(Path("again/4"), {"state"}) == arrays(folder, {"state"})


class FirstStepError(Exception):
    """Raised in place of the first step of a run."""


@pytest.mark.parametrize(("typed", "built"), [slow([], 1), (flags("td7", discount=0.98), 2)])
def test_a_run_begins_with_one_plan_one_recipe_and_one_agent(typed, built, tmp_path, monkeypatch):
    plans, opened = [], Counter()

    def prepare_and_count(plan):
        plans.append(plan)
        return prepare(plan)

    def step(*args):
        raise FirstStepError

    for module in (train, training):
        monkeypatch.setattr(module, "prepare", prepare_and_count)
    monkeypatch.setattr(EnvAdapter, "step", step)
    sys.addaudithook(lambda event, args: opened.update(args[:1]) if event == "open" else None)
    for function in (parse, building._build):
        function.cache_clear()
    with pytest.raises(FirstStepError):
        run("--debug", "train", "td7+savo+pave", *CLOCK, "--steps", 2_000, *typed, "--out", tmp_path)
    assert len(plans) == 1
    assert parse.cache_info().misses == 1
    assert building._build.cache_info().misses == built  # with flags that were typed also one without them
    ours = [f for f in opened if str(f).startswith((str(tmp_path), str(Path(qscape.__file__).parent)))]
    data = {Path(f).name: opened[f] for f in ours if Path(f).suffix in (".json", ".toml", ".csv")}
    assert data == {"run.json": 1, "evaluations.csv": 1}, "each file of ours is opened once"
    assert sum(".run.json." in str(f) for f in ours) == 1, "run.json is written once"


def test_a_config_gives_what_was_typed_and_not_what_followed_from_it(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    typed = {"base": {"batch_size": 64, "schedule": "linear"}}
    plan, agent, _ = prepare(Plan("sac", "Pendulum-v1", 1_000, settings=typed))
    record = json.loads(json.dumps(to_json(plan, agent)))
    assert record["settings"]["base"]["warmup"] == 200, "a fifth of the run"
    folders.write_record(tmp_path / "new", record)
    folders.write_record(tmp_path / "old", {k: v for k, v in record.items() if k != "typed"})
    for name in ("new", "old"):
        argv = ["train", "--config", tmp_path / name / "run.json", "--out", tmp_path / "out"]
        assert run(*argv, "--steps", 100_000) == 0
    (longer, _, _), (older, _, _) = (prepare(job.plan) for job in jobs)
    assert (longer.label, longer.typed) == (plan.label, typed)
    assert "warmup" not in longer.settings["base"]
    assert longer.settings["base"]["schedule_updates"] == 100_000, "one for each step"
    assert older.settings["base"]["warmup"] == 200, "an older file does not say what was typed"


def test_a_config_keeps_the_arguments_of_its_environment_and_no_loop(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    asked = Plan("td3", "Pendulum-v1", 1_000, env_args={"g": 9.0}, loop="host")  # as a run records it
    plan, agent, _ = prepare(asked)
    folders.write_record(tmp_path / "run", json.loads(json.dumps(to_json(plan, agent))))
    argv = ["train", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "out"]
    assert run(*argv, "--env.max-episode-steps", 50) == 0
    (job,) = jobs
    assert job.plan.env_args == {"g": 9.0, "max_episode_steps": 50}
    assert job.plan.loop == "auto"


def test_arguments_of_the_environment_tell_default_folders_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = []
    monkeypatch.setattr(train, "run_all", lambda given, *how: jobs.extend(given) or 0)
    length = ["--env.length", 15]
    for more in ([], length, [*length, "--env.fail-at", 9], ["--env.what", "n" * 300]):
        assert run("train", "td3", *CLOCK, "--steps", 100, *more) == 0
    *places, long = (job.folder.parent.parent.name for job in jobs)
    assert places == ["tiny-Clock-v0", "tiny-Clock-v0(length=15)", "tiny-Clock-v0(fail_at=9,length=15)"]
    assert len(long) == 250


def test_evaluate_repeats_itself(done, capsys):
    assert run("evaluate", done.parent, "--episodes", 3) == 0
    first = capsys.readouterr().out
    assert "3 episodes, deterministic policy" in first
    assert "120" in first
    assert run("evaluate", done, "--episodes", 3) == 0
    assert capsys.readouterr().out == first
    assert run("evaluate", done, "--episodes", 3, "--seed", 1001) == 0  # the same three lengths
    assert capsys.readouterr().out == first
    assert run("evaluate", done, "--episodes", 2, "--seed", 1001) == 0
    assert capsys.readouterr().out != first


def test_a_broken_run_does_not_hide_the_rest_of_its_group(done, tmp_path, capsys):
    for name in ("0", "1"):
        shutil.copytree(done, tmp_path / name)
    for name in saves.names(tmp_path / "0" / "saves"):
        truncate(tmp_path / "0" / "saves" / name)
    assert run("evaluate", tmp_path, "--episodes", 1) == 1
    said = capsys.readouterr().out
    assert str(tmp_path / "1") in said
    assert ".npz is truncated" in said.split("left out: ")[1]


def test_whole_numbers_may_have_an_exponent(tmp_path):
    assert run("train", "td3", *CLOCK, "--steps", "1e2", "--base.warmup", 50, "--out", tmp_path / "run") == 0
    assert folders.read_record(tmp_path / "run" / "0")["steps"] == 100


def test_evaluate_takes_means_over_the_seeds_of_one_agent_in_one_environment(done, tmp_path, capsys):
    for name, fields in {
        "0": {},
        "1": {"seed": 1},
        "2": {"label": "td3[base.discount=0.98]"},
        "3": {"env_args": {"length": 20}},
    }.items():
        shutil.copytree(done, tmp_path / name)
        folders.write_record(tmp_path / name, folders.read_record(done) | fields)
    assert run("evaluate", tmp_path / "0", "--episodes", 1) == 0
    assert "mean over" not in capsys.readouterr().out
    assert run("evaluate", tmp_path, "--episodes", 1) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "mean over" in line]
    label = folders.read_record(done)["label"]
    assert said.startswith(f"{label} on tiny:Clock-v0: mean over 2 runs: ")


def test_resuming_a_group_takes_the_unfinished_runs(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "0")
    plan = folders.read_plan(done)
    *_, end = qscape.train(plan, tmp_path / "1", on_trainer=stop_at(70))
    assert end.interrupted
    assert run("resume", tmp_path) == 0
    out = capsys.readouterr().out
    assert f"done: {tmp_path / '1'}  120 steps" in out
    assert str(tmp_path / "0") not in out
    assert arrays(tmp_path / "1") == arrays(done)
    for more, why in (([], "add more with --steps"), (["--steps", 110], "--steps 110 is no more")):
        assert run("resume", tmp_path, *more) == 2
        assert f"every run in {tmp_path} has finished its steps; {why}" in capsys.readouterr().err


@pytest.mark.slow
def test_plot_and_video(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["train", "td3", "--env", "Pendulum-v1", *flags("td3"), "--steps", 100, "--eval-episodes", 1]
    assert run(*argv, "--env-args", "max_episode_steps=20", "--eval-every", 50, "--out", "runs") == 0
    assert run("plot", "runs", "--png", "pictures/curve.png") == 0
    assert Path("pictures/curve.png").read_bytes().startswith(b"\x89PNG")
    assert run("video", "runs", "--mp4", "film.mp4") == 0
    assert Path("film.mp4").stat().st_size > 1_000
    assert "film.mp4: 20 frames" in capsys.readouterr().out
    monkeypatch.setattr(EnvAdapter, "render_frame", lambda self: np.full((45, 31, 3), 200, np.uint8))
    assert run("video", "runs", "--mp4", "odd.mp4") == 0  # H.264 films even sizes only
    assert Path("odd.mp4").stat().st_size > 500

    def fail(self):
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(EnvAdapter, "render_frame", fail)
    assert run("video", "runs", "--mp4", "odd.mp4") == 1
    why = "Pendulum-v1 cannot render on this machine (Cannot initialize a EGL device display); try MUJOCO_GL="
    assert why in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for argv in (["plot", "runs", "--png", "file/out/it.png"], ["video", "runs", "--mp4", "file/out/it.mp4"]):
        assert run(*argv) == 1
        assert f"{argv[-1]} cannot be written (" in capsys.readouterr().err
    assert run("video", "runs", "--mp4", "/proc/film.mp4") == 1  # not in the words of ffmpeg
    assert "/proc/film.mp4 cannot be written (No such file or directory)" in capsys.readouterr().err
    assert run("plot", "runs", "--png", "curve.txt") == 2
    assert "--png curve.txt: .txt is not an image format; choose" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["film", "film.txt", "."])
def test_names_that_are_no_film(refused, done, name):
    assert f"--mp4 {name} is no video file; its name ends in one of .mp4," in refused(
        "video", done, "--mp4", name
    )


def test_devices_that_this_machine_does_not_have():
    told = subprocess.run(
        [sys.executable, "-c", "from qscape.cli import entry; entry()", "video", "nowhere"],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "abacus"},
    )  # fmt: skip
    assert told.returncode == 2
    assert told.stderr.startswith(
        "qscape: JAX finds no device of JAX_PLATFORMS=abacus here; unset it, or set cpu"
    )


def test_letters_that_a_terminal_does_not_have():
    """Greek letters and signs become question marks on a terminal that is not UTF-8."""
    told = subprocess.run(
        [sys.executable, "-m", "qscape", "list", "parts"],
        capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
    assert "?" in told.stdout


def test_an_environment_without_pictures(refused, done):
    assert "unexpected keyword argument 'render_mode'" in refused("video", done)


# --- memory -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_is_one_sentence(refused):
    """What XLA says when it cannot allocate the arrays of a network of 36 TB."""
    wide = ["--base.critic-hidden", 3_000_000, 3_000_000]
    sentence = refused("train", "td3", *CLOCK, *wide, "--out", "wide", code=1)
    assert "there was no memory left for 36000000000000 bytes: make the batch (base.batch_size" in sentence


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 95.37GiB.", " for 95.37GiB"),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 2.00TiB (1B) on device 0", " for 2.00TiB"),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY", ""),
        ("INTERNAL: Error dispatching computation: Out of memory allocating 144 bytes.", " for 144 bytes"),
    ],
)
def test_what_an_accelerator_says_without_memory(said, size):
    assert f"no memory left{size}: make" in str(memory_error(RuntimeError(said)))
    assert memory_error(RuntimeError("INTERNAL: another error")) is None


def test_the_help_of_flags_shows_kind_sentence_default_and_part(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = options.describe_flags({"": options.TrainOptions(), "resets": Resets()}, "qscape train bro")
    assert text.startswith("usage: qscape train bro [FLAGS]\n")
    assert max(map(len, text.splitlines())) <= 60
    lines = text.splitlines()
    assert lines.index("  --seeds INT ...") < lines.index("  --seeds-as auto|processes|vmap")
    assert "  --overwrite, --no-overwrite" in lines
    assert "  --resets.at INT ...|None" in lines
    assert "parallel environments. (default: 1000000)" in " ".join(text.split())
    assert lines.index("  --env STR") < lines.index("  --eval-every INT|None"), "Pace's come last"
    assert [line for line in lines if line.startswith("resets: ")]


@pytest.mark.parametrize(
    ("words", "at"), [(["15000"], (15_000,)), (["15000", "50000"], (15_000, 50_000)), (["None"], None)]
)
def test_several_values_or_none(words, at):
    given = options.parse(Resets(), ["--at", *words], "qscape train bro")
    assert given.at == at
