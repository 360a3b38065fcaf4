"""Write the table of training speed into docs/performance.md, from results/throughput alone.

python benchmarks/speed_table.py
"""

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


def speed_table() -> str:
    """Return steps per second in the newest long run beside each library, and the ratios of all runs."""
    files = sorted((RESULTS / "throughput").glob("*[0-9]-peers*.json"))
    runs: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    rows = []
    for agent, named in AGENTS.items():
        for library, title in LIBRARIES.items():
            pair = f"qscape-{agent}", f"{library}-{agent}"
            both = [run for run in runs if {*pair} <= run["contenders"].keys()]
            if not both:
                continue
            newest = max(both, key=lambda run: ("quick" not in run["mode"], run["machine"]["started"]))
            turns = [newest["contenders"][name]["turns"] for name in pair]
            rounds = [a["steps_per_second"] / b["steps_per_second"] for a, b in zip(*turns, strict=True)]
            ours, theirs = (newest["contenders"][name]["median"] for name in pair)
            medians = [[run["contenders"][name]["median"] for name in pair] for run in both]
            ratios = [a / b for a, b in medians]
            machine = newest["machine"]["system"].split("-")[3]  # the short name, which its kernel has
            cells = [f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}", between(rounds)]
            when = f"{machine}, {newest['machine']['started'][:10]}"
            rows.append([named, title, *cells, when, f"{between(ratios)} ({len(both)})"])
    names = ["agent", "beside", "steps/s of qscape", "of the other", "ratio", "in single rounds"]
    return table([*names, "machine and date", "ratio in all recorded runs (their number)"], rows)


if __name__ == "__main__":
    write_table(PAGE, "speed", speed_table())
