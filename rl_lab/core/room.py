"""Checks that there is room before it is taken, in memory and on disk, and that archives do not unpack to too much."""

import ctypes
import os
import platform
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from rl_lab.core.errors import WINDOWS, UserError

try:
    import resource
except ImportError as error:
    raise UserError(WINDOWS) from error

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the names of malloc.h
BOMB = 100, 2**26  # times its size on disk that an archive unpacks to, and bytes: both and more is no data set


def memory(nbytes: float, what: str) -> None:
    """Raises UserError where `what` takes more than is free."""
    if nbytes > (free := available()):
        raise UserError(f"{what} needs {sized(nbytes)} of memory, and {sized(free)} are free; ask for less")


def available(device: Any = "cpu") -> float:
    """Free bytes: of a GPU; or of this machine, within the limits of this process and of its control group."""
    if str(device).startswith("cuda"):
        import torch  # where it is used already

        return float(torch.cuda.mem_get_info(device)[0])
    free = float("inf")
    if (meminfo := Path("/proc/meminfo")).is_file():
        free = 1024.0 * int(meminfo.read_text().partition("MemAvailable:")[2].split()[0])
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    most, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if most.is_file() and used.is_file() and (limit := most.read_text().strip()).isdigit():
        free = min(free, float(int(limit) - int(used.read_text())))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return free if soft == resource.RLIM_INFINITY else min(free, float(soft))


def bound_memory() -> None:
    """Limits this process to the memory that is free now, so that asking for too much is an error and does not bring
    down the machine.

    Only Linux can limit it this way. Not for a GPU: CUDA maps far more than it uses.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return
    taken = 1024 * int(status.read_text().partition("VmData:")[2].split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(min(taken + available(), 2**62))
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def keep_freed_memory() -> None:
    """Has this process keep what it frees for what it takes next: each update asks for the same memory again.

    glibc hands it back to the system, which clears each page anew: a seventh of a DQN's time on Atari. Larger
    blocks, such as a replay's, are still handed back. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 2**25)  # the most that it takes
        libc.mallopt(TRIM_THRESHOLD, 2**30)


def disk(nbytes: float, folder: Path, what: str) -> None:
    """Raises UserError where `what` takes more than is free where `folder` is, or is to be."""
    there = next(place for place in [folder, *folder.absolute().parents] if place.exists())
    if nbytes > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"{what} needs {sized(nbytes)} in {folder}, and {sized(free)} are free; make room, or choose another place"
        )


def sized(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.3g} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.3g} MB"


def regular(path: Path) -> BinaryIO:
    """A file of the user's own to read from, links followed; never a pipe or a device, which would be waited for.

    Raises UserError or OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a regular file, and is not read")
    return os.fdopen(handle, "rb")


def archive(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    """Opens an archive. Raises UserError where it unpacks to far too much, zipfile.BadZipFile where it is none."""
    found = zipfile.ZipFile(file)
    packed, unpacked = (sum(getattr(x, name) for x in found.infolist()) for name in ("compress_size", "file_size"))
    times, least = BOMB
    if unpacked > least and unpacked > times * packed:
        raise UserError(
            f"{path} unpacks to {sized(unpacked)}, {unpacked / max(1, packed):,.0f} times its size; such a "
            "file is not read (np.savez, not savez_compressed, leaves no doubt)"
        )
    return found
