"""RL-BLOX (Flax NNX): its own loops, which run in a thread that waits at every step for leave to go on.

Its functions train from start to end and make their programs anew at each call, so they are called once.
The bar that shows their progress is what they wait at. The last of a turn's many updates may still be
running when it ends, because the networks are out of reach.
"""

import threading
from typing import Any

import gymnasium

from peers import BATCH, CAPACITY, ENV, LEARNING_RATE, WARM_UP, WIDTHS, Contender

ENDLESS = 10**9


class Gate:
    """A progress bar that lets a number of steps pass, and then waits."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.left = self.made = 0
        self.problem: BaseException | None = None

    def update(self) -> None:
        """Called by the library after every step."""
        self.made += 1
        self.left -= 1
        if self.left <= 0:
            self.done.release()
            self.go.acquire()

    def advance(self, steps: int) -> None:
        """Let so many steps pass; the first call starts the library at its first step."""
        self.left = steps
        self.go.release()
        self.done.acquire()
        if self.problem is not None:
            raise self.problem


def build(name: str) -> Contender:
    gate, env = Gate(), gymnasium.make(ENV)
    train = {"rlblox-sac": sac, "rlblox-td7": td7}[name]
    options: dict[str, Any] = {
        "total_timesteps": ENDLESS,
        "buffer_size": CAPACITY,
        "batch_size": BATCH,
        "learning_starts": WARM_UP,
        "seed": 0,
        "bar": gate,
    }

    def run() -> None:
        gate.go.acquire()
        try:
            train(env, options)
        except BaseException as problem:
            gate.problem = problem
            gate.done.release()

    threading.Thread(target=run, daemon=True).start()
    gate.advance(WARM_UP)
    return Contender(gate.advance, lambda: gate.made - WARM_UP)


def sac(env: Any, options: dict[str, Any]) -> None:
    from rl_blox.algorithm import sac

    state = sac.create_sac_state(
        env,
        policy_hidden_nodes=WIDTHS,
        policy_activation="relu",
        q_hidden_nodes=WIDTHS,
        q_learning_rate=LEARNING_RATE,
    )
    sac.train_sac(env, **state._asdict(), policy_delay=1, **options)


def td7(env: Any, options: dict[str, Any]) -> None:
    """Its embeddings have one hidden layer by default; the paper's have two."""
    from rl_blox.algorithm import td7

    state = td7.create_td7_state(
        env, state_embedding_hidden_nodes=WIDTHS, state_action_embedding_hidden_nodes=WIDTHS
    )
    td7.train_td7(env, **state._asdict(), use_checkpoints=False, **options)
