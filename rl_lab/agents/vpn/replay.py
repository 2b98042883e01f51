"""Keeps rollouts for a while, so that VPN learns from each more than once; the paper does not."""

from typing import Any

import torch
from torch import Tensor

from rl_lab.core.randomness import integers
from rl_lab.core.settings import Count
from rl_lab.types import Transition


class Rollouts:
    """The newest rollouts of N envs over T decisions, whole and on the device; the oldest give way to new ones.

    What a sequence was worth is not kept: it follows from the target network as it stands when the sequence is read.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        decisions: Count,  # kept, rounded up to whole rollouts
        repeats: Count,  # times that each sequence is read, on the average
    ):
        self.device, self.decisions, self.repeats = device, decisions, repeats
        self.columns: dict[str, Tensor] = {}  # each [R, T, N, ...]
        self.written = 0  # rollouts, those that gave way among them

    def add(self, rollout: list[Transition]) -> None:
        """T decisions of each env [N, ...]."""
        columns = dict(zip(Transition._fields, map(torch.stack, zip(*rollout, strict=True)), strict=True))
        if not self.columns:
            room = -(-self.decisions // columns["reward"].numel())
            self.columns = {name: x.new_empty(room, *x.shape) for name, x in columns.items()}
        for name, x in columns.items():
            self.columns[name][self.written % len(self.columns[name])] = x
        self.written += 1

    def sample(self, count: int, rng: torch.Generator) -> list[Transition]:
        """`count` sequences, uniformly, as a rollout of T decisions by `count` envs."""
        kept = min(self.written, len(self.columns["reward"]))
        num_envs = self.columns["reward"].shape[2]
        draw = integers(kept * num_envs, (count,), rng)
        read = [self.columns[name][draw // num_envs, :, draw % num_envs].unbind(1) for name in Transition._fields]
        return [Transition(*step) for step in zip(*read, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.columns.values())

    def state_dict(self) -> dict[str, Any]:
        return {"columns": self.columns, "written": self.written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Older checkpoints hold no durations of 1, and discounts of gamma^(duration - 1).

        Raises ValueError where another number of decisions was kept.
        """
        if reward := [x for name, x in state["columns"].items() if name == "reward"]:
            rollouts, length, num_envs = reward[0].shape
            if rollouts != -(-self.decisions // (length * num_envs)):
                raise ValueError(f"{rollouts} rollouts of {length} decisions of {num_envs} environments do not fit "
                                 f"agent.replay.decisions={self.decisions}")  # fmt: skip
        self.columns = columns = {name: x.to(self.device) for name, x in state["columns"].items()}
        if columns:
            columns["discount"] = columns["discount"].sign()
            columns["duration"] = columns.get("duration", torch.ones_like(columns["reward"])).float()
        self.written = state["written"]
