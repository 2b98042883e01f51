"""Prioritised experience replay, proportional (Schaul et al., 2016; https://arxiv.org/abs/1511.05952)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rl_lab.core.settings import Positive, Unit

BRANCHES = 128  # a wide, shallow tree: three levels hold two million leaves


class SumTree:
    """Leaves and, above them, sums of BRANCHES at a time: drawn in proportion by one search a level.

    Sums are taken anew from their children, so rounding errors never build up; no method waits for the device.
    """

    def __init__(self, leaves: int, device: torch.device, branches: int = BRANCHES):
        self.branches, size = branches, leaves
        self.levels: list[Tensor] = []  # from the leaves up to a single node's children
        while not self.levels or size > 1:
            size = -(-size // branches)
            self.levels.append(torch.zeros(size, branches, dtype=torch.float64, device=device))

    @property
    def total(self) -> Tensor:
        """[]."""
        return self.levels[-1].sum()

    def __getitem__(self, leaf: Tensor) -> Tensor:
        return self.levels[0].view(-1)[leaf]

    def __setitem__(self, leaf: Tensor, value: Tensor | float) -> None:
        """Leaves [B]; a leaf that is named twice takes one of its values."""
        self.levels[0].view(-1)[leaf] = value
        for below, above in zip(self.levels, self.levels[1:]):  # noqa: B905
            leaf = leaf // self.branches
            above.view(-1)[leaf] = below[leaf].sum(-1)

    def find(self, mass: Tensor) -> Tensor:
        """mass [B] in [0, total) -> the leaves [B] whose stretch of the running sum it falls in; never an empty one."""
        leaf = torch.zeros_like(mass, dtype=torch.int64)
        for level in reversed(self.levels):
            edges = level[leaf].cumsum(-1)  # [B, branches]
            mass = torch.minimum(mass, torch.nextafter(edges[:, -1], torch.zeros_like(mass)))
            child = torch.searchsorted(edges, mass.unsqueeze(1), right=True)
            mass = mass - edges.gather(1, (child - 1).clamp(min=0)).where(child > 0, 0).squeeze(1)
            leaf = leaf * self.branches + child.squeeze(1)
        return leaf


class Priorities:
    """p = (|error| + epsilon)^alpha for every slot that may be drawn, 0 for all others."""

    def __init__(
        self,
        slots: int,
        device: torch.device,
        *,
        alpha: Unit,  # 0 is uniform
        beta: Callable[[int], float],  # of the learner's steps: how much of the bias is undone, 1 at the end
        epsilon: Positive,
    ):
        self.tree, self.alpha, self.beta, self.epsilon = SumTree(slots, device), alpha, beta, epsilon
        self.highest = torch.ones((), dtype=torch.float64, device=device)  # ever seen: what new transitions start with

    def admit(self, slots: Tensor) -> None:
        self.tree[slots] = self.highest

    def retire(self, slots: Tensor) -> None:
        self.tree[slots] = 0.0

    def draw(self, batch_size: int, steps: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """One slot from each of B equal parts of the mass, and its weight (N P)^-beta over the batch's largest."""
        device = self.highest.device
        part = torch.arange(batch_size, device=device)
        part = part + torch.rand(batch_size, generator=rng, dtype=torch.float64, device=device)
        slots = self.tree.find(part / batch_size * self.tree.total)
        priority = self.tree[slots]
        return slots, ((priority.min() / priority) ** self.beta(steps)).float()  # N and the total cancel

    def update(self, slots: Tensor, error: Tensor) -> None:
        """slots [B] as drawn last, error [B]: the temporal-difference errors found there. One that is not finite, which
        ends a run, changes nothing: the run may go on from here.
        """
        priority = (error.detach().to(self.highest.device, torch.float64).abs() + self.epsilon) ** self.alpha
        priority = torch.where(priority.isfinite(), priority, self.tree[slots])
        self.tree[slots] = priority
        self.highest = torch.maximum(self.highest, priority.max())

    def state_dict(self) -> dict:
        return {"levels": self.tree.levels, "highest": self.highest}

    def load_state_dict(self, state: dict) -> None:
        for level, x in zip(self.tree.levels, state["levels"], strict=True):
            level.copy_(x)
        self.highest = state["highest"].to(self.highest.device)
