"""An exponential moving average of a network's weights, which scores and samples in place of the network.

Its state is that of a plain network, unlike that of torch's AveragedModel, and the number of updates is the model's.
"""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def average_of(network: nn.Module, decay: float) -> nn.Module:
    """A copy for `follow` to move; with a decay of 0 the network itself. In evaluation mode."""
    return (copy.deepcopy(network).requires_grad_(False) if decay else network).eval()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """A step of the average towards the network after `updates` of it.

    The decay rises to the one set, so that the average forgets its start. Buffers (batch norm's are averages already)
    are copied.
    """
    if average is network:
        return
    step = get_ema_multi_avg_fn(min(decay, (1 + updates) / (10 + updates)))
    step([*average.parameters()], [*network.parameters()], updates)
    for mine, its in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(its)
