"""The nouns of gen_lab. Shapes: B batch, N images, K draws, Z latents, C x H x W pixels, L levels.

Images flow as levels: whole numbers 0, 1, ..., L - 1 of an integer type. A network scales them where they enter it;
what a model means rather than draws (a reconstruction) is a float in [0, 1].
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rl_lab.core.learner import Metrics


class Spec(NamedTuple):
    """What a model must know of the images before it is built."""

    shape: tuple[int, int, int]  # C, H, W
    levels: int  # L
    classes: int = 0  # a label is one of 0, ..., classes - 1; 0: the images have none

    @property
    def words(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        return f"{' x '.join(map(str, self.shape))}, {self.levels} levels{classes}"

    def written(self) -> list[int]:
        """As a checkpoint keeps it."""
        return [*self.shape, self.levels, self.classes]

    @classmethod
    def read(cls, written: Sequence[int]) -> "Spec":
        """Raises ValueError where that is no such list."""
        colours, height, width, levels, classes = (int(x) for x in written)
        if min(colours, height, width, levels - 1, classes + 1) < 1:
            raise ValueError(f"images of {[colours, height, width]}, {levels} levels, {classes} classes")
        return cls((colours, height, width), levels, classes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the levels that a model draws."""
        return torch.uint8 if self.levels <= 256 else torch.int64

    def scaled(self, x: Tensor) -> Tensor:
        """Levels to [0, 1], in torch's default dtype."""
        return x.to(torch.get_default_dtype()) / (self.levels - 1)

    def centred(self, x: Tensor) -> Tensor:
        """Levels to [-1, 1]."""
        return 2 * self.scaled(x) - 1

    def nearest(self, x: Tensor) -> Tensor:
        """Numbers on the scale of [0, 1] to the levels nearest to them."""
        return (x.clamp(0, 1) * (self.levels - 1)).round().to(self.dtype)


class Model(Protocol):
    """What the loop, the judge and the commands need of a model. A new one is a subclass of `core.learner.Learner`.

    It is built with `(spec, device, seed)` and, keyword-only, its own settings, sets `self.spec`, and defines `update`,
    `sample` and `score`. `state_dict` and `load_state_dict` come from Learner, for the attributes that `saved` names.
    `sample` and `score` draw from the generator they are given, so that evaluation never disturbs training.
    """

    spec: Spec  # of the images; its classes are 0 unless the model conditions on labels

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        """One step on levels [B, C, H, W] and, if the images have labels, labels [B] int64."""
        ...

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Levels [N, C, H, W]; with `label` [N], of those classes."""
        ...

    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named scores [B] of held-out levels [B, C, H, W]; {} for a model without a likelihood.

        `nll_nats` and `bits_per_dim` are exact. A model that can only bound its likelihood calls them
        `nll_bound_nats` and `bits_per_dim_bound`, and `iwae_samples` draws an image tighten the bound; 0 leaves that
        out.
        """
        ...

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


@runtime_checkable
class Autoencoder(Protocol):
    """A model that can reconstruct an image. Labels are for models that condition on them."""

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Levels [B, C, H, W] to the mean [B, C, H, W], floats in [0, 1]."""
        ...


@runtime_checkable
class LatentModel(Protocol):
    """An autoencoder whose code is a point of a continuous space. Labels are for models that condition on them."""

    def code(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Levels [B, C, H, W] to z [B, Z]."""
        ...

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, Z] to the mean [B, C, H, W], floats in [0, 1]."""
        ...


@runtime_checkable
class Meaning(Protocol):
    """A model that draws an image in two: what it is of, and then each pixel by itself, which looks like noise."""

    def pixel_means(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """What `sample` draws the pixels of around, from the same generator: [N, C, H, W], floats in [0, 1]."""
        ...


@runtime_checkable
class Inpainter(Protocol):
    """A model that can complete an image from some known pixels."""

    def inpaint(
        self, x: Tensor, known: Tensor, generator: torch.Generator, label: Tensor | None = None
    ) -> Tensor:  # levels [B, C, H, W], known [H, W] bool -> levels [B, C, H, W]: x where known, else drawn given it
        ...


@runtime_checkable
class ProgressiveSampler(Protocol):
    """A model that samples an image part by part and can show each stage."""

    def draw(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Iterator[Tensor]:
        """All images [N, C, H, W], as levels, after each pixel or row; the last ones are what `sample` returns."""
        ...
