"""A model of Stable-Baselines3 that acts and is looked at like an agent of ours."""

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from rl_lab import exploration
from rl_lab.types import View


class SB3Agent:
    """An SB3 model that acts and is looked at like an agent of ours."""

    def __init__(self, model: BaseAlgorithm):
        self.model = model

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        action, _ = self.model.predict(obs.cpu().numpy(), deterministic=greedy)
        return torch.as_tensor(action, device=obs.device)

    def probabilities(self, obs: Tensor) -> Tensor:
        return exploration.certain(self.act(obs), int(self.model.action_space.n))

    def view(self, obs: Tensor) -> View:
        policy = self.model.policy
        obs = obs.to(self.model.device)
        if hasattr(policy, "q_net"):
            q = policy.q_net(obs)
            return View(q, q.max(-1).values, "action values")
        return View(
            policy.get_distribution(obs).distribution.probs, policy.predict_values(obs).squeeze(-1), "probabilities"
        )

    def state_dict(self) -> dict:
        return self.model.get_parameters()

    def load_state_dict(self, state: dict) -> None:
        self.model.set_parameters(state, exact_match=True, device=self.model.device)
