"""One run in several processes that torchrun started, each a rank: what they tell one another.

In a process alone each function hands back what it was given, and nothing is sent. Otherwise all ranks must call the
same ones in the same order, with tensors of the same shapes. What is on a CPU travels by gloo, on a GPU by nccl.
"""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

PATIENCE = timedelta(hours=12)  # the others wait while the first evaluates; where a rank dies, torchrun ends the rest
ASKED_EVERY = 1.0  # seconds
GRACE = 1.0  # seconds, in which the first to fail is gone: torchrun blames the process that it sees end first

_alone = False


class Lost(ConnectionError):
    """Another process of this run ended."""


def size() -> int:
    """How many ranks this run has."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is: 0, the first, keeps the run folder and evaluates."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """The ranks of this run meet, and part at its end. Where one fails all do, and the first to fail says why."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    from torch.distributed.nn import functional  # noqa: F401  imported later, its defaults would keep the group alive

    with_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if with_gpu else "gloo", store=store, rank=number, world_size=count, timeout=PATIENCE
    )
    try:
        yield
        meet()
    except (Exception, SystemExit) as error:
        first = store.add("failed", 1) == 1
        if first and not isinstance(error, Lost):
            raise
        if first:
            print(f"{error} without an error message; this one cannot continue", file=sys.stderr)
        time.sleep(GRACE)
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within, this rank learns by itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def in_turn() -> Iterator[None]:
    """The first rank goes ahead, so that the others find done what needs doing once: a download, a file on disk."""
    meet()
    if rank():
        meet()
    yield
    if not rank():
        meet()


def meet() -> None:
    """Waits until all ranks are here."""
    total(torch.zeros(1))


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this run ended") from error


def total(x: Tensor) -> Tensor:
    """The sum of x over the ranks. No gradient flows through it."""
    if size() == 1:
        return x
    x = x.detach().clone()
    with _talking():
        dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """The mean of x over the ranks, and so over their joint batch, since their batches have one size."""
    return x if size() == 1 else total(x) / size()


def moments(x: Tensor, dims: tuple[int, ...] | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over `dims` (None: all) of the x of all ranks together."""
    if size() == 1:
        return x.mean(dims, keepdim=keepdim), x.std(dims, keepdim=keepdim)
    centre = mean(x.mean(dims, keepdim=True))
    squares = total((x - centre).square().sum(dims, keepdim=keepdim))
    count = size() * x.numel() // squares.numel()
    return centre.reshape(squares.shape), (squares / (count - 1)).sqrt()


def standardised(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """x [...] shifted to mean 0 and scaled to standard deviation 1 over `dims` (None: all), all ranks' x as one.

    A single number is left as it is.
    """
    if size() == 1 and x.mean(dims, keepdim=True).numel() == x.numel():
        return x
    mean, std = moments(x, dims, keepdim=True)
    return (x - mean) / (std + 1e-8)


def average(gradients: Iterable[Tensor]) -> None:
    """In place, the mean over the ranks of each gradient: one message for all of them, once they are all there."""
    if size() == 1:
        return
    gradients = list(gradients)
    flat = mean(torch.cat([g.flatten() for g in gradients]))
    parts = torch.split(flat, [g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def averaged(metrics: dict[str, Tensor | float]) -> dict[str, Tensor | float]:
    """The mean over the ranks of each number, in one message."""
    if size() == 1 or not metrics:
        return metrics
    device = next((x.device for x in metrics.values() if isinstance(x, Tensor)), torch.device("cpu"))
    values = [torch.as_tensor(x, dtype=torch.double, device=device).reshape(()) for x in metrics.values()]
    return dict(zip(metrics, mean(torch.stack(values)).unbind(), strict=True))


def of_first(x: Tensor) -> Tensor:
    """The first rank's x."""
    if size() == 1:
        return x
    x = x.detach().clone()
    with _talking():
        dist.broadcast(x, 0)
    return x


def told(text: str | None = None) -> str:
    """The first rank says it, the others receive it."""
    words: list[str | None] = [text]
    if size() > 1:
        with _talking():
            dist.broadcast_object_list(words, 0)
    return str(words[0])


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """In the first rank the states of the others, on the CPU, in order; None elsewhere."""
    if size() == 1:
        return []
    file, found = io.BytesIO(), [b""] * size()
    torch.save(state, file)
    with _talking():
        dist.gather_object(file.getvalue(), found if rank() == 0 else None)
    return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in found[1:] if part]


class Accord:
    """Makes all ranks stop, and save, at the same step: as soon as one of them wants to. They ask one another about
    once a second, and agree on how many calls that is, since clocks differ.
    """

    def __init__(self) -> None:
        self._calls, self._gap, self._since = 0, 1, time.monotonic()

    def __call__(self, signal: int | None, due: bool, every: float) -> tuple[int | None, bool]:
        """The signal that any rank was sent, and whether a save is due; `every` [s] is how often saves may be."""
        if size() == 1:
            return signal, due
        self._calls += 1
        if self._calls < self._gap:
            return None, False
        pace = (time.monotonic() - self._since) / self._calls  # seconds a call
        wanted = torch.tensor([signal or 0, due, pace], dtype=torch.double)
        with _talking():
            dist.all_reduce(wanted, dist.ReduceOp.MAX)
        signal, due, pace = wanted.tolist()
        calls = min(ASKED_EVERY, every) / max(pace, 1e-9)
        self._calls, self._gap, self._since = 0, max(1, min(int(calls), 2 * self._gap)), time.monotonic()
        return int(signal) or None, bool(due)
