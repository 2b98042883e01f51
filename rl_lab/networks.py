"""Torsos, and the heads that end them. A torso is built from a Spec and gives features [B, F]."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count
from rl_lab.types import Spec

TorsoFn = Callable[[Spec], nn.Module]


def linear(spec: Spec) -> nn.Module:
    """No torso at all: a head on it is a linear function, on one-hot observations a table."""
    return nn.Flatten()


def mlp(
    spec: Spec, hidden: Sequence[Count] = (64, 64), activation: str = "ReLU", orthogonal: bool = False
) -> nn.Module:
    """Fully connected layers of `hidden` units; `activation` names a class of torch.nn."""
    sizes = (math.prod(spec.obs_shape), *hidden)
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), getattr(nn, activation)()]
    return _orthogonal(nn.Sequential(nn.Flatten(), *layers), orthogonal)


def nature_cnn(spec: Spec, orthogonal: bool = False) -> nn.Module:
    """The network of Mnih et al. (2015): uint8 frames [B, C, H, W] -> features [B, 512]."""
    if len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < 36:
        raise UserError(f"agent.network=nature_cnn needs frames of at least 36 x 36, not observations "
                        f"{spec.obs_shape}; "
                        "use rl_lab.networks.mlp or rl_lab.networks.linear")  # fmt: skip
    convolutions = nn.Sequential(
        Frames(),
        nn.Conv2d(spec.obs_shape[0], 32, 8, stride=4), nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip
    features = _features(convolutions, spec)
    return _orthogonal(nn.Sequential(*convolutions, nn.Linear(features, 512), nn.ReLU()), orthogonal)


class Heads(nn.Module):
    """A torso and one linear head for each of `sizes`.

    `gains` scale orthogonal heads without an offset, None keeps torch's own start; a gain of 0 is a head of zeros
    without a bias, which on one-hot observations is a table (a bias would be shared by all states).
    """

    def __init__(self, spec: Spec, torso: TorsoFn, sizes: Sequence[int], gains: Sequence[float] | None = None):
        super().__init__()
        self.torso = torso(spec)
        features = _features(self.torso, spec)
        gains = gains or [None] * len(sizes)
        self.heads = nn.ModuleList(_head(features, size, gain) for size, gain in zip(sizes, gains, strict=True))

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """obs [B, ...] -> [B, size] for each head."""
        features = self.torso(obs)
        return tuple(head(features) for head in self.heads)


class Frames(nn.Module):
    """uint8 [B, C, H, W] -> float in [0, 1], channels last in memory: what convolutions on a CPU like best."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, memory_format=torch.channels_last) / 255


def _head(features: int, size: int, gain: float | None) -> nn.Linear:
    head = nn.Linear(features, size, bias=gain != 0)
    if gain == 0:
        nn.init.zeros_(head.weight)
    elif gain is not None:
        nn.init.orthogonal_(head.weight, gain)
        nn.init.zeros_(head.bias)
    return head


def _features(torso: nn.Module, spec: Spec) -> int:
    with torch.no_grad():
        return torso(torch.zeros(1, *spec.obs_shape, dtype=spec.obs_dtype)).shape[-1]


def _orthogonal(torso: nn.Module, wanted: bool) -> nn.Module:
    """Saxe et al. (2014), gain sqrt 2, as the reference implementations of A2C and PPO start."""
    for layer in torso.modules() if wanted else ():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            nn.init.zeros_(layer.bias)
    return torso
