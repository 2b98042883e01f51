"""Convolutions evaluated one row, then one pixel at a time, each thing once (after Ramachandran et al., 2017).

What is above a pixel is known for a whole row at once: one small convolution. What is left of it is one matrix product.
Shapes: B images, I inputs, O outputs, W columns of the input.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gen_lab.networks.causal.convolutions import Conv


class CachedRows:
    """A convolution computed a whole row at a time: it keeps the last rows it was shown, zeros before the first."""

    def __init__(self, kernel: Tensor, bias: Tensor | None, left: int, batch: int, width: int, stride: int = 1):
        self.kernel, self.bias, self.stride, self.left = kernel, bias, stride, left
        _, inputs, height, across = kernel.shape
        self.width = -(-width // stride)
        right = max(0, (self.width - 1) * stride + across - left - width)
        self.rows = kernel.new_zeros(batch, inputs, height, left + width + right)
        self.inside = slice(left, left + width)

    @classmethod
    def of(cls, conv: Conv, batch: int, width: int) -> "CachedRows":
        return cls(conv.kernel(), conv.bias, conv.window.left, batch, width, conv.stride)

    def push(self, row: Tensor) -> None:
        """row [B, I, W]."""
        if self.rows.shape[2] > 1:
            self.rows = self.rows.roll(-1, 2)
        self.rows[:, :, -1, self.inside] = row

    def row(self) -> Tensor:
        """[B, O, W / stride], of the rows shown last."""
        return F.conv2d(self.rows, self.kernel, self.bias, self.stride)[:, :, 0, : self.width]


class CachedPixels:
    """A convolution computed pixel by pixel, in reading order.

    `show` it its input at a column, `ask` for its output there; `begin_row` before each row.
    """

    def __init__(self, conv: Conv, batch: int, width: int):
        kernel, top, stride = conv.kernel(), conv.window.top, conv.stride
        across = min(conv.window.left + 1, conv.window.width)  # columns of the current row
        self.kernel = kernel[:, :, top, :across].permute(2, 1, 0).flatten(0, 1)  # [across I, O]
        self.above = CachedRows(kernel[:, :, :top], conv.bias, conv.window.left, batch, width, stride) if top else None
        self.constant = conv.bias.expand(batch, -1).contiguous()
        self.columns = -(-width // stride)
        self.now = kernel.new_zeros(batch, conv.window.left + width, kernel.shape[1])
        self.left = conv.window.left
        self.slots = self.now[:, self.left :].unbind(1)
        self.windows = [self.now[:, c * stride : c * stride + across].flatten(1) for c in range(self.columns)]

    def begin_row(self, row: Tensor | None = None) -> None:
        """What the rows above contribute to this one, and whatever else is known of it: `row` [B, O, W / stride]."""
        if self.above:
            here = self.above.row()
            row = here if row is None else row + here
        elif row is not None:
            row = row + self.constant[..., None]
        self.base = [self.constant] * self.columns if row is None else row.permute(2, 0, 1).contiguous().unbind(0)

    def end_row(self) -> None:
        if self.above:
            self.above.push(self.shown())

    def shown(self) -> Tensor:
        """The inputs [B, I, W] of the current row."""
        return self.now[:, self.left :].transpose(1, 2)

    def show(self, column: int, x: Tensor) -> None:
        """x [B, I], the input at a column."""
        self.slots[column].copy_(x)

    def ask(self, column: int) -> Tensor:
        """The output [B, O] at a column of the output, from all that was shown up to here."""
        return torch.addmm(self.base[column], self.windows[column], self.kernel)


def pointwise(conv: Conv, batch: int) -> tuple[Tensor, Tensor]:
    """Bias [B, O] and matrix [I, O] of a 1 x 1 convolution: a bias that need not be expanded is a fifth faster."""
    return conv.bias.expand(batch, -1).contiguous(), conv.kernel()[:, :, 0, 0].T.contiguous()
