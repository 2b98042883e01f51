"""Where transitions wait to be learned from. Their tensors stay on the device they came from."""

import torch

from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator, restore_generator
from rl_lab.core.settings import Count
from rl_lab.types import Transition


class Replay:
    """A ring of single transitions, sampled uniformly with replacement (Lin, 1992)."""

    def __init__(self, capacity: Count, seed: int, device: torch.device):
        self.capacity, self.size, self._next = capacity, 0, 0
        self._data: Transition | None = None
        self._rng, self._device = generator(seed, device), device

    def add(self, transition: Transition) -> None:
        """Takes a transition [N, ...], overwriting the oldest. Raises UserError where memory does not suffice."""
        n = len(transition.reward)
        if n > self.capacity:
            raise UserError(f"agent.replay.capacity={self.capacity} is impossible: {n} environments step at once")
        if self._data is None:
            self._data = self._allocate(transition)
        first = min(n, self.capacity - self._next)
        for ring, x in zip(self._data, transition, strict=True):
            ring[self._next : self._next + first] = x[:first]
            ring[: n - first] = x[first:]
        self._next = (self._next + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(self, batch_size: int) -> Transition:
        """[B, ...]."""
        slots = torch.randint(self.size, (batch_size,), generator=self._rng, device=self._device)
        return Transition(*(ring[slots] for ring in self._data))

    def _allocate(self, transition: Transition) -> Transition:
        gigabytes = sum(x[0].nbytes for x in transition) * self.capacity / 1e9
        try:
            return Transition(*(x.new_empty(self.capacity, *x.shape[1:]) for x in transition))
        except RuntimeError as error:
            raise UserError(
                f"agent.replay.capacity={self.capacity} needs {gigabytes:.1f} GB, more than there is"
            ) from error

    def state_dict(self) -> dict:
        data = [] if self._data is None else [ring[: self.size].clone() for ring in self._data]
        return {"data": data, "next": self._next, "size": self.size, "rng": self._rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the state is of another capacity."""
        if state["size"] > self.capacity or (state["size"] < self.capacity and state["next"] != state["size"]):
            raise ValueError(f"a replay of {state['size']} transitions does not fit capacity {self.capacity}")
        restore_generator(self._rng, state["rng"])
        if state["data"]:
            self._data = Transition(*(x.new_empty(self.capacity, *x.shape[1:]) for x in state["data"]))
            for ring, x in zip(self._data, state["data"], strict=True):
                ring[: len(x)] = x
        self.size, self._next = state["size"], state["next"]
