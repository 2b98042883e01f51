"""Small states of a loop that a checkpoint carries: what is due next, and means since the last row."""

import math

from torch import Tensor

from rl_lab.core import distributed
from rl_lab.core.errors import NotFinite
from rl_lab.core.learner import Metrics


class Every:
    """Due at step 0 and once in each `period` steps from there, at the first step asked about."""

    def __init__(self, period: int):
        self.period, self.next = period, 0

    def due(self, step: int) -> bool:
        if step < self.next:
            return False
        self.next = step - step % self.period + self.period
        return True

    def state_dict(self) -> dict:
        return {"next": self.next, "period": self.period}

    def load_state_dict(self, state: dict) -> None:
        """With another period than it had, it counts on from when it was due last."""
        begun = state["next"] - state.get("period", self.period)
        self.next = max(0, begun - begun % self.period + self.period)


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
