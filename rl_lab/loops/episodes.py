"""The episodes that end while an agent learns."""

import math
from typing import Any

import torch
from torch import Tensor

from rl_lab.core import distributed
from rl_lab.core.devices import double
from rl_lab.core.learner import Metrics


class Episodes:
    """Mean return and length [steps] of the episodes since the last `pop`; the mean return of the last 100 and 20.

    The last 100 are how Machado et al. (2018) evaluate an agent: by its performance while it learns. The last 20 are
    what `loop.stop_at` asks about; there is no such figure before as many have ended. With `seeds` = (S,)
    these are the episodes of S learners side by side, each with `num_envs` envs; with several ranks the episodes of
    all of them, and the last 100 of each.
    """

    def __init__(self, num_envs: int, device: torch.device, seeds: tuple[int, ...] = ()):
        self._zeros = torch.zeros(*seeds, num_envs, device=device)
        self._sums = torch.zeros(3, *seeds, device=device)  # episodes, returns, lengths
        self._latest = torch.zeros(*seeds, 101, device=device)  # a ring of returns; the last takes what did not end
        self._count = torch.zeros(seeds, dtype=torch.int64, device=device)  # of all episodes
        self.reset()

    def reset(self) -> None:
        self._return, self._length = self._zeros.clone(), self._zeros.clone()

    def add(self, reward: Tensor, last: Tensor) -> None:
        """Both [N], or [S, N], of one step of all envs."""
        self._return += reward
        self._length += 1
        if last.is_cpu and not last.any():  # on a CPU looking costs less than the rest
            return
        place = torch.where(last, (self._count.unsqueeze(-1) + last.cumsum(-1) - 1) % 100, 100)
        self._latest.scatter_(-1, place, self._return)
        self._count += last.sum(-1)
        last = last.float()
        self._sums += torch.stack([last, last * self._return, last * self._length]).sum(-1)
        self._return *= 1 - last
        self._length *= 1 - last

    def pop(self) -> Metrics:
        return self.pops()[0]

    def pops(self) -> list[Metrics]:
        """Of each seed; {} where none of its episodes ended."""
        sums = distributed.total(self._sums)
        newest = (self._count.unsqueeze(-1) - 1 - torch.arange(20, device=sums.device)) % 100
        last_20 = distributed.mean(self._latest.gather(-1, newest).mean(-1))
        last_20 = last_20.where(distributed.total(self._count.clamp(max=20)) == 20 * distributed.size(), torch.nan)
        last_100 = distributed.total(self._latest[..., :100].sum(-1)) / distributed.total(self._count.clamp(max=100))
        table = torch.stack([*double(sums), double(last_100), double(last_20)]).view(5, -1).T.tolist()
        self._sums.zero_()
        return [self._row(*row) for row in table]

    @staticmethod
    def _row(count: float, returns: float, lengths: float, last_100: float, last_20: float) -> Metrics:
        if not count:
            return {}
        row: Metrics = {
            "episode/return": returns / count,
            "episode/length": lengths / count,
            "episode/last_100": last_100,
        }
        return row if math.isnan(last_20) else row | {"episode/last_20": last_20}

    def state_dict(self) -> dict[str, Any]:
        return {"return": self._return, "length": self._length, "sums": self._sums, "latest": self._latest,
                "count": self._count}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["return"]) != len(self._zeros):
            raise ValueError(f"{len(state['return'])} envs, not {len(self._zeros)}")
        self._return, self._length, self._sums, self._latest, self._count = (
            state[k].to(self._zeros.device).clone() for k in ("return", "length", "sums", "latest", "count")
        )
