"""The k-step prediction loss: from every state the model follows the options taken, and learns what came of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl_lab.agents.vpn.planner import Imagined, Level, Model

ErrorFn = Callable[[Tensor], Tensor]


class Sequences(NamedTuple):
    """T steps in a row of B walkers, [T, B, ...]; an episode may end on the way, then the next step begins another."""

    obs: Tensor
    option: Tensor  # int64
    reward: Tensor
    duration: Tensor  # primitive steps
    end: Tensor  # bool: what follows does not belong to what was before
    start: Tensor  # bool: whether it may be predicted from
    returned: Tensor  # R_t, what the step and all that follows pay
    reached: Tensor  # what the state after the step is worth: R_{t+1}, or 0 where the future ended
    valued: Tensor  # [B] 1 where these two are known, 0 of random play, which only the model learns from
    next_obs: Tensor  # of random play true only where there is no `end`


class PlanningNetwork(nn.Module):
    """What VPN trains: values of options, by a plan where the network models the world, and the losses of sequences."""

    models = False  # whether it predicts rewards, so that it can learn from random play too

    def q(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> Tensor:
        """Q^d of each option [B, A]."""
        raise NotImplementedError

    def plan(self, obs: Tensor, branches: tuple[int, ...], gamma: float) -> tuple[Level, ...] | None:
        """None for a network that does not look ahead."""
        return None

    def losses(self, play: Sequences, steps: int, of_error: ErrorFn) -> dict[str, Tensor]:
        """Each loss [B], summed over T."""
        raise NotImplementedError


def predictable(end: Tensor, start: Tensor, steps: int) -> Iterator[Tensor]:
    """For i = 0 .. steps - 1 the t [T - i, B] from which step t + i may be predicted: no episode ends before it."""
    alive = start
    for i in range(min(steps, len(end))):
        if i:
            alive = alive[:-1] & ~end[i - 1 : -1]
        yield alive


def unrolled(model: Model, obs: Tensor, option: Tensor, steps: int) -> Iterator[Imagined]:
    """For i = 0 .. steps - 1 what the model expects of step t + i, from every t at once: [T - i, B, ...]."""
    state = model.encode(obs.flatten(0, 1))
    for i in range(min(steps, len(option))):
        taken = option[i:]
        imagined = model.imagine(state, taken.flatten())
        state = imagined.state[: -taken.shape[1]]
        yield Imagined(*(x.unflatten(0, taken.shape) for x in imagined))


def k_step_losses(model: Model, play: Sequences, steps: int, of_error: ErrorFn) -> dict[str, Tensor]:
    """Each loss [B], summed over all predictions: of reward, of duration, and of the value of the state reached.

    See Oh, Singh and Lee (2017), section 3.3. Nothing stops the gradient within the unroll; the targets are constants.
    """
    losses = dict.fromkeys(("reward", "duration", "value"), torch.zeros((), device=play.reward.device))
    masks = predictable(play.end, play.start, steps)
    for i, (imagined, mask) in enumerate(zip(unrolled(model, play.obs, play.option, steps), masks, strict=True)):
        for name, target, weight in (
            ("reward", play.reward, mask),
            ("duration", play.duration, mask),
            ("value", play.reached, mask * play.valued),
        ):
            error = getattr(imagined, name).to(target.dtype) - target[i:]
            losses[name] = losses[name] + (of_error(error) * weight).sum(0)
    return losses
