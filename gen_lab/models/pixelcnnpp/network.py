"""PixelCNN++: two shifted streams, down and up again with long skips (numbers as in github.com/openai/pixel-cnn)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.models.pixelcnnpp.cache import Cache, concat_elu, gate
from gen_lab.networks.causal.convolutions import POINT, Window, above_and_here
from gen_lab.networks.causal.heads import Head
from gen_lab.networks.causal.weight_norm import NormedConv, NormedUp
from gen_lab.networks.labels import shifted, table
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Unit

ROWS = above_and_here(3)  # of the upper stream: 2 x 3
CORNER = Window(2, 2, 1, 1)  # of the left one
STD = 0.05  # of what a label adds at first, as in the authors' code: `start` scales everything else without it


class Streams(NamedTuple):
    """Two maps [B, F, h, w]: `upper` has seen the rows above a pixel, `left` those and what is left in its row."""

    upper: Tensor
    left: Tensor


class PixelCNNPP(nn.Module):
    """Levels [B, C, H, W] -> params [B, P, H, W]; those of a pixel depend on all earlier pixels.

    The head models the colours of a pixel. A channel of ones distinguishes the image from the zeros around it.
    """

    def __init__(
        self,
        spec: Spec,
        head: Head,
        *,
        channels: Count,  # F
        blocks: Count,  # on the way down at each resolution; one more on the way up but at the lowest
        resolutions: Count,  # each has half the rows and columns of the one before
        dropout: Unit,
    ):
        if head.steps > 1:
            raise UserError(
                "PixelCNN++ needs a head that models whole pixels: use model/head=logistic_mixture for colours"
            )
        super().__init__()
        self.field = max(spec.shape[1:])  # the whole image before it
        self.least = 2 ** (resolutions - 1) + 1  # pixels a side to learn from: two are left at the lowest resolution
        self.spec, lowest, c = spec, resolutions - 1, spec.shape[0] + 1
        self.upper, self.row_above = (
            NormedConv(c, channels, Window(2, 3, 2, 1)),
            NormedConv(c, channels, Window(1, 3, 1, 1)),
        )
        self.left = NormedConv(c, channels, Window(2, 1, 1, 1))
        block = lambda skips: Block(channels, skips, dropout, spec.classes)  # noqa: E731
        self.encoder = nn.ModuleList(nn.ModuleList(block(False) for _ in range(blocks)) for _ in range(resolutions))
        self.downs = nn.ModuleList(Down(channels) for _ in range(lowest))
        self.ups = nn.ModuleList(Up(channels) for _ in range(lowest))
        self.decoder = nn.ModuleList(
            nn.ModuleList(block(True) for _ in range(blocks + (i < lowest))) for i in range(resolutions)
        )
        self.out = NormedConv(channels, head.outputs, POINT)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        x = F.pad(self.spec.centred(x), (0, 0, 0, 0, 0, 1), value=1.0)
        streams, skips = Streams(self.upper(x), self.row_above(x) + self.left(x)), []
        for i, blocks in enumerate(self.encoder):
            streams = self.downs[i - 1](streams) if i else streams
            skips.append(streams)
            for block in blocks.children():
                streams = block(streams, label)
                skips.append(streams)
        streams = skips.pop()
        for i, blocks in reversed([*enumerate(self.decoder)]):
            streams = self.ups[i](streams, skips[-1]) if i < len(self.ups) else streams
            for block in blocks.children():
                streams = block(streams, label, skips.pop())
        return self.out(F.elu(streams.left))

    def cache(self, batch: int, label: Tensor | None = None) -> Cache:
        return Cache(self, batch, label)


class Block(nn.Module):
    """A residual block in each stream; the left one also sees the upper one. `skips`: both see the way down too."""

    def __init__(self, channels: int, skips: bool, dropout: float, classes: int):
        super().__init__()
        self.upper = Residual(channels, ROWS, int(skips), dropout, classes)
        self.left = Residual(channels, CORNER, 1 + skips, dropout, classes)

    def forward(self, streams: Streams, label: Tensor | None, skip: Streams | None = None) -> Streams:
        upper = self.upper(streams.upper, label, *([skip.upper] if skip else []))
        return Streams(upper, self.left(streams.left, label, upper, *([skip.left] if skip else [])))


class Residual(nn.Module):
    """x + gate(conv(dropout(conv(x) + what others know))), each taken through an ELU of both signs."""

    def __init__(self, channels: int, window: Window, others: int, dropout: float, classes: int):
        super().__init__()
        self.first = NormedConv(2 * channels, channels, window)
        self.shortcut = NormedConv(2 * channels * others, channels, POINT) if others else None
        self.second = NormedConv(2 * channels, 2 * channels, window, spread=0.1)
        self.classes = table(classes, 2 * channels)
        if self.classes:
            self.classes.weight.data *= STD
        self.dropout = dropout

    def forward(self, x: Tensor, label: Tensor | None, *others: Tensor) -> Tensor:
        y = self.first(concat_elu(x))
        if self.shortcut is not None:
            y = y + self.shortcut(torch.cat([concat_elu(other) for other in others], 1))
        y = self.second(F.dropout(concat_elu(y), self.dropout, self.training))
        return x + gate(shifted(y, self.classes, label))


class Down(nn.Module):
    """To half the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.upper = NormedConv(channels, channels, ROWS, stride=2)
        self.left = NormedConv(channels, channels, CORNER, stride=2)

    def forward(self, streams: Streams) -> Streams:
        return Streams(self.upper(streams.upper), self.left(streams.left))


class Up(nn.Module):
    """To twice the resolution, cut to that of `like`."""

    def __init__(self, channels: int):
        super().__init__()
        self.upper, self.left = NormedUp(channels, channels, 3), NormedUp(channels, channels, 2)

    def forward(self, streams: Streams, like: Streams) -> Streams:
        h, w = like.upper.shape[-2:]
        return Streams(self.upper(streams.upper)[..., :h, :w], self.left(streams.left)[..., :h, :w])
