"""Try environments of other packages, each in a virtual environment of its own, and write the page's table.

    python benchmarks/foreign.py                        # all: two hours on two cores, 2 GB of disk at a time
    python benchmarks/foreign.py highway-env minigrid
    python benchmarks/foreign.py --check                # ask `qscape check` anew, train nothing: half an hour
    python benchmarks/foreign.py --table                # only docs/how-to/environments.md, from the results

No environment holds all of these packages, since some need versions that others refuse. For each one the
script makes a virtual environment in a temporary folder, installs this repository and the package, asks
`qscape check` about the environment (where the command exists), plays random actions, trains one recipe for
some minutes, and removes the folder. Needs uv (`pip install uv`).

`expected` was written before the first run of a package, and `came` after it; results/foreign has what the
runs said. What a package needs beside its id is in foreign_envs.py.
"""

import argparse
import csv
import dataclasses
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "foreign"
PAGE = ROOT / "docs" / "how-to" / "environments.md"
MARKS = "<!-- table of benchmarks/foreign.py -->", "<!-- end of the table -->"
EPISODES = 20  # of random actions, and of the trained policy
LONGEST = 1800  # seconds of one command, such as the installation
BESIDE = ("gymnasium", "jax", "mujoco", "numpy", "qscape")  # packages whose versions are kept, too

# Plays random actions. Episodes without an end are cut, so that the script ends.
RANDOM = """
import json, statistics, sys
from qscape.cli.options import env_args
from qscape.envs.build import build_env
env_id, pairs, episodes = json.loads(sys.argv[1])
env = build_env(env_id, env_args(pairs))
env.action_space.seed(0)
returns, lengths = [], []
for seed in range(episodes):
    env.reset(seed=seed)
    total, steps, ended = 0.0, 0, False
    while not ended and steps < 5000:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    returns.append(total)
    lengths.append(steps)
print(json.dumps({"mean": statistics.mean(returns), "length": statistics.mean(lengths)}))
"""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A package and how one of its environments is tried.

    Attributes:
        package: its name for pip; results and the table call it so.
        env: the environment, as `--env` takes it.
        recipe: the agent, and after it flags of `qscape train`.
        steps: environment steps of the training.
        expected: what was expected before the first run.
        came: what came, and what is peculiar.
        requirements: what is installed beside this repository; (): the package, or the extras alone.
        overrides: versions that are installed although the package refuses them.
        extras: extras of qscape.
        env_args: arguments of the environment, NAME=VALUE.
    """

    package: str
    env: str
    recipe: str
    steps: int
    expected: str
    came: str = ""
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    extras: str = ""
    env_args: tuple[str, ...] = ()


PACKAGES = (
    Foreign(
        "flappy-bird-gymnasium", "flappy_bird_gymnasium:FlappyBird-v0", "dqn --envs 4", 60_000,
        "With lidar, observations of 1.0000000000000002 lie outside of their Box; without it dqn "
        "learns to pass a pipe.",
        "Without lidar it passes pipe after pipe within three minutes.",
        env_args=("use_lidar=False",),
    ),
    Foreign(
        "highway-env", "highway_env:racetrack-v1", "td3", 5_000,
        "Works unchanged; slow, some 30 steps a second; td3 stays on the track longer than random "
        "actions do.",
        "Works unchanged, at three to ten steps a second. Random actions leave the track after nine "
        "steps. An observation of 288 numbers makes a replay of 2 GiB.",
    ),
    Foreign(
        "gym-anytrading", "gym_anytrading:stocks-v0", "ppo+normalise+scale_rewards", 60_000,
        "Works with the data set that it brings; every episode is the same series, so the agent "
        "learns it by heart.",
        "Plain ppo holds for good and earns 0, less than random actions: prices of hundreds are "
        "observed. Normalised, it learns the series by heart.",
    ),
    Foreign(
        "minigrid", "foreign_envs:minigrid", "ppo --envs 16 --clipped.no-normalise-advantages", 100_000,
        "The Dict with a text is refused by its id; with FlatObsWrapper ppo solves Empty-5x5.",
        "Refused, for the Discrete direction already. With normalised advantages ppo is at the "
        "optimum after 25,000 steps and then falls back to 0 in two of three runs: where all episodes"
        " are equal, noise is what is normalised. Without, it stays.",
    ),
    Foreign(
        "mo-gymnasium", "foreign_envs:mo_gymnasium", "td3", 20_000,
        "By its id the reward, a vector, is refused in one sentence; with weights td3 runs.",
        "So it was; the sentence names `LinearReward`.",
    ),
    Foreign(
        "panda-gym", "panda_gym:PandaReachDense-v3", "td3", 5_000,
        "Works; is_success is reported; PyBullet's state cannot be captured, so that resume starts an"
        " episode anew.",
    ),
    Foreign(
        "gym-pusht", "gym_pusht:gym_pusht/PushT-v0", "sac", 20_000,
        "Works with actions in pixels of 0 to 512; the reward is the coverage, and random actions "
        "cover a little.",
        "As expected; random actions cover nothing in most episodes, and 20,000 steps are far from a "
        "success.",
    ),
    Foreign(
        "gymnax", "gymnax/CartPole-v1", "ppo --envs 16", 100_000,
        "Works by the extra, in one program; ppo gets 500.",
        "As expected.",
        extras="gymnax",
    ),
    Foreign(
        "pgx", "foreign_envs:pgx_2048", "ppo --envs 64", 200_000,
        "Needs an adapter of ten lines; invalid moves end the game, so its mask is passed on.",
        "Rewards are the merged tiles. Random moves are soon invalid and end the game at 77.",
    ),
    Foreign(
        "navix", "foreign_envs:navix_empty", "ppo --envs 16", 100_000,
        "Needs an adapter; its step resets by itself, and the step without a reset is private.",
        "Navix 4 needs Python 3.12; on 3.11 pip takes 0.7.4 without a word. The limit of its own is a"
        " step type, so nothing has to be lifted.",
    ),
    Foreign(
        "jumanji", "foreign_envs:jumanji_snake", "ppo --envs 64", 200_000,
        "Needs an adapter; its time limit has discount 0, so the limit is lifted and counted outside.",
        "So it was. Snake dies after eight random steps; ppo eats nine fruits in half a minute.",
    ),
    Foreign(
        "pettingzoo", "foreign_envs:multiwalker", "td3", 8_000,
        "Many agents are refused; with the observations of all behind one another, one agent "
        "steers all of them.",
        "Both walkers fall within 70 steps, before and after 8,000; the gain is small. A time limit "
        "of its own says `terminated`, so the adapter lifts it and counts outside.",
        requirements=("pettingzoo[sisl]", "supersuit"),
    ),
    Foreign(
        "ale-py", "ALE/Freeway-v5", "ppo --envs 4", 40_000,
        "Works by the extra, from memory of 128 bytes too; 40,000 steps are too few for pictures, so "
        "ppo stays near 0.",
        extras="atari", env_args=("obs_type=ram",),
    ),
    Foreign(
        "shimmy", "shimmy:dm_control/cartpole-balance-v0", "td3", 15_000,
        "Its Dict of float64 is flattened; no termination, a limit that dm_control counts itself.",
        "dm-control takes MuJoCo 4 and then loads no task (`findings/dm_control_mujoco_4.sh`): "
        "`mujoco<4` beside it. Otherwise so.",
        requirements=("shimmy[dm-control]", "mujoco<4"),
    ),
    Foreign(
        "gymnasium-robotics", "FetchReachDense-v4", "td3", 10_000,
        "Works with mujoco<3.12; success is reported and reaches 1.",
        "Success is reported; after 10,000 steps it is at 85%.",
        requirements=("mujoco<3.12",), extras="robotics",
    ),
    Foreign(
        "metaworld", "metaworld:Meta-World/MT1", "sac", 20_000,
        "pip refuses it beside qscape (mujoco 3.3.0); with a newer MuJoCo forced it runs, and "
        "observations leave their Box.",
        "pip refuses nothing: it takes Meta-World 3.0.0 without a word. 3.1.1 installs with the "
        "override and runs; sac triples the return, and success stays at 0.",
        requirements=("metaworld>=3.1.1",), overrides=("mujoco>=3.3.7,<3.12",),
        env_args=("env_name=reach-v3",),
    ),
    Foreign(
        "robosuite", "foreign_envs:lift", "td3", 8_000,
        "pip takes 1.5.1 beside qscape, which makes no environment with MuJoCo 4; with an older one td3"
        " brings the hand nearer to the cube.",
        requirements=("robosuite==1.5.1", "mujoco>=3.3.7,<3.10", "h5py"),
    ),
    Foreign(
        "pcgym", "foreign_envs:stirred_tank", "td3", 8_000,
        "Needs a function, whose arguments no file can hold; each end is said to be terminal, though time is"
        " up; td3 finds the set points.",
        "So it was (`findings/pcgym_time_is_up.sh`). Its symbols could not be saved and ended the first run.",
    ),
    Foreign(
        "pyflyt", "PyFlyt.gym_envs:PyFlyt/QuadX-Hover-v4", "td3", 8_000,
        "pip takes an old version beside NumPy 2; the newest runs with NumPy 2 forced; td3 crashes later than"
        " random actions do.",
        requirements=("pyflyt>=0.29",), overrides=("numpy>=2.2",),
    ),
    Foreign(
        "myosuite", "myosuite:myoElbowPose1D6MRandom-v0", "sac", 6_000,
        "Installs with gymnasium 1.2.3; the muscles' activations are observed; sac gets better within"
        " minutes.",
        "It brings gymnasium 1.2.3 and runs on MuJoCo 4; sac gets better within five minutes.",
    ),
    Foreign(
        "envpool", "Pendulum-v1", "td3 --vectorise envpool --envs 2", 8_000,
        "Works by the extra for ids that Gymnasium has too; random numbers are its own.",
        extras="envpool",
    ),
    Foreign(
        "brax", "brax/inverted_pendulum", "ppo --envs 16", 60_000,
        "Works by the extra; a minute of compilation.",
        "As expected; the return counts the steps that the pole stands, of 1,000.",
        extras="brax", env_args=("backend=spring",),
    ),
    Foreign(
        "playground", "playground/CartpoleBalance", "td3 --envs 4", 6_000,
        "Works by the extra, 500 MB with Warp; minutes of compilation on a CPU.",
        extras="playground",
    ),
    Foreign(
        "gym-aloha", "gym_aloha:gym_aloha/AlohaTransferCube-v0", "sac", 2_000,
        "Pictures beside nothing else and a sparse reward: it runs and learns nothing in minutes.",
        env_args=("obs_type=pixels_agent_pos",),
    ),
    Foreign(
        "gym-trading-env", "foreign_envs:trading", "dqn", 30_000,
        "Needs a data frame as an argument, which run.json cannot store, so a function makes it.",
        "As expected. Every episode is the same series.",
    ),
    Foreign(
        "tetris-gymnasium", "foreign_envs:tetris", "dqn", 40_000,
        "A Dict of integer boards is flattened; dqn clears hardly a line.",
        overrides=("numpy>=2.2",),
    ),
    Foreign(
        "miniworld", "miniworld:MiniWorld-OneRoom-v0", "dqn", 3_000,
        "Needs a display or EGL for its pictures, so on a server it fails with pyglet's error.",
    ),
)  # fmt: skip


def main() -> None:
    """Try the packages that the command line names, and renew the table."""
    names = [x.package for x in PACKAGES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--check", action="store_true", help="renew only what `qscape check` says")
    parser.add_argument("--table", action="store_true", help="only write the table from the results")
    given = parser.parse_args()
    if unknown := {*given.packages} - {*names}:
        parser.error(f"no package {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for foreign in PACKAGES:
        if not given.table and foreign.package in (given.packages or names):
            if given.check and not file_of(foreign).exists():
                continue
            found = check_again(foreign) if given.check else try_package(foreign)
            RESULTS.mkdir(exist_ok=True)
            file_of(foreign).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            print(
                f"{foreign.package}: {found.get('problem') or found['trained']}; {say_check(found['check'])}",
                flush=True,
            )
    begin, end = MARKS
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{write_table()}{end}{rest.split(end)[1]}")


def try_package(foreign: Foreign) -> dict[str, Any]:
    """Install a package, try its environment, remove it. Return what its file of results holds."""
    requirements = required(foreign)
    about = {"date": datetime.date.today().isoformat(), "python": ".".join(map(str, sys.version_info[:3]))}
    found: dict[str, Any] = dataclasses.asdict(foreign) | about | {"requirements": requirements}
    del found["came"]
    with tempfile.TemporaryDirectory(prefix="foreign-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "benchmarks" / "foreign_envs.py", folder)
        if foreign.overrides:
            found["refused"] = install(requirements, foreign, folder, ())
        if why := install(requirements, foreign, folder, foreign.overrides):
            return found | {"problem": why}
        found["versions"] = versions(foreign, folder)
        found["check"] = check(foreign, folder)
        done = call(
            [python(folder), "-c", RANDOM, json.dumps([foreign.env, foreign.env_args, EPISODES])], folder
        )
        if why := fault(done):
            return found | {"problem": why}
        found["random"] = json.loads(done.stdout.splitlines()[-1])
        return found | train(foreign, folder)


def check_again(foreign: Foreign) -> dict[str, Any]:
    """Install a package, ask `qscape check`, remove it. Return its results with what was said this time."""
    found = json.loads(file_of(foreign).read_text())
    with tempfile.TemporaryDirectory(prefix="foreign-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "benchmarks" / "foreign_envs.py", folder)
        if why := install(required(foreign), foreign, folder, foreign.overrides):
            return found | {"check": {"problem": why}}
        return found | {"check": check(foreign, folder), "check_versions": versions(foreign, folder)}


def required(foreign: Foreign) -> tuple[str, ...]:
    """Return what is installed beside this repository."""
    return foreign.requirements or (() if foreign.extras else (foreign.package,))


def install(requirements: tuple[str, ...], foreign: Foreign, folder: Path, overrides: tuple[str, ...]) -> str:
    """Make a new virtual environment with this repository and the package. Return why it failed, or ""."""
    call([uv(), "venv", "--quiet", "--clear", "--python", sys.executable, folder / "venv"], folder)
    here = f"{ROOT}[{foreign.extras}]" if foreign.extras else str(ROOT)
    command = [uv(), "pip", "install", "--quiet", "--python", python(folder), here, *requirements]
    if overrides:
        (folder / "overrides.txt").write_text("\n".join(overrides))
        command += ["--overrides", folder / "overrides.txt"]
    return fault(call(command, folder), lines=6)


def versions(foreign: Foreign, folder: Path) -> dict[str, str]:
    """Return the versions of the package and of those beside it, in the virtual environment."""
    done = call([uv(), "pip", "list", "--quiet", "--format", "json", "--python", python(folder)], folder)
    names = {foreign.package, *BESIDE, *(re.split(r"[\[<>=]", x)[0] for x in foreign.requirements)}
    return {x["name"]: x["version"] for x in json.loads(done.stdout) if x["name"] in names}


def check(foreign: Foreign, folder: Path) -> Any:
    """Return what `qscape check` says of the environment; None where there is no such command."""
    if call([python(folder), "-m", "qscape", "check", "--help"], folder).returncode:
        return None
    file = folder / "check.json"
    patient = ["--step-seconds", "120", "--seconds", "300"]  # the machine may do other work
    done = call(
        [python(folder), "-m", "qscape", "check", *env_flags(foreign), *patient, "--json", file], folder
    )
    return json.loads(file.read_text()) if file.exists() else {"problem": fault(done)}


def train(foreign: Foreign, folder: Path) -> dict[str, Any]:
    """Train the recipe and return its command, its seconds, what it said, and its evaluation."""
    recipe, *flags = foreign.recipe.split()
    command = ["qscape", "train", recipe, "--env", *env_flags(foreign), "--steps", str(foreign.steps), *flags]
    more = ["--eval-every", str(foreign.steps), "--eval-episodes", str(EPISODES), "--out", "run"]
    begun = time.monotonic()
    done = call([python(folder), "-m", *command, *more], folder)
    found: dict[str, Any] = {"command": " ".join(command), "seconds": round(time.monotonic() - begun)}
    found["says"] = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    if why := fault(done):
        return found | {"problem": why}
    rows = [*csv.DictReader((folder / "run" / "0" / "evaluations.csv").open())]
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    found["trained"] = {"mean": statistics.mean(float(row["return"]) for row in last)}
    if last[0]["success"]:
        found["trained"]["success"] = statistics.mean(float(row["success"]) for row in last)
    return found


def env_flags(foreign: Foreign) -> list[str]:
    """Return the environment and its arguments, as commands take them."""
    return [foreign.env, *(["--env-args", *foreign.env_args] if foreign.env_args else [])]


def python(folder: Path) -> Path:
    """Return the interpreter of the virtual environment."""
    return folder / "venv" / "bin" / "python"


def uv() -> str:
    """Return the command uv: of the environment that runs this script, or of the system."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    return found or sys.exit("This script makes virtual environments with uv: pip install uv")


def call(command: list[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the temporary folder, where foreign_envs.py lies and no other source of qscape."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, cwd=folder, env=kept, text=True, capture_output=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"did not end within {LONGEST} s")


def fault(done: subprocess.CompletedProcess[str], lines: int = 1) -> str:
    """Return the last lines of what a command said if it failed, without places of this machine, or ""."""
    if not done.returncode:
        return ""
    said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    text = " ".join(said[-lines:]).replace(f"file://{ROOT}", "").replace(str(ROOT), "qscape")
    return re.sub(r"\S*/foreign-\w+/", "", text)[-600:]


def file_of(foreign: Foreign) -> Path:
    """Return the file of results of a package."""
    return RESULTS / f"{foreign.package}.json"


def write_table() -> str:
    """Return the table of all packages that were tried, in Markdown."""
    names = [
        "package",
        "environment",
        "`qscape check`",
        "recipe",
        "random → trained",
        "expected, and what came",
    ]
    rows = [names, ["---"] * len(names)]
    rows += [row_of(x, json.loads(file_of(x).read_text())) for x in PACKAGES if file_of(x).exists()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def row_of(foreign: Foreign, found: dict[str, Any]) -> list[str]:
    """Return the cells of a package."""
    version = found.get("versions", {}).get(foreign.package, "")
    gained = "-"
    if "trained" in found:
        gained = f"{found['random']['mean']:,.4g} → {found['trained']['mean']:,.4g}"
        if "success" in found["trained"]:
            gained += f", success {found['trained']['success']:.0%}"
        gained += f", {max(1, round(found['seconds'] / 60))} min"
    came = foreign.came + (f" It fails: {found['problem']}" if "problem" in found else "")
    return [
        f"{foreign.package} {version}".strip() + f", {found['date']}",
        f"`{found['env']}`" + "".join(f" `{pair}`" for pair in found["env_args"]),
        say_check(found.get("check")),
        f"`{found['recipe']}`, {found['steps']:,} steps",
        gained,
        f"*{foreign.expected}* {came}".replace("|", "\\|"),
    ]


def say_check(found: Any) -> str:
    """Return the findings of `qscape check` that are no passes, or "sound"."""
    if not found:
        return "-"
    if "problem" in found:
        return found["problem"]
    notable = [x for x in found["findings"] if x["verdict"] in ("FAIL", "warn")]
    return "; ".join(f"{x['verdict']}: {x['name']}" for x in notable) or "sound"


if __name__ == "__main__":
    main()
