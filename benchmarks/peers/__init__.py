"""The contenders of `benchmarks/throughput.py`, one module for each library.

A module has one function `build(name) -> Contender`. Everything that makes contenders comparable stands
here: the task, the sizes, and the loop that the straight-line agents run in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

ENV = "HalfCheetah-v5"
BATCH = 256
WIDTHS = (256, 256)
CAPACITY = 1_000_000
LEARNING_RATE = 3e-4
EXPLORATION = 0.1
WARM_UP = 1_000  # random steps before the first update
EPISODE = 100  # steps of an episode of contenders that update between episodes, the updates of one burst
CROSSQ_CRITIC = (1024, 1024)  # hidden layers; the actor has `WIDTHS`
SIMBA_ACTOR, SIMBA_CRITIC = (128,), (512, 512)  # residual blocks

OFF_POLICY = {
    "qscape-td3": "qscape_",
    "qscape-sac": "qscape_",
    "qscape-td7": "qscape_",
    "qscape-td3-scan": "qscape_",
    "qscape-td7-scan": "qscape_",
    "qscape-td3-assembled-scan": "qscape_",
    "qscape-sac-assembled-scan": "qscape_",
    "qscape-td7-assembled-scan": "qscape_",
    "qscape-td7-checkpoints": "qscape_",
    "qscape-crossq": "qscape_",
    "qscape-simba": "qscape_",
    "qscape-flash_sac": "qscape_",
    "sb3-td3": "sb3",
    "sb3-sac": "sb3",
    "sbx-td3": "sbx",
    "sbx-sac": "sbx",
    "sbx-crossq": "sbx",
    "sbx-simba": "sbx",
    "rlblox-sac": "rlblox",
    "rlblox-td7": "rlblox",
    "cleanrl-td3": "cleanrl_td3",
    "torch-td3": "torch_td3",
    "torch-td7": "torch_td7",
    "torch-td7-checkpoints": "torch_td7",
    "torch-flash_sac": "torch_flash_sac",
}
ON_POLICY = {
    "qscape-ppo": "qscape_",
    "qscape-ppo-scan": "qscape_",
    "sb3-ppo": "sb3",
    "qscape-ppo-tuned": "qscape_",
    "qscape-ppo-tuned-scan": "qscape_",
    "sb3-ppo-tuned": "sb3",
}
MODULES = OFF_POLICY | ON_POLICY


class PPOTask(NamedTuple):
    """What costs time in PPO; networks are 64-64 for actor and critic each, tanh."""

    steps: int  # of each environment in a rollout
    batch: int
    passes: int
    env: str = "CartPole-v1"
    envs: int = 8

    @property
    def rollout(self) -> int:
        return self.steps * self.envs

    @staticmethod
    def of(name: str) -> "PPOTask":
        """The settings of a contender."""
        return PPO_TUNED if "tuned" in name else PPO_DEFAULT


PPO_DEFAULT = PPOTask(steps=256, batch=64, passes=10)  # both: 2,048 steps of one environment
PPO_TUNED = PPOTask(steps=32, batch=256, passes=20)  # what the RL Zoo found for CartPole


class Contender(NamedTuple):
    """An agent that has finished its random steps.

    Attributes:
        advance: makes that many environment steps with one update each, and returns when the last
            update has really been computed.
        updates: the number of updates made so far.
        block: `advance` takes multiples of this number only (2: as many delayed actor steps in every turn).
        every: environment steps that an update comes after; on-policy: of a rollout.
        settle: brings it, after its first updates, to where long runs spend their time.
    """

    advance: Callable[[int], None]
    updates: Callable[[], int]
    block: int = 2
    every: int = 1
    settle: Callable[[], None] = lambda: None


class Agent(Protocol):
    """What `train_loop` needs; actions are in [-1, 1]. `episode_ended` is called only with `episodes`."""

    updates: int

    def episode_ended(self, ret: float) -> None: ...

    def act(self, observation: np.ndarray) -> np.ndarray: ...
    def add(self, *row: Any) -> None: ...  # observation, action, next observation, reward, terminated
    def update(self) -> None: ...


def train_loop(agent: Agent, seed: int = 0, episodes: bool = False) -> Contender:
    """Put an agent on the task: random steps now, then one update after every step.

    `episodes`: the updates wait for the end of an episode, of `EPISODE` steps, and `agent.episode_ended`
    takes its return before them.
    """
    import gymnasium

    env = gymnasium.make(ENV, max_episode_steps=EPISODE) if episodes else gymnasium.make(ENV)
    env.action_space.seed(seed)
    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)

    total = 0.0

    def step(action: np.ndarray) -> bool:
        nonlocal observation, total
        next_observation, reward, terminated, truncated, _ = env.step(action)
        agent.add(observation, action, next_observation, reward, terminated)
        total += float(reward)
        ended = terminated or truncated
        observation = env.reset()[0] if ended else next_observation
        return ended

    def advance(steps: int) -> None:
        nonlocal total
        for _ in range(steps):
            noise = random.normal(0.0, EXPLORATION, env.action_space.shape)
            ended = step(np.clip(agent.act(observation) + noise, -1.0, 1.0).astype(np.float32))
            if not episodes:
                agent.update()
            elif ended:
                agent.episode_ended(total)
                total = 0.0
                for _ in range(EPISODE):
                    agent.update()

    for _ in range(WARM_UP):
        step(env.action_space.sample())
    total = 0.0
    return Contender(advance, lambda: agent.updates, EPISODE if episodes else 2)
