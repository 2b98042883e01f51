"""Collect (Oh, Singh and Lee, 2017; https://arxiv.org/abs/1707.03497): goals to be found in a maze, against time."""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, restore_generator
from rl_lab.core.settings import Bound, Count, Envs, Natural, Unit
from rl_lab.envs.abilities import Advance, Map, mixed
from rl_lab.envs.collect.mazes import SIDE, pool
from rl_lab.envs.collect.starts import Starts, mask
from rl_lab.envs.tabular.gridworld import MOVES
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.types import Spec, Step

NOWHERE = SIDE**2  # where goals lie that were collected
TICKETS = 12  # a goal that moves draws one: 1, 2, 3 or 4 free cells beside it get equal shares


class Walkers(NamedTuple):
    """Cell 8 y + x is counted from the first within the border; it is bit 8 y + x of a mask."""

    open: Tensor  # [N] int64, mask of the cells that are no wall
    agent: Tensor  # [N] int64, cell
    goals: Tensor  # [N] int64, mask
    places: Tensor  # [N, G] int64, their cells in the order they move in, 64 once collected; [N, 0] where none moves
    left: Tensor  # [N] int64, primitive steps until the time is up
    number: Tensor  # [N] int64, of the episode, which decides its maze


class Collect:
    """N agents, each in a maze of its own. An episode ends with the last goal or when the time is up: no future then.

    An action is an option (Sutton, Precup and Singh, 1999): it moves in its direction until a wall is ahead, a goal
    is collected or the agent stands at a junction. Its reward is the sum of its steps', the i-th times option_gamma^i.
    Env i plays the episodes i, i + N, i + 2 N... of one sequence fixed by the seed, whatever the agent and N.
    """

    frames_per_second: float | None = None
    has_map = True
    bounds = 0.0, 1.0

    def __init__(
        self,
        num_envs: Envs,
        *,
        size: Annotated[int, Bound(4, SIDE + 2)],  # cells a side, the border's among them
        goals: Count,
        holes: Natural,  # walls opened, at most, after carving
        time_limit: Annotated[int, Bound(1, 10_000)],  # primitive steps
        goal_reward: float,  # instead of living_reward
        living_reward: float,
        bump: float,  # instead of living_reward, for a step into a wall
        slip: Unit,  # probability that an option runs past a junction
        drift: Unit,  # probability that a goal moves to a free cell beside it, each step
        options: bool,  # False: an action is one primitive step
        option_gamma: Unit,
        mazes: Annotated[int, Bound(1, 2**20)],  # made beforehand; each shows in eight symmetries
        maze_seed: Natural,
        device: Device,
    ):
        self.num_envs, self.size, self.width, self.device = num_envs, size, size - 2, torch.device(device)
        self.goals, self.holes, self.mazes, self.maze_seed = goals, holes, mazes, maze_seed
        self.time_limit, self.slip, self.drift = time_limit, slip, drift
        self.rng, self.spec = generator(0, self.device), Spec((4, size, size), torch.float32, tuple(MOVES))
        self._ids = torch.arange(num_envs, device=self.device)
        if goals >= self.width**2:
            raise UserError(
                f"env.goals={goals} must be at most {self.width**2 - 1}: a maze of env.size={size} "
                f"has {self.width**2} cells, and the agent needs one"
            )
        self.longest = min(self.width - 1, time_limit) if options else 1  # primitive steps of an option
        steps = np.arange(self.longest + 1)
        weight = option_gamma ** np.maximum(steps - 1, 0) * (steps > 0)  # of the last of this many steps
        found = living_reward * weight.cumsum() + (goal_reward - living_reward) * weight
        self._pay = self._tensor([living_reward * weight.cumsum(), found, bump + 0 * steps], torch.float32).flatten()
        self._lay_out()
        self._draw_rows()

    def _tensor(self, x, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(np.asarray(x), dtype=dtype).to(self.device)

    def _lay_out(self) -> None:
        """What lies beside what, and where a goal moves by its ticket and the ways that are free."""
        y, x = np.divmod(np.arange(SIDE**2), SIDE)
        inside = np.stack([y > 0, x < SIDE - 1, y < SIDE - 1, x > 0])
        self._within = self._tensor(mask(inside)).unsqueeze(1)  # cells that have one up, right, down and left of them
        strides = [-SIDE, 1, SIDE, -1]
        self._stride, self._powers = self._tensor(strides), self._tensor([[1], [2], [4], [8]])
        self._bit = self._tensor([*mask(np.eye(SIDE**2, dtype=bool)), 0])
        free = [[stride for way, stride in enumerate(strides) if ways >> way & 1] or [0] for ways in range(16)]
        leap = [[moves[ticket * len(moves) // TICKETS] for moves in free] for ticket in range(TICKETS)]
        self._leap = self._tensor([*leap, [0] * 16]).flatten()  # with the last ticket a goal stays

    def _draw_rows(self) -> None:
        """Every row that a plane can have: walls, then things, by the byte of a mask; then times by the steps left."""
        things = np.arange(256)[:, None] >> np.arange(self.width) & 1
        walls, things = (np.pad(x, ((0, 0), (1, 1)), constant_values=rim) for x, rim in ((1 - things, 1), (things, 0)))
        times = np.repeat(np.arange(self.time_limit + 1)[:, None] / self.time_limit, self.size, 1)
        self._rows = self._tensor(np.concatenate([walls, things, times]), torch.float32)
        self._kind = self._tensor([[0], [256], [256], [512]], torch.int32)  # where the rows of each plane begin

    # -- where episodes begin

    def reset(self, seed: int) -> Tensor:
        self.seed(seed)
        self.walkers = self.start(self._ids)
        return self.observe()

    def seed(self, seed: int) -> None:
        """All that is drawn from now on follows from it."""
        self.rng.manual_seed(seed)
        self.key = int(np.random.default_rng(seed).integers(2**32))

    @cached_property
    def _starts(self) -> Starts:
        made = pool(self.width, self.holes, self.mazes, self.maze_seed)
        if (fewest := int(made.sizes.min())) <= self.goals:
            raise UserError(
                f"env.goals={self.goals} must be at most {fewest - 1}: some mazes have {fewest} open "
                "cells, and the agent needs one"
            )
        return Starts(made, self.width, 1 + self.goals, self.device)

    def begun(self) -> Walkers:
        """Walkers at the start of the episodes that come next."""
        return self.start(self.walkers.number + self.num_envs)

    def start(self, number: Tensor) -> Walkers:
        """First states of the episodes numbered [N]."""
        open, cells = self._starts.draw(number + self.key)
        goals = self._bit.index_select(0, cells[1:].flatten()).view(-1, len(number)).sum(0)
        places = cells[1:].T if self.drift else number.view(-1, 1)[:, :0]
        return Walkers(open, cells[0], goals, places, torch.full_like(number, self.time_limit), number)

    # -- steps

    def step(self, action: Tensor) -> Step:
        self.walkers, successor, reward, discount, last, duration = self.advance(self.walkers, action, *self.draw())
        assert duration is not None  # an option reports how long it took
        return Step(reward, discount, last, self.look(successor), self.observe(), duration.to(torch.float32))

    def draw(self) -> tuple[Tensor | None, Tensor | None]:
        """What chance decides in a step, in [0, 1): for each primitive one, [K, N], and each goal, [K, G, N]."""
        shape = self.longest, self.goals, self.num_envs
        slips = torch.rand(shape[::2], generator=self.rng, device=self.device) if self.slip else None
        drifts = torch.rand(shape, generator=self.rng, device=self.device) if self.drift else None
        return slips, drifts

    def advance(
        self, walkers: Walkers, action: Tensor, slips: Tensor | None, drifts: Tensor | None
    ) -> Advance[Walkers, Walkers]:
        """The step as a function: nothing of the env changes."""
        agent, goals, places, moves, found = self._option(walkers, action, slips, drifts)
        duration = moves.clamp(min=1)  # a bump takes a step too
        reward = self._pay.index_select(0, moves + torch.where(moves > 0, found, 2) * (self.longest + 1))
        left = walkers.left - duration
        last = (left == 0) | (goals == 0)
        discount = (~last).to(torch.float32)
        successor = Walkers(walkers.open, agent, goals, places, left, walkers.number)
        fresh = self.start(walkers.number + self.num_envs)
        return Advance(mixed(last, fresh, successor), successor, reward, discount, last, duration)

    def _option(self, walkers: Walkers, action: Tensor, slips: Tensor | None, drifts: Tensor | None) -> tuple:
        """Where it leads: agent, goals and places; how often the agent moved; and 1 where it collected; all [N]."""
        open, agent, goals, places, left, _ = walkers
        ahead, junction = self._ways(open, action)
        stride, on = self._stride.index_select(0, action), ahead & ~junction & ~goals  # where an option goes on
        moves = found = torch.zeros_like(agent)
        moving = ahead >> agent & 1
        for i in range(self.longest):
            moves = moves + moving
            here = torch.addcmul(agent, stride, moves)
            if drifts is not None:
                hit, acting = goals >> here & 1, (left > i + 1) & (moving > 0 if i else True)  # a bump takes time too
                goals, places = goals ^ hit << here, places.where(places != here.unsqueeze(1), NOWHERE)
                goals, places = self._drifted(open, here, goals, places, drifts[i], acting)
                found, moving, on = found | hit, moving & acting & ~hit, ahead & ~junction & ~goals
            if slips is not None:
                on = ahead & ~goals & ~junction.where(slips[i] >= self.slip, 0)
            moving = moving & on >> here
        moves = torch.minimum(moves, left)
        here = torch.addcmul(agent, stride, moves)
        hit = goals >> here & 1
        return here, goals ^ hit << here, places, moves, found | hit

    def _ways(self, open: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Masks [N] of the open cells: those with an open one ahead, and those with three or four beside them."""
        above, right, below, left = self._within
        up, right = open << SIDE & open & above, open >> 1 & open & right
        down, left = open >> SIDE & open & below, open << 1 & open & left
        junction = up & down & (right | left) | right & left & (up | down)
        chosen = torch.add(self._ids, action, alpha=self.num_envs)
        return torch.cat([up, right, down, left]).index_select(0, chosen), junction

    def _drifted(
        self, open: Tensor, agent: Tensor, goals: Tensor, places: Tensor, draw: Tensor, free: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The goals, and their places, after each had its chance [G, N] to move; where not `free` [N] all stay."""
        places, empty, moved = places.T, open & ~goals & ~self._bit.index_select(0, agent), []
        tickets = (draw * (TICKETS / self.drift)).long().clamp(max=TICKETS)
        tickets = 16 * tickets.where(free & (places != NOWHERE), TICKETS)
        beside = places.unsqueeze(1) + self._stride.unsqueeze(1) & NOWHERE - 1  # [G, 4, N]
        within = (self._within >> (places.unsqueeze(1) & NOWHERE - 1) & 1) * self._powers
        for place, ticket, near, power in zip(places, tickets, beside, within, strict=True):
            ways = ((empty >> near & 1) * power).sum(0)
            to = place + self._leap.index_select(0, ticket + ways)
            change = self._bit.index_select(0, place) ^ self._bit.index_select(0, to)
            goals, empty = goals ^ change, empty ^ change
            moved.append(to)
        return goals, torch.stack(moved).T

    # -- observations

    @property
    def state(self) -> Walkers:
        return self.walkers

    def observe(self) -> Tensor:
        return self.look(self.walkers)

    def look(self, walkers: Walkers) -> Tensor:
        """float32 [N, 4, size, size]: walls, the agent, the goals, and everywhere the share of time that is left."""
        masks = torch.stack([walkers.open, self._bit.index_select(0, walkers.agent), walkers.goals], 1)
        rows = masks.view(torch.uint8).view(-1, 3, SIDE)[..., : self.width]
        rows = pad(rows, (1, 1, 0, 1)) + self._kind  # a border around the board, and a plane for the time
        rows[:, 3] += walkers.left.unsqueeze(1)
        return self._rows.index_select(0, rows.flatten()).view(-1, *self.spec.obs_shape)

    def maps(self, obs: Tensor) -> Iterator[Map]:
        for walls, agent, goals, left in obs.cpu().numpy():
            rows = tuple("".join("#" if wall else "." for wall in row) for row in walls)
            [(y, x)], places = np.argwhere(agent).tolist(), np.argwhere(goals).tolist()
            share = float(left[0, 0])
            clock = f"{round(share * self.time_limit)} of {self.time_limit} steps left"
            yield Map(maze_of(rows), (y, x), tuple((y, x) for y, x in places), share, clock)

    # -- stopping and going on

    def state_dict(self) -> dict:
        return {**self.walkers._asdict(), "key": self.key, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        if len(state["agent"]) != self.num_envs:
            raise ValueError(f"{len(state['agent'])} walkers, not env.num_envs={self.num_envs}")
        self.walkers = Walkers(*(state[name].to(self.device) for name in Walkers._fields))
        self.key = state["key"]
        restore_generator(self.rng, state["rng"])

    def close(self) -> None: ...


@lru_cache(64)
def maze_of(rows: tuple[str, ...]) -> Layout:
    free = ((y, x) for y, row in enumerate(rows) for x, glyph in enumerate(row) if glyph != "#")
    return Layout(rows, tuple(free), {})
