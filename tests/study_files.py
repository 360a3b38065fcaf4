"""The study files of this project: those of the package, and those in the folder `studies`."""

from pathlib import Path

from qscape.jobs.study import BUNDLED

PLACES = (BUNDLED, Path(__file__).parent.parent / "studies")
STUDIES = {file.stem: file for place in PLACES for file in sorted(place.glob("*.toml"))}
