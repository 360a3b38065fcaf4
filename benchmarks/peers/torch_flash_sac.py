"""FlashSAC in eager PyTorch, straight-line (arXiv 2604.04539): the shapes of `flash_sac`, a numpy replay."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Contender, train_loop
from peers.torch_td3 import Replay

ACTOR, CRITIC, BLOCKS, ATOMS, BOUND = 128, 256, 2, 101, 5.0
BATCH, DISCOUNT, POLYAK, UPDATES = 512, 0.99, 0.01, 1_000_000
TARGET_STD, REPEATS = 0.15, 16


class UnitLinear(nn.Linear):
    """Rows of length 1, from an orthogonal start; the bias starts at 0."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias)
        nn.init.orthogonal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        self.weight.div_(self.weight.norm(dim=1, keepdim=True).clamp(min=1e-8))


class UnitNorm(nn.BatchNorm1d):
    """Batch normalisation whose scale and shift together have the length √n."""

    def __init__(self, size: int):
        super().__init__(size, eps=1e-5, momentum=0.01)

    def normalise(self, x: Tensor, mode: str) -> Tensor:
        """By the running statistics ("eval"), by the batch ("train"), or by it without a trace ("target")."""
        seen = (None, None) if mode == "target" else (self.running_mean, self.running_var)
        return F.batch_norm(x, *seen, self.weight, self.bias, mode != "eval", self.momentum, self.eps)

    @torch.no_grad()
    def project(self) -> None:
        square = self.weight.square().sum() + self.bias.square().sum()
        factor = math.sqrt(self.num_features) * torch.rsqrt(square + 1e-8)
        self.weight.mul_(factor)
        self.bias.mul_(factor)


class Torso(nn.Module):
    """Embedding, residual blocks, root-mean-square norm."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.norm, self.embed = UnitNorm(inputs), UnitLinear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (
                    UnitLinear(width, 4 * width),
                    UnitNorm(4 * width),
                    UnitLinear(4 * width, width),
                    UnitNorm(width),
                )
            )
            for _ in range(BLOCKS)
        )
        self.post = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, mode: str) -> Tensor:
        h = self.embed(self.norm.normalise(x, mode))
        for up, up_norm, down, down_norm in self.blocks:
            inner = torch.relu(up_norm.normalise(up(h), mode))
            h = h + torch.relu(down_norm.normalise(down(inner), mode))
        return self.post * h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)

    @torch.no_grad()
    def project(self) -> None:
        self.post.mul_(math.sqrt(len(self.post)) * torch.rsqrt(self.post.square().sum() + 1e-8))


class Actor(nn.Module):
    """A tanh-squashed normal policy."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.torso = Torso(observation_size, ACTOR)
        self.mean = UnitLinear(ACTOR, action_size, bias=True)
        self.log_std = UnitLinear(ACTOR, action_size, bias=True)

    def forward(self, x: Tensor, mode: str, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before tanh, of the first `rows` rows."""
        h = self.torso(x, mode)[:rows]
        return self.mean(h), torch.exp(-10.0 + 6.0 * (1.0 + torch.tanh(self.log_std(h))))


class Critic(nn.Module):
    """Logits of a distribution on the atoms."""

    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.torso = Torso(observation_size + action_size, CRITIC)
        self.out = UnitLinear(CRITIC, ATOMS, bias=True)

    def forward(self, pair: Tensor, mode: str) -> Tensor:
        return self.out(self.torso(pair, mode))


def project(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, UnitLinear | UnitNorm | Torso):
            module.project()


def sample(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """An action and its log-probability."""
    noise = torch.randn_like(mean)
    u = mean + std * noise
    log_normal = -0.5 * noise.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return torch.tanh(u), (log_normal - log_slope).sum(-1)


def project_onto_atoms(probabilities: Tensor, positions: Tensor) -> Tensor:
    """Move probability [B, n] at positions [B, n] to the atoms."""
    place = (positions.clamp(-BOUND, BOUND) + BOUND) * ((ATOMS - 1) / (2.0 * BOUND))
    low = place.floor().clamp(max=ATOMS - 2)
    share, index = place - low, low.long()
    target = torch.zeros_like(probabilities)
    target.scatter_add_(1, index, probabilities * (1.0 - share))
    return target.scatter_add_(1, index + 1, probabilities * share)


class RewardScale:
    """Running variance and largest size of the discounted sum of rewards."""

    def __init__(self) -> None:
        self.sum, self.mean, self.var, self.count, self.largest = 0.0, 0.0, 1.0, 1e-4, 0.0

    def observe(self, reward: float, over: bool) -> None:
        self.sum = reward if over else DISCOUNT * self.sum + reward
        delta, total = self.sum - self.mean, self.count + 1.0
        self.var = (self.var * self.count + delta**2 * self.count / total) / total
        self.mean, self.count = self.mean + delta / total, total
        self.largest = max(self.largest, abs(self.sum))

    @property
    def divisor(self) -> float:
        return max(math.sqrt(self.var + 1e-8), self.largest / BOUND)


class FlashSAC:
    """The networks, their targets, and one update."""

    def __init__(self, observation_size: int, action_size: int):
        self.updates, self.left = 0, 0
        self.noise = torch.zeros(1, action_size)
        weights = np.arange(1, REPEATS + 1) ** -2.0
        self.edges = np.cumsum(weights / weights.sum())
        self.random = np.random.default_rng(1)
        self.actor = Actor(observation_size, action_size)
        self.critics = nn.ModuleList(Critic(observation_size, action_size) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(0.01), requires_grad=True)
        self.entropy = action_size * 0.5 * math.log(2.0 * math.pi * math.e * TARGET_STD**2)
        self.atoms = torch.linspace(-BOUND, BOUND, ATOMS)
        parameters = [*self.actor.parameters()], [*self.critics.parameters()], [self.log_alpha]
        optimisers = [torch.optim.Adam(own, lr=3e-4, fused=True) for own in parameters]
        rates = [torch.optim.lr_scheduler.CosineAnnealingLR(one, UPDATES, 1.5e-4) for one in optimisers]
        self.adam = dict(zip(("actor", "critics", "alpha"), zip(optimisers, rates, strict=True), strict=True))
        self.replay, self.scale = Replay(observation_size, action_size), RewardScale()

    def add(self, *row: Any) -> None:
        self.replay.add(*row)
        self.scale.observe(float(row[3]), bool(row[4]))

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> np.ndarray:
        """A sample of the policy, whose noise is kept for some steps."""
        mean, std = self.actor(torch.as_tensor(observation, dtype=torch.float32)[None], "eval")
        if self.left == 0:
            self.left = 1 + int(np.searchsorted(self.edges[:-1], self.random.random(), side="right"))
            self.noise = torch.randn_like(mean)
        self.left -= 1
        return torch.tanh(mean + std * self.noise)[0].numpy()

    def values(self, logits: Tensor) -> Tensor:
        return (logits.softmax(-1) * self.atoms).sum(-1)

    def step(self, name: str, loss: Tensor) -> None:
        optimiser, rate = self.adam[name]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()

    def update(self) -> None:
        self.updates += 1
        observation, action, next_observation, reward, not_done = self.replay.sample(BATCH)
        both = torch.cat([observation, next_observation])

        with torch.no_grad():
            next_action, next_log_prob = sample(*self.actor(next_observation, "eval"))
            pairs = torch.cat([both, torch.cat([action, next_action])], 1)
            logits = torch.stack([critic(pairs, "target")[BATCH:] for critic in self.targets])
            smaller = self.values(logits).argmin(0)
            chosen = logits[smaller, torch.arange(BATCH)].softmax(-1)
            moved = self.atoms - (self.log_alpha.exp() * next_log_prob)[:, None]
            target = project_onto_atoms(chosen, reward / self.scale.divisor + not_done * DISCOUNT * moved)

        losses = [
            -(target * critic(pairs, "train")[:BATCH].log_softmax(-1)).sum(-1).mean()
            for critic in self.critics
        ]
        self.step("critics", 0.5 * (losses[0] + losses[1]))
        project(self.critics)

        if self.updates % 2 == 1:
            self.critics.requires_grad_(False)
            drawn, log_prob = sample(*self.actor(both, "train", BATCH))
            pair = torch.cat([observation, drawn], 1)
            q = torch.minimum(*(self.values(critic(pair, "eval")) for critic in self.critics))
            self.step("actor", (self.log_alpha.exp().detach() * log_prob - q).mean())
            project(self.actor)
            self.critics.requires_grad_(True)
            self.step("alpha", -(self.log_alpha.exp() * (log_prob.detach() + self.entropy)).mean())

        with torch.no_grad():
            pairs_of = zip(self.critics.parameters(), self.targets.parameters(), strict=True)
            for parameter, slow in pairs_of:
                slow.lerp_(parameter, POLYAK)


def build(name: str) -> Contender:
    torch.manual_seed(0)
    return train_loop(FlashSAC(17, 6))
