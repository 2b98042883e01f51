"""Gated PixelCNN: two stacks and no blind spot (van den Oord et al., 2016; https://arxiv.org/abs/1606.05328)."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from gen_lab.networks.causal.caches import CachedPixels, CachedRows, pointwise
from gen_lab.networks.causal.convolutions import POINT, Conv, MaskedConv, above, above_and_here, convolve, halves, left
from gen_lab.networks.causal.heads import Head
from gen_lab.networks.labels import table
from gen_lab.types import Spec
from rl_lab.core.settings import Count, Natural


class GatedPixelCNN(nn.Module):
    """Levels [B, C, H, W] -> params [B, steps P, H, W]; those of a pixel depend on all earlier ones in reach.

    The vertical stack knows the rows above: its first layer leaves out the current row, so that no later one needs
    to be shifted. The horizontal stack knows what is left in the row, and reads the vertical one.
    """

    def __init__(
        self,
        spec: Spec,
        head: Head,
        *,
        channels: Count,  # maps of each stack
        blocks: Count,  # layers after the first
        head_channels: Count,
        guide_channels: Natural = 0,  # of a map that is known beforehand and conditions each place
        embedding: Natural = 0,  # learned numbers for each level, where levels are names, not amounts; 0: the level
    ):
        super().__init__()
        self.spec, self.field = spec, 3 + blocks
        self.levels = nn.Embedding(spec.levels, embedding) if embedding else None
        layer = partial(
            Layer, channels=channels, head_channels=head_channels, groups=head.steps, classes=spec.classes,
            guides=guide_channels,
        )  # fmt: skip
        self.layers = nn.ModuleList(
            [layer(spec.shape[0] * (embedding or 1), 7, first=True)]
            + [layer(channels, 3, last=i == blocks - 1) for i in range(blocks)]
        )
        self.out = MaskedConv(head_channels, head.steps * head.outputs, POINT, groups=head.steps)

    def forward(self, x: Tensor, label: Tensor | None = None, guide: Tensor | None = None) -> Tensor:
        """label [B]; guide [B, guide_channels, H, W]."""
        vertical = horizontal = self.seen(x)
        gates = []
        for layer in self.layers:
            vertical, horizontal, gated = layer(vertical, horizontal, label, guide)
            gates.append(gated)
        return self.out(self.skips(gates).relu())

    def skips(self, gates: list[Tensor]) -> Tensor:
        """What all layers tell the head, [B, S, H, W]: their convolutions as one, of their gates side by side."""
        skips = [cast(Layer, layer).skip for layer in self.layers]
        kernel = torch.cat([skip.kernel() for skip in skips], 1)
        return convolve(torch.cat(gates, 1), kernel, torch.stack([skip.bias for skip in skips]).sum(0), POINT)

    def seen(self, x: Tensor) -> Tensor:
        """Levels [B, C, ...] as the first layer is shown them, [B, C E, ...]."""
        return self.spec.centred(x) if self.levels is None else self.levels(x.long()).movedim(-1, 2).flatten(1, 2)

    def cache(self, batch: int, label: Tensor | None = None, guide: Tensor | None = None) -> "Cache":
        return Cache(self, batch, label, guide)


class Layer(nn.Module):
    """Both stacks. The first has no horizontal residual, which would show a pixel to itself; the last needs none."""

    def __init__(
        self, inputs: int, size: int, *, channels: int, head_channels: int, groups: int, classes: int, guides: int,
        first: bool = False, last: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.vertical = Conv(inputs, 2 * channels, above(size) if first else above_and_here(size))
        self.link = Conv(2 * channels, 2 * channels, POINT)
        self.horizontal = MaskedConv(inputs, 2 * channels, left(size), groups=groups, strict=first, parts=2)
        self.skip = MaskedConv(channels, head_channels, POINT, groups=groups)
        self.residual = None if last else MaskedConv(channels, channels, POINT, groups=groups)
        self.first = first
        self.classes = table(classes, 4 * channels)
        self.guide = Conv(guides, 4 * channels, POINT) if guides else None

    def forward(self, vertical: Tensor, horizontal: Tensor, label: Tensor | None, guide: Tensor | None):
        seen = self.vertical(vertical)
        here = self.horizontal(horizontal) + self.link(seen)
        condition = self.condition(label, guide)
        if condition is not None:
            for_vertical, for_horizontal = condition.chunk(2, 1)
            seen, here = seen + for_vertical, here + for_horizontal
        gated = gate(here)
        if self.residual:
            residual = self.residual(gated)
            horizontal = residual if self.first else horizontal + residual
        return gate(seen), horizontal, gated

    def condition(self, label: Tensor | None, guide: Tensor | None) -> Tensor | None:
        """What is added before the gates of the vertical and of the horizontal stack, [B, 4p, 1 or H, 1 or W]."""
        added = None if label is None or self.classes is None else self.classes(label)[..., None, None]
        if guide is None or self.guide is None:
            return added
        return self.guide(guide) if added is None else added + self.guide(guide)


def gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other, [B, 2p, ...] -> [B, p, ...]."""
    value, weight = halves(x)
    return value.tanh() * weight


class Cache:
    """The same network: the vertical stack one row after another, the horizontal one pixel after another."""

    def __init__(self, net: GatedPixelCNN, batch: int, label: Tensor | None, guide: Tensor | None):
        height, width = net.spec.shape[1:]
        self.layers = [CachedLayer(layer, batch, (height, width), label, guide) for layer in net.layers]
        self.first, self.out, self.seen, self.row = self.layers[0], pointwise(net.out, batch), net.seen, 0

    def begin_row(self) -> None:
        row = None
        for layer in self.layers:
            row = layer.begin_row(row, self.row)

    def end_row(self) -> None:
        self.first.vertical.push(self.first.horizontal.shown())
        self.row += 1

    def show(self, column: int, x: Tensor) -> None:
        """Levels [B, C], as far as they are known."""
        self.first.horizontal.show(column, self.seen(x))

    def ask(self, column: int) -> Tensor:
        """[B, steps P]."""
        skips, horizontal = self.first.ask(column)
        for layer in self.layers[1:]:
            layer.horizontal.show(column, horizontal)
            skip, residual = layer.ask(column)
            skips = skips + skip
            if residual.shape[1]:
                horizontal = horizontal + residual
        return torch.addmm(self.out[0], skips.relu(), self.out[1])


class CachedLayer:
    """A Layer of the cache."""

    def __init__(self, layer, batch: int, size: tuple[int, int], label: Tensor | None, guide: Tensor | None):
        self.vertical = CachedRows.of(layer.vertical, batch, size[1])
        self.horizontal = CachedPixels(layer.horizontal, batch, size[1])
        self.link, self.channels = layer.link, layer.skip.kernel().shape[0]
        condition = layer.condition(label, guide)
        self.condition = None if condition is None else condition.expand(-1, -1, *size).chunk(2, 1)
        ends = [pointwise(conv, batch) for conv in (layer.skip, layer.residual) if conv]
        self.ends = torch.cat([bias for bias, _ in ends], 1), torch.cat([matrix for _, matrix in ends], 1)

    def begin_row(self, row: Tensor | None, number: int) -> Tensor:
        """Takes the row [B, I, W] of the vertical stack below (the first layer has kept its own); returns its row."""
        if row is not None:
            self.vertical.push(row)
        seen = self.vertical.row()
        here = self.link(seen[:, :, None])[:, :, 0]
        if self.condition:
            for_vertical, for_horizontal = (condition[:, :, number] for condition in self.condition)
            seen, here = seen + for_vertical, here + for_horizontal
        self.horizontal.begin_row(here)
        return gate(seen)

    def ask(self, column: int) -> tuple[Tensor, Tensor]:
        """What it adds to the skips [B, S] and to the horizontal stack [B, p]; of the last layer [B, 0]."""
        both = torch.addmm(self.ends[0], gate(self.horizontal.ask(column)), self.ends[1])
        return both[:, : self.channels], both[:, self.channels :]
