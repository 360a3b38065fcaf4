"""TD3 as CleanRL's file for JAX has it: two jitted functions, and everything else on the host.

A re-statement of that loop (Huang et al. 2022, JMLR 23): Flax networks, optax, Stable-Baselines3's replay,
one program for the critics, and one for the actor and the targets in every second step.
"""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from stable_baselines3.common.buffers import ReplayBuffer

from peers import BATCH, CAPACITY, ENV, LEARNING_RATE, WIDTHS, Contender, train_loop
from peers.torch_td3 import DISCOUNT, POLICY_DELAY, POLYAK, TARGET_NOISE, TARGET_NOISE_CLIP


class Critic(nn.Module):
    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        x = jnp.concatenate([observation, action], -1)
        for width in WIDTHS:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)[:, 0]


class Actor(nn.Module):
    size: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        x = observation
        for width in WIDTHS:
            x = nn.relu(nn.Dense(width)(x))
        return jnp.tanh(nn.Dense(self.size)(x))


class State(TrainState):
    target_params: Any


class TD3:
    def __init__(self, seed: int = 0) -> None:
        env = gymnasium.make(ENV)
        self.updates, spaces = 0, (env.observation_space, env.action_space)
        spaces[0].dtype = np.dtype("float32")
        self.replay = ReplayBuffer(CAPACITY, *spaces, "cpu", handle_timeout_termination=False)
        self.key, *keys = jax.random.split(jax.random.key(seed), 4)
        inputs = [jnp.asarray(space.sample())[None] for space in spaces]
        actor, critic = Actor(spaces[1].shape[0]), Critic()

        def start(network: nn.Module, key: jax.Array, *inputs: jax.Array) -> State:
            params = network.init(key, *inputs)
            optimiser = optax.adam(LEARNING_RATE)
            return State.create(apply_fn=network.apply, params=params, target_params=params, tx=optimiser)

        self.actor = start(actor, keys[0], inputs[0])
        self.critics = start(critic, keys[1], *inputs), start(critic, keys[2], *inputs)
        self.policy = jax.jit(actor.apply)

        @jax.jit
        def step_critics(
            policy: State,
            critics: Any,
            observation: Any,
            action: Any,
            after: Any,
            reward: Any,
            done: Any,
            key: Any,
        ) -> Any:
            key, noise_key = jax.random.split(key)
            noise = TARGET_NOISE * jax.random.normal(noise_key, action.shape)
            noise = noise.clip(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
            next_action = (actor.apply(policy.target_params, after) + noise).clip(-1, 1)
            first, second = (critic.apply(one.target_params, after, next_action) for one in critics)
            target = reward + (1 - done) * DISCOUNT * jnp.minimum(first, second)

            def loss(params: Any) -> Any:
                q = critic.apply(params, observation, action)
                return jnp.square(q - target).mean(), q.mean()

            made = [jax.value_and_grad(loss, has_aux=True)(one.params) for one in critics]
            moved = tuple(one.apply_gradients(grads=g) for one, (_, g) in zip(critics, made, strict=True))
            return moved, [value for value, _ in made], key

        @jax.jit
        def step_actor(policy: State, critics: Any, observation: Any) -> Any:
            def loss(params: Any) -> Any:
                return -critic.apply(critics[0].params, observation, actor.apply(params, observation)).mean()

            value, gradient = jax.value_and_grad(loss)(policy.params)

            def follow(one: State) -> State:
                return one.replace(
                    target_params=optax.incremental_update(one.params, one.target_params, POLYAK)
                )

            policy = follow(policy.apply_gradients(grads=gradient))
            return policy, tuple(map(follow, critics)), value

        self.step_critics, self.step_actor = step_critics, step_actor

    def act(self, observation: np.ndarray) -> np.ndarray:
        return jax.device_get(self.policy(self.actor.params, observation[None].astype(np.float32)))[0]

    def add(self, observation: Any, action: Any, after: Any, reward: Any, terminated: Any) -> None:
        self.replay.add(observation, after, action, reward, np.array([terminated]), [{}])

    def episode_ended(self, ret: float) -> None:
        """Nothing waits for it."""

    def update(self) -> None:
        self.updates += 1
        data = self.replay.sample(BATCH)
        observation = data.observations.numpy()
        self.critics, _, self.key = self.step_critics(
            self.actor,
            self.critics,
            observation,
            data.actions.numpy(),
            data.next_observations.numpy(),
            data.rewards.flatten().numpy(),
            data.dones.flatten().numpy(),
            self.key,
        )
        if self.updates % POLICY_DELAY == 0:
            self.actor, self.critics, _ = self.step_actor(self.actor, self.critics, observation)


def build(name: str) -> Contender:
    agent = TD3()
    contender = train_loop(agent)

    def advance(steps: int) -> None:
        contender.advance(steps)
        jax.block_until_ready((agent.actor, agent.critics))

    return contender._replace(advance=advance)
