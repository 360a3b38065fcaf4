"""Published results: learning curves to compare with, and the scores that normalise returns.

Both are tables in `data/`, each row with its source. They come from other environment versions and other
protocols than our runs, so they are shown separately and labelled so.
"""

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files

from qscape.errors import UnknownName
from qscape.report import name_steps, require_extra

with require_extra("Published figures"):
    import pandas as pd

TABLES = ("mujoco_curves.csv", "savgo_curves.csv", "mujoco_curves_2026.csv")
PROTOCOLS = {
    "sfujim/TD3": "10 episodes every 5k steps, no noise",
    "Holiday-Robot/FlashSAC results/stateRL_cpusim/baseline/TD-MPC2": "a number of a table, not a run",
    "Holiday-Robot/FlashSAC": "50 episodes, by FlashSAC's authors",
    "tinker495/jax-baseline": "how many episodes is not said",
    "arXiv 2605.00787": "mean of runs smoothed by 0.85 (--smooth 0.85), 10 episodes",
    "": "their authors' protocol",
}


def published_names() -> list[str]:
    """List the names that `load_published` accepts: td3, sac, simbav2-utd2, ..."""
    return sorted(_read_curves()["name"].unique())


def load_published(names: Sequence[str]) -> pd.DataFrame:
    """Load published learning curves to 1M steps.

    Columns: name, method, env, step, seeds ("?": unknown); mean, sd (of a sample), iqm, min, max of the last
    evaluation at or before the step (NaN where only a mean is published); `curve`, the iqm if known, else the
    mean; source, licence, protocol.

    Raises:
        UsageError: a name is unknown.
    """
    curves = _read_curves()
    known = published_names()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else f"choose {', '.join(known)}."
            raise UnknownName(f"There is no published curve '{name}'; {hint}")
    return curves[curves["name"].isin(names)].reset_index(drop=True)


def _read_curves() -> pd.DataFrame:
    frame = pd.concat(map(_read_table, TABLES), ignore_index=True)
    # Some of the runs of 2026 are those of the first table, published again.
    frame = frame.drop_duplicates(["method", "env", "step"], ignore_index=True)
    frame["seeds"] = ["?" if pd.isna(seeds) else int(seeds) for seeds in frame["seeds"]]
    frame["curve"] = frame["iqm"].fillna(frame["mean"])
    frame["name"] = frame["method"].map(_short_name)
    frame["protocol"] = frame["source"].map(_protocol)
    return frame


def _protocol(source: str) -> str:
    return next(protocol for place, protocol in PROTOCOLS.items() if source.startswith(place))


def _short_name(method: str) -> str:
    """Return the name on the command line: `SimbaV2 (UTD 2)` is simbav2-utd2, `DR.Q` is drq."""
    plain = method.lower().replace(".", "").replace("utd ", "utd")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def strip_version(env: str) -> str:
    """Remove version and dataset of a task (Ant-v5 is Ant, and Hopper-v5[hopper_medium-v2] is Hopper).

    Published results use other versions, and scores on a dataset are normalised as those in its environment.
    """
    return re.sub(r"(-v\d+)?(\[.*\])?$", "", env)


def select_published(curves: pd.DataFrame, env: str) -> pd.DataFrame:
    """Select the published curves of a task, in any version of its environment.

    None on a dataset: there a step is an update, and published curves are of learning in the environment.
    """
    if name_steps(env) == "updates":
        return curves.iloc[:0]
    return curves[curves["env"].map(strip_version) == strip_version(env)]


def name_curve(row: "pd.Series", env: str) -> str:
    """Name a published curve for a legend: its method, its environment and its seeds.

    Args:
        row: a row of the curve.
        env: the environment of our runs; a version that is not theirs is named.
    """
    ours = "" if row["env"] == env else f" (ours {env})"
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    return f"{row['method']}, published: {row['env']}{ours}, {seeds}"


def reference_scores() -> pd.DataFrame:
    """Load the scores that normalise returns: columns table, task, low, high, high_is, source.

    Normalised score = (return - low) / (high - low). Table "best" has no `high`: there it is the best agent
    of the comparison.
    """
    return _read_table("reference_scores.csv")


def normalise(scores: pd.DataFrame, table: str = "td3") -> pd.DataFrame | str:
    """Normalise scores: 0 is a random policy, 1 the table's `high`.

    Args:
        scores: env, label and score, a row for each run.
        table: table of reference scores. "best": 1 is the highest mean score of a label in the environment
            (SAVO's performance profiles, arXiv 2410.11833, Figure 7).

    Returns:
        The scores with `score` normalised, or a sentence that says why they cannot be. An environment with
        arguments of its own is another task, without reference scores.
    """
    every = reference_scores().set_index("task")
    known = every[every["table"] == table]
    tasks = scores["env"].map(strip_version)
    missing = sorted(scores["env"][~tasks.isin(known.index)].unique())
    if missing:
        hint = (
            "; --normalise best would do" if tasks.isin(every[every["table"] == "best"].index).all() else ""
        )
        return f"No aggregate over environments: no reference score of {', '.join(missing)}{hint}."
    low, high = tasks.map(known["low"]), tasks.map(known["high"])
    if table == "best":
        means = scores.groupby(["env", "label"])["score"].mean().groupby("env").max()
        high = scores["env"].map(means)
        hopeless = sorted(scores["env"][high <= low].unique())
        if hopeless:
            where = ", ".join(hopeless)
            return f"No aggregate over environments: no agent is above the random policy in {where}."
    return scores.assign(score=(scores["score"] - low) / (high - low))


def _read_table(name: str) -> pd.DataFrame:
    with (files("qscape.report") / "data" / name).open() as file:
        return pd.read_csv(file)
