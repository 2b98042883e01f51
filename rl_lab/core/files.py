"""Files of a run folder: regular ones inside it, replaced whole. Nothing is read or written through a link."""

import errno
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, BinaryIO

from rl_lab.core.errors import UserError

READ_ONLY = errno.EACCES, errno.EPERM, errno.EROFS
ENDINGS = {".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".mp4", ".npy", ".npz", ".pdf", ".png", ".pt", ".pt2",
           ".svg", ".txt", ".yaml", ".zip"}  # of files  # fmt: skip


def inside(folder: Path, name: str) -> Path:
    """The place of the file `name` ("pictures/values.png") in a run folder; the folders on its way are made.

    The run folder itself may be a link, what lies in it may not: a folder that a stranger sent could point at any file
    of this machine. Raises UserError.
    """
    *parents, last = Path(name).parts
    place = within(folder, *parents)
    if parents:
        place.mkdir(parents=True, exist_ok=True)
    if last == ".." or _kind(place / last) not in (None, stat.S_IFREG):
        raise UserError(f"{place / last} is a link or no file at all; delete it, then try again")
    return place / last


def within(folder: Path, *names: str) -> Path:
    """The place of a folder in a run folder, whether it is there or not. Raises UserError where it is no folder."""
    place = Path(folder)
    for name in names:
        place = place / name
        if name in ("..", "/") or _kind(place) not in (None, stat.S_IFDIR):
            raise UserError(f"{place} is not a folder of its own; delete it, then try again")
    return place


def found(folder: Path, pattern: str) -> list[Path]:
    """The files of a run folder like "pictures/samples_*.png", sorted, without links."""
    where, _, name = pattern.rpartition("/")
    place = within(folder, *Path(where).parts)
    return sorted(path for path in place.glob(name) if _kind(path) == stat.S_IFREG)


def fresh(folder: Path) -> Path:
    """Makes a folder that no other process has: of this name or, where that is taken, with -2, -3, ... appended."""
    for name in (folder.name, *(f"{folder.name}-{i}" for i in range(2, 10_000))):
        try:
            folder.with_name(name).mkdir(parents=True)
            return folder.with_name(name)
        except FileExistsError:
            continue
    raise UserError(f"{folder} is taken, and so are the names after it; choose another")


def remove_empty(folder: Path, above: int = 2) -> None:
    """Removes an empty folder, and those above it, runs/<name>, that are then empty; never the working directory."""
    for place in (folder, *folder.parents[:above]):
        if Path.cwd().is_relative_to(place.resolve()):
            return
        try:
            place.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # it holds something
            return


@contextmanager
def replacing(path: Path, alone: bool = True) -> Iterator[Path]:
    """A fresh file beside `path` to write into; at the end it is on disk and takes its place. Raises OSError.

    Until then the file before stands. What lies in the way, a link for one, is removed and not followed.
    alone: no other process writes the same file meanwhile, as none does in a run folder.
    """
    own = "" if alone else f"{secrets.token_hex(4)}."
    beside = path.with_name(f".new.{own}{path.name}")  # the same suffix, by which libraries choose a format
    beside.unlink(missing_ok=True)
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A fresh folder for files of which `folder` is to hold all or none: at the end they take their places in there.

    Raises UserError where one cannot be written; an empty folder is then taken away.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".new.", dir=folder) as beside:
            yield Path(beside)
            for path in Path(beside).iterdir():
                path.replace(folder / path.name)
    except OSError as error:
        raise unwritten(folder, error, "out=") from error
    finally:
        remove_empty(folder)


def write(path: Path, text: str | bytes) -> Path:
    """The file is written whole or not at all. Raises OSError."""
    with replacing(path) as beside:
        beside.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


class Records:
    """What was found of each run: in a file of its folder, or all in one file elsewhere; whole after each."""

    def __init__(self, out: str | None, name: str):
        """Raises UserError where `out` is no .json."""
        self.out, self.name = None if out is None else home(out), name
        self.found: dict[str, Any] = {}
        if self.out and (self.out.suffix != ".json" or os.path.isdir(self.out)):
            raise UserError(f"out={out} must end in .json, as what is found of each run goes there")
        if self.out:
            try_place(self.out, "out=...")

    def picture(self, folder: Path, name: str) -> Path | None:
        """Where a picture of a run goes: into its folder, or beside the one file; None where neither may be."""
        if self.out:
            return self.out.with_name(f"{self.out.stem}_{folder.name}_{name}")
        return inside(folder, name) if os.access(folder, os.W_OK) else None

    def keep(self, folder: Path, record: dict[str, Any], name: str | None = None) -> None:
        """Under the usual name, or another. Where the folder cannot be written to, says so and leaves it as it is.
        Raises OSError.
        """
        name = name or self.name
        self.found[str(folder)] = record
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write(self.out, json.dumps(self.found, indent=2) + "\n")
            return
        try:
            write(inside(folder, name), json.dumps(record, indent=2) + "\n")
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            print(
                f"{folder} cannot be written to, so that {name} is left out; out=<x>.json keeps the figures",
                file=sys.stderr,
            )


def opened(path: Path, largest: float = float("inf")) -> BinaryIO:
    """A regular file of at most `largest` bytes to read from. Raises UserError, FileNotFoundError or OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would be waited for
    except OSError:
        if _kind(path) == stat.S_IFLNK:
            raise UserError(f"{path} is a link, and is not followed; put the file itself there") from None
        if _kind(path) not in (None, stat.S_IFREG):
            raise UserError(f"{path} is not a regular file, and is not read") from None
        raise
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_size > largest:
        os.close(handle)
        what = f"larger than {largest / 1e6:g} MB" if stat.S_ISREG(about.st_mode) else "not a regular file"
        raise UserError(f"{path} is {what}, and is not read")
    return os.fdopen(handle, "rb")


def appending(path: Path, size: int | None = None) -> BinaryIO:
    """Opens the regular file of this name for appending, cut to `size` bytes. Raises UserError or OSError."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError:
        if _kind(path) not in (None, stat.S_IFREG):
            raise UserError(f"{path} is a link or no file at all; delete it, then try again") from None
        raise
    about = os.fstat(handle)
    size = about.st_size if size is None else size
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1 or about.st_size < size:
        os.close(handle)
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            raise UserError(f"{path} has {about.st_size:,} bytes, and the run had written {size:,}")
        raise UserError(f"{path} has another name too, or is no file; copy it to one of its own")
    os.ftruncate(handle, size)
    file = os.fdopen(handle, "ab")
    file.seek(0, os.SEEK_END)  # else `tell` would begin at 0
    return file


def printable(node: Any) -> Any:
    """Plain data from elsewhere without what would move a terminal's cursor or change its colours."""
    if isinstance(node, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in node)
    if isinstance(node, dict):
        return {printable(key): printable(value) for key, value in node.items()}
    return [printable(value) for value in node] if isinstance(node, list) else node


def home(path: str) -> Path:
    """`path` with ~ written out. Raises UserError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder; write it out") from error


def folder_for(out: str | Path) -> Path:
    """The folder that `out=` names. Raises UserError where it is a file, or called as one."""
    place = home(str(out))
    if not str(out):
        raise UserError("out= names no folder; give it one, or leave it out")
    if os.path.isfile(place):
        raise UserError(f"out={out} is a file; choose a new folder")
    if place.suffix.lower() in ENDINGS and not os.path.isdir(place):
        raise UserError(f"out={out} is for a folder; leave off the ending: out={place.with_suffix('')}")
    try_place(place, "out=...")
    return place


def try_place(place: Path, elsewhere: str) -> None:
    """Raises UserError where no file could be written at `place`: before the work whose outcome goes there."""
    whole = place.absolute()
    above = [*[whole] * os.path.isdir(whole), *whole.parents]
    there = next(path for path in above if os.path.exists(path))
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(place)  # its name may be too long
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise unwritten(place, error, elsewhere) from error


def is_closed(path: str | None) -> bool:
    """Whether there is something that this user may not read, or a folder around it that may not be looked into."""
    if path is None:
        return False
    there, may = Path(os.fsdecode(path)), partial(os.access, effective_ids=os.access in os.supports_effective_ids)
    while not os.path.lexists(there):
        if not may(there.parent, os.X_OK):
            return True
        there = there.parent
    return not may(there, os.R_OK)


def unread(error: OSError) -> UserError:
    """What to say of a file or a folder that `is_closed`."""
    return UserError(f"cannot read {error.filename}: {error.strerror}; ask its owner for it")


def unwritten(place: Path | str, error: OSError, elsewhere: str) -> UserError:
    """What to say where a file could not be written: to make room is of no use where nothing may be, or a file stands
    where a folder should.
    """
    above = (path for path in (Path(place), *Path(place).parents) if os.path.exists(path) and not os.path.isdir(path))
    file = next(above, None)
    if file and error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"cannot write to {place}: {file} is a file, and it should be a folder; rename it or choose "
                         f"another place ({elsewhere})")  # fmt: skip
    room = "" if error.errno in (*READ_ONLY, errno.ENOENT) else "make room or "
    return UserError(f"cannot write to {place}: {error.strerror or error}; {room}choose another place ({elsewhere})")


def _kind(path: Path) -> int | None:
    """The type of what is there, links not followed; None where nothing is."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
