"""Conditioning on labels [B], each one of 0, ..., classes - 1: how a model receives them, and how networks use them.

The `spec` of a model that does not condition on labels has 0 classes, and its networks are called without them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.types import Spec
from rl_lab.core.errors import UserError

# -- models


def conditioned(spec: Spec, conditional: bool) -> Spec:
    """The spec of a model of these images, without classes unless it is `conditional`. Raises UserError."""
    if conditional and not spec.classes:
        raise UserError(
            "model.conditional must be false: the images have no labels (an npz file gives them as train_labels and "
            "test_labels, a folder of pictures by a folder for each class)"
        )
    return spec if conditional else spec._replace(classes=0)


def known(spec: Spec, label: Tensor | None) -> Tensor | None:
    """The labels [B] that networks are called with; None without classes. Raises UserError if they are missing."""
    if spec.classes and label is None:
        raise UserError("model.conditional=true needs a label for each image: label=<class>, or a tensor of them")
    return label if spec.classes else None


def sampled(spec: Spec, label: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """The labels [N] to sample images of: those given, or class after class in turn; None without classes."""
    if spec.classes and label is None:
        return torch.arange(count, device=device) % spec.classes
    return label if spec.classes else None


# -- networks


def table(classes: int, size: int) -> nn.Embedding | None:
    """`size` learned numbers for each class; None without classes."""
    return nn.Embedding(classes, size) if classes else None


def shifted(x: Tensor, classes: nn.Embedding | None, label: Tensor | None) -> Tensor:
    """Maps x [B, F, H, W] plus a learned number for each map and class; x itself without labels."""
    return x if classes is None or label is None else x + classes(label)[..., None, None]


def row_shift(classes: nn.Embedding | None, label: Tensor | None, width: int) -> Tensor | None:
    """What `shifted` adds, for one row [B, F, W]; None without labels."""
    return None if classes is None or label is None else classes(label)[..., None].expand(-1, -1, width)


class Labelled(nn.Module):
    """An encoder that sees beside x one more channel, a learned picture of the label."""

    def __init__(self, encoder: Callable[..., nn.Module], spec: Spec, outputs: int):
        super().__init__()
        c, self.h, self.w = spec.shape
        self.picture = nn.Embedding(spec.classes, self.h * self.w)
        self.encoder = encoder((c + 1, self.h, self.w), outputs)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        picture = self.picture(label).view(-1, 1, self.h, self.w)
        return self.encoder(torch.cat([x, picture.to(x.dtype)], 1))


def labelled(encoder: Callable[..., nn.Module], spec: Spec, outputs: int) -> nn.Module:
    """The encoder as it is without classes; else one that is called with x and its labels."""
    return Labelled(encoder, spec, outputs) if spec.classes else encoder(spec.shape, outputs)


def with_one_hot(z: Tensor, label: Tensor, classes: int) -> Tensor:
    """[..., B, Z] followed by one-hot labels [B], [..., B, Z + classes]: the input of a decoder."""
    return torch.cat([z, F.one_hot(label, classes).to(z.dtype).expand(*z.shape[:-1], -1)], -1)
