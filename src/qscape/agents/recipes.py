"""What recipes are made of: the off-policy bases, the agents that have a name of their own, and the parts.

A method of qscape is one file in `methods/` and one line in `PARTS`. `register` adds parts of other packages
(see `plugins`). `grammar` reads recipes, `settings` the fields, and `building` makes agents of both.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from qscape.agents import onpolicy
from qscape.methods.asap import ASAP
from qscape.methods.bc import BC, Clone
from qscape.methods.bronet import BroNet
from qscape.methods.c51 import C51
from qscape.methods.caps import CAPS
from qscape.methods.cem import CEM
from qscape.methods.checkpoints import Checkpoints
from qscape.methods.conv import Conv
from qscape.methods.crossq import CrossQ, CrossQWN
from qscape.methods.dpo import DPO
from qscape.methods.dqn import Argmax, PerAction
from qscape.methods.droq import DroQ
from qscape.methods.dual_policy import DualPolicy
from qscape.methods.eas import EAS
from qscape.methods.ensemble import Ensemble
from qscape.methods.esa import ESA
from qscape.methods.fast import Fast
from qscape.methods.grad import GRAD
from qscape.methods.greedy_ac import GreedyAC
from qscape.methods.greedy_td3 import GreedyTD3
from qscape.methods.hl_gauss import HLGauss
from qscape.methods.imitate import Imitate
from qscape.methods.implicit import Implicit
from qscape.methods.iql import IQL
from qscape.methods.joint import Joint
from qscape.methods.l2c2 import L2C2
from qscape.methods.lap import LAP
from qscape.methods.lipsnet import LipsNet
from qscape.methods.lsflow import LSFlow
from qscape.methods.mean_target import MeanTarget
from qscape.methods.normalise import Normalise
from qscape.methods.ou import OU
from qscape.methods.own_target import OwnTarget
from qscape.methods.pave import PAVE
from qscape.methods.periodic import Periodic
from qscape.methods.quantile import Quantile
from qscape.methods.redq import REDQ
from qscape.methods.resets import Resets
from qscape.methods.reward_scale import RewardScale
from qscape.methods.rip import RIP
from qscape.methods.sale import SALE
from qscape.methods.savgo import SAVGO
from qscape.methods.savo import SAVO
from qscape.methods.simba import Simba
from qscape.methods.simbav2 import SimbaV2
from qscape.methods.value_clip import ValueClip
from qscape.methods.wolpertinger import Wolpertinger
from qscape.methods.xqc import XQC
from qscape.offpolicy import plain
from qscape.offpolicy.agent import Agent as OffPolicyAgent
from qscape.offpolicy.base import Base as OffPolicyBase
from qscape.onpolicy.agent import Agent as OnPolicyAgent
from qscape.onpolicy.base import Base as OnPolicyBase

Agent: TypeAlias = OffPolicyAgent | OnPolicyAgent
Base: TypeAlias = OffPolicyBase | OnPolicyBase
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]  # fields by part

TD3 = OffPolicyAgent(recipe="td3")
SAC = OffPolicyAgent(
    recipe="sac",
    base=OffPolicyBase(
        head="gaussian",
        warmup=5_000,
        policy_delay=1,
        actor_objective="min",
        target_actor=False,
        target_noise=0.0,
        exploration_noise=0.0,
    ),
    policy_loss=plain.Soft(),
    target_update=plain.Polyak(when="always"),
)

# For learning from datasets; in an environment they explore with TD3's noise.
IMITATION = OffPolicyAgent(recipe="bc", base=OffPolicyBase(policy_delay=1), policy_loss=BC(alpha=0.0))
IMPLICIT = OffPolicyAgent(
    recipe="iql",
    base=OffPolicyBase(policy_delay=1, target_actor=False, target_noise=0.0),
    policy_loss=IQL(),
    target_update=plain.Polyak(when="always"),
)

DQN = OffPolicyAgent(
    recipe="dqn",
    base=OffPolicyBase(
        critics=1,
        critic_loss="huber",
        batch_size=64,
        n_step=3,
        warmup=1_000,
        replay_capacity=100_000,
        updates_per_step=0.5,
        sync_every=128,
        critic_learning_rate=1e-3,
        gradient_clip=10.0,
        policy_delay=1,
        target_actor=False,
        target_noise=0.0,
        exploration_noise=0.0,
        epsilon_mode="greedy",
        epsilon_end=0.04,
        epsilon_decay=0.16,
    ),
    representation=PerAction(),
    selector=Argmax(),
    target_update=Periodic(),
)

BASES: dict[str, OffPolicyAgent] = {
    "td3": TD3,
    "sac": SAC,
    "bc": IMITATION,
    "iql": IMPLICIT,
    "dqn": DQN,
}


class Expansion(NamedTuple):
    """An agent that has a name of its own: a base with parts, and the settings of a paper.

    Attributes:
        recipe: base and parts joined by +.
        help: what it is and where it comes from, for lists.
        settings: fields by part that differ from the defaults of base and parts. They win over what its parts
            override; parts that a user adds, and a user's own values, win over them.
    """

    recipe: str
    help: str
    settings: Settings = MappingProxyType({})


TWO_UPDATES = {"updates_per_step": 2.0}
# The temperature of SimBa, SimbaV2 and XQC.
CAUTIOUS = {"initial_temperature": 0.01, "entropy_per_action": -0.5, "temperature_loss": "alpha"}
EXPANSIONS: dict[str, Expansion] = {
    "td7": Expansion(
        "td3+sale+lap+periodic+value_clip+checkpoints",
        "TD3 with state-action embeddings, prioritised replay and checkpoints (Fujimoto et al. 2023).",
    ),
    "td7_offline": Expansion(
        "td3+sale+lap+periodic+value_clip+clone",
        "TD7 on a dataset: behaviour cloning in, checkpoints out (Fujimoto et al. 2023).",
    ),
    "eas_td3": Expansion(
        "td3+eas+imitate",
        "TD3 whose actions a particle swarm evolves, and which imitates winners (Ma et al. 2022, arXiv "
        "2201.04286).",
        {"base": {"actor_hidden": (400, 300), "critic_hidden": (400, 300), "batch_size": 100}},
    ),
    "rip": Expansion(
        "td3+implicit+rip",
        "Regularised implicit policy, for datasets (Yang et al. 2022, arXiv 2202.09673).",
        {
            "base": {"batch_size": 512, "actor_hidden": (400, 300), "critic_hidden": (400, 300)}
            | {"actor_activation": "leaky_relu", "actor_learning_rate": 2e-4, "actor_adam_b1": 0.4}
            | {"critic_loss": "huber", "huber_threshold": 500.0},
        },
    ),
    "lsflow": Expansion(
        "td3+lsflow",
        "A flow policy on the sphere, for continuous actions (Kong et al. 2026, arXiv 2601.22211).",
        {
            "base": {"batch_size": 64, "replay_capacity": 100_000, "warmup": 1_000}
            | {"critic_learning_rate": 4e-4, "gradient_clip": 10.0}
            | {"critic_loss": "huber", "huber_threshold": 5.0},
        },
    ),
    "tqc": Expansion(
        "sac+quantile",
        "SAC with a truncated mixture of quantile critics (Kuznetsov et al. 2020, arXiv 2005.04269).",
        {
            "base": {"critics": 5, "critic_hidden": (512, 512, 512), "actor_objective": "mean"}
            | {"log_std_min": -20.0},
            "quantile": {"drop": 2},
        },
    ),
    "crossq": Expansion(
        "sac+crossq",
        "SAC with batch normalisation and no target critics (Bhatt et al. 2024, arXiv 1902.05605).",
        {"soft": {"learning_rate": 1e-3, "temperature_loss": "alpha"}},
    ),
    "crossq_wn": Expansion(
        "sac+crossq_wn",
        "CrossQ with weight normalisation, five updates a step (Palenicek et al. 2025, arXiv 2502.07523).",
        {"base": {"updates_per_step": 5.0}, "soft": {"learning_rate": 1e-4, "entropy_per_action": -0.5}},
    ),
    "simba": Expansion(
        "sac+simba+normalise",
        "SAC with layer-normalised residual networks (Lee et al. 2025, arXiv 2410.09754).",
        {
            "base": TWO_UPDATES | {"discount_rule": "time_limit"},
            "soft": CAUTIOUS | {"learning_rate": 1e-4},
            "normalise": {"epsilon_under_root": True},
        },
    ),
    "simbav2": Expansion(
        "sac+simbav2+c51+reward_scale+normalise",
        "SAC with networks on the unit sphere and categorical critics (Lee et al. 2025, arXiv 2502.15280).",
        {
            "base": TWO_UPDATES | {"discount_rule": "time_limit", "schedule": "linear", "rate_end": 0.5},
            "soft": CAUTIOUS | {"learning_rate": 1e-4},
            "normalise": {"epsilon_under_root": True},
        },
    ),
    "bro": Expansion(
        "sac+bronet+quantile+mean_target+resets",
        "SAC with large residual quantile critics, no pessimism and resets, ten updates a step; with "
        "+dual_policy also the paper's second policy (Nauman et al. 2024, arXiv 2405.16158).",
        {
            "base": {"batch_size": 128, "updates_per_step": 10.0, "warmup": 2_500}
            | {"actor_objective": "mean"},
            "quantile": {"quantiles": 100, "loss_sum": "sum"},
            "resets": {"at": (15_000, 50_000, 250_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_000_000)},
            "soft": {"entropy_per_action": -0.5, "temperature_loss": "alpha", "adam_b1": 0.5},
        },
    ),
    "xqc": Expansion(
        "sac+xqc+c51+reward_scale",
        "SAC with batch and weight normalisation and categorical critics (Palenicek et al. 2026, arXiv "
        "2509.25174).",
        {
            "base": TWO_UPDATES
            | {"discount_rule": "time_limit", "schedule": "linear", "actor_horizon": "updates"}
            | {"policy_phase": 1},
            "reward_scale": {"bound": None},
            "soft": CAUTIOUS,
        },
    ),
    "redq": Expansion(
        "sac+redq",
        "SAC with ten critics, two of them drawn for a target, at 20 updates per step (Chen et al. 2021, "
        "arXiv 2101.05982).",
        {"base": {"log_std_min": -20.0, "init": "xavier"}},
    ),
    "droq": Expansion(
        "sac+droq",
        "SAC whose critics have dropout and layer norm, at 20 updates per step (Hiraoka et al. 2022, arXiv "
        "2110.02034).",
        {"base": {"log_std_min": -20.0}},
    ),
    "drqv2": Expansion(
        "td3+conv",
        "TD3 from images, with random shifts and noise that decays (Yarats et al. 2021, arXiv 2107.09645).",
        {
            # Table 4 of the paper and the released config.yaml; `conv` holds the encoder's own.
            "base": {"n_step": 3, "warmup": 2_000, "updates_per_step": 0.5, "policy_delay": 1}
            | {"actor_learning_rate": 1e-4, "critic_learning_rate": 1e-4}
            | {"actor_hidden": (1024, 1024), "critic_hidden": (1024, 1024)}
            | {"target_actor": False, "target_noise_clip": 0.3, "actor_objective": "min"}
            # The schedule of the paper's easy tasks: from 1.0 to 0.1.
            | {"exploration_noise": 1.0, "epsilon_end": 0.1, "epsilon_decay": 100_000.0},
            "polyak": {"rate": 0.01, "when": "always"},
        },
    ),
    "fast_td3": Expansion(
        "td3+fast+c51+normalise",
        "TD3 with large batches and distributional critics, for many environments (Seo et al. 2025, arXiv "
        "2505.22642).",
        {
            "c51": {"low": -250.0, "high": 250.0},
            "normalise": {"epsilon": 0.01},
            "polyak": {"rate": 0.1, "when": "always"},
        },
    ),
    "fast_sac": Expansion(
        "sac+fast+c51+own_target+normalise",
        "SAC with large batches and distributional critics, for many environments (Seo et al. 2025, arXiv "
        "2512.01996).",
        {
            "c51": {"low": -20.0, "high": 20.0},
            "normalise": {"epsilon": 0.01},
            "polyak": {"rate": 0.125},
            "soft": {"initial_temperature": 0.001, "entropy_per_action": 0.0, "temperature_loss": "alpha"},
        },
    ),
}
BASE_HELP = {
    "td3": "Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018).",
    "sac": "Soft actor-critic with a learned temperature (Haarnoja et al. 2018).",
    "bc": "Behaviour cloning: the actor imitates the data, the critics judge it.",
    "iql": "Implicit Q-learning (Kostrikov et al. 2021).",
    "dqn": "Deep Q-network for a few discrete actions (Mnih et al. 2015).",
    **{name: expansion.help for name, expansion in EXPANSIONS.items()},
    **onpolicy.BASE_HELP,
}
PARTS: dict[str, type] = {
    cls.name: cls
    for cls in (
        SALE,
        Conv,
        LAP,
        Periodic,
        plain.Polyak,
        ValueClip,
        Checkpoints,
        Normalise,
        RewardScale,
        PAVE,
        CAPS,
        GRAD,
        ASAP,
        L2C2,
        LipsNet,
        SAVGO,
        SAVO,
        OU,
        Wolpertinger,
        Ensemble,
        CEM,
        Joint,
        EAS,
        Imitate,
        ESA,
        GreedyAC,
        GreedyTD3,
        Resets,
        BC,
        Clone,
        IQL,
        Implicit,
        RIP,
        LSFlow,
        DPO,
        C51,
        HLGauss,
        Quantile,
        Simba,
        SimbaV2,
        BroNet,
        CrossQ,
        CrossQWN,
        XQC,
        MeanTarget,
        OwnTarget,
        REDQ,
        DroQ,
        DualPolicy,
        Fast,
    )
}
SOCKET_MEANS = {
    "representation": "embeds what networks see",
    "network": "makes hidden layers and outputs",
    "value": "represents the value of a critic",
    "replay": "chooses what is replayed",
    "bootstrap": "makes the bootstrap value",
    "target_update": "moves the target networks",
    "policy_loss": "improves the policy",
    "selector": "chooses the action",
    "regulariser": "adds to the losses",
    "modifier": "sets fields of the base",
    "schedule": "decides when updates happen",
    "reset": "re-initialises networks",
    "normaliser": "normalises observations",
    "scaling": "scales rewards",
}
