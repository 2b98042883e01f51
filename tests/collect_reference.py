"""Collect in plain Python, one board at a time, written from its rules: what the tensors are held against."""

from dataclasses import dataclass

import numpy as np

MOVES = (-1, 0), (0, 1), (1, 0), (0, -1)  # up, right, down, left


@dataclass
class Rules:
    goal_reward: float = 2.0
    living_reward: float = -0.2
    bump: float = -0.5
    time_limit: int = 20
    slip: float = 0.0
    drift: float = 0.0
    options: bool = True
    option_gamma: float = 0.99


@dataclass
class Board:
    """Rows of text, '#' wall; cells are (y, x) on these. A goal that was collected is None."""

    rows: list[str]
    agent: tuple[int, int]
    goals: list
    left: int  # primitive steps

    def is_open(self, cell) -> bool:
        return self.rows[cell[0]][cell[1]] != "#"

    def beside(self, cell) -> list:
        return [(cell[0] + dy, cell[1] + dx) for dy, dx in MOVES]

    def option(self, action: int, rules: Rules, slips, drifts) -> tuple[float, int, bool]:
        """Its reward, its duration and whether the episode is over; slips [K] and drifts [K][G] in [0, 1)."""
        total = 0.0
        for i in range(len(self.rows)):
            reward, collected = self.primitive(action, rules, drifts[i] if rules.drift else None)
            total += rules.option_gamma**i * reward
            over = self.over
            wall_ahead = not self.is_open(self.beside(self.agent)[action])
            at_junction = sum(map(self.is_open, self.beside(self.agent))) >= 3
            stops = at_junction and not (rules.slip and slips[i] < rules.slip)
            if wall_ahead or collected or stops or over or not rules.options:
                return total, i + 1, over
        raise AssertionError("an option cannot be longer than the board is wide")

    def primitive(self, action: int, rules: Rules, drifts) -> tuple[float, bool]:
        self.left -= 1
        target = self.beside(self.agent)[action]
        reward, collected = rules.bump, False
        if self.is_open(target):
            self.agent, reward = target, rules.living_reward
            if target in self.goals:
                self.goals[self.goals.index(target)] = None
                reward, collected = rules.goal_reward, True
        if rules.drift and not self.over:
            self.drift(rules.drift, drifts)
        return reward, collected

    @property
    def over(self) -> bool:
        return self.left == 0 or all(goal is None for goal in self.goals)

    def drift(self, probability: float, draws) -> None:
        for i, goal in enumerate(self.goals):
            if goal is None or draws[i] >= probability:
                continue
            taken = [self.agent, *self.goals]
            empty = [cell for cell in self.beside(goal) if self.is_open(cell) and cell not in taken]
            if empty:
                self.goals[i] = empty[int(draws[i] / probability * len(empty))]

    def planes(self, time_limit: int) -> np.ndarray:
        planes = np.zeros((4, len(self.rows), len(self.rows)), np.float32)
        planes[0] = [[glyph == "#" for glyph in row] for row in self.rows]
        planes[1][self.agent] = 1
        for goal in self.goals:
            if goal is not None:
                planes[2][goal] = 1
        planes[3] = self.left / time_limit
        return planes
