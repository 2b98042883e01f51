"""How many threads torch computes with: as many of this machine's cores as the work keeps busy."""

import os
from pathlib import Path
from typing import Any

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Threads, conform

LARGE = 500_000  # weights: a product of fewer is done before a second thread has begun
MOST = 4  # threads: beyond them layers of the usual sizes leave too little to each
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container: microseconds of CPU in each period, or max


def setting(value: Any) -> int | str:
    """`threads` as it was typed: a number, or auto. Raises UserError."""
    if value == "auto":
        return "auto"
    try:
        return int(conform("threads", value, Threads))
    except UserError as error:
        raise UserError(f"{error}, or auto") from None


def kept(value: Any) -> int:
    """Torch's threads as a run folder states them: it names the number that was chosen."""
    threads = setting(value)
    return 1 if isinstance(threads, str) else threads


def cores() -> int:
    """How many this process may use, by its affinity and its container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return found if quota == "max" else max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):
        return found


def suited(weights: int, beside: int) -> int:
    """Torch's threads for networks of this many weights, where `beside` such computations share the machine, this one
    included.

    No more than OMP_NUM_THREADS, by which a cluster says what a job may use.
    """
    if weights < LARGE:
        return 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    most = int(allowed) if allowed.isdecimal() else MOST
    return max(1, min(MOST, most, cores() // beside))


def of_emulators(count: int) -> int:
    """Threads for this many emulators that step together."""
    return min(count, cores())
