"""Write the tables of training speed into docs/performance.md, from results/throughput alone.

python benchmarks/speed_table.py
"""

import itertools
import json
from typing import Any

from blocks import RESULTS, ROOT, table, write_table

PAGE = ROOT / "docs" / "performance.md"
AGENTS = {
    "td3": "TD3",
    "sac": "SAC",
    "td7": "TD7 without `checkpoints`",
    "td7-checkpoints": "TD7, episodes of 100 steps",
    "crossq": "CrossQ",
    "simba": "SAC with SimBa's networks",
    "flash_sac": "FlashSAC",
}
LIBRARIES = {
    "sb3": "Stable-Baselines3",
    "sbx": "SBX",
    "cleanrl": "CleanRL's loop for JAX",
    "rlblox": "RL-BLOX",
    "torch": "eager PyTorch",
}


def between(values: list[float]) -> str:
    """Format the least and the greatest of some ratios."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def load_runs() -> list[dict[str, Any]]:
    """Load all recorded runs beside other libraries, by date."""
    files = sorted((RESULTS / "throughput").glob("*[0-9]-peers*.json"))
    return [json.loads(file.read_text()) for file in files]


def name_machine(run: dict[str, Any]) -> str:
    """Return the short name of a run's machine, which its kernel has."""
    return run["machine"]["system"].split("-")[3]


def compare(run: dict[str, Any], agent: str, library: str) -> tuple[float, float] | None:
    """Return the median steps per second of qscape and of a library; None: the run has not both."""
    names = f"qscape-{agent}", f"{library}-{agent}"
    if not {*names} <= run["contenders"].keys():
        return None
    ours, theirs = (run["contenders"][name]["median"] for name in names)
    return ours, theirs


def speed_table(runs: list[dict[str, Any]]) -> str:
    """Return steps per second in the newest long run beside each library, and the ratios of its rounds."""
    rows = []
    for agent, named in AGENTS.items():
        for library, title in LIBRARIES.items():
            both = [run for run in runs if compare(run, agent, library)]
            if not both:
                continue
            newest = max(both, key=lambda run: ("quick" not in run["mode"], run["machine"]["started"]))
            turns = [newest["contenders"][f"{who}-{agent}"]["turns"] for who in ("qscape", library)]
            rounds = [a["steps_per_second"] / b["steps_per_second"] for a, b in zip(*turns, strict=True)]
            ours, theirs = compare(newest, agent, library)
            cells = [f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}", between(rounds)]
            rows.append([named, title, *cells, name_machine(newest), newest["machine"]["started"][:10]])
    names = ["agent", "beside", "steps/s of qscape", "of the other", "ratio", "in single rounds"]
    return table([*names, "machine", "date"], rows)


def runs_table(runs: list[dict[str, Any]]) -> str:
    """Return steps per second of every run, and its ratio to each library."""
    pairs = itertools.product(runs, AGENTS, LIBRARIES)
    recorded = {agent for run, agent, library in pairs if compare(run, agent, library)}
    measured, rows = {agent: named for agent, named in AGENTS.items() if agent in recorded}, []
    for run in runs:
        machine = run["machine"]
        kind = "quick" if "quick" in run["mode"] else "long"
        started = machine["started"][:16].replace("T", " ")
        row = [started, name_machine(run), kind, machine["commit"], f"{machine['load_before'][0]:.1f}"]
        for agent in measured:
            found = [(library, pair) for library in LIBRARIES if (pair := compare(run, agent, library))]
            ratios = ", ".join(f"{library} {ours / theirs:.2f}" for library, (ours, theirs) in found)
            row.append(f"{found[0][1][0]:,.0f}: {ratios}" if found else "")
        rows.append(row)
    return table(["started", "machine", "kind", "commit", "load", *measured.values()], rows)


if __name__ == "__main__":
    write_table(PAGE, "speed", speed_table(load_runs()))
    write_table(PAGE, "speed-runs", runs_table(load_runs()))
