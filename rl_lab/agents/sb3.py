"""Stable-Baselines3 and the lab, each as the other sees it: a model of SB3 acts, a world of ours is its VecEnv."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rl_lab.agents import exploration
from rl_lab.types import Step, VectorEnv, View


class SB3Agent:
    """An SB3 model that acts and is looked at like an agent of ours."""

    def __init__(self, model: BaseAlgorithm):
        self.model, self.network = model, model.policy

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        action, _ = self.model.predict(obs.cpu().numpy(), deterministic=greedy)
        return torch.as_tensor(action, device=obs.device)

    def probabilities(self, obs: Tensor) -> Tensor:
        space: Any = self.model.action_space
        return exploration.certain(self.act(obs), int(space.n))

    def view(self, obs: Tensor) -> View:
        policy: Any = self.model.policy
        obs = obs.to(self.model.device)
        if hasattr(policy, "q_net"):
            q = policy.q_net(obs)
            return View(q, q.max(-1).values, "action values")
        return View(
            policy.get_distribution(obs).distribution.probs, policy.predict_values(obs).squeeze(-1), "probabilities"
        )

    def state_dict(self) -> dict[str, Any]:
        return self.model.get_parameters()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.set_parameters(state, exact_match=True, device=self.model.device)


class AsVecEnv(VecEnv):
    """Our VectorEnv seen through SB3's eyes; `watch` is called with each `Step`, as the world gave it."""

    def __init__(self, env: VectorEnv, seed: int = 0, max_abs_reward: float = math.inf,
                 watch: Callable[[Step], None] = lambda step: None):  # fmt: skip
        self.env, self._seed, self._max_abs_reward, self._watch = env, seed, max_abs_reward, watch
        high, dtype = (255, np.uint8) if env.spec.obs_dtype == torch.uint8 else (np.inf, np.float32)
        low = 0 if dtype == np.uint8 else -np.inf
        super().__init__(
            env.num_envs, spaces.Box(low, high, env.spec.obs_shape, dtype), spaces.Discrete(env.spec.num_actions)
        )

    def reset(self) -> np.ndarray:
        return self.env.reset(self._seed).cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self._action = torch.as_tensor(actions, device=self.env.device)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        step = self.env.step(self._action)
        self._watch(step)
        last, truncated = step.last.cpu().numpy(), (step.last & (step.discount > 0)).cpu().numpy()
        done = last | (step.discount == 0).cpu().numpy()  # a lost life that ends the future ends SB3's episode too
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            infos[i] = {
                "terminal_observation": step.next_obs[i].cpu().numpy(),
                "TimeLimit.truncated": bool(truncated[i]),
            }
        reward = step.reward if step.signal is None else step.signal
        reward = reward.clamp(-self._max_abs_reward, self._max_abs_reward)
        return step.obs.cpu().numpy(), reward.cpu().numpy(), done, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[None]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
