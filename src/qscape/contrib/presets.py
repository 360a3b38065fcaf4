"""Settings of the papers behind parts and agents of `qscape.contrib`, by agent, part and environment."""

from collections.abc import Mapping
from typing import Any

Rows = dict[tuple[str, str, str], Mapping[str, Mapping[str, Any]]]

# REDQ's target entropies, which are MBPO's; DroQ's rates of dropout, which its other code sets to 0.01. The
# papers use versions 2 and 3 of the environments.
TARGET_ENTROPY = {"HalfCheetah": -3.0, "Hopper": -1.0, "Walker2d": -3.0, "Ant": -4.0, "Humanoid": -2.0}
DROPOUT = {"Hopper": 1e-4, "Walker2d": 5e-3, "Ant": 0.01, "Humanoid": 0.1}


def _ensembles() -> tuple[Rows, Rows]:
    """Return the rows of REDQ and of DroQ."""
    redq, droq = {}, {}
    for name, entropy in TARGET_ENTROPY.items():
        for env in (f"{name}-v4", f"{name}-v5"):
            redq["redq", "", env] = {"soft": {"target_entropy": entropy}}
            if name in DROPOUT:
                droq["droq", "", env] = redq["redq", "", env] | {"droq": {"rate": DROPOUT[name]}}
    return redq, droq


REDQ, DROQ = _ensembles()
# Humanoids walking in MuJoCo Playground, with 1,024 environments and what only critics see.
HUMANOIDS = [
    f"playground/{robot}Joystick{ground}Terrain" for robot in ("G1", "T1") for ground in ("Flat", "Rough")
]
FLASH_SAC: Rows = {("flash_sac_parallel", "", env): {"base": {"discount": 0.97}} for env in HUMANOIDS}
CROSSQ: Rows = {("crossq", "", f"Swimmer-v{version}"): {"base": {"discount": 0.9999}} for version in (4, 5)}
# By preset, sources and their rows: the first fields of `qscape.agents.sources.Paper`.
PRESETS: dict[str, tuple[tuple[str, Rows], ...]] = {
    "paper": (
        ("REDQ, arXiv 2101.05982", REDQ),
        ("DroQ, arXiv 2110.02034", DROQ),
        ("CrossQ, arXiv 1902.05605", CROSSQ),
        ("FlashSAC, arXiv 2604.04539", FLASH_SAC),
    )
}
