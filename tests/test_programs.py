"""How a policy is handed to its program."""

from typing import Any

import jax
import numpy as np
import pytest
from tiny import settings

import qscape as qs
from qscape.run.programs import Act


@jax.tree_util.register_pytree_node_class
class Policy:
    """Arrays whose taking apart is counted."""

    apart = 0

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def tree_flatten(self):
        type(self).apart += 1
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


def test_a_policy_is_taken_apart_once_and_never_taken_for_another():
    program = Act(lambda policy, *_, mode: sum(policy.parts) * (2 if mode == "evaluate" else 1))
    first, second, wider = Policy(np.float32(1)), Policy(np.float32(5)), Policy(np.float32(1), np.float32(2))
    assert [program(first, None, 0, 0, 0, 0).item() for _ in range(3)] == [2] * 3
    assert Policy.apart == 1
    assert program(first, None, 0, 0, 0, 0, mode="explore") == 1
    assert [program(one, None, 0, 0, 0, 0).item() for one in (second, wider, first)] == [10, 6, 2]
    assert Policy.apart == 4


@pytest.mark.slow
def test_a_run_shows_one_acting_state_until_it_learns():
    model = qs.TD3("Pendulum-v1", eval_every=0, **settings("td3", warmup=20)).learn(30)
    before = model.trainer.learner.acting
    assert model.trainer.learner.acting is before
    model.learn(5)
    assert model.trainer.learner.acting is not before
    assert model.trainer.learner.acting.actor is model.trainer.learner.state.actor
