"""Likelihoods and divergences in nats, summed over the dimensions of each item: never a mean over pixels."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) [...] of independent binary pixels x [..., C, H, W]; the two broadcast.

    On grey x this is no likelihood: p^x (1 - p)^(1 - x) does not integrate to 1 over [0, 1].
    """
    logits, x = torch.broadcast_tensors(logits, x)
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(-3).sum(-1)


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, var) || N(0, 1)) [...] of mu, log_var [..., Z]. See Kingma & Welling (2014), appendix B."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(-1)


def gaussian_log_prob(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mu, var) [...] of independent dimensions [..., Z]."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (z - mu).square() / log_var.exp()).sum(-1)


def importance_weighted_nll(log_weights: Tensor) -> Tensor:
    """-log of the mean of K weights p(x, z) / q(z | x), [K, ...] -> [...]: an upper bound on -log p(x) in expectation.

    See Burda, Grosse & Salakhutdinov (2016), eq. 8; it falls towards -log p(x) as K grows.
    """
    return math.log(len(log_weights)) - log_weights.logsumexp(0)


def bits_per_dim(nats: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Nats per image to bits per dimension."""
    return nats / (math.prod(shape) * math.log(2))
