"""Published data sets found by their content: in any archive and under any name, identified by sha256."""

import bz2
import gzip
import hashlib
import io
import lzma
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen_lab.data.cache import File, Source, cache, fetch
from gen_lab.data.cache import sha256 as file_sha256
from rl_lab.core import room
from rl_lab.core.errors import UserError, brief

DEEPEST, MOST = 4, 20_000  # folders below the root that are looked through, and names in all of them
LARGEST = 2**28  # bytes of one file, unpacked
UNPACK: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
FAULTS = (OSError, EOFError, ValueError, KeyError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError,
          zipfile.BadZipFile, OverflowError, IndexError, TypeError, AttributeError)  # fmt: skip
ALIASES = {  # of arrays in an npz file: ours, Keras's, MedMNIST's
    "train": ("train", "x_train", "train_images"),
    "test": ("test", "x_test", "test_images"),
    "train_labels": ("train_labels", "y_train"),
    "test_labels": ("test_labels", "y_test"),
    "val": ("val", "x_val", "val_images", "valid", "x_valid", "validation"),
    "val_labels": ("val_labels", "y_val", "valid_labels", "y_valid", "validation_labels"),
}

Blobs = Mapping[str, Callable[[], bytes]]  # files of one folder or archive by name, unpacked when called
Reader = Callable[[Blobs, list[str]], Iterator[tuple[str, np.ndarray, str]]]  # where, what, sha256; adds faults


class Found(NamedTuple):
    array: np.ndarray  # uint8
    where: str


class Sought(NamedTuple):
    """Which parts of a data set are at hand, and which files only looked like one."""

    parts: dict[str, Found]
    faults: list[str]


def obtained(source: Source, root: str | None, read: Reader) -> tuple[dict[str, np.ndarray], str]:
    """Every part by name, and a remark on where it was; what is not at hand is fetched. Raises UserError."""
    if not all(whole(cache(root) / source.name / file.name, file) for file in source.files):
        parts, faults = sought(source, root, read)
        lacking = [i for i, part in enumerate(source.parts) if part.name not in parts]
        if not lacking:
            places = sorted({os.path.dirname(found.where) or found.where for found in parts.values()})
            return {name: found.array for name, found in parts.items()}, f"read from {', '.join(places)}"
        one_each = len(source.files) == len(source.parts)
        files = tuple(source.files[i] for i in lacking) if one_each else source.files
        try:
            paths = fetch(source._replace(files=files), root)
        except UserError as error:
            looked_like = f"; of what is there {'; '.join(faults[:2])}" if faults else ""
            raise UserError(f"{error}, packed or not{looked_like}") from error
        if one_each and len(lacking) < len(source.parts):
            fetched = _checked(paths, read)
            both = {name: found.array for name, found in parts.items()}
            return both | {source.parts[i].name: x for i, x in zip(lacking, fetched, strict=True)}, ""
    paths = fetch(source, root)
    return dict(zip((part.name for part in source.parts), _checked(paths, read), strict=True)), ""


def _checked(paths: list[Path], read: Reader) -> list[np.ndarray]:
    """The arrays of files whose checksum is right. Raises UserError."""
    arrays = []
    for path in paths:
        faults: list[str] = []
        arrays += [array for blobs in _places(path, faults) for _, array, _ in read(blobs, faults)]
        if faults:
            raise UserError(faults[0])
    return arrays


def sought(source: Source, root: str | None, read: Reader) -> Sought:
    """Searches the cache; nothing leaves the machine."""
    wanted, parts, faults = {part.sha256: part for part in source.parts}, dict[str, Found](), list[str]()
    shapes, sizes = {part.shape for part in source.parts}, {math.prod(part.shape) for part in source.parts}
    usual = {f"{name}.npy" for aliases in ALIASES.values() for name in aliases}
    for path in _candidates(cache(root), source):
        for blobs in _places(path, faults):
            for where, array, digest in read(blobs, faults):
                digest = digest or (sha256(array) if array.size in sizes else "")
                around = [Path(name).stem for name in Path(where).relative_to(cache(root)).parts[:-1]]
                if part := wanted.get(digest):
                    parts.setdefault(part.name, Found(array.reshape(part.shape), where))
                elif source.name in around and (array.shape in shapes or Path(where).name in usual):
                    faults.append(f"{where} is not of {source.name}: its content differs")
        if len(parts) == len(source.parts):
            return Sought(parts, [])
    return Sought(parts, faults)


def whole(path: Path, file: File) -> bool:
    return path.is_file() and file_sha256(path) == file.sha256


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.uint8).tobytes()).hexdigest()


# -- where it may lie


def _candidates(root: Path, source: Source) -> list[Path]:
    """Folders that hold files of this kind, npz files and archives, of large ones those whose names say so; the
    likeliest first.
    """
    found: set[Path] = set()
    seen, top = 0, len(root.parts)
    for place, folders, names in os.walk(root, followlinks=True):  # a circle ends at DEEPEST
        path = Path(place)
        folders[:] = [] if len(path.parts) - top >= DEEPEST else sorted(f for f in folders if not f.startswith("."))
        seen += len(names)
        if seen > MOST:
            break
        for name in names:
            lower, below = name.lower(), str(path.relative_to(root) / name).lower()
            if name.startswith(".") or lower.endswith(".part"):
                continue
            said = any(hint in below for hint in source.hints)
            if lower.endswith(".npz") or (_is_archive(lower) and (said or _is_small(path / name))):
                found.add(path / name)
            elif any(kind in lower for kind in source.kinds):
                found.add(path)
    of_its_name = lambda p: any(hint in str(p.relative_to(root)).lower() for hint in source.hints)  # noqa: E731
    return sorted(found, key=lambda p: (not of_its_name(p), p))


def _is_small(path: Path) -> bool:
    """Whether to look into an archive whose name says nothing."""
    try:
        return path.stat().st_size <= LARGEST
    except OSError:
        return False


def _is_archive(name: str) -> bool:
    return name.endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip"))


def _places(path: Path, faults: list[str]) -> Iterator[Blobs]:
    """The files of a folder or an archive, or one file; of an npz its arrays. What cannot be read is a fault."""
    try:
        if path.is_dir():
            yield {str(p): _file(p) for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")}
        elif path.name.lower().endswith((".npz", ".zip")):
            with room.regular(path) as file, room.archive(file, path) as archive:
                yield {f"{path}/{i.filename}": _member(archive, i) for i in archive.infolist() if not i.is_dir()}
        elif _is_archive(path.name.lower()):
            with tarfile.open(path) as tar:
                yield {f"{path}/{m.name}": _kept(tar, m) for m in tar if m.isfile() and "/." not in f"/{m.name}"}
        else:
            yield {str(path): _file(path)}
    except FAULTS as error:
        faults.append(f"{path} cannot be read ({brief(error)})")


def _file(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        with room.regular(path) as file:
            head = file.read(6)
            file.seek(0)
            how = next((how for magic, how in UNPACK.items() if head.startswith(magic)), None)
            with how(file) if how else file as data:
                return _bounded(data, path)

    return read


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with archive.open(info) as file:
            return _loose(_bounded(file, info.filename))

    return read


def _kept(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """Read as the tar is passed: a compressed one cannot be read twice without unpacking it again."""
    file = tar.extractfile(member)
    data = _bounded(file, member.name) if file and member.size <= LARGEST else b""
    return lambda: _loose(data)


def _loose(data: bytes) -> bytes:
    how = next((how for magic, how in UNPACK.items() if data.startswith(magic)), None)
    if not how:
        return data
    with how(io.BytesIO(data)) as file:
        return _bounded(file, "a file in it")


def _bounded(file, what: object) -> bytes:
    data: bytes = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{what} is larger than {room.sized(LARGEST)}")
    return data


# -- what it may be


def npz_arrays(blobs: Blobs, faults: list[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    """Of npz files: images [N, H, W] or [N, C, H, W], whichever axis was the colours', and labels [N], as uint8.

    An array may have any name, for its content says what it is; only one of a usual name that cannot be is a fault.
    """
    names = {alias for aliases in ALIASES.values() for alias in aliases}
    for where, read in blobs.items():
        if Path(where).suffix != ".npy":
            continue
        try:
            array = np.load(io.BytesIO(read()), allow_pickle=False)
            yield where, plain(array), ""
        except FAULTS as error:
            if Path(where).stem in names:
                faults.append(f"{where} cannot be read ({brief(error)})")


def plain(array: np.ndarray) -> np.ndarray:
    """Labels as bytes [N]; grey images [N, H, W]; colours [N, 3, H, W]. Raises ValueError where it is no bytes."""
    if array.dtype.kind not in "iub" or (array.size and not 0 <= array.min() <= array.max() < 256):
        raise ValueError(f"it is {array.dtype}, not of bytes")
    array = np.ascontiguousarray(array, np.uint8)
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if array.ndim == 4 and array.shape[1] == 1:
        return array[:, 0]
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
