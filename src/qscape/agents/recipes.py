"""What recipes are made of: the off-policy bases, the agents that have a name of their own, and the parts.

A method of the core is one file in `methods/` and one line in `PARTS`. `plugins` adds the parts of
`qscape.contrib`, and `register` those of other packages. `grammar` reads recipes, `settings` the fields, and
`building` makes agents of both.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from qscape.agents import onpolicy, plugins
from qscape.methods.asap import ASAP
from qscape.methods.bc import BC, Clone
from qscape.methods.caps import CAPS
from qscape.methods.cem import CEM
from qscape.methods.checkpoints import Checkpoints
from qscape.methods.conv import Conv
from qscape.methods.dqn import Argmax, PerAction
from qscape.methods.ensemble import Ensemble
from qscape.methods.grad import GRAD
from qscape.methods.greedy_ac import GreedyAC
from qscape.methods.greedy_td3 import GreedyTD3
from qscape.methods.iql import IQL
from qscape.methods.joint import Joint
from qscape.methods.lap import LAP
from qscape.methods.normalise import Normalise
from qscape.methods.ou import OU
from qscape.methods.pave import PAVE
from qscape.methods.periodic import Periodic
from qscape.methods.quantile import Quantile
from qscape.methods.resets import Resets
from qscape.methods.sale import SALE
from qscape.methods.savgo import SAVGO
from qscape.methods.savo import SAVO
from qscape.methods.value_clip import ValueClip
from qscape.methods.wolpertinger import Wolpertinger
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


EXPANSIONS: dict[str, Expansion] = {
    "td7": Expansion(
        "td3+sale+lap+periodic+value_clip+checkpoints",
        "TD3 with state-action embeddings, prioritised replay and checkpoints (Fujimoto et al. 2023).",
    ),
    "td7_offline": Expansion(
        "td3+sale+lap+periodic+value_clip+clone",
        "TD7 on a dataset: behaviour cloning in, checkpoints out (Fujimoto et al. 2023).",
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
    **{name: Expansion(*row) for name, row in dict(plugins.contrib_table("AGENTS")).items()},
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
        PAVE,
        CAPS,
        GRAD,
        ASAP,
        SAVGO,
        SAVO,
        OU,
        Wolpertinger,
        Ensemble,
        CEM,
        Joint,
        GreedyAC,
        GreedyTD3,
        Resets,
        BC,
        Clone,
        IQL,
        Quantile,
    )
}
plugins.register_contrib((PARTS, onpolicy.PARTS))
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
    "relabelling": "relabels goals",
}
