"""What is refused stays refused: exit status, code, part and field of the list in golden/refusals.txt.

The wording is free; the list holds it for reading. `python tests/refusals.py write` makes the list again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "refusals.py"


def check(every: int) -> None:
    """Run the list in a process of its own, in which no other test has registered parts."""
    environment = os.environ | {"CI": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), "check", str(every)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr[-2000:]}"


def test_every_setting_and_some_command_lines_are_refused_as_listed():
    check(6)


@pytest.mark.slow
def test_every_command_line_is_refused_as_listed():
    check(1)
