"""Locks that die with the process that holds them."""

import os
from pathlib import Path
from typing import BinaryIO

from rl_lab.core import files
from rl_lab.core.errors import WINDOWS, UserError

try:
    import fcntl
except ImportError as error:
    raise UserError(WINDOWS) from error

ALONE, WITH_OTHERS = fcntl.LOCK_EX, fcntl.LOCK_SH


def lock(file: int | BinaryIO, kind: int) -> bool:
    """Whether the open file is locked now, until it is closed; False where another open file holds the lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held_now(file: BinaryIO) -> bool:
    """Whether this process holds the open file from now on; on a disk without locks every process does."""
    try:
        return lock(file, ALONE)
    except OSError:
        return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the file of this name."""
    try:
        with files.opened(path) as file:
            return not lock(file, WITH_OTHERS)
    except OSError:  # it is not there, or its disk has no locks
        return False


def of_run(folder: Path, doing: str = "trained") -> int | None:
    """Makes a run folder if there is none and holds it for this process, until it ends or lets go of what is returned;
    None on disks without locks.

    Raises UserError where another process holds it: both would write the same files.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # one that was refused has just taken its empty folder away
            continue
        try:
            held = lock(handle, ALONE)
        except OSError:
            os.close(handle)
            return None
        if not held:
            os.close(handle)
            raise UserError(f"{folder} is being {doing} by another process; wait until it ends, or stop it first")
        if _is_at(handle, folder):
            return handle
        os.close(handle)  # what was locked is no longer there: another folder may stand in its place


def remove_empty(folder: Path, above: int = 2) -> None:
    """`files.remove_empty`, but for a folder in which another process has just begun a run."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it is gone already; what is above it may be empty
        files.remove_empty(folder, above)
        return
    try:
        free = lock(handle, ALONE)
    except OSError:  # a disk without locks
        free = True
    if free:
        files.remove_empty(folder, above)
    os.close(handle)


def let_go(handle: int) -> None:
    """Releases it, even where a child process has the handle too."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
