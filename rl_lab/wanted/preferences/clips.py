"""Clips of what an agent does, to be shown in pairs: a tape of the newest steps, and windows cut from it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_lab.core.randomness import integers
from rl_lab.types import Transition

NEVER = 2**40


class Clips(NamedTuple):
    """B clips of at most k steps; those whose episode ended earlier are filled up, and what fills them pays nothing."""

    obs: Tensor  # [B, k + 1, ...] with the last successor; of stacked frames the newest alone, after the first stack
    action: Tensor  # [B, k]
    length: Tensor  # [B] steps that count
    true: Tensor  # [B] the sum of the true rewards, for teachers alone

    @property
    def counts(self) -> Tensor:
        """[B, k] bool."""
        return torch.arange(self.action.shape[1], device=self.length.device) < self.length[:, None]

    def of(self, which: Tensor | slice) -> "Clips":
        return Clips(*(x[which] for x in self))


class Tape:
    """The newest `length` steps of N envs."""

    def __init__(self, length: int, frame_stack: int = 1):
        self.length, self.frame_stack, self.count = length, frame_stack, 0
        self.fields: list[Tensor] = []

    def add(self, transition: Transition) -> None:
        if not self.fields:
            self.fields = [torch.zeros(self.length, *x.shape, dtype=x.dtype, device=x.device) for x in transition]
        for field, x in zip(self.fields, transition, strict=True):
            field[self.count % self.length] = x
        self.count += 1

    def cut(self) -> None:
        """What comes next does not follow on the newest step, in none of the envs."""
        if self.count:
            self.fields[Transition._fields.index("last")][(self.count - 1) % self.length] = True

    def draw(self, clips: int, steps: int, rng: torch.Generator) -> Clips | None:
        """Clips that begin anywhere, all of one episode each; None where there are none.

        An episode that ends within a clip is filled up. One that its time limit cut is not shown up to the cut: that
        what follows is unseen would look like a choice.
        """
        size = min(self.count, self.length)
        order = torch.arange(self.count - size, self.count, device=rng.device) % self.length
        t = Transition(*(x.index_select(0, order) for x in self.fields))
        time = torch.arange(size, device=rng.device)[:, None]
        ends = torch.where(t.last, time, NEVER).flip(0).cummin(0).values.flip(0)  # [size, N], where the episode does
        ended = t.discount.gather(0, ends.clamp(max=size - 1)) == 0
        whole = (ends - time + 1 >= steps) & (time + steps <= size)
        begin, env = (whole | ((ends < size) & ended & (ends - time + 1 < steps))).nonzero(as_tuple=True)
        if not len(begin):
            return None
        chosen = integers(len(begin), (clips,), rng)
        begin, env = begin[chosen], env[chosen]
        length = (ends[begin, env] - begin + 1).clamp(max=steps)
        at = (begin[:, None] + torch.arange(steps + 1, device=rng.device)).clamp(max=size - 1)
        obs, action, reward = (x[at, env[:, None]] for x in (t.obs, t.action, t.reward))
        obs[torch.arange(clips, device=rng.device), length] = t.next_obs[begin + length - 1, env]
        found = Clips(packed(obs, self.frame_stack), action[:, :-1], length, reward.sum(1))
        return found._replace(true=(reward[:, :-1].double() * found.counts).sum(1))

    def newest(self, steps: int) -> Tensor:
        """[T, ...], the last observations of the first env."""
        size = min(steps, self.count, self.length)
        return self.fields[0][torch.arange(self.count - size, self.count) % self.length, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "fields": list(self.fields)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a tape of another length the newest steps."""
        self.count, self.fields = state["count"], list(state["fields"])
        if self.fields and (length := len(self.fields[0])) != self.length:
            kept = torch.arange(self.count - min(self.count, length, self.length), self.count)
            self.count = len(kept)
            self.fields = [
                torch.cat([x[kept % length], x.new_zeros(self.length - len(kept), *x.shape[1:])]) for x in self.fields
            ]


def packed(obs: Tensor, frame_stack: int) -> Tensor:
    """[B, T, k C, ...] of stacks of k frames that each add one -> [B, (k + T - 1) C, ...]; others as they are."""
    if frame_stack == 1:
        return obs
    channels = obs.shape[2] // frame_stack
    return torch.cat([obs[:, 0], obs[:, 1:, -channels:].flatten(1, 2)], 1)


def unpacked(obs: Tensor, frame_stack: int, channels: int) -> Tensor:
    """[B, T, ...] again, as the agent saw it; `channels` are those of a frame."""
    return obs.unfold(1, frame_stack * channels, channels).movedim(-1, 2) if frame_stack > 1 else obs
