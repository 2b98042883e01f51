"""Any Gymnasium environment with discrete actions, several copies side by side, behind our protocol."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from rl_lab import registration
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Count
from rl_lab.types import Spec, Step


class Gym:
    """Observations: a Box as float32, images as uint8 with channels first, a Discrete one-hot.

    Its state cannot be saved in general: a resumed run starts new episodes.
    """

    def __init__(
        self, id: str, num_envs: Count, *, options: dict | None = None, camera: bool = False, device: str = "cpu"
    ):
        if ":" in id:
            raise UserError(
                f"env.id={id} is refused: it would import {id.split(':')[0]}; install a package that registers itself"
            )
        if "world" in (options or {}) and id in map(registration.name, registration.worlds()):
            raise UserError(f"env.options.world is refused: env.id={id} names its world; choose another env.id")
        arguments = dict(options or {}) | ({"render_mode": "rgb_array"} if camera else {})
        try:
            self._env = gymnasium.make_vec(
                id,
                num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
                **arguments,
            )
        except gymnasium.error.UnregisteredEnv as error:
            raise UserError(f"no Gymnasium environment '{id}'{nearest(id, gymnasium.registry)}") from error
        except (gymnasium.error.Error, TypeError) as error:
            raise UserError(f"env.id={id}: {error}") from error
        actions = self._env.single_action_space
        if not isinstance(actions, spaces.Discrete):
            raise UserError(
                f"env.id={id} is refused: its actions are {actions}, and agents here choose among discrete ones"
            )
        self._space, self._first_action = self._env.single_observation_space, int(actions.start)
        self._is_image = self._space.dtype == np.uint8 and len(self._space.shape) == 3
        self.num_envs, self.device = num_envs, torch.device(device)
        self.frames_per_second = self._env.metadata.get("render_fps", 30)
        self.spec = Spec(*self._shape(id), tuple(str(a) for a in range(int(actions.n))))

    def _shape(self, id: str) -> tuple[tuple[int, ...], torch.dtype]:
        match self._space:
            case spaces.Discrete():
                return (int(self._space.n),), torch.float32
            case spaces.Box() if self._is_image:
                h, w, c = self._space.shape
                return (c, h, w), torch.uint8
            case spaces.Box():
                return self._space.shape, torch.float32
        raise UserError(f"env.id={id} is refused: observations {self._space} are neither a Box nor a Discrete")

    def reset(self, seed: int) -> Tensor:
        obs, _ = self._env.reset(seed=seed)
        self._obs = self._tensor(obs)
        return self._obs

    def step(self, action: Tensor) -> Step:
        obs, reward, terminated, truncated, info = self._env.step(action.cpu().numpy() + self._first_action)
        last = terminated | truncated
        self._obs = next_obs = self._tensor(obs)
        if last.any():
            true = np.array(obs)
            for i in np.flatnonzero(last):
                true[i] = info["final_obs"][i]
            next_obs = self._tensor(true)
        numbers = torch.from_numpy(np.stack([reward, 1.0 - terminated]).astype(np.float32)).to(self.device)
        return Step(*numbers, torch.from_numpy(last).to(self.device), next_obs, self._obs)

    def observe(self) -> Tensor:
        return self._obs

    def picture(self) -> np.ndarray:
        """uint8 [N, H, W, 3]; needs `camera`."""
        return np.stack(self._env.render())

    def _tensor(self, obs: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.array(obs)).to(self.device)  # Gymnasium reuses its buffer
        if isinstance(self._space, spaces.Discrete):
            return F.one_hot(x - int(self._space.start), int(self._space.n)).float()
        return x.permute(0, 3, 1, 2) if self._is_image else x.float()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def close(self) -> None:
        self._env.close()
