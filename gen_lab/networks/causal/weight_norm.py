"""Weight normalisation that starts from data (Salimans & Kingma, 2016; https://arxiv.org/abs/1602.07868).

A kernel is gain * direction / |direction|, one gain an output. Before the first update the gains and biases are set
so that, on the first batch (of all ranks), every output has mean 0 and the standard deviation its layer asks for.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.networks.causal.convolutions import Window, convolve
from rl_lab.core import distributed


class NormedConv(nn.Module):
    """A convolution over a window, with normalised weights; `spread` of its outputs at the start."""

    outputs_at = 0  # the axis of the direction that counts outputs

    def __init__(self, inputs: int, outputs: int, window: Window, *, stride: int = 1, spread: float = 1.0):
        super().__init__()
        self.window, self.stride, self.spread = window, stride, spread
        self.direction = nn.Parameter(0.05 * torch.randn(outputs, inputs, window.height, window.width))
        self.gain, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def kernel(self) -> Tensor:
        others = [axis for axis in range(4) if axis != self.outputs_at]
        sizes = torch.linalg.vector_norm(self.direction, dim=others, keepdim=True)
        return self.direction * (self.gain.view_as(sizes) / sizes)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.kernel(), self.bias, self.window, self.stride)


class NormedUp(NormedConv):
    """The other way: twice as many rows and columns, each pair of rows from one; `across` columns wide, 2 or 3."""

    outputs_at = 1

    def __init__(self, inputs: int, outputs: int, across: int):
        super().__init__(outputs, inputs, Window(2, across, 0, 0))
        self.gain, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.beyond = across - 2

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, self.beyond)
        return F.conv_transpose2d(x, self.kernel(), self.bias, 2, padding, padding)


@torch.no_grad()
def start(network: nn.Module, x: Tensor, **condition) -> None:
    """Sets gains and biases from x [B, ...], layer after layer in one pass; other layers are left alone."""
    layers = [module for module in network.modules() if isinstance(module, NormedConv)]
    hooks = [layer.register_forward_hook(_whiten) for layer in layers]
    if layers:
        network(x, **condition)
    for hook in hooks:
        hook.remove()


def _whiten(layer: NormedConv, _inputs, output: Tensor) -> Tensor:
    mean, std = distributed.moments(output, (0, 2, 3))
    std = std + 1e-6
    layer.gain.mul_(layer.spread / std)
    layer.bias.sub_(mean).mul_(layer.spread / std)
    return (output - mean[:, None, None]) * (layer.spread / std)[:, None, None]
