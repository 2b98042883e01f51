"""The nouns of gen_lab. Shapes: B batch, N images, K draws, Z latents, C x H x W pixels."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rl_lab.core.learner import Metrics


class Spec(NamedTuple):
    """What a model must know of the images before it is built."""

    shape: tuple[int, int, int]  # C, H, W
    levels: int  # each value is one of 0, 1/(levels - 1), ..., 1


class Model(Protocol):
    """A learner that samples; it is updated on x [B, C, H, W] in [0, 1].

    `sample` and `score` draw from the generator they are handed: looking at a model never disturbs its training.
    """

    def update(self, x: Tensor) -> Metrics: ...
    def sample(self, count: int, generator: torch.Generator) -> Tensor: ...  # [N, C, H, W] of the data's own levels
    def score(self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0) -> dict[str, Tensor]:
        """Named scores [B] of held-out images; {} without a likelihood.

        Where the likelihood can only be bounded, `iwae_samples` draws an image tighten the bound; 0 leaves that out.
        """
        ...

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


@runtime_checkable
class Autoencoder(Protocol):
    """A model that can also be asked what it keeps of an image."""

    def reconstruct(self, x: Tensor) -> Tensor: ...  # [B, C, H, W] in [0, 1], the mean
