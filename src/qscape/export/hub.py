"""Run folders on the Hugging Face hub: `push_run` uploads one with a card, `download_run` fetches one.

A repository holds the files of a run folder, `digests.json` with the SHA-256 of each, the card README.md and
its pictures. A run is JSON, CSV and arrays, so no file is a pickle or a program; others are never fetched.
"""

import glob
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qscape.errors import (
    CannotWrite,
    DamagedSave,
    MissingArgument,
    QscapeError,
    Taken,
    Unreachable,
    UsageError,
    WrongValue,
    need_extra,
)
from qscape.export.card import render_card
from qscape.export.policy import PolicySource, load_source
from qscape.inspect import store
from qscape.run.files import unused_name
from qscape.run.folder import RECORD, newest_save, no_save, one_run
from qscape.run.saves import shared_files
from qscape.run.shards import ENDING as SHARDS
from qscape.sealed import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGESTS = "digests.json"
CARD = "README.md"
PICTURES = "pictures"
MADE_BY_THE_HUB = {".gitattributes", CARD}  # in a new repository
ENDINGS = (".json", ".jsonl", ".csv", ".npy", ".npz", ".onnx")  # of the files of a run
SHARD_ENDINGS = ("", ".ocdbt", ".txt")  # of those in a folder of shards


def _hub() -> Any:
    """Return the client package of the hub.

    Raises:
        UsageError: its package is missing.
    """
    with need_extra("The hub", "hub"):
        return importlib.import_module("huggingface_hub")


# --- from here to the hub -----------------------------------------------------------------------------


def push_run(
    path: Path, repository: str, *, private: bool = False, episodes: int = 10
) -> tuple[str, list[str]]:
    """Upload the newest save and the records of a run, with a card, in one commit.

    Files of an earlier push that this run has not are deleted there, and no others. The card shows the
    learning curve, and smoothness and landscape where the agent has them; they are measured now and kept in
    RUN/inspect.

    Args:
        path: a run folder, or a group with one seed.
        repository: OWNER/NAME; created if it does not exist.
        private: whether a new repository is private.
        episodes: evaluation episodes of the card and its measurements.

    Returns:
        The address of the repository, and a sentence for every picture that the card lacks.

    Raises:
        UsageError: the package or a token is missing, the policy cannot be exported, or the repository holds
            something else than a pushed run.
        RunError: there is no save, or the hub cannot be reached or refuses the run. The run is unchanged.
    """
    hub, folder = _hub(), one_run(path)
    if hub.get_token() is None:
        raise MissingArgument("qscape push needs a token of the hub: run 'hf auth login', or set HF_TOKEN.")
    source = load_source(folder, episodes)
    about = source.record
    with tempfile.TemporaryDirectory() as place:
        pictures, notes = _draw_pictures(folder, Path(place), episodes)
        files = {str(file.relative_to(folder).as_posix()): file for file in _files_of(folder)}
        digests = {name: _digest(file) for name, file in files.items()}
        texts = {DIGESTS: json.dumps(digests, indent=1), CARD: _render(source, repository, pictures)}
        add: dict[str, Any] = files | {name: text.encode() for name, text in texts.items()}
        add |= {f"{PICTURES}/{picture.name}": picture for picture in pictures}
        api = hub.HfApi()
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            old = _pushed_before(api, repository) - {*add}
            api.create_commit(
                repository,
                [
                    *(hub.CommitOperationDelete(path_in_repo=name) for name in sorted(old)),
                    *(hub.CommitOperationAdd(name, what) for name, what in add.items()),
                ],
                commit_message=f"{about['label']} on {about['env']}, seed {about['seed']}",
            )
        except UsageError:
            raise
        except Exception as problem:  # the hub's own errors, and those of the network below
            raise Unreachable(
                f"{repository} was not pushed ({_first_line(problem)}); the run is unchanged."
            ) from problem
    return str(address), notes


def _pushed_before(api: Any, repository: str) -> set[str]:
    """Return the files in a repository that an earlier push wrote.

    Raises:
        UsageError: there are files, but no listing of a push.
    """
    there: set[str] = {*api.list_repo_files(repository)}
    listing: Any = None
    if DIGESTS in there:
        listing = read_json(Path(api.hf_hub_download(repository, DIGESTS)).read_bytes(), Any)
    if _is_listing(listing):
        return there & {*listing, *(f"{PICTURES}/{name}.png" for name in SAYS)}
    if others := sorted(there - MADE_BY_THE_HUB):
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise Taken(f"{repository} holds {others[0]}{more}, but no pushed run: name a new repository.")
    return set()


def _files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a run that are uploaded: records, the newest save, findings, exported policies."""
    save = newest_save(folder)
    if save is None:
        raise no_save(folder)
    for place in (folder, folder / "inspect", save):
        for file in sorted(place.glob("*")):
            if file.is_file() and file.suffix in ENDINGS and not file.name.startswith("."):
                yield file
    shards = (file for file in sorted(save.glob(f"*{SHARDS}/**/*")) if file.suffix in SHARD_ENDINGS)
    yield from filter(Path.is_file, shards)
    yield from shared_files(save)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _draw_pictures(folder: Path, place: Path, episodes: int) -> tuple[list[Path], list[str]]:
    """Draw what can be drawn of a run. Returns the files, and a sentence for each picture that is missing."""
    from qscape.inspect.landscape import to_jsonable
    from qscape.inspect.landscapes import measure_landscapes
    from qscape.inspect.smoothness import measure_smoothness
    from qscape.inspect.trained_agent import load_trained_agent
    from qscape.report import figures, landscapes, runs, smoothness, statistics

    def curve() -> "Figure":
        rows = runs.read_runs([str(folder)]).frame
        return figures.draw_overview(statistics.select_policy(rows), each=True)

    def actions() -> "Figure":
        findings = measure_smoothness(load_trained_agent(folder), episodes)
        store.write_findings(folder, "smoothness", findings)
        return smoothness.draw_smoothness([findings])

    def landscape() -> "Figure":
        findings = measure_landscapes(load_trained_agent(folder), episodes=episodes)
        store.write_findings(folder, "landscape", to_jsonable(findings))
        return landscapes.draw_findings(findings)

    drawn, notes = [], []
    for name, draw in {"curve": curve, "smoothness": actions, "landscape": landscape}.items():
        try:
            figure = draw()
        except QscapeError as problem:
            notes.append(f"the card has no {name}: {problem}")
            continue
        drawn.append(place / f"{name}.png")
        figure.savefig(drawn[-1], dpi=100)
    return drawn, notes


SAYS = {
    "curve": "Evaluation return over training",
    "smoothness": "Actions in an episode and their spectrum",
    "landscape": "Q over actions, its local optima, the best action and the one taken",
}


def _render(source: PolicySource, repository: str, pictures: list[Path]) -> str:
    """Render the card of a run, with its pictures and how to load it."""
    lines = ["```python", "import qscape as qs", "", f'model = qs.load("hub:{repository}")', "```", ""]
    for picture in pictures:
        lines += [f"![{SAYS[picture.stem]}]({PICTURES}/{picture.name})", ""]
    return render_card(source, [], further=lines)


# --- from the hub to here -----------------------------------------------------------------------------


def download_run(name: str) -> Path:
    """Fetch a run into the hub's cache, or find it there, and check every file.

    Nothing but the files that `digests.json` lists is fetched, and no code of the repository runs.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION.

    Returns:
        The run folder in the cache; not to be written to.

    Raises:
        UsageError: the name has another form, or the package is missing. RunError: the hub cannot be reached,
            the repository holds no run, or a file differs from its digest.
    """
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1:
        raise WrongValue(f"'{name}' names no run on the hub; write OWNER/NAME or OWNER/NAME@REVISION.")
    api = _hub().HfApi()
    try:
        listed = Path(api.hf_hub_download(repository, DIGESTS, revision=revision or None))
        digests = read_json(listed.read_bytes(), Any)
        if not _is_listing(digests):
            raise ValueError(f"its {DIGESTS} names other files than those of a run")
        # Of the commit that the listing is from, even if another push came between.
        names = [*map(glob.escape, digests)]
        folder = api.snapshot_download(repository, revision=listed.parent.name, allow_patterns=names)
    except Exception as problem:  # the hub's own errors, and those of the network below
        raise Unreachable(f"hub:{name} cannot be fetched ({_first_line(problem)}).") from problem
    for file, digest in digests.items():
        place = Path(folder) / file
        if not place.is_file() or _digest(place) != digest:
            raise DamagedSave(f"hub:{name}: {file} is not what was pushed; its owner should push again.")
    return Path(folder)


def pull_run(name: str, folder: Path) -> None:
    """Fetch a run into a new run folder.

    Raises:
        UsageError: the folder is taken; or as `download_run`. RunError: as `download_run`, or the folder
            cannot be written.
    """
    if folder.exists():
        raise Taken(f"{folder} exists; choose another --out.")
    cached = download_run(name)
    aside = unused_name(folder)
    try:
        for file in read_json((cached / DIGESTS).read_bytes()):
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached / file, aside / file)
        aside.replace(folder)
    except OSError as problem:
        raise CannotWrite(f"{folder} cannot be written ({problem.strerror}).") from problem
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_listing(digests: Any) -> bool:
    """Return whether a value lists a run: names inside of the folder, and no program among them."""
    if not isinstance(digests, dict) or RECORD not in digests:
        return False
    paths = [PurePosixPath(name) for name in digests]
    return all(
        path.suffix in (SHARD_ENDINGS if any(p.suffix == SHARDS for p in path.parents) else ENDINGS)
        and not path.is_absolute()
        and not {"..", "\\"} & {*path.parts, *str(path)}
        for path in paths
    )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
