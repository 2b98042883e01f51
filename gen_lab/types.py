"""The nouns of gen_lab. Shapes: B batch, N images, K draws, Z latents, C x H x W pixels."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rl_lab.core.learner import Metrics


class Spec(NamedTuple):
    """What a model must know of the images before it is built."""

    shape: tuple[int, int, int]  # C, H, W
    levels: int  # each value is one of 0, 1/(levels - 1), ..., 1
    classes: int = 0  # a label is one of 0, ..., classes - 1; 0: the images have none


class Model(Protocol):
    """A learner that samples; it is updated on x [B, C, H, W] in [0, 1] and, where there are any, labels [B] int64.

    `sample` and `score` draw from the generator they are handed: looking at a model never disturbs its training.
    """

    spec: Spec  # of what it models; its classes are 0 where it leaves labels unused

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics: ...
    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """[N, C, H, W] of the data's own levels; with `label` [N], of those classes."""
        ...

    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named scores [B] of held-out images; {} without a likelihood.

        `nll_nats` and `bits_per_dim` are exact. Where the likelihood can only be bounded, they are called
        `nll_bound_nats` and `bits_per_dim_bound`, and `iwae_samples` draws an image tighten the bound; 0 leaves that
        out.
        """
        ...

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


@runtime_checkable
class Autoencoder(Protocol):
    """A model that can also be asked what it keeps of an image."""

    def reconstruct(self, x: Tensor) -> Tensor: ...  # [B, C, H, W] in [0, 1], the mean


@runtime_checkable
class LatentModel(Protocol):
    """An autoencoder whose code is a point of a space that one can walk in. Labels are for models that want them."""

    def code(self, x: Tensor, label: Tensor | None = None) -> Tensor: ...  # [B, C, H, W] -> z [B, Z]
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...  # -> the mean [B, C, H, W] in [0, 1]


@runtime_checkable
class Inpainter(Protocol):
    """A model that can complete an image of which some pixels are known."""

    def inpaint(
        self, x: Tensor, known: Tensor, generator: torch.Generator, label: Tensor | None = None
    ) -> Tensor:  # x [B, C, H, W], known [H, W] bool -> [B, C, H, W]: x where known, a draw of the rest given it
        ...


@runtime_checkable
class Draughtsman(Protocol):
    """A model that draws an image little by little and lets one watch."""

    def draw(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Iterator[Tensor]:
        """All images [N, C, H, W] as they stand, after each pixel or row; the last ones are what `sample` returns."""
        ...
