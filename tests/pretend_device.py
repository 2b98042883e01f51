"""The device of pretend.py: its tensors, generators and graphs, and what it refuses."""

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
INSIDE = torch.device("maia:0")  # what torch is told: a kind that nobody has, and that autograd asks for no streams
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim",
         "unique_consecutive", "repeat_interleave", "bincount", "_linalg_check_errors", "_pin_memory"}  # fmt: skip
KINDS = GPU.type, INSIDE.type
COPIES = {"_to_copy", "copy_"}
Real = torch.Generator


class Mixed(RuntimeError):
    """One operation, two devices."""


class Waits(RuntimeError):
    """The host would wait for the device."""


class Generator(Real):
    """torch.Generator, which draws on the CPU whatever device it was made for."""

    known: dict[int, "Generator"] = {}  # torch hands another object on, of the same address

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = Real.__new__(cls, "cpu")
        made.place = torch.device(device)
        return cls.known.setdefault(made._cdata, made)

    def __init__(self, device: Any = "cpu"): ...

    @property
    def device(self) -> torch.device:
        return GPU if self.place.type == "cuda" else self.place


class Graph:
    """torch.cuda.CUDAGraph. What a capture ran is its first replay."""

    def __init__(self, keep_graph: bool = False):
        self.calls: list[tuple[Callable, tuple, dict, list[Tensor]]] = []
        self.generators: list[Real] = []
        self.fresh = True

    def register_generator_state(self, rng: Real) -> None:
        self.generators.append(rng)

    def note(self, func: Callable, args: tuple, kwargs: dict, out: Any) -> None:
        given = {x.untyped_storage()._cdata for x in leaves_of((args, kwargs)) if isinstance(x, Tensor)}
        found = [
            x if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given else None for x in leaves_of(out)
        ]
        self.calls.append((func, args, kwargs, found))

    def replay(self) -> None:
        if self.fresh:
            self.fresh = False
            return
        with torch.no_grad(), device.off():
            for func, args, kwargs, kept in self.calls:
                for old, new in zip(kept, leaves_of(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)


class Device:
    """The one there is: what it refuses now, and the graph that it records."""

    strict = False
    graph: Graph | None = None
    silent = 0

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()  # seen while they were allowed: the functions of the labs that wait

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1

    def wait(self, what: str) -> None:
        if self.strict or self.graph:
            raise Waits(f"{what} waits for the device")
        frame = sys._getframe(2)
        while frame.f_back and "_lab" not in str(frame.f_globals.get("__name__")).partition(".")[0]:
            frame = frame.f_back
        self.waits[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name, leaves = func.overloadpacket.__name__, leaves_of((args, kwargs))
        ours = [x for x in leaves if isinstance(x, OnGPU)]
        theirs = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnGPU)]
        to = kwargs.get("device")
        on_gpu = bool(ours) if to is None else torch.device(to).type in KINDS
        if not (on_gpu or ours):
            self._check_generators(leaves, name, on_gpu=False)
            return func(*args, **kwargs)
        self._check_generators(leaves, name, on_gpu=True)
        self._look(name, args, kwargs, ours, theirs, on_gpu)
        inner_args, inner = mapped(plain, args), mapped(plain, kwargs)
        if to is not None:
            inner["device"] = CPU
        out = func(*inner_args, **inner)
        if self.graph and name != "detach":
            self.graph.note(func, inner_args, inner, out)
        if not on_gpu:
            return out
        if name == "_to_copy" and any(x is out for x in leaves):
            out = out.clone()
        out = OnGPU(out) if isinstance(out, Tensor) else mapped(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if aliases(func) else out

    def _check_generators(self, leaves: list, name: str, on_gpu: bool) -> None:
        for rng in (Generator.known.get(x._cdata, x) for x in leaves if isinstance(x, Real)):
            if (rng.device.type == "cuda") != on_gpu:
                raise Mixed(f"{name} draws for {'the GPU' if on_gpu else 'the CPU'} by a generator of {rng.device}")
            if self.graph and all(rng is not known for known in self.graph.generators):
                raise RuntimeError(f"{name} draws by a generator that the graph does not know")

    def _look(self, name: str, args: tuple, kwargs: dict, ours: list, theirs: list, on_gpu: bool) -> None:
        if name in COPIES:
            crossing = theirs if on_gpu else ours
            freely = on_gpu and (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if crossing and not freely:
                self.wait(f"{name} from one device to the other")
            return
        if name in WAITS:
            self.wait(name)
        indices = (
            [i for i in args[1] if i is not None]
            if name.startswith(("index", "_index_put")) and isinstance(args[1], list | tuple)
            else []
        )
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            number = name.startswith(("index_put", "_index_put")) and not args[2].ndim
            if not number:  # a number is filled in by masked_fill
                self.wait(f"{name} by a mask")
        if any(not isinstance(i, OnGPU) for i in indices):
            self.wait(f"{name} by indices of the CPU")
            theirs = [x for x in theirs if all(x is not i for i in indices)]
        if ours and any(x.ndim or name.startswith("_fused") for x in theirs):
            raise Mixed(f"{name} takes tensors of cuda:0 and of the CPU")


device = Device()


class OnGPU(Tensor):
    """A tensor of the CPU that says it is on the GPU."""

    inner: Tensor
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    data = property(lambda self: OnGPU(self.inner.detach()), lambda self, x: self._become(x))
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGPU":
        made: OnGPU = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=INSIDE,
        )
        made.inner = inner
        return made

    def _become(self, x: "OnGPU") -> None:
        Tensor.data.__set__(self, x)
        self.inner = x.inner

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self) -> str:
        return f"{self.inner!r} on {GPU}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return device.run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().clone().__reduce_ex__(protocol)


def leaves_of(tree: Any) -> list:
    """torch's own tree_leaves takes far longer."""
    if isinstance(tree, list | tuple | dict):
        return [leaf for x in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves_of(x)]
    return [tree]


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: mapped(change, x) for key, x in tree.items()}
    return type(tree)(mapped(change, x) for x in tree) if isinstance(tree, list | tuple) else change(tree)


def plain(x: Any) -> Any:
    return x.inner if isinstance(x, OnGPU) else x


def inside(x: Any) -> Any:
    return INSIDE if isinstance(x, str | torch.device) and str(x).partition(":")[0] == GPU.type else x


@functools.cache
def aliases(func: Any) -> bool:
    """Whether it changes what it is given, or shares memory with it."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)
