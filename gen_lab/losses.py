"""Likelihoods and divergences in nats, summed over the dimensions of each item: never a mean over pixels."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) [...] of independent binary pixels x [..., C, H, W], 0 or 1; the two broadcast.

    On grey x in [0, 1] this is no likelihood: p^x (1 - p)^(1 - x) does not integrate to 1 over [0, 1].
    """
    logits, x = torch.broadcast_tensors(logits, x.to(logits.dtype))
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(-3).sum(-1)


def gaussian_kl_by_dim(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, var) || N(0, 1)) of each dimension, [...]. See Kingma & Welling (2014), appendix B."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var)


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, var) || N(0, 1)) [...] of mu, log_var [..., Z]."""
    return gaussian_kl_by_dim(mu, log_var).sum(-1)


def gaussian_log_prob(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mu, var) [...] of independent dimensions [..., Z]; the three broadcast."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (z - mu).square() / log_var.exp()).sum(-1)


def importance_weighted_nll(log_weights: Tensor) -> Tensor:
    """-log of the mean of K weights p(x, z) / q(z | x), [K, ...] -> [...]: an upper bound on -log p(x) in expectation.

    See Burda, Grosse & Salakhutdinov (2016), eq. 8; it falls towards -log p(x) as K grows.
    """
    return math.log(len(log_weights)) - log_weights.logsumexp(0)


def bits_per_dim(nats: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Nats per image to bits per dimension."""
    return nats / (math.prod(shape) * math.log(2))


def categorical_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) [..., B] of levels x [B, C, H, W] under logits [..., B, C, L, H, W]."""
    level = x.long().expand(*logits.shape[:-3], *x.shape[-2:]).flatten(0, -4)
    nll = F.cross_entropy(logits.flatten(0, -5).transpose(1, 2), level, reduction="none")
    return nll.flatten(1).sum(1).unflatten(0, logits.shape[:-4])


def discretised_logistic_log_prob(level: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log P(level) [...] of a logistic variable over [-1, 1] cut into levels 0 ... L - 1; shapes broadcast.

    Level k covers (2 k ± 1) / (L - 1) - 1; the outermost ones take their whole tails. See Salimans et al. (2017),
    eq. 2; here as log s(p) + log s(-q) + log(1 - exp(q - p)) with s the sigmoid, at the edges p > q: nothing cancels.
    """
    inverse_scale = (-log_scale.clamp(min=-7)).exp()
    half = 1 / (levels - 1)
    centred = level.to(mean.dtype) * (2 * half) - 1 - mean
    upper, lower = (centred + half) * inverse_scale, (centred - half) * inverse_scale
    width = (-torch.expm1(-2 * half * inverse_scale)).log()
    first, last = level == 0, level == levels - 1
    zero = torch.zeros((), dtype=upper.dtype, device=upper.device)
    left = torch.where(last, zero, F.logsigmoid(upper))
    right = torch.where(first, zero, F.logsigmoid(-lower))
    return left + right + torch.where(first | last, zero, width)


def logistic_mixture_nll(logits: Tensor, means: Tensor, log_scales: Tensor, x: Tensor, levels: int) -> Tensor:
    """-log p(x) [B] of levels x [B, C, H, W]: each pixel has one of K mixtures for all its colours.

    Logits [B, K, H, W]; means of a scale of [-1, 1] and log-scales, both [B, K, C, H, W].
    """
    pixel = discretised_logistic_log_prob(x.unsqueeze(1), means, log_scales, levels).sum(2)  # [B, K, H, W]
    return -(logits.log_softmax(1) + pixel).logsumexp(1).flatten(1).sum(1)


def pieces(x: Tensor, label: Tensor | None, count: int) -> Iterator[tuple[Tensor, Tensor | None, float]]:
    """A batch x [B, C, H, W] and its labels [B] in `count` parts or fewer, and the share of the batch that each is."""
    labels = [None] * count if label is None else label.chunk(count)
    for part, known in zip(x.chunk(count), labels, strict=False):
        yield part, known, len(part) / len(x)
