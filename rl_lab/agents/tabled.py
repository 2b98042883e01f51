"""A policy as a table."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_lab.agents import exploration
from rl_lab.core.randomness import generator
from rl_lab.types import View


class Tabled:
    """Draws actions by probabilities [S, A]; `states` reads the states int64 [N] off observations [N, ...]."""

    def __init__(self, policy: Tensor, states: Callable[[Tensor], Tensor], device: torch.device, seed: int):
        self.policy, self.states, self.rng = policy, states, generator(seed, device)

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        return exploration.sample(self.probabilities(obs).log(), self.rng)

    def probabilities(self, obs: Tensor) -> Tensor:
        return self.policy[self.states(obs)]

    def view(self, obs: Tensor) -> View:
        bars = self.probabilities(obs)
        return View(bars, bars.max(-1).values, "probabilities")

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy = state["policy"]
