"""Images of one's own: a folder of pictures, or arrays in an npz file."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Images, Levels, quantised
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, NonNegative, Unit

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def folder(
    *,
    path: str,
    size: Count | None = None,  # pixels; each picture's largest centred square, scaled; None: as they are
    grey: bool = False,
    levels: Levels = 256,
    held_out: Unit = 0.1,  # of the pictures, chosen at random; unused where there are folders train and test
    resident_gb: NonNegative = 8.0,  # more is mapped from disk
    root: str | None = None,  # of the cache that holds such maps
) -> Images:
    """Every picture under `path`; where all of them lie in folders, the topmost folder's name is its class.

    Folders `train` and `test` under `path` are the split, and their own folders the classes.
    """
    train, test = split(Path(path).expanduser(), held_out)
    names = {name for _, name in train + test}
    if None in names and len(names) > 1:
        raise UserError(f"{path} holds pictures beside folders of them; a class folder for each, or none at all")
    if unseen := names - {name for _, name in train}:
        raise UserError(f"{path}: of class {min(unseen)} there are pictures to test on and none to train on")
    classes = sorted(names - {None})
    shape = pictured(train[0][0], size, grey).shape
    shapes = [(len(part), *shape) for part in (train, test)]
    what = [*((str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p, _ in train + test), size, grey, levels]
    mapped = sum(map(math.prod, shapes)) > resident_gb * 1e9
    maps = map_paths(root, what) if mapped else (None, None)
    pixels = [kept(_chunks([p for p, _ in part], shape, size, grey, levels), full, at)
              for part, full, at in zip((train, test), shapes, maps, strict=True)]  # fmt: skip
    labels = [torch.tensor([classes.index(name) for _, name in part]) if classes else None for part in (train, test)]
    name = f"{Path(path).resolve().name}-{'x'.join(map(str, shape))}-{levels}"
    return Images(name, *pixels, levels, *labels, len(classes), mapped=mapped)


Pictures = list[tuple[Path, str | None]]  # and the class of each


def split(path: Path, held_out: float) -> tuple[Pictures, Pictures]:
    """Raises UserError where either part would be empty."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        parts = found(path / "train"), found(path / "test")
    else:
        whole = found(path)
        order, cut = np.random.default_rng(0).permutation(len(whole)), round(held_out * len(whole))
        parts = [whole[i] for i in sorted(order[cut:])], [whole[i] for i in sorted(order[:cut])]
    if not all(parts):
        count = sum(map(len, parts))
        raise UserError(f"{path} has {count} pictures ({', '.join(sorted(SUFFIXES))}), too few to train on some and "
                        f"test on others (data.held_out={held_out:g})")  # fmt: skip
    return parts


def found(path: Path) -> Pictures:
    if not path.is_dir():
        raise UserError(f"data.path={path} is not a folder")
    paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [(p, p.relative_to(path).parts[0] if p.parent != path else None) for p in paths]


def pictured(path: Path, size: int | None, grey: bool) -> np.ndarray:
    """One picture, [C, H, W] uint8. Raises UserError."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture that can be read ({error}); mend it or take it away") from error
    if size:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _chunks(paths: Sequence[Path], shape: tuple, size: int | None, grey: bool, levels: int) -> Iterator[np.ndarray]:
    for path in paths:
        pixels = pictured(path, size, grey)
        if pixels.shape != shape:
            raise UserError(f"{path} is of {pixels.shape[1]} x {pixels.shape[2]} pixels and others of {shape[1]} x "
                            f"{shape[2]}; bring all to one size with data.size=")  # fmt: skip
        yield quantised(torch.from_numpy(pixels[None]), levels).numpy()


def npz(*, path: str, resident_gb: NonNegative = 8.0, root: str | None = None) -> Images:
    """Arrays `train` and `test` uint8 [N, C, H, W] and `levels`; if labelled, `train_labels` and `test_labels` [N].

    Images of more than `resident_gb` are unpacked once under `root` and mapped from there.
    """
    file = Path(path).expanduser()
    try:
        with zipfile.ZipFile(file) as archive:
            parts = [_member(archive, file, name) for name in ("train", "test")]
            stat = file.stat()
            what = str(file.absolute()), stat.st_size, stat.st_mtime_ns
            mapped = sum(math.prod(shape) for shape, _ in parts) > resident_gb * 1e9
            maps = map_paths(root, what) if mapped else (None, None)
            train, test = (kept(chunks, shape, at) for (shape, chunks), at in zip(parts, maps, strict=True))
        with np.load(file, allow_pickle=False) as arrays:
            small = {k: arrays[k] for k in ("levels", "train_labels", "test_labels") if k in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as an npz file ({error})") from error
    levels = _levels(file, small.get("levels"), train, test)
    labels, classes = _labels(file, small, len(train), len(test))
    name = f"{file.stem}-{'x'.join(map(str, train.shape[1:]))}-{levels}"
    return Images(name, train, test, levels, *labels, classes, mapped=mapped)


def _member(archive: zipfile.ZipFile, file: Path, name: str) -> tuple[tuple, Iterator[np.ndarray]]:
    """An array's shape, and its images a few at a time. Raises UserError where it is no [N, C, H, W] uint8."""
    if f"{name}.npy" not in archive.namelist():
        raise UserError(f"{file} has no array '{name}'; it needs train and test, uint8 [N, C, H, W], and levels")
    member = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if dtype != np.uint8 or len(shape) != 4 or fortran or not all(shape):
        raise UserError(f"{file}: '{name}' is {dtype} {list(shape)}{' in Fortran order' * fortran}; it must be uint8 "
                        "[N, C, H, W]")  # fmt: skip

    def chunks() -> Iterator[np.ndarray]:
        size, at_once = int(np.prod(shape[1:])), max(1, 2**24 // int(np.prod(shape[1:])))
        with member:
            for start in range(0, shape[0], at_once):
                count = min(at_once, shape[0] - start)
                yield np.frombuffer(member.read(count * size), np.uint8).reshape(count, *shape[1:])

    return shape, chunks()


def _levels(file: Path, levels: np.ndarray | None, train: torch.Tensor, test: torch.Tensor) -> int:
    if levels is None or levels.size != 1 or not 2 <= int(levels) <= 256:
        raise UserError(f"{file} has no 'levels' between 2 and 256")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"{file}: train is of {list(train.shape[1:])} and test of {list(test.shape[1:])}")
    for name, pixels in ("train", train), ("test", test):
        if (highest := max(int(part.max()) for part in pixels.split(10_000))) >= int(levels):
            raise UserError(f"{file}: '{name}' goes up to {highest}, and of {int(levels)} levels the highest is "
                            f"{int(levels) - 1}")  # fmt: skip
    return int(levels)


def _labels(file: Path, arrays: dict, *counts: int) -> tuple[list, int]:
    """Of train and test, int64, and how many classes they name: both parts have labels, or neither."""
    names = "train_labels", "test_labels"
    if not any(name in arrays for name in names):
        return [None, None], 0
    for name, count in zip(names, counts, strict=True):
        x = arrays.get(name)
        if x is None or x.shape != (count,) or x.dtype.kind not in "iu" or x.min() < 0:
            raise UserError(f"{file}: '{name}' must be {count} whole numbers from 0 on, as there are images")
    labels = [torch.from_numpy(arrays[name].astype(np.int64)) for name in names]
    return labels, 1 + max(int(x.max()) for x in labels)
