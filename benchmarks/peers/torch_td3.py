"""TD3 in eager PyTorch, straight-line (Fujimoto, van Hoof, Meger 2018), with a numpy replay."""

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from peers import BATCH, CAPACITY, LEARNING_RATE, WIDTHS, Contender, train_loop

Network = TypeVar("Network", bound=nn.Module)

DISCOUNT = 0.99
POLYAK = 0.005
POLICY_DELAY = 2
TARGET_NOISE, TARGET_NOISE_CLIP = 0.2, 0.5


class Replay:
    """Uniform replay: five numpy arrays, float32."""

    def __init__(self, observation_size: int, action_size: int, capacity: int = CAPACITY):
        self.capacity, self.position, self.size = capacity, 0, 0
        self.random = np.random.default_rng(0)
        widths = (observation_size, action_size, observation_size, 1, 1)
        self.columns = [np.zeros((capacity, width), np.float32) for width in widths]

    def add(self, *row: Any) -> None:
        *values, terminated = row
        for column, value in zip(self.columns, (*values, 1.0 - terminated), strict=True):
            column[self.position] = value
        self.position = (self.position + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def rows(self, index: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(column[index]) for column in self.columns]

    def sample(self, batch: int) -> list[Tensor]:
        """Observation, action, next observation, reward and not-terminated, each `[batch, width]`."""
        return self.rows(self.random.integers(self.size, size=batch))


def frozen_copy(network: Network) -> Network:
    """A copy for which no gradient is ever computed."""
    return copy.deepcopy(network).requires_grad_(False)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTHS[0]),
        nn.ReLU(),
        nn.Linear(WIDTHS[0], WIDTHS[1]),
        nn.ReLU(),
        nn.Linear(WIDTHS[1], outputs),
    )


class Critic(nn.Module):
    """Two heads that share nothing."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.heads = nn.ModuleList(mlp(observation_size + action_size, 1) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor) -> list[Tensor]:
        inputs = torch.cat([observation, action], 1)
        return [head(inputs) for head in self.heads]


class TD3:
    """The networks, their targets, and one update."""

    def __init__(self, observation_size: int, action_size: int):
        self.updates = 0
        self.actor = nn.Sequential(mlp(observation_size, action_size), nn.Tanh())
        self.critic = Critic(observation_size, action_size)
        self.actor_target, self.critic_target = frozen_copy(self.actor), frozen_copy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=LEARNING_RATE)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=LEARNING_RATE)
        self.replay = Replay(observation_size, action_size)
        self.add = self.replay.add

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> np.ndarray:
        return self.actor(torch.as_tensor(observation, dtype=torch.float32)[None])[0].numpy()

    def update(self) -> None:
        self.updates += 1
        observation, action, next_observation, reward, not_done = self.replay.sample(BATCH)

        with torch.no_grad():
            noise = (torch.randn_like(action) * TARGET_NOISE).clamp(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
            next_action = (self.actor_target(next_observation) + noise).clamp(-1, 1)
            next_q = torch.minimum(*self.critic_target(next_observation, next_action))
            target = reward + not_done * DISCOUNT * next_q

        q1, q2 = self.critic(observation, action)
        critic_loss = mse_loss(q1, target) + mse_loss(q2, target)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        if self.updates % POLICY_DELAY == 0:
            actor_loss = -self.critic.heads[0](torch.cat([observation, self.actor(observation)], 1)).mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            self.follow(self.critic, self.critic_target)
            self.follow(self.actor, self.actor_target)

    @torch.no_grad()
    def follow(self, online: nn.Module, target: nn.Module) -> None:
        for parameter, slow in zip(online.parameters(), target.parameters(), strict=True):
            slow.lerp_(parameter, POLYAK)


def build(name: str) -> Contender:
    torch.manual_seed(0)
    return train_loop(TD3(17, 6))
