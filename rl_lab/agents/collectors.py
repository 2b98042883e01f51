"""Policies that know the rules of Collect and look for goals by search: what its learners are measured by."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.randomness import generator
from rl_lab.core.settings import Count
from rl_lab.planning import routes
from rl_lab.types import Spec, Transition, View


class Greedy(Learner):
    """Goes to the nearest goal by the shortest way, and decides anew at every step; ties are broken at random."""

    saved = ("rng",)

    def __init__(self, spec: Spec, device: torch.device, seed: int):
        self.device, self.rng = device, generator(seed, device)
        if spec.actions != ("up", "right", "down", "left") or len(spec.obs_shape) != 3 or spec.obs_shape[0] != 4:
            raise UserError(f"agent={type(self).__name__.lower()}_collector plays only Collect; take env=collect")

    def probabilities(self, obs: Tensor) -> Tensor:
        return self.view(obs).bars

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        bounds = self.probabilities(obs).cumsum(-1)
        draw = torch.rand(len(obs), 1, generator=self.rng, device=self.device, dtype=torch.float64) * bounds[:, -1:]
        return (draw >= bounds).sum(-1)

    def update(self, transition: Transition) -> Metrics:
        return {}

    def view(self, obs: Tensor) -> View:
        walls, agent, goals, _ = planes(obs)
        return self._view(obs, routes.nearest(walls, agent, goals), np.zeros(len(walls)))

    def _view(self, obs: Tensor, chance: np.ndarray, value: np.ndarray) -> View:
        chance /= chance.sum(1, keepdims=True)
        return View(torch.from_numpy(chance).to(obs.device), torch.from_numpy(value).to(obs.device), "probabilities")


class Optimal(Greedy):
    """Takes the order of goals that pays most if they all stay where they are, and thinks again at every step.

    Of the sets of goals that pay alike it goes for the one collected `earliest`, or for `any`.
    """

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        time_limit: Count,  # primitive steps; these are the world's own
        goal_reward: float,
        living_reward: float,
        ties: Literal["earliest", "any"],
    ):
        super().__init__(spec, device, seed)
        if not living_reward <= min(0.0, goal_reward):
            raise UserError(
                f"env.living_reward={living_reward:g} must be at most 0 and at most env.goal_reward: "
                "agent=optimal_collector takes time for a cost"
            )
        self.time_limit, self.rewards, self.earliest = time_limit, (goal_reward, living_reward), ties == "earliest"

    def view(self, obs: Tensor) -> View:
        walls, agent, goals, share = planes(obs)
        if (most := int(goals.sum((1, 2)).max())) > routes.MOST_GOALS:
            raise UserError(f"env.goals={most} must be at most {routes.MOST_GOALS}, since all orders of them are tried")
        left = np.rint(share * self.time_limit).astype(np.int64)
        return self._view(obs, *routes.best_order(walls, agent, goals, left, *self.rewards, self.earliest))


def planes(obs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of observations [N, 4, H, W]: walls [N, H, W], the agent's cell [N], goals [N, H, W], share of time left [N]."""
    seen = obs.cpu().numpy()
    return seen[:, 0] > 0, seen[:, 1].reshape(len(seen), -1).argmax(1), seen[:, 2] > 0, seen[:, 3, 0, 0]
