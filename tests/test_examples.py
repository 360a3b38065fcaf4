"""Examples, code blocks of pages, the generated page and the commands are as they say."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import shorten, split_lines
from PIL import Image
from rows import long
from tiny import environment

import qscape as qs
from qscape import cli
from qscape.cli import train
from qscape.run.folder import read_record

ROOT = Path(__file__).parent.parent
# Half the time of compiling, as in `make test`; a version of XLA that does not know a flag ends at it.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(*argv, cwd: Path) -> str:
    """What a Python program prints."""
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart_trains_saves_and_goes_on(tmp_path):
    out = run(ROOT / "examples/quickstart.py", "--steps", 60, "--out", tmp_path / "run", cwd=tmp_path)
    assert "one episode by hand: -" in out
    assert "after 66 steps: mean return -" in out
    numbers = qs.load(tmp_path / "run").trainer.counters()
    assert (numbers["env_steps"], numbers["updates"]) == (60, 48)


@pytest.mark.slow
def test_functional_learns_and_two_seeds_in_one_program_equal_two_runs(tmp_path):
    out = run(ROOT / "examples/functional.py", "--updates", 300, cwd=tmp_path)
    actions = re.findall(r"300 updates, .* at \(0.4, -0.4\) it goes \((\S+), (\S+)\)", out)
    assert len(actions) == 2
    assert all(float(right) < 0 < float(up) for right, up in actions), "it does not move to the origin"
    apart = [float(x) for x in re.findall(r"after 10 updates the critics of both ways differ by (\S+)", out)]
    assert len(apart) == 2
    assert max(apart) < 1e-5


@pytest.mark.slow
def test_compare_seeds_leaves_run_folders(tmp_path):
    argv = ["--steps", 60, "--seeds", 3, "--recipes", "td3+lap", "--out", tmp_path]
    out = run(ROOT / "examples/compare_seeds.py", *argv, cwd=tmp_path)
    assert "td3+lap seed 3: 48 updates" in out
    assert "over 1 seed(s)" in out
    assert read_record(tmp_path / "td3+lap" / "3")["seed"] == 3


def run_page(page: str, folder: Path, *most: int) -> str:
    """What the code blocks of a page print, with small numbers of steps (`pages.py` says what changes)."""
    env = (
        {"XLA_FLAGS": QUICK}
        | environment()
        | {"MINARI_DATASETS_PATH": str(folder / "minari"), "MPLBACKEND": "agg"}
    )
    argv = [sys.executable, ROOT / "tests/pages.py", ROOT / page, *most]
    done = subprocess.run([*map(str, argv)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def load_script(name: str):
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_blocks_of_the_readme_train_and_draw(tmp_path):
    """And the picture of README is of these commands, with today's settings: else `make pictures` is due."""
    out = run_page("README.md", tmp_path, 2)
    assert "done: runs/pendulum/0" in out
    assert (tmp_path / "report.html").exists()
    pictures = load_script("make_pictures")
    with Image.open(pictures.PICTURE) as kept, Image.open(tmp_path / "landscape.png") as drawn:
        assert kept.size == drawn.size
        made = json.loads(kept.text["qscape"])
    assert made["commands"] == pictures.list_commands()
    settings = read_record(tmp_path / "runs/pendulum/0")["settings"]
    assert made["settings"]["base"].pop("warmup") == 2400  # a fifth of its steps
    assert settings["base"].pop("warmup") < 100  # a fifth of fewer
    assert made["settings"] == settings


def test_returns_of_the_quickstart_are_those_of_the_picture():
    pictures = load_script("make_pictures")
    with Image.open(pictures.PICTURE) as kept:
        made = json.loads(kept.text["qscape"])
    said = re.search(r"from −([\d,]+) before training to −([\d,]+) at", (ROOT / QUICKSTART).read_text())
    assert [-float(number.replace(",", "")) for number in said.groups()] == [*map(round, made["returns"])]


def test_the_readme_is_short_and_shows_a_refusal_as_it_is_printed(capsys):
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 120
    assert len(readme.encode()) <= 7 * 1024
    command, printed = re.search(r"^\$ qscape (.+)\n(.+)$", readme, re.MULTILINE).groups()
    assert cli.main(command.split()) == 2
    assert capsys.readouterr().err.strip() == printed


QUICKSTART = "docs/quickstart.md"
# A page of the documentation: files that its blocks leave, and what they print.
PAGES = {
    "README.md": (["landscape.png", "report.html", "runs/mine/run.json"], "done: runs/pendulum"),
    QUICKSTART: (
        ["curve.png", "landscape.png", "runs/lap/0/run.json"],
        "Comparison|no ranking claim",
    ),
    "docs/tutorials/smooth-controller.md": (
        ["actions.png", "policy.onnx", "policy.md"],
        "upright in the last second: ",
    ),
    "docs/tutorials/items.md": (["items.png", "shop.onnx"], "the best item for one step: 11.9 clicks of 20"),
    "docs/tutorials/stuck-actor.md": (["stuck.png", "both.png"], "local optima: "),
    "docs/tutorials/paper-result.md": (
        ["runs/paper/pave/2/run.json", "runs/ablation"],
        "no ranking claim",
    ),
    "docs/tutorials/fair-comparison.md": (
        ["curves.png", "table.tex", "report.html"],
        "no ranking claim|probability",
    ),
    "docs/tutorials/goals.md": (["valve.py", "runs/point/her/2/run.json"], r"success rate \(%\)"),
    "docs/tutorials/coming-from.md": (
        ["policy.onnx", "runs/her/0/run.json", "runs/mine/run.json", "runs/command/0/run.json"],
        "done: runs/command/0",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [QUICKSTART, *(long(page) for page in PAGES if page != QUICKSTART)])
def test_blocks_of_a_page_run(page, tmp_path):
    """All of them, in order, in an empty folder."""
    left, said = PAGES[page]
    out = run_page(page, tmp_path)
    assert [name for name in left if not (tmp_path / name).exists()] == []
    assert re.search(said, out)


def test_every_tutorial_is_run():
    tutorials = {f"docs/tutorials/{page.name}" for page in (ROOT / "docs/tutorials").glob("*.md")}
    assert tutorials == {page for page in PAGES if "tutorials" in page}


def test_only_numbers_of_steps_and_episodes_of_a_page_change():
    line = (
        "qscape train td7 --steps 20000 --eval-every 1000 --base.warmup 500 --base.batch-size 512 --seeds 0 1"
    )
    assert shorten(line) == line.replace("20000", "300").replace("1000", "110").replace("500", "105")
    assert shorten("steps = 8_000\nseeds = 5") == "steps = 180\nseeds = 5"
    assert (
        shorten("qs.TD3(x, eval_every=2_000).learn(1_000_000, progress=True)")
        == "qs.TD3(x, eval_every=120).learn(300, progress=True)"
    )
    same = 'gym.register("Shop-v0", Shop, max_episode_steps=2000)  # 0.2 updates_per_step=1000'
    assert shorten(same) == same
    assert split_lines("pip install x\nqscape list  # all\n\npython a.py \\\n  b") == [
        "qscape list",
        "python a.py    b",
    ]


COMMAND = re.compile(r"(?:\S+=\S+ )?qscape train (\S.*--env .*)$")


def test_commands_of_the_documentation_can_be_parsed(monkeypatch):
    """Recipes and flags of every `qscape train` line, also of those in tables; nothing is trained."""
    seen, elsewhere = [], ROOT / "docs/how-to/add-a-method.md"
    monkeypatch.setattr(train, "run_all", lambda jobs, *_: seen.append(jobs) or 0)
    monkeypatch.setattr(train, "run_among", lambda job, *_: seen.append([job]) or 0)
    monkeypatch.setattr(train, "is_simulator", lambda env: True)  # no environment is made to see its images
    for page in {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {elsewhere}:
        text = page.read_text()
        lines = [*re.findall(r"`(qscape train [^`…]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            lines += split_lines(block)
        for line in lines:
            if (found := COMMAND.match(" ".join(line.split()))) and not re.search(
                r" [A-Z]+( |$)", line
            ):  # --steps N
                assert train.main(found[1].split()) == 0, f"{page}: {line}"
    assert len(seen) > 10


def test_the_first_page_leads_from_what_one_has_to_a_command():
    """Two clicks at most: the command is in the table, and every page that it names begins with some."""
    page = ROOT / "docs/index.md"
    _, _, *rows = re.search(r"## What do you have\?\n[^|]*((?:\|.*\n)+)", page.read_text())[1].splitlines()
    assert len(rows) > 8
    for row in rows:
        _, links, command = (cell.strip() for cell in row.strip("| ").split(" | "))
        assert re.match(r"`qscape \w+ .*`$|the commands above$", command), row
        for place in re.findall(r"\]\(([^)#]+)", links):
            blocks = re.findall(r"```(?:bash|text)\n(.*?)```", (page.parent / place).read_text(), re.DOTALL)
            assert any("qscape " in block for block in blocks), place


NAMES = ROOT / "docs/tutorials/coming-from.md"
WORDS = {"none": None, "learned": None, "off": False, "on": True}


def default(text):
    """A default as it stands in a table: a number, several, a word, or True, False or None."""
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d.,e-]*\d(?!\w)", text)]
    return WORDS.get(text, text) if not numbers else numbers[0] if len(numbers) == 1 else tuple(numbers)


def rows_of_names():
    """Agent, cells of the names, our default and theirs of every cell of the tables of defaults."""
    for table in re.findall(r"(?:^\|.*\n)+", NAMES.read_text(), re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        for cells in rows:
            for agent, cell in zip(head[3:], cells[3:], strict=True):
                own, _, theirs = cell.rstrip(")").partition(" (")
                if own != "–":
                    yield agent.strip("`"), cells[:3], default(own), default(theirs or own)


def test_defaults_beside_defaults_are_ours():
    seen = 0
    for name, (_, _, flags), own, _ in rows_of_names():
        agent = qs.agent(name)
        for part, field in re.findall(r"`--([a-z0-9_]+)\.([a-z-]+)`", flags):
            assert getattr(agent.parts.get(part, agent.base), field.replace("-", "_")) == own, (name, field)
            seen += 1
    assert seen > 60


def test_defaults_beside_defaults_are_those_of_stable_baselines3():
    theirs = pytest.importorskip("stable_baselines3")
    seen = 0
    for agent, (name, _, _), _, default in rows_of_names():
        known = inspect.signature(getattr(theirs, agent.upper()).__init__).parameters
        names = re.findall(r"`(\w+)`", name)
        values = [known[name].default for name in names if name in known]
        if values and not isinstance(values[0], str):  # ent_coef is "auto"
            assert (values[0] / values[1] if len(values) == 2 else values[0]) == default, (agent, name)
            seen += 1
    assert seen > 35


def test_reference_of_fields_is_what_the_code_says():
    make_fields = load_script("make_fields")
    page = make_fields.make_page()
    assert make_fields.PAGE.read_text() == page, "run python docs/make_fields.py"
    closed = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert not re.search(r"^\|", closed, re.MULTILINE)  # every table opens with a click
    assert {"base", "sale", "lap", "pave", "on-policy-base", "run"} <= {
        *re.findall(r' id="([\w-]+)" markdown', page)
    }
