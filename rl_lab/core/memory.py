"""How much memory there is, and no more of it taken: a setting far too large is then an error, and no dead machine."""

import os
import resource
from pathlib import Path

import torch


def free(device: torch.device | str = "cpu") -> int:
    """Bytes: on a GPU; or of this machine, and of the control group that bounds this process."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = 1024 * int(meminfo.read_text().partition("MemAvailable:")[2].split()[0])
    bound, used = group / "memory.max", group / "memory.current"
    if bound.exists() and (limit := bound.read_text().strip()).isdigit():
        there = min(there, int(limit) - int(used.read_text()))
    return there


def bound() -> None:
    """From here on this process may take what is free now. Linux alone counts it so; elsewhere nothing is bound.

    Without the bound the system promises more than it has, and kills whoever uses it. Not where a GPU is used: CUDA
    maps far more than it takes.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return
    taken = 1024 * int(status.read_text().partition("VmData:")[2].split()[0])
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = taken + free()
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
