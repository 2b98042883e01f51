"""The equations of motion, as Gymnasium has them: float64 states [N, D], observations float32 [N, K]."""

from math import pi
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Move(NamedTuple):
    """Where an action leads."""

    state: Tensor  # [N, D]
    reward: Tensor  # [N] float32
    terminal: Tensor  # [N] bool


class Physics(Protocol):
    id: str  # of Gymnasium's environment, which also draws the states
    actions: tuple[str, ...]
    size: int  # numbers in an observation, K
    drawn: int  # uniform numbers that a first state takes, U
    frames_per_second: float

    def first(self, draws: Tensor) -> Tensor: ...  # float64 [N, U] in [0, 1) -> [N, D]
    def move(self, state: Tensor, action: Tensor) -> Move: ...
    def look(self, state: Tensor) -> Tensor: ...
    def recall(self, obs: Tensor) -> Tensor: ...  # the state that looks so, float64 [..., K] -> [..., D]


class CartPole:
    """A pole on a cart (Barto, Sutton and Anderson, 1983; https://doi.org/10.1109/TSMC.1983.6313077).

    The cart's place [m] and speed, the pole's angle from upright [rad] and its speed; Euler steps of 20 ms. The
    equations are those of Florian (2007; https://coneural.org/florian/papers/05_cart_pole.pdf), without friction.
    """

    id, actions, size, drawn = "CartPole-v1", ("left", "right"), 4, 4
    frames_per_second = 50.0
    GRAVITY, FORCE, TAU = 9.8, 10.0, 0.02
    POLE, TOTAL, HALF = 0.1, 1.1, 0.5  # masses of the pole and of all [kg], half the pole's length [m]
    EDGE, FALL = 2.4, 12 * 2 * pi / 360  # an episode ends beyond them

    def first(self, draws: Tensor) -> Tensor:
        return (draws - 0.5) / 10

    def move(self, state: Tensor, action: Tensor) -> Move:
        _, speed, angle, turn = state.unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        swing = self.POLE * self.HALF
        push = (turn.square() * sin * swing + (2 * self.FORCE * action - self.FORCE)) / self.TOTAL
        leverage = self.HALF * (4 / 3 - self.POLE / self.TOTAL * cos.square())
        bend = (self.GRAVITY * sin - cos * push) / leverage
        change = torch.stack([speed, push - swing / self.TOTAL * bend * cos, turn, bend], -1)
        state = torch.add(state, change, alpha=self.TAU)
        place, _, angle, _ = state.unbind(-1)
        fallen = (place.abs() > self.EDGE) | (angle.abs() > self.FALL)
        return Move(state, torch.ones_like(place, dtype=torch.float32), fallen)

    def look(self, state: Tensor) -> Tensor:
        return state.float()

    def recall(self, obs: Tensor) -> Tensor:
        return obs


class Acrobot:
    """Two links, and a torque at the joint between them (Sutton, 1996; Sutton and Barto, 2018, section 11.3).

    The first link's angle from hanging and the second's from the first [rad], and their speeds; one Runge-Kutta step
    of 0.2 s. Both links are 1 m long, have 1 kg in their middle and a moment of inertia of 1.
    """

    id, actions, size, drawn = "Acrobot-v1", ("left", "none", "right"), 6, 4
    frames_per_second = 15.0
    GRAVITY, TAU = 9.8, 0.2

    def first(self, draws: Tensor) -> Tensor:
        return ((draws - 0.5) / 5).float().double()  # Gymnasium's first states are rounded

    def move(self, state: Tensor, action: Tensor) -> Move:
        torque = (action - 1).double()
        k1 = self.change(state, torque)
        k2 = self.change(torch.add(state, k1, alpha=self.TAU / 2), torque)
        k3 = self.change(torch.add(state, k2, alpha=self.TAU / 2), torque)
        k4 = self.change(torch.add(state, k3, alpha=self.TAU), torque)
        angles, speeds = (state + self.TAU / 6 * (k1 + 2 * (k2 + k3) + k4)).split(2, -1)
        angles = angles - 2 * pi * (angles / (2 * pi)).round()
        speed1, speed2 = speeds.unbind(-1)
        speeds = torch.stack([speed1.clamp(-4 * pi, 4 * pi), speed2.clamp(-9 * pi, 9 * pi)], -1)
        angle1, angle2 = angles.unbind(-1)
        reached = -angle1.cos() - (angle1 + angle2).cos() > 1
        return Move(torch.cat([angles, speeds], -1), reached.float() - 1, reached)

    def change(self, state: Tensor, torque: Tensor) -> Tensor:
        """The derivative [N, 4] of the state by time, with the terms that the book has."""
        angle1, angle2, speed1, speed2 = state.unbind(-1)
        sin2, cos2 = angle2.sin(), angle2.cos()
        inertia1, inertia2 = cos2 + 3.5, 0.5 * cos2 + 1.25
        weight2 = 0.5 * self.GRAVITY * (angle1 + angle2).sin()
        weight1 = 1.5 * self.GRAVITY * angle1.sin() + weight2 - 0.5 * speed2 * (speed2 + 2 * speed1) * sin2
        share = inertia2 / inertia1
        bend2 = torque + share * weight1 - 0.5 * speed1.square() * sin2 - weight2
        bend2 = bend2 / (1.25 - inertia2 * share)
        bend1 = -share * bend2 - weight1 / inertia1
        return torch.stack([speed1, speed2, bend1, bend2], -1)

    def look(self, state: Tensor) -> Tensor:
        angles, speeds = state.split(2, -1)
        return torch.cat([torch.stack([angles.cos(), angles.sin()], -1).flatten(-2), speeds], -1).float()

    def recall(self, obs: Tensor) -> Tensor:
        cos1, sin1, cos2, sin2, speed1, speed2 = obs.unbind(-1)
        return torch.stack([torch.atan2(sin1, cos1), torch.atan2(sin2, cos2), speed1, speed2], -1)


class MountainCar:
    """An engine too weak for the hill (Moore, 1990; Sutton and Barto, 2018, example 10.1): place and speed."""

    id, actions, size, drawn = "MountainCar-v0", ("left", "none", "right"), 2, 1
    frames_per_second = 30.0
    ENGINE, GRAVITY, TOP_SPEED = 0.001, 0.0025, 0.07
    WALL, END, GOAL = -1.2, 0.6, 0.5  # the wall stops the car

    def first(self, draws: Tensor) -> Tensor:
        return torch.cat([draws / 5 - 0.6, torch.zeros_like(draws)], -1)

    def move(self, state: Tensor, action: Tensor) -> Move:
        place, speed = state.unbind(-1)
        speed = speed + (self.ENGINE * (action - 1).double() - self.GRAVITY * (3 * place).cos())
        speed = speed.clamp(-self.TOP_SPEED, self.TOP_SPEED)
        place = (place + speed).clamp(self.WALL, self.END)
        speed = torch.where(place == self.WALL, speed.clamp(min=0), speed)
        reached = (place >= self.GOAL) & (speed >= 0)
        return Move(torch.stack([place, speed], -1), torch.full_like(place, -1, dtype=torch.float32), reached)

    def look(self, state: Tensor) -> Tensor:
        return state.float()

    def recall(self, obs: Tensor) -> Tensor:
        return obs
