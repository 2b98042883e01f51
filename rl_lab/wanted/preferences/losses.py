"""Learning what is wanted from which of two clips is better: the losses and schedules of Christiano et al. (2017).

https://arxiv.org/abs/1706.03741. Shapes: n pairs, M members of an ensemble.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def preferred(difference: Tensor, error: float) -> Tensor:
    """P(left) [...] by the sums' difference, left less right [...]: Bradley and Terry (1952), eq. 1 of the paper.

    A share `error` of the answers is taken to be drawn evenly, so P never comes nearer to 0 or 1 than half of it.
    """
    return (1 - error) * difference.sigmoid() + error / 2


def preference_loss(difference: Tensor, left: Tensor, error: float) -> Tensor:
    """-left ln P(left) - (1 - left) ln P(right) [...]; `left` [...] is 1, 0, or 1/2 where both were as good."""
    if not error:
        return F.binary_cross_entropy_with_logits(difference, left, reduction="none")
    p = preferred(difference, error)
    return -left * p.log() - (1 - left) * (1 - p).log()


def disagreement(probability: Tensor) -> Tensor:
    """[n], the variance over members of P [M, n]."""
    return probability.var(0, unbiased=False)


def overfitted(probability: Tensor, left: Tensor, weight: Tensor) -> Tensor:
    """[M]: 1 where the loss of held-out answers is more than 1.5 times that of the others, -1 below 1.1, else 0.

    P [M, n] of answers `left` [n], and how often each member drew them, weight [M, n]: section 2.2.3 moves the penalty
    by that.
    """
    p = probability.clamp(1e-6, 1 - 1e-6)
    each, held = -left * p.log() - (1 - left) * (1 - p).log(), weight == 0
    learned = (weight * each).sum(1) / weight.sum(1).clamp(min=1)
    ratio = (each * held).sum(1) / held.sum(1).clamp(min=1) / learned.clamp(min=1e-12)
    return ((ratio > 1.5).float() - (ratio < 1.1).float()) * held.any(1)


def labels_due(step: int, total: int, labels: int, first: int, periods: int = 10) -> int:
    """How many of `labels` are asked for by this step of `total`: `first` before step 0, then ever fewer.

    In the period i = 0, 1, ... of a tenth of the run each, the rate is 1 / (1 + i) of the first one's: appendix A.2.
    """
    done = min(periods * step / total, periods)
    whole = int(done)
    so_far = sum(1 / (1 + i) for i in range(whole)) + (done - whole) / (1 + whole)
    return first + round((labels - first) * so_far / sum(1 / (1 + i) for i in range(periods)))


def calibration(probability: Tensor, left: Tensor, bins: int = 10) -> Tensor:
    """The mean |P - share| [] over bins of P [n], each weighted by its pairs; `left` [n] are the answers."""
    place = (probability * bins).long().clamp(max=bins - 1)
    empty = torch.zeros(bins, dtype=probability.dtype, device=probability.device)
    return (empty.index_add(0, place, probability) - empty.index_add(0, place, left)).abs().sum() / len(probability)
