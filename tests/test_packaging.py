"""What is built holds everything, says one version, and its pages lead somewhere."""

import csv
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from qscape.envs.simulators.gymnax import BEYOND, OLDEST

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINK = re.compile(r"!?\[[^]]*\]\((?!https?:|#)([^)#]+)")  # a relative address in Markdown


def run(*argv, cwd: Path = ROOT, **env: str) -> str:
    """What a program prints."""
    done = subprocess.run([*map(str, argv)], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_package_citation_and_changelog_say_one_version():
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("qscape") == version, "installed before pyproject.toml changed"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(
        r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == version


def test_the_readme_of_a_package_index_has_whole_addresses():
    readme = (ROOT / "README.md").read_text()
    places = set(LINK.findall(readme))
    assert len(places) > 30
    assert all((ROOT / place).exists() for place in places)
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for change in hook["substitutions"]:
        readme = re.sub(change["pattern"], change["replacement"], readme)
    assert not LINK.search(readme)
    assert "](https://raw.githubusercontent.com/OWNER/qscape/main/docs/images/" in readme


def test_placeholders_stand_in_one_place():
    text = (ROOT / "pyproject.toml").read_text()
    before, marked, after = re.split(
        r"^# --- (?:Placeholders|End of the placeholders) -+$", text, flags=re.MULTILINE
    )
    assert "OWNER" in marked
    assert "OWNER" not in before + after
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.cff"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / ".github").rglob("*"),
    ]
    assert not [p for p in pages if p.is_file() and "OWNER/" in p.read_text().replace("OWNER/NAME", "")]


def test_every_extra_is_documented():
    page = (ROOT / "docs/install.md").read_text()
    assert not [e for e in PROJECT["project"]["optional-dependencies"] if f"| `{e}` |" not in page]


def test_curves_of_others_are_named_with_their_licences():
    notices = (ROOT / "docs/cite.md").read_text()
    rows = {
        cells[0]: cells[3]
        for line in notices.splitlines()
        if len(cells := line.strip("| ").split(" | ")) == 4
    }
    data = ROOT / "src/qscape/report/data"
    seen = {
        (row["source"].split()[0], row["licence"], file.name)
        for file in data.glob("mujoco_curves*.csv")
        for row in csv.DictReader(file.read_text().splitlines())
    }
    assert len(seen) > 6
    for repository, licence, file in seen:
        (place,) = (line for line in notices.splitlines() if f"github.com/{repository})" in line)
        assert f"`{file}`" in place
        assert rows[f"[{repository}](https://github.com/{repository})"].startswith(licence)


def test_the_adapter_of_gymnax_knows_the_versions_of_its_extra():
    oldest, beyond = (".".join(map(str, version)) for version in (OLDEST, BEYOND))
    assert f"gymnax>={oldest},<{beyond}" in PROJECT["project"]["optional-dependencies"]["gymnax"]


SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "dependabot": ".github/dependabot.yml",
    "readthedocs": ".readthedocs.yaml",
    "citation-file-format": "CITATION.cff",
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_automation_follows_its_schemas(schema):
    pytest.importorskip("check_jsonschema")
    files = sorted(ROOT.glob(SCHEMAS[schema]))
    assert files
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_every_test_of_the_list_of_slow_ones_exists():
    """A test that has another name by now would be back in `make test`."""
    names = (ROOT / "tests/slow.txt").read_text().splitlines()
    assert names == sorted(set(names))
    files = {file: (ROOT / file).read_text() for file in {name.split("::")[0] for name in names}}
    for name in names:
        file, function = name.split("[")[0].split("::")
        assert f"def {function}(" in files[file], name


def test_workflows_run_what_the_makefile_has():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    files = [*(ROOT / ".github").rglob("*.yml")]
    files += [ROOT / "CONTRIBUTING.md", ROOT / "Dockerfile", ROOT / "docs/releasing.md"]
    named = [
        name
        for file in files
        for name in re.findall(r"(?:`|run: |^)make ([a-z-]+)", file.read_text(), re.MULTILINE)
    ]
    assert len(named) > 5
    assert set(named) <= set(targets)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", dist)
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(dist, filter="data")
    source = next(path for path in dist.iterdir() if path.is_dir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist, cwd=source)
    return dist


@pytest.mark.slow
def test_a_wheel_has_studies_and_the_runner(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        about = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    assert not LINK.search(about)
    assert "Project-URL: Issues, " in about
    assert (tmp_path / "qscape/export/run_policy.py").exists()
    assert len([*tmp_path.rglob("studies/*.toml")]) == 7
    out = run(sys.executable, "-m", "qscape", "list", "studies", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "demo" in out
    argv = ["study", "status", "demo", "--budget", "quick"]
    assert "6 waiting of 6 runs" in run(
        sys.executable, "-m", "qscape", *argv, cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not shutil.which("make"), reason="make is missing")
def test_an_sdist_runs_demo_test_and_docs_by_itself(built):
    """The packages of this environment stand for what make would install."""
    pytest.importorskip("mkdocs")
    source = next(path for path in built.iterdir() if path.is_dir())
    run(sys.executable, "-m", "venv", "--without-pip", ".venv", cwd=source)
    library = next((source / ".venv").glob("[lL]ib/**/site-packages"))
    (library / "all.pth").write_text("\n".join(place for place in sys.path if "site-packages" in place))
    for program in Path(sysconfig.get_path("scripts")).iterdir():
        if not (source / ".venv/bin" / program.name).exists():
            (source / ".venv/bin" / program.name).symlink_to(program)
    for extra in ("report", "dev", "docs"):
        (source / f".venv/.{extra}").touch()
    env = {"PYTHONPATH": str(source / "src")}
    run("make", "docs", cwd=source, **env)
    assert (source / "site/index.html").exists()
    run("make", "demo", cwd=source, **env)
    assert (source / "runs/make-demo/report.html").exists()
    files = ["packaging", "examples", "study", "toml", "plugins", "model", "recipes"]
    chosen = " ".join(f"tests/test_{name}.py" for name in files)
    pytest_ = (
        f'.venv/bin/python -m pytest -q -p no:xdist -m "not slow" -k "not test_package_citation" {chosen}'
    )
    out = run("make", "test", f"PYTEST={pytest_} #", cwd=source, **env)
    assert " passed" in out
    out = run(source / ".venv/bin/python", "-m", "pytest", "-q", "--collect-only", cwd=source, **env)
    assert "error" not in out.splitlines()[-1]
