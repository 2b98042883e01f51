"""An exponential moving average of a network's weights, which scores and samples in place of the network.

Its state is that of a plain network, unlike that of torch's AveragedModel, and the number of updates is the model's.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rl_lab.core.learner import Learner


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


class Averages:
    """Of all weights that a learner learns, whatever its networks are. A decay of 0: none."""

    def __init__(self, learner: Learner, decay: float):
        self.decay, self.updates = decay, 0
        self.weights = [*weights(learner)] if decay else []
        self.averages = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def follow(self) -> None:
        """A step towards the weights, as `follow` has it."""
        if self.weights:
            self.updates += 1
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(decay)(self.averages, self.weights, self.updates)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the learner has them in place of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, p in enumerate(self.weights):
            p.data, self.averages[i] = self.averages[i], p.data

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError or RuntimeError where the state is of other networks."""
        self.updates = state["updates"]
        for mine, its in zip(self.averages, state["averages"], strict=True):
            mine.copy_(its)


def networks(learner: Any) -> Iterator[nn.Module]:
    """Those that have anything to learn; of a learner within a learner too."""
    for part in (getattr(learner, name) for name in learner.saved):
        if isinstance(part, Learner):
            yield from networks(part)
        elif isinstance(part, nn.Module) and any(p.requires_grad for p in part.parameters()):
            yield part


def weights(learner: Learner) -> Iterator[nn.Parameter]:
    """Each that it learns, once."""
    yield from dict.fromkeys(p for network in networks(learner) for p in network.parameters() if p.requires_grad)
