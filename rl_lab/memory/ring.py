"""A ring of steps that holds every frame once: what a replay reads its transitions from."""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab.types import Transition

FINALS = 32  # at first there is room for one final frame per this many steps


class Store(NamedTuple):
    """Slot r * N + i holds what env i did at row r of T.

    `frames` goes on after the T * N slots: one of zeros, M final frames (a ring of their own), one for the waste.
    """

    frames: Tensor  # [T * N + 1 + M + 1, F], of each observation the newest frame, flat
    action: Tensor  # [T * N, ...]
    reward: Tensor  # [T * N]
    discount: Tensor  # [T * N]
    last: Tensor  # [T * N]
    successor: Tensor  # [T * N] where in `frames` the newest frame of next_obs is
    duration: Tensor  # [T * N]


class Ring:
    """The newest steps of N envs, with at least `steps` of each to offer; rows are counted from the very first.

    Consecutive observations belong together: `next_obs` is what its env shows next, but where `last`. An observation
    is `frame_stack` frames along its first dimension, oldest first, zeros standing for what was before its episode.
    Where an episode is cut short its final frame is kept apart; should those be more than one in 32 steps, `widen`
    makes room for more. Nothing here waits for the device, but for a look at the room left, once in many rows.
    """

    def __init__(self, obs: Tensor, action: Tensor, *, steps: int, frame_stack: int, n_step: int, device: torch.device):
        """For observations and actions like these [N, ...]."""
        self.num_envs, self.obs_shape = len(obs), obs.shape[1:]
        self.frame_stack, self.n_step, self.device = frame_stack, n_step, device
        self.rows = steps + n_step + frame_stack - 1
        self.slots = slots = self.rows * self.num_envs
        self.finals = max(slots // FINALS, (n_step + 1) * self.num_envs)
        frame = self.obs_shape.numel() // frame_stack
        self.store = Store(
            torch.empty(slots + self.finals + 2, frame, dtype=obs.dtype, device=device),
            torch.zeros(slots, *action.shape[1:], dtype=action.dtype, device=device),
            torch.zeros(slots, device=device),
            torch.zeros(slots, device=device),
            torch.zeros(slots, dtype=torch.bool, device=device),
            torch.zeros(slots, dtype=torch.int64, device=device),
            torch.ones(slots, device=device),
        )
        self.head = frame_stack - 1  # the row to write next; below it the frames of the first stack
        self.store.frames[slots] = 0
        for row, frames in enumerate(self._split(obs.to(device)).unbind(1)):
            self.store.frames[self.at(row)] = frames
        self._ids = torch.arange(self.num_envs, device=device)
        self._past = torch.arange(1 - frame_stack, 1, device=device)
        self._since = torch.zeros(frame_stack - 1, frame_stack - 1, dtype=torch.bool, device=device)
        for back in range(frame_stack - 1):  # by triu a tensor without storage would wait for torch's compiler
            self._since[back, back:] = True
        # `lost`: the row below which an older checkpoint left out what it could not keep.
        self._kept, self.lost = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._owners = torch.full((self.finals + 1,), -1, device=device)  # of final frames: row * N + env
        self._sure = self.finals // self.num_envs  # rows for whose final frames there is room, whatever they are

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.store)

    @property
    def oldest(self) -> int:
        """The first row to offer, its stack still whole: the row at the head already holds frames of its own."""
        return max(self.frame_stack - 1, self.head - self.rows + self.frame_stack)

    @property
    def first(self) -> Tensor | int:
        """The first row to draw from; a number where looking costs less than to compute with what is not known."""
        return max(int(self.lost), self.oldest) if self.lost.is_cpu else self.lost.clamp(min=self.oldest)

    @property
    def newest(self) -> int:
        """One beyond the last row to offer, its n steps all there."""
        return self.head - self.n_step + 1

    def at(self, row: int) -> slice:
        """Its slots."""
        start = row % self.rows * self.num_envs
        return slice(start, start + self.num_envs)

    def later(self, slots: Tensor, rows: Tensor) -> Tensor:
        """slots [B], rows [K] -> [B, K]: the same envs that many rows on, or back."""
        return (slots.unsqueeze(1) + rows * self.num_envs) % self.slots

    def add(self, transition: Transition) -> None:
        """Takes a transition [N, ...]; there must be room."""
        obs, action, reward, discount, last, next_obs, duration = transition
        store, here, below = self.store, self.at(self.head), self.at(self.head + 1)
        seen = self._split(next_obs)[:, -1]
        store.frames[here], store.frames[below] = self._split(obs)[:, -1], seen
        store.action[here], store.reward[here], store.discount[here], store.last[here] = action, reward, discount, last
        store.duration[here] = duration
        store.successor[here] = self._ids + below.start
        if not last.is_cpu or last.any():  # on a CPU looking costs less than the rest
            final = self._keep(last, discount, seen, self.head)
            store.successor[here] = torch.where(last, final, store.successor[here])
        self.head += 1

    def join(self, obs: Tensor) -> None:
        """After a restart: where obs [N, ...] does not go on from what was seen last, that episode was cut short."""
        store, newest = self.store, self._ids + self.at(self.head - 1).start
        then = self.next_stack(newest, self.stack(newest))
        cut = (store.frames[then] != self._split(obs)).flatten(1).any(1) & ~store.last[newest]
        if not cut.any():
            return
        final = self._keep(cut, store.discount[newest], store.frames[then[:, -1]], self.head - 1)
        store.successor[newest] = torch.where(cut, final, then[:, -1])
        store.last[newest] |= cut

    # -- room for final frames

    def has_room(self) -> bool:
        """Whether there is room for those of one more row, if all its episodes should be cut short."""
        if self._sure < 1:
            self._sure = (self.finals - int(self._live())) // self.num_envs
        return self._sure >= 1

    def _live(self) -> Tensor:
        """Final frames [] that may still be asked for: the newest of those kept."""
        return (self._owners[:-1] >= self.oldest * self.num_envs).sum()

    @property
    def wider(self) -> int:
        """Bytes of the frames with twice the room."""
        return (self.slots + 2 * self.finals + 2) * self.store.frames[0].nbytes

    def widen(self) -> None:
        """Twice the room."""
        live = int(self._live())
        places = (self._kept - live + torch.arange(live, device=self.device)) % self.finals  # the oldest first
        owners, finals = self._owners[places], self.store.frames[self.slots + 1 + places]
        self._resize(2 * self.finals)
        self._owners[:live], self.store.frames[self.slots + 1 : self.slots + 1 + live] = owners, finals
        self.store.successor[owners % self.slots] = self.slots + 1 + torch.arange(live, device=self.device)
        self._kept.fill_(live)

    def _resize(self, finals: int) -> None:
        """Room for `finals` final frames, all of it empty."""
        frames, steps = self.store.frames, self.slots + 1
        self.store = self.store._replace(frames=frames.new_empty(steps + finals + 1, frames.shape[1]))
        self.store.frames[:steps] = frames[:steps]
        self._owners = torch.full((finals + 1,), -1, device=self.device)
        self.finals, self._sure = finals, 0

    def stack(self, slots: Tensor) -> Tensor:
        """Where the frames [B, k] of `obs` at slots [B] are."""
        if self.frame_stack == 1:
            return slots.unsqueeze(1)
        frames = self.later(slots, self._past)
        ended = self.store.last[frames[:, :-1]].unsqueeze(1)
        before = (ended & self._since).any(2)  # [B, k - 1], the frames of an earlier episode
        frames[:, :-1].masked_fill_(before, self.slots)
        return frames

    def next_stack(self, slots: Tensor, stack: Tensor) -> Tensor:
        """Where the frames [B, k] of `next_obs` are, from those of `obs`."""
        newest = self.store.successor[slots].unsqueeze(1)
        return newest if self.frame_stack == 1 else torch.cat([stack[:, 1:], newest], 1)

    def observations(self, frames: Tensor) -> Tensor:
        """Places of frames [..., k] -> the observations [..., *obs]."""
        found = self.store.frames.index_select(0, frames.flatten())
        return found.view(*frames.shape[:-1], *self.obs_shape)

    def _split(self, obs: Tensor) -> Tensor:
        """[N, ...] -> its frames [N, k, F]."""
        return obs.reshape(len(obs), self.frame_stack, -1)

    def _keep(self, last: Tensor, discount: Tensor, frames: Tensor, row: int) -> Tensor:
        """Puts the final frames [N, F] of episodes cut short apart, those of finished ones are never looked at.

        Returns their places [N].
        """
        cut = last & (discount > 0)
        number = torch.where(cut, (self._kept + cut.cumsum(0) - 1) % self.finals, self.finals)
        self._kept += cut.sum()
        self._sure -= 1
        self._owners[number] = row * self.num_envs + self._ids
        self.store.frames[self.slots + 1 + number] = frames
        return self.slots + torch.where(cut, 1 + number, 0)

    # -- checkpoints: what is filled

    @property
    def filled(self) -> int:
        """Slots, the head's among them."""
        return min(self.head + 1, self.rows) * self.num_envs

    def state_dict(self) -> dict:
        finals = self.store.frames[self.slots + 1 : -1][: self._kept]  # the last is the waste
        return {
            "head": self.head,
            "kept": self._kept.clone(),
            "lost": self.lost.clone(),
            "owners": self._owners.clone(),
            "store": [x[: self.filled].clone() for x in self.store],
            "finals": finals.clone(),
        }

    def load_state_dict(self, state: dict) -> None:
        if len(state["owners"]) != self.finals + 1:
            self._resize(len(state["owners"]) - 1)
        for ring, x in zip(self.store, state["store"], strict=False):  # older checkpoints hold no durations: all are 1
            ring[: len(x)] = x
        self.store.frames[self.slots + 1 :][: len(state["finals"])] = state["finals"]
        self._kept, self.lost = (state[k].to(self.device).clone() for k in ("kept", "lost"))
        self._owners.copy_(state["owners"])
        self.head, self._sure = state["head"], 0
