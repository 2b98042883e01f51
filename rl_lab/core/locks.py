"""Locks that die with the process that holds them."""

import fcntl
import os
from pathlib import Path

from rl_lab.core.errors import UserError

ALONE, WITH_OTHERS = fcntl.LOCK_EX, fcntl.LOCK_SH


def lock(file, kind: int) -> bool:
    """Whether the open file is locked now, until it is closed; False where another one that is open holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def of_run(folder: Path) -> int | None:
    """Holds a run folder for this process, until it ends or closes what is returned; None on disks without locks.

    Raises UserError where another process holds it: both would write the same files.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        held = lock(handle, ALONE)
    except OSError:
        os.close(handle)
        return None
    if not held:
        os.close(handle)
        raise UserError(f"{folder} is being trained by another process; wait for its end, or stop that first")
    return handle
