"""How an agent is shown the observations and rewards of an environment: normalised, clipped, stacked."""

from typing import Any

import torch
from torch import Tensor

from rl_lab.core import distributed
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.types import Spec, Step

LEAST = 1e-8  # added to a variance: what never changes is not divided by 0
FURTHEST = 10.0  # deviations: where what is normalised is clipped, as in OpenAI Baselines' VecNormalize


class Moments:
    """Mean and variance of each of many numbers over all that was added, a batch at a time.

    See Chan, Golub and LeVeque (1983; https://doi.org/10.1080/00031305.1983.10483115), eq. 2.1, which is Welford's
    update (1962) where a batch is a single sample.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        zeros = double(torch.zeros(shape, device=device))
        self.count, self.mean, self.squares = 0, zeros, zeros.clone()  # the sum of squared differences from the mean

    def add(self, x: Tensor) -> None:
        """x [N, ...], of the shape after N."""
        x = double(x)
        variance, mean = torch.var_mean(x, 0, correction=0)
        total = self.count + len(x)
        difference = mean - self.mean
        self.squares = self.squares + variance * len(x) + difference.square() * (self.count * len(x) / total)
        self.mean = self.mean + difference * (len(x) / total)
        self.count = total

    @property
    def deviation(self) -> Tensor:
        return (self.squares / max(1, self.count) + LEAST).sqrt()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where it is of other numbers."""
        if state["mean"].shape != self.mean.shape:
            raise ValueError(f"statistics of {tuple(state['mean'].shape)}, not {tuple(self.mean.shape)}")
        device = self.mean.device
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"].to(device), state["squares"].to(device)


class Statistics:
    """Moments of the observations, and of the discounted returns so far: what a checkpoint holds of a lens."""

    def __init__(self, obs: Moments | None, returns: Moments | None, clip: float | None):
        self.obs, self.returns, self.clip = obs, returns, clip

    @property
    def parts(self) -> dict[str, Moments]:
        return {name: part for name, part in (("obs", self.obs), ("returns", self.returns)) if part}

    def described(self) -> dict[str, Any]:
        """How observations are normalised, for those who use a policy elsewhere; {} where they are not."""
        if not self.obs:
            return {}
        return {"mean": self.obs.mean.tolist(), "deviation": self.obs.deviation.tolist(), "clip": self.clip}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def absent(self) -> None:
        """Raises UserError where observations are normalised: a network that never saw them so has learned nothing."""
        if self.obs:
            raise UserError(
                "the run learned from observations as they are, and has no statistics to normalise them by; "
                "leave out env.normalise_obs=true"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments of returns that the state lacks start anew. Raises UserError where it lacks those of observations."""
        if "obs" not in state:
            self.absent()
        elif not self.obs:
            raise UserError("the run learned from normalised observations; leave out env.normalise_obs=false")
        for name, part in self.parts.items():
            if name in state:
                part.load_state_dict(state[name])


class Lens:
    """Shows the answers of N envs to an agent. `spec` is that of what it shows.

    Observations are normalised by the mean and deviation of all that was acted on so far, then clipped, then stacked.
    Rewards to learn from are divided by the deviation of the discounted return so far, then clipped (Engstrom et al.,
    2020, section 3, as OpenAI Baselines' VecNormalize has it); `Step.reward` stays as the game gave it. `frozen`, it
    only looks: in evaluations and films nothing is added, and rewards are left alone.
    """

    def __init__(
        self,
        spec: Spec,
        num_envs: int,
        device: torch.device,
        *,
        normalise_obs: bool,
        normalise_reward: float | None,  # the discount of the returns
        clip_obs: float | None,  # None: FURTHEST where they are normalised
        frame_stack: int,
    ):
        if normalise_obs and (spec.obs_dtype == torch.uint8 or len(spec.obs_shape) != 1):
            raise UserError(
                f"env.normalise_obs=true is for vectors of numbers, and these observations are {spec.obs_shape}; "
                "of images, agent.network.standardise=true with agent/network=cnn does it"
            )
        if clip_obs is not None and spec.obs_dtype == torch.uint8:
            raise UserError(f"env.clip_obs={clip_obs:g} is for numbers, and these observations are bytes; leave it out")
        if (normalise_obs or normalise_reward is not None) and distributed.size() > 1:
            raise UserError("env.normalise_obs and env.normalise_reward are kept by one process; start it "
                            "without torchrun")  # fmt: skip
        self.gamma, self.count = normalise_reward, frame_stack
        self.clip = FURTHEST if normalise_obs and clip_obs is None else clip_obs
        self._returns = double(torch.zeros(num_envs, device=device))  # so far, in the episode of each env
        self.statistics = Statistics(
            Moments(spec.obs_shape, device) if normalise_obs else None,
            Moments((), device) if normalise_reward is not None else None,
            self.clip,
        )
        self.spec, self.frozen = self._stacked(spec), False
        self._is_clear = not self.statistics.parts and self.clip is None and frame_stack == 1

    def _stacked(self, spec: Spec) -> Spec:
        """A vector of D numbers becomes [k, D], an image [C, H, W] one of k C channels."""
        if self.count == 1:
            return spec
        first, *rest = spec.obs_shape
        shape = (self.count * first, *rest) if rest else (self.count, first)
        return spec._replace(obs_shape=shape, frame_stack=self.count)

    def begin(self, obs: Tensor) -> Tensor:
        """First observations [N, ...] of new episodes in all envs, as they are shown."""
        if self._is_clear:
            return obs
        self._returns.zero_()
        self._add(obs)
        frame = self._normal(obs)
        self._seen = self._pushed(frame.new_zeros(len(obs), *self.spec.obs_shape), frame)
        return self._seen

    def __call__(self, step: Step) -> Step:
        if self._is_clear:
            return step
        self._add(step.obs)
        obs, next_obs = self._normal(step.obs), self._normal(step.next_obs)
        shown = self._pushed(self._seen, next_obs)
        ended = step.last.view(-1, *[1] * (shown.ndim - 1))
        self._seen = torch.where(ended, self._pushed(torch.zeros_like(shown), obs), shown)
        return step._replace(next_obs=shown, obs=self._seen, signal=self._signal(step))

    def _add(self, obs: Tensor) -> None:
        if self.statistics.obs and not self.frozen:
            self.statistics.obs.add(obs)

    def _normal(self, obs: Tensor) -> Tensor:
        if moments := self.statistics.obs:
            obs = ((double(obs) - moments.mean) / moments.deviation).to(obs.device, torch.float32)
        return obs if self.clip is None else obs.clamp(-self.clip, self.clip)

    def _signal(self, step: Step) -> Tensor | None:
        """Rewards [N] to learn from; None: as the game gave them."""
        if self.gamma is None or self.frozen:
            return None
        moments = self.statistics.returns
        assert moments
        self._returns = self._returns * self.gamma + double(step.reward)
        moments.add(self._returns)
        self._returns = self._returns * ~step.last.to(self._returns.device)
        signal = (double(step.reward) / moments.deviation).clamp(-FURTHEST, FURTHEST)
        return signal.to(step.reward.device, torch.float32)

    def _pushed(self, stack: Tensor, frame: Tensor) -> Tensor:
        """The stack [N, k ...], oldest first, with the frame [N, ...] as its newest."""
        if self.count == 1:
            return frame
        size = stack.shape[1] // self.count
        return torch.cat([stack[:, size:], frame.unsqueeze(1) if frame.ndim == 2 else frame], 1)
