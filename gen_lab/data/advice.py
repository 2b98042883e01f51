"""The line of Python that makes the arrays of an npz right, by what is in it."""

import math
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from gen_lab.data.published import ALIASES

PARTS = "train", "test", "val"  # of a data set


def header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an array, from the beginning of its file. Raises ValueError."""
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype] = reader(member)
    return found


def right(archive: zipfile.ZipFile) -> str:
    """What makes the arrays of an archive right, by the names that they are stored under."""
    shapes = {name: shape for name, shape in _shapes(archive).items() if shape or name == "levels"}
    lower = {name.lower(): name for name in shapes}
    known = {part: next((lower[a] for a in aliases if a in lower), "") for part, aliases in ALIASES.items()}
    wide = sorted((n for n in shapes if math.prod(shapes[n][1:]) > 1), key=lambda name: -math.prod(shapes[name]))
    likely = [name for name in wide if len(shapes[name]) > 2] or wide
    images = [*dict.fromkeys(name for name in (known["train"], known["test"], *likely) if name)][:2] or [
        "train",
        "test",
    ]
    images += [known["val"]] if known["val"] and known["val"] not in images else []
    flat = any(len(shapes.get(name, ())) == 2 for name in images)
    pixels = [f"np.uint8(np.round(x[{name!r}]))" + ".reshape(-1, H, W)" * flat for name in images]
    labels = [known[f"{part}_labels"] or _labels_of(name, shapes) for part, name in zip(PARTS, images, strict=False)]
    of = [f"x[{name!r}]" for name in labels] if all(labels) else []
    levels = "x['levels']" if "levels" in shapes else "256"
    before = ""
    if len(images) == 1 and not of:
        kept = f"np.save('images.npy', {pixels[0]})"
    else:
        if len(images) == 1:
            count = shapes[images[0]][0]
            before = f"i = np.random.default_rng(0).permutation({count}); a, b = np.split(i, [{count * 9 // 10}]); "
            pixels, of = ([f"{part}[{which}]" for which in "ab"] for part in (pixels[0], of[0]))
        named = [*zip(PARTS, pixels, strict=False), *zip((f"{part}_labels" for part in PARTS), of, strict=False)]
        kept = f"np.savez('images.npz', {', '.join(f'{name}={part}' for name, part in named)}, levels={levels})"
    shown = "" if "levels" in shapes else "x[...] * 255 where 1 is white"
    after = "; ".join(filter(None, (shown, "images are H x W" * flat)))
    return f"x = np.load('yours.npz'); {before}{kept}" + f"  # {after}" * bool(after)


def _shapes(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """Of all its arrays."""
    found = {}
    for stored in archive.namelist():
        with archive.open(stored) as member:
            found[stored.removesuffix(".npy")] = header(member)[0]
    return found


def _labels_of(images: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The array that has a number for each of these images; "" where there is none."""
    count = shapes.get(images, (-1,))[0]
    return next((name for name, shape in shapes.items() if shape in ((count,), (count, 1))), "")
