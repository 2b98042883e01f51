"""The likelihood at the end of a decoder: a distribution over the levels of each pixel, independent given the latents.

Shapes: P parameters a pixel, C colours, L levels; ... any draws of the latents, B images.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gen_lab.losses import bernoulli_nll, categorical_nll, discretised_logistic_log_prob, gaussian_log_prob
from gen_lab.types import Spec
from rl_lab.core import distributed
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Positive

HORIZON = 100  # updates that the running mean of an optimal sigma covers, roughly


class Likelihood(nn.Module):
    """A module, because it may learn; it draws from the generator it is given."""

    outputs: int  # P
    improper: str | None = None  # the name of its figure if that is not a likelihood

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """-log p(x) [..., B] in nats, of levels x [B, C, H, W] under params [..., B, P, H, W].

        Exact, or for a density a bound: a random number that is above -log p(x) on average.
        """
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """[..., C, H, W], floats in [0, 1], of params [..., P, H, W]."""
        raise NotImplementedError

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Levels [..., C, H, W] of params [..., P, H, W]."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Binary pixels, one logit each."""

    def __init__(self, spec: Spec):
        super().__init__()
        if spec.levels != 2:
            raise UserError(
                f"model/likelihood=bernoulli is for binary pixels; on {spec.levels} grey levels the cross entropy is "
                "no likelihood; use binary pixels (data.protocol=binarised of digits, threshold or dynamic of other "
                "data), or model/likelihood=categorical, discretised_logistic or gaussian"
            )
        self.outputs, self.spec = spec.shape[0], spec

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli_nll(params, x)

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(params.sigmoid(), generator=generator).to(self.spec.dtype)


class CrossEntropy(Likelihood):
    """Grey pixels under a Bernoulli's formula, as in PyTorch's example: sharp pictures, but no likelihood.

    p^x (1 - p)^(1 - x) does not integrate to 1 over grey x in [0, 1], so its figure is not named a likelihood. No grey
    pixel can be drawn from it either: a sample is the mean, rounded to levels.
    """

    improper = "recon_bce"

    def __init__(self, spec: Spec):
        super().__init__()
        self.outputs, self.spec = spec.shape[0], spec

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli_nll(params, self.spec.scaled(x))

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return self.spec.nearest(self.mean(params))


class Categorical(Likelihood):
    """A logit for each level: no order among levels is assumed."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, self.outputs = spec, spec.shape[0] * spec.levels

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return categorical_nll(self.logits(params), x)

    def logits(self, params: Tensor) -> Tensor:
        """[..., C, L, H, W]."""
        return params.unflatten(-3, (self.spec.shape[0], self.spec.levels))

    def mean(self, params: Tensor) -> Tensor:
        level = torch.linspace(0, 1, self.spec.levels, dtype=params.dtype, device=params.device)
        return (self.logits(params).softmax(-3) * level[:, None, None]).sum(-3)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """By the inverse of the distribution function."""
        below = self.logits(params).softmax(-3).cumsum(-3)[..., :-1, :, :]
        u = uniform_like(below[..., :1, :, :], generator)
        return (below <= u).sum(-3).to(self.spec.dtype)


class DiscretisedLogistic(Likelihood):
    """A centre and a log-scale for each pixel and colour, on a scale of [-1, 1], cut into levels."""

    def __init__(self, spec: Spec):
        super().__init__()
        if spec.levels < 3:
            raise UserError(
                "model/likelihood=discretised_logistic needs three levels or more; "
                "use model/likelihood=bernoulli on binary pixels"
            )
        self.outputs, self.spec = 2 * spec.shape[0], spec

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        centre, log_scale = params.chunk(2, -3)
        return -discretised_logistic_log_prob(x, centre, log_scale, self.spec.levels).flatten(-3).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """The centre, which is not quite the mean where the tails are cut."""
        return ((params.chunk(2, -3)[0] + 1) / 2).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        centre, log_scale = params.chunk(2, -3)
        x = centre + log_scale.clamp(min=-7).exp() * uniform_like(centre, generator).logit()
        return self.spec.nearest((x + 1) / 2)


class Gaussian(Likelihood):
    """A normal density around the decoder's means; the data's levels become intervals by uniform noise.

    E[-log p(x + noise)] in nats of the intervals' width is a bound on -log of the interval's mass (Theis, van den
    Oord & Bethge, 2016): a probability of levels again, to be held beside those of the other likelihoods. The
    `spread` is `fixed` at sigma, or starts there and is one number that is learned (`shared`), a map of the decoder
    (`pixel`), or the root of the mean squared error, the best that there is (`optimal`; Rybkin, Daniilidis & Levine,
    2021): of the batch in training, of the last batches of training otherwise.
    """

    log_var: Tensor  # []

    def __init__(
        self,
        spec: Spec,
        *,
        spread: Literal["fixed", "shared", "pixel", "optimal"],
        sigma: Positive,  # of [0, 1]
        squashed: bool,  # means through a sigmoid
    ):
        super().__init__()
        self.spec, self.spread, self.squashed = spec, spread, squashed
        self.outputs = spec.shape[0] * (2 if spread == "pixel" else 1)
        start = torch.tensor(2 * math.log(sigma))
        if spread == "shared":
            self.log_var = nn.Parameter(start)
        else:
            self.register_buffer("log_var", start, persistent=spread == "optimal")

    def nll(self, params: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.moments(params)
        x = dequantised(self.spec.scaled(x).expand_as(mean), self.spec.levels, generator).flatten(-3)
        mean = mean.flatten(-3)
        if self.spread == "optimal" and self.training:
            log_var = self.fit_variance((x - mean).detach().square().mean())
        elif self.spread == "pixel":
            log_var = log_var.flatten(-3)
        return x.shape[-1] * math.log(self.spec.levels - 1) - gaussian_log_prob(x, mean, log_var)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Means [..., C, H, W], and log-variances of that shape or []."""
        mean, *spread = params.split(self.spec.shape[0], -3)
        return mean.sigmoid() if self.squashed else mean, self.log_var + 2 * spread[0] if spread else self.log_var

    def fit_variance(self, squared_error: Tensor) -> Tensor:
        """The log of the mean squared error [] of the batches of all ranks, which also updates the running mean of
        variances."""
        squared_error = distributed.mean(squared_error)
        kept = self.log_var.exp().lerp(squared_error.to(self.log_var.dtype), 1 / HORIZON)
        self.log_var.copy_(kept.log())
        return squared_error.log()

    def mean(self, params: Tensor) -> Tensor:
        return self.moments(params)[0].clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.moments(params)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return self.spec.nearest(mean + (0.5 * log_var).exp() * noise)


def dequantised(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """x in [0, 1], each value moved to a uniform place in the interval of width 1 / (L - 1) around its level."""
    return x + (uniform_like(x, generator) - 0.5) / (levels - 1)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
