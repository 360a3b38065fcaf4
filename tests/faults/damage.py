"""Damage of every file of a run folder: bits, length, absence, types, links."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

from faults.trial import Bench, Failed, call, check, contents, untouched
from qscape.sealed import seal

WRONG = (None, "x", "", -1, 1.5, 10**30, float("inf"), float("nan"), True, [], {}, [["x"]], {"a": {"b": 1}})


def _flip(rng: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _truncate(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def _garbage(rng: random.Random, file: Path) -> None:
    file.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000])))


def _lengthen(rng: random.Random, file: Path) -> None:
    with file.open("ab") as end:
        end.write(rng.randbytes(rng.randint(1, 300)))


def _delete(rng: random.Random, file: Path) -> None:
    file.unlink()


def _folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(rng: random.Random, file: Path) -> None:
    target = next(p for p in file.parents if p.name == "run").parent / "foreign" / "target"
    file.unlink()
    file.symlink_to(target)


def _retype(rng: random.Random, file: Path) -> None:
    """Replace a random value of a JSON file by one of another type; often with a fresh checksum."""
    content = json.loads(file.read_text())
    here: Any = content
    while True:
        key = rng.choice([*here] if isinstance(here, dict) else range(len(here)))
        if not isinstance(here[key], dict | list) or not here[key] or rng.random() < 0.3:
            break
        here = here[key]
    here[key] = rng.choice(WRONG)
    file.write_bytes(seal(content) if rng.random() < 0.8 else json.dumps(content).encode())


KINDS: tuple[Callable[[random.Random, Path], None], ...] = (
    _flip, _truncate, _garbage, _lengthen, _delete, _folder, _link, _retype,
)  # fmt: skip


def damage(rng: random.Random, place: Path, bench: Bench) -> str:
    """One to four damaged files: `resume` ends as if nothing were, or changes nothing and says why."""
    whole = bench.whole("host") / "0"
    run = Path(shutil.copytree(bench.half(), place / "run"))
    (place / "foreign").mkdir()
    (place / "foreign" / "target").write_text("a file of somebody else")
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    kind = rng.choice(KINDS)
    if kind is _retype:
        files = [path for path in files if path.suffix == ".json"]
    read = [path for path in files if path.parent.name in ("run", "000000200", "000000218")]
    those = read if rng.random() < 0.8 else files
    hit = rng.sample(those, min(len(those), rng.choice([1, 1, 2, 4])))
    for file in hit:
        kind(rng, file)
    what = f"{kind.__name__[1:]} of {', '.join(str(file.relative_to(run)) for file in hit)}"
    damaged = contents(run)
    looking = rng.choice(
        [["compare", run], ["list"], ["watch", run, "--once"], ["evaluate", run, "--episodes", 1]]
    )
    with untouched(place, run, looking):
        check(call(*looking), [f"# {what};", *looking])
    if contents(run) != damaged and looking[0] != "evaluate":
        raise Failed(f"{what}: {looking[0]} changed the run", looking)
    argv = ["resume", run]
    with untouched(place, run, argv):
        done = call(*argv)
    check(done, [f"# {what};", *argv])
    if done.code:
        if (changed := {k for k, v in damaged.items() if contents(run).get(k) != v}) - {"metrics.jsonl"}:
            raise Failed(f"{what}: a refused resume changed {sorted(changed)}: {done.text[-300:]}", argv)
    elif kind is not _retype:
        if "starts again" in done.text:
            raise Failed(f"{what}: a run that had saved was started again", argv)
        if tiny.arrays(run) != tiny.arrays(whole) or tiny.numbers(run) != tiny.numbers(whole):
            raise Failed(f"{what}: the resumed run differs from one without a fault", argv)
    return what
