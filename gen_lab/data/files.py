"""Images of one's own: a folder of pictures, or arrays in an npz file."""

import math
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Binarised, Images, Levels, Protocol, quantised
from gen_lab.data.pixels import SUFFIXES, Background, pictured
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import home
from rl_lab.core.settings import Count, NonNegative, Unit

TEST = "test", "val", "valid", "validation"  # names of folders with held-out pictures, the first that is there is used
MOST_CLASSES = 65_536


# -- a folder of pictures


def folder(
    *,
    path: str,
    size: Count | None = None,  # pixels; each picture's largest centred square, scaled; None: as they are
    grey: bool = False,
    levels: Levels = 256,
    protocol: Protocol = "levels",
    background: Background = "white",  # what transparent pixels show
    held_out: Unit = 0.1,  # of the pictures, chosen at random; unused where a folder holds those to test on
    resident_gb: NonNegative = 8.0,  # more is mapped from disk
    root: str | None = None,  # of the cache that holds such maps
) -> Images:
    """Every picture under `path`; where all of them lie in folders, the topmost folder's name is its class.

    Folders `train` and `test` (or `val`, `valid`, `validation`) under `path` are the split, and their own folders the
    classes.
    """
    train, test, remark = split(home(path), held_out)
    names = {name for _, name in train + test}
    if None in names and len(names) > 1:
        raise UserError(f"{path} holds pictures beside folders of them; a class folder for each, or none at all")
    if unseen := names - {name for _, name in train}:
        raise UserError(f"{path}: of class {min(map(str, unseen))} there are pictures to test on and none to train on")
    classes = sorted(name for name in names if name is not None)
    shape = pictured(train[0][0], size, grey, background).shape
    name = f"{home(path).resolve().name}-{'x'.join(map(str, shape))}-{levels}"
    binarised = Binarised(protocol, levels, name)
    shapes = [(len(part), *shape) for part in (train, test)]
    what = [*((str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p, _ in train + test), size, grey, levels,
            protocol, background, "nearest grey"]  # fmt: skip
    mapped = sum(map(math.prod, shapes)) > resident_gb * 1e9
    maps = map_paths(root, what) if mapped else (None, None)
    read = lambda part: _chunks([p for p, _ in part], shape, size, grey, levels, background)  # noqa: E731
    train_pixels, test_pixels = (
        kept((shown(torch.from_numpy(x)).numpy() for x in read(part)), full, at)
        for part, shown, full, at in zip((train, test), (binarised.train, binarised.test), shapes, maps, strict=True)
    )
    train_labels, test_labels = (
        torch.tensor([classes.index(str(name)) for _, name in part]) if classes else None for part in (train, test)
    )
    name += binarised.suffix + f"-on-{background}" * (background != "white")
    return Images(name, train_pixels, test_pixels, binarised.levels, train_labels, test_labels, len(classes),
                  resampled=binarised.resampled, mapped=mapped, remark=remark)  # fmt: skip


Pictures = list[tuple[Path, str | None]]  # and the class of each


def split(path: Path, held_out: float) -> tuple[Pictures, Pictures, str]:
    """Those to train on, those to test on, and what is to be said of the rest. Raises UserError where a part is empty
    or the folders' names contradict one another.
    """
    whole, remarks = found(path)
    parts = {
        name: [(p, part) for p, part in whole if part is not None and part.lower() == name] for name in ("train", *TEST)
    }
    tests = [name for name in TEST if parts[name]]
    if not tests and (not parts["train"] or len(parts["train"]) < len(whole)):
        order, cut = np.random.default_rng(0).permutation(len(whole)), round(held_out * len(whole))
        drawn = [whole[i] for i in sorted(order[cut:])], [whole[i] for i in sorted(order[:cut])]
        _refuse_splits_below(path, whole)
        return *_both(path, drawn, held_out), "; ".join(remarks)
    if not parts["train"]:
        raise UserError(f"{path} has a folder {tests[0]} and none called train, which holds what is to be learned")
    if len(others := [p for p, part in whole if part is None or part.lower() not in parts]):
        raise UserError(f"{path} holds {others[0].relative_to(path)} beside folders for training and testing; "
                        "put it into one of them, or elsewhere")  # fmt: skip
    below = {name: [(p, _top(p.relative_to(path / part).parts)) for p, part in parts[name]] for name in parts}
    for part in below.values():
        _refuse_splits_below(path, part)
    if not tests:
        order, cut = np.random.default_rng(0).permutation(len(whole)), round(held_out * len(whole))
        train = below["train"]
        remarks.append(f"no folder {', '.join(TEST)}: {held_out:.0%} of train are held out")
        return *_both(path, ([train[i] for i in sorted(order[cut:])], [train[i] for i in sorted(order[:cut])]),
                      held_out), "; ".join(remarks)  # fmt: skip
    remarks += [f"{len(below[name]):,} pictures in {name} left out, for those in {tests[0]} are tested on"
                for name in tests[1:]]  # fmt: skip
    if tests[0] != "test":
        remarks.append(f"tested on those in {tests[0]}")
    return *_both(path, (below["train"], below[tests[0]]), held_out), "; ".join(remarks)


def _both(path: Path, parts: tuple[Pictures, Pictures], held_out: float) -> tuple[Pictures, Pictures]:
    if not all(parts):
        count = sum(map(len, parts))
        raise UserError(f"{path} has {count} pictures ({', '.join(sorted(SUFFIXES))}), too few to train on some and "
                        f"test on others (data.held_out={held_out:g})")  # fmt: skip
    return parts


def _top(parts: Sequence[str]) -> str | None:
    """The topmost folder of a path."""
    return parts[0] if len(parts) > 1 else None


def _refuse_splits_below(path: Path, pictures: Pictures) -> None:
    """Raises UserError where a split lies deeper than it is looked for, and would be lost."""
    places: dict[Path, set[str]] = {}
    for p, _ in pictures:
        for parent in p.relative_to(path).parents:
            if parent.parent != parent and parent.name.lower() in ("train", *TEST):
                places.setdefault(parent.parent, set()).add(parent.name.lower())
    for place, names in places.items():
        if place != Path() and "train" in names and len(names) > 1:
            raise UserError(f"{path / place} holds folders {' and '.join(sorted(names))}, and a split stands at the "
                            f"top; set data.path={path / place}, or put classes into train and test")  # fmt: skip


MOST_OTHERS = 10_000  # files beside the pictures: more is another folder than was meant


def found(path: Path) -> tuple[Pictures, list[str]]:
    """Every picture under the folder in order, links followed, and what else lies there. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"data.path={path} is not a folder")
    others: Counter[str] = Counter()
    paths, seen = [], set()
    for place, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for p in (Path(place, name) for name in names):
            if p.suffix.lower() not in SUFFIXES:
                others[p.suffix.lower() or p.name] += 1
                if others.total() > MOST_OTHERS:
                    raise UserError(f"data.path={path} holds more than {MOST_OTHERS:,} files that are no pictures; "
                                    "name the folder of the pictures alone")  # fmt: skip
            elif not p.is_file():
                raise UserError(f"{p} is not a regular file; take it away")
            else:
                paths.append(p)
    left_out = [f"left out, being no pictures: {', '.join(f'{n} {kind}' for kind, n in others.most_common(5))}"]
    return [(p, _top(p.relative_to(path).parts)) for p in sorted(paths)], left_out * bool(others)


def _chunks(
    paths: Sequence[Path], shape: tuple, size: int | None, grey: bool, levels: int, background: Background
) -> Iterator[np.ndarray]:
    for path in paths:
        pixels = pictured(path, size, grey, background)
        if pixels.shape != shape:
            raise UserError(f"{path} is of {pixels.shape[1]} x {pixels.shape[2]} pixels and others of {shape[1]} x "
                            f"{shape[2]}; bring all to one size with data.size=")  # fmt: skip
        yield quantised(torch.from_numpy(pixels[None]), levels).numpy()


# -- arrays


def npz(*, path: str, protocol: Protocol = "levels", resident_gb: NonNegative = 8.0, root: str | None = None) -> Images:
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
                kept(_checked(part.chunks(), file, name, levels, shown), part.shape, at) for part, name, shown, at
                in zip(parts, ("train", "test"), (binarised.train, binarised.test), maps, strict=True)
            )  # fmt: skip
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as an npz file ({' '.join(str(error).split())})") from error
    name = f"{file.stem}-{'x'.join(map(str, train.shape[1:]))}-{levels}{binarised.suffix}"
    return Images(name, train, test, binarised.levels, labels[0], labels[1], classes, resampled=binarised.resampled,
                  mapped=mapped)  # fmt: skip


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
        raise UserError(f"{file}: '{name}' is {dtype} {list(shape)}; it must be whole numbers"
                        f"{' [N]' * (name != 'levels')}")  # fmt: skip
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
