"""CUDA graphs: what an agent computes at every step, recorded once and then replayed, so that the host launches one
graph where it launched a hundred small kernels. See CUDA C++ programming guide, section 3.2.8.7; LeanRL does the same.
"""

import warnings
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rl_lab.core import precision
from rl_lab.core.errors import UserError, brief

WARM_UP = 3  # calls of each kind that are made as they are: libraries and optimizers set up what they keep
MOST = 4  # graphs of one function, each with memory of its own; other shapes are computed as they come

T = TypeVar("T")


class _Now:
    chosen = False  # whether this process captures


def choose(compiled: str, device: torch.device) -> str | None:
    """Sets whether this process uses graphs from here on; returns what to say about it."""
    _Now.chosen = compiled == "graphs" and device.type == "cuda"
    if compiled == "none":
        return None
    if not _Now.chosen:
        return f"compile=graphs: graphs are CUDA's, and this run is on {device}: it computes as with compile=none"
    return "compile=graphs: acting and gradient steps are captured as CUDA graphs"


def chosen() -> bool:
    return _Now.chosen


class Recorded(NamedTuple):
    given: tuple[Tensor, ...]  # where a replay reads
    out: Any  # where it writes
    replay: Callable[[], None]


class Captured(Generic[T]):
    """A function of tensors, and of numbers that change, which graphs see as tensors []; its result is of tensors too.

    Where graphs were chosen a call copies what is given into the graph's own tensors, replays it, and returns copies of
    what it wrote. What the function reads besides, such as parameters, must stay in its place, and what it draws comes
    from the `generators`. Elsewhere the function is called as it is.
    """

    def __init__(self, call: Callable[..., T], *generators: Any):
        self.call, self.generators = call, generators
        self.forget()

    def forget(self) -> None:
        """To be called where the memory that the function reads may have moved."""
        self._graphs: dict[Any, Recorded] = {}
        self._calls: dict[Any, int] = {}

    def __call__(self, *given: Tensor | float) -> T:
        device = next(x.device for x in given if isinstance(x, Tensor))
        if not (_Now.chosen and device.type == "cuda"):
            return self.call(*given)
        kind = precision.reduced(), *((x.shape, x.dtype) if isinstance(x, Tensor) else None for x in given)
        if kind not in self._graphs:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls <= WARM_UP or len(self._graphs) == MOST:
                return self._beside(*given)
            self._graphs[kind] = self._record(given, device)
        recorded = self._graphs[kind]
        for kept, x in zip(recorded.given, given, strict=True):
            kept.copy_(x) if isinstance(x, Tensor) else kept.fill_(x)
        recorded.replay()
        out: T = copied(recorded.out)
        return out

    def _beside(self, *given: Tensor | float) -> T:
        """On another stream than the usual one, as before any capture."""
        stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            out = self.call(*given)
        usual.wait_stream(stream)
        return out

    def _record(self, given: tuple[Tensor | float, ...], device: torch.device) -> Recorded:
        """Raises UserError where the function does what no graph can hold."""
        kept = tuple(
            x.detach().clone() if isinstance(x, Tensor) else torch.full((), float(x), device=device) for x in given
        )
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for rng in self.generators:
            graph.register_generator_state(rng)
        try:
            with torch.cuda.graph(graph):
                out = self.call(*kept)
        except RuntimeError as error:
            torch.cuda.set_stream(usual)  # which torch leaves undone where the end of the capture fails too
            name, first = getattr(self.call, "__qualname__", "a function"), error
            while isinstance(first.__context__, RuntimeError):
                first = first.__context__
            reason = brief(first)
            raise UserError(f"compile=graphs: {name} cannot be captured ({reason}); take compile=none") from error
        return Recorded(kept, out, graph.replay)


def copied(out: Any) -> Any:
    """A tensor, or a tuple, a NamedTuple or a dict of them: with memory of its own."""
    if isinstance(out, Tensor):
        return out.detach().clone()
    if isinstance(out, dict):
        return {name: copied(x) for name, x in out.items()}
    if isinstance(out, tuple):
        parts = [copied(x) for x in out]
        return type(out)(*parts) if hasattr(out, "_fields") else tuple(parts)
    return out


def suit(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer's step one that a graph can hold: its learning rates become tensors, which a schedule fills.

    Nothing happens where no graphs were chosen. Raises UserError where torch has no such step.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if not (_Now.chosen and device.type == "cuda"):
            return
        if "capturable" in group:
            group["capturable"] = True
            warnings.filterwarnings(
                "ignore", ".*capturable=True, but step", UserWarning
            )  # of the steps before a capture
        elif not getattr(optimizer, "capturable", False):
            raise UserError(f"compile=graphs needs an optimizer that graphs can hold, such as Adam, and "
                            f"{type(optimizer).__name__} is none; take compile=none")  # fmt: skip
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
