"""SAVO's surrogates of Q at one state, exact and learned: the objectives of its later actors.

Jain et al. 2024, arXiv 2410.11833, Sections 4.2 and 4.3: Ψ_i(s, a; a_{<i}) = max{Q(s, a), τ_i} with
τ_i = max_{j<i} Q(s, a_j), and the network Ψ̂_i that is fitted to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from qscape.offpolicy.agent import Agent
from qscape.offpolicy.sockets import PartState, bind_network
from qscape.offpolicy.state import ActingState

# Values of actions at one state.
ActionValue: TypeAlias = Callable[[Float[Array, "N A"]], Float[Array, " N"]]


class Surrogate(NamedTuple):
    """Ψ_i and Ψ̂_i at the points of a landscape, in units of Q.

    Attributes:
        floor: τ_i, computed from the Q that the landscape shows; of Ψ_0 the least Q shown.
        exact: max{Q, τ_i}, in the shape of Q.
        learned: Ψ̂_i in the same shape; None if the agent's actors maximise the exact surrogates.
    """

    floor: float
    exact: Float[np.ndarray, "..."]
    learned: Float[np.ndarray, "..."] | None

    def at(self, kept: Int[np.ndarray, " k"]) -> "Surrogate":
        """Select some entries of a table."""
        learned = None if self.learned is None else self.learned[kept]
        return Surrogate(self.floor, self.exact[kept], learned)


def count_surrogates(agent: Agent) -> int:
    """Return the number of surrogates of an agent: L - 1 with SAVO, L with its raw vectors, else 0.

    With raw vectors the first actor climbs no Q, which is of rows only, but Ψ̂_0, which is fitted to Q there.
    """
    selector: Any = agent.selector
    return selector.length() - 1 + selector.raw_vectors if selector.climbs_surrogates else 0


def bind_learned_surrogates(
    agent: Agent, acting: ActingState, obs: Float[Array, " S"], proposals: Float[Array, "L A"]
) -> list[ActionValue]:
    """Return Ψ̂_1 .. Ψ̂_{L-1} at one raw observation as functions of actions; Ψ̂_0 before them at raw vectors.

    Each is conditioned on the proposals before its own. Empty without SAVO or without learned surrogates.
    """
    rep, selector = agent.representation, cast(Any, agent.selector)
    nets = acting.part_states.get(selector.name, PartState()).params
    if not selector.climbs_surrogates or nets is None:
        return []
    statistics = acting.part_states.get(agent.normaliser.name, PartState())
    seen = agent.normaliser.apply(statistics, agent.task.visible(obs))[None]
    view = rep.encoder_params(acting.part_states.get(rep.name, PartState()), "fixed")

    def bind_surrogate(i: int) -> ActionValue:
        value, conditioning = (
            bind_network(rep, view, later[i - 1].net),
            later[i - 1].conditioning(seen, proposals[:i, None], later[0].summary),
        )
        return jax.vmap(lambda action: value(seen, action[None], conditioning)[0])

    later, first = selector.later_surrogates(nets), []
    if selector.raw_vectors:  # the networks know vectors, of which the proposals are the nearest rows
        proposals = agent.listed_proposals(acting, obs[None])[0]
        of_no_list = bind_network(rep, view, nets[0])
        first = [jax.vmap(lambda action: of_no_list(seen, action[None])[0])]
    return [*first, *(bind_surrogate(i) for i in range(1, len(later) + 1))]
