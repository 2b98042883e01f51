"""The floor that every agent must rise above: uniformly random actions."""

import torch
from torch import Tensor

from rl_lab.core.devices import double
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.randomness import generator
from rl_lab.types import Spec, Transition, View


class Random(Learner):
    """Learns nothing; `greedy` is as random as the rest."""

    saved = ("rng",)

    def __init__(self, spec: Spec, device: torch.device, seed: int):
        self.num_actions, self.device, self.rng = spec.num_actions, device, generator(seed, device)

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        return torch.randint(self.num_actions, obs.shape[:1], generator=self.rng, device=self.device)

    def probabilities(self, obs: Tensor) -> Tensor:
        return double(torch.ones(len(obs), self.num_actions, device=self.device)) / self.num_actions

    def update(self, transition: Transition) -> Metrics:
        return {}

    def view(self, obs: Tensor) -> View:
        bars = torch.full((len(obs), self.num_actions), 1 / self.num_actions, device=self.device)
        return View(bars, torch.zeros(len(obs), device=self.device), "probabilities")
