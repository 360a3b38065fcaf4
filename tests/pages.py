"""Run the code blocks of a page of the documentation in order, in the current folder.

    python tests/pages.py docs/tutorials/smooth-controller.md

A block with a title is a file of that name. Lines of `bash` blocks are run one after the other, and `python`
blocks share their names, as in one session. What runs differs from what the page says in two ways:

- Numbers of steps, episodes and trials are small (`NUMBER`, `shorten`), also in files, in studies of
  this project, and where `qscape train` has a default. Episodes of MuJoCo and Brax tasks have 20 steps. No
  other number changes.
- Lines that install something (`INSTALLS`) are left out: the tests have everything.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study_files import STUDIES

from qscape import cli, trusted

BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)
NAMES = r"steps|learn|warmup|(?:eval|log|save)[-_]every|(?:eval[-_])?episodes|trials"
NUMBER = re.compile(rf'(?<!\w)((?:{NAMES})"?(?: = |=|: | |\())([\d_]+)')
INSTALLS = ("pip install", "make ", "docker ", "uv ", "conda ", "python -m venv", "git clone", "cd ", "hf ")


def shorten(text: str) -> str:
    """Return code with small numbers of steps, episodes and trials; a longer run stays the longer one."""

    def small(found: re.Match[str]) -> str:
        name, number = found[1], int(found[2].replace("_", ""))
        few = "episodes" in name or "trials" in name
        return name + str(min(number, 2) if few else min(number, 100 + number // 100, 300))

    return NUMBER.sub(small, text)


def split_lines(text: str) -> list[str]:
    """Return the commands of a block, without comments and without those that install something."""
    lines = [re.sub(r"(^| +)# .*", "", line) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith(INSTALLS)]


def run_line(line: str) -> None:
    """Run one command as a shell would: `qscape` in this process, everything else in another.

    Raises:
        SystemExit: it failed.
    """
    print("$", line, flush=True)
    words = shlex.split(line)
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        before = os.environ.get(name) if name == "PYTHONPATH" else None
        os.environ[name] = os.pathsep.join([value, before] if before else [value])
        sys.path[:0] = [value] if name == "PYTHONPATH" else []
        return
    if words[0] != "qscape":
        programs = {"python": shlex.quote(sys.executable)}
        code = subprocess.run(
            " ".join([programs.get(words[0], words[0]), *line.split(" ")[1:]]), shell=True
        ).returncode
    else:
        code = run_qscape(words[1:])
    if code:
        sys.exit(f"exit code {code}: {line}")


def run_qscape(argv: list[str]) -> int | str | None:
    """Run a command of qscape and return its exit code."""
    if argv[0] == "train" and "--help" not in argv:
        defaults = {"--steps": "60", "--eval-episodes": "2"}
        if re.search(r"-v5|brax/", " ".join(argv)):  # TD7 needs whole episodes
            defaults["--env-args"] = "max_episode_steps=20"
        argv += [word for flag in defaults if flag not in argv for word in (flag, defaults[flag])]
    if argv[0] == "study":
        copy_study(argv)
    with forget_modules():
        try:
            return cli.main(argv)
        except SystemExit as end:  # --help
            return end.code


@contextlib.contextmanager
def forget_modules() -> Iterator[None]:
    """Forget what a process of its own would have: modules of this folder, and the trust in them."""
    before = {*sys.modules}
    yield
    trusted._places.clear()
    for name in {*sys.modules} - before:
        place = Path(getattr(sys.modules[name], "__file__", None) or "/").resolve()
        if place.is_relative_to(Path.cwd()):
            del sys.modules[name]


def copy_study(argv: list[str]) -> None:
    """Make a study of this project a file of this folder with small numbers, and name it in `argv`."""
    name = argv[2].removeprefix("studies/").removesuffix(".toml")
    if name in STUDIES:
        text = shorten(STUDIES[name].read_text(encoding="utf-8"))
        # TD7's first update comes after whole episodes.
        text = text.replace('id = "Pendulum-v1"', 'id = "Pendulum-v1"\nargs = { max_episode_steps = 20 }')
        argv[2] = f"{name}.toml"
        Path(argv[2]).write_text(text, encoding="utf-8")


def run_page(page: Path, most: int | None = None) -> None:
    """Run the blocks of a page, or the first `most` of them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for indent, language, title, text in BLOCK.findall(page.read_text(encoding="utf-8"))[:most]:
        code = shorten(re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        if title:
            Path(title).write_text(code, encoding="utf-8")
        elif language == "bash":
            for line in split_lines(code):
                begin = time.perf_counter()
                run_line(line)
                print(f"{time.perf_counter() - begin:.1f} s\n", flush=True)
        elif language == "python":
            print(code, flush=True)
            sys.path.insert(0, "")  # as in a session of Python
            with forget_modules():
                exec(compile(code, str(page), "exec"), names)
            sys.path.remove("")


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
