"""What a walker sees of its state: the four forms an observation can take, and the way back to the state."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.mdp import MDP


class Form(Protocol):
    """Of the state, an int64, what a walker sees; and back."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    bounds: tuple[float, float]  # the least and the greatest number in it

    def draw(self, state: Tensor) -> Tensor: ...  # [...] -> [..., *shape]
    def state(self, obs: Tensor) -> Tensor: ...  # [..., *shape] -> [...]


class Index(Form):
    """The number of the state itself, int64 []."""

    shape, dtype = (), torch.int64

    def __init__(self, mdp: MDP):
        self.bounds = 0.0, len(mdp.start) - 1.0

    def draw(self, state: Tensor) -> Tensor:
        return state

    def state(self, obs: Tensor) -> Tensor:
        return obs


class OneHot(Form):
    """float32 [S], a 1 at the state: a linear function of it is a table."""

    dtype, bounds = torch.float32, (0.0, 1.0)

    def __init__(self, mdp: MDP):
        self.shape = (len(mdp.start),)

    def draw(self, state: Tensor) -> Tensor:
        return torch.zeros(*state.shape, *self.shape, device=state.device).scatter_(-1, state[..., None], 1.0)

    def state(self, obs: Tensor) -> Tensor:
        return obs.argmax(-1)


class Cells:
    """Where the states lie: cell y W + x of state s, and state of each cell. One state at most may lie nowhere."""

    def __init__(self, mdp: MDP, name: str):
        layout, states = mdp.layout, len(mdp.start)
        if layout is None:
            raise UserError(f"env.obs={name} needs a map, and this world has none; use one_hot or index")
        if states - len(layout.cells) > 1 or len(set(layout.cells)) < len(layout.cells):
            raise UserError(
                f"env.obs={name} needs a cell for each state, and this world's {states} states lie in "
                f"{len(set(layout.cells))} cells; use one_hot or index"
            )
        self.layout, self.height, self.width = layout, len(layout.rows), len(layout.rows[0])
        self.yx = torch.full((states, 2), -1, device=mdp.start.device)
        self.yx[: len(layout.cells)] = torch.tensor(layout.cells, device=mdp.start.device)
        y, x = self.yx.unbind(-1)
        self.cell = torch.where(y < 0, self.height * self.width, y * self.width + x)  # nowhere comes after the last
        self.state = torch.full((self.height * self.width + 1,), states - 1, device=mdp.start.device)
        self.state[self.cell] = torch.arange(states, device=mdp.start.device)


class Planes(Form):
    """float32 [4, H, W], each 0 or 1: walls, the agent, cells that pay, cells that cost. Off the map: no agent."""

    dtype, bounds = torch.float32, (0.0, 1.0)

    def __init__(self, mdp: MDP):
        self._cells = Cells(mdp, "planes")
        layout = self._cells.layout
        self.shape = (4, self._cells.height, self._cells.width)
        self._map = torch.zeros(self.shape)
        self._map[0] = torch.tensor([[glyph == "#" for glyph in row] for row in layout.rows])
        for (y, x), reward in layout.cell_reward.items():
            self._map[2:, y, x] = torch.tensor([reward > 0, reward < 0]).float()
        self._map = self._map.to(mdp.start.device)

    def draw(self, state: Tensor) -> Tensor:
        agent = torch.zeros(*state.shape, len(self._cells.state), device=state.device)
        agent.scatter_(-1, self._cells.cell[state][..., None], 1.0)
        picture = self._map.expand(*state.shape, *self.shape).clone()
        picture[..., 1, :, :] = agent[..., :-1].unflatten(-1, self.shape[1:])
        return picture

    def state(self, obs: Tensor) -> Tensor:
        agent = obs[..., 1, :, :].flatten(-2)
        here, cell = agent.max(-1)
        return self._cells.state[torch.where(here > 0, cell, agent.shape[-1])]


class Coordinates(Form):
    """float32 [2], (y, x) from (0, 0) in the upper left corner to (1, 1); (-1, -1) off the map."""

    shape, dtype, bounds = (2,), torch.float32, (-1.0, 1.0)

    def __init__(self, mdp: MDP):
        self._cells = Cells(mdp, "coordinates")
        self._scale = torch.tensor([self._cells.height, self._cells.width], device=mdp.start.device).sub(1).clamp(min=1)
        self._table = (self._cells.yx / self._scale).where(self._cells.yx >= 0, -1.0)

    def draw(self, state: Tensor) -> Tensor:
        return self._table[state]

    def state(self, obs: Tensor) -> Tensor:
        y, x = (obs * self._scale).round().long().unbind(-1)
        return self._cells.state[torch.where(y < 0, -1, y * self._cells.width + x)]


FORMS: dict[str, Callable[[MDP], Form]] = {
    "one_hot": OneHot,
    "index": Index,
    "planes": Planes,
    "coordinates": Coordinates,
}
