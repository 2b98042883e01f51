"""The device a run computes on."""

import os
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from rl_lab.core import calls, distributed
from rl_lab.core.errors import UserError, counted

KINDS: dict[str, tuple[ModuleType, str]] = {  # what asks torch for each, and its name, in the order of `auto`
    "cuda": (torch.cuda, "GPU"),
    "xpu": (torch.xpu, "Intel GPU"),
    "mps": (torch.mps, "Apple GPU"),
}


def chosen(name: str | torch.device, path: str = "device", config: Any = None, exact: Iterable[str] = ()) -> str:
    """The name of a device that is there, from `auto` or a kind of device. Raises UserError, which names the setting by
    its `path`.

    `exact` are the first parts of the names of those classes that compute in float64, which mps lacks: where the
    `config` calls one of them, `auto` leaves mps out.
    """
    name = str(name)
    doubles = next((target for target in calls.targets(config) if target.startswith(tuple(exact))), None)
    if name == "auto":
        there = (kind for kind in KINDS if has(kind) and not (kind == "mps" and doubles))
        name = next(there, "cpu")
    if not re.fullmatch(r"(cpu|mps)(:0)?|(cuda|xpu)(:\d{1,3})?", name):
        raise UserError(f"{path}={name} is not a choice; choose from auto, cpu, {', '.join(KINDS)}")
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return name
    module, words = KINDS[kind]
    if not has(kind):
        raise UserError(f"{path}={name}, but torch sees no {words} here; use {path}=cpu or {path}=auto")
    if number and int(number) >= (count := module.device_count()):
        raise UserError(f"{path}={name}, and this machine has {counted(count, f'{words}s')}, numbered from {kind}:0")
    if kind == "mps" and doubles:
        raise UserError(f"{path}={name} has no float64, in which {doubles} computes; use {path}=cpu or {path}=auto")
    if kind == "cuda" and distributed.size() > 1:
        return _own_gpu()
    if kind == "cuda" and number:
        torch.cuda.set_device(int(number))  # streams and graphs are those of the current one
    return name


Device = Annotated[str, chosen]


def has(kind: str) -> bool:
    """Whether torch sees a device of this kind."""
    asked = torch.backends.mps if kind == "mps" else KINDS[kind][0]
    return bool(asked.is_available())


def is_whole(x: Tensor) -> bool:
    """Whether its numbers are of a type of whole ones, which bool is not."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def double(x: Tensor) -> Tensor:
    """x in float64, on its own device or, if that has none, on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def numbers(values: Iterable[Tensor | float]) -> list[float]:
    """One transfer for all tensors, not one each."""
    values = list(values)
    tensors = [double(x.detach()).reshape(()) for x in values if isinstance(x, Tensor)]
    moved = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(moved) if isinstance(x, Tensor) else float(x) for x in values]


def _own_gpu() -> str:
    """The GPU of this rank among those of its machine. Raises UserError where there are too few."""
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"GPU {number} is needed and this machine has {count}; torchrun --nproc_per_node={count}, or device=cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
