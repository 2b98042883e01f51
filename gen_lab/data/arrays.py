"""Images of one's own as arrays in an npz file, or as the one array of an npy file."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.advice import PARTS, header, right
from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Binarised, Images, Protocol, marked
from gen_lab.data.published import ALIASES
from rl_lab.core import room
from rl_lab.core.errors import UserError, counted
from rl_lab.core.files import home
from rl_lab.core.settings import Count, Natural, Place, Size, Unit

MOST_CLASSES = 65_536
RIGHT_ALONE = (  # what makes the one array of an npy file right
    "x = np.load('yours.npy'); np.save('images.npy', np.uint8(np.round(x)).reshape(-1, H, W))  # of H x W pixels; "
    "x * 255 where 1 is white"
)


def npz(
    *,
    path: Place,
    protocol: Protocol,
    held_out: Unit,
    validation: Natural,  # training images that evaluations before the last are of; 0: those are of the test set
    subset: Count | None,  # training images to learn from; None: all
    flip: bool,  # each showing mirrored, or not
    resident_gb: Size,
    root: Place | None,
) -> Images:
    """Arrays `train` and `test` (or `x_train` and `x_test`, as Keras has them, or `train_images` and `test_images`),
    uint8 or bool, [N, C, H, W], [N, H, W, C] or [N, H, W], C = 1 or 3; `levels`, else 256, of bool 2; if labelled,
    `train_labels` and `test_labels` [N]. Of `val` (`x_val`, `val_images`) are the evaluations before the last.

    Of an npy file, which is one array, `held_out` are drawn at random to test on. Images of more than `resident_gb`
    are unpacked once under `root` and mapped from there.
    """
    file = home(path)
    try:
        with room.regular(file) as opened:
            magic = np.lib.format.MAGIC_PREFIX
            if opened.read(len(magic)) == magic:
                whole = _images(file, _split(file, held_out), {}, protocol, resident_gb, root, held_out)
                return whole.parted(validation, subset, flip)
            with room.archive(opened, file) as archive:
                small = {
                    name: _small(archive, file, name) for name in ("levels", *(f"{part}_labels" for part in PARTS))
                }
                parts = [_member(archive, file, part) for part in PARTS if part != "val" or _stored(archive, part)]
                return _images(file, parts, small, protocol, resident_gb, root).parted(validation, subset, flip)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}; data.path=<file> names the npz or npy to learn from") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        kind = "npy" if file.suffix.lower() == ".npy" else "npz"
        raise UserError(f"{file} cannot be read as an {kind} file ({' '.join(str(error).split())})") from error


def _images(
    file: Path,
    parts: Sequence["Member"],  # to train on, to test on and, maybe, to validate on
    small: dict[str, np.ndarray | None],
    protocol: Protocol,
    resident_gb: float,
    root: str | None,
    *what: object,
) -> Images:
    train, test = parts[:2]
    for name, part in zip(PARTS, parts, strict=False):
        if train.shape[1:] != part.shape[1:]:
            raise UserError(f"{file}: train is of {[*train.shape[1:]]} and {name} of {[*part.shape[1:]]}")
    levels, remark = _levels(file, small.get("levels"), train.dtype)
    labels, classes = _labels(file, small, *(part.shape[0] for part in parts))
    binarised = Binarised(protocol, levels, file.stem)
    stat = file.stat()
    what = str(file.absolute()), stat.st_size, stat.st_mtime_ns, protocol, *what
    mapped = sum(math.prod(part.shape) for part in parts) > resident_gb * 1e9
    maps = map_paths(root, what) if mapped else (None, None)
    shown = binarised.train, binarised.test
    train_pixels, test_pixels = (
        kept(_checked(part.chunks(), file, name, levels, show), part.shape, at)
        for part, name, show, at in zip(parts[:2], PARTS, shown, maps, strict=False)
    )
    validation = None
    if len(parts) > 2:
        again = Binarised(protocol, levels, f"{file.stem} validation set")
        validation = kept(_checked(parts[2].chunks(), file, "val", levels, again.test), parts[2].shape, None)
    name = f"{file.stem}-{'x'.join(map(str, train.shape[1:]))}-{levels}{binarised.suffix}"
    return Images(
        marked(name, test_pixels),
        train_pixels,
        test_pixels,
        binarised.levels,
        labels[0],
        labels[1],
        classes,
        resampled=binarised.resampled,
        mapped=mapped,
        remark=remark,
        validation=validation,
        validation_labels=labels[2] if validation is not None else None,
    )


class Member(NamedTuple):
    """An array of images in an archive: its shape [N, C, H, W], and all of them, a few at a time."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype  # as it is stored: uint8 or bool
    chunks: Callable[[], Iterator[np.ndarray]]


def _stored(archive: zipfile.ZipFile, name: str) -> str | None:
    """The file of an array, by whichever of its names; None: there is none."""
    there = {*archive.namelist()}
    return next((f"{alias}.npy" for alias in ALIASES.get(name, (name,)) if f"{alias}.npy" in there), None)


def _header(archive: zipfile.ZipFile, file: Path, name: str) -> tuple[tuple, bool, np.dtype, IO[bytes]] | None:
    """Shape, Fortran order, dtype and what follows, of an array that is as long as it says; None: there is none."""
    if (stored := _stored(archive, name)) is None:
        return None
    member = archive.open(stored)
    shape, fortran, dtype = header(member)
    if not dtype.hasobject and archive.getinfo(stored).file_size != member.tell() + math.prod(shape) * dtype.itemsize:
        raise UserError(f"{file}: '{name}' says it is {dtype} {list(shape)}, and has another number of bytes")
    return shape, fortran, dtype, member


def _small(archive: zipfile.ZipFile, file: Path, name: str) -> np.ndarray | None:
    """An array of whole numbers, of one axis at most ([N, 1] is [N]); None where there is none. Raises UserError for
    one of another kind, before it is unpacked."""
    if (header := _header(archive, file, name)) is None:
        return None
    shape, _, dtype, member = header
    shape = shape[:1] if len(shape) == 2 and shape[1] == 1 and name != "levels" and dtype.kind in "iu" else shape
    if dtype.kind not in "iu" or len(shape) > 1:
        rows = len(shape) == 2 and shape[1] > 1
        first = (_stored(archive, "train_labels") or f"{name}.npy").removesuffix(".npy")
        of_words = f"np.searchsorted(np.unique(x[{first!r}]), x[{name!r}])"
        right = f"x[{name!r}].argmax(1)" if rows else f"x[{name!r}].astype(int)" if dtype.kind == "f" else of_words
        how = f"; {right} gives them" * (name != "levels" and len(shape) in (1, 2))
        raise UserError(
            f"{file}: '{name}' is {dtype} {list(shape)}; it must be whole numbers{' [N]' * (name != 'levels')}{how}"
        )
    room.memory(math.prod(shape) * dtype.itemsize, f"{file}: '{name}'")
    with member:
        return np.frombuffer(member.read(), dtype).reshape(shape)


def _member(archive: zipfile.ZipFile, file: Path, name: str) -> Member:
    """Raises UserError where it is none of images."""
    if (header := _header(archive, file, name)) is None:
        raise UserError(
            f"{file} has no array '{name}' ({', '.join(archive.namelist()[:6])}); it needs train and test: "
            f"{right(archive)}"
        )
    shape, fortran, dtype, member = header

    def rows(count: int) -> np.ndarray:
        data = member.read(count * math.prod(shape[1:]) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    def chunks() -> Iterator[np.ndarray]:
        with member:
            if fortran:
                room.memory(2 * math.prod(shape), f"{file}: '{name}', in Fortran order,")
                whole = np.frombuffer(member.read(), dtype).reshape(shape, order="F")
                yield from (whole[start : start + count] for start, count in _runs(shape))
            else:
                yield from (rows(count) for _, count in _runs(shape))

    return _laid_out(f"{file}: '{name}'", shape, dtype, chunks, right(archive))


def _split(file: Path, held_out: float) -> tuple[Member, Member]:
    """Those to train on and those to test on, chosen at random, always the same, of the array that an npy file is."""
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise ValueError("it is no array of images")
    order, cut = np.random.default_rng(0).permutation(len(array)), round(held_out * len(array))
    if not 0 < cut < len(array):
        images = counted(len(array), "images")
        raise UserError(f"{file} has {images}, too few to test on some (data.held_out={held_out:g})")

    def part(index: np.ndarray) -> Member:
        shape = len(index), *array.shape[1:]
        chunks = lambda: (array[index[start : start + count]] for start, count in _runs(shape))  # noqa: E731
        return _laid_out(str(file), shape, array.dtype, chunks, RIGHT_ALONE)

    return part(np.sort(order[cut:])), part(np.sort(order[:cut]))


def _runs(shape: tuple) -> Iterator[tuple[int, int]]:
    """Where each chunk of images begins and how many it has: some 16 MB at a time."""
    at_once = max(1, 2**24 // math.prod(shape[1:]))
    return ((start, min(at_once, shape[0] - start)) for start in range(0, shape[0], at_once))


def _laid_out(
    said: str, shape: tuple, dtype: np.dtype, chunks: Callable[[], Iterator[np.ndarray]], right: str
) -> Member:
    """The images as [N, C, H, W] uint8, whichever axis held the colours. Raises UserError, with what makes it right,
    where none does.
    """
    said = f"{said} is {dtype} {list(shape)}"
    if dtype not in (np.uint8, bool) or len(shape) not in (3, 4) or not all(shape):
        raise UserError(f"{said}; it must be uint8 or bool [N, C, H, W], [N, H, W, C] or [N, H, W]: {right}")
    full = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
    last = full[1] not in (1, 3) and full[3] in (1, 3)  # colours
    if not last and full[1] not in (1, 3):
        raise UserError(f"{said}, of {full[1]} colours (or {full[3]}, were they last); images have 1 or 3")

    def laid_out() -> Iterator[np.ndarray]:
        for x in chunks():
            pixels = x.view(np.uint8).reshape(len(x), *full[1:])
            yield np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if last else pixels)

    return Member((full[0], full[3], *full[1:3]) if last else full, dtype, laid_out)


def _checked(chunks: Iterator[np.ndarray], file: Path, name: str, levels: int, shown: Callable[[Tensor], Tensor]):
    """Pixels under the protocol. Raises UserError where some are above the highest level."""
    for pixels in chunks:
        if (highest := int(pixels.max())) >= levels:
            raise UserError(
                f"{file}: '{name}' goes up to {highest}, and of {levels} levels the highest is {levels - 1}"
            )
        yield shown(torch.from_numpy(pixels.copy())).numpy()


def _levels(file: Path, levels: np.ndarray | None, dtype: np.dtype) -> tuple[int, str]:
    """How many levels, and what to say where the file does not state them."""
    if levels is None:
        return (2, "") if dtype.kind == "b" else (256, "no 'levels' in the file, so 256")
    if levels.size != 1 or not 2 <= int(levels.item()) <= 256:
        raise UserError(f"{file} has no 'levels' between 2 and 256")
    return int(levels.item()), ""


def _labels(file: Path, arrays: dict, *counts: int) -> tuple[list, int]:
    """The labels of each part, int64, and how many classes they name: all parts have labels, or none."""
    names = [f"{part}_labels" for part in PARTS[: len(counts)]]
    if all(arrays.get(name) is None for name in names):
        return [None] * len(counts), 0
    for name, count in zip(names, counts, strict=True):
        x = arrays[name]
        if x is None or x.shape != (count,) or x.min() < 0:
            raise UserError(f"{file}: '{name}' must be {count} whole numbers from 0 on, as there are images")
        if x.max() >= MOST_CLASSES:
            raise UserError(f"{file}: '{name}' goes up to {x.max()}; number the classes from 0 on")
    labels = [torch.from_numpy(arrays[name].astype(np.int64)) for name in names]
    return labels, 1 + max(int(x.max()) for x in labels)
