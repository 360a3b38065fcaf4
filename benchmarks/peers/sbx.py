"""SBX, the JAX sibling of Stable-Baselines3, with the same settings.

Reading the losses after every update makes each of its steps wait for the computation, so that no update
is left running when a turn ends.
"""

from sbx import SAC, TD3, CrossQ

from peers import CROSSQ_CRITIC, SIMBA_ACTOR, SIMBA_CRITIC, WIDTHS, Contender
from peers.sb3 import contender


def build(name: str) -> Contender:
    if name == "sbx-crossq":
        return contender(CrossQ, widths={"pi": [*WIDTHS], "qf": [*CROSSQ_CRITIC]})
    if name == "sbx-simba":
        return contender(SAC, policy="SimbaPolicy", widths={"pi": [*SIMBA_ACTOR], "qf": [*SIMBA_CRITIC]})
    return contender({"sbx-td3": TD3, "sbx-sac": SAC}[name], deterministic=name.endswith("td3"))
