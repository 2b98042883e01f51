"""Randomness: named streams from one seed, each stored with the state; and several streams drawn from at once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def stream(seed: int, name: str) -> int:
    """A seed of its own for each named random stream: equal seeds would make streams repeat one another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]) >> 1


def generator(seed: int, device: torch.device) -> torch.Generator:
    """A random stream of its own, carried in the state of the object that draws from it."""
    return torch.Generator(device).manual_seed(seed)


def restore_generator(rng: torch.Generator, state: Tensor) -> None:
    """A stream saved on another kind of device cannot be continued on this one: it starts anew from its seed."""
    if len(state) == len(rng.get_state()):
        rng.set_state(state.cpu())


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Parameters initialised in here follow `seed` alone; the global streams are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Streams:
    """S generators as one: of a draw [M, ...] each gives M / S rows, in turn."""

    def __init__(self, generators: Iterable[torch.Generator]):
        self.generators = list(generators)
        self.device = self.generators[0].device

    def __len__(self) -> int:
        return len(self.generators)

    def fill(self, x: Tensor, draw: Callable[..., object]) -> Tensor:
        """x [M, ...], filled in place by `draw`, such as Tensor.uniform_."""
        for rows, rng in zip(x.view(len(self), -1, *x.shape[1:]).unbind(), self.generators, strict=True):
            draw(rows, generator=rng)
        return x

    def manual_seed(self, seeds: Sequence[int]) -> "Streams":
        for rng, seed in zip(self.generators, seeds, strict=True):
            rng.manual_seed(seed)
        return self

    def get_state(self) -> Tensor:
        """[S, bytes]."""
        return torch.stack([rng.get_state() for rng in self.generators])

    def set_state(self, states: Tensor) -> None:
        for rng, state in zip(self.generators, states, strict=True):
            restore_generator(rng, state.clone())  # torch takes no view of a larger tensor here

    def state_dict(self) -> dict[str, Tensor]:
        return {"states": self.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.set_state(state["states"])


Stream = torch.Generator | Streams


def streams(seeds: Iterable[int], device: torch.device) -> Streams:
    return Streams(generator(seed, device) for seed in seeds)


def uniform(shape: Sequence[int], rng: Stream) -> Tensor:
    """Of `shape`, in [0, 1)."""
    if isinstance(rng, Streams):
        return rng.fill(torch.empty(shape, device=rng.device), Tensor.uniform_)
    return torch.rand(shape, generator=rng, device=rng.device)


def integers(high: int, shape: Sequence[int], rng: Stream) -> Tensor:
    """Of `shape`, from 0 to high - 1."""
    if isinstance(rng, Streams):
        x = torch.empty(shape, dtype=torch.int64, device=rng.device)
        return rng.fill(x, lambda rows, generator: rows.random_(high, generator=generator))
    return torch.randint(high, shape, generator=rng, device=rng.device)


def permutation(size: int, rng: Stream) -> Tensor:
    """[size]; of S streams [S, size], one each."""
    if isinstance(rng, Streams):
        return torch.stack([permutation(size, one) for one in rng.generators])
    return torch.randperm(size, generator=rng, device=rng.device)
