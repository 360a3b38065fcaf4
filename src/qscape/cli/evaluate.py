"""The command `qscape evaluate RUN`."""

import dataclasses
import math
from pathlib import Path

from qscape.cli import options
from qscape.cli.running import plain_console, show_tracks, table
from qscape.errors import Conflict, RunError, RunsFailed
from qscape.inspect.bias import BiasProbe, measure_bias
from qscape.inspect.trained_agent import load_trained_agent
from qscape.report import task_label
from qscape.report.numbers import format_return
from qscape.run.evaluation import list_successes
from qscape.run.folder import read_plan, read_record, run_folders
from qscape.run.plan import score
from qscape.run.policy import evaluate_run
from qscape.run.training import set_up_jax
from qscape.tracking import track
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `qscape evaluate`."""

    episodes: int = setting(10, "Number of episodes for each run.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")
    sample: bool = setting(False, "Draw actions from the policy itself (on-policy agents only).")
    bias: bool = setting(False, "Also compare Q with the discounted return that followed.")


def main(argv: list[str]) -> int:
    """Evaluate one run, or every run of a group; means are over the runs of one agent and environment."""
    path, rest = options.positional(argv, "RUN", "qscape evaluate")
    set_up_jax()
    given = options.parse(EvaluateOptions(), rest, "qscape evaluate RUN")
    if given.sample and given.bias:
        raise Conflict("--bias compares Q with the deterministic policy: leave --sample out.", field="bias")
    rows, biases = [], []
    means: dict[str, list[float]] = {}  # by agent and environment
    folders, broken = run_folders(Path(path)), []
    with show_tracks():
        for folder in track(folders, "runs"):
            try:
                if given.bias:
                    trained = load_trained_agent(folder, given.current)
                    rollouts = trained.rollouts(given.episodes, given.seed)
                    step, policy, done = trained.step, trained.policy, [r.episode for r in rollouts]
                    measured = measure_bias(trained, rollouts)
                    biases.append([str(folder), *(f"{measured[name]:.4g}" for name in BiasProbe.columns)])
                else:
                    step, policy, done = evaluate_run(
                        folder, given.episodes, given.seed, given.current, given.sample
                    )
            except RunError as problem:  # one broken run of a group does not hide the others
                if len(folders) == 1:
                    raise
                broken.append(str(problem))
                continue
            returns = [e.ret for e in done]
            mean = sum(returns) / len(returns)
            std = math.sqrt(sum((r - mean) ** 2 for r in returns) / len(returns))
            successes = list_successes(done)
            plan = read_plan(folder)
            scored = score(plan, mean)
            success = f"{sum(successes) / len(successes):.0%}" if successes else "-"
            length = sum(e.length for e in done) / len(done)
            rows.append(
                [str(folder), policy, f"{step:,}", format_return(mean),
                 *(format_return(x, mean) for x in (std, min(returns), max(returns))),
                 f"{length:,.0f}", success, "-" if scored is None else f"{scored:.1f}"]
            )  # fmt: skip
            task = task_label(read_record(folder))
            means.setdefault(f"{plan.label or plan.recipe} on {task}", []).append(mean)
    if not rows:
        raise RunsFailed(" ".join(broken))
    columns = ["run", "policy", "step", "return", "std", "min", "max", "length", "success", "score"]
    if all(row[-1] == "-" for row in rows):  # only datasets with reference returns define a score
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    console = plain_console()
    kind = "sampled" if given.sample else "deterministic"
    console.print(table(f"{given.episodes} episodes, {kind} policy", columns, rows))
    if biases:
        console.print(
            table(
                "Q minus the discounted return that followed, at the steps of these episodes",
                ["run", "mean", "std", "mean / mean |return|"],
                biases,
            )
        )
    for agent, of_runs in means.items():
        if len(of_runs) > 1:
            whose = f"{agent}: " if len(means) > 1 else ""
            mean = sum(of_runs) / len(of_runs)
            console.print(f"{whose}mean over {len(of_runs)} runs: {format_return(mean)}", soft_wrap=True)
    for sentence in broken:
        console.print(f"left out: {sentence}", style="red", soft_wrap=True)
    return 1 if broken else 0
