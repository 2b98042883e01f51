"""The baselines of the paper: a network without a model, and one that predicts observations."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rl_lab.agents.vpn.model import EncoderFn, Outcome, TransitionNet, he_normal, head, state_shape
from rl_lab.agents.vpn.planner import Imagined, Level, action_values, look_ahead
from rl_lab.agents.vpn.unroll import ErrorFn, PlanningNetwork, Sequences, predictable, unrolled
from rl_lab.core.settings import Count
from rl_lab.losses import half_square
from rl_lab.types import Spec


class ActionValue(PlanningNetwork):
    """The paper's DQN: the encoder, one transition by every option, and what the state reached is worth, as Q(s, o)."""

    def __init__(self, spec: Spec, encoder: EncoderFn, *, units: Count, gate: bool):
        super().__init__()
        self.encode = encoder(spec)
        shape = state_shape(self.encode, spec)
        self.transition = TransitionNet(shape[0], spec.num_actions, gate)
        self.value = head(math.prod(shape), units, activation=False)
        self.num_actions = spec.num_actions
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it best

    def q(self, obs: Tensor, branches: tuple[int, ...] = (), gamma: float = 1.0) -> Tensor:
        """[B, A]; without a model there is no looking ahead."""
        q: Tensor = self.value(self.transition(self.encode(obs)))
        return q.view(-1, self.num_actions)

    def losses(self, play: Sequences, steps: int, of_error: ErrorFn) -> dict[str, Tensor]:
        reached = self.transition(self.encode(play.obs.flatten(0, 1)), play.option.flatten())
        q = self.value(reached).view_as(play.returned)
        return {"value": (of_error(q.to(play.returned.dtype) - play.returned) * play.valued).sum(0)}


class ObservationPrediction(PlanningNetwork):
    """OPN: its state is an observation, imagined and encoded anew at each depth; its values come of a second network.

    The authors released none; what the paper says is that the model learns by the same k-step scheme with squared
    errors of the observations, and the value network from observations, independently. Sizes are ours.
    """

    models = True

    def __init__(
        self,
        spec: Spec,
        encoder: EncoderFn,
        *,
        units: Count,
        gate: bool,
        joint_head: bool,
        duration: Literal["relu", "softplus", "fixed"],
    ):
        super().__init__()
        self.encoder = encoder(spec)
        shape = state_shape(self.encoder, spec)
        self.transition = TransitionNet(shape[0], spec.num_actions, gate)
        self.outcome = Outcome(shape, spec.num_actions, units, joint_head, duration)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(shape[0], 32, 4, stride=2, padding=1),
            nn.ELU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Conv2d(32, spec.obs_shape[0], 3, padding=1),
        ).apply(he_normal)
        self.value = nn.Sequential(encoder(spec), head(math.prod(shape), units))
        self.num_actions, self.size = spec.num_actions, spec.obs_shape[1:]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it best

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def imagine(self, state: Tensor, option: Tensor | None = None) -> Imagined:
        hidden = self.encoder(state)
        seen = self.decoder(self.transition(hidden, option))[..., : self.size[0], : self.size[1]]
        reward, duration = self.outcome(hidden, option)
        value = self.value(seen).squeeze(-1)
        if option is not None:
            return Imagined(seen, reward, duration, value)
        return Imagined(*(x.unflatten(0, (len(state), -1)) for x in (seen, reward, duration, value)))

    def q(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> Tensor:
        return action_values(self.plan(obs, branches, gamma), self.num_actions)

    def plan(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> tuple[Level, ...]:
        return look_ahead(self, self.encode(obs), branches, gamma)

    def losses(self, play: Sequences, steps: int, of_error: ErrorFn) -> dict[str, Tensor]:
        """As `k_step_losses`, and of the observation; but the value learns from true observations alone."""
        losses = dict.fromkeys(("reward", "duration", "observation"), torch.zeros((), device=play.reward.device))
        seen = ~play.end | (play.valued > 0)
        masks = predictable(play.end, play.start, steps)
        for i, (imagined, mask) in enumerate(zip(unrolled(self, play.obs, play.option, steps), masks, strict=True)):
            for name in ("reward", "duration"):
                error = getattr(imagined, name).to(play.reward.dtype) - getattr(play, name)[i:]
                losses[name] = losses[name] + (of_error(error) * mask).sum(0)
            error = half_square(imagined.state - play.next_obs[i:]).sum((2, 3, 4))
            losses["observation"] = losses["observation"] + (error * (mask & seen[i:])).sum(0)
        value = self.value(play.next_obs.flatten(0, 1)).view_as(play.reached)
        losses["value"] = (of_error(value.to(play.reached.dtype) - play.reached) * play.valued).sum(0)
        return losses
