"""What data sets keep on disk: files fetched once and checked at every use, and memory maps of large sets."""

import hashlib
import http.client
import math
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.console import Console
from torch import Tensor

from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import home, remove_empty, replacing, unwritten

TIMEOUT = 15.0  # seconds without a byte
CHUNK = 2**18  # bytes

Array = TypeVar("Array", bound=np.ndarray)


class File(NamedTuple):
    name: str
    size: int  # bytes
    sha256: str


class Part(NamedTuple):
    """One array of a data set, whatever it is packed in."""

    name: str  # train, train_labels, test, test_labels; or valid
    shape: tuple[int, ...]
    sha256: str  # of its bytes; of a text the text's


class Source(NamedTuple):
    """Files of one data set, and where they can be had: each mirror is a URL that a file's name completes."""

    name: str  # of their folder in the cache
    mirrors: tuple[str, ...]
    files: tuple[File, ...]
    parts: tuple[Part, ...] = ()  # what they hold, in their order; it may lie in any other wrapping
    hints: tuple[str, ...] = ()  # in the names of archives of it
    kinds: tuple[str, ...] = ()  # in the names of its files


def cache(root: str | None) -> Path:
    """`root`, or the system's place for what can be fetched again (XDG base directories)."""
    if root:
        return home(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gen_lab"


# -- files from elsewhere


def fetch(source: Source, root: str | None) -> list[Path]:
    """Paths of the source's files, each with the checksum it should have. Raises UserError."""
    folder = cache(root) / source.name
    paths = [folder / file.name for file in source.files]
    for file, path in zip(source.files, paths, strict=True):
        if path.exists() and sha256(path) != file.sha256:
            raise UserError(f"{path} is damaged, or another file: its sha256 differs; delete it to fetch it again")
    missing = [file for file, path in zip(source.files, paths, strict=True) if not path.exists()]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in missing:
                _download(file, source.mirrors, folder / file.name)
        except OSError as error:  # of the disk: errors of the network are caught in `_attempt`
            raise unwritten(folder, error, "data.root=") from error
        except NoMirror as error:
            remove_empty(folder)
            names = " and ".join(file.name for file in missing if not (folder / file.name).exists())
            raise UserError(
                f"cannot download ({error}); put {names} from {source.mirrors[0]} into {folder} by hand"
            ) from error
    return paths


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class NoMirror(Exception):
    """No mirror gave the file."""


def _download(file: File, mirrors: Iterable[str], path: Path) -> None:
    """Written beside and renamed; each mirror resumes what the last one, or an earlier try, began."""
    beside, faults = path.with_name(path.name + ".part"), []
    for mirror in mirrors:
        fault = _attempt(mirror + file.name, file, beside)
        if fault is None:
            beside.replace(path)
            return
        faults.append(f"{mirror}: {fault}")
    raise NoMirror("; ".join(faults))


def _attempt(url: str, file: File, beside: Path) -> str | None:
    """What went wrong; None where the file is whole."""
    resumed = beside.exists()
    try:
        _transfer(url, file, beside)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        return str(getattr(error, "reason", None) or error or type(error).__name__)
    if beside.stat().st_size < file.size:
        return f"cut short at {beside.stat().st_size:,} of {file.size:,} bytes"
    if sha256(beside) == file.sha256:
        return None
    beside.unlink()
    return _attempt(url, file, beside) if resumed else "not the file, its sha256 differs"


def _transfer(url: str, file: File, beside: Path) -> None:
    """Appends to `beside` what it lacks; a server that knows no ranges sends all of it again."""
    begun = beside.stat().st_size if beside.exists() else 0
    if begun >= file.size:
        begun = 0
    headers = {"User-Agent": "gen-lab"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with (
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer,
        open(beside, "ab" if answer.status == 206 else "wb") as out,
        Console(stderr=True).status(f"fetching {file.name}") as status,
    ):
        while out.tell() <= file.size and (chunk := answer.read(CHUNK)):
            out.write(chunk)
            status.update(f"fetching {file.name}: {out.tell() / 1e6:,.1f} of {file.size / 1e6:,.1f} MB")


# -- memory maps


def kept(chunks: Iterable[np.ndarray], shape: tuple[int, int, int, int], path: Path | None) -> Tensor:
    """Chunks [n, C, H, W] uint8 as one tensor of `shape` [N, C, H, W]: in memory, or mapped from `path`.

    A map that exists is used as it is, and the chunks are left unread. Raises UserError.
    """
    if path and path.exists():
        return _mapped(path, shape)
    if path:
        room.disk(math.prod(shape), path.parent, "a memory map of these images")
    else:
        room.memory(2 * math.prod(shape), "a set of images as large as this (data.resident_gb=0 maps it from disk)")
    try:
        if not path:
            return torch.from_numpy(_filled(np.empty(shape, np.uint8), chunks))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, alone=False) as beside:
            _filled(open_memmap(beside, "w+", np.uint8, shape), chunks).flush()
    except OSError as error:
        raise unwritten(str(path), error, "data.root=") from error
    return _mapped(path, shape)


def _filled(whole: Array, chunks: Iterable[np.ndarray]) -> Array:
    """`whole` [N, ...] with the chunks [n, ...] written into it."""
    filled = 0
    for chunk in chunks:
        whole[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    assert filled == len(whole)
    return whole


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Maps it copy-on-write, because torch needs writable memory."""
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged; delete it, and it is made again") from error
    if found.shape != shape or found.dtype != np.uint8:
        raise UserError(f"{path} is of other images ({found.dtype} {list(found.shape)}); delete it")
    return torch.from_numpy(found)


def map_paths(root: str | None, what: object) -> tuple[Path, Path]:
    """Where training and test images are mapped, named by all that shapes them."""
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    return cache(root) / "maps" / f"{digest}_train.npy", cache(root) / "maps" / f"{digest}_test.npy"
