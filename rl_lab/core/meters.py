"""Small states of a loop that a checkpoint carries: what is due next, and means since the last row."""

import math

from torch import Tensor

from rl_lab.core import distributed
from rl_lab.core.errors import NotFinite
from rl_lab.core.learner import Metrics


class Every:
    """Due once in each `period` steps, at the first step asked about; at step 0 too unless `first` says otherwise."""

    def __init__(self, period: int, first: int = 0):
        self.period, self.next = period, first

    def due(self, step: int) -> bool:
        if step < self.next:
            return False
        self.next = step - step % self.period + self.period
        return True

    def state_dict(self) -> dict:
        return {"next": self.next}

    def load_state_dict(self, state: dict) -> None:
        self.next = state["next"] if state["next"] % self.period == 0 else 0


class Means:
    """The mean of each metric over the updates, of all ranks, since the last `pop`; the sums stay on the device."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics, step: int) -> None:
        """Raises NotFinite at once on a CPU; on a GPU looking would stop the queue, and the next row tells."""
        for name, x in metrics.items():
            if isinstance(x, float) or not x.is_cuda:
                x = float(x)
                if not math.isfinite(x):
                    raise NotFinite(f"{name} is {x} at step {step:,}")
            self._sums[name] = self._sums.get(name, 0.0) + x
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> Metrics:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return distributed.averaged(means)

    def state_dict(self) -> dict:
        """Raises NotFinite, so that no checkpoint is written over a good one after a GPU went astray."""
        for name, total in self._sums.items():
            if not math.isfinite(total):
                raise NotFinite(f"{name} became {float(total)} since the last row")
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
