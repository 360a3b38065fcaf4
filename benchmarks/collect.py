"""Pack the raw data of a study's finished runs into benchmarks/results/learning/STUDY.tar.xz.

    python benchmarks/collect.py runs/pendulum
    python benchmarks/collect.py runs/record --unfinished            # those that were stopped, too
    tar -xf benchmarks/results/learning/pendulum.tar.xz -C runs      # and back: run folders without saves

Runs that the archive holds already stay there, unless the study has them again.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

from blocks import strip_places

from qscape.sealed import seal, unseal

RESULTS = Path(__file__).parent / "results" / "learning"
FILES = ("run.json", "evaluations.csv", "metrics.jsonl")


def read_archive(file: Path) -> dict[str, bytes]:
    """Read the files of an archive by name, in the order of their names."""
    with tarfile.open(file) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        return {member.name: archive.extractfile(member).read() for member in members if member.isfile()}


def write_archive(file: Path, contents: dict[str, bytes]) -> None:
    """Write files into an archive; the same files give the same archive."""
    with tarfile.open(file, "w:xz") as archive:
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size = len(contents[name])
            archive.addfile(member, io.BytesIO(contents[name]))


def clean(record: bytes) -> bytes:
    """Take from a run.json where its machine kept folders, and renew its checksum."""
    content = unseal(record)
    command = strip_places(content["command"])
    return record if command == content["command"] else seal(content | {"command": command})


def pack(runs: Path, file: Path, unfinished: bool = False) -> list[Path]:
    """Add the finished runs of a study to its archive.

    Args:
        runs: the study's folder.
        file: the archive; made if it does not exist.
        unfinished: also add runs that were stopped early. Their last evaluation tells how far they went.

    Returns:
        The unfinished runs that are left out.
    """
    contents, left_out = read_archive(file) if file.exists() else {}, []
    for record in sorted(runs.glob("**/run.json")):
        folder, plan = record.parent, json.loads(record.read_text())
        if not unfinished and not (folder / "saves" / f"{plan['steps']:09d}" / "save.json").exists():
            left_out.append(folder)
            continue
        place = Path(runs.name) / folder.relative_to(runs)
        contents |= {str(place / name): (folder / name).read_bytes() for name in FILES}
        contents[str(place / "run.json")] = clean(contents[str(place / "run.json")])
    write_archive(file, contents)
    return left_out


def main() -> None:
    """Pack the finished runs of a study; name the unfinished ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--unfinished", action="store_true", help="also pack runs that were stopped early")
    given = parser.parse_args()
    for folder in pack(given.runs, RESULTS / f"{given.runs.name}.tar.xz", given.unfinished):
        print(f"left out, not finished: {folder}")


if __name__ == "__main__":
    main()
