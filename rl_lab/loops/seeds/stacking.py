"""S learners of one kind as one: their parameters, streams and memories side by side, each tensor [S, ...].

The code of a learner that can be stacked is written for tensors with that one more dimension in front, so its own code
runs, and the result of each depends on none of the others.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lab.agents.a2c import A2C
from rl_lab.agents.dqn import DQN
from rl_lab.agents.ppo import PPO
from rl_lab.agents.q_learning import QLearning
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import Streams, integers
from rl_lab.memory import Replay
from rl_lab.networks.torsos import Pixels
from rl_lab.types import Spec, Transition

Stackable = A2C | DQN | PPO | QLearning  # their code takes tensors [S, ...] too
MIXING = torch.optim.Adafactor, torch.optim.Muon  # look beyond the single parameter


def stacked(learners: Sequence[Stackable]) -> Stackable:
    """The learners as one, built on the first, before any has learned. Raises UserError where that cannot be."""
    one = learners[0]
    if getattr(one, "eval_epsilon", 0):
        raise UserError("agent.eval_epsilon: many seeds are evaluated at once by greedy policies; set it to 0")
    if getattr(one, "target_kl", None):
        raise UserError("agent.target_kl: many seeds at once take the same number of epochs; set it to null")
    if getattr(one, "adaptive_kl", None):
        raise UserError("agent.adaptive_kl: many seeds at once share their learning rate; set it to null")
    for name in one.saved:
        parts = [getattr(learner, name) for learner in learners]
        if isinstance(parts[0], nn.Module):
            setattr(one, name, _network(parts))
        elif isinstance(parts[0], torch.Generator):
            setattr(one, name, Streams(parts))
        elif isinstance(parts[0], Replay):
            setattr(one, name, Replays(parts))
        elif isinstance(parts[0], MIXING):
            raise UserError(f"{type(parts[0]).__name__} would mix the seeds; choose an optimizer such as Adam")
    return one


def _network(networks: Sequence[nn.Module]) -> nn.Module:
    """The first network, each of its layers now S layers; its parameters stay those that the optimizer knows."""
    one = networks[0]
    for name, module in list(one.named_modules()):
        inside = next(module.children(), None) or type(module).__module__ == "torch.nn.modules.activation"
        if not inside and type(module) not in LAYERS:
            raise UserError(
                f"agent.network: many seeds at once need networks of linear layers, not {type(module).__name__}"
            )
        if type(module) in LAYERS:
            one.set_submodule(name, LAYERS[type(module)]([network.get_submodule(name) for network in networks]))
    return one


def _stack(parameters: Sequence[Any]) -> nn.Parameter:
    """[S, ...], stored in the first one, which the optimizer knows."""
    first: nn.Parameter = parameters[0]
    first.data = torch.stack([p.data for p in parameters])
    return first


class Linears(nn.Module):
    """S linear layers: x [S, B, I] -> [S, B, O]."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = _stack([x.weight for x in layers])
        self.bias = None if layers[0].bias is None else _stack([x.bias for x in layers])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.mT
        return torch.bmm(x, weight) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), x, weight)


class LayerNorms(nn.Module):
    """S layer norms of x [S, B, F] over its features."""

    def __init__(self, layers: Sequence[nn.LayerNorm]):
        super().__init__()
        self.weight, self.bias = _stack([x.weight for x in layers]), _stack([x.bias for x in layers])
        self.shape, self.eps = layers[0].normalized_shape, layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(
            self.bias.unsqueeze(1), F.layer_norm(x, self.shape, eps=self.eps), self.weight.unsqueeze(1)
        )


LAYERS: dict[type, Callable[[Sequence[Any]], nn.Module]] = {
    nn.Linear: Linears,
    nn.LayerNorm: LayerNorms,
    nn.Flatten: lambda layers: nn.Flatten(2),
    Pixels: lambda layers: Pixels(2),
}


class Replays(Replay):
    """S replays in one ring, the envs of each seed beside one another: transitions come and go as [S, ...].

    Each is drawn from by a stream of its own.
    """

    def __init__(self, replays: Sequence[Replay]):
        if replays[0]._priorities:
            raise UserError("agent.priorities: many seeds at once draw uniformly; choose agent/priorities=none")
        vars(self).update(vars(replays[0]))
        self.seeds = len(replays)
        self._rng = Streams(replay._rng for replay in replays)  # type: ignore[assignment]  # drawn from as from one

    def announce(self, spec: Spec, num_envs: int) -> str:
        return f"{self.seeds} seeds, together a " + super().announce(spec, self.seeds * num_envs)

    def add(self, transition: Transition) -> None:
        super().add(Transition(*(x.flatten(0, 1) for x in transition)))

    @property
    def size(self) -> int:
        """Of each seed."""
        return super().size // self.seeds

    def draw(self, batch_size: int, steps: int | None = None) -> tuple[Tensor, float]:
        """Slots [S, B], those that each seed would have drawn alone, and weights of 1."""
        ring, num_envs = self._ring, self._ring.num_envs // self.seeds
        oldest = ring.first
        draws = integers(2**62, (self.seeds, batch_size), self._rng)
        place = oldest * num_envs + draws % ((ring.newest - oldest) * num_envs)  # row * num_envs + env
        first = torch.arange(0, ring.num_envs, num_envs, device=self._device).unsqueeze(1)
        slots = place // num_envs * ring.num_envs + first + place % num_envs
        return slots % ring.slots, 1.0

    def read(self, slots: Tensor, gamma: float = 1.0, max_abs_reward: float = math.inf) -> Transition:
        return Transition(*(x.unflatten(0, slots.shape) for x in super().read(slots.flatten(), gamma, max_abs_reward)))


def share(learner: Stackable, seed: int) -> dict[str, Any]:
    """What the checkpoint of one of the stacked learners would hold by itself, without its memory."""
    return {name: _share(getattr(learner, name), seed) for name in learner.saved if name != learner.memory}


def _share(part, seed: int):
    if isinstance(part, Streams):
        return part.generators[seed].get_state()
    return _row(part.state_dict() if hasattr(part, "state_dict") else part, seed)


def _row(state, seed: int):
    """Of everything [S, ...] that `state` holds the row of one seed; numbers [] are of all."""
    if isinstance(state, dict):
        return {name: _row(x, seed) for name, x in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_row(x, seed) for x in state)
    return state[seed].clone() if isinstance(state, Tensor) and state.ndim else state
