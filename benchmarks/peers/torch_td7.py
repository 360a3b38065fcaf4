"""TD7 in eager PyTorch, straight-line (Fujimoto et al. 2023, arXiv 2306.02451), with and without checkpoints.

With checkpoints a policy is kept if its episode returned more than those of all policies before it, which is
the paper's rule for its first 750,000 updates. Replay is numpy with priorities in one torch vector, sampled
through their cumulative sum.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import elu, mse_loss, relu

from peers import BATCH, LEARNING_RATE, Contender, train_loop
from peers.torch_td3 import DISCOUNT, POLICY_DELAY, TARGET_NOISE, TARGET_NOISE_CLIP, Replay, frozen_copy

WIDTH = 256  # of the embeddings and of every hidden layer
SYNC_EVERY = 250
PRIORITY_POWER = 0.4


def avg_l1_norm(x: Tensor) -> Tensor:
    return x / x.abs().mean(-1, keepdim=True).clamp(min=1e-8)


def huber_lap(delta: Tensor) -> Tensor:
    """Half the square below 1, the absolute value (not less ½) from 1 on: sum over heads, mean over rows."""
    return torch.where(delta < 1, 0.5 * delta.square(), delta).sum(1).mean()


def priority(delta: Tensor) -> Tensor:
    """`[B, 2]` absolute errors to `[B]` priorities."""
    return delta.max(1).values.clamp(min=1).pow(PRIORITY_POWER)


def target_value(reward: Tensor, not_done: Tensor, next_q: Tensor, low: float, high: float) -> Tensor:
    """The next value is clipped, the target is not."""
    return reward + not_done * DISCOUNT * next_q.min(1, keepdim=True).values.clamp(low, high)


class Encoder(nn.Module):
    """f: s to z_s, and g: (z_s, a) to z_sa."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.zs1 = nn.Linear(observation_size, WIDTH)
        self.zs2 = nn.Linear(WIDTH, WIDTH)
        self.zs3 = nn.Linear(WIDTH, WIDTH)
        self.zsa1 = nn.Linear(WIDTH + action_size, WIDTH)
        self.zsa2 = nn.Linear(WIDTH, WIDTH)
        self.zsa3 = nn.Linear(WIDTH, WIDTH)

    def zs(self, observation: Tensor) -> Tensor:
        return avg_l1_norm(self.zs3(elu(self.zs2(elu(self.zs1(observation))))))

    def zsa(self, zs: Tensor, action: Tensor) -> Tensor:
        return self.zsa3(elu(self.zsa2(elu(self.zsa1(torch.cat([zs, action], 1))))))


class Head(nn.Module):
    """One critic."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.first = nn.Linear(observation_size + action_size, WIDTH)
        self.hidden1 = nn.Linear(3 * WIDTH, WIDTH)
        self.hidden2 = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, observation_action: Tensor, embeddings: Tensor) -> Tensor:
        phi = avg_l1_norm(self.first(observation_action))
        return self.out(elu(self.hidden2(elu(self.hidden1(torch.cat([phi, embeddings], 1))))))


class Critic(nn.Module):
    """Two heads that share nothing; `[B, 2]`."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.heads = nn.ModuleList(Head(observation_size, action_size) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor, zsa: Tensor, zs: Tensor) -> Tensor:
        inputs, embeddings = torch.cat([observation, action], 1), torch.cat([zsa, zs], 1)
        return torch.cat([head(inputs, embeddings) for head in self.heads], 1)


class Actor(nn.Module):
    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.first = nn.Linear(observation_size, WIDTH)
        self.hidden1 = nn.Linear(2 * WIDTH, WIDTH)
        self.hidden2 = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, action_size)

    def forward(self, observation: Tensor, zs: Tensor) -> Tensor:
        phi = avg_l1_norm(self.first(observation))
        return torch.tanh(self.out(relu(self.hidden2(relu(self.hidden1(torch.cat([phi, zs], 1)))))))


class PrioritizedReplay(Replay):
    """Loss-adjusted prioritized replay (LAP)."""

    def __init__(self, observation_size: int, action_size: int, **options: int):
        super().__init__(observation_size, action_size, **options)
        self.priorities = torch.zeros(self.capacity)
        self.max_priority = 1.0

    def add(self, *row: Any) -> None:
        self.priorities[self.position] = self.max_priority
        super().add(*row)

    def locate(self, u: Tensor) -> Tensor:
        """The smallest index whose cumulative priority reaches u times the total, for u in [0, 1)."""
        total = torch.cumsum(self.priorities[: self.size], 0)
        return torch.searchsorted(total, u * total[-1]).clamp(max=self.size - 1)

    def sample(self, batch: int) -> list[Tensor]:
        self.index = self.locate(torch.rand(batch))
        return self.rows(self.index.numpy())

    def update_priorities(self, new: Tensor) -> None:
        self.priorities[self.index] = new
        self.max_priority = max(self.max_priority, new.max().item())

    def reset_max_priority(self) -> None:
        self.max_priority = self.priorities[: self.size].max().item()


class TD7:
    """The seven networks, and one update."""

    def __init__(self, observation_size: int, action_size: int):
        self.updates = 0
        self.encoder = Encoder(observation_size, action_size)
        self.critic = Critic(observation_size, action_size)
        self.actor = Actor(observation_size, action_size)
        self.encoder_optimizer = torch.optim.Adam(self.encoder.parameters(), lr=LEARNING_RATE)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=LEARNING_RATE)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=LEARNING_RATE)
        self.fixed, self.fixed_target = frozen_copy(self.encoder), frozen_copy(self.encoder)
        self.critic_target, self.actor_target = frozen_copy(self.critic), frozen_copy(self.actor)
        self.run_min, self.run_max = 1e8, -1e8  # of the targets seen
        self.low, self.high = 0.0, 0.0  # between which the next value is clipped
        self.replay = PrioritizedReplay(observation_size, action_size)
        self.add = self.replay.add

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> np.ndarray:
        inputs = torch.as_tensor(observation, dtype=torch.float32)[None]
        return self.actor(inputs, self.fixed.zs(inputs))[0].numpy()

    def update(self) -> None:
        self.updates += 1
        observation, action, next_observation, reward, not_done = self.replay.sample(BATCH)
        self.learn_encoder(observation, action, next_observation)

        with torch.no_grad():
            next_zs = self.fixed_target.zs(next_observation)
            noise = (torch.randn_like(action) * TARGET_NOISE).clamp(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
            next_action = (self.actor_target(next_observation, next_zs) + noise).clamp(-1, 1)
            next_zsa = self.fixed_target.zsa(next_zs, next_action)
            next_q = self.critic_target(next_observation, next_action, next_zsa, next_zs)
            target = target_value(reward, not_done, next_q, self.low, self.high)
            self.run_max = max(self.run_max, target.max().item())
            self.run_min = min(self.run_min, target.min().item())
            zs = self.fixed.zs(observation)
            zsa = self.fixed.zsa(zs, action)

        delta = (self.critic(observation, action, zsa, zs) - target).abs()
        self.critic_optimizer.zero_grad()
        huber_lap(delta).backward()
        self.critic_optimizer.step()
        self.replay.update_priorities(priority(delta.detach()))

        if self.updates % POLICY_DELAY == 0:
            self.learn_actor(observation, zs)
        if self.updates % SYNC_EVERY == 0:
            self.swap()

    def learn_encoder(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> None:
        with torch.no_grad():
            next_zs = self.encoder.zs(next_observation)
        loss = mse_loss(self.encoder.zsa(self.encoder.zs(observation), action), next_zs)
        self.encoder_optimizer.zero_grad()
        loss.backward()
        self.encoder_optimizer.step()

    def learn_actor(self, observation: Tensor, zs: Tensor) -> None:
        """The gradient passes through the fixed g and the stepped critics into the action."""
        action = self.actor(observation, zs)
        loss = -self.critic(observation, action, self.fixed.zsa(zs, action), zs).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()

    def swap(self) -> None:
        """Fixed target takes the old fixed encoder, and only then fixed takes the online one."""
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.fixed_target.load_state_dict(self.fixed.state_dict())
        self.fixed.load_state_dict(self.encoder.state_dict())
        self.replay.reset_max_priority()
        self.low, self.high = self.run_min, self.run_max

    best = -float("inf")

    def episode_ended(self, ret: float) -> None:
        if ret > self.best:
            self.best, self.kept = ret, (frozen_copy(self.actor), frozen_copy(self.fixed))


def build(name: str) -> Contender:
    torch.manual_seed(0)
    return train_loop(TD7(17, 6), episodes=name.endswith("checkpoints"))
