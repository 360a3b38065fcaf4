"""Policy checkpoints: the policy is frozen for whole episodes, judged by its worst one, and trained in
bursts between; evaluation uses the best policy so far (TD7, Section 4.2 and Appendix F).

Episodes of several environments are handled one at a time. An episode that began under an older policy or in
the random phase does not count. A burst makes the updates of all steps since the last burst, those of
episodes that still run included.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import Composition, EpisodeEnd, Schedule, StepEnd
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Checkpoints(Schedule):
    """Assesses the frozen policy by its worst episode, keeps the best policy, and trains in bursts.

    Where goals are relabelled and success is reported, a policy is assessed by the share of its episodes that
    succeed: of 0s and 1s the worst says nothing but whether all did. Episodes before the first report were
    judged by their returns, which cannot be compared with it: they count as failures from then on.
    """

    name: ClassVar[str] = "checkpoints"
    keeps_best_policy: ClassVar[bool] = True
    learns_between_episodes: ClassVar[bool] = True

    early_episodes: int = setting(1, "Episodes per assessment before the switch.", within=">= 1")
    late_episodes: int = setting(20, "Episodes per assessment after the switch.", within=">= 1", tune=(1, 50))
    switch: int = setting(
        750_000, "Number of updates after which assessments take `late_episodes`.", within=">= 0"
    )
    bar_factor: float = setting(
        0.9,
        "Factor of the best score at the switch, so that the kept policy can be replaced.",
        within="(0, 1]",
    )
    lower_negative_bars: bool = setting(
        False,
        "Lower the best score at the switch also if it is negative (TD7 raises it).",
    )
    criterion: Literal["min", "mean"] = setting(
        "min", "Score of an assessment by returns: their minimum or their mean."
    )

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {"warmup_to_episode_end": True}

    def start(self) -> dict[str, Any]:
        return {
            "steps": 0,  # of all environments since the last burst
            "age": 0,  # of the policy, in steps of each environment
            "returns": [],
            "best": None,  # no assessment was passed yet
            "episodes": self.early_episodes,
        }

    def updates_due(
        self, state: dict[str, Any], event: StepEnd | EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int, bool]:
        if isinstance(event, StepEnd):
            return (
                state | {"steps": state["steps"] + event.steps, "age": state["age"] + 1},
                0,
                False,
            )
        if event.first_report:
            best = None if _best(state) is None else 0.0
            state = state | {"returns": [0.0] * len(state["returns"]), "best": best}
        if event.length > state["age"]:
            return state, 0, False
        by_success = event.success is not None
        returns = [*state["returns"], event.ret if event.success is None else event.success]
        best, left = _best(state), max(state["episodes"] - len(returns), 0)
        if best is not None and self._reachable(returns, left, by_success) < best:
            return (*self._start_burst(state, event, base), False)  # the policy has failed
        if left:
            return state | {"returns": returns}, 0, False
        takes_worst = self.criterion == "min" and not by_success
        score = min(returns) if takes_worst else sum(returns) / len(returns)
        passed = best is None or score >= best
        return (*self._start_burst(state | {"best": score} if passed else state, event, base), passed)

    def _reachable(self, returns: list[float], left: int, by_success: bool) -> float:
        """Return the best score that an assessment can still reach, with `left` episodes to go."""
        if by_success:
            return (sum(returns) + left) / (len(returns) + left)
        return min(returns) if self.criterion == "min" else math.inf

    def _start_burst(
        self, state: dict[str, Any], event: EpisodeEnd, base: Base
    ) -> tuple[dict[str, Any], int]:
        """Return the counters after a burst and its number of updates; applies the switch if it is passed.

        Steps that do not make a whole update wait for the next burst; 1e-9 is for ratios such as 0.1.
        """
        updates = int(state["steps"] * base.updates_per_step + 1e-9)
        steps = max(state["steps"] - updates / base.updates_per_step, 0.0)  # which rounding may pass
        if event.update <= self.switch < event.update + updates:
            if (best := _best(state)) is not None:
                lowered = best - (1.0 - self.bar_factor) * abs(best)
                state = state | {"best": lowered if self.lower_negative_bars else best * self.bar_factor}
            state = state | {"episodes": self.late_episodes}
        return state | {"steps": steps, "age": 0, "returns": []}, updates


def _best(state: Mapping[str, Any]) -> float | None:
    """Return the best score so far; None if there is none, which saves of version 0.2 write as -1e8."""
    return None if state["best"] == -1e8 else state["best"]
