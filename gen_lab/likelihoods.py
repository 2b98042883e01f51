"""What stands at the end of a decoder: a distribution over the levels of each pixel, independent given the latents.

Shapes: P parameters a pixel, C colours, L levels; ... any draws of the latents, B images.
"""

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from gen_lab.losses import bernoulli_nll, categorical_nll, discretised_logistic_log_prob, gaussian_log_prob
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Positive

FOLLOWED = 100  # updates, about so many of the last: what an optimal sigma averages


class Likelihood(Protocol):
    """A module, for it may learn; what it draws comes from the generator it is handed."""

    outputs: int  # P
    improper: str | None  # the name of its figure where that is no likelihood

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """-log p(x) [..., B] in nats, of x [B, C, H, W] in [0, 1] under params [..., B, P, H, W].

        Exact, or of a density a bound: then it is drawn, and above -log p(x) on average.
        """
        ...

    def mean(self, params: Tensor) -> Tensor:
        """[..., C, H, W] in [0, 1], of params [..., P, H, W]."""
        ...

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """[..., C, H, W] of the data's own levels, of params [..., P, H, W]."""
        ...


class Bernoulli(nn.Module):
    """Binary pixels, one logit each."""

    improper = None

    def __init__(self, spec: Spec):
        super().__init__()
        if spec.levels != 2:
            raise UserError(f"model/likelihood=bernoulli has binary pixels, and on {spec.levels} grey levels their "
                            "cross entropy is no likelihood; use binary pixels (data.protocol=binarised of digits, "
                            "threshold or dynamic of other data), or "
                            "model/likelihood=categorical, discretised_logistic or gaussian")  # fmt: skip
        self.outputs = spec.shape[0]

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli_nll(params, x)

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(params.sigmoid(), generator=generator)


class CrossEntropy(nn.Module):
    """Grey pixels under a Bernoulli's formula, as in PyTorch's example: sharp pictures, and nats of nothing.

    p^x (1 - p)^(1 - x) does not integrate to 1 over grey x, so that its figure bears no likelihood's name. Nor is
    there anything to draw a grey pixel from: a sample is the mean, cut to levels.
    """

    improper = "recon_bce"

    def __init__(self, spec: Spec):
        super().__init__()
        self.outputs, self.levels = spec.shape[0], spec.levels

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli_nll(params, x)

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return nearest_level(self.mean(params), self.levels)


class Categorical(nn.Module):
    """A logit for each level: no order among levels is assumed."""

    improper = None

    def __init__(self, spec: Spec):
        super().__init__()
        self.colours, self.levels = spec.shape[0], spec.levels
        self.outputs = self.colours * self.levels

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return categorical_nll(self.logits(params), x)

    def logits(self, params: Tensor) -> Tensor:
        """[..., C, L, H, W]."""
        return params.unflatten(-3, (self.colours, self.levels))

    def mean(self, params: Tensor) -> Tensor:
        level = torch.linspace(0, 1, self.levels, dtype=params.dtype, device=params.device)
        return (self.logits(params).softmax(-3) * level[:, None, None]).sum(-3)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """By the inverse of the distribution function."""
        below = self.logits(params).softmax(-3).cumsum(-3)[..., :-1, :, :]
        u = uniform_like(below[..., :1, :, :], generator)
        return (below <= u).sum(-3).to(params.dtype) / (self.levels - 1)


class DiscretisedLogistic(nn.Module):
    """A centre and a log-scale for each pixel and colour, on a scale of [-1, 1], cut into levels."""

    improper = None

    def __init__(self, spec: Spec):
        super().__init__()
        if spec.levels < 3:
            raise UserError("model/likelihood=discretised_logistic wants an order among three levels or more; "
                            "use model/likelihood=bernoulli on binary pixels")  # fmt: skip
        self.outputs, self.levels = 2 * spec.shape[0], spec.levels

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        level = (x * (self.levels - 1)).round()
        return -discretised_logistic_log_prob(level, *params.chunk(2, -3), self.levels).flatten(-3).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """The centre, which where its tails are cut is not quite the mean."""
        return ((params.chunk(2, -3)[0] + 1) / 2).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        centre, log_scale = params.chunk(2, -3)
        x = centre + log_scale.clamp(min=-7).exp() * uniform_like(centre, generator).logit()
        return nearest_level((x + 1) / 2, self.levels)


class Gaussian(nn.Module):
    """A normal density around the decoder's means; the data's levels become intervals by uniform noise.

    E[-log p(x + noise)] in nats of the intervals' width is a bound on -log of the interval's mass (Theis, van den
    Oord & Bethge, 2016): a probability of levels again, to be held beside those of the other likelihoods. The
    `spread` is `fixed` at sigma, or starts there and is one number that is learned (`shared`), a map of the decoder
    (`pixel`), or the root of the mean squared error, the best that there is (`optimal`; Rybkin, Daniilidis & Levine,
    2021): of the batch in training, of the last batches of training otherwise.
    """

    improper = None

    def __init__(
        self,
        spec: Spec,
        *,
        spread: Literal["fixed", "shared", "pixel", "optimal"] = "optimal",
        sigma: Positive = 0.1,  # of [0, 1]
        squashed: bool = False,  # means through a sigmoid
    ):
        super().__init__()
        self.colours, self.levels, self.spread, self.squashed = spec.shape[0], spec.levels, spread, squashed
        self.outputs = self.colours * (2 if spread == "pixel" else 1)
        start = torch.tensor(2 * math.log(sigma))
        if spread == "shared":
            self.log_var = nn.Parameter(start)
        else:
            self.register_buffer("log_var", start, persistent=spread == "optimal")

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.moments(params)
        x = dequantised(x.expand_as(mean), self.levels, generator).flatten(-3)
        mean = mean.flatten(-3)
        if self.spread == "optimal" and self.training:
            log_var = self.follow((x - mean).detach().square().mean())
        elif self.spread == "pixel":
            log_var = log_var.flatten(-3)
        return x.shape[-1] * math.log(self.levels - 1) - gaussian_log_prob(x, mean, log_var)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Means [..., C, H, W], and log-variances of that shape or []."""
        mean, *spread = params.split(self.colours, -3)
        return mean.sigmoid() if self.squashed else mean, self.log_var + 2 * spread[0] if spread else self.log_var

    def follow(self, squared_error: Tensor) -> Tensor:
        """The log of the batch's mean squared error [], which is kept as a running mean of variances."""
        kept = self.log_var.exp().lerp(squared_error.to(self.log_var.dtype), 1 / FOLLOWED)
        self.log_var.copy_(kept.log())
        return squared_error.log()

    def mean(self, params: Tensor) -> Tensor:
        return self.moments(params)[0].clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.moments(params)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return nearest_level(mean + (0.5 * log_var).exp() * noise, self.levels)


def dequantised(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """x in [0, 1], each value moved to a uniform place in the interval of width 1 / (L - 1) around its level."""
    return x + (uniform_like(x, generator) - 0.5) / (levels - 1)


def nearest_level(x: Tensor, levels: int) -> Tensor:
    """Any values to those of 0, 1 / (L - 1), ..., 1 that lie nearest."""
    return (x.clamp(0, 1) * (levels - 1)).round() / (levels - 1)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
