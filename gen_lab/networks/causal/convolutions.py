"""Convolutions that see only what comes before a pixel in reading order."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Window(NamedTuple):
    """The output at row i and column j reads `height` rows from i - `top` and `width` columns from j - `left` on."""

    height: int
    width: int
    top: int
    left: int


POINT = Window(1, 1, 0, 0)  # the pixel itself


def above(size: int) -> Window:
    """The rows strictly above, `size` wide and half as high."""
    return Window(size // 2, size, size // 2, size // 2)


def above_and_here(size: int) -> Window:
    """The rows above and the whole current row, or, masked, its left part: the upper half of size x size.

    The lower half of a causal kernel is zero, so it is left out of the computation.
    """
    return Window(size // 2 + 1, size, size // 2, size // 2)


def left(size: int) -> Window:
    """The pixel itself and those before it in its row: the left half of 1 x size."""
    return Window(1, size // 2 + 1, 0, size // 2)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, window: Window, stride: int = 1) -> Tensor:
    """x [B, I, H, W], kernel [O, I, height, width] -> [B, O, H / stride, W / stride], rounded up; zeros beyond.

    Always channels last in memory: one channel would lose that layout, and a quarter of the speed. Uneven margins are
    the input's: to cut them off the output would cost a copy of it, and its gradient two more that are turned around.
    """
    sides = []
    for size, length, before in zip(x.shape[-2:], window[:2], window[2:], strict=True):
        sides.append((before, (-(-size // stride) - 1) * stride + length - before - size))
    (top, bottom), (left, right) = sides
    if top == bottom and left == right:
        margins = (top, left)
    else:
        x, margins = F.pad(x, (left, right, top, bottom)), (0, 0)
    return F.conv2d(x, kernel, bias, stride, margins).contiguous(memory_format=torch.channels_last)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """One half of the channels of [B, 2p, ...], and the sigmoid of the other, by which a gate multiplies it.

    The other is copied: where it lies between the first half's numbers, torch takes four times as long for its sigmoid.
    """
    value, weight = x.chunk(2, 1)
    return value, weight.clone().sigmoid()


def mask(outputs: int, inputs: int, window: Window, groups: int, strict: bool, parts: int = 1) -> Tensor:
    """What a causal kernel may see, as ones [O, I, height, width]: mask A (`strict`) or B of the PixelCNN paper.

    Channels are split evenly into `groups`, one a colour; outputs that come in `parts` (a gate's two halves), each
    part so. At the pixel itself a colour sees the earlier ones, and unless strict itself.
    """
    ones = torch.ones(outputs, inputs, window.height, window.width)
    own = (torch.arange(outputs // parts) * groups // (outputs // parts)).repeat(parts)[:, None]
    other = torch.arange(inputs) * groups // inputs
    ones[:, :, window.top, window.left] = (other < own if strict else other <= own).float()
    ones[:, :, window.top, window.left + 1 :] = 0
    return ones


class Conv(nn.Module):
    """A convolution over a window, every place of it in use. `kernel()` is the one way to its weights."""

    def __init__(self, inputs: int, outputs: int, window: Window):
        super().__init__()
        like = nn.Conv2d(inputs, outputs, (window.height, window.width))
        self.window, self.stride = window, 1
        self.weight, self.bias = like.parameters()

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.kernel(), self.bias, self.window, self.stride)


class MaskedConv(Conv):
    """A causal convolution. The mask multiplies the weights at each use, and the parameters are never touched."""

    mask: Tensor  # [O, I, height, width]

    def __init__(self, inputs: int, outputs: int, window: Window, *, groups: int, strict: bool = False, parts: int = 1):
        super().__init__(inputs, outputs, window)
        self.register_buffer("mask", mask(outputs, inputs, window, groups, strict, parts), persistent=False)

    def kernel(self) -> Tensor:
        return self.weight * self.mask
