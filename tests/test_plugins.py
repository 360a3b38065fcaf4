"""Parts of other packages: where recipes find them, what imports them, and what is refused in which words."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
from tiny import environment, flags, python, start

import qscape as qs
from qscape import trusted
from qscape.agents import PARTS, build, onpolicy, parse, plugins, register, settings_of
from qscape.cli import main
from qscape.errors import UsageError
from qscape.jobs.study import read_study
from qscape.jobs.worker import Job
from qscape.offpolicy.sockets import Regulariser
from qscape.run import folder as folders
from qscape.run.plan import Plan
from qscape.types import setting

SOURCE = '''
"""A part outside of qscape."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from qscape.offpolicy.sockets import Regulariser
from qscape.onpolicy.plain import NoScaling
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Penalty(Regulariser):
    """Adds weight · mean π(s)² to the actor's loss."""

    name: ClassVar[str] = "penalty"
    weight: float = setting(0.1, "Factor of the penalty.", tune=(0.01, 1.0, "log"))

    def actor(self, actor_params, state, context, batch, key):
        size = jnp.square(context.policy(batch.observation).mode()).mean()
        return self.weight * size, {"action_size": size}


@dataclasses.dataclass(frozen=True)
class Unscaled(NoScaling):
    """Scales nothing."""

    name: ClassVar[str] = "unscaled"
'''
SHORT = ["--env", "tiny:Clock-v0", "--steps", "120", "--eval-every", "60", "--eval-episodes", "2"]
SHORT += flags("td3", warmup=30)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """An empty folder to be in, with the part in `mine.py`. What a test registers is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE)
    tables = (PARTS, onpolicy.PARTS, plugins.ORIGINS, plugins.PLACES)
    before = [dict(table) for table in tables]
    plugins.entry_points.cache_clear()
    monkeypatch.setattr(trusted, "_parts", [])
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    forget()


def forget():
    """As in a new process: nothing of a plug-in is imported."""
    for name in [*sys.modules]:
        if name.startswith("mine"):
            del sys.modules[name]
    for names in (plugins.ORIGINS, plugins.PLACES):
        names.clear()
    for table in (PARTS, onpolicy.PARTS):
        for name in ("penalty", "unscaled"):
            table.pop(name, None)
    plugins.entry_points.cache_clear()
    parse.cache_clear()


def install(monkeypatch, points, name="mypackage"):
    """A package with a module `mine_NAME` and these entry points, as an installer leaves it."""
    site = Path.cwd() / f"site-{name}"
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (site / f"mine_{name}.py").write_text(SOURCE)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[qscape.parts]\n{lines}")
    monkeypatch.syspath_prepend(str(site))
    plugins.entry_points.cache_clear()


@pytest.fixture
def refused(capsys):
    """Runs a command; returns the one sentence it was refused with."""

    def refuse(*argv):
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("qscape: ")
        assert err.count("\n") == 1
        assert "Traceback" not in out + err
        return err

    return refuse


# --- found by place and by name ---------------------------------------------------------------------------


def test_a_part_is_named_by_its_place():
    agent = qs.agent(" TD3 + lap + mine:Penalty", {"penalty": {"weight": 0.5}})
    assert agent.recipe == "td3+lap+mine:Penalty"
    assert [(part.name, part.weight) for part in agent.regularisers] == [("penalty", 0.5)]
    assert settings_of(build(agent.recipe, settings_of(agent))) == settings_of(agent)
    assert build("td3+penalty").regularisers == build("td3+mine:Penalty").regularisers
    with pytest.raises(UsageError, match=r"'penalty' cannot be added .* twice"):
        build("td3+penalty+mine:Penalty")
    with pytest.raises(UsageError, match=r"'penalty' does not fit 'ppo': it is a part of off-policy"):
        build("ppo+mine:Penalty")


def test_a_part_that_is_defined_again_is_the_one_that_is_built():
    for default in (1.0, 2.0):

        @dataclasses.dataclass(frozen=True)
        class Again(Regulariser):
            name: ClassVar[str] = "again"
            strength: float = setting(default, "How much.")

        register(Again)
        assert build("td3+again").parts["again"].strength == default


def test_a_part_of_on_policy_agents():
    assert qs.agent("ppo+mine:Unscaled").scaling.name == "unscaled"
    with pytest.raises(UsageError, match=r"'unscaled' does not fit 'td3': it is a part of on-policy"):
        qs.agent("td3+mine:Unscaled")


def test_a_part_of_an_installed_package(monkeypatch, capsys):
    install(monkeypatch, {"penalty": "mine_mypackage:Penalty"})
    assert "mine_mypackage" not in sys.modules
    assert build("td3+Penalty", {"penalty": {"weight": 2}}).regularisers[0].weight == 2.0
    assert plugins.ORIGINS == {"penalty": "mypackage 0.1"}
    forget()
    assert build("td3+mine_mypackage:Penalty").parts["penalty"], "the place of an entry point, too"
    forget()
    assert main(["list", "parts"]) == 0
    assert "mypackage 0.1" in capsys.readouterr().out
    for argv in (["train", "td3+penalty", "--help"], ["train", "td3+mine:Penalty", "--help"]):
        forget()
        with pytest.raises(SystemExit):
            main(argv)
        assert "--penalty.weight" in capsys.readouterr().out


def test_a_registered_class(monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    from mine import Penalty

    assert qs.register(Penalty) is Penalty
    assert qs.register(Penalty) is Penalty, "a cell of a notebook is run again"
    assert qs.Model("td3+penalty", "tiny:Clock-v0").recipe == "td3+penalty"
    assert plugins.places() == ["mine:Penalty"]


def test_a_worker_registers_what_the_command_named():
    register("mine:Penalty")
    data = json.loads(json.dumps(Job("train", Path("x"), Plan("td3+penalty", "tiny:Clock-v0", 9)).to_json()))
    assert data["parts"] == ["mine:Penalty"]
    forget()
    assert Job.from_json(data).plan.recipe == "td3+penalty"
    assert build("td3+penalty").parts["penalty"]


def test_a_study_names_parts():
    qs.register("mine:Penalty")
    text = """
    [budgets.quick]
    steps = 300
    seeds = 2
    [[agents]]
    recipe = "td3+mine:Penalty"
    penalty = {weight = 0.5}
    [[environments]]
    id = "tiny:Clock-v0"
    """
    Path("study.toml").write_text(text)
    rows = read_study(Path("study.toml"), "quick").rows
    assert [row.plan.label for row in rows] == ["td3+mine:Penalty[penalty.weight=0.5]"] * 2
    Path("study.toml").write_text(text.replace("mine:Penalty", "mine:Nothing"))
    with pytest.raises(UsageError, match=r"line 6: The part 'mine:Nothing' is not loaded"):
        read_study(Path("study.toml"), "quick")


# --- a run folder imports nothing ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a part named by its place, trained from the folder that holds the part."""
    place = tmp_path_factory.mktemp("plugins")
    (place / "mine.py").write_text(SOURCE)
    process = start("train", "td3+mine:Penalty", *SHORT, "--out", "runs", cwd=place)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    return place / "runs" / "0"


@pytest.fixture
def copied(trained):
    """The run, in the folder that holds its part; a process that imported nothing of it."""
    shutil.copytree(trained, "runs/0")
    return Path("runs/0")


@pytest.mark.slow
def test_a_run_says_where_its_part_is_from(copied):
    record = folders.read_record(copied)
    assert record["recipe"] == "td3+mine:Penalty"
    assert record["plugins"] == {"penalty": "mine:Penalty"}
    assert "action_size" in (copied / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_run_folder_imports_nothing_that_nobody_named(copied, refused, capsys):
    for argv in (["resume", copied, "--steps", 150], ["evaluate", copied, "--episodes", 1]):
        sentence = refused(*argv)
        assert "was trained with the part 'penalty' (mine:Penalty), which is not loaded" in sentence
        assert "add --parts mine:Penalty or --trust to the command" in sentence
    with pytest.raises(UsageError, match="call qs"):
        qs.load(copied)
    assert "add --parts mine:Penalty" in refused("train", "--config", copied / "run.json", "--out", "again")
    assert main(["compare", str(copied)]) == 0, "comparing reads numbers and needs no code"
    assert main(["watch", str(copied), "--once"]) == 0
    assert "mine" not in sys.modules
    assert main(["evaluate", str(copied), "--episodes", "1", "--parts", "mine:Penalty"]) == 0
    assert qs.load(copied).recipe == "td3+mine:Penalty", "named in this process by now"
    assert main(["resume", str(copied), "--steps", "150"]) == 0
    assert "done: runs/0  150 steps" in capsys.readouterr().out


def test_a_command_that_continues_names_the_parts(monkeypatch, capsys):
    monkeypatch.setattr(trusted, "_parts", [])
    argv = ["train", "td3+penalty", "--parts", "mine:Penalty", *SHORT, "--save-every", "50", "--out", "runs"]
    assert main([*argv, "--env-args", "fail_at=100", "value=nan"]) == 1
    assert "to continue: qscape resume runs/0 --parts mine:Penalty" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_of_a_search_is_a_command_with_its_parts(monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(trusted, "_parts", [])
    argv = ["tune", "td3+penalty", "--parts", "mine:Penalty", "--env", "Pendulum-v1", *SHORT[2:]]
    assert main([*argv, "--fields", "penalty.weight", "--trials", "1", "--out", "search"]) == 0
    assert "--out search/best --parts mine:Penalty" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["os:system", "mine:Penalty", "antigravity:fly", "mine.py:Penalty"])
def test_a_forged_run_folder_imports_nothing(copied, refused, place):
    record = folders.read_record(copied) | {"recipe": f"td3+{place}", "plugins": {}}
    folders.write_record(copied, record)
    before = {*sys.modules}
    for argv in (["resume", copied, "--steps", 150], ["evaluate", copied], ["export", copied, "--npz", "x"]):
        assert f"The part '{place}' is not loaded: a file that names code does not run it" in refused(*argv)
    with pytest.raises(UsageError, match="is not loaded"):
        qs.load(copied)
    assert not {"mine", "antigravity"} & ({*sys.modules} - before)


def test_a_run_whose_package_is_gone(copied, refused):
    record = folders.read_record(copied) | {"recipe": "td3+penalty", "plugins": {"penalty": "mypackage 0.1"}}
    folders.write_record(copied, record)
    assert refused("evaluate", copied) == (
        "qscape: runs/0 was trained with the part 'penalty' of mypackage 0.1, which is not installed here; "
        "install that package.\n"
    )


def test_a_run_of_an_installed_part_needs_no_naming(copied, monkeypatch):
    record = folders.read_record(copied) | {"recipe": "td3+penalty", "plugins": {"penalty": "mypackage 0.1"}}
    folders.write_record(copied, record)
    install(monkeypatch, {"penalty": "mine_mypackage:Penalty"})
    assert main(["evaluate", str(copied), "--episodes", "1"]) == 0


# --- what cannot be used --------------------------------------------------------------------------------


def changed(old, new):
    assert old in SOURCE
    Path("mine_bad.py").write_text(SOURCE.replace(old, new))
    return "mine_bad:Penalty"


BAD = [
    ("import dataclasses", "import dataclasses, nothing_there", "cannot be imported (ModuleNotFoundError"),
    ("class Penalty", "class Penalty(", "cannot be imported (SyntaxError"),
    ("class Penalty", "class Other", "cannot be imported (AttributeError"),
    ("(Regulariser)", "", "it is no subclass of a socket's interface"),
    ('    name: ClassVar[str] = "penalty"', "", "Penalty lacks `name`; write name: ClassVar[str]"),
    ('name: ClassVar[str] = "penalty"', 'name: ClassVar[str] = "base"', "'base' is reserved"),
    ('name: ClassVar[str] = "penalty"', 'name: ClassVar[str] = "lap"', "'lap' is taken by a part of qscape"),
    ('name: ClassVar[str] = "penalty"', 'name: ClassVar[str] = "vectorise"', "'vectorise' is reserved"),
    ('name: ClassVar[str] = "penalty"', 'name: ClassVar[str] = "soft"', "'soft' is taken by qscape"),
    ('name: ClassVar[str] = "penalty"', 'name: ClassVar[str] = "sac"', "'sac' is taken by qscape"),
    ("    weight:", '    socket: ClassVar[str] = "nose"\n    weight:', "there is no socket 'nose'"),
    (
        "    weight:",
        '    socket: ClassVar[str] = "reset"\n    weight:',
        "must be a subclass of qscape.",
    ),
    ("float = setting(0.1, ", "float  #", "its field 'weight' has no default"),
    ("@dataclasses.dataclass(frozen=True)\nclass P", "class P", "Penalty is no frozen dataclass"),
]


@pytest.mark.parametrize(("old", "new", "why"), BAD, ids=lambda x: x[:24])
def test_parts_that_cannot_be_used(refused, old, new, why):
    place = changed(old, new)
    sentence = refused("train", f"td3+{place}", "--env", "tiny:Clock-v0")
    assert place in sentence
    assert why in sentence
    with pytest.raises(UsageError):
        main(["train", f"td3+{place}", "--env", "tiny:Clock-v0", "--debug"])


@pytest.mark.parametrize("place", ["mine:", ":Penalty", "mine:a.b", "mine/x:P", "mine:P:Q"])
def test_no_place_of_a_part(refused, place):
    assert "is not the place of a part; write module:Class" in refused("train", f"td3+{place}", "--env", "x")


def test_a_module_that_is_not_there(refused):
    looked = "'nowhere'); Python looked in the current folder and where PYTHONPATH says.\n"
    assert looked in refused("train", "td3+nowhere:Penalty", "--env", "tiny:Clock-v0")


def test_names_that_are_declared_twice(monkeypatch, refused):
    install(monkeypatch, {"penalty": "mine_one:Penalty", "lap": "mine_one:Penalty"}, "one")
    assert "'lap' of one 0.1 cannot be used: its class has the name 'penalty'" in refused("train", "td3+lap")
    install(monkeypatch, {"penalty": "mine_two:Penalty"}, "two")
    assert "declared by " in refused("train", "td3+penalty")
    assert main(["list", "parts"]) == 0


def test_a_socket_that_is_filled_twice(refused):
    sentence = refused("train", "ppo+scale_rewards+mine:Unscaled", "--env", "CartPole-v1")
    assert "scale_rewards and unscaled both fill one place (what scales rewards or returns)" in sentence


WRONG = [
    ("size = jnp.square", "size = batch.nothing.square", "fails in actor: AttributeError: "),
    (".mode()).mean()", ".mode())", "its loss has the shape (16, 1) and must be a scalar; take its mean"),
    ('{"action_size": size}', '{"action_size": batch.reward}', "metric 'action_size' has the shape (16,)"),
    (', {"action_size": size}', "", "it must return (loss, metrics), a number and a dict"),
    ("    def actor", "    def overrides(self, present):\n        return {'discont': 0.5}\n\n    def actor",
     "penalty overrides base.discont; near to it: discount"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "why"), WRONG, ids=lambda x: x[:24])
def test_a_part_that_is_wrong_is_named(refused, old, new, why):
    sentence = refused("train", f"td3+{changed(old, new)}", *SHORT)
    assert why in sentence
    assert "penalty" in sentence


# --- the page -------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "add-a-method.md"


@pytest.mark.slow
@pytest.mark.long
def test_the_page_is_enough_to_write_a_method():
    """Its files are written into an empty folder and its commands run as they stand there; instead of
    `pip install -e .` the package is put on the path with the entry point of its pyproject.toml."""
    page = PAGE.read_text()
    files = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE))
    assert sorted(files) == ["action_change.py", "pyproject.toml", "study.toml"]
    Path("mine.py").unlink()
    for name, text in files.items():
        Path(name).write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    blocks = re.findall(r"^```(bash|text|python)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    env = environment()
    for kind, text in blocks:
        if kind == "python":
            python(text)
        elif text.startswith("pip install"):
            info = Path("installed") / "action_change-0.1.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
            points = project["entry-points"]["qscape.parts"]
            lines = "".join(f"{name} = {place}\n" for name, place in points.items())
            (info / "entry_points.txt").write_text(f"[qscape.parts]\n{lines}")
            env["PYTHONPATH"] = os.pathsep.join([str(Path("installed").absolute()), env["PYTHONPATH"]])
        elif kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                command = [sys.executable, "-m", "qscape", *shlex.split(line)[1:]]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                if "list parts" in line:
                    assert re.search(r"\+action_change .* action-change 0\.1", done.stdout)
    for seed in (0, 1):
        record = folders.read_record(Path("runs/by-place", str(seed)))
        assert record["settings"]["action_change"] == {"weight": 0.5}
        assert record["plugins"] == {"action_change": "action_change:ActionChange"}
    assert folders.read_record(Path("runs/by-name/0"))["plugins"] == {"action_change": "action-change 0.1"}
    lines = (Path("runs/by-name/0/metrics.jsonl")).read_text().splitlines()
    assert json.loads(lines[-1])["action_change"] >= 0
    assert len(list(Path("runs/study").glob("*/*/*/run.json"))) == 4
