"""Methods beside the five papers (TD7, PAVE, SAVO, SAVGO, ACPG), their baselines and the bases.

The core imports nothing of this package and works without it. It reads the tables below as it reads the entry
points of other packages (`qscape.agents.plugins`), and imports a part when a recipe names it. The tables
import nothing but themselves. docs/architecture.md says which part belongs here.
"""

from qscape.contrib.agents import AGENTS
from qscape.contrib.presets import PRESETS

__all__ = ["AGENTS", "PARTS", "PRESETS"]

# By name of a part, the places of its classes: one, or one for off-policy and one for on-policy agents.
PARTS: dict[str, tuple[str, ...]] = {
    "reward_scale": ("qscape.contrib.reward_scale:RewardScale",),
    "l2c2": ("qscape.contrib.l2c2:L2C2",),
    "lipsnet": ("qscape.contrib.lipsnet:LipsNet",),
    "eas": ("qscape.contrib.eas:EAS",),
    "imitate": ("qscape.contrib.imitate:Imitate",),
    "esa": ("qscape.contrib.esa:ESA", "qscape.contrib.esa:OnPolicyESA"),
    "implicit": ("qscape.contrib.implicit:Implicit",),
    "rip": ("qscape.contrib.rip:RIP",),
    "lsflow": ("qscape.contrib.lsflow:LSFlow",),
    "dpo": ("qscape.contrib.dpo:DPO",),
    "c51": ("qscape.contrib.c51:C51",),
    "hl_gauss": ("qscape.contrib.hl_gauss:HLGauss",),
    "simba": ("qscape.contrib.simba:Simba",),
    "simbav2": ("qscape.contrib.simbav2:SimbaV2",),
    "bronet": ("qscape.contrib.bronet:BroNet",),
    "crossq": ("qscape.contrib.crossq:CrossQ",),
    "crossq_wn": ("qscape.contrib.crossq:CrossQWN",),
    "xqc": ("qscape.contrib.xqc:XQC",),
    "mean_target": ("qscape.contrib.mean_target:MeanTarget",),
    "own_target": ("qscape.contrib.own_target:OwnTarget",),
    "redq": ("qscape.contrib.redq:REDQ",),
    "droq": ("qscape.contrib.droq:DroQ",),
    "dual_policy": ("qscape.contrib.dual_policy:DualPolicy",),
    "fast": ("qscape.contrib.fast:Fast",),
    "carsm": ("qscape.contrib.carsm:CARSM",),
}
