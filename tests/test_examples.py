"""Examples, the README's Python, the generated page and the list of long tests are as they say."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qscape as qs
from qscape.cli import train
from qscape.run.folder import read_record

ROOT = Path(__file__).parent.parent


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


def test_python_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "10_000" in code
    out = run("-c", code.replace("10_000", "60"), cwd=tmp_path)
    assert out.splitlines()[-1].count("-") == 10  # ten returns, each below zero
    assert qs.load(tmp_path / "runs/mine").env_steps == 60


def test_commands_of_the_documentation_can_be_parsed(monkeypatch):
    """Recipes and flags of every `qscape train` line; nothing is trained."""
    seen, elsewhere = [], ROOT / "docs/how-to/add-a-method.md"
    monkeypatch.setattr(train, "run_all", lambda jobs, together: seen.append(jobs) or 0)
    for page in {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {elsewhere}:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.findall(r"^(?:\S+=\S+ )?qscape train (\S.*--env .*)$", block, re.MULTILINE):
                assert train.main(re.sub(r" +#.*", "", line).split()) == 0, f"{page}: {line}"
    assert len(seen) > 10


def test_reference_of_fields_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("make_fields", ROOT / "docs/make_fields.py")
    make_fields = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_fields)
    page = make_fields.make_page()
    assert make_fields.PAGE.read_text() == page, "run python docs/make_fields.py"
    closed = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert not re.search(r"^\|", closed, re.MULTILINE)  # every table opens with a click
    assert {"base", "sale", "lap", "pave", "on-policy-base", "run"} <= {
        *re.findall(r' id="([\w-]+)" markdown', page)
    }
