"""Binary images whose distribution is known, so that a model's divergence from it can be measured in nats."""

import math
from itertools import product

import torch
from torch import Tensor

from gen_lab.data.images import CPU, Images
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Count, Natural, Unit


def xor_chain(
    *,
    height: Count,
    width: Count,
    flip: Unit,
    train: Count,  # images
    test: Count,
    seed: Natural,
) -> Images:
    """A fair first pixel; along the first row and column each pixel copies the one before; any other is the exclusive
    or of its left and upper left neighbours; each copy and each exclusive or is flipped with probability `flip`.

    Its entropy is ln 2 + (H W - 1) h(flip): 21.17337 nats for 8 x 8 and 0.1.
    """
    if height * width < 2:
        raise UserError("data.height x data.width = 1 x 1 is no chain: at least 2 pixels")
    room.memory(8.0 * max(train, test) * height * width, f"data.train={train} and data.test={test}")
    in_order = list(product(range(height), range(width)))

    def drawn(count: int, name: str) -> Tensor:
        u = torch.rand(count, height, width, generator=generator(stream(seed, name), CPU))
        flips = u < flip
        flips[:, 0, 0] = u[:, 0, 0] < 0.5
        x = torch.zeros_like(flips)
        for i, j in in_order:
            x[:, i, j] = _parents(x, i, j) ^ flips[:, i, j]
        return x.to(torch.uint8).unsqueeze(1)

    def log_prob(pixels: Tensor) -> Tensor:
        x = pixels[:, 0].bool()
        flipped = [x[:, i, j] ^ _parents(x, i, j) for i, j in in_order[1:]]
        wrong = torch.stack(flipped).double().sum(0)
        p = torch.tensor([1 - flip, flip], dtype=torch.double, device=x.device)
        return torch.xlogy(len(flipped) - wrong, p[0]) + torch.xlogy(wrong, p[1]) - math.log(2)

    name = f"xor_chain-{height}x{width}-{flip:g}"
    return Images(name, drawn(train, "train"), drawn(test, "test"), 2, log_prob=log_prob)


def _parents(x: Tensor, i: int, j: int) -> Tensor:
    """What pixel i, j of x [B, H, W] would be without a flip, [B]."""
    if i and j:
        return x[:, i, j - 1] ^ x[:, i - 1, j - 1]
    return x[:, i, j - 1] if j else x[:, i - 1, j] if i else torch.zeros_like(x[:, 0, 0])


def ising(
    *,
    height: Count,
    width: Count,
    coupling: float,  # J / kT; an infinite lattice orders at 0.4407
    train: Count,  # images
    test: Count,
    seed: Natural,
) -> Images:
    """Spins with p(x) proportional to exp(coupling sum s_i s_j) over neighbours, free at the edges (Ising, 1925).

    All 2^(H W) images are enumerated, so that the normaliser is exact: at most 16 pixels.
    """
    if height * width > 16:
        raise UserError(f"data.height x data.width = {height} x {width} is too large to enumerate: at most 16 pixels")
    room.memory(32.0 * max(train, test), f"data.train={train} and data.test={test}")
    every = torch.arange(2 ** (height * width)).unsqueeze(1) >> torch.arange(height * width) & 1
    every = every.to(torch.uint8).view(-1, 1, height, width)
    log_z = _bonds(every).mul(coupling).logsumexp(0)
    cumulative = (_bonds(every) * coupling - log_z).exp().cumsum(0)

    def drawn(count: int, name: str) -> Tensor:
        u = torch.rand(count, generator=generator(stream(seed, name), CPU), dtype=torch.double)
        return every[torch.searchsorted(cumulative, u).clamp(max=len(every) - 1)]

    def log_prob(pixels: Tensor) -> Tensor:
        return _bonds(pixels) * coupling - log_z.to(pixels.device)

    name = f"ising-{height}x{width}-{coupling:g}"
    return Images(name, drawn(train, "train"), drawn(test, "test"), 2, log_prob=log_prob)


def _bonds(pixels: Tensor) -> Tensor:
    """Equal neighbours less unequal ones, [B] float64, of pixels 0 or 1 [B, 1, H, W]."""
    s = 2 * pixels[:, 0].double() - 1
    return (s[:, 1:] * s[:, :-1]).sum((1, 2)) + (s[:, :, 1:] * s[:, :, :-1]).sum((1, 2))
