"""Methods outside the main tables of the five papers (TD7, PAVE, SAVO, SAVGO, ACPG).

The core never imports this package and works without its folder. `qscape.agents.plugins` reads the tables
below, and registers the parts as it registers those of other packages. docs/architecture.md says which part
belongs here.
"""

from qscape.contrib.agents import AGENTS
from qscape.contrib.best_point import BestPoint
from qscape.contrib.bronet import BroNet
from qscape.contrib.c51 import C51
from qscape.contrib.carsm import CARSM
from qscape.contrib.control_points import ControlPoints
from qscape.contrib.crossq import CrossQ, CrossQWN
from qscape.contrib.dpo import DPO
from qscape.contrib.droq import DroQ
from qscape.contrib.dual_policy import DualPolicy
from qscape.contrib.eas import EAS
from qscape.contrib.esa import ESA, OnPolicyESA
from qscape.contrib.fast import Fast
from qscape.contrib.flashsac import FlashSAC
from qscape.contrib.her import HER
from qscape.contrib.hl_gauss import HLGauss
from qscape.contrib.imitate import Imitate
from qscape.contrib.implicit import Implicit
from qscape.contrib.jacobian import ActionJacobian
from qscape.contrib.l2c2 import L2C2
from qscape.contrib.lipsnet import LipsNet
from qscape.contrib.lsflow import LSFlow
from qscape.contrib.mean_target import MeanTarget
from qscape.contrib.own_target import OwnTarget
from qscape.contrib.presets import PRESETS
from qscape.contrib.redq import REDQ
from qscape.contrib.reward_scale import RewardScale
from qscape.contrib.rip import RIP
from qscape.contrib.separate import Separate
from qscape.contrib.simba import Simba
from qscape.contrib.simbav2 import SimbaV2
from qscape.contrib.xqc import XQC

__all__ = ["AGENTS", "PARTS", "PRESETS"]

PARTS: tuple[type, ...] = (
    RewardScale,
    L2C2,
    ActionJacobian,
    LipsNet,
    EAS,
    Imitate,
    ESA,
    OnPolicyESA,
    Implicit,
    RIP,
    LSFlow,
    DPO,
    C51,
    HLGauss,
    Simba,
    SimbaV2,
    BroNet,
    CrossQ,
    CrossQWN,
    XQC,
    FlashSAC,
    MeanTarget,
    OwnTarget,
    REDQ,
    DroQ,
    DualPolicy,
    Fast,
    HER,
    CARSM,
    ControlPoints,
    BestPoint,
    Separate,
)
