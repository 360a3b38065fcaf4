"""Make the picture of README, first page and quickstart anew, by the commands that README prints.

python docs/make_pictures.py (or `make pictures`: some minutes)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "quickstart-landscape.png"
BLOCK = re.compile(r"## First results\n\n```bash\n(.*?)```", re.DOTALL)


def list_commands() -> list[str]:
    """Return README's first commands, to the one that draws, without their comments."""
    lines = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0].splitlines()
    commands = [line.partition(" #")[0].rstrip() for line in lines]
    (last,) = [k for k, line in enumerate(commands) if "--png" in line]
    return commands[: last + 1]


def describe_run(folder: Path) -> dict[str, object]:
    """Return what the picture keeps of its run: version, settings, and its first and last mean return."""
    from qscape.report.runs import read_runs

    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    means = read_runs([str(folder)]).frame.groupby("step")["return"].mean()
    return {
        "version": record["versions"]["qscape"],
        "settings": record["settings"],
        "returns": [round(means.iloc[0], 1), round(means.iloc[-1], 1)],
    }


def keep_picture(folder: Path) -> None:
    """Copy the picture that the commands left in a folder, and write into it what made it."""
    commands = list_commands()
    flags = dict(re.findall(r"--(out|png) (\S+)", " ".join(commands)))
    made = {"commands": commands, **describe_run(folder / flags["out"] / "0")}
    about = PngImagePlugin.PngInfo()
    about.add_text("qscape", json.dumps(made))
    with Image.open(folder / flags["png"]) as picture:
        picture.convert("RGB").quantize(256).save(
            PICTURE, pnginfo=about, optimize=True, dpi=picture.info["dpi"]
        )


def main() -> None:
    """Run the commands in an empty folder and keep the picture."""
    with tempfile.TemporaryDirectory() as folder:
        for command in list_commands():
            argv = [sys.executable, "-m", "qscape", *command.split()[1:]]
            subprocess.run(argv, cwd=folder, env={**os.environ, "NPROC": "1"}, check=True)
        keep_picture(Path(folder))


if __name__ == "__main__":
    main()
