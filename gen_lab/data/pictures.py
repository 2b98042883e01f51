"""Images of one's own in a folder of pictures."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Binarised, Images, Levels, Protocol, marked, quantised
from gen_lab.data.pixels import SUFFIXES, Background, pictured
from rl_lab.core.errors import UserError, counted, pasted
from rl_lab.core.files import home
from rl_lab.core.settings import Count, Natural, Place, Size, Unit

TEST = "test", "val", "valid", "validation"  # names of folders with held-out pictures; the first that exists is used
ALSO = {"training": "train", "testing": "test", "holdout": "test", "eval": "val", "dev": "val"}  # other names of them
MOST_OTHERS = 10_000  # files beside the pictures: more is another folder than was meant


def folder(
    *,
    path: Place,
    size: Count | None,  # pixels; each picture's largest centred square, scaled; None: as they are
    grey: bool,
    levels: Levels,
    protocol: Protocol,
    background: Background,  # what transparent pixels show
    held_out: Unit,  # of the pictures, chosen at random; unused where a folder holds those to test on
    validation: Natural,  # training images that evaluations before the last are of; a folder val beside test is that
    subset: Count | None,  # training images to learn from; None: all
    flip: bool,  # each showing mirrored, or not
    resident_gb: Size,  # more is mapped from disk
    root: Place | None,  # of the cache that holds such maps
) -> Images:
    """Every picture under `path`; where all of them lie in folders, the topmost folder's name is its class.

    Folders `train` and `test` (or `training` and `testing`) under `path` are the split, and their own folders the
    classes; of `val` (or `valid`, `validation`) are the evaluations before the last, and where there is no `test` all.
    """
    train, test, validated, remark = split(home(path), held_out)
    names = {name for _, name in train + test + validated}
    if None in names and len(names) > 1:
        raise UserError(f"{path} holds pictures beside folders of them; a class folder for each, or none at all")
    if unseen := names - {name for _, name in train}:
        raise UserError(f"{path}: of class {min(map(str, unseen))} there are pictures to test on and none to train on")
    classes = sorted(name for name in names if name is not None)
    shape = pictured(train[0][0], size, grey, background).shape
    name = f"{home(path).resolve().name}-{'x'.join(map(str, shape))}-{levels}"
    binarised = Binarised(protocol, levels, name)
    shapes = [(len(part), *shape) for part in (train, test)]
    what = [
        *((str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p, _ in train + test),
        size,
        grey,
        levels,
        protocol,
        background,
        "nearest grey",
    ]
    mapped = sum(map(math.prod, shapes)) > resident_gb * 1e9
    maps = map_paths(root, what) if mapped else (None, None)
    read = lambda part: _chunks([p for p, _ in part], shape, size, grey, levels, background)  # noqa: E731
    train_pixels, test_pixels = (
        kept((shown(torch.from_numpy(x)).numpy() for x in read(part)), full, at)
        for part, shown, full, at in zip((train, test), (binarised.train, binarised.test), shapes, maps, strict=True)
    )
    train_labels, test_labels, its_labels = (
        torch.tensor([classes.index(str(name)) for _, name in part]) if classes else None
        for part in (train, test, validated)
    )
    again = Binarised(protocol, levels, f"{name} validation set")
    chunks = (again.test(torch.from_numpy(x)).numpy() for x in read(validated))
    its_pixels = kept(chunks, (len(validated), *shape), None) if validated else None
    name += binarised.suffix + f"-on-{background}" * (background != "white")
    return Images(
        marked(name, test_pixels),
        train_pixels,
        test_pixels,
        binarised.levels,
        train_labels,
        test_labels,
        len(classes),
        resampled=binarised.resampled,
        mapped=mapped,
        remark=remark,
        validation=its_pixels,
        validation_labels=its_labels if validated else None,
    ).parted(validation, subset, flip)


Pictures = list[tuple[Path, str | None]]  # and the class of each


def split(path: Path, held_out: float) -> tuple[Pictures, Pictures, Pictures, str]:
    """The pictures to train on, to test on and to validate on, and remarks on the rest. Raises UserError where a part
    is empty or the folders' names contradict one another.
    """
    whole, remarks = found(path)
    parts = {
        name: [(p, part) for p, part in whole if part is not None and _role(part) == name] for name in ("train", *TEST)
    }
    tests = [name for name in TEST if parts[name]]
    if not tests and (not parts["train"] or len(parts["train"]) < len(whole)):
        _refuse_splits_below(path, whole)
        return *_both(path, _drawn(whole, held_out), held_out), [], "; ".join(remarks)
    if not parts["train"]:
        raise UserError(f"{path} has a folder {tests[0]} and none called train, which holds what is to be learned")
    if len(others := [p for p, part in whole if part is None or _role(part) not in parts]):
        raise UserError(
            f"{path} holds {others[0].relative_to(path)} beside folders for training and testing; "
            "put it into one of them, or elsewhere"
        )
    below = {name: [(p, _top(p.relative_to(path / part).parts)) for p, part in parts[name]] for name in parts}
    for part in below.values():
        _refuse_splits_below(path, part)
    if not tests:
        remarks.append(f"no folder {', '.join(TEST)}: {held_out:.0%} of train are held out")
        return *_both(path, _drawn(below["train"], held_out), held_out), [], "; ".join(remarks)
    validated = tests[1:2] if tests[0] == "test" else []
    remarks += [
        f"{counted(len(below[name]), 'pictures')} in {name} left out, for those in {tests[0]} are tested on"
        for name in tests[1:]
        if name not in validated
    ]
    if tests[0] != "test":
        remarks.append(f"tested on those in {tests[0]}")
    train, test = _both(path, (below["train"], below[tests[0]]), held_out)
    return train, test, [picture for name in validated for picture in below[name]], "; ".join(remarks)


def _drawn(pictures: Pictures, held_out: float) -> tuple[Pictures, Pictures]:
    """Those to train on and those held out, chosen at random, always the same, each in order."""
    order, cut = np.random.default_rng(0).permutation(len(pictures)), round(held_out * len(pictures))
    return [pictures[i] for i in sorted(order[cut:])], [pictures[i] for i in sorted(order[:cut])]


def _both(path: Path, parts: tuple[Pictures, Pictures], held_out: float) -> tuple[Pictures, Pictures]:
    if not all(parts):
        count = sum(map(len, parts))
        raise UserError(
            f"{path} has {counted(count, 'pictures')} ({', '.join(sorted(SUFFIXES))}), too few to train on some and "
            f"test on others (data.held_out={held_out:g})"
        )
    return parts


def _top(parts: Sequence[str]) -> str | None:
    """The topmost folder of a path."""
    return parts[0] if len(parts) > 1 else None


def _role(name: str) -> str:
    """What a folder of this name holds, where it holds a part of a split."""
    return ALSO.get(name.lower(), name.lower())


def _refuse_splits_below(path: Path, pictures: Pictures) -> None:
    """Raises UserError where a split lies too deep to be found, and would be lost."""
    places: dict[Path, set[str]] = {}
    for p, _ in pictures:
        for parent in p.relative_to(path).parents:
            if parent.parent != parent and _role(parent.name) in ("train", *TEST):
                places.setdefault(parent.parent, set()).add(parent.name)
    for place, names in places.items():
        if place != Path() and "train" in map(_role, names) and len({*map(_role, names)}) > 1:
            raise UserError(
                f"{path / place} holds folders {' and '.join(sorted(names))}, and a split stands at the "
                f"top; set {pasted(f'data.path={path / place}')}, or put classes into train and test"
            )


def found(path: Path) -> tuple[Pictures, list[str]]:
    """Every picture under the folder in order, links followed, and what else lies there. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"data.path={path} is not a folder")
    others: Counter[str] = Counter()
    paths, seen, unseen = [], set(), 0
    for place, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not hidden(name)]
        for p in (Path(place, name) for name in names):
            if hidden(p.name):
                unseen += 1
            elif p.suffix.lower() not in SUFFIXES:
                others[p.suffix.lower() or p.name] += 1
                if others.total() > MOST_OTHERS:
                    raise UserError(
                        f"data.path={path} holds more than {MOST_OTHERS:,} files that are no pictures; "
                        "name the folder of the pictures alone"
                    )
            elif not p.is_file():
                raise UserError(f"{p} is not a regular file; remove it")
            else:
                paths.append(p)
    left_out = [f"left out, being no pictures: {', '.join(f'{n} {kind}' for kind, n in others.most_common(5))}"]
    left_out = left_out * bool(others) + [f"{unseen:,} hidden files passed over"] * bool(unseen)
    return [(p, _top(p.relative_to(path).parts)) for p in sorted(paths)], left_out


def hidden(name: str) -> bool:
    """What systems leave beside files: ._x.png and .DS_Store of macOS, its __MACOSX in archives, @eaDir of a NAS."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _chunks(
    paths: Sequence[Path], shape: tuple, size: int | None, grey: bool, levels: int, background: Background
) -> Iterator[np.ndarray]:
    for path in paths:
        pixels = pictured(path, size, grey, background)
        if pixels.shape != shape:
            raise UserError(
                f"{path} is of {pixels.shape[1]} x {pixels.shape[2]} pixels and others of {shape[1]} x "
                f"{shape[2]}; bring all to one size with data.size="
            )
        yield quantised(torch.from_numpy(pixels[None]), levels).numpy()
