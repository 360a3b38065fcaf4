"""SBX, the JAX sibling of Stable-Baselines3, with the same settings.

Reading the losses after every update makes each of its steps wait for the computation, so that no update
is left running when a turn ends.
"""

from sbx import SAC, TD3

from peers import Contender
from peers.sb3 import contender


def build(name: str) -> Contender:
    return contender({"sbx-td3": TD3, "sbx-sac": SAC}[name], deterministic=name.endswith("td3"))
