"""Samples of a run's model: sheets, arrays, completed images, films."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.pixels import pictured
from gen_lab.judging.pictures import FILM_FRAMES, WIDTH, side_by_side, thinned, write_film, write_sheet
from gen_lab.trained.loading import Trained, load, some
from gen_lab.types import Inpainter, ProgressiveSampler
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import inside, replacing
from rl_lab.core.joining import join
from rl_lab.core.randomness import generator
from rl_lab.core.settings import Count, Natural


def sample(
    runs: Sequence[Path],
    *,
    count: Count,
    seed: Natural,
    label: Natural | None,  # the class to draw; None: all of them in turn, if the model is conditional
    inpaint: str | None,  # given of test images: top, bottom, left, right, or a picture's white pixels
    film: bool,
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Leaves a sheet (png) to look at and the images [N, C, H, W] uint8, below levels, (npz) to work with.

    Named samples_seed<k>, or inpainted_seed<k>: triples of the given pixels, the completed image and the true one.
    With `film`, a gif of the samples being drawn beside them.
    """
    if film and inpaint:
        raise UserError("film=true shows samples from scratch; leave out inpaint=")
    for folder in some(runs, "sample"):
        trained = load(folder, device, changes)
        stem = "inpainted" if inpaint else "samples"
        stem_of_files = f"{stem}_seed{seed}{'' if label is None else f'_label{label}'}"
        made = [inside(folder, f"{stem_of_files}.{kind}") for kind in ("png", "npz", *["gif"] * film)]
        path = made[0]
        afford(trained, count, film)
        arrays, shown, frames = _drawn(trained, count, generator(seed, trained.device), label, inpaint, film)
        write_sheet(path, shown, columns=9 if inpaint else 8)
        with replacing(made[1]) as beside:
            np.savez_compressed(beside, **arrays, levels=trained.data.levels)
        if frames:
            write_film(made[2], frames)
        print(*made, sep="\n")
        join(tracker, folder, {stem_of_files: path, **({f"{stem_of_files}_film": made[2]} if frames else {})})


def afford(trained: Trained, count: int, film: bool = False) -> None:
    """Raises UserError if this many samples and their sheet do not fit in memory, before any is drawn."""
    spec = trained.data.spec
    one = math.prod(spec.shape) * 4 * (4 + (FILM_FRAMES if film else 0)) + 12 * WIDTH**2
    room.memory(count * one, f"count={count}")


class Drawn(NamedTuple):
    arrays: dict[str, Any]  # for the npz
    shown: Tensor  # [M, C, H, W] in [0, 1], for the sheet
    frames: list[Tensor]  # of the film, each [N, C, H, W] in [0, 1]


def _drawn(
    trained: Trained, count: int, rng: torch.Generator, label: int | None, inpaint: str | None, film: bool
) -> Drawn:
    """Raises UserError if the model cannot do it."""
    model, data, frames = trained.model, trained.data, []
    labels = trained.labels(label, count)
    if inpaint:
        return _inpainted(trained, count, rng, labels, inpaint)
    if film:
        if not isinstance(model, ProgressiveSampler):
            raise UserError("film=true needs a model that samples pixel by pixel, and this one does not; leave it out")
        frames = thinned(x.cpu() for x in model.draw(count, rng, labels))
    images = frames[-1] if film else model.sample(count, rng, labels)
    return Drawn({"images": images.cpu().numpy()}, data.spec.scaled(images), [data.spec.scaled(x) for x in frames])


def _inpainted(trained: Trained, count: int, rng: torch.Generator, labels: Tensor | None, inpaint: str) -> Drawn:
    """The first test images; their known pixels are kept."""
    model, data = trained.model, trained.data
    if not isinstance(model, Inpainter):
        raise UserError(f"inpaint={inpaint}: this model cannot complete an image; an autoregressive one can")
    x = data.test[:count].to(data.device)
    known = known_pixels(inpaint, *x.shape[2:]).to(x.device)
    if labels is None and data.test_labels is not None:
        labels = data.test_labels[:count].to(x.device)
    images = model.inpaint(x, known, rng, None if labels is None else labels[: len(x)])
    arrays, scaled = {"images": images.cpu().numpy(), "known": known.cpu().numpy()}, data.spec.scaled
    return Drawn(arrays, side_by_side(torch.where(known, scaled(x), 0.5), scaled(images), scaled(x)), [])


def known_pixels(what: str, height: int, width: int) -> Tensor:
    """[H, W] bool: half of the image, or where a picture of that size is white. Raises UserError."""
    known = torch.zeros(height, width, dtype=torch.bool)
    halves = {
        "top": known[: height // 2],
        "bottom": known[height - height // 2 :],
        "left": known[:, : width // 2],
        "right": known[:, width - width // 2 :],
    }
    if what in halves:
        halves[what].fill_(True)
        return known
    try:
        mask = torch.from_numpy(pictured(Path(what), None, grey=True)[0] >= 128)
    except UserError as error:
        raise UserError(
            f"inpaint={what} is neither top, bottom, left or right nor a picture of a mask ({error})"
        ) from error
    if mask.shape != known.shape:
        raise UserError(
            f"inpaint={what} is of {' x '.join(map(str, mask.shape))} pixels, and the images of {height} x {width}"
        )
    return mask
