"""A plan as a player."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rl_lab.agents import exploration
from rl_lab.types import View


class Planned:
    """Acts on q [S, A] and policy [S]; `states` reads the states int64 [N] off observations [N, ...]."""

    def __init__(self, q: Tensor, policy: Tensor, states: Callable[[Tensor], Tensor]):
        self.q, self.policy, self.states = q, policy, states

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        return self.policy[self.states(obs)]

    def probabilities(self, obs: Tensor) -> Tensor:
        return exploration.certain(self.act(obs, greedy=True), self.q.shape[-1])

    def view(self, obs: Tensor) -> View:
        q = self.q[self.states(obs)]
        return View(q, q.max(-1).values, "action values")

    def state_dict(self) -> dict[str, Any]:
        return {"q": self.q, "policy": self.policy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.q, self.policy = state["q"], state["policy"]
