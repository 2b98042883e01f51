"""PixelCNN: masked convolutions in residual blocks (van den Oord et al., 2016; https://arxiv.org/abs/1601.06759)."""

import torch
from torch import Tensor, nn

from gen_lab.networks.causal.caches import CachedPixels, pointwise
from gen_lab.networks.causal.convolutions import POINT, MaskedConv, above_and_here
from gen_lab.networks.causal.heads import Head
from gen_lab.networks.labels import row_shift, shifted, table
from gen_lab.types import Spec
from rl_lab.core.settings import Count


class PixelCNN(nn.Module):
    """Levels [B, C, H, W] -> params [B, steps P, H, W]; those of a pixel depend on earlier ones alone.

    One 7 x 7 mask A, blocks on 2h maps (ReLU, 1x1 to h, ReLU, 3x3 mask B, ReLU, 1x1 to 2h, add), two 1x1. What stands
    right above a pixel is in part out of sight: the blind spot that the gated PixelCNN removes.
    """

    def __init__(self, spec: Spec, head: Head, *, channels: Count, blocks: Count, head_channels: Count):
        super().__init__()
        self.spec, groups = spec, head.steps
        self.field = 3 + blocks  # rows above, and columns to either side, that an output may depend on
        self.first = MaskedConv(spec.shape[0], 2 * channels, above_and_here(7), groups=groups, strict=True)
        self.blocks = nn.ModuleList(Block(channels, groups) for _ in range(blocks))
        self.hidden = MaskedConv(2 * channels, head_channels, POINT, groups=groups)
        self.out = MaskedConv(head_channels, head.steps * head.outputs, POINT, groups=groups)
        self.classes = table(spec.classes, 2 * channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = shifted(self.first(self.spec.centred(x)), self.classes, label)
        for block in self.blocks:
            h = block(h)
        return self.out(self.hidden(h.relu()).relu())

    def cache(self, batch: int, label: Tensor | None = None) -> "Cache":
        return Cache(self, batch, label)


class Block(nn.Module):
    """A residual block on 2h maps."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.narrow = MaskedConv(2 * channels, channels, POINT, groups=groups)
        self.look = MaskedConv(channels, channels, above_and_here(3), groups=groups)
        self.widen = MaskedConv(channels, 2 * channels, POINT, groups=groups)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.widen(self.look(self.narrow(h.relu()).relu()).relu())


def cached(block, batch: int, width: int):
    """The convolutions of a Block, one pixel after another."""
    return pointwise(block.narrow, batch), CachedPixels(block.look, batch, width), pointwise(block.widen, batch)


class Cache:
    """The same network, one pixel after another."""

    def __init__(self, net: PixelCNN, batch: int, label: Tensor | None):
        self.spec, width = net.spec, net.spec.shape[2]
        self.first = CachedPixels(net.first, batch, width)
        self.shift = row_shift(net.classes, label, width)
        self.blocks = [cached(block, batch, width) for block in net.blocks]
        self.hidden, self.out = pointwise(net.hidden, batch), pointwise(net.out, batch)

    def begin_row(self) -> None:
        self.first.begin_row(self.shift)
        for _, look, _ in self.blocks:
            look.begin_row()

    def end_row(self) -> None:
        self.first.end_row()
        for _, look, _ in self.blocks:
            look.end_row()

    def show(self, column: int, x: Tensor) -> None:
        """Levels [B, C], as far as they are known."""
        self.first.show(column, self.spec.centred(x))

    def ask(self, column: int) -> Tensor:
        """[B, steps P]."""
        h = self.first.ask(column)
        for (bias, narrow), look, (shift, widen) in self.blocks:
            torch.clamp_min(torch.addmm(bias, h.relu(), narrow), 0, out=look.slots[column])
            h = torch.addmm(h.add_(shift), look.ask(column).relu_(), widen)
        return torch.addmm(self.out[0], torch.addmm(self.hidden[0], h.relu_(), self.hidden[1]).relu_(), self.out[1])
