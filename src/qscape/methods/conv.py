"""DrQ-v2: agents that learn from images (Yarats et al. 2021, arXiv 2107.09645).

A convolutional encoder f turns the image x of an observation into features. Only the critics' loss trains it.
The actor and the target networks read its features without a gradient. Each network has a trunk on them,
h = tanh(LayerNorm(W f(x) + b)), and sees h beside the entries of the observation that are no pixels. In an
update every image is shifted at random by up to a few pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from qscape.nets import Actor, Critic
from qscape.nets.conv import Convolutions, ImageStage, Layer, image_layout, min_image_size
from qscape.offpolicy.base import Base
from qscape.offpolicy.sockets import (
    Architecture,
    Composition,
    Context,
    Nets,
    PartState,
    Representation,
    Version,
)
from qscape.ops.shift import random_shift
from qscape.replay.storage import OBSERVATIONS
from qscape.types import Batch, Key, Metrics, Scalar, Spec, setting


@dataclasses.dataclass(frozen=True)
class Conv(Representation):
    """A convolutional encoder for images, trained by the critics' loss, with random shifts (DrQ-v2)."""

    name: ClassVar[str] = "conv"
    takes_images: ClassVar[bool] = True
    splits_observations: ClassVar[bool] = True  # the image is the actor's too
    joint_loss_weight: ClassVar[float | None] = 1.0

    channels: int = setting(32, "Channels of every convolution.", within=">= 1")
    kernel: int = setting(3, "Height and width of the convolutions' kernels.", within=">= 1")
    strides: tuple[int, ...] = setting((2, 1, 1, 1), "Stride of each convolution.", within=">= 1")
    width: int = setting(
        50, "Numbers that a network's trunk makes of the features.", within=">= 1", tune=("choice", 50, 100)
    )
    shift: int = setting(
        4,
        "Pixels by which images are shifted at random, at most, along each axis; 0: no shift.",
        within=">= 0",
    )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Channels, kernel size and stride of each convolution."""
        return tuple((self.channels, self.kernel, stride) for stride in self.strides)

    def overrides(self, agent: Composition) -> Mapping[str, Any]:
        return {"next_observation": "derived", "replay_capacity": 100_000}

    def fits(self, spec: Spec, base: Base) -> str | None:
        if spec.frame is None:
            return "conv is for images, and observations here are vectors; leave conv out."
        least = min_image_size(self.layers)
        if len(spec.frame) <= 3 and min(image_layout(spec.frame)[1][:2]) >= least:
            return None
        return (
            f"conv needs images of at least {least} × {least} with one axis of channels at most, and these "
            f"are {spec.frame}; wrap it in gymnasium.wrappers.GrayscaleObservation, ResizeObservation and "
            "FrameStackObservation, set fewer conv.strides, or, if they are boards, leave conv out and take "
            "gymnasium.wrappers.FlattenObservation."
        )

    def init(self, key: Key, nets: Nets, spec: Spec, base: Base, actor: PyTree) -> PartState:
        assert spec.frame is not None
        return PartState(params=Convolutions(key, spec.frame, (), self.layers, offset=-0.5))

    def encoder_params(self, state: PartState, which: Version) -> Convolutions:
        """Return the encoder that learns, for the target networks too."""
        return state.params

    def actor_embeddings(self, encoder: Convolutions, obs: Array) -> list[Array]:
        return [encoder(jax.lax.slice_in_dim(obs, 0, encoder.pixels, axis=-1))]

    def critic_embeddings(self, encoder: Convolutions, obs: Array, action: Array) -> list[Array]:
        return self.actor_embeddings(encoder, obs)

    def augment(self, batch: Batch, spec: Spec, key: Key) -> Batch:
        """Shift the image of every observation of the batch, each by its own number of pixels."""
        if not self.shift:
            return batch
        frame = spec.frame
        assert frame is not None
        names = ("observation", "next_observation", *sorted(OBSERVATIONS & batch.extra.keys()))
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

        def shifted(name: str, obs: Array) -> Array:
            image, vector = jnp.split(obs, [spec.pixels], axis=-1)
            return jnp.concatenate([random_shift(keys[name], image, frame, self.shift), vector], -1)

        extra = {k: shifted(k, v) if k in keys else v for k, v in batch.extra.items()}
        return batch._replace(
            observation=shifted("observation", batch.observation),
            next_observation=shifted("next_observation", batch.next_observation),
            extra=extra,
        )

    def learn(
        self, params: Convolutions, state: PartState, context: Context, batch: Batch, key: Key
    ) -> tuple[Scalar, Metrics, None]:
        """Return 0: the encoder has no loss of its own beside that of the critics."""
        return jnp.zeros(()), {}, None

    def actor(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Actor:
        k_stage, k_torso, k_head = jax.random.split(key, 3)
        stage, size = self._make_stage(k_stage, spec)
        return architecture.actor(stage, size + conditioning, k_torso, k_head, spec)

    def critic(self, key: Key, architecture: Architecture, spec: Spec, conditioning: int = 0) -> Critic:
        k_stage, k_body = jax.random.split(key)
        stage, size = self._make_stage(k_stage, spec)
        return architecture.critic(stage, size + spec.action_size + conditioning, k_body)

    def _make_stage(self, key: Key, spec: Spec) -> tuple[ImageStage, int]:
        """Make the trunk of a network, and return how many numbers of the observation come out of it."""
        assert spec.frame is not None
        height, width = Convolutions.output_size(spec.frame, self.layers)
        stage = ImageStage(key, height * width * self.channels, self.width, spec.pixels)
        return stage, self.width + spec.observation_size - spec.pixels
