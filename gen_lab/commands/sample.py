"""Samples of a run's model: sheets, arrays, completed images, films."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.pixels import pictured
from gen_lab.judging.pictures import FILM_FRAMES, WIDTH, in_rows, side_by_side, thinned, write_film, write_sheet
from gen_lab.trained.loading import BLOCK, Temperature, Trained, apart, load, some
from gen_lab.types import Inpainter, Meaning, ProgressiveSampler
from rl_lab.core import room
from rl_lab.core.errors import UserError, spared, tell
from rl_lab.core.files import home, inside, replacing
from rl_lab.core.joining import join
from rl_lab.core.progress import Told
from rl_lab.core.settings import Count, Natural

SHOWN = 400  # images on a sheet at most


def sample(
    runs: Sequence[Path],
    *,
    count: Count,
    seed: Natural,
    label: Natural | None,  # the class to draw; None: all of them in turn, if the model is conditional
    inpaint: str | None,  # given of test images: top, bottom, left, right, or a picture's white pixels
    film: bool,
    temperature: Temperature,  # of the draws: below 1 likelier and less varied images
    columns: Count | None,  # of the sheet; None: 8, or as many as each class has samples
    out: str | None,  # a folder for the files; None: the run's own
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Leaves a sheet (png) of at most 400 to look at and the images [N, C, H, W] uint8, below levels, (npz) to work
    with. The first images of a seed are the same whatever the count.

    Named samples_seed<k>, or inpainted_<what>_seed<k>: triples of the given pixels, the completed image and the true
    one; of a model that draws pixels one by one around what it means, means_seed<k> too. A label, a temperature or a
    count that is typed is in the names. With `film`, a gif of the first 64 samples being drawn beside them.
    """
    if film and inpaint:
        raise UserError("film=true shows samples from scratch; leave out inpaint=")
    found, faults = some(runs, "sample"), list[UserError]()
    for folder, more in zip(found, apart(found), strict=True):
        with spared(faults):
            trained = load(folder, device, changes)
            place, first = (folder, "") if out is None else (home(out), f"{trained.name}{more}_")
            made = leave(trained, place, first, count, seed, label, inpaint, film, temperature, columns)
            print(*made, sep="\n")
            films = {f"{path.stem}_film": path for path in made if path.suffix == ".gif"}
            join(tracker, folder, {made[0].stem: made[0], **films})
    tell(faults, len(found))


def leave(
    trained: Trained,
    place: Path,
    first: str,  # how the names of the files begin
    count: int,
    seed: int,
    label: int | None,
    inpaint: str | None,
    film: bool,
    temperature: float,
    columns: int | None,
) -> list[Path]:
    """The files of one run: a sheet, the arrays and, where there are any, the film and the means. Raises UserError."""
    if inpaint and count > (there := len(trained.data.test)):
        print(f"{trained.name}: there are {there:,} test images to complete", file=sys.stderr)
        count = there
    afford(trained, count, film)
    warm(trained, temperature)
    stem = f"inpainted_{Path(inpaint).stem}" if inpaint else "samples"
    which = f"seed{seed}{'' if label is None else f'_label{label}'}"
    which += "" if temperature == 1 else f"_temperature{temperature:g}"
    caption = f"{trained.name} · update {trained.step:,} · {which.replace('_', ' · ')}"
    which += "" if count == BLOCK else f"_count{count}"
    place.mkdir(parents=True, exist_ok=True)
    path, arrays_path, film_path, means_path = (
        inside(place, f"{first}{name}_{which}.{kind}")
        for name, kind in ((stem, "png"), (stem, "npz"), (stem, "gif"), ("means", "png"))
    )
    drawn = _drawn(trained, count, seed, label, inpaint, film)
    across = columns or drawn.columns
    made = [write_sheet(path, drawn.shown, across, f"{caption}{drawn.says}"), arrays_path]
    with replacing(arrays_path) as beside:
        np.savez_compressed(beside, **drawn.arrays, levels=trained.spec.levels)
    if drawn.frames:
        made.append(write_film(film_path, drawn.frames, across, caption))
    if drawn.means is not None:
        made.append(write_sheet(means_path, drawn.means, across, f"{caption} · means, not draws"))
    return made


def warm(trained: Trained, temperature: float) -> None:
    """Sets the temperature at which the model draws. Raises UserError where it has none."""
    if temperature != 1:
        if not hasattr(trained.model, "temperature"):
            raise UserError(
                f"temperature={temperature:g}: the model of {trained.name} has none; autoregressive models, VAEs, "
                "VQ-VAEs, autoencoders and GANs have one"
            )
        trained.model.temperature = temperature


def afford(trained: Trained, count: int, film: bool = False) -> None:
    """Raises UserError if this many samples and their sheet do not fit in memory, before any is drawn."""
    spec = trained.spec
    one = math.prod(spec.shape) * 4 * (4 + (FILM_FRAMES if film else 0)) + 12 * WIDTH**2
    room.memory(count * one, f"count={count}")


class Drawn(NamedTuple):
    arrays: dict[str, Any]  # for the npz
    shown: Tensor  # [M, C, H, W] in [0, 1], for the sheet
    frames: list[Tensor]  # of the film, each [N, C, H, W] in [0, 1]
    columns: int
    means: Tensor | None = None  # [M, C, H, W] in [0, 1], what `shown` was drawn around
    says: str = ""


def _drawn(trained: Trained, count: int, seed: int, label: int | None, inpaint: str | None, film: bool) -> Drawn:
    """Draws the samples. Raises UserError if the model cannot."""
    model, spec, classes, device = trained.model, trained.spec, trained.model.spec.classes, trained.device
    if inpaint:
        return _inpainted(trained, count, seed, label, inpaint)
    if film and not isinstance(model, ProgressiveSampler):
        raise UserError("film=true needs a model that samples pixel by pixel, and this one does not; leave it out")
    images: list[Tensor] = []
    means: list[Tensor] = []
    frames: list[Tensor] = []
    told = Told(partial(print, file=sys.stderr), f"{trained.name}: sampling")
    for start, rng, turn in trained.draws(count, seed, label):
        before = rng.get_state()
        if film and not start and isinstance(model, ProgressiveSampler):
            frames = thinned(x.cpu() for x in model.draw(BLOCK, rng, turn))
            images.append(frames[-1].to(device))
        else:
            images.append(model.sample(BLOCK, rng, turn))
        if isinstance(model, Meaning) and start < SHOWN:
            rng.set_state(before)
            means.append(model.pixel_means(BLOCK, rng, turn))
        told(min(count, start + BLOCK), count)
    drawn = torch.cat(images)[:count]
    rows, columns = in_rows(0 if label is not None else classes, min(count, SHOWN))
    order = torch.arange(min(count, SHOWN))
    if rows is not None:  # class after class in turn: the j-th of class k is number j * classes + k
        order = (torch.arange(columns) * classes + torch.arange(classes)[:, None]).flatten()
    filmed = order[order < min(count, BLOCK)]
    return Drawn(
        {"images": drawn.cpu().numpy()},
        spec.scaled(drawn[order.to(device)]),
        [spec.scaled(x[filmed]) for x in frames],
        columns,
        torch.cat(means)[order.to(device)] if means else None,
    )


def _inpainted(trained: Trained, count: int, seed: int, label: int | None, inpaint: str) -> Drawn:
    """Completes the first test images, keeping their known pixels."""
    model, data = trained.model, trained.data
    if not isinstance(model, Inpainter):
        raise UserError(f"inpaint={inpaint}: this model cannot complete an image; an autoregressive one can")
    known = known_pixels(inpaint, *data.spec.shape[1:]).to(data.device)
    given, parts = data.test_labels, []
    for start, rng, turn in trained.draws(min(count, len(data.test)), seed, label):
        x = data.test[start : start + BLOCK].to(data.device)
        if label is None:
            turn = None if given is None else given[start : start + BLOCK].to(x.device)
        parts.append((x, model.inpaint(x, known, rng, None if turn is None else turn[: len(x)])))
    x, images = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
    arrays, scaled = {"images": images.cpu().numpy(), "known": known.cpu().numpy()}, data.spec.scaled
    shown = side_by_side(torch.where(known, scaled(x), 0.5), scaled(images), scaled(x))[: 3 * SHOWN]
    return Drawn(arrays, shown, [], 9, says=" · what is given, completed, the image")


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
    if not Path(what).exists():
        raise UserError(f"inpaint={what} is neither top, bottom, left or right nor the picture of a mask")
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
