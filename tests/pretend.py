"""A GPU that is not there: tensors that say they are on cuda:0, computed on the CPU by torch's own kernels.

    with pretend.gpu():
        agent = build(device="cuda")                  # x.is_cuda, x.device == cuda:0
        with pretend.no_wait():
            agent.update(transition)                  # raises where the host would wait for the device

Refused always: tensors of both devices in one operation (but a CPU's number, as CUDA allows), and random numbers for one
device from a generator of the other. Refused under `no_wait` (which is torch.cuda.set_sync_debug_mode("error")) and
while a graph is captured: numbers read, shapes that depend on values, blocking copies. A captured graph is the list of
operations that ran, and a replay runs them again into the same tensors: what Python did in between is not done again.
"""

import contextlib
import ctypes
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from pretend_device import GPU, INSIDE, Device, Generator, Graph, Mixed, Waits, device, inside
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Mixed", "Waits", "gpu", "no_wait"]


class _Operations(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else each operation would enter and leave the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*args, **(kwargs or {})) if device.silent else device.run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """torch.tensor makes its copy below what a dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(inside(kwargs["device"]))
        if func is Tensor.to:
            args, kwargs = tuple(map(inside, args)), {k: inside(x) for k, x in kwargs.items()}
        return func(*args, **kwargs)


@contextlib.contextmanager
def _capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    device.graph = graph
    try:
        yield
    finally:
        device.graph = None


def _set_debug_mode(mode: Any) -> None:
    device.strict = mode in ("error", 2)


@contextlib.contextmanager
def no_wait() -> Iterator[None]:
    before, device.strict = device.strict, True
    try:
        yield
    finally:
        device.strict = before


def _inference(on: bool) -> Any:
    """torch.inference_mode, in which torch lets nobody wrap a tensor."""
    return torch.no_grad() if on else contextlib.nullcontext()


STREAM = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
CUDA: dict[str, Any] = {
    "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
    "is_bf16_supported": lambda including_emulation=True: True, "synchronize": lambda *_: None,
    "get_device_name": lambda *_: "a pretended GPU", "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda *_: None, "manual_seed_all": lambda seed: None, "manual_seed": lambda seed: None,
    "max_memory_allocated": lambda *_: 0, "reset_peak_memory_stats": lambda *_: None, "mem_get_info": lambda *_: (2**34, 2**34),
    "empty_cache": lambda: None,
    "set_sync_debug_mode": _set_debug_mode, "set_stream": lambda _: None, "set_device": lambda _: None, "CUDAGraph": Graph, "graph": _capture,
    "is_current_stream_capturing": lambda: device.graph is not None,
    "Stream": lambda *_, **__: STREAM, "current_stream": lambda *_: STREAM, "stream": lambda _: contextlib.nullcontext(),
}  # fmt: skip


def _guard() -> None:
    """torch asks who knows the current device of that kind: whoever answers for the CPU."""
    library = next(Path(torch.__file__).parent.glob("lib/libc10.*"))
    registry = (ctypes.c_void_p * 9).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    registry[8] = registry[0]  # as c10::DeviceType numbers them: CPU, MAIA


@contextlib.contextmanager
def _autocast(kind: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> Iterator[None]:
    """torch.autocast, of the GPU."""
    kind = INSIDE.type if kind == GPU.type else kind
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, enabled)
    torch.set_autocast_dtype(kind, dtype or torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


@contextlib.contextmanager
def gpu() -> Iterator[Device]:
    """Within, torch has one."""
    _guard()
    device.strict, device.graph, device.waits = False, None, Counter()
    Generator.known.clear()
    with contextlib.ExitStack() as stack:
        for name, stand_in in CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast))
        stack.enter_context(mock.patch.object(torch._C, "_InferenceMode", _inference))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a module moved has new parameters
        stack.enter_context(_Calls())
        stack.enter_context(_Operations())
        yield device
