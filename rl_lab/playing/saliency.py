"""Which part of its observation an agent acts on: the gradient of its choice, and Grad-CAM.

The gradient is that of Simonyan, Vedaldi and Zisserman (2014; https://arxiv.org/abs/1312.6034), section 3; Grad-CAM
that of Selvaraju et al. (2017; https://arxiv.org/abs/1610.02391), equations 1 and 2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from rl_lab.core.errors import UserError
from rl_lab.types import View

Saliency = Literal["gradient", "grad_cam"]
Score = Callable[[Tensor], Tensor]  # obs [N, C, H, W] -> [N], by operations that autograd can follow


def saliency_of(method: Saliency, view: Callable[[Tensor], View], obs: Tensor) -> Tensor:
    """How much each place of obs [N, C, H, W] counts in the choice that `view` shows, [N, H, W], at least 0."""
    return METHODS[method](lambda x: choice(view(x)), obs)


def choice(view: View) -> Tensor:
    """What is explained, [N]: the greatest action value, or the log-probability of the likeliest action."""
    best = view.bars.amax(-1)
    return best.log() if view.kind == "probabilities" else best


def gradient(score: Score, obs: Tensor) -> Tensor:
    """|d score / d x|, summed over channels: [N, H, W]. x is obs or, where a layer turns its bytes into numbers, these:
    of standardised frames a pixel's slope is that by its deviation.
    """
    leaves, y, _ = traced(score, obs)
    slopes = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
    return torch.stack([slope.abs().reshape(obs.shape).sum(1) for slope in slopes if slope is not None]).sum(0)


def grad_cam(score: Score, obs: Tensor) -> Tensor:
    """Where the last convolution, after its activation, raises the score: [N, H, W]."""
    _, y, layers = traced(score, obs)
    outputs = [layer.output for layer in layers]
    slopes = torch.autograd.grad(y.sum(), outputs, allow_unused=True) if outputs else ()
    reached = [i for i, slope in enumerate(slopes) if slope is not None]
    if not reached:
        raise UserError("saliency=grad_cam needs a network with convolutions; saliency=gradient takes any network")
    last = reached[-1]
    heat = weighed(outputs[last].detach().float(), slopes[last].float())
    return laid_out(heat, [layer.window for layer in layers[: last + 1]], (obs.shape[-2], obs.shape[-1]))


def weighed(features: Tensor, slopes: Tensor) -> Tensor:
    """ReLU(sum_k alpha_k A^k), alpha_k the mean of channel k's slopes: [N, K, h, w] twice -> [N, h, w]."""
    return (slopes.mean((-2, -1), keepdim=True) * features).sum(1).relu()


class Window(NamedTuple):
    """What of its input a layer's units look at, along (y, x)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def laid_out(heat: Tensor, windows: Sequence[Window], size: tuple[int, int]) -> Tensor:
    """[N, h, w] -> [N, H, W]: each unit at the middle of what it sees of the input, the rest interpolated.

    Beyond the outermost middles it goes on as it is there. Stretching h x w over the whole input, as is common, would
    move the Nature network's corner units eleven pixels outwards.
    """
    height, width = heat.shape[-2:]
    axes = [
        _places(n, windows, axis, pixels) for axis, (n, pixels) in enumerate(zip((height, width), size, strict=True))
    ]
    y, x = torch.meshgrid(*(a.to(heat) for a in axes), indexing="ij")
    grid = torch.stack([x, y], -1).expand(len(heat), *size, 2)
    return F.grid_sample(heat[:, None], grid, "bilinear", "border", align_corners=True)[:, 0]


def _places(units: int, windows: Sequence[Window], axis: int, pixels: int) -> Tensor:
    """Where each pixel lies among the units' middles along an axis, [pixels]: -1 at the first's, 1 at the last's."""
    first, apart = 0.0, 1.0  # pixels: the middle of the first unit, and the distance to the next
    for window in windows:
        first += ((window.size[axis] - 1) / 2 - window.padding[axis]) * apart
        apart *= window.stride[axis]
    return 2 * (torch.arange(pixels) - first) / (apart * max(1, units - 1)) - 1


# -- a look inside the network


class Layer(NamedTuple):
    """A layer that has run: its output [N, K, h, w], and what its units look at."""

    output: Tensor
    window: Window


def traced(score: Score, obs: Tensor) -> tuple[list[Tensor], Tensor, list[Layer]]:
    """What of obs is a float leaf, the score, and the layers that it went through, from the first convolution on.

    Of bytes the leaves are what layers of the network make of them: it is explained where it acted. Where no layer
    does (Stable-Baselines3 divides by 255 before its first), the bytes are taken as numbers.
    """
    with torch.enable_grad(), _layers(len(obs)) as layers, _numbers() as leaves:
        y = score(obs) if obs.dtype == torch.uint8 else None
    if y is None or not leaves:
        leaves = [obs.to(torch.float32, copy=True).requires_grad_()]
        with torch.enable_grad(), _layers(len(obs)) as layers:
            y = score(leaves[0])
    if not y.requires_grad:
        raise UserError("saliency needs an agent whose choice has a gradient with respect to what it sees: a network")
    return leaves, y, layers


@contextmanager
def _numbers() -> Iterator[list[Tensor]]:
    """What layers make of bytes [N, ...], as many numbers: each a leaf from there on."""
    leaves: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Any) -> Any:
        if next(module.children(), None):
            return None  # its parts are asked
        seen = inputs[0] if inputs else None
        if not (isinstance(seen, Tensor) and seen.dtype == torch.uint8 and isinstance(output, Tensor)):
            return None
        if not output.is_floating_point() or output.numel() != seen.numel():
            return None
        leaves.append(output.detach().float().requires_grad_())
        return leaves[-1]

    handle = register_module_forward_hook(keep)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def _layers(count: int) -> Iterator[list[Layer]]:
    """Convolutions and whatever else makes pictures [count, K, h, w] after them, as they run in any network."""
    layers: list[Layer] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        begins = isinstance(module, nn.Conv2d)
        if (begins or layers) and isinstance(output, Tensor) and output.ndim == 4 and len(output) == count:
            layers.append(Layer(output, _window(module)))

    handle = register_module_forward_hook(keep)
    try:
        yield layers
    finally:
        handle.remove()


def _window(module: nn.Module) -> Window:
    """In a layer without a kernel a pixel sees only itself."""
    pair = lambda x: tuple(x) if isinstance(x, tuple | list) else (x, x)
    size, stride, padding = (
        pair(getattr(module, name, d)) for name, d in (("kernel_size", 1), ("stride", 1), ("padding", 0))
    )
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        padding = tuple((k - 1) / 2 for k in size) if module.padding == "same" else (0, 0)
    return Window(size, stride, padding)


METHODS = {"gradient": gradient, "grad_cam": grad_cam}
