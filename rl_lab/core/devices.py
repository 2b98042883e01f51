"""Where a run computes."""

import os

import torch

from rl_lab.core import distributed
from rl_lab.core.errors import UserError


def chosen(name: str) -> str:
    """`auto`, `cpu` or `cuda` to a device that is there. Raises UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={name} is not a choice; choose from auto, cpu, cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no GPU here; use device=cpu or device=auto")
    return _own_gpu() if name.startswith("cuda") and distributed.size() > 1 else name


def _own_gpu() -> str:
    """Of this rank among those of its machine. Raises UserError where there are too few."""
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"GPU {number} is wanted and this machine has {count}; torchrun --nproc_per_node={count}, "
                        "or device=cpu")  # fmt: skip
    torch.cuda.set_device(number)
    return f"cuda:{number}"
