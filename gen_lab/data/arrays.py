"""Images of one's own as arrays in an npz file."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Binarised, Images, Protocol
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import home
from rl_lab.core.settings import NonNegative

MOST_CLASSES = 65_536


def npz(*, path: str, protocol: Protocol, resident_gb: NonNegative, root: str | None) -> Images:
    """Arrays `train` and `test` uint8 [N, C, H, W], [N, H, W, C] or [N, H, W], C = 1 or 3, and `levels`; if labelled,
    `train_labels` and `test_labels` [N].

    Images of more than `resident_gb` are unpacked once under `root` and mapped from there.
    """
    file = home(path)
    try:
        with room.regular(file) as opened, room.archive(opened, file) as archive:
            small = {name: _small(archive, file, name) for name in ("levels", "train_labels", "test_labels")}
            levels = _levels(file, small["levels"])
            parts = [_member(archive, file, name) for name in ("train", "test")]
            if parts[0].shape[1:] != parts[1].shape[1:]:
                of = [list(part.shape[1:]) for part in parts]
                raise UserError(f"{file}: train is of {of[0]} and test of {of[1]}")
            labels, classes = _labels(file, small, *(part.shape[0] for part in parts))
            binarised = Binarised(protocol, levels, file.stem)
            stat = file.stat()
            what = str(file.absolute()), stat.st_size, stat.st_mtime_ns, protocol
            mapped = sum(math.prod(part.shape) for part in parts) > resident_gb * 1e9
            maps = map_paths(root, what) if mapped else (None, None)
            train, test = (
                kept(_checked(part.chunks(), file, name, levels, shown), part.shape, at)
                for part, name, shown, at in zip(
                    parts, ("train", "test"), (binarised.train, binarised.test), maps, strict=True
                )
            )
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as an npz file ({' '.join(str(error).split())})") from error
    name = f"{file.stem}-{'x'.join(map(str, train.shape[1:]))}-{levels}{binarised.suffix}"
    return Images(
        name, train, test, binarised.levels, labels[0], labels[1], classes, resampled=binarised.resampled, mapped=mapped
    )


class Member(NamedTuple):
    """An array of images in an archive: its shape [N, C, H, W], and all of them, a few at a time."""

    shape: tuple[int, int, int, int]
    chunks: Callable[[], Iterator[np.ndarray]]


def _header(archive: zipfile.ZipFile, file: Path, name: str) -> tuple[tuple, bool, np.dtype, IO[bytes]] | None:
    """Shape, Fortran order, dtype and what follows, of an array that is as long as it says; None: there is none."""
    if f"{name}.npy" not in archive.namelist():
        return None
    member = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if (
        not dtype.hasobject
        and archive.getinfo(f"{name}.npy").file_size != member.tell() + math.prod(shape) * dtype.itemsize
    ):
        raise UserError(f"{file}: '{name}' says it is {dtype} {list(shape)}, and has another number of bytes")
    return shape, fortran, dtype, member


def _small(archive: zipfile.ZipFile, file: Path, name: str) -> np.ndarray | None:
    """An array of whole numbers, of one axis at most; None where there is none. Raises UserError for one of another
    kind, before it is unpacked."""
    if (header := _header(archive, file, name)) is None:
        return None
    shape, _, dtype, member = header
    if dtype.kind not in "iu" or len(shape) > 1:
        raise UserError(
            f"{file}: '{name}' is {dtype} {list(shape)}; it must be whole numbers{' [N]' * (name != 'levels')}"
        )
    room.memory(math.prod(shape) * dtype.itemsize, f"{file}: '{name}'")
    with member:
        return np.frombuffer(member.read(), dtype).reshape(shape)


def _member(archive: zipfile.ZipFile, file: Path, name: str) -> Member:
    """Raises UserError where it is none of images."""
    if (header := _header(archive, file, name)) is None:
        raise UserError(f"{file} has no array '{name}'; it needs train and test, uint8 [N, C, H, W], and levels")
    shape, fortran, dtype, member = header
    said = f"{file}: '{name}' is {dtype} {list(shape)}{' in Fortran order' * fortran}"
    if dtype != np.uint8 or len(shape) not in (3, 4) or fortran or not all(shape):
        raise UserError(f"{said}; it must be uint8 [N, C, H, W], [N, H, W, C] or [N, H, W]")
    shape = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
    last = shape[1] not in (1, 3) and shape[3] in (1, 3)  # colours
    if not last and shape[1] not in (1, 3):
        raise UserError(f"{said}, of {shape[1]} colours (or {shape[3]}, were they last); images have 1 or 3")

    def chunks() -> Iterator[np.ndarray]:
        size, at_once = math.prod(shape[1:]), max(1, 2**24 // math.prod(shape[1:]))
        with member:
            for start in range(0, shape[0], at_once):
                count = min(at_once, shape[0] - start)
                pixels = np.frombuffer(member.read(count * size), np.uint8).reshape(count, *shape[1:])
                yield np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if last else pixels

    return Member((shape[0], shape[3], *shape[1:3]) if last else shape, chunks)


def _checked(chunks: Iterator[np.ndarray], file: Path, name: str, levels: int, shown: Callable[[Tensor], Tensor]):
    """Pixels under the protocol. Raises UserError where some are of no level."""
    for pixels in chunks:
        if (highest := int(pixels.max())) >= levels:
            raise UserError(
                f"{file}: '{name}' goes up to {highest}, and of {levels} levels the highest is {levels - 1}"
            )
        yield shown(torch.from_numpy(pixels.copy())).numpy()


def _levels(file: Path, levels: np.ndarray | None) -> int:
    if levels is None or levels.size != 1 or not 2 <= int(levels.item()) <= 256:
        raise UserError(f"{file} has no 'levels' between 2 and 256")
    return int(levels.item())


def _labels(file: Path, arrays: dict, *counts: int) -> tuple[list, int]:
    """Of train and test, int64, and how many classes they name: both parts have labels, or neither."""
    names = "train_labels", "test_labels"
    if all(arrays[name] is None for name in names):
        return [None, None], 0
    for name, count in zip(names, counts, strict=True):
        x = arrays[name]
        if x is None or x.shape != (count,) or x.min() < 0:
            raise UserError(f"{file}: '{name}' must be {count} whole numbers from 0 on, as there are images")
        if x.max() >= MOST_CLASSES:
            raise UserError(f"{file}: '{name}' goes up to {x.max()}; number the classes from 0 on")
    labels = [torch.from_numpy(arrays[name].astype(np.int64)) for name in names]
    return labels, 1 + max(int(x.max()) for x in labels)
