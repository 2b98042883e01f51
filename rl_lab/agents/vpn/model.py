"""The parts of the value prediction network: `encode`, `transition`, `outcome` and `value`."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lab.agents.vpn.planner import Imagined, Level, action_values, look_ahead
from rl_lab.agents.vpn.unroll import ErrorFn, PlanningNetwork, Sequences, k_step_losses
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count
from rl_lab.networks.torsos import Convolutional, Frames
from rl_lab.types import Spec

EncoderFn = Callable[[Spec], nn.Module]


class ValuePrediction(PlanningNetwork):
    """Predicts, in an abstract state of its own, what each option pays, how long it takes and what it leads to."""

    models = True

    def __init__(
        self,
        spec: Spec,
        encoder: EncoderFn,
        *,
        units: Count,  # of the hidden layer of every head
        gate: bool,  # whether a sigmoid gate weighs what a transition adds to the state
        joint_head: bool,  # whether reward and duration are two outputs of one head
        duration: Literal["relu", "softplus", "fixed"],  # 1 + relu(x), 1 + softplus(x), or always 1
    ):
        super().__init__()
        self.encode = encoder(spec)
        shape = state_shape(self.encode, spec)
        self.transition = TransitionNet(shape[0], spec.num_actions, gate)
        self.outcome = Outcome(shape, spec.num_actions, units, joint_head, duration)
        self.value = head(math.prod(shape), units)
        self.num_actions = spec.num_actions
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions like it best

    def imagine(self, state: Tensor, option: Tensor | None = None) -> Imagined:
        reached = self.transition(state, option)
        reward, duration = self.outcome(state, option)
        value = self.value(reached).squeeze(-1)
        if option is not None:
            return Imagined(reached, reward, duration, value)
        return Imagined(*(x.unflatten(0, (len(state), -1)) for x in (reached, reward, duration, value)))

    def q(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> Tensor:
        return action_values(self.plan(obs, branches, gamma), self.num_actions)

    def plan(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> tuple[Level, ...]:
        return look_ahead(self, self.encode(obs), branches, gamma)

    def losses(self, play: Sequences, steps: int, of_error: ErrorFn) -> dict[str, Tensor]:
        return k_step_losses(self, play, steps, of_error)


class TransitionNet(nn.Module):
    """s' = ELU(s + u), where u comes of three convolutions, the first with weights of its own for each option."""

    def __init__(self, channels: int, options: int, gate: bool):
        super().__init__()
        self.option = OptionConv(channels, options)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.change = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 1) if gate else None
        self.apply(he_normal)

    def forward(self, state: Tensor, option: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B A, C, H, W] by every option, or [B, C, H, W] by `option` [B]."""
        h = F.elu(self.mix(self.option(state, option)), inplace=True)
        u = self.change(h)
        if self.gate is not None:
            u = torch.sigmoid(self.gate(h)) * u
        return F.elu((state.unsqueeze(1) + u.unflatten(0, (len(state), -1))).flatten(0, 1), inplace=True)


class Outcome(nn.Module):
    """What an option pays until it ends, and how many primitive steps that takes."""

    def __init__(self, shape: tuple[int, int, int], options: int, units: int, joint_head: bool, duration: str):
        super().__init__()
        self.option = OptionConv(shape[0], options)
        self.mix = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.apply(glorot_uniform)
        timed, features = duration != "fixed", math.prod(shape)
        self.reward = head(features, units, 2 if joint_head and timed else 1)
        self.duration = head(features, units) if timed and not joint_head else None
        kinds: dict[str, Callable[[Tensor], Tensor]]
        kinds = {"relu": F.relu, "softplus": F.softplus, "fixed": torch.zeros_like}
        self.beyond_one = kinds[duration]

    def forward(self, state: Tensor, option: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> reward and duration, each [B A] or, by `option` [B], [B]."""
        h = F.elu(self.mix(self.option(state, option)), inplace=True)
        reward = self.reward(h)
        duration = self.duration(h) if self.duration is not None else reward[:, -1:]
        return reward[:, 0], 1 + self.beyond_one(duration[:, 0])


class OptionConv(nn.Module):
    """A 3 x 3 convolution and ELU with weights of its own for each option."""

    def __init__(self, channels: int, options: int):
        super().__init__()
        self.options, self.conv = options, nn.Conv2d(channels, options * channels, 3, padding=1)

    def forward(self, state: Tensor, option: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B A, C, H, W], or those of `option` [B] alone, [B, C, H, W]."""
        if option is None:
            x = self.every(state).movedim(3, 1).flatten(0, 1).movedim(-1, 1)
        else:
            x = self.picked(state, option) if state.is_cuda else self.sorted(state, option)
        return F.elu(x, inplace=True)

    def every(self, state: Tensor) -> Tensor:
        """[B, H, W, A, C]."""
        return torch.unflatten(self.conv(state).movedim(1, -1), -1, (self.options, -1))

    def picked(self, state: Tensor, option: Tensor) -> Tensor:
        """By every option, and then one is taken: without waiting for the device."""
        return self.every(state)[torch.arange(len(state), device=state.device), :, :, option].movedim(-1, 1)

    def sorted(self, state: Tensor, option: Tensor) -> Tensor:
        """The states of one option at a time: a third of the time on a CPU."""
        order = option.argsort()
        parts = state[order].split(option.bincount(minlength=self.options).tolist())
        weight, bias = (x.chunk(self.options) for x in self.conv.parameters())
        weights = zip(parts, weight, bias, strict=True)
        return torch.cat([F.conv2d(part, w, b, padding=1) for part, w, b in weights])[order.argsort()]


class GridEncoder(nn.Module):
    """Planes [B, P, H, W] -> [B, C, H / 2, W / 2], rounded up; the remaining time joins as one more channel."""

    def __init__(
        self,
        spec: Spec,
        *,
        channels: Sequence[Count],  # of each of three convolutions
        time_plane: bool,  # whether the last plane is the remaining time
    ):
        super().__init__()
        if len(spec.obs_shape) != 3 or not spec.obs_dtype.is_floating_point:
            raise UserError(
                f"agent.network.encoder=GridEncoder needs planes of a map, not observations "
                f"{spec.obs_shape} of {spec.obs_dtype}; set env.obs=planes"
            )
        if len(channels) != 3:
            raise UserError(f"agent.network.encoder.channels={[*channels]} must list 3, one for each convolution")
        planes, height, width = spec.obs_shape
        self.time_plane, (first, second, third) = time_plane, channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(planes - time_plane, first, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ELU(inplace=True),
            nn.ZeroPad2d((0, width % 2, 0, height % 2)),
            nn.Conv2d(second, third, 4, stride=2, padding=1),
            nn.ELU(inplace=True),
        ).apply(he_normal)

    def forward(self, obs: Tensor) -> Tensor:
        obs = obs.contiguous(memory_format=torch.channels_last)
        state: Tensor = self.convolutions(obs[:, :-1] if self.time_plane else obs)
        if not self.time_plane:
            return state
        time = obs[:, -1:].mean((2, 3), keepdim=True)
        return torch.cat([state, time.expand(-1, 1, *state.shape[2:])], 1)


class FrameEncoder(nn.Module):
    """uint8 frames [B, 4, 84, 84] -> [B, 32, 9, 9]."""

    def __init__(self, spec: Spec):
        super().__init__()
        if len(spec.obs_shape) != 3 or min(spec.obs_shape[1:]) < 20:
            raise UserError(
                f"agent.network.encoder=FrameEncoder needs frames of at least 20 x 20, not observations "
                f"{spec.obs_shape}; take rl_lab.agents.vpn.model.GridEncoder"
            )
        self.convolutions = Convolutional(
            Frames(),
            nn.Conv2d(spec.obs_shape[0], 16, 8, stride=4),
            nn.ELU(inplace=True),
            nn.Conv2d(16, 32, 4, stride=2),
            nn.ELU(inplace=True),
        ).apply(he_normal)

    def forward(self, obs: Tensor) -> Tensor:
        state: Tensor = self.convolutions(obs)
        return state


class VectorEncoder(nn.Module):
    """Vectors [B, n] -> [B, C, 1, 1]: a map of one cell."""

    def __init__(
        self,
        spec: Spec,
        *,
        units: Sequence[Count],  # of each layer; the last are the channels
    ):
        super().__init__()
        if len(spec.obs_shape) != 1:
            raise UserError(
                f"agent.network.encoder=VectorEncoder needs vectors, not observations {spec.obs_shape}; "
                "take GridEncoder or FrameEncoder of rl_lab.agents.vpn.model"
            )
        sizes = [*spec.obs_shape, *units]
        self.layers = nn.Sequential(
            *(part for i, n in enumerate(units) for part in (nn.Linear(sizes[i], n), nn.ELU(inplace=True)))
        )

    def forward(self, obs: Tensor) -> Tensor:
        state: Tensor = self.layers(obs)
        return state[:, :, None, None]


def head(features: int, units: int, outputs: int = 1, activation: bool = True) -> nn.Sequential:
    """One hidden layer, Xavier; and a last one whose weights for each output have norm 0.01."""
    hidden, last = nn.Linear(features, units), nn.Linear(units, outputs)
    nn.init.xavier_uniform_(hidden.weight)
    with torch.no_grad():
        last.weight.copy_(0.01 * F.normalize(torch.randn_like(last.weight), dim=1))
    for layer in (hidden, last):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), hidden, *([nn.ELU(inplace=True)] if activation else []), last)


def he_normal(layer: nn.Module) -> None:
    """A normal of variance 1.3 * 2 / fan_in, cut at two standard deviations (He et al., 2015)."""
    if isinstance(layer, nn.Conv2d):
        std = math.sqrt(2.6 / layer.weight[0].numel())
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        _no_bias(layer)


def glorot_uniform(layer: nn.Module) -> None:
    """Of C x C weights for each option (Glorot and Bengio, 2010)."""
    if isinstance(layer, nn.Conv2d):
        bound = math.sqrt(6 / (2 * layer.weight[0].numel()))
        nn.init.uniform_(layer.weight, -bound, bound)
        _no_bias(layer)


def _no_bias(layer: nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def state_shape(encode: nn.Module, spec: Spec) -> tuple[int, int, int]:
    with torch.no_grad():
        return tuple(encode(torch.zeros(1, *spec.obs_shape, dtype=spec.obs_dtype)).shape[1:])
