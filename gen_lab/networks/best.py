"""The weights that did best on images kept for that, so that the test set is looked at once, at the end."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, state_of
from rl_lab.core.metrics import is_lower_better, objective

YOUNGER: dict[str, Any] = {"offered": -1, "figures": {}}  # what older checkpoints leave out


class Best:
    """Of the evaluations so far. Part of a checkpoint."""

    def __init__(self) -> None:
        self.score, self.step, self.worse = math.inf, 0, 0  # the lower the better; updates; evaluations since then
        self.offered = -1  # the update that was offered last
        self.learned: dict[str, Any] = {}
        self.figures: dict[str, float] = {}  # of the validation images, by the best weights

    def offer(self, metrics: Metrics, step: int, learner: Learner) -> None:
        """Keeps what the learner has learned if no evaluation was better. Raises UserError if it has no likelihood."""
        name = objective(metrics)
        if name is None:
            raise UserError(
                "loop.best and loop.patience choose by the likelihood of validation images, and this model has none; "
                "leave them out"
            )
        self.offered = step
        score = float(metrics[name]) * (1 if is_lower_better(name) else -1)
        if score < self.score:
            self.score, self.step, self.worse, self.learned = score, step, 0, learned(learner)
            self.figures = {name: float(x) for name, x in metrics.items()}
        else:
            self.worse += 1

    @contextmanager
    def shown(self, learner: Learner) -> Iterator[None]:
        """Within, the learner is what it was then."""
        before = learned(learner) if self.learned else {}
        try:
            take(learner, self.learned)
            yield
        finally:
            take(learner, before)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*YOUNGER, "score", "step", "worse", "learned")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.worse = state["score"], state["step"], state["worse"]
        self.learned = state["learned"]
        self.offered, self.figures = (state.get(name, of_old) for name, of_old in YOUNGER.items())


def learned(learner: Learner) -> dict[str, Any]:
    """A copy of all that it saves but for optimizers and random streams."""
    parts = {name: getattr(learner, name) for name in learner.saved}
    return {
        name: learned(part) if isinstance(part, Learner) else copy.deepcopy(state_of(part))
        for name, part in parts.items()
        if not isinstance(part, torch.optim.Optimizer | torch.Generator)
    }


def take(learner: Learner, state: Mapping[str, Any]) -> None:
    """The reverse of `learned`; of an empty state nothing."""
    for name, value in state.items():
        part = getattr(learner, name)
        if isinstance(part, Learner):
            take(part, value)
        elif hasattr(part, "load_state_dict"):
            part.load_state_dict(value)
        elif isinstance(part, torch.Tensor):
            setattr(learner, name, value.to(part.device, copy=True))
        else:
            setattr(learner, name, copy.deepcopy(value))
