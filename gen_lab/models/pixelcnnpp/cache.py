"""PixelCNN++ one pixel at a time: at half resolution every second pixel of every second row, and so on.

The upper stream advances once a row, the left one at each pixel. A pixel at row r and column c reaches resolution i
where 2^i divides both.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gen_lab.networks.causal.caches import CachedPixels, CachedRows, pointwise
from gen_lab.networks.causal.convolutions import halves
from gen_lab.networks.labels import row_shift


class Cache:
    """`net` is a PixelCNNPP; see its forward, which has the same order."""

    def __init__(self, net, batch: int, label: Tensor | None):
        self.spec, width = net.spec, net.spec.shape[2]
        widths = [-(-width // 2**i) for i in range(len(net.encoder))]
        self.upper, self.row_above = CachedRows.of(net.upper, batch, width), CachedRows.of(net.row_above, batch, width)
        self.left = CachedPixels(net.left, batch, width)
        self.encoder = [
            [CachedBlock(b, batch, w, label) for b in blocks] for blocks, w in zip(net.encoder, widths, strict=True)
        ]
        self.decoder = [
            [CachedBlock(b, batch, w, label) for b in blocks] for blocks, w in zip(net.decoder, widths, strict=True)
        ]
        self.downs = [CachedDown(down, batch, w) for down, w in zip(net.downs, widths, strict=False)]
        self.ups = [CachedUp(up, w) for up, w in zip(net.ups, widths, strict=False)]
        self.out, self.row = pointwise(net.out, batch), 0
        self.ones = net.out.bias.new_ones(batch, 1)

    def resolutions(self, place: int) -> int:
        """How many of them have a row, or a column, at this one."""
        return sum(place % 2**i == 0 for i in range(len(self.encoder)))

    def begin_row(self) -> None:
        self.reached = self.resolutions(self.row)
        self.left.begin_row(self.row_above.row())
        skips: list[Tensor] = []
        upper = self.upper.row()
        for i in range(self.reached):
            upper = self.downs[i - 1].begin_row() if i else upper
            skips.append(upper)
            for block in self.encoder[i]:
                upper = block.begin_row(upper)
                skips.append(upper)
            if i < len(self.downs):
                self.downs[i].upper.push(upper)
        coarse: Tensor | None = None
        for i in reversed(range(self.reached)):
            upper = self.ups[i].begin_row(coarse, self.row >> i & 1) if i < len(self.ups) else skips.pop()
            for block in self.decoder[i]:
                upper = block.begin_row(upper, skips.pop())
            coarse = upper

    def end_row(self) -> None:
        row = self.left.shown()
        for kept in self.upper, self.row_above:
            kept.push(row)
        self.left.end_row()
        for i in range(self.reached):
            for block in self.encoder[i] + self.decoder[i]:
                block.end_row()
            if i < len(self.downs):
                self.downs[i].left.end_row()
        self.row += 1

    def show(self, column: int, x: Tensor) -> None:
        """Levels [B, C]."""
        self.left.show(column, torch.cat([self.spec.centred(x), self.ones], 1))

    def ask(self, column: int) -> Tensor:
        """[B, P]."""
        reached = min(self.reached, self.resolutions(column))
        skips: list[Tensor] = []
        left = self.left.ask(column)
        for i in range(reached):
            left = self.downs[i - 1].left.ask(column >> i) if i else left
            skips.append(left)
            for block in self.encoder[i]:
                left = block.ask(column >> i, left)
                skips.append(left)
            if i < len(self.downs):
                self.downs[i].left.show(column >> i, left)
        coarse: Tensor | None = None
        for i in reversed(range(reached)):
            left = self.ups[i].ask(column >> i, coarse) if i < len(self.ups) else skips.pop()
            for block in self.decoder[i]:
                left = block.ask(column >> i, left, skips.pop())
            coarse = left
        return torch.addmm(self.out[0], F.elu(left), self.out[1])


class CachedBlock:
    """What the upper stream adds to the left one is computed for a whole row."""

    def __init__(self, block, batch: int, width: int, label: Tensor | None):
        self.upper, self.left = block.upper, block.left
        self.rows = [CachedRows.of(conv, batch, width) for conv in (block.upper.first, block.upper.second)]
        self.pixels = [CachedPixels(conv, batch, width) for conv in (block.left.first, block.left.second)]
        bias, matrix = pointwise(block.left.shortcut, 1)
        half = 2 * block.left.first.bias.shape[0]  # of the upper stream; the rest is of the skip
        self.bias, self.of_upper, self.of_skip = bias, matrix[:half].T, matrix[half:]
        self.upper_shift, self.left_shift = (
            row_shift(side.classes, label, width) for side in (block.upper, block.left)
        )

    def begin_row(self, upper: Tensor, skip: Tensor | None = None) -> Tensor:
        """Upper stream [B, F, w] -> [B, F, w]."""
        first, second = self.rows
        first.push(concat_elu(upper))
        y = first.row()
        if skip is not None:
            y = y + self.upper.shortcut(concat_elu(skip)[:, :, None])[:, :, 0]
        second.push(concat_elu(y))
        row = second.row()
        upper = upper + gate(row if self.upper_shift is None else row + self.upper_shift)
        self.pixels[0].begin_row(self.of_upper @ concat_elu(upper) + self.bias.T)
        self.pixels[1].begin_row(self.left_shift)
        return upper

    def end_row(self) -> None:
        for conv in self.pixels:
            conv.end_row()

    def ask(self, column: int, left: Tensor, skip: Tensor | None = None) -> Tensor:
        """Left stream [B, F] -> [B, F]."""
        first, second = self.pixels
        first.show(column, concat_elu(left))
        y = first.ask(column)
        if skip is not None:
            y = torch.addmm(y, concat_elu(skip), self.of_skip)
        second.show(column, concat_elu(y))
        return left + gate(second.ask(column))


class CachedDown:
    """`width`: of the finer resolution."""

    def __init__(self, down, batch: int, width: int):
        self.upper, self.left = CachedRows.of(down.upper, batch, width), CachedPixels(down.left, batch, width)

    def begin_row(self) -> Tensor:
        self.left.begin_row()
        return self.upper.row()


class CachedUp:
    """One coarse row makes two fine ones, one coarse pixel four: the later ones wait here. `width`: of the finer."""

    def __init__(self, up, width: int):
        self.upper, self.width = up.upper, width
        self.coarse: dict[int, Tensor] = {}  # by column
        kernel = up.left.kernel()  # [F, F, 2, 2]
        self.shape = (-1, 2, 2, kernel.shape[1])
        self.matrix = kernel.permute(0, 2, 3, 1).flatten(1)
        self.bias = up.left.bias.repeat(4)

    def begin_row(self, upper: Tensor | None, odd: int) -> Tensor:
        """The finer row [B, F, w]; `upper` [B, F, w / 2], or None where the coarser resolution has no row."""
        if upper is not None:
            self.pair = self.upper(upper[:, :, None])[..., : self.width]
        self.odd = odd
        return self.pair[:, :, odd]

    def ask(self, column: int, left: Tensor | None) -> Tensor:
        """The finer pixel [B, F]; `left` [B, F], or None where the coarser resolution has none."""
        if left is not None:
            self.coarse[column // 2] = torch.addmm(self.bias, left, self.matrix).view(self.shape)
        return self.coarse[column // 2][:, self.odd, column % 2]


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, [B, F, ...] -> [B, 2F, ...]."""
    return F.elu(torch.cat([x, -x], 1), inplace=True)


def gate(x: Tensor) -> Tensor:
    """One half of the channels times the sigmoid of the other, [B, 2F, ...] -> [B, F, ...]."""
    value, weight = halves(x)
    return value * weight
