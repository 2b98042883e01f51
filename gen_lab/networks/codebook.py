"""Vector quantisation with a codebook that follows its data (van den Oord, Vinyals & Kavukcuoglu, 2017, appendix A.1).

Shapes: K codes of D dimensions, M vectors to be quantised.
"""

import torch
from torch import Tensor, nn

from rl_lab.core import distributed
from rl_lab.core.devices import double
from rl_lab.core.settings import Count, NonNegative, Positive, Unit


class Codebook(nn.Module):
    """Each code is the running mean of the vectors nearest to it: an online k-means, not a descent.

    A code that too few vectors choose is dead, and starts anew at one of them. With several ranks all follow the
    vectors of all, and codes start at vectors of the first rank.
    """

    vectors: Tensor  # [K, D]
    counts: Tensor  # [K], vectors an update
    sums: Tensor  # [K, D]

    def __init__(
        self,
        dimensions: int,
        *,
        codes: Count,
        decay: Unit,  # of the running sums, an update
        dead_below: NonNegative,  # vectors an update, on the running average; 0: codes may die
        smoothing: Positive = 1e-5,  # of counts, so that an unused code is not divided by 0
    ):
        super().__init__()
        self.decay, self.dead_below, self.smoothing = decay, dead_below, smoothing
        self.register_buffer("vectors", torch.randn(codes, dimensions))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dimensions))

    def nearest(self, z: Tensor) -> Tensor:
        """The code [M] int64 nearest to each of z [M, D]."""
        return torch.addmm(self.vectors.square().sum(1), z, self.vectors.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator) -> None:
        """Codes among the first vectors z [M, D], each of an equal share of them."""
        self.vectors.copy_(self._some(z, generator))
        self.counts.fill_(distributed.size() * len(z) / len(self.counts))
        self.sums.copy_(self.vectors * self.counts[:, None])

    @torch.no_grad()
    def follow(self, z: Tensor, code: Tensor, generator: torch.Generator) -> Tensor:
        """A step of the running means towards z [M, D], of these codes [M]; how many codes started anew, []."""
        counts = torch.zeros_like(self.counts).index_add_(0, code, torch.ones_like(z[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, code, z)
        self.counts.lerp_(distributed.total(counts), 1 - self.decay)
        self.sums.lerp_(distributed.total(sums), 1 - self.decay)
        dead = self.counts < self.dead_below
        self.counts.masked_fill_(dead, 1.0)
        self.sums.copy_(torch.where(dead[:, None], self._some(z, generator), self.sums))
        total = self.counts.sum()
        smoothed = (self.counts + self.smoothing) / (total + len(self.counts) * self.smoothing) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        return dead.sum()

    def _some(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """As many of z as there are codes."""
        some = torch.randint(len(z), (len(self.counts),), generator=generator, device=z.device)
        return distributed.of_first(z[some])

    def perplexity(self) -> Tensor:
        """How many codes the last hundreds of updates used, each as often as the others, would be as hard to guess."""
        return perplexity(self.counts)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy [] of how often each of K codes was used [K]: from 1, one alone, to K, all alike."""
    p = double(counts) / double(counts.sum())
    return torch.special.entr(p).sum().exp()


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """`code` whose gradient is passed to z as it is (Bengio, Leonard & Courville, 2013)."""
    return z + (code - z).detach()
