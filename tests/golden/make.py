"""Make the golden runs: `NPROC=1 JAX_PLATFORMS=cpu python tests/golden/make.py OUT`.

A golden run is an ordinary run folder of an interrupted run. It stays in the repository as an earlier version
wrote it. `tests/test_golden.py` loads, evaluates, resumes and compares it with the present code. The expected
results stand in NAME.json. The code that wrote the folder computed them.

    NAME/           the run folder
    NAME.json       the platform, returns and actions of the policy, measures of the networks, and the end of
                    a resumed copy
    compare.json    the table of `qscape compare` over all folders

The last digits of a result depend on the processor and on the version of jax. The test compares bits on the
recorded platform and uses a tolerance on others.

Once, expected numbers were replaced: of `sac`, whose evaluations have other random steps since the key of a
step is no longer one that the reset may use.

The script skips a run whose folder exists. To cover something new, add a plan with a new name. Never replace
an old folder: it is the format that users have on their disks.
"""

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qscape as qs
from qscape.cli import main as qscape
from qscape.run import events as ev

EPISODES = 2  # of every evaluation
PACKAGES = ("jax", "jaxlib", "numpy", "gymnasium")
NETWORKS = {"actor_hidden": (8, 8), "critic_hidden": (8, 8), "batch_size": 16}
OFF_POLICY = NETWORKS | {"replay_capacity": 500, "warmup": 60, "actor_learning_rate": 3e-3}
PENDULUM: dict[str, Any] = {"env": "Pendulum-v1", "env_args": {"max_episode_steps": 40}}
SIZES = {
    "Pendulum-v1": 3,
    "jax/CartPole-v1": 4,
    "recsim/10k-v0": 30,
    "mineworld/MineWorld-v0": 23,
}  # of an observation
PACE: dict[str, Any] = {
    "steps": 375,
    "seed": 3,
    "eval_every": 130,
    "eval_episodes": EPISODES,
    "log_every": 25,
    "save_every": 130,
    "keep_saves": 1,
    "milestones": 0.5,
}
STOP = 300  # steps after which a run is interrupted: in the middle of an episode

PLANS: dict[str, qs.Plan] = {
    # A full replay whose oldest rows were overwritten.
    "td3": qs.Plan("td3", settings={"base": OFF_POLICY | {"replay_capacity": 200}}, **PENDULUM, **PACE),
    # Bursts of updates at the ends of episodes, copies of the encoders, a kept policy.
    "td7": qs.Plan(
        "td7",
        settings={
            "base": OFF_POLICY | {"sync_every": 50},
            "sale": {"width": 8, "hidden": (8, 8)},
            "checkpoints": {"early_episodes": 2},
        },
        **PENDULUM,
        **PACE,
    ),
    "sac+savgo": qs.Plan(
        "sac+savgo",
        settings={
            "base": OFF_POLICY,
            "savgo": {"candidates": 4, "hidden": (8, 8, 8), "embedding": 8},
        },
        **PENDULUM,
        **PACE,
    ),
    # An action table, proposals in the replay, noise with a state.
    "td3+savo": qs.Plan(
        "td3+savo",
        "mineworld/MineWorld-v0",
        env_args={"max_episode_steps": 40},
        settings={"base": OFF_POLICY, "savo": {"list_length": 2}},
        **PACE | {"milestones": 1.0},
    ),
    "td3+pave": qs.Plan("td3+pave", settings={"base": OFF_POLICY}, **PENDULUM, **PACE),
    # Two environments side by side, three-step returns, derived next observations.
    "sac+normalise+lap": qs.Plan(
        "sac+normalise+lap",
        envs=2,
        settings={"base": OFF_POLICY | {"n_step": 3, "next_observation": "derived"}},
        **PENDULUM,
        **PACE,
    ),
    # An unfinished rollout.
    "ppo+etf+normalise+scale_rewards": qs.Plan(
        "ppo+etf+normalise+scale_rewards",
        "jax/CartPole-v1",
        env_args={"max_episode_steps": 60},
        settings={"base": NETWORKS | {"rollout": 64, "passes": 2, "learning_rate": 3e-3}},
        **PACE,
    ),
    # Written in format 2: steps and updates in one program, environments' states among the arrays.
    "sac": qs.Plan("sac", "recsim/10k-v0", envs=2, settings={"base": OFF_POLICY}, **PACE),
}
KILLED = {"td3+savo"}  # interrupted as by kill -9: the newest save is older than the last lines of the files


def interrupt(plan: qs.Plan, folder: Path) -> None:
    """Train into a folder and interrupt the run after `STOP` steps, as Ctrl-C does."""
    trainers: list[Any] = []
    events = qs.train(plan, folder, on_trainer=trainers.append)
    for event in events:
        if isinstance(event, ev.Logged) and event.step >= STOP:
            if folder.name in KILLED:
                break
            trainers[0].stop()
    events.close()


def this_platform() -> dict[str, Any]:
    """Everything that the last digits of a result depend on."""
    names = ("vendor_id", "cpu family", "model", "stepping", "model name")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    about = {name.strip(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    flags = " ".join(sorted(about.get("flags", "").split()))
    return {
        "machine": platform.machine(),
        "processor": " ".join(about.get(name, "") for name in names),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "threads": os.environ.get("NPROC"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def newest_save(folder: Path) -> Path:
    """The folder of a run's newest save."""
    return max((file.parent for file in folder.glob("saves/*/save.json")), key=lambda path: int(path.name))


def leaves(folder: Path) -> Iterator[str]:
    """One line for each array of a run's newest save: dtype, shape, digest of its bytes, then its name.

    A later version may rename an array. The rest of the line has to stay.
    """
    for file in sorted(newest_save(folder).glob("*.npz")):
        with np.load(file) as arrays:
            for name, array in arrays.items():
                digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
                shape = ",".join(map(str, array.shape))
                yield f"{array.dtype}[{shape}] {digest} {file.stem}/{name}"


def evaluations(folder: Path) -> list[str]:
    """The rows of evaluations.csv without their seconds: step, policy, episode, return, length."""
    columns = ("step", "policy", "episode", "return", "length")
    with (folder / "evaluations.csv").open(newline="") as file:
        return [",".join(row[name] for name in columns) for row in csv.DictReader(file)]


def counters(folder: Path) -> dict[str, int]:
    """Environment steps and updates in the last line of metrics.jsonl."""
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: line[name] for name in ("step", "updates")}


def act(folder: Path, observations: list[list[float]]) -> dict[str, Any]:
    """Returns of the policy in a run folder, and its actions at some observations."""
    model = qs.load(folder)
    actions, _ = model.predict(np.array(observations, np.float32))
    return {
        "env_steps": model.env_steps,
        "returns": model.evaluate(EPISODES),
        "observations": observations,
        "actions": actions.tolist(),
    }


def finish(folder: Path) -> dict[str, Any]:
    """Resume the run in a folder to its end; returns its counters, evaluations and arrays."""
    for _ in qs.resume(folder):
        pass
    return counters(folder) | {"evaluations": evaluations(folder), "leaves": sorted(leaves(folder))}


def landscape(folder: Path) -> dict[str, float]:
    """Q of the policy's action at one state, for each save: `qscape landscape --over-training`."""
    assert qscape(["landscape", str(folder), "--over-training", "--states", "4"]) == 0
    found = json.loads((folder / "inspect" / "landscape.json").read_text())
    saves = [found, *found["over_training"]]
    return {str(save["step"]): save["landscapes"][0]["survey"]["action_q"] for save in saves}


def embedding(folder: Path) -> dict[str, float]:
    """What the encoder of savgo and its running scale give: `qscape embedding`."""
    assert qscape(["embedding", str(folder), "--states", "16"]) == 0
    found = json.loads((folder / "inspect" / "embedding.json").read_text())
    return {name: found[name] for name in ("rank_correlation", "gap_scale")} | {"q": found["own"]["value"]}


def collapse(folder: Path) -> dict[str, float]:
    """Alignment of features and action layer, for each save: `qscape collapse`."""
    assert qscape(["collapse", str(folder), "--states", "100"]) == 0
    found = json.loads((folder / "inspect" / "collapse.json").read_text())
    return {str(save["step"]): save["alignment"] for save in found["history"]}


def begin_with(folder: Path) -> dict[str, float]:
    """The first evaluation of a new run that begins with the networks of a run: `qscape train --from`."""
    old = PLANS[folder.name]
    plan = dataclasses.replace(old, steps=100, settings={"base": old.settings["base"] | {"warmup": 0}})
    plan = dataclasses.replace(plan, start=str(folder))
    events = qs.train(plan, folder.parent / "new")
    found = next(event for event in events if isinstance(event, ev.Evaluated))
    events.close()
    return {str(k): value for k, value in enumerate(found.returns)}


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    "td7": landscape,
    "sac+savgo": embedding,
    "ppo+etf+normalise+scale_rewards": collapse,
    "sac+normalise+lap": begin_with,
}


def compare(folder: Path, aside: Path) -> list[dict[str, Any]]:
    """Final scores that `qscape compare` finds in a folder of runs; writes its tables to the file `aside`."""
    assert qscape(["compare", str(folder), "--unequal", "--reps", "10", "--json", str(aside)]) == 0
    columns = ("env", "label", "policy", "seeds", "steps", "final_mean")
    return [{name: row[name] for name in columns} for row in json.loads(aside.read_text())["per_env"]]


def make(name: str, out: Path) -> None:
    """Make one golden run, and the file of its expected results."""
    plan, folder = PLANS[name], out / name
    interrupt(plan, folder)
    (folder / ".lock").unlink()
    for file in folder.glob("events.out.tfevents.*"):  # its name ends with the name of the machine
        file.rename(file.with_suffix(".golden"))
    numbers = np.arange(3)[:, None] * 7.0 + np.arange(SIZES[plan.env])
    expected = {"platform": this_platform(), "loaded": act(folder, np.sin(numbers).round(3).tolist())}
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(shutil.copytree(folder, Path(aside) / name))
        if name in MEASURES:
            expected["measured"] = MEASURES[name](copy)
        expected["resumed"] = finish(copy)
    (out / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


def main(out: Path) -> None:
    """Make the golden runs that do not exist yet."""
    if os.environ.get("NPROC") != "1":
        sys.exit("NPROC=1 is needed: the number of threads changes the last digits")
    os.environ["QSCAPE_COMMAND"] = "python tests/golden/make.py"  # for run.json
    out.mkdir(parents=True, exist_ok=True)
    for name in PLANS:
        if not (out / name).exists():
            make(name, out)
    with tempfile.TemporaryDirectory() as aside:
        found = compare(out, Path(aside) / "tables.json")
    (out / "compare.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
