"""Where transitions wait to be learned from; frames are stored once and restacked when they are sampled."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_lab import returns
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, integers, restore_generator
from rl_lab.core.room import available as free_bytes
from rl_lab.core.settings import Count
from rl_lab.memory.priorities import Priorities
from rl_lab.memory.ring import Ring
from rl_lab.types import Spec, Transition


class Replay:
    """The newest transitions of all envs, sampled uniformly with replacement (Lin, 1992) or by priority.

    What is announced has room for the final observation of one step in 32; where episodes are cut short more often
    than that, more is taken.
    """

    seeds = 1  # learners side by side, who share it out (rl_lab.loops.seeds.stacking)

    def __init__(
        self,
        capacity: Count,  # transitions to sample from, rounded up to whole rows of all envs
        seed: int,
        device: torch.device,  # where samples go
        *,
        frame_stack: Count = 1,  # frames of an observation, along its first dimension
        n_step: Count,
        on_host: bool,  # stored in the host's memory; samples travel through pinned memory
        priorities: Callable[..., Priorities] | None,
    ):
        self.capacity, self.frame_stack, self.n_step = capacity, frame_stack, n_step
        self._priorities = priorities
        self.priorities: Priorities | None = None
        self._learner, self._device = device, torch.device("cpu") if on_host else device
        self._rng, self._restored = generator(seed, self._device), False
        self._begun: Ring | None = None  # with the first transition

    def announce(self, spec: Spec, num_envs: int) -> str:
        """One line on the memory it will take. Raises UserError where there is not enough."""
        size = self._room(spec, num_envs)
        return f"replay of {self.capacity:,} transitions: up to {size / 1e9:.3g} GB on {self._device}"

    def _room(self, spec: Spec, num_envs: int) -> int:
        """Bytes."""
        obs = torch.empty(num_envs, *spec.obs_shape, dtype=spec.obs_dtype, device="meta")
        size = self._build(obs, torch.empty(num_envs, dtype=torch.int64, device="meta"), torch.device("meta")).nbytes
        if size > (free := free_bytes(self._device)):
            raise UserError(
                f"agent.replay.capacity={self.capacity} needs {size / 1e9:.3g} GB and {free / 1e9:.3g} GB are free on "
                f"{self._device}; agent.replay.capacity={int(0.9 * self.capacity * free / size)} would fit"
            )
        return size

    def add(self, transition: Transition) -> None:
        """Takes a transition [N, ...], overwriting the oldest. Raises UserError where memory does not suffice."""
        transition = Transition(*(x.to(self._device) for x in transition))
        if self._begun is None:
            self._begin(transition.obs, transition.action)
        if self._restored:
            self._make_room()
            self._ring.join(transition.obs)
            self._restored = False
        self._make_room()
        self._ring.add(transition)
        if self.priorities:
            if self.size:
                self.priorities.admit(self._slots(self._ring.newest - 1))
            if self._ring.oldest >= self.frame_stack:
                self.priorities.retire(self._slots(self._ring.oldest - 1))

    def sample(self, batch_size: int, gamma: float = 1.0, max_abs_reward: float = math.inf) -> Transition:
        """[B, ...]; see `read`."""
        return self.read(self.draw(batch_size)[0], gamma, max_abs_reward)

    # -- the parts of `sample`, for a learner that weighs

    @property
    def size(self) -> int:
        """Transitions to sample from: of each env the newest n_step - 1 wait for what follows."""
        return max(0, self._ring.newest - self._ring.oldest) * self._ring.num_envs if self._begun else 0

    def draw(self, batch_size: int, steps: int | None = None) -> tuple[Tensor, Tensor | float]:
        """Slots [B], and the weights [B] that undo the priorities' bias; 1 where there are none. `steps` are those of
        the learner, by which beta grows; None: those added.
        """
        ring = self._ring
        if self.priorities:
            added = ring.head * ring.num_envs if steps is None else steps
            slots, weight = self.priorities.draw(batch_size, added, self._rng)
            return slots, self._send(weight)
        oldest = ring.first
        draws = integers(2**62, (batch_size,), self._rng)
        draws = oldest * ring.num_envs + draws % ((ring.newest - oldest) * ring.num_envs)
        return draws % ring.slots, 1.0

    def read(self, slots: Tensor, gamma: float = 1.0, max_abs_reward: float = math.inf) -> Transition:
        """The transitions [B, ...] that begin at slots [B], n steps long or up to where an episode or a future ends.

        reward = sum_k gamma^k r_k over their m steps, each clipped to `max_abs_reward`; discount is that of all steps
        but the last, gamma^(m-1), or 0; duration is the last step's, for which a learner discounts as for a single
        one. Where an action lasts d steps it counts for d in these powers. See Sutton and Barto (2018), eq. 7.1.
        """
        ring, store = self._ring, self._ring.store
        ends, reward, discount = self._returns(slots, gamma, max_abs_reward)
        now = ring.stack(slots)
        then = ring.next_stack(ends, now if self.n_step == 1 else ring.stack(ends))
        obs, next_obs = ring.observations(torch.stack([now, then]))
        found = obs, store.action[slots], reward, discount, store.last[ends], next_obs, store.duration[ends]
        return Transition(*map(self._send, found))

    def update_priorities(self, slots: Tensor, error: Tensor) -> None:
        """slots [B] as they were drawn last, error [B]: the temporal-difference errors found there."""
        if self.priorities:
            self.priorities.update(slots, error.to(self._device))

    # -- within

    @property
    def _ring(self) -> Ring:
        assert self._begun, "no transition was added yet"
        return self._begun

    def _returns(self, slots: Tensor, gamma: float, bound: float) -> tuple[Tensor, Tensor, Tensor]:
        """The last of the m steps from each slot, their reward and the discount before that step, all [B]."""
        store = self._ring.store
        if self.n_step == 1:
            reward = store.reward[slots]
            return slots, reward if bound == math.inf else reward.clamp(-bound, bound), store.discount[slots]
        steps = self._ring.later(slots, torch.arange(self.n_step, device=self._device))
        reward, discount = store.reward[steps].clamp(-bound, bound), store.discount[steps]
        onward = torch.where(store.last[steps], 0.0, returns.discounts(gamma, discount, store.duration[steps]))
        weight = F.pad(onward[:, :-1], (1, 0), value=1.0).cumprod(1)  # [B, n], 0 beyond the end
        final = (weight > 0).sum(1, keepdim=True) - 1
        ends, discount = steps.gather(1, final), (weight * discount).gather(1, final)
        return ends.squeeze(1), (weight * reward).sum(1), discount.squeeze(1)

    def _build(self, obs: Tensor, action: Tensor, device: torch.device) -> Ring:
        if len(obs) > self.seeds * self.capacity:
            raise UserError(
                f"agent.replay.capacity={self.capacity} must be at least {len(obs)}: one transition of each environment"
            )
        steps = -(-self.seeds * self.capacity // len(obs))
        return Ring(obs, action, steps=steps, frame_stack=self.frame_stack, n_step=self.n_step, device=device)

    def _begin(self, obs: Tensor, action: Tensor) -> None:
        self._room(Spec(tuple(obs.shape[1:]), obs.dtype, ()), len(obs))
        self._begun = self._build(obs, action, self._device)
        if self._priorities:
            self.priorities = self._priorities(self._ring.slots + 1, self._device)  # the last is of none

    def _slots(self, row: int) -> Tensor:
        place = self._ring.at(row)
        return torch.arange(place.start, place.stop, device=self._device)

    def _make_room(self) -> None:
        """Makes room for the final frames of another row. Raises UserError where memory does not suffice."""
        if self._ring.has_room():
            return
        if (size := self._ring.wider) > (free := free_bytes(self._device)):
            raise UserError(
                f"agent.replay.capacity={self.capacity}: more than one step in 32 is cut short, and their final "
                f"observations need {size / 1e9:.3g} GB where {free / 1e9:.3g} GB are free on {self._device}; "
                "lower it, or let episodes last longer"
            )
        self._ring.widen()

    def _send(self, x: Tensor) -> Tensor:
        return x if self._device == self._learner else x.pin_memory().to(self._learner, non_blocking=True)

    # -- checkpoints

    @property
    def nbytes(self) -> int:
        """The size of what a checkpoint would hold."""
        return sum(x[: self._ring.filled].nbytes for x in self._ring.store) if self._begun else 0

    def state_dict(self) -> dict:
        state: dict[str, Any] = {"kind": self._kind, "rng": self._rng.get_state()}
        if self._begun:
            ring = self._ring
            state |= {"ring": ring.state_dict(), "num_envs": ring.num_envs, "obs_shape": list(ring.obs_shape)}
        return state | ({"priorities": self.priorities.state_dict()} if self.priorities else {})

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the state is of another kind."""
        if state["kind"] != self._kind:
            raise ValueError(f"a replay of {state['kind']} does not fit {self._kind}")
        restore_generator(self._rng, state["rng"])
        if "ring" in state:
            frames, action, *_ = state["ring"]["store"]
            self._begin(frames.new_zeros(state["num_envs"], *state["obs_shape"]), action[: state["num_envs"]])
            self._ring.load_state_dict(state["ring"])
            self._restored = True
        if self.priorities and "priorities" in state:
            self.priorities.load_state_dict(state["priorities"])

    @property
    def _kind(self) -> str:
        prioritised = " by priority" if self._priorities else ""
        return f"capacity {self.capacity}, n_step {self.n_step}, frame_stack {self.frame_stack}{prioritised}"
