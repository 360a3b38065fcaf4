"""No code runs when a file is loaded: run folders, datasets and studies name modules that nothing imports."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import TESTS, settings

import qscape as qs
from qscape import trusted
from qscape.cli import main
from qscape.cli.running import plain_console, print_table
from qscape.errors import RunError, UsageError, describe
from qscape.export import card
from qscape.jobs.parcel import Parcel, unpack
from qscape.jobs.pool import LocalWorker
from qscape.jobs.worker import Job
from qscape.run import folder as folders
from qscape.run import saves
from qscape.sealed import seal

MARKED = "from pathlib import Path\nPath('ran').touch()\n"  # what a module here does when it is imported
STUDY = """
[budgets.quick]
steps = 300
seeds = 1
[[agents]]
recipe = "td3"
[[environments]]
id = "tiny:Clock-v0"
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with one save."""
    return qs.Model("td3", "tiny:Clock-v0", **settings("td3")).save(tmp_path_factory.mktemp("trust") / "0")


@pytest.fixture
def run(saved, tmp_path, monkeypatch):
    """The run in a folder of somebody else, with a module beside it that nobody named; that folder is on the
    path, as in a Python that was started there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(trusted, "_places", set())
    Path("evil.py").write_text(MARKED + "from tiny import Clock\nclass Probe:\n    columns = ()\n")
    Path("evil-mod.py").write_text(MARKED)
    yield Path(shutil.copytree(saved, "run"))
    sys.modules.pop("evil", None)


def forge(run, **fields):
    """Change fields of run.json, as a stranger would."""
    folders.write_record(run, folders.read_record(run) | fields)


FORGED = [
    {"env": "evil:Clock-v0"},
    {"env": "evil:Clock"},
    {"env": "restricted/Any-v0", "env_args": {"env": "evil:Clock-v0"}},
    {"env": "restricted/Hopper-v0", "env_args": {"base": "evil:Clock-v0"}},
    *({"env": "restricted/Any-v0", "env_args": {"env": name}} for name in ("evil:", "evil:-x", "evil-mod:x")),
    {"env": "restricted/Hopper-v0", "env_args": {"base": "evil.sub:"}},
    {"probe": ["evil:Probe"]},
    {"recipe": "td3+evil:Part"},
]
LOADING = ["resume", "evaluate", "landscape", "smoothness", "embedding", "collapse"]


@pytest.mark.parametrize("fields", FORGED, ids=str)
def test_a_run_folder_imports_nothing(run, fields, capsys):
    forge(run, **fields)
    commands = [[name, "run"] for name in LOADING] + [
        ["export", "run", "--npz", "x"],
        ["record", "run", "--episodes", "1", "--dataset", "local/x-v0"],
        ["video", "run", "--mp4", "x.mp4"],
        ["train", "--config", "run/run.json"],
    ]
    for argv in commands:
        assert main(argv) == 2, argv
        out, err = capsys.readouterr()
        assert err.count("\n") == 1, err
        assert "--trust" in err, argv
        assert "Traceback" not in out + err
    with pytest.raises(UsageError, match="trust"):
        qs.load(run)
    for looks in ("compare run", "plot run --png x.png", "watch run --once", "list"):
        assert main(looks.split()) in (0, 1, 2), "which may find nothing to show"
    assert "evil" not in sys.modules
    assert not Path("ran").exists()


def test_an_argument_with_a_colon_is_no_code_by_itself(run):
    values = {"path": r"C:\data\ml-25m.zip", "at": "12:30", "of": [":", "nothing here: really"]}
    assert not [*trusted.list_code("recsim/Data-v0", values, ())]


def test_what_the_user_names_is_imported(run):
    forge(run, env="evil:Clock")
    assert main(["evaluate", "run", "--episodes", "1", "--trust"]) == 0
    assert Path("ran").exists()
    trusted._places.clear()
    sys.modules.pop("evil")
    qs.trust("evil:Clock")
    assert qs.load(run).env_steps == 0
    with pytest.raises(UsageError, match=r"run names other:Clock, and a file does not make qscape import"):
        trusted.refuse_untrusted(["other:Clock"], "run")


def test_a_module_of_the_current_folder_is_found_where_the_command_line_names_it(tmp_path):
    """An environment by its id and by its class, and a probe, in processes that no PYTHONPATH leads there."""
    (tmp_path / "here.py").write_text(
        (TESTS / "tiny.py").read_text() + "\ngym.register('Here-v0', Clock)\n"
        "class Probe:\n    columns = ('one',)\n    def __init__(self, agent): pass\n"
        "    def __call__(self, evaluation): return {'one': 1.0}\n"
    )
    paths = {"PYTHONPATH": str(Path(qs.__file__).parents[1])}

    def command(*argv):
        done = subprocess.run(
            [sys.executable, "-m", "qscape", *argv],
            cwd=tmp_path,
            env={**os.environ, **paths},
            capture_output=True,
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    short = [
        "--steps",
        "40",
        "--base.warmup",
        "20",
        "--base.batch-size",
        "8",
        "--eval-episodes",
        "1",
        "--eval-every",
        "40",
    ]
    for env, seeds in (("here:Here-v0", ["0"]), ("here:Clock", ["0", "1"])):
        argv = ["train", "td3", "--env", env, *short, "--probe", "here:Probe", "--out", env[5:]]
        code, text = command(*argv, "--seeds", *seeds)
        assert code == 0, text
    code, text = command("evaluate", "Here-v0/0", "--episodes", "1")
    assert (code, "--trust" in text) == (2, True), text
    assert command("evaluate", "Here-v0/0", "--episodes", "1", "--trust")[0] == 0


def test_what_python_finds_is_not_looked_for_here(tmp_path, monkeypatch):
    """A file of the current folder stands in for no module, and modules that are found import none of it."""
    monkeypatch.chdir(tmp_path)
    Path("wave.py").write_text(MARKED)
    Path("seen_only_here.py").write_text(MARKED)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert Path(str(trusted.import_named("wave").__file__)).parent != tmp_path
    assert not Path("ran").exists()
    assert trusted.import_named("seen_only_here")
    assert Path("ran").exists()
    assert str(tmp_path) not in sys.path
    del sys.modules["seen_only_here"]


def test_flags_name_modules_for_files_and_workers(run):
    forge(run, env="evil:Clock-v0")
    assert main(["train", "--config", "run/run.json", "--env", "evil:Clock", "--steps", "0"]) == 2
    assert trusted.trusted_places() == ["evil:Clock"]
    data = json.loads(json.dumps(Job("resume", run).to_json()))
    trusted._places.clear()
    Job.from_json(data)
    assert trusted.trusted_places() == ["evil:Clock"], "so that a worker resumes what the command named"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tiny:Clock-v0", "evil:Clock-v0"),
        ('"td3"', '"td3+evil:Part"'),
        ("seeds = 1", 'seeds = 1\nprobe = ["evil:P"]'),
    ],
)
def test_a_study_names_no_code_by_itself(run, old, new, capsys):
    Path("study.toml").write_text(STUDY.replace(old, new))
    for what in ("run", "status"):
        assert main(["study", what, "study.toml", "--budget", "quick"]) == 2
        assert "--trust" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_a_dataset_names_no_code_by_itself(run, monkeypatch):
    pytest.importorskip("minari")
    from qscape.data.sources import _recover_env

    spec = {"id": "evil:Clock-v0", "entry_point": "evil:Clock", "kwargs": {}, "additional_wrappers": [],
            "vector_entry_point": None}  # fmt: skip
    env, _, notes = _recover_env({"env_spec": json.dumps(spec)}, "local/x-v0")
    assert env is None
    assert notes[0].startswith("nothing is evaluated: local/x-v0 names evil:Clock-v0, and a file does not")
    assert not Path("ran").exists()


def test_a_probe_is_a_class_with_columns(run):
    with pytest.raises(UsageError, match=r"--probe os:getcwd is no probe: it must be a class with"):
        qs.Model("td3", "tiny:Clock-v0", probe=["os:getcwd"], **settings("td3")).learn(1)


def test_modules_of_the_current_folder_do_not_reach_workers(run, monkeypatch):
    """Neither the file that hides a module of Python's, nor one that a run folder names."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(Path(qs.__file__).parents[1])]))
    Path("queue.py").write_text(MARKED)
    forge(run, env="evil:Clock-v0")
    events = [*LocalWorker(Job("resume", run)).events()]
    assert [event["kind"] for event in events] == ["Failed"]
    assert "names evil:Clock-v0, and a file does not make qscape import a module" in events[0]["why"]
    assert not Path("ran").exists()


@pytest.mark.slow
def test_the_command_imports_no_module_of_the_current_folder(run):
    from tiny import start

    Path("queue.py").write_text(MARKED)
    out, err = start("list").communicate(timeout=100)
    assert "td3" in out, err
    assert not Path("ran").exists()


# --- names and texts of files -----------------------------------------------------------------------------

NASTY = "td3\x1b[2J\x07\nsteps: 0 <script>alert(1)</script> \u202etxt` [x](javascript:y)"


@pytest.mark.parametrize("field", ["label", "env", "recipe", "dataset", "start", "probe"])
def test_names_hold_no_control_characters(run, field, capsys):
    forge(run, **{field: [f"a:{NASTY}"] if field == "probe" else NASTY})
    for command in ("resume", "watch", "evaluate"):
        assert main([command, "run"]) in (1, 2)
        out, err = capsys.readouterr()
        assert "a name holds no control characters" in err
        assert err.count("\n") == 1
        assert not {"\x1b", "\x07", "\u202e"} & {*out, *err}


def test_what_is_printed_or_raised_is_shown_and_not_obeyed(capsys, monkeypatch):
    from rich.text import Text

    console = plain_console()
    console.print(NASTY)
    console.print(Text(NASTY))
    print_table(console, NASTY, [NASTY], [[NASTY]])
    assert not {"\x1b", "\x07", "\u202e"} & {*capsys.readouterr().out}
    said = str(UsageError(NASTY))
    assert said.startswith(r"td3\x1b[2J\x07 steps: 0 <script>")
    assert said.isprintable()
    assert describe(OSError("a\nb.")) == "OSError: a b"


def test_a_model_card_shows_names_and_obeys_none():
    yaml = pytest.importorskip("yaml")
    about = {"env": NASTY, "label": NASTY, "recipe": NASTY}
    episode = SimpleNamespace(episode=SimpleNamespace(ret=1.0))
    lines = card._hub_header(SimpleNamespace(episodes=[episode], record=about), about)
    assert lines[0] == lines[-2] == "---"
    head = yaml.safe_load("\n".join(lines[1:-2]))
    assert head["tags"] == ["reinforcement-learning", NASTY, NASTY]
    assert head["model-index"][0]["name"] == head["model-index"][0]["results"][0]["dataset"]["name"] == NASTY
    text = card._text(NASTY) + card._code(NASTY)
    assert text.isprintable()
    assert r"\<script\>" in text
    assert r"\](javascript:" in text


def test_a_page_shows_names_and_obeys_none(run):
    pytest.importorskip("plotly")
    from qscape.report import page
    from qscape.report.runs import identify_run

    for text in (page.escape(NASTY), page.escape_with_breaks(NASTY), page.wrap_for_plotly(NASTY)):
        assert "<script" not in text
        assert not {"\x1b", "\x07", "\u202e"} & {*text}
    record = {"recipe": NASTY, "label": NASTY, "env": "x", "env_args": {"a": NASTY}, "seed": 0}
    head = identify_run("run", record)
    assert all(head[name].isprintable() for name in ("recipe", "label", "env"))


def rewritten(folder, file="a.npz", **options):
    """A save whose archive was written again, with all sums right; returns the sentence that refuses it."""
    saves.write(folder, "1", {"a": {"x": np.zeros(3)}}, {})
    path = folder / "1"
    with zipfile.ZipFile(path / "a.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path / "a.npz", "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    record = json.loads((path / "save.json").read_text())
    record["trees"]["a"] |= {"bytes": (path / "a.npz").stat().st_size, "file": file}
    (path / "save.json").write_bytes(seal(record))
    with pytest.raises(RunError) as caught:
        saves.read_arrays(path, "a")
    return str(caught.value)


def test_compressed_members_are_refused(tmp_path):
    said = rewritten(tmp_path, compression=zipfile.ZIP_DEFLATED)
    assert "a member is compressed, which qscape never does" in said


@pytest.mark.parametrize("file", ["../a.npz", "/etc/passwd", "..\\a.npz"])
def test_a_save_names_no_file_elsewhere(file, tmp_path):
    assert f"names {file!r}, a file in another folder" in rewritten(tmp_path, file)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "saves/../../evil"])
def test_a_parcel_names_no_file_elsewhere(name, tmp_path):
    with pytest.raises(RunError, match="a file outside of the run folder"):
        unpack(Parcel([name], {name: b""}), tmp_path / "run")
    assert not (tmp_path / "evil").exists()
