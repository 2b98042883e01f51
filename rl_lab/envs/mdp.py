"""N walkers in any finite MDP, on the device."""

import torch
from torch import Tensor

from rl_lab.core.learner import generator, restore_generator
from rl_lab.core.settings import Count
from rl_lab.mdp import MDP
from rl_lab.types import Spec, Step


class MDPEnv:
    """N walkers in one MDP; an observation is the state, one-hot float32 [N, S]."""

    def __init__(self, mdp: MDP, num_envs: Count, time_limit: Count, device: str = "cpu"):
        self.mdp = mdp.to(device)
        self.num_envs, self.time_limit, self.device = num_envs, time_limit, torch.device(device)
        states, num_actions, self._successors = mdp.next_state.shape
        self.spec = Spec((states,), torch.float32, mdp.actions)
        # One row a state and action; the last bound above 1 catches rounding, so that a draw is always a successor.
        self._bounds = self.mdp.probability.cumsum(-1).float().view(states * num_actions, -1)
        self._bounds[:, -1] = 2.0
        self._next_state, self._reward = self.mdp.next_state.reshape(-1), self.mdp.reward.float().reshape(-1)
        self._start = self.mdp.start.cumsum(0).float()
        self._start[-1] = 2.0
        self._rng = generator(0, self.device)

    def reset(self, seed: int) -> Tensor:
        self._rng.manual_seed(seed)
        self._state = self._first()
        self._age = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        return self.observe()

    def step(self, action: Tensor) -> Step:
        row = self._state * self.spec.num_actions + action
        u = torch.rand(self.num_envs, 1, generator=self._rng, device=self.device)
        entry = row * self._successors + (u >= self._bounds[row]).sum(-1)
        successor, reward = self._next_state[entry], self._reward[entry]
        terminal = self.mdp.terminal[successor]
        self._age += 1
        last = terminal | (self._age >= self.time_limit)
        self._state = torch.where(last, self._first(), successor)
        self._age.masked_fill_(last, 0)
        return Step(reward, (~terminal).float(), last, self._one_hot(successor), self.observe())

    def observe(self) -> Tensor:
        return self._one_hot(self._state)

    def all_observations(self) -> Tensor:
        """[S, S]: what each state looks like, in order."""
        return self._one_hot(torch.arange(self.spec.obs_shape[0], device=self.device))

    def _first(self) -> Tensor:
        u = torch.rand(self.num_envs, generator=self._rng, device=self.device)
        return torch.searchsorted(self._start, u, right=True)

    def _one_hot(self, state: Tensor) -> Tensor:
        blank = torch.zeros(len(state), *self.spec.obs_shape, device=self.device)
        return blank.scatter_(1, state[:, None], 1.0)

    def state_dict(self) -> dict:
        return {"state": self._state, "age": self._age, "rng": self._rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        if len(state["state"]) != self.num_envs:
            raise ValueError(f"{len(state['state'])} walkers, not env.num_envs={self.num_envs}")
        self._state, self._age = state["state"].to(self.device), state["age"].to(self.device)
        restore_generator(self._rng, state["rng"])

    def close(self) -> None: ...
