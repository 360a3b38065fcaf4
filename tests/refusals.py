"""Collect every refusal of qscape: exit status, code, part, field and message, by running it.

The list is `tests/golden/refusals.txt`. Make it again, and read what changed with `git diff`:

    export NPROC=1 JAX_PLATFORMS=cpu CI=1 PYTHONPATH=src
    python tests/refusals.py write                                    # parts 1 and 2: half a minute
    python tests/refusals.py collect raw.jsonl tests/test_cli.py tests/test_recipes.py ...
    python tests/refusals.py write raw.jsonl                          # all parts
    python tests/refusals.py check                                    # print what differs from the list

`collect` runs test files and appends each error that qscape makes meanwhile to a file; it may be called
several times. `write` runs the command lines and the settings below, adds what was collected, and writes the
list; without a file of what was collected, parts 3 and 4 stay as they are. The list has four parts:

1. Command lines: COMMAND_LINES and one line for each flag of each command, with where the output went.
2. Settings: every field of every part, at VALUES, as far as they are refused.
3. Recorded: of every other place in the source that made an error in the tests, its shortest message.
4. Places in the source that make an error which none of these reached.

`check` runs parts 1 and 2 and compares all but the wording; `check 4` runs every fourth command line.
`tests/test_refusals.py` does both.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
LIST = HERE / "golden" / "refusals.txt"
RUNS = HERE / "golden" / "0.2.0"  # run folders; the command lines find copies of them as td3, ppo, ...
SOURCE = HERE.parent / "src" / "qscape"
PARTS = ("Command lines", "Settings", "Recorded", "Places that nothing reached")

# What differs from run to run, or from machine to machine, in a message.
VOLATILE = [
    (r"(/private)?/tmp/pytest-of-\w+/pytest-\d+/(popen-gw\d+/)?[^/\s'\",;:)]*", "TMP"),
    (r"/tmp/(tmp|qscape)\w*", "TMP"),
    (re.escape(str(HERE.parent)), "REPOSITORY"),
    (re.escape(sys.prefix), "VENV"),
    (re.escape(str(Path(sys.base_prefix))) + r"(?=/)", "PYTHON"),
    (re.escape(str(Path.home())) + r"(?=/)", "HOME"),
    (r"0x[0-9a-f]+", "0x…"),
    (r"\b\d[\d.,]* ([KMGT]i?B|bytes of|bytes are)", r"N \1"),
    (r"\b(127\.0\.0\.1|localhost):\d+", r"\1:PORT"),
    (r"\b(pid|process) \d+", r"\1 N"),
    (r"\b\d+\.\d+\.\d+(\.\w+|\+\w+)?\b", "VERSION"),
    (r"\b\d{4}-\d\d-\d\dT[\d:+]+", "DATE"),
    (r"\b[0-9a-f]{12,64}\b", "DIGEST"),
]


class Refusal(NamedTuple):
    """One error, or one command line that was refused.

    Attributes:
        case: what was asked, such as `qscape train td9`; "" for an error that a test made.
        status: exit status.
        code: kind of the error; "" where the command line printed a line without one.
        part, field: those of the error; "" for none.
        stream: what was written to: "stdout", "stderr", both or "-".
        message: the sentence.
        place: the module and function that made the error.
    """

    case: str
    status: int
    code: str
    part: str
    field: str
    stream: str
    message: str
    place: str

    @property
    def comparable(self) -> str:
        """All but the wording and the place, on one line; of a page of help, the flags too."""
        flags = re.findall(r"(?<= )--[a-z][\w.-]*", self.message) if self.status == 0 else []
        return " | ".join([self.case, self._facts(), *flags])

    def __str__(self) -> str:
        head = f"$ {self.case}\n" if self.case else ""
        return f"{head}  {self.message}\n    {self._facts()}\n"

    def _facts(self) -> str:
        named = [f"{name}={value}" for name, value in (("part", self.part), ("field", self.field)) if value]
        return " | ".join([str(self.status), self.code or "no error", " ".join(named) or "-", self.stream])


def read_list(file: Path = LIST) -> list[Refusal]:
    """The cases of the first two parts of the list: what `write` ran."""
    found, case, message = [], "", ""
    for line in file.read_text().splitlines():
        if line.startswith("$ "):
            case = line[2:]
        elif line.startswith("    ") and case:
            status, code, about, stream = line[4:].split(" | ")
            named = dict(pair.split("=", 1) for pair in about.split() if pair != "-")
            code = "" if code == "no error" else code
            part, field = named.get("part", ""), named.get("field", "")
            found.append(Refusal(case, int(status), code, part, field, stream, message, ""))
            case = ""
        elif line.startswith("  "):
            message = line[2:]
    return found


def steady(text: str) -> str:
    """A message without what differs from run to run."""
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text


# --- places in the source -----------------------------------------------------------------------------


class Place(NamedTuple):
    """A call in the source that makes an error."""

    module: str
    function: str
    kind: str
    template: str
    first: int
    last: int


def module_of(file: Path) -> str:
    """The name of a module of the source, below the package."""
    return file.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")


def error_names() -> set[str]:
    """The names of the classes of errors."""
    from qscape.errors import QscapeError

    found, classes = set(), [QscapeError]
    while classes:
        classes += (cls := classes.pop()).__subclasses__()
        found.add(cls.__name__)
    return found


@functools.cache
def makers() -> frozenset[str]:
    """Functions that return an error, such as `no_save`: who calls them is the place of the error."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                named = {name for name in re.findall(r"\w+", ast.unparse(node.returns)) if name != "None"}
                if named and named <= error_names():
                    found.add(node.name)
    return frozenset(found)


def find_places() -> list[Place]:
    """Every call in the source that makes an error, in order of its message."""
    wanted, found = error_names() | makers(), []
    for file in sorted(SOURCE.rglob("*.py")):
        module = module_of(file)

        def visit(node: ast.AST, function: str, module: str = module) -> None:
            for child in ast.iter_child_nodes(node):
                inside = function
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    inside = f"{function}.{child.name}".lstrip(".")
                if isinstance(child, ast.Call):
                    name = ast.unparse(child.func).rpartition(".")[2]
                    in_maker = function.rpartition(".")[2] in makers()
                    if name in wanted and not in_maker:
                        said = ", ".join(map(ast.unparse, child.args))
                        last = child.end_lineno or child.lineno
                        found.append(Place(module, function, name, said, child.lineno, last))
                visit(child, inside)

        visit(ast.parse(file.read_text()), "")
    return sorted(found, key=lambda place: (place.template, place.module, place.function))


# --- recording ----------------------------------------------------------------------------------------


class Recorder:
    """Notes every error that is made while it is used as a context.

    Attributes:
        made: the errors, as (refusal, module, line).
    """

    def __init__(self) -> None:
        self.made: list[tuple[Refusal, str, int]] = []

    def __enter__(self) -> "Recorder":
        from qscape import errors

        self._base: Any = errors.QscapeError
        self._original = self._base.__init__
        self._base.__init__ = self._noting(self._original)
        return self

    def __exit__(self, *_: Any) -> None:
        self._base.__init__ = self._original

    def _noting(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def init(error: Any, *args: Any, **more: Any) -> None:
            original(error, *args, **more)
            place, module, line = _find_maker()
            self.made.append((describe(error, place), module, line))

        return init


def describe(error: Any, place: str = "", case: str = "", stream: str = "-") -> Refusal:
    """The facts about an error."""
    part, field = (str(getattr(error, name, None) or "") for name in ("part", "field"))
    return Refusal(case, error.status, error.code, part, field, stream, steady(str(error)), place)


def _find_maker() -> tuple[str, str, int]:
    """The place in the source that makes an error right now, its module and the line; "" outside of it."""
    frame = inspect.currentframe()
    while frame := frame.f_back if frame else None:
        file = Path(frame.f_code.co_filename)
        own = file == SOURCE / "errors.py" or frame.f_code.co_name in makers()
        if file.is_relative_to(SOURCE) and not own:
            module = module_of(file)
            function = frame.f_code.co_qualname.replace(".<locals>", "")
            return f"{module}:{function}", module, frame.f_lineno
    return "", "", 0


# --- command lines ------------------------------------------------------------------------------------

TRAIN = "train td3 --env Pendulum-v1 --steps 9 --eval-every 0"
# Flags of each command, which begins as one would type it. Each flag is given no value, an empty one, and the
# word x.
FLAGS = {
    TRAIN: (
        "--env --config --dataset --steps --from --keep-data --seeds --seeds-as --out --envs --preset "
        "--env-args --overwrite --log --log-project --log-group --log-tags --log-videos --quiet --eval- "
        "every --eval-episodes --log-every --save-every --keep-saves --milestones --probe --loop "
        "--vectorise --overlap --devices --processes --join-seconds"
    ),
    "resume td3": "--steps --save --empty-replay --log --quiet --processes --join-seconds",
    "reproduce td3": "--out",
    "study run no-study": "--budget --runs --workers --ray --slurm --slurm-args --yes",
    "study status no-study": "--budget --runs",
    "tune td3 --env Pendulum-v1": (
        "--env --trials --steps --seeds --fields --ranges --metric --seed --workers --out --eval-every"
    ),
    "watch no-run": "--every --show --dim --once",
    "evaluate no-run": "--episodes --seed --current --sample --bias",
    "compare no-run": "--csv --latex --json --png --html --reference --final --best --policy --unequal",
    "plot no-run": "--png --policy --metric --smooth",
    "video no-run": "--mp4 --episodes --seed --fps --current",
    "landscape no-run": (
        "--kind --state-from --plane --states --q --grid --episodes --seed --over-training --current --png "
        "--html --json"
    ),
    "smoothness no-run": "--episodes --seed --current --robustness --sigmas --noise-episodes --json --png",
    "embedding no-run": "--state-from --states --seed --png --json",
    "record no-run": "--dataset --episodes --policy --noise --seed --current",
    "dataset no.hdf5": "--env --env-args",
    "collapse no-run": "--states --seed --json --png",
    "export no-run": "--onnx --c --prefix --npz --tolerance --episodes --current --runner",
    "push no-run": "--repo --private --episodes",
    "pull nobody": "--out",
    "import no-file": "--env --env-args --out --overwrite",
    "list": "--all",
}
# A flag with the word x that would begin something long, or only change a name: not run.
ACCEPTED = {"--out", "--log-project", "--ray", "--runs", "--ranges"}
RECIPES: tuple[str, ...] = ("td3", "sac", "td7", "dqn", "bc", "iql", "reinforce", "a2c", "ppo", "trpo")
COMMAND_LINES = """
qscape
qscape help
qscape --help
qscape --version
qscape xyz
qscape trian
qscape evalute
qscape tra\x1b[2Jin
qscape --debug
qscape --parts
qscape --parts nosuch list agents
qscape --parts nosuch:Part list agents
qscape --parts qscape.errors:UsageError list agents
qscape --parts qscape.methods.lap:LAP list agents
qscape list things
qscape list agents things
qscape train
qscape train --env Pendulum-v1 --steps 9
qscape train td3
qscape train td9 --env Pendulum-v1 --steps 9
qscape train ddpg --env Pendulum-v1 --steps 9
qscape train drqv2 --env Pendulum-v1 --steps 9
qscape train sale --env Pendulum-v1 --steps 9
qscape train td3+ --env Pendulum-v1 --steps 9
qscape train +td3 --env Pendulum-v1 --steps 9
qscape train td3++lap --env Pendulum-v1 --steps 9
qscape train td3+salle --env Pendulum-v1 --steps 9
qscape train td3+sac --env Pendulum-v1 --steps 9
qscape train td3+lap+lap --env Pendulum-v1 --steps 9
qscape train td7+lap --env Pendulum-v1 --steps 9
qscape train td3+action_change --env Pendulum-v1 --steps 9
qscape train td3+nosuch:Part --env Pendulum-v1 --steps 9
qscape train td3+qscape.errors:UsageError --env Pendulum-v1 --steps 9
qscape train td3+simba+bronet --env Pendulum-v1 --steps 9
qscape train td3+savo+cem --env Pendulum-v1 --steps 9
qscape train ppo+lap --env Pendulum-v1 --steps 9
qscape train td3+etf --env Pendulum-v1 --steps 9
qscape train td3 --env HalfCheeta-v5 --steps 9
qscape train td3 --env HalfCheetah --steps 9
qscape train td3 --env HalfCheetah-v99 --steps 9
qscape train td3 --env qwertz --steps 9
qscape train td3 --env nosuchmodule:Env-v0 --steps 9
qscape train td3 --env : --steps 9
qscape train td3 --env '' --steps 9
qscape train td3 --env clock.py:Clock-v0 --steps 9
qscape train td3 --env CartPole-v1 --steps 9
qscape train td3 --env tiny:Picture-v0 --steps 9
qscape train td3 --env tiny:Unbounded-v0 --steps 9
qscape train sac --env tiny:Spot-v0 --steps 9
qscape train dqn --env Pendulum-v1 --steps 9
qscape train td3+dpo --env Pendulum-v1 --steps 9
qscape train ppo+etf --env Pendulum-v1 --steps 9
qscape train td3+savo --env jax/CartPole-v1 --steps 9
qscape train td3 --env brax/nothing --steps 9
qscape train td3 --env gymnax/Nothing --steps 9
qscape train td3 --env playground/Nothing --steps 9
qscape train td3 --env craftax/Nothing --steps 9
qscape train td3 --env pixels/CartPol-v1 --steps 9
qscape train td3 --env pixels/CartPole --steps 9
qscape train td3 --env pixels/Any-v0 --steps 9
qscape train td3 --env pixels/Any-v0 --env-args env=Nope-v0 --steps 9
qscape train td3 --env pixels/Any-v0 --env-args env=recsim/10k-v0 --steps 9
qscape train td3 --env recsim/10k-v0 --env-args items=1 --steps 9
qscape train td3 --env recsim/500-v1 --env-args items=29 --steps 9
qscape train td3 --env recsim/500-v1 --env-args items=many --steps 9
qscape train td3 --env restricted/Hopper-v1 --env-args penalty=nan --steps 9
qscape train td3 --env restricted/Hopper-v1 --env-args factor=abc --steps 9
qscape train td3+savo --env restricted/Hopper-v1 --savo.raw-vectors --steps 9
qscape train td3+savo --env Pendulum-v1 --preset released --steps 9
qscape train td3 --env recsim/10k-v0 --env-args availability=2 --steps 9
qscape train td3 --env mineworld/MineWorld-v0 --env-args extra_dims=-1 --steps 9
qscape train ppo --env cliff/IdealCliffWalking-v0 --env-args cliff_mode=jump --steps 9
qscape train td3 --env Pendulum-v1 --env-args tall=True --steps 9
qscape train td3 --env Pendulum-v1 --env-args length --steps 9
qscape train td3 --env Pendulum-v1 --env-args g=true --steps 9
qscape train td3 --env Pendulum-v1 --env.g --steps 9
qscape train td3 --env Pendulum-v1 --env.g 1 2 --steps 9
qscape train td3 --env Pendulum-v1 --env.tall false --steps 9
qscape train td3 --env Pendulum-v1 --env.max-episode-steps 0 --steps 9
qscape train td3 --env Pendulum-v1 --lap.alpha 0.5 --steps 9
qscape train td7 --env Pendulum-v1 --polyak.rate 1 --steps 9
qscape train td3+lap --env Pendulum-v1 --value-clip.x 1 --steps 9
qscape train td3 --env Pendulum-v1 --nosuch.field 1 --steps 9
qscape train td3 --env Pendulum-v1 --base.discunt 0.9 --steps 9
qscape train td3 --env Pendulum-v1 --base.discount 0.9 0.8 --steps 9
qscape train td3 --env Pendulum-v1 --base_batch_size 9 --steps 9
qscape train td3 --env Pendulum-v1 --base.batch_size x --steps 9
qscape train td3 --env Pendulum-v1 --fast --steps 9
qscape train td3 --env Pendulum-v1 --no-steps --steps 9
qscape train td3 --env Pendulum-v1 --no-overwrite yes --steps 9
qscape train td3 --env Pendulum-v1 --overwrite yes --steps 9
qscape train td3 --env Pendulum-v1 stray --steps 9
qscape train td3 --env Pendulum-v1 -x --steps 9
qscape train td3 --env Pendulum-v1 --steps 1.5
qscape train td3 --env Pendulum-v1 --steps 1.5e0
qscape train td3 --env Pendulum-v1 --steps=
qscape train td3 --env Pendulum-v1 --steps=x
qscape train td3 --env Pendulum-v1 --steps 1 2
qscape train td3 --env Pendulum-v1 --seeds 0 --seeds 1 --steps 9
qscape train td3 --env Pendulum-v1 --seeds 1 1 --steps 9
qscape train td3 --env Pendulum-v1 --seeds -1 --steps 9
qscape train td3 --env Pendulum-v1 --seeds --steps 9
qscape train td3 --env Pendulum-v1 --base.actor-hidden x --steps 9
qscape train td3 --env Pendulum-v1 --base.actor-hidden 0 --steps 9
qscape train td3 --env Pendulum-v1 --base.critic-loss l1 --steps 9
qscape train ppo --env Pendulum-v1 --num-steps 9 --steps 9
qscape train ppo --env Pendulum-v1 --num-minibatches 4 --steps 9
qscape train ppo --env Pendulum-v1 --n-epochs 4 --steps 9
qscape train ppo --env Pendulum-v1 --ent-coef 4 --steps 9
qscape train td3 --env Pendulum-v1 --learning-rate 4 --steps 9
qscape train td3 --env Pendulum-v1 --gamma 4 --steps 9
qscape train td3 --env Pendulum-v1 --tau 4 --steps 9
qscape train td3 --env Pendulum-v1 --buffer-size 4 --steps 9
qscape train td3 --env Pendulum-v1 --total-timesteps 4 --steps 9
qscape train sac --env Pendulum-v1 --alpha 4 --steps 9
qscape train td3 --env Pendulum-v1 --conf a --steps 9
qscape train --config
qscape train --config no.json
qscape train --config td3/run.json --config td3/run.json
qscape train --config td3/evaluations.csv
qscape train td3 --env Pendulum-v1 --steps 0
qscape train td3 --env Pendulum-v1 --steps -5
qscape train td3 --env Pendulum-v1 --steps 99999999999999999999
qscape train td3 --env Pendulum-v1 --envs 0 --steps 9
qscape train td3 --env Pendulum-v1 --log-every 0 --steps 9
qscape train td3 --env Pendulum-v1 --eval-every -1 --steps 9
qscape train td3 --env Pendulum-v1 --eval-episodes 0 --steps 9
qscape train td3 --env Pendulum-v1 --save-every -1 --steps 9
qscape train td3 --env Pendulum-v1 --keep-saves 0 --steps 9
qscape train td3 --env Pendulum-v1 --milestones 0 --steps 9
qscape train td3 --env Pendulum-v1 --milestones 2 --steps 9
qscape train td3 --env Pendulum-v1 --devices 0 --steps 9
qscape train td3 --env Pendulum-v1 --devices 64 --steps 9
qscape train td3 --env Pendulum-v1 --processes node1:9911,2,2 --steps 9
qscape train td3 --env Pendulum-v1 --processes slurm --steps 9
qscape train td3 --env Pendulum-v1 --processes node1:9911,2,0 --seeds 0 1 --steps 9
qscape train td3 --env Pendulum-v1 --processes 127.0.0.1:9911,2,1 --join-seconds 0.1 --steps 9
qscape train td3 --env Pendulum-v1 --processes 127.0.0.1:9911,2,1 --join-seconds 0 --steps 9
qscape train td3 --env Pendulum-v1 --probe nosuch --steps 9
qscape train td3 --env Pendulum-v1 --probe nosuch:Probe --steps 9
qscape train td3 --env Pendulum-v1 --loop compiled --steps 9
qscape train td3 --env Pendulum-v1 --loop compiled --vectorise async --steps 9
qscape train td3 --env Pendulum-v1 --vectorise async --dataset no.hdf5 --steps 9
qscape train td3 --env Pendulum-v1 --preset nosuch --steps 9
qscape train td3 --env Pendulum-v1 --keep-data --steps 9
qscape train td3 --env Pendulum-v1 --from no-run --steps 9
qscape train td3 --env Pendulum-v1 --from td3 --steps 9
qscape train td3 --env Pendulum-v1 --from ppo --steps 9
qscape train td3 --dataset no.hdf5
qscape train ppo --dataset no.hdf5
qscape train td3 --env Pendulum-v1 --log paper --steps 9
qscape train td3 --env Pendulum-v1 --log nosuch:Logger --steps 9
qscape train td3 --env Pendulum-v1 --log-tags a --steps 9
qscape train td3 --env Pendulum-v1 --log-videos --steps 9
qscape train td3 --env Pendulum-v1 --seeds 0 1 --seeds-as vmap --log wandb --steps 9
qscape train td7 --env Pendulum-v1 --seeds 0 1 --seeds-as vmap --steps 9
qscape train td3 --env Pendulum-v1 --steps 99 --base.warmup 99
qscape train td3 --env Pendulum-v1 --base.replay-capacity 1 --steps 9
qscape train td3 --env Pendulum-v1 --base.ou-rate 0.5 --steps 9
qscape train ppo --env Pendulum-v1 --steps 99 --base.rollout 100
qscape train ppo --env Pendulum-v1 --base.rollout 64 --base.batch-size 65 --steps 9
qscape train td3 --env Pendulum-v1 --out td3 --steps 9
qscape train td3 --env Pendulum-v1 --steps 9 --out td3/run.json
qscape resume td3 --steps 10
qscape resume td3 --save 7
qscape resume no-run
qscape reproduce no-run
qscape reproduce td3/saves
qscape evaluate empty
qscape resume empty
qscape evaluate td3 --episodes 0
qscape evaluate td3 --sample
qscape evaluate td3 --sample --bias
qscape evaluate td3 --seed -1
qscape evaluate td3 --epsiodes 3
qscape evaluate td3/saves
qscape watch no-run
qscape watch td3 --every 0
qscape compare
qscape compare no-run
qscape compare 'no*run'
qscape compare td3 --png a
qscape compare td3 --png a.xyz
qscape compare td3 --json a --csv a
qscape compare td3 --json -
qscape compare td3 --json .
qscape compare td3 --json td3/run.json
qscape compare td3 --final 0
qscape compare td3 --reference nosuch
qscape plot no-run
qscape plot td3 --png a.xyz
qscape plot td3 --smooth 1
qscape plot td3 --metric success
qscape video no-run
qscape video td3 --mp4 a.xyz
qscape video td3 --episodes 0
qscape video td3 --fps 0
qscape landscape no-run
qscape landscape td3 --states 0
qscape landscape td3 --grid 1
qscape landscape td3 --plane 0,9
qscape landscape td3 --plane sideways
qscape landscape td3 --state-from x
qscape landscape td3 --state-from 0:99999
qscape landscape td3 --png a.xyz
qscape landscape td3 td3 td7 seeds
qscape landscape ppo
qscape landscape ppo --kind curvature
qscape landscape td3 --kind curvature --over-training
qscape landscape td3 --kind curvature --plane 0
qscape landscape td3 --kind curvature --plane 0,1
qscape smoothness no-run
qscape smoothness td3 --sigmas 0.1
qscape smoothness td3 --noise-episodes 3
qscape smoothness td3 --robustness --sigmas -1
qscape smoothness td3 --episodes 0
qscape smoothness td3 --png a.xyz
qscape smoothness ppo+etf --episodes 1
qscape embedding no-run
qscape embedding td3
qscape embedding sac+savgo --states 1
qscape collapse no-run
qscape collapse td3
qscape collapse ppo --states 10
qscape collapse ppo+etf --states 0
qscape record no-run
qscape record td3
qscape record td3 --dataset nosuch
qscape record td3 --dataset local/a-v0 --noise 0.2
qscape record td3 --dataset local/a-v0 --policy noisy --noise -1
qscape record td3 --dataset local/a-v0 --episodes 0
qscape record ppo+etf --dataset local/a-v0 --episodes 1
qscape dataset no.hdf5
qscape dataset td3/run.json
qscape dataset no.hdf5 --env-args a=1
qscape export td3
qscape export td3 --onnx a.xyz
qscape export td3 --npz a.xyz
qscape export td3 --runner --npz a
qscape export td3 --c a.xyz
qscape export td3 --c a --prefix 1a
qscape export td3 --onnx a --prefix a
qscape export td3 --onnx a --tolerance 0
qscape export td3 --onnx a --episodes 0
qscape export no-run --onnx a
qscape push td3
qscape push no-run --repo a/b
qscape push td3 --repo nosuch
qscape pull nosuch
qscape pull a/b --out td3
qscape import no.zip --env Pendulum-v1
qscape import td3/run.json --env Pendulum-v1
qscape import td3/run.json
qscape tune td3
qscape tune td3 --env Pendulum-v1 --trials 0
qscape tune td3 --env Pendulum-v1 --seeds 0
qscape tune td3 --env Pendulum-v1 --eval-every 0
qscape tune td3 --env Pendulum-v1 --fields base.nosuch
qscape tune td3 --env Pendulum-v1 --fields lap.alpha
qscape tune td3 --env Pendulum-v1 --fields base.critics
qscape tune td3 --env Pendulum-v1 --ranges no.toml
qscape tune td9 --env Pendulum-v1
qscape study
qscape study run
qscape study start demo
qscape study run demo --budget nosuch
qscape study run demo --workers 0
qscape study run demo --slurm --ray auto
qscape study run demo --slurm-args a=1
qscape study run no-study
qscape study run no.toml
qscape study status demo --budget nosuch
"""


def list_command_lines() -> list[str]:
    """Every command line that is run, without those that are there twice."""
    lines = COMMAND_LINES.strip().splitlines()
    for command, flags in FLAGS.items():
        name = command.split()[0]
        lines += [
            f"qscape {name}",
            f"qscape {name} --help",
            f"qscape {command} --nosuch 1",
            f"qscape {command} x",
        ]
        for flag in flags.split():
            lines += [f"qscape {command} {flag}x", f"qscape {command} {flag}=", f"qscape {command} {flag}"]
            if flag not in ACCEPTED:
                lines.append(f"qscape {command} {flag} x")
    lines += [f"qscape train {recipe} --help" for recipe in RECIPES]
    return [line for line in dict.fromkeys(lines) if line not in LONG]


# Command lines of FLAGS that are accepted, and train, ask or wait.
LONG = {
    f"qscape {TRAIN} {flag}"
    for flag in ("--overwrite", "--quiet", "--env-args=", "--log-project=", "--log-group=")
} | {
    f"qscape {TRAIN} --keep-data=",
    f"qscape {TRAIN} --from=",
    "qscape resume td3 --quiet",
    "qscape resume td3 --empty-replay",
    "qscape tune td3 --env Pendulum-v1 --fields",
    "qscape tune td3 --env Pendulum-v1 --out x",
}


def run_command_lines(lines: list[str] | None = None) -> Iterator[Refusal]:
    """Run command lines in a new folder with copies of some runs; yield what came of each."""
    from qscape import trusted
    from qscape.cli import main

    stay = os.getcwd()
    with tempfile.TemporaryDirectory() as place, Recorder() as recorder:
        for name in ("td3", "td7", "sac+savgo", "ppo", "ppo+etf", "seeds", "td3+savo"):
            shutil.copytree(RUNS / name, Path(place) / name)
        os.chdir(place)
        try:
            for line in lines or list_command_lines():
                recorder.made.clear()
                trusted._parts.clear()  # of an earlier line, which is not run where every sixth one is
                out, err = io.StringIO(), io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    try:
                        status: Any = main(shlex.split(line)[1:])
                    except SystemExit as end:  # of --help
                        status = end.code
                    except Exception as problem:  # a defect: the user would see a traceback
                        status = 1
                        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
                yield _outcome(line, status or 0, out.getvalue(), err.getvalue(), recorder, place)
        finally:
            os.chdir(stay)


def _outcome(line: str, status: int, out: str, err: str, recorder: Recorder, place: str) -> Refusal:
    """What came of a command line: the error that it printed, or the first line that it wrote."""
    said = (err or out).replace(place, "TMP").strip()
    stream = " and ".join(name for name, text in (("stdout", out), ("stderr", err)) if text) or "-"
    case = _printed(line)
    if status == 0:  # what is kept of a page of help: its flags
        flags = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", out)))
        first = steady(said.splitlines()[0]).strip() if said else ""
        return Refusal(case, 0, "", "", "", stream, " ".join([first, *flags]), "")
    said = steady(" ".join(said.split())).removeprefix("qscape: ")
    for refusal, *_ in reversed(recorder.made):
        if " ".join(refusal.message.replace(place, "TMP").split()) == said:
            return refusal._replace(case=case, status=status, stream=stream, message=said)
    return Refusal(case, status, "", "", "", stream, said, "")


# --- settings -----------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (-1, 0.5, 10**30, "x", float("nan"))


def list_agents() -> list[str]:
    """The recipes whose fields are tried: every base, and every part after the first base that takes it."""
    from qscape.agents import PARTS as off_policy
    from qscape.agents import build, onpolicy
    from qscape.errors import UsageError

    found = list(RECIPES)
    for part in [*off_policy, *onpolicy.PARTS]:
        for base in RECIPES:
            with contextlib.suppress(UsageError):
                build(f"{base}+{part}")
                found.append(f"{base}+{part}")
                break
    return found


def run_settings() -> Iterator[Refusal]:
    """Try to build agents: every part after every base, and every field at VALUES; yield what is refused."""
    from qscape.agents import PARTS as off_policy
    from qscape.agents import build, onpolicy
    from qscape.errors import QscapeError

    with Recorder() as recorder:

        def attempt(case: str, recipe: str, settings: dict[str, dict[str, Any]]) -> Iterator[Refusal]:
            recorder.made.clear()
            try:
                build(recipe, settings)
            except QscapeError as problem:
                place = recorder.made[-1][0].place if recorder.made else ""
                yield describe(problem, place, case)

        for base in RECIPES:
            for part in dict.fromkeys([*off_policy, *onpolicy.PARTS]):
                yield from attempt(f"{base}+{part}", f"{base}+{part}", {})
        seen = set()
        for recipe in list_agents():
            agent = build(recipe)
            for name, part in {"base": agent.base, **agent.parts}.items():
                for field in dataclasses.fields(part):
                    if (type(part), field.name) in seen:
                        continue
                    seen.add((type(part), field.name))
                    for value in VALUES:
                        case = f"{recipe} {name}.{field.name} = {value!r}"
                        yield from attempt(case, recipe, {name: {field.name: value}})
            yield from attempt(f"{recipe} base.nosuch = 1", recipe, {"base": {"nosuch": 1}})


# --- the list -----------------------------------------------------------------------------------------


def collect(raw: Path, files: list[str]) -> int:
    """Run test files, and append every error that is made meanwhile to a file. Returns pytest's exit code."""
    import pytest

    with Recorder() as recorder:
        code = pytest.main(["-q", "-m", "not slow", "-p", "no:cacheprovider", *files])
    with raw.open("a") as file:
        for refusal, module, line in dict.fromkeys(recorder.made):
            if refusal.place:
                file.write(json.dumps([*refusal, module, line]) + "\n")
    return int(code)


def _shortest_of_each_place(rows: list[list[Any]]) -> Iterator[Refusal]:
    """Yield the shortest message of each place in the source, kind and field."""
    found: dict[tuple[Any, ...], Refusal] = {}
    for row in rows:
        refusal = Refusal(*row[:8])._replace(place="")
        key = (*row[8:], refusal.status, refusal.code, refusal.field)
        known = found.get(key)
        if known is None or (len(refusal.message), refusal.message) < (len(known.message), known.message):
            found[key] = refusal
    yield from found.values()


def write(raw: Path | None, target: Path = LIST) -> None:
    """Write the list."""
    with Recorder() as recorder:
        lines, settings = [*run_command_lines()], [*run_settings()]
    rows = [json.loads(row) for row in raw.read_text().splitlines()] if raw else []
    recorded = [*_shortest_of_each_place(rows)]
    reached = {tuple(row[8:]) for row in rows} | {tuple(where) for _, *where in recorder.made}
    ran = {(refusal.message, refusal.code) for refusal in (*lines, *settings)}
    others = [refusal for refusal in recorded if (refusal.message, refusal.code) not in ran]
    places = find_places()
    missed = [
        place
        for place in places
        if not any((place.module, line) in reached for line in range(place.first, place.last + 1))
    ]
    counts = (len(lines), len(settings), len(others), f"{len(missed)} of {len(places)}")
    kept = "" if raw else _collected(target)
    with target.open("w") as file:
        file.write("Every refusal of qscape. tests/refusals.py says how this list is made.\n")
        for part, count, found in zip(PARTS, counts, (lines, settings, _sorted(others), missed), strict=True):
            if kept and part == PARTS[2]:
                file.write(kept)
                break
            file.write(f"\n# {part} ({count})\n\n")
            for item in found:
                if isinstance(item, Place):
                    file.write(f"  {item.template}\n    {item.kind} | at {item.module}:{item.function}\n")
                else:
                    file.write(str(item))


def _collected(file: Path) -> str:
    """Parts 3 and 4 of the list as they are."""
    text = file.read_text() if file.exists() else ""
    _, found, rest = text.partition(f"\n# {PARTS[2]} (")
    return found + rest


def check(every: int = 1) -> list[str]:
    """Run every n-th command line and all settings; return the lines in which they differ from the list."""
    listed = {refusal.case: refusal for refusal in read_list()}
    lines = list_command_lines()[::every]
    ran = {refusal.case: refusal for refusal in (*run_command_lines(lines), *run_settings())}
    skipped = {_printed(line) for line in list_command_lines()} - {_printed(line) for line in lines}
    before = {refusal.comparable for case, refusal in listed.items() if case not in skipped}
    now = {refusal.comparable for refusal in ran.values()}
    return [f"- {line}" for line in sorted(before - now)] + [f"+ {line}" for line in sorted(now - before)]


def _printed(line: str) -> str:
    return line.replace("\x1b", r"\x1b")


def _sorted(refusals: list[Refusal]) -> list[Refusal]:
    return sorted(refusals, key=lambda refusal: (refusal.message, *refusal))


def main(argv: list[str]) -> int:
    """`collect RAW FILES...`, `write [RAW]` or `check [EVERY]`; 1 for a check that found a difference."""
    sys.path.insert(0, str(HERE))  # command lines name the environments in tiny.py
    if len(argv) > 2 and argv[0] == "collect":
        return collect(Path(argv[1]), argv[2:])
    if argv[:1] == ["write"]:
        write(Path(argv[1]) if argv[1:] else None)
        return 0
    if argv[:1] == ["check"]:
        differences = check(*map(int, argv[1:2]))
        print("\n".join(differences))
        return int(bool(differences))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
