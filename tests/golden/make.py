"""Make the golden runs: `NPROC=1 JAX_PLATFORMS=cpu python tests/golden/make.py tests/golden`.

A golden run is an ordinary run folder of an interrupted run. It stays in the repository as a released version
wrote it. `tests/test_golden.py` loads, evaluates, exports, resumes and compares it with the present code. The
expected results were computed by the code that wrote the folder.

    VERSION/                the version of qscape that wrote what is in it
        NAME/               the run folder
        NAME.json           a list with the results on each platform: returns and actions of the policy,
                            measures of the networks, digests of the exported arrays, and the end of a resumed
                            copy
        compare.json        the table of `qscape compare` over all folders
        datasets/           the dataset that the run `offline` learns from

The last digits of a result depend on the processor, on the version of jax and on XLA_FLAGS. The test compares
bits on a recorded platform and uses a tolerance on others. So the script was run twice, without XLA_FLAGS and
with those of `make test`: it adds the results on a platform that a NAME.json lacks.

The script skips a run whose folder exists, and it writes to the folder of its own version alone. To cover
something new, add a plan with a new name. Never replace an old folder: it is the format that users have on
their disks.
"""

import csv
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qscape as qs
from qscape.cli import main as qscape
from qscape.run import events as ev
from qscape.run.training import train_together

EPISODES = 2  # of every evaluation
PACKAGES = ("jax", "jaxlib", "numpy", "gymnasium")
DATASET = "golden/pendulum-v0"
NETWORKS = {"actor_hidden": (8, 8), "critic_hidden": (8, 8), "batch_size": 16}
OFF_POLICY = NETWORKS | {"replay_capacity": 400, "warmup": 60, "actor_learning_rate": 3e-3}
ON_POLICY = NETWORKS | {"rollout": 64, "passes": 2, "learning_rate": 3e-3}
PENDULUM: dict[str, Any] = {"env": "Pendulum-v1", "env_args": {"max_episode_steps": 40}}
CARTPOLE: dict[str, Any] = {"env": "jax/CartPole-v1", "env_args": {"max_episode_steps": 60}}
MINEWORLD: dict[str, Any] = {"env": "mineworld/MineWorld-v0", "env_args": {"max_episode_steps": 40}}
SPOT: dict[str, Any] = {"env": "tiny:Spot-v0"}
SHAPES = {  # of an observation
    "Pendulum-v1": (3,),
    "jax/CartPole-v1": (4,),
    "mineworld/MineWorld-v0": (23,),
    "tiny:Spot-v0": (2, 12, 12),
}
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
SEEDS = (3, 5)  # of the runs in one program, folders NAME/3 and NAME/5

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
    # Two environments side by side, three-step returns, derived next observations, running statistics.
    "sac+savgo": qs.Plan(
        "sac+savgo+normalise+reward_scale",
        envs=2,
        settings={
            "base": OFF_POLICY | {"n_step": 3, "next_observation": "derived"},
            "savgo": {"candidates": 4, "hidden": (8, 8, 8), "embedding": 8},
        },
        **PENDULUM,
        **PACE,
    ),
    # An action table, proposals in the replay, environments' states among the arrays.
    "td3+savo": qs.Plan(
        "td3+savo",
        settings={"base": OFF_POLICY, "savo": {"list_length": 2, "summary_width": 8}},
        **MINEWORLD,
        **PACE | {"milestones": 1.0},
    ),
    # An unfinished rollout of two environments.
    "ppo": qs.Plan("ppo", envs=2, settings={"base": ON_POLICY}, **PENDULUM, **PACE),
    # Rollouts in one program with the environment, a fixed action layer, two running moments.
    "ppo+etf": qs.Plan("ppo+etf+normalise+scale_rewards", settings={"base": ON_POLICY}, **CARTPOLE, **PACE),
    # Several seeds in one program whose environments step on the host, and in JAX.
    "seeds": qs.Plan("td3+pave", settings={"base": OFF_POLICY}, **PENDULUM, **PACE),
    "seeds_in_jax": qs.Plan("dqn+lap", settings={"base": OFF_POLICY}, **CARTPOLE, **PACE),
    # A replay that is filled from a dataset; steps are updates.
    "offline": qs.Plan(
        "td3+clone+normalise",
        dataset=DATASET,
        settings={"base": NETWORKS},
        **PENDULUM,
        **PACE,
    ),
    # Bytes in the replay, convolutions.
    "images": qs.Plan(
        "sac+conv",
        settings={
            "base": OFF_POLICY | {"replay_capacity": 150},
            "conv": {"strides": (2, 2), "channels": 4, "width": 8, "shift": 1},
        },
        **SPOT,
        **PACE,
    ),
}
TOGETHER = {"seeds", "seeds_in_jax"}
KILLED = {"td3+savo"}  # interrupted as by kill -9: the newest save is older than the last lines of the files


def find_names(folder: Path) -> list[str]:
    """The names of the golden runs in the folder of a version: td3, ..., seeds/3, seeds/5."""
    files = [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]
    return sorted(file.parent.relative_to(folder).as_posix() for file in files)


def make_dataset() -> None:
    """Make the small dataset: five episodes of random actions in Pendulum-v1, by Minari."""
    import gymnasium as gym
    import minari

    env = gym.make("Pendulum-v1", max_episode_steps=40)
    env.action_space.seed(0)
    buffers = []
    for k in range(5):
        rows: dict[str, list[Any]] = {"observations": [env.reset(seed=k)[0]], "actions": [], "rewards": []}
        for _ in range(40):
            action = env.action_space.sample()
            obs, reward, *_ = env.step(action)
            for column, value in zip(rows.values(), (obs, action, reward), strict=True):
                column.append(value)
        ends = {"terminations": np.zeros(40, bool), "truncations": np.arange(40) == 39}
        arrays = {name: np.array(column) for name, column in rows.items()}
        buffers.append(minari.data_collector.EpisodeBuffer(id=k, **arrays, **ends))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an author and so on that are not given
        minari.create_dataset_from_buffers(
            DATASET, buffers, env=env.spec, ref_min_score=-400.0, ref_max_score=0.0
        )


def interrupt(plan: qs.Plan, folder: Path) -> None:
    """Train into a folder and interrupt the run after `STOP` steps, as Ctrl-C does."""
    trainers: list[Any] = []
    if folder.name in TOGETHER:
        plans = [dataclasses.replace(plan, seed=seed) for seed in SEEDS]
        places = [folder / str(seed) for seed in SEEDS]
        events: Any = train_together(plans, places, on_trainer=trainers.append)
    else:
        events = ((0, event) for event in qs.train(plan, folder, on_trainer=trainers.append))
    for _, event in events:
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
        "XLA_FLAGS": " ".join(os.environ.get("XLA_FLAGS", "").split()),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def newest_save(folder: Path) -> Path:
    """The folder of a run's newest save."""
    return max((file.parent for file in folder.glob("saves/*/save.json")), key=lambda path: int(path.name))


def digest_arrays(file: Path) -> Iterator[str]:
    """One line for each array of a .npz file: dtype, shape, digest of its bytes, then its name.

    A later version may rename an array. The rest of the line has to stay.
    """
    with np.load(file) as arrays:
        for name, array in arrays.items():
            digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            shape = ",".join(map(str, array.shape))
            yield f"{array.dtype}[{shape}] {digest} {file.stem}/{name}"


def leaves(folder: Path) -> Iterator[str]:
    """The lines of `digest_arrays` for every array of a run's newest save."""
    for file in sorted(newest_save(folder).glob("*.npz")):
        yield from digest_arrays(file)


def evaluations(folder: Path) -> list[str]:
    """The rows of evaluations.csv without their seconds: step, policy, episode, return, length."""
    columns = ("step", "policy", "episode", "return", "length")
    with (folder / "evaluations.csv").open(newline="") as file:
        return [",".join(row[name] for name in columns) for row in csv.DictReader(file)]


def counters(folder: Path) -> dict[str, int]:
    """Environment steps and updates in the last line of metrics.jsonl."""
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: line[name] for name in ("step", "updates")}


def make_observations(folder: Path) -> np.ndarray:
    """Three observations of the task of a run: numbers within [-1, 1], or bytes of an image."""
    shape = SHAPES[json.loads((folder / "run.json").read_text())["env"]]
    numbers = np.arange(3)[:, None] * 7.0 + np.arange(np.prod(shape))
    if len(shape) > 1:
        return (numbers * 37 % 256).astype(np.uint8).reshape(3, *shape)
    return np.sin(numbers).astype(np.float32)


def act(folder: Path, observations: np.ndarray) -> dict[str, Any]:
    """Returns of the policy in a run folder, and its actions at some observations."""
    model = qs.load(folder)
    actions, _ = model.predict(observations)
    return {
        "env_steps": model.env_steps,
        "returns": model.evaluate(EPISODES),
        "actions": actions.tolist(),
    }


def finish(folder: Path) -> dict[str, Any]:
    """Resume the run in a folder to its end; returns its counters, evaluations and arrays."""
    for _ in qs.resume(folder):
        pass
    return counters(folder) | {"evaluations": evaluations(folder), "leaves": sorted(leaves(folder))}


def export(folder: Path) -> list[str]:
    """The arrays of an exported policy: `qscape export` with --npz, and --onnx, which checks its actions."""
    file = folder.parent / "exported" / "policy.npz"
    given = ["--npz", str(file), "--onnx", str(file.with_suffix(".onnx")), "--episodes", "1"]
    assert qscape(["export", str(folder), *given]) == 0
    return sorted(digest_arrays(file))


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


def first_evaluation(plan: qs.Plan, folder: Path) -> dict[str, float]:
    """The returns in the first evaluation of a run, by episode."""
    events = qs.train(plan, folder)
    found = next(event for event in events if isinstance(event, ev.Evaluated))
    events.close()
    return {str(k): value for k, value in enumerate(found.returns)}


def go_on_online(folder: Path) -> dict[str, float]:
    """A run in the environment that begins with the networks and the data of the offline run: `--from`."""
    settings = {"base": NETWORKS | {"warmup": 0, "replay_capacity": 400}}
    plan = qs.Plan("td3+normalise", settings=settings, **PENDULUM, **PACE | {"steps": 100})
    plan = dataclasses.replace(plan, start=str(folder), keep_data=True)
    return first_evaluation(plan, folder.parent / "new")


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    "td7": landscape,
    "sac+savgo": embedding,
    "ppo+etf": collapse,
    "offline": go_on_online,
}


def compare(folders: Sequence[Path], aside: Path) -> list[dict[str, Any]]:
    """Final scores that `qscape compare` finds in folders of runs; writes its tables to the file `aside`."""
    paths = map(str, folders)
    assert qscape(["compare", *paths, "--unequal", "--reps", "10", "--json", str(aside)]) == 0
    columns = ("env", "label", "policy", "seeds", "steps", "final_mean")
    return [{name: row[name] for name in columns} for row in json.loads(aside.read_text())["per_env"]]


def make(name: str, out: Path) -> None:
    """Make the run of a plan, or those of its seeds."""
    interrupt(PLANS[name], out / name)
    for lock in (out / name).rglob(".lock"):
        lock.unlink()
    for file in (out / name).rglob("events.out.tfevents.*"):  # its name ends with the name of the machine
        file.rename(file.with_suffix(".golden"))


def measure(name: str, out: Path) -> None:
    """Add the results on this platform to the file of a run, unless it has them."""
    folder, file = out / name, out / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else []
    if any(results["platform"] == this_platform() for results in known):
        return
    results: dict[str, Any] = {"platform": this_platform()}
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(shutil.copytree(folder, Path(aside) / name))
        results["loaded"] = act(copy, make_observations(copy))
        if name in MEASURES:
            results["measured"] = MEASURES[name](copy)
        results["exported"] = export(copy)
        results["resumed"] = finish(copy)
    file.write_text(json.dumps([*known, results], indent=1) + "\n")


def main(out: Path) -> None:
    """Make the golden runs that do not exist yet, and the results that are missing on this platform."""
    if os.environ.get("NPROC") != "1":
        sys.exit("NPROC=1 is needed: the number of threads changes the last digits")
    os.environ["QSCAPE_COMMAND"] = "python tests/golden/make.py"  # for run.json
    out = out / importlib.metadata.version("qscape")
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str((out / "datasets").resolve())
    if not (out / "datasets" / DATASET).exists():
        make_dataset()
    for name in PLANS:
        if not (out / name).exists():
            make(name, out)
    for name in find_names(out):
        measure(name, out)
    with tempfile.TemporaryDirectory() as aside:
        found = compare([out], Path(aside) / "tables.json")
    (out / "compare.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    importlib.import_module("tiny")  # the environment of the images, which run.json names
    main(Path(sys.argv[1]))
