"""Where a run computes."""

import os
import re
from typing import Annotated

import torch

from rl_lab.core import distributed
from rl_lab.core.errors import UserError


def chosen(name: str, path: str = "device") -> str:
    """`auto`, `cpu` or `cuda` to a device that is there. Raises UserError, which names the setting by its `path`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu(:0)?|cuda(:\d{1,3})?", name):
        raise UserError(f"{path}={name} is not a choice; choose from auto, cpu, cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"{path}={name}, but torch sees no GPU here; use {path}=cpu or {path}=auto")
    if name.startswith("cuda:") and int(name[5:]) >= (count := torch.cuda.device_count()):
        raise UserError(f"{path}={name}, and this machine has {count} GPUs, numbered from cuda:0")
    return _own_gpu() if name.startswith("cuda") and distributed.size() > 1 else name


Device = Annotated[str, chosen]


def _own_gpu() -> str:
    """Of this rank among those of its machine. Raises UserError where there are too few."""
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"GPU {number} is needed and this machine has {count}; torchrun --nproc_per_node={count}, or device=cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
