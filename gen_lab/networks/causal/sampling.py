"""Drawing images from a causal network pixel by pixel: naive, on the crop that matters, or from caches; all exact.

Shapes: N images, C x H x W pixels, P parameters a step, U uniform numbers a step.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gen_lab.networks.causal.heads import Head

Method = Literal["cached", "cropped", "naive"]


class Cache(Protocol):
    """A network evaluated for one pixel after another in reading order, and shown what was drawn there."""

    def begin_row(self) -> None: ...
    def end_row(self) -> None: ...
    def show(self, column: int, x: Tensor) -> None: ...  # levels [N, C], as far as they are known
    def ask(self, column: int) -> Tensor: ...  # [N, steps P]


class Known(NamedTuple):
    """Pixels that are given, and thus not drawn."""

    x: Tensor  # levels [N, C, H, W]
    where: Tensor  # [H, W] bool


class Recomputed:
    """Asks the whole network anew for each pixel; with `crop`, only for what that pixel can see."""

    def __init__(self, network, batch: int, condition: dict, crop: bool):
        self.network, self.condition, self.crop = network, condition, crop
        self.x, self.row = blank(network, batch), -1

    def begin_row(self) -> None:
        self.row += 1

    def end_row(self) -> None: ...

    def show(self, column: int, x: Tensor) -> None:
        self.x[:, :, self.row, column] = x

    def ask(self, column: int) -> Tensor:
        if not self.crop:
            return self.network(self.x, **self.condition)[:, :, self.row, column]
        field = self.network.field
        top, left = max(0, self.row - field), max(0, column - field)
        crop = ..., slice(top, self.row + 1), slice(left, column + field + 1)
        condition = {name: value[crop] if value.dim() == 4 else value for name, value in self.condition.items()}
        return self.network(self.x[crop], **condition)[:, :, self.row - top, column - left]


def blank(network, count: int) -> Tensor:
    """Levels [N, C, H, W] of 0, on the network's device."""
    spec, device = network.spec, next(network.parameters()).device
    return torch.zeros(count, *spec.shape, dtype=spec.dtype, device=device)


def stepper(network, batch: int, method: Method, condition: dict) -> Cache:
    if method == "cached":
        return network.cache(batch, **condition)
    return Recomputed(network, batch, condition, crop=method == "cropped")


@torch.inference_mode()
def draw(
    network,  # of gen_lab.models: `spec`, `field` and `cache`
    head: Head,
    count: int,
    generator: torch.Generator,
    *,
    condition: dict | None = None,  # what else the network is called with: label [N]
    known: Known | None = None,
    method: Method = "cached",
) -> Iterator[Tensor]:
    """The images, as levels [N, C, H, W], after each pixel: one tensor, written in place.

    Equal uniform numbers give equal images by every method. Known pixels go through the network as any others do,
    only that they are not drawn.
    """
    x, (_, height, width) = blank(network, count), network.spec.shape
    given = torch.zeros(height, width, dtype=torch.bool)
    if known is not None:
        x, given = torch.where(known.where, known.x.to(x), x), known.where
    dtype = next(network.parameters()).dtype
    u = torch.rand(height, width, head.steps, count, head.uniforms, generator=generator, device=x.device, dtype=dtype)
    cache = stepper(network, count, method, condition or {})
    for row, noise, skips in zip(x.unbind(2), u, given.tolist(), strict=True):
        cache.begin_row()
        for column, (pixel, uniform, skip) in enumerate(zip(row.unbind(2), noise.unbind(0), skips, strict=True)):
            if skip:
                cache.show(column, pixel)
                cache.ask(column)
            else:
                draw_pixel(cache, head, pixel, column, uniform)
            yield x
        cache.end_row()


def draw_pixel(cache: Cache, head: Head, pixel: Tensor, column: int, u: Tensor) -> None:
    """Writes on pixel [N, C] what uniform u [steps, N, U] draw, step by step, and shows it to the cache."""
    for step, (colours, uniform) in enumerate(zip(pixel.chunk(head.steps, 1), u.unbind(0), strict=True)):
        params = cache.ask(column).split(head.outputs, 1)[step]
        colours.copy_(head.draw(params, uniform))
        cache.show(column, pixel)
