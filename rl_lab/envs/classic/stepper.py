"""N copies of a control problem, on the device: no step waits for it."""

from typing import Annotated, Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, restore_generator
from rl_lab.core.settings import Bound, Envs
from rl_lab.envs.abilities import Advance, mixed
from rl_lab.envs.classic.physics import Physics
from rl_lab.types import Spec, Step


class Walkers(NamedTuple):
    state: Tensor  # [N, D] float64
    left: Tensor  # [N] int64, steps until the time limit


class ClassicEnv:
    """N copies of one problem. An episode ends where its physics say so or, cut short, at the time limit.

    Step by step it equals Gymnasium's environment of the same name, from first states drawn by a stream of its own.
    """

    def __init__(
        self,
        physics: Physics,
        num_envs: Envs,
        *,
        time_limit: Annotated[int, Bound(1, 10_000_000)],  # steps
        camera: bool = False,
        device: Device,
    ):
        self.physics, self.num_envs, self.time_limit = physics, num_envs, time_limit
        self.device = torch.device(device)
        self.rng = generator(0, self.device)
        self.spec = Spec((physics.size,), torch.float32, physics.actions)
        self.frames_per_second = physics.frames_per_second
        self._durations = torch.ones(num_envs, device=self.device)  # every action takes one step
        self._limit = torch.full((num_envs,), time_limit, device=self.device)
        self._painter: Any = gymnasium.make(physics.id, render_mode="rgb_array").unwrapped if camera else None

    def reset(self, seed: int) -> Tensor:
        self.seed(seed)
        self.walkers = self.begun()
        return self.observe()

    def seed(self, seed: int) -> None:
        """All that is drawn from now on follows from it."""
        self.rng.manual_seed(seed)

    def begun(self) -> Walkers:
        """Walkers at the start of new episodes."""
        return Walkers(*self.draw())

    def step(self, action: Tensor) -> Step:
        self.walkers, successor, reward, discount, last, _ = self.advance(self.walkers, action, *self.draw())
        return Step(reward, discount, last, self.look(successor), self.observe(), self._durations)

    def draw(self) -> tuple[Tensor, Tensor]:
        """First states [N, D] for who needs them, and the steps [N] that their episodes may last."""
        shape = self.num_envs, self.physics.drawn
        draws = torch.rand(shape, generator=self.rng, dtype=torch.float64, device=self.device)
        return self.physics.first(draws), self._limit

    def advance(self, walkers: Walkers, action: Tensor, first: Tensor, limit: Tensor) -> Advance[Walkers, Tensor]:
        """The step as a function: nothing of the env changes."""
        state, reward, terminal = self.physics.move(walkers.state, action)
        left = walkers.left - 1
        last = terminal | (left == 0)
        standing = mixed(last, Walkers(first, limit), Walkers(state, left))
        return Advance(standing, state, reward, (~terminal).float(), last)

    def observe(self) -> Tensor:
        return self.look(self.state)

    @property
    def state(self) -> Tensor:
        """[N, D] float64."""
        return self.walkers.state

    def look(self, state: Tensor) -> Tensor:
        return self.physics.look(state)

    def picture(self) -> np.ndarray:
        """uint8 [N, H, W, 3]; needs `camera`. Gymnasium's own renderer draws the states one by one."""
        if self._painter is None:
            raise UserError("env.camera=false: nothing is drawn")
        return np.stack([self._painted(state) for state in self.state.cpu().numpy()])

    def redrawn(self, obs: Tensor) -> np.ndarray:
        """uint8 [H, W, 3], of an observation [K]; needs `camera`."""
        if self._painter is None:
            raise UserError("env.camera=false: nothing is drawn")
        return self._painted(self.physics.recall(obs.cpu().double()).numpy())

    def _painted(self, state: np.ndarray) -> np.ndarray:
        self._painter.state = state
        return np.asarray(self._painter.render())

    def sees_picture(self) -> bool:
        return False

    def state_dict(self) -> dict:
        return {**self.walkers._asdict(), "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the state is of another problem, or of more or fewer envs."""
        wanted = self.num_envs, len(self.physics.first(torch.zeros(1, self.physics.drawn))[0])
        if state["state"].shape != wanted:
            raise ValueError(f"states {tuple(state['state'].shape)}, not {wanted}")
        self.walkers = Walkers(state["state"].to(self.device), state["left"].to(self.device))
        restore_generator(self.rng, state["rng"])

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
