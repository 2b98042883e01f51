"""The records and protocols that all parts share. Shapes: N envs, T steps, B samples, A actions, S states."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rl_lab.core.learner import Metrics

Policy = Callable[[Tensor], Tensor]  # obs [N, ...] -> action [N]


class Spec(NamedTuple):
    """What an agent must know of an environment before it is built."""

    obs_shape: tuple[int, ...]
    obs_dtype: torch.dtype
    actions: tuple[str, ...]  # their names, in order
    frame_stack: int = 1  # frames of an observation, oldest first, with zeros from before its episode

    @property
    def num_actions(self) -> int:
        return len(self.actions)


class Step(NamedTuple):
    """What the world answers to an action.

    discount is 0 where the future ends (no bootstrapping) and 1 elsewhere; last marks where the episode ends, for
    either reason. Terminated = (0, True); truncated = (1, True); a lost life that ends the future = (0, False).

    An action may be an option that lasts several primitive steps (Sutton, Precup and Singh, 1999): `duration` is how
    many, elsewhere 1. A learner discounts the future by gamma^duration (`returns.discounts`).
    """

    reward: Tensor  # [N] float32, as the game gave it: not clipped, not scaled
    discount: Tensor  # [N] float32
    last: Tensor  # [N] bool
    next_obs: Tensor  # [N, ...] the true successor, even where the episode ended: learn from this
    obs: Tensor  # [N, ...] a first observation where it ended, else next_obs: act on this
    duration: Tensor  # [N] primitive steps
    signal: Tensor | None = None  # [N] float32, what to learn from in place of `reward`, where that is another


class Transition(NamedTuple):
    """What an agent learns from; the fields may be [N, ...], [B, ...] or [T, N, ...]."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    last: Tensor
    next_obs: Tensor
    duration: Tensor

    @classmethod
    def of(cls, obs: Tensor, action: Tensor, step: Step) -> "Transition":
        """What came of `action` [N], taken at obs [N, ...]."""
        reward = step.reward if step.signal is None else step.signal
        return cls(obs, action, reward, step.discount, step.last, step.next_obs, step.duration)


class View(NamedTuple):
    """What an agent thinks of some observations, for pictures."""

    bars: Tensor  # [N, A] action values or probabilities
    value: Tensor  # [N] of the state
    kind: str  # what the bars are: "action values", "probabilities"


class VectorEnv(Protocol):
    """N copies of a world that step together; every tensor lives on `device`."""

    spec: Spec
    num_envs: int
    device: torch.device

    @property
    def time_limit(self) -> int | None: ...  # steps of an episode; None: it may never end
    @property
    def frames_per_second(self) -> float | None: ...  # the speed of its time; None: it waits for each action
    def reset(self, seed: int) -> Tensor: ...
    def step(self, action: Tensor) -> Step: ...
    def observe(self) -> Tensor: ...  # [N, ...] what `act` should see now: after a reset, a step, or a restored state
    def state_dict(self) -> dict[str, Any]: ...  # {} where it cannot be saved: a resumed run starts new episodes
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Actor(Protocol):
    """Who can be evaluated. `probabilities` are those by which `act(obs, greedy=True)` draws: 1 for one action where it
    never draws. In a known world the exact regret follows from them."""

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor: ...
    def probabilities(self, obs: Tensor) -> Tensor: ...  # [N, A]


class Agent(Actor, Protocol):
    """A learner that acts; it is updated on the transition of all envs at one step."""

    @property
    def settled(self) -> bool: ...  # whether a checkpoint now would hold everything
    def update(self, transition: Transition) -> Metrics: ...  # {} when it did not learn
    def view(self, obs: Tensor) -> View: ...  # with its graph, for gradients with respect to obs
    def announce(self, num_envs: int) -> str | None: ...  # what there is to say before the first step
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Viewed(Actor, Protocol):
    """An actor that shows what it thinks: all that a film, a recording or an evaluation needs of an agent."""

    def view(self, obs: Tensor) -> View: ...  # with its graph, for gradients with respect to obs


@runtime_checkable
class Drawing(Protocol):
    """An agent that draws its actions, from a stream of its own."""

    rng: torch.Generator
