"""Torsos: built from a Spec, they turn observations into features [B, F]."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rl_lab.core import distributed
from rl_lab.core.errors import UserError
from rl_lab.core.precision import reduced
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
    """Fully connected layers of `hidden` units; `activation` names a class of torch.nn. Raises UserError."""
    kind = _activation(activation)
    sizes = (math.prod(spec.obs_shape), *hidden)
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        norm = [nn.LayerNorm(outputs)] if layer_norm else []
        layers += [nn.Linear(inputs, outputs), *norm, kind()]
    return _orthogonal(nn.Sequential(_flat(spec), *layers), orthogonal)


def nature_cnn(spec: Spec, features: Natural = 512, orthogonal: bool = False, layer_norm: bool = False) -> nn.Module:
    """The network of Mnih et al. (2015): uint8 frames [B, C, H, W] -> features [B, 512]; 0: the convolutions alone.

    layer_norm: before each ReLU, of an image over the channels of each place, as the released code of PQN has it.
    """
    _check_size(spec, NATURE, "nature_cnn")
    hidden = [features] if features else []
    return cnn(
        spec,
        layers=NATURE,
        hidden=hidden,
        activation="ReLU",
        orthogonal=orthogonal,
        layer_norm=layer_norm,
        standardise=False,
    )


ACTIVATIONS = "torch.nn.modules.activation"
MIXING = nn.RReLU, nn.Softmax, nn.Softmin, nn.LogSoftmax  # noise, or all features of a layer
NATURE = (32, 8, 4), (64, 4, 2), (64, 3, 1)
SMALL = 5  # the side that agent/network=cnn_small needs


def cnn(
    spec: Spec,
    *,
    layers: Sequence[Sequence[Count]],  # of convolutions: channels, kernel, stride
    hidden: Sequence[Count],  # units of the dense layers after them
    activation: str,  # a class of torch.nn
    orthogonal: bool,
    layer_norm: bool,  # before each activation; of an image over the channels of each place
    standardise: bool,  # each pixel by its mean and deviation, once `gather` has found them
) -> nn.Module:
    """Convolutions of images [B, C, H, W], uint8 or float, and dense layers -> features [B, F]. Raises UserError."""
    _check_size(spec, layers, "cnn")
    if standardise and spec.obs_dtype != torch.uint8:
        raise UserError("agent.network.standardise=true is for frames of bytes, and these observations are numbers; "
                        "leave it out")  # fmt: skip
    kind, channels = _activation(activation), spec.obs_shape[0]
    convolutions: list[nn.Module] = [StandardFrames(spec.obs_shape) if standardise else Frames()]
    for outputs, kernel, stride in layers:
        norm = [ChannelNorm(outputs)] if layer_norm else []
        convolutions += [nn.Conv2d(channels, outputs, kernel, stride), *norm, kind()]
        channels = outputs
    convolutions += [nn.Flatten()]
    size = features_of(Convolutional(*convolutions), spec)
    dense: list[nn.Module] = []
    for outputs in hidden:
        dense += [nn.Linear(size, outputs), *([nn.LayerNorm(outputs)] if layer_norm else []), kind()]
        size = outputs
    return _orthogonal(Convolutional(*convolutions, *dense), orthogonal)


def _activation(name: str) -> Callable[[], nn.Module]:
    """Raises UserError."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"agent.network.activation={name} is no class of torch.nn, such as ReLU or ELU")
    if kind is not nn.Identity and not (kind.__module__ == ACTIVATIONS and kind not in MIXING and _keeps_shape(kind)):
        raise UserError(f"agent.network.activation={name} is no function of one number that draws no noise and needs "
                        "no settings; choose ReLU, ELU, Tanh or another such")  # fmt: skip
    return kind


def _keeps_shape(kind: type[nn.Module]) -> bool:
    x = torch.zeros(2, 4)
    try:
        return bool(kind()(x).shape == x.shape)
    except (TypeError, ValueError):  # of settings that it needs, or of another kind of input
        return False


def _check_size(spec: Spec, layers: Sequence[Sequence[Count]], name: str) -> None:
    """Raises UserError where the convolutions leave nothing of an observation."""
    _flat(spec)
    side = _smallest(layers)
    if len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < side:
        fits = len(spec.obs_shape) == 3 and SMALL <= min(spec.obs_shape[1:]) < side
        raise UserError(
            f"agent.network={name} needs frames of at least {side} x {side}, not observations {spec.obs_shape}; "
            f"choose {'agent/network=cnn_small, ' * fits}agent/network=mlp or agent/network=linear"
        )


def _smallest(layers: Sequence[Sequence[Count]]) -> int:
    """The side of the smallest frame that the convolutions leave a pixel of. Raises UserError."""
    side = 1
    for layer in reversed(layers):
        if len(layer) != 3:
            raise UserError(
                f"agent.network.layers: a convolution is [channels, kernel, stride], such as [32, 8, 4], not {[*layer]}"
            )
        _, kernel, stride = layer
        side = (side - 1) * stride + kernel
    return side


class Convolutional(nn.Sequential):
    """A torso of `Frames` and layers, in bfloat16 in training where that is chosen (see rl_lab.core.precision).

    Parameters and features stay float32. Its first layer, which no gradient reaches, can be run once for all epochs:
    see `prepared`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not reduced():
            return super().forward(x)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return super().forward(x).float()


def prepared(torso: nn.Module, obs: Tensor) -> Tensor:
    """Observations as numbers, which the torso takes too: for what is learned from in several epochs."""
    return torso[0](obs) if isinstance(torso, Convolutional) else obs


def lower(network: nn.Module) -> None:
    """Keeps in bfloat16 the weights that a network which never learns would turn into it at each call.

    What it computes in training is the same; float32 parameters may still be loaded into it.
    """
    for torso in network.modules():
        for layer in torso if isinstance(torso, Convolutional) else ():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.bfloat16()


def gather(network: nn.Module, obs: Tensor) -> None:
    """Adds obs [B, ...] to the statistics of every layer of the network that has some."""
    for layer in network.modules():
        if isinstance(layer, StandardFrames):
            layer.gather(obs)


class ChannelNorm(nn.LayerNorm):
    """Layer norm of an image [B, C, H, W] over the C channels of each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Frames(nn.Module):
    """uint8 [B, C, H, W] -> float in [0, 1], channels last in memory: what convolutions on a CPU like best.

    Frames that are floats already it leaves as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x if reduced() else x.float()  # bfloat16 where a run began in it
        x = self.scaled(x.float())
        return (x.bfloat16() if reduced() else x).contiguous(memory_format=torch.channels_last)

    def scaled(self, x: Tensor) -> Tensor:
        return x.div_(255)


class StandardFrames(Frames):
    """uint8 [B, C, H, W] -> float of mean 0 and deviation 1 at each pixel, by the statistics gathered so far.

    They are clipped to [-5, 5]: what was never seen while they were gathered, such as the first digit of one's own
    score, would else outweigh all the rest. See Burda et al. (2019), section 2.4.
    """

    count: Tensor
    mean: Tensor
    square: Tensor
    rate: Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(*shape))  # [C, H, W], of frames in [0, 1]
        self.register_buffer("square", torch.zeros(*shape))  # the sum of squared differences from it
        self.register_buffer("rate", torch.ones(*shape))  # 1 / deviation

    def scaled(self, x: Tensor) -> Tensor:
        return x.div_(255).sub_(self.mean).mul_(self.rate).clamp_(-FURTHEST, FURTHEST)

    @torch.no_grad()
    def gather(self, obs: Tensor) -> None:
        """obs uint8 [B, C, H, W], and those of all ranks. See Chan, Golub and LeVeque (1983), eq. 2.1."""
        count = len(obs) * distributed.size()
        variance, own = torch.var_mean(obs / 255, 0, correction=0)
        mean = distributed.mean(own)
        variance = distributed.mean(variance + (own - mean).square())
        total = self.count + count
        difference, share = mean - self.mean, (count / total).float()
        self.square += variance * count + difference.square() * self.count * share
        self.mean += difference * share
        self.count.copy_(total)
        self.rate.copy_((self.square / total).float().add(LEAST**2).rsqrt())


def standardises(network: nn.Module) -> bool:
    return any(isinstance(layer, StandardFrames) for layer in network.modules())


def steps_to_gather(network: nn.Module, steps: int) -> int:
    """Of the first `steps`, from which statistics of the inputs are taken: none where a network standardises nothing.

    Raises UserError where it does, and `steps` is 0.
    """
    if not standardises(network):
        return 0
    if not steps:
        raise UserError("agent.gather_steps=0 takes no statistics, and agent.network.standardise=true needs some; "
                        "set agent.gather_steps=4_096, or agent.network.standardise=false")  # fmt: skip
    return steps


LEAST = 0.01  # of a pixel's deviation: what never changes is not divided by 0
FURTHEST = 5  # deviations from the mean


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
