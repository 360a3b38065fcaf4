"""MovieLens ratings, and a click model fitted to them.

Reads GroupLens' MovieLens-25M (Harper and Konstan 2015, "The MovieLens Datasets"): `ratings.csv` and
`genome-scores.csv`, in the published zip archive or in a folder. A fit reads 25 million ratings and takes
minutes. Save its result once, and pass that file as the path:

    python -m qscape.envs.movielens ml-25m.zip movielens.npz
"""

import contextlib
import dataclasses
import io
import itertools
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from qscape.errors import BadFile, NotFound, OutOfRange, QscapeError

RATINGS = "ratings.csv", ["userId", "movieId", "rating", "timestamp"]
GENOME = "genome-scores.csv", ["movieId", "tagId", "relevance"]
LIKED, BUSY = 4.0, 20  # least rating of a liked movie; least number of ratings of a fitted user
RANDOM_SCORE = 0.1  # click rate of uniform recommendations
BLOCK = 1_000_000  # lines read at once
MOST = 10_000  # movies that are fitted by default


@dataclasses.dataclass(frozen=True, eq=False)
class ClickModel:
    """p(click) = σ(offset + bias_i + strength ⟨u, v_i⟩) for unit vectors u.

    Attributes:
        movies: `[N]` MovieLens ids of the items, most rated first.
        items: `[N, d]` vectors v_i, of mean norm 1.
        bias: `[N]` b_i.
        users: `[M, d]` unit vectors of fitted users.
        offset: b_0, such that uniform recommendations are clicked in 10 of 100 cases.
        strength: β, the mean norm of the users before they were made unit vectors.
    """

    movies: Int[np.ndarray, " N"]
    items: Float[np.ndarray, "N d"]
    bias: Float[np.ndarray, " N"]
    users: Float[np.ndarray, "M d"]
    offset: float
    strength: float


def load(path: str | Path, items: int | None = None) -> ClickModel:
    """Load a fitted model, or fit one. Results are cached.

    Args:
        path: a fitted `.npz`, the zip archive, or a folder with its files.
        items: number of items, the most rated ones; None: all of a fitted file, up to 10,000 of an archive.

    Raises:
        UsageError: the path does not exist, a file is malformed (the message names file and line), or there
            are fewer items.
    """
    if items is not None and (not isinstance(items, int | np.integer) or items < 2):
        raise OutOfRange(f"items is {items}: a whole number of two at least is needed to choose from")
    place = Path(path).expanduser()
    if not place.exists():
        raise NotFound(f"MovieLens is not at {path}: give the path of ml-25m.zip or of its folder")
    return _load(str(place.resolve()), place.stat().st_mtime_ns, items)


@lru_cache(maxsize=2)
def _load(path: str, changed: int, items: int | None) -> ClickModel:
    """`load` for an existing path; `changed` is the file's modification time, for the cache."""
    place = Path(path)
    if place.suffix == ".npz":
        return _load_fitted(place, items)
    return fit(place, items)


def _load_fitted(place: Path, items: int | None) -> ClickModel:
    """Load a fitted model with its most rated `items`."""
    names = [field.name for field in dataclasses.fields(ClickModel)]
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in names}
    except (OSError, EOFError, TypeError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as problem:
        raise BadFile(
            f"{place} is no fitted model (python -m qscape.envs.movielens makes one): {problem}"
        ) from problem
    if wrong := _explain_misfit(arrays):
        raise BadFile(f"{place} is no fitted model: {wrong}")
    movies, scalars = arrays["movies"].astype(np.int64), ("offset", "strength")
    parts: dict[str, Any] = arrays | {"movies": movies} | {name: float(arrays[name]) for name in scalars}
    model = ClickModel(**parts)
    if items is None or items == len(movies):
        return model
    _refuse_more(items, len(movies), place)
    bias, vectors = model.bias[:items], model.items[:items]
    offset = _solve_offset(bias, model.strength * vectors, model.users)
    return ClickModel(model.movies[:items], vectors, bias, model.users, offset, model.strength)


def _explain_misfit(arrays: dict[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a model; "" if nothing is."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(shapes["items"]) != 2 or not all(shapes["items"]):
        return f"items is {shapes['items']}, it has to be [N, d]"
    n, d = shapes["items"]
    if len(shapes["users"]) != 2 or not len(arrays["users"]):
        return f"users is {shapes['users']}, it has to be [M, {d}]"
    wanted = {"movies": (n,), "bias": (n,), "users": (shapes["users"][0], d), "offset": (), "strength": ()}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            return f"{name} is {shapes[name]}, it has to be {shape}"
    return ""


def _refuse_more(items: int, known: int, place: Path) -> None:
    """Raise a UsageError if more items are wanted than there are."""
    if items > known:
        raise OutOfRange(f"items is {items}, and {place} knows {known} movies")


def fit(
    path: str | Path, items: int | None = None, dims: int = 30, users: int = 20_000, passes: int = 20
) -> ClickModel:
    """Fit the click model: item vectors from the tag genome, users and popularity from the ratings.

    Items are the most rated movies that have genome scores (ties by lower id). Their vectors are the first
    `dims` principal components of the centred genome matrix, scaled to mean norm 1 and then fixed. Users and
    popularity are a logistic factorisation of "rated 4 or better", with Adam (1e-2) and L2 (1e-4).

    Args:
        path: the zip archive, or a folder with its files.
        items: number of items; None: 10,000, or all if there are fewer.
        dims: d, size of the vectors.
        users: number of users, drawn at random from those with at least 20 ratings.
        passes: passes over the ratings.

    Raises:
        UsageError: a file is missing or malformed (the message names file and line), or holds too little
            data.
    """
    user, movie, rating = _read_rows(Path(path), *RATINGS, wrong=_wrong_rating).T
    known, genome = _read_genome(Path(path))
    ids, times = np.unique(movie[np.isin(movie, known)], return_counts=True)
    _refuse_more(items or 0, len(ids), Path(path))
    movies = ids[np.lexsort((ids, -times))][: items or MOST]
    if len(movies) <= dims:
        raise BadFile(f"{path} rates {len(movies)} movies with genome scores: more than {dims} are needed")
    vectors = _principal_coordinates(genome[np.searchsorted(known, movies)], dims)
    busy = np.flatnonzero(np.bincount(user.astype(np.int64)) >= BUSY)
    if not len(busy):
        raise BadFile(f"{path} has no user with {BUSY} ratings: nobody's taste can be fitted")
    chosen = np.sort(np.random.default_rng(0).permutation(busy)[:users])
    kept = np.isin(user, chosen) & np.isin(movie, movies)
    if not kept.any():
        raise BadFile(f"{path} has no user with {BUSY} ratings who rated one of these {len(movies)} movies")
    order = np.argsort(movies)
    item = order[np.searchsorted(movies, movie[kept], sorter=order)]
    taste, bias, base = _factorise(
        np.searchsorted(chosen, user[kept]), item, rating[kept] >= LIKED, vectors, len(chosen), passes
    )
    norms = np.linalg.norm(taste, axis=1)
    taste, norms = taste[norms > 0], norms[norms > 0]  # a user who rated none of these movies has taste 0
    strength = float(norms.mean())
    directions = taste / norms[:, None]
    offset = _solve_offset(bias + base, strength * vectors, directions)
    # The common term of all items is in the offset.
    return ClickModel(movies.astype(np.int64), vectors, bias, directions, offset + base, strength)


def _principal_coordinates(matrix: Float[np.ndarray, "N T"], dims: int) -> Float[np.ndarray, "N d"]:
    """Coordinates on the first principal axes, scaled to mean norm 1. The largest loading is positive."""
    centred = matrix - matrix.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dims]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    vectors = centred @ axes
    return vectors / np.linalg.norm(vectors, axis=1).mean()


def _factorise(
    user: np.ndarray, item: np.ndarray, liked: np.ndarray, vectors: np.ndarray, users: int, passes: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Users `[M, d]`, popularity `[N]` and the common term: Adam on the log-loss, in blocks of ratings."""
    block = int(np.clip(len(user) // 200, 1, 8192))
    optimiser, fixed = optax.adam(1e-2), jnp.asarray(vectors, jnp.float32)
    parameters = {
        "taste": jnp.zeros((users, vectors.shape[1])),
        "bias": jnp.zeros(len(vectors)),
        "base": jnp.zeros(()),
    }

    def loss(p: dict[str, Any], who: jax.Array, what: jax.Array, label: jax.Array) -> jax.Array:
        taste, bias = p["taste"][who], p["bias"][what]
        logit = p["base"] + bias + (taste * fixed[what]).sum(1)
        penalty = (taste**2).sum(1) + bias**2
        return (optax.sigmoid_binary_cross_entropy(logit, label) + 1e-4 * penalty).mean()

    @jax.jit
    def one_pass(carry: tuple, blocks: tuple) -> tuple:
        def step(carry: tuple, rows: tuple) -> tuple[tuple, None]:
            p, moments = carry
            change, moments = optimiser.update(jax.grad(loss)(p, *rows), moments)
            return (optax.apply_updates(p, change), moments), None

        return jax.lax.scan(step, carry, blocks)[0]

    carry, random = (parameters, optimiser.init(parameters)), np.random.default_rng(1)
    for _ in range(passes):
        order = random.permutation(len(user))[: len(user) // block * block].reshape(-1, block)
        carry = one_pass(carry, (user[order], item[order], liked[order].astype(np.float32)))
    fitted = jax.tree.map(lambda a: np.asarray(a, np.float64), carry[0])
    return fitted["taste"], fitted["bias"], float(fitted["base"])


def _solve_offset(bias: np.ndarray, vectors: np.ndarray, users: np.ndarray) -> float:
    """b_0 for which uniform recommendations have the click rate `RANDOM_SCORE`, over at most 1000 users."""
    logits = users[:1000] @ vectors.T + bias
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        clicked = 1 / (1 + np.exp(-np.clip(logits + middle, -500, 500)))
        low, high = (middle, high) if clicked.mean() < RANDOM_SCORE else (low, middle)
    return (low + high) / 2


def _read_genome(place: Path) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n T"]]:
    """Ids of the movies with a tag genome, ascending, and the relevance of each tag."""
    rows = _read_rows(place, *GENOME, wrong=_wrong_score)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    movies, tags = np.unique(rows[:, 0]), np.unique(rows[:, 1])
    pairs = np.stack([np.repeat(movies, len(tags)), np.tile(tags, len(movies))], 1)
    if pairs.shape != rows[:, :2].shape or (pairs != rows[:, :2]).any():
        short = next(m for m in movies if not np.array_equal(rows[rows[:, 0] == m, 1], tags))
        raise BadFile(f"{place}: {GENOME[0]} lacks scores of movie {short:.0f}; there are {len(tags)} tags")
    return movies.astype(np.int64), rows[:, 2].reshape(len(movies), len(tags))


def _wrong_ids(rows: np.ndarray) -> np.ndarray:
    """Which rows have an id that is no positive whole number?"""
    ids = rows[:, :2]
    return ~((ids >= 1) & (ids < 2**24) & (ids == np.floor(ids))).all(1)  # float32 holds them; NaN is none


def _wrong_rating(rows: np.ndarray) -> np.ndarray:
    """Which rows of ratings are invalid?"""
    return _wrong_ids(rows) | ~((rows[:, 2] >= 0.5) & (rows[:, 2] <= 5))


def _wrong_score(rows: np.ndarray) -> np.ndarray:
    """Which rows of genome scores are invalid?"""
    return _wrong_ids(rows) | ~((rows[:, 2] >= 0) & (rows[:, 2] <= 1))


def _read_rows(
    place: Path, name: str, header: list[str], wrong: Callable[[np.ndarray], np.ndarray]
) -> Float[np.ndarray, "n 3"]:
    """The first three columns of a CSV file of numbers; `wrong` marks invalid rows, which are refused."""
    blocks = []
    with _report_damage(place, name), _open_member(place, name) as file:
        first = file.readline().strip()
        if first != ",".join(header):
            raise BadFile(f"{place}: {name}, line 1 is {first[:80]!r}, not {','.join(header)!r}")
        for begin in itertools.count(2, BLOCK):
            lines = list(itertools.islice(file, BLOCK))
            if not lines:
                break
            rows = _parse_numbers(lines, len(header), wrong)
            if rows is None:
                bad = next(
                    i for i, line in enumerate(lines) if _parse_numbers([line], len(header), wrong) is None
                )
                what = f"{lines[bad].strip()[:80]!r}, which is no {','.join(header)}"
                raise BadFile(f"{place}: {name}, line {begin + bad} is {what}")
            blocks.append(rows[:, :3].astype(np.float32))
    if not sum(map(len, blocks)):
        raise BadFile(f"{place}: {name} holds no rows")
    return np.concatenate(blocks)


@contextlib.contextmanager
def _report_damage(place: Path, name: str) -> Iterator[None]:
    """Turn errors of a damaged file into a UsageError."""
    try:
        yield
    except (UnicodeDecodeError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as problem:
        raise BadFile(f"{place}: {name} is damaged: {problem}") from problem


def _parse_numbers(
    lines: list[str], width: int, wrong: Callable[[np.ndarray], np.ndarray]
) -> Float[np.ndarray, "n w"] | None:
    """The numbers in CSV lines, without empty lines; None if a line is invalid."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return np.zeros((0, width))
    try:
        rows = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
    except ValueError:
        return None
    return rows if rows.shape[1] == width and not wrong(rows).any() else None


def _open_member(place: Path, name: str) -> IO[str]:
    """Open a file of the archive or folder, in whatever subfolder it lies."""
    if place.is_dir():
        found = next(iter(sorted(place.rglob(name))), None)
        if found is not None:
            return found.open(encoding="utf-8", newline="")
    else:
        try:
            archive = zipfile.ZipFile(place)
        except (zipfile.BadZipFile, OSError) as problem:
            raise BadFile(
                f"{place} is neither a folder, a zip archive nor a fitted .npz: {problem}"
            ) from problem
        inside = next((n for n in archive.namelist() if n.rpartition("/")[2] == name), None)
        if inside is not None:
            return io.TextIOWrapper(archive.open(inside), encoding="utf-8", newline="")
    raise BadFile(f"{place} holds no {name}: the archive MovieLens-25M (ml-25m.zip) does")


def main(argv: list[str]) -> int:
    """`python -m qscape.envs.movielens ARCHIVE OUT.npz`."""
    if len(argv) != 2 or not argv[1].endswith(".npz"):
        print("usage: python -m qscape.envs.movielens ml-25m.zip movielens.npz", file=sys.stderr)
        return 2
    out, is_new = Path(argv[1]), not Path(argv[1]).exists()
    try:
        out.open("ab").close()  # before a fit, which takes minutes
    except OSError as problem:
        print(f"{out} cannot be written: {problem.strerror}", file=sys.stderr)
        return 2
    if is_new:
        out.unlink()
    try:
        model = load(argv[0])
    except QscapeError as problem:
        print(problem, file=sys.stderr)
        return 2
    np.savez(out, **dataclasses.asdict(model))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
