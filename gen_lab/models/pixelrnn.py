"""PixelRNN: Row LSTM and Diagonal BiLSTM (van den Oord et al., 2016; https://arxiv.org/abs/1601.06759).

Reference models: H or H + W - 1 steps one after another in every layer, for what PixelCNN does in one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.networks.causal.convolutions import POINT, MaskedConv, above_and_here, left
from gen_lab.networks.causal.heads import Head
from gen_lab.networks.causal.sampling import Recomputed
from gen_lab.networks.labels import shifted, table
from gen_lab.types import Spec
from rl_lab.core.settings import Count


class PixelRNN(nn.Module):
    """Levels [B, C, H, W] -> params [B, steps P, H, W]; those of a pixel depend on earlier ones alone.

    One 7 x 7 mask A, residual layers of h-channel LSTMs on 2h maps, two 1x1.
    """

    def __init__(
        self,
        spec: Spec,
        head: Head,
        *,
        layer: Callable[..., nn.Module],  # RowLSTM or DiagonalBiLSTM
        channels: Count,  # h
        layers: Count,
        head_channels: Count,
    ):
        super().__init__()
        self.spec, groups, wide = spec, head.steps, 2 * channels
        self.field = max(spec.shape[1:])  # the whole image before it
        self.first = MaskedConv(spec.shape[0], wide, above_and_here(7), groups=groups, strict=True)
        self.layers = nn.ModuleList(layer(channels, groups) for _ in range(layers))
        self.widen = nn.ModuleList(MaskedConv(channels, wide, POINT, groups=groups) for _ in range(layers))
        self.hidden = MaskedConv(wide, head_channels, POINT, groups=groups)
        self.out = MaskedConv(head_channels, head.steps * head.outputs, POINT, groups=groups)
        self.classes = table(spec.classes, wide)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        y = shifted(self.first(self.spec.centred(x)), self.classes, label)
        for layer, widen in zip(self.layers, self.widen, strict=True):
            y = y + widen(layer(y))
        return self.out(self.hidden(y.relu()).relu())

    def cache(self, batch: int, label: Tensor | None = None) -> Recomputed:
        """There is none: for each pixel, all rows down to it anew."""
        return Recomputed(self, batch, {} if label is None else {"label": label}, crop=True)


class LSTM(nn.Module):
    """A cell that reads a line [B, 4h, L] and the states [B, h, L] of the line before, through a convolution."""

    def __init__(self, channels: int, size: int, padding: tuple[int, int]):
        super().__init__()
        self.state_to_state = nn.Conv1d(channels, 4 * channels, size, bias=False)
        self.start = nn.Parameter(torch.zeros(2, channels, 1))
        self.padding = padding

    def forward(self, lines: list[Tensor]) -> list[Tensor]:
        """Gates' inputs, line after line -> hidden states [B, h, L]."""
        hidden, cell = (state.expand(len(lines[0]), -1, lines[0].shape[-1]) for state in self.start)
        states = []
        for line in lines:
            gates = line + self.state_to_state(F.pad(hidden, self.padding))
            output, forget, enter, content = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
            hidden = output.sigmoid() * cell.tanh()
            states.append(hidden)
        return states


class RowLSTM(nn.Module):
    """Row by row: what it sees above a pixel is a triangle, the rest is lost."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.input_to_state = MaskedConv(2 * channels, 4 * channels, left(3), groups=groups, parts=4)
        self.lstm = LSTM(channels, 3, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2h, H, W] -> [B, h, H, W]."""
        return torch.stack(self.lstm([*self.input_to_state(x).unbind(2)]), 2)


class DiagonalBiLSTM(nn.Module):
    """Along both diagonals: all that is above, and left, of a pixel.

    But for the last pixel of the row above, where the 7 x 7 does not reach it: mask A has hidden each from its place.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.input_to_state = nn.ModuleList(
            MaskedConv(2 * channels, 4 * channels, POINT, groups=groups, parts=4) for _ in range(2)
        )
        self.lstm = nn.ModuleList(LSTM(channels, 2, (1, 0)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2h, H, W] -> [B, h, H, W]. The mirrored direction sees what is right of a pixel: it is a row late."""
        rightward = self.diagonal(0, x)
        leftward = self.diagonal(1, x.flip(3)).flip(3)
        return rightward + F.pad(leftward, (0, 0, 1, -1))

    def diagonal(self, direction: int, x: Tensor) -> Tensor:
        """Each state from those to the left of it and above it."""
        lines = skew(self.input_to_state[direction](x)).unbind(3)
        return unskew(torch.stack(self.lstm[direction]([*lines]), 3))


def skew(x: Tensor) -> Tensor:
    """Moves row i to the right by i places, [..., H, W] -> [..., H, H + W - 1]: diagonals become columns."""
    h, w = x.shape[-2:]
    return F.pad(x, (0, h)).flatten(-2)[..., :-h].unflatten(-1, (h, h + w - 1))


def unskew(x: Tensor) -> Tensor:
    """The way back, [..., H, H + W - 1] -> [..., H, W]."""
    h, across = x.shape[-2:]
    return F.pad(x.flatten(-2), (0, h)).unflatten(-1, (h, across + 1))[..., : across + 1 - h]
