"""The on-policy bases (PPO, A2C, REINFORCE, TRPO) and the parts that fit them."""

from qscape.methods.cosine import Cosine
from qscape.methods.etf import ETF
from qscape.methods.fixed_gaussian import FixedGaussian
from qscape.methods.fixed_orthogonal import FixedOrthogonal
from qscape.methods.normalise import Normalise
from qscape.methods.scale_rewards import ScaleRewards
from qscape.onpolicy import plain
from qscape.onpolicy.agent import Agent
from qscape.onpolicy.base import Base
from qscape.onpolicy.descent import PolicyGradient
from qscape.onpolicy.trust_region import TrustRegion

PPO = Agent(recipe="ppo")
A2C = Agent(
    recipe="a2c",
    base=Base(
        rollout=80,
        batch_size=0,
        passes=1,
        optimiser="rmsprop",
        learning_rate=7e-4,
        anneal=True,
        entropy_coefficient=0.01,
    ),
    policy_update=PolicyGradient(),
)
REINFORCE = Agent(
    recipe="reinforce",
    base=Base(
        discount=0.95,
        rollout=20_000,
        episodes=8,
        passes=2,
        activation="relu",
        learning_rate=1e-3,
        optimiser_epsilon=1e-8,
        gradient_clip=None,
    ),
    estimator=plain.MonteCarlo(),
    policy_update=PolicyGradient(),
)
TRPO = Agent(
    recipe="trpo",
    base=Base(
        rollout=1_024,
        batch_size=0,
        passes=1,
        learning_rate=1e-3,
        optimiser_epsilon=1e-8,
        gradient_clip=None,
    ),
    policy_update=TrustRegion(),
)

BASES: dict[str, Agent] = {"ppo": PPO, "a2c": A2C, "reinforce": REINFORCE, "trpo": TRPO}
BASE_HELP = {
    "ppo": "Proximal policy optimisation with a clipped surrogate (Schulman et al. 2017).",
    "a2c": "Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016).",
    "reinforce": "The policy gradient with Monte Carlo returns of whole episodes (Williams 1992).",
    "trpo": "Natural-gradient steps within a bound on the KL divergence (Schulman et al. 2015).",
}
PARTS: dict[str, type] = {
    cls.name: cls for cls in (ETF, FixedGaussian, FixedOrthogonal, Cosine, Normalise, ScaleRewards)
}
SOCKET_MEANS = {
    "extractor": "makes features of observations",
    "head": "makes a distribution over actions",
    "estimator": "estimates advantages",
    "policy_update": "improves actor and critic",
    "scaling": "scales rewards or returns",
    "refiner": "refines the actions of rollouts",
    "normaliser": "normalises observations",
}
