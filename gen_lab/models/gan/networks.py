"""Generators and discriminators: DCGAN (Radford et al., 2016; https://arxiv.org/abs/1511.06434), and small MLPs.

Images are [B, C, H, W] in [-1, 1], latents z [B, Z]. With classes, a generator reads an embedding of the label beside
z, and a discriminator adds to its logit how well its features agree with one (Miyato & Koyama, 2018).
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gen_lab.networks.labels import table
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count

SMALL = 7  # pixels: a DCGAN halves images until no side is longer
STD = 0.02  # of the initial weights


class Generator(nn.Module):
    """z, and labels [B] where there are classes -> images."""

    def __init__(self, spec: Spec, latents: int, body: nn.Module):
        super().__init__()
        self.classes = table(spec.classes, latents)
        self.body = body  # of `inputs(spec, latents)` numbers

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.classes is not None and label is not None:
            z = torch.cat([z, self.classes(label)], 1)
        return self.body(z)


def inputs(spec: Spec, latents: int) -> int:
    """Numbers that a generator's body reads: z, and as many for the label."""
    return 2 * latents if spec.classes else latents


class Discriminator(nn.Module):
    """Images, and labels [B] where there are classes -> logits [B]."""

    def __init__(self, spec: Spec, body: nn.Module, features: int, bias: bool):
        super().__init__()
        self.body = body  # to features [B, F]
        self.logit = nn.Linear(features, 1, bias=bias)
        self.classes = table(spec.classes, features)
        if self.classes:
            nn.init.normal_(self.classes.weight, 0, STD)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        features = self.body(x)
        logit = self.logit(features).squeeze(1)
        if self.classes is not None and label is not None:
            logit = logit + (features * self.classes(label)).sum(1)
        return logit


def dcgan_generator(spec: Spec, latents: int, *, channels: Count) -> nn.Module:
    """A linear layer, then transposed convolutions of 4 x 4 that double: [... 4, 2, 1] x `channels` maps, C at last.

    Batch norm and ReLU after all but the last, which ends in tanh. 3,576,704 parameters for 100 latents, 64 channels
    and 3 x 64 x 64 pixels, as in PyTorch's example.
    """
    times, h, w = halvings(spec)
    maps = [channels * 2**i for i in reversed(range(times))]
    stem = nn.Linear(inputs(spec, latents), maps[0] * h * w, bias=False), nn.Unflatten(1, (maps[0], h, w))
    layers = [*stem, nn.BatchNorm2d(maps[0]), nn.ReLU()]
    for wide, narrow in pairwise(maps):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    layers += [nn.ConvTranspose2d(maps[-1], spec.shape[0], 4, 2, 1, bias=False), nn.Tanh()]
    return Generator(spec, latents, nn.Sequential(*layers).apply(start))


def dcgan_discriminator(
    spec: Spec, *, channels: Count, norm: Literal["batch", "layer", "none"], spectral: bool
) -> nn.Module:
    """Convolutions of 4 x 4 that halve, [1, 2, 4 ...] x `channels` maps, each with LeakyReLU(0.2); then a logit.

    `norm` after all but the first; `spectral` normalises the weights (Miyato et al., 2018). 2,765,568 parameters for
    64 channels and 3 x 64 x 64 pixels, as in PyTorch's example.
    """
    times, h, w = halvings(spec)
    maps, bias = [spec.shape[0], *(channels * 2**i for i in range(times))], norm == "none"
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(pairwise(maps)):
        normed = [] if i == 0 or bias else [nn.BatchNorm2d(wide) if norm == "batch" else nn.GroupNorm(1, wide)]
        layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=bias), *normed, nn.LeakyReLU(0.2)]
    net = Discriminator(spec, nn.Sequential(*layers, nn.Flatten()), maps[-1] * h * w, bias).apply(start)
    return net.apply(normalise) if spectral else net


def halvings(spec: Spec) -> tuple[int, int, int]:
    """How often images are halved, at least twice, and what H and W that leaves. Raises UserError."""
    _, h, w = spec.shape
    times = 2
    while max(h, w) > SMALL * 2**times:
        times += 1
    if h % 2**times or w % 2**times:
        raise UserError(
            f"a DCGAN halves images {times} times, and {h} x {w} cannot be halved that often; "
            "use 8, 16, 28, 32 or 64 pixels or model=gan_mlp"
        )
    return times, h >> times, w >> times


def start(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02), those of batch norm ~ N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0, STD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, STD)


def normalise(module: nn.Module) -> None:
    """Divides weights by their largest singular value, tracked by one step of power iteration a pass."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        spectral_norm(module)


def mlp_generator(spec: Spec, latents: int, *, hidden: Count, layers: Count) -> nn.Module:
    """Hidden layers of ReLUs, and tanh at last."""
    body, width = perceptron(inputs(spec, latents), hidden, layers, nn.ReLU())
    pixels = nn.Linear(width, math.prod(spec.shape))
    return Generator(spec, latents, nn.Sequential(*body, pixels, nn.Tanh(), nn.Unflatten(1, spec.shape)))


def mlp_discriminator(spec: Spec, *, hidden: Count, layers: Count, spectral: bool) -> nn.Module:
    """Hidden layers of LeakyReLU(0.2), no norm; `spectral` as above."""
    body, width = perceptron(math.prod(spec.shape), hidden, layers, nn.LeakyReLU(0.2))
    net = Discriminator(spec, nn.Sequential(nn.Flatten(), *body), width, bias=True)
    return net.apply(normalise) if spectral else net


def perceptron(inputs: int, hidden: int, layers: int, activation: nn.Module) -> tuple[list[nn.Module], int]:
    """Hidden layers, and the size of their output."""
    widths = [inputs, *[hidden] * layers]
    return [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), activation)], hidden
