"""Torsos: built from a Spec, they turn observations into features [B, F]."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural
from rl_lab.types import Spec

TorsoFn = Callable[[Spec], nn.Module]


def linear(spec: Spec) -> nn.Module:
    """No torso at all: a head on it is a linear function, on one-hot observations a table."""
    return _flat(spec)


def mlp(
    spec: Spec,
    *,
    hidden: Sequence[Count],
    activation: str = "ReLU",
    orthogonal: bool = False,
    layer_norm: bool = False,  # before each activation
) -> nn.Module:
    """Fully connected layers of `hidden` units; `activation` names a class of torch.nn."""
    sizes = (math.prod(spec.obs_shape), *hidden)
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        norm = [nn.LayerNorm(outputs)] if layer_norm else []
        layers += [nn.Linear(inputs, outputs), *norm, getattr(nn, activation)()]
    return _orthogonal(nn.Sequential(_flat(spec), *layers), orthogonal)


def nature_cnn(
    spec: Spec, features: Natural = 512, orthogonal: bool = False, layer_norm: bool = False, bf16: bool = False
) -> nn.Module:
    """The network of Mnih et al. (2015): uint8 frames [B, C, H, W] -> features [B, 512]; 0: the convolutions alone.

    layer_norm: before each ReLU, of an image over the channels of each place, as the released code of PQN has it;
    bf16: see `Bf16`.
    """
    _flat(spec)
    if len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < 36:
        raise UserError(
            f"agent.network=nature_cnn needs frames of at least 36 x 36, not observations "
            f"{spec.obs_shape}; choose agent/network=mlp or agent/network=linear"
        )

    def norm(kind: type[nn.Module], size: int) -> list[nn.Module]:
        return [kind(size)] if layer_norm else []

    convolutions = nn.Sequential(
        Frames(),
        nn.Conv2d(spec.obs_shape[0], 32, 8, stride=4),
        *norm(ChannelNorm, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        *norm(ChannelNorm, 64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1),
        *norm(ChannelNorm, 64),
        nn.ReLU(),
        nn.Flatten(),
    )
    dense = []
    if features:
        dense = [nn.Linear(features_of(convolutions, spec), features), *norm(nn.LayerNorm, features), nn.ReLU()]
    torso = _orthogonal(nn.Sequential(*convolutions, *dense), orthogonal)
    return Bf16(torso) if bf16 else torso


class ChannelNorm(nn.LayerNorm):
    """Layer norm of an image [B, C, H, W] over the C channels of each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Bf16(nn.Module):
    """A torso that computes in bfloat16 wherever a gradient will be asked for, and in float32 elsewhere.

    Parameters stay float32. Faster where the processor has bfloat16 (x86: avx512_bf16, amx_bf16), slower elsewhere.
    """

    def __init__(self, torso: nn.Module):
        super().__init__()
        self.torso = torso

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=torch.is_grad_enabled()):
            return self.torso(x).float()


class Frames(nn.Module):
    """uint8 [B, C, H, W] -> float in [0, 1], channels last in memory: what convolutions on a CPU like best."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, memory_format=torch.channels_last) / 255


class Pixels(nn.Flatten):
    """uint8 [B, ...] -> float [B, F] in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float() / 255


def _flat(spec: Spec) -> nn.Module:
    if not spec.obs_shape:
        raise UserError("env.obs=index is a bare number, and networks need a vector; use env.obs=one_hot")
    return Pixels() if spec.obs_dtype == torch.uint8 else nn.Flatten()


def features_of(torso: nn.Module, spec: Spec) -> int:
    if type(torso).forward is nn.Module.forward:
        raise UserError(
            f"agent.network={type(torso).__name__} is a whole model, and this agent wants the layers below "
            "its values; choose agent/network=mlp or agent/network=linear"
        )
    with torch.no_grad():
        return torso(torch.zeros(1, *spec.obs_shape, dtype=spec.obs_dtype)).shape[-1]


def _orthogonal(torso: nn.Module, wanted: bool) -> nn.Module:
    """Saxe et al. (2014), gain sqrt 2, as the reference implementations of A2C and PPO start."""
    for layer in torso.modules() if wanted else ():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return torso
