"""The head of a causal network: a distribution over the levels of each pixel.

Shapes: P parameters a step, U uniform numbers a step, L levels, K mixtures.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from gen_lab.losses import bernoulli_nll, categorical_nll, logistic_mixture_nll
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count


class Head(Protocol):
    """The network is called `steps` times for each pixel: once a colour, or once if the head models colours itself."""

    steps: int
    outputs: int  # P
    uniforms: int  # U

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """-log p(x) [B] of levels x [B, C, H, W] under params [B, steps P, H, W]."""
        ...

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """The next C / steps levels [B, C / steps] from params [B, P] and uniform u [B, U]."""
        ...


class Bernoulli:
    """Binary pixels, one logit each."""

    outputs = uniforms = 1

    def __init__(self, spec: Spec):
        self.steps = spec.shape[0]

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return bernoulli_nll(params, x)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        return (u < params.sigmoid()).to(torch.uint8)


class Categorical:
    """A logit for each level: no order among levels is assumed."""

    uniforms = 1

    def __init__(self, spec: Spec):
        self.steps, self.outputs = spec.shape[0], spec.levels

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return categorical_nll(params.unflatten(1, (self.steps, self.outputs)), x)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        below = params.softmax(1).cumsum(1) <= u
        return below[:, :-1].sum(1, keepdim=True)


def softmax(spec: Spec) -> Head:
    """A probability for each level; two levels need but one logit."""
    return Bernoulli(spec) if spec.levels == 2 else Categorical(spec)


class LogisticMixture:
    """A mixture of logistic distributions over a pixel's colours, cut into levels (PixelCNN++; Salimans et al., 2017).

    For each mixture: a logit, C means, C log-scales, and C (C - 1) / 2 coefficients by which the mean of a colour
    follows the earlier colours of the same pixel.
    """

    steps = 1

    def __init__(self, spec: Spec, *, mixtures: Count):
        if spec.levels < 3:
            raise UserError("a logistic mixture needs three levels or more; use softmax on binary pixels")
        self.spec, self.colours, self.mixtures = spec, spec.shape[0], mixtures
        self.pairs = self.colours * (self.colours - 1) // 2
        self.outputs = mixtures * (1 + 2 * self.colours + self.pairs)
        self.uniforms = 1 + self.colours

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B, K, ...], means and log-scales [B, K, C, ...], coefficients in (-1, 1) [B, K, pairs, ...]."""
        params = params.unflatten(1, (self.mixtures, -1))
        parts = params.split([1, self.colours, self.colours, self.pairs], 2)
        return parts[0].squeeze(2), parts[1], parts[2], parts[3].tanh()

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        logits, means, log_scales, coefficients = self.split(params)
        means = self.shifted(means, coefficients, self.spec.centred(x))
        return logistic_mixture_nll(logits, means, log_scales, x, self.spec.levels)

    def shifted(self, means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
        """Means [B, K, C, ...] moved by the true earlier colours x [B, C, ...] in [-1, 1]."""
        moved, pair = list(means.unbind(2)), 0
        for c in range(self.colours):
            for earlier in range(c):
                moved[c] = moved[c] + coefficients[:, :, pair] * x[:, None, earlier]
                pair += 1
        return torch.stack(moved, 2)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """One mixture for all colours, then colour by colour, each cut to its level before the next one sees it."""
        logits, means, log_scales, coefficients = self.split(params)
        chosen = (logits.softmax(1).cumsum(1)[:, :-1] <= u[:, :1]).sum(1)
        row = torch.arange(len(chosen), device=chosen.device)
        means, scales, coefficients = (
            means[row, chosen],
            log_scales[row, chosen].clamp(min=-7).exp(),
            coefficients[row, chosen],
        )
        noise, pair = u[:, 1:].logit(), 0
        colours: list[Tensor] = []
        for c in range(self.colours):
            mean = means[:, c]
            for earlier in colours:
                mean = mean + coefficients[:, pair] * self.spec.centred(earlier)
                pair += 1
            colours.append(self.spec.nearest((mean + scales[:, c] * noise[:, c] + 1) / 2))
        return torch.stack(colours, 1)


class Tempered:
    """A head that draws at temperature T: it divides logits by T, which gives p(level)^(1/T), normalised; of a logistic
    mixture it divides the logits of the choice, and multiplies the scales.
    """

    def __init__(self, head: Head, temperature: float):
        self.head, self.temperature = head, temperature
        self.steps, self.outputs, self.uniforms = head.steps, head.outputs, head.uniforms

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return self.head.nll(params, x)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        if not isinstance(self.head, LogisticMixture):
            return self.head.draw(params / self.temperature, u)
        head = self.head
        parts = list(params.unflatten(1, (head.mixtures, -1)).split([1, head.colours, head.colours, head.pairs], 2))
        parts[0], parts[2] = parts[0] / self.temperature, parts[2] + math.log(self.temperature)
        return head.draw(torch.cat(parts, 2).flatten(1), u)
