"""What a run folder can be asked for once a model has been fitted: samples, what they and the model are worth."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gen_lab.data import Images
from gen_lab.data.pixels import pictured
from gen_lab.fit import evaluate as evaluate_model
from gen_lab.judging import Judge, NoLabels, nothing
from gen_lab.loading import Fitted, load, some
from gen_lab.pictures import FILM_FRAMES, WIDTH, side_by_side, thinned, write_film, write_sheet
from gen_lab.types import Draughtsman, Inpainter
from rl_lab.core import room, run
from rl_lab.core.errors import UserError
from rl_lab.core.files import inside, replacing, write
from rl_lab.core.learner import Metrics, generator
from rl_lab.core.settings import Count, Natural

NEIGHBOURS = 32  # pairs of a sample and the training image nearest to it


def sample(
    runs: Sequence[Path],
    *,
    count: Count = 64,
    seed: Natural = 0,
    label: Natural | None = None,  # the class to draw; None: all of them in turn, where the model knows any
    inpaint: str | None = None,  # given of test images: top, bottom, left, right, or a picture's white pixels
    film: bool = False,
    device: str = "auto",
    changes: Sequence[str] = (),  # of the runs' settings
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Leaves a sheet (png) to look at and the images [N, C, H, W] uint8, below levels, (npz) to work with.

    Named samples_seed<k>, or inpainted_seed<k>: triples of what was given, what the model made of it, and what it was.
    With `film`, a gif of the samples being drawn beside them.
    """
    if film and inpaint:
        raise UserError("film=true shows samples from scratch; leave out inpaint=")
    for folder in some(runs, "sample"):
        fitted = load(folder, device, changes)
        stem = "inpainted" if inpaint else "samples"
        stem_of_files = f"{stem}_seed{seed}{'' if label is None else f'_label{label}'}"
        made = [inside(folder, f"{stem_of_files}.{kind}") for kind in ("png", "npz", *["gif"] * film)]
        path = made[0]
        afford(fitted, count, film)
        arrays, shown, frames = _drawn(fitted, count, generator(seed, fitted.device), label, inpaint, film)
        write_sheet(path, shown, columns=9 if inpaint else 8)
        with replacing(made[1]) as beside:
            np.savez_compressed(beside, **arrays, levels=fitted.data.levels)
        if frames:
            write_film(made[2], frames)
        print(*made, sep="\n")
        config = {"runs": [str(folder)], "count": count, "seed": seed, "label": label, "inpaint": inpaint}
        if tracked := tracker and tracker(name=path.stem, group=fitted.name, job_type="sample", config=config):
            import wandb

            films = {"film": wandb.Video(str(made[2]))} if frames else {}
            tracked.log({"step": fitted.step, stem: wandb.Image(str(path)), **films})
            tracked.finish()


def afford(fitted: Fitted, count: int, film: bool = False) -> None:
    """Raises UserError where so many samples and their sheet are more than memory holds, before one is drawn."""
    spec = fitted.data.spec
    one = math.prod(spec.shape) * 4 * (4 + (FILM_FRAMES if film else 0)) + 12 * WIDTH**2
    room.memory(count * one, f"count={count}")


class Drawn(NamedTuple):
    arrays: dict[str, np.ndarray]  # for the npz
    shown: Tensor  # [M, C, H, W] in [0, 1], for the sheet
    frames: list[Tensor]  # of the film, each [N, C, H, W] in [0, 1]


def _drawn(
    fitted: Fitted, count: int, rng: torch.Generator, label: int | None, inpaint: str | None, film: bool
) -> Drawn:
    """Raises UserError where the model cannot do what is asked for."""
    model, data, frames = fitted.model, fitted.data, []
    labels = _labels(fitted, label, count)
    if inpaint:
        return _inpainted(fitted, count, rng, labels, inpaint)
    if film:
        if not isinstance(model, Draughtsman):
            raise UserError("film=true is impossible: this model does not draw an image little by little")
        frames = thinned(x.cpu() for x in model.draw(count, rng, labels))
    images = frames[-1] if film else model.sample(count, rng, labels)
    return Drawn({"images": _whole(images, data)}, images, frames)


def _inpainted(fitted: Fitted, count: int, rng: torch.Generator, labels: Tensor | None, inpaint: str) -> Drawn:
    """The first test images, of which the known pixels are kept."""
    model, data = fitted.model, fitted.data
    if not isinstance(model, Inpainter):
        raise UserError(f"inpaint={inpaint} is impossible: this model cannot complete an image")
    x = data.scaled(data.test[:count])
    known = known_pixels(inpaint, *x.shape[2:]).to(x.device)
    if labels is None and model.spec.classes:
        labels = data.test_labels[:count].to(x.device)
    images = model.inpaint(x, known, rng, None if labels is None else labels[: len(x)])
    arrays = {"images": _whole(images, data), "known": known.cpu().numpy()}
    return Drawn(arrays, side_by_side(torch.where(known, x, 0.5), images, x), [])


def known_pixels(what: str, height: int, width: int) -> Tensor:
    """[H, W] bool: half of the image, or where a picture of that size is white. Raises UserError."""
    known = torch.zeros(height, width, dtype=torch.bool)
    halves = {"top": known[: height // 2], "bottom": known[height - height // 2 :],
              "left": known[:, : width // 2], "right": known[:, width - width // 2 :]}  # fmt: skip
    if what in halves:
        halves[what].fill_(True)
        return known
    try:
        mask = torch.from_numpy(pictured(Path(what), None, grey=True)[0] >= 128)
    except UserError as error:
        raise UserError(f"inpaint={what} is neither top, bottom, left or right nor a picture of a mask "
                        f"({error})") from error  # fmt: skip
    if mask.shape != known.shape:
        raise UserError(f"inpaint={what} is of {' x '.join(map(str, mask.shape))} pixels, and the images of "
                        f"{height} x {width}")  # fmt: skip
    return mask


def _labels(fitted: Fitted, label: int | None, count: int) -> Tensor | None:
    """`count` times the class asked for, [N]. Raises UserError where the model does not tell it from others."""
    if label is None:
        return None
    classes = fitted.model.spec.classes
    if label >= classes:
        known = f"it knows classes 0 to {classes - 1}" if classes else "it was trained without labels"
        raise UserError(f"label={label} is impossible for the model of {fitted.name}: {known}")
    return torch.full((count,), label, device=fitted.device)


def _whole(images: Tensor, data: Images) -> np.ndarray:
    """[0, 1] to levels."""
    return (images * (data.levels - 1)).round().to(torch.uint8).cpu().numpy()


def evaluate(
    runs: Sequence[Path],
    *,
    iwae_samples: Natural = 1_000,
    judge: Callable[[Images], Judge | None] = nothing,
    seed: Natural = 0,
    device: str = "auto",
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Prints the scores of each run with their standard errors and, of a judge, each measure of its samples beside
    that of held-out images; leaves all of it in the run's evaluation.json.
    """
    console = Console(width=max(140, Console().width))
    scored = Table("run", "checkpoint", "score", "mean", "standard error")
    judged = Table("run", "checkpoint", "measure", "samples", "held-out images")
    for folder in some(runs, "evaluate"):
        fitted = load(folder, device, changes)
        for name in "evaluation.json", "neighbours.png":
            inside(folder, name)  # refused before the hours that follow
        head = Text(str(folder)), f"{fitted.step:,} updates"
        try:
            by = judge(fitted.data)
        except NoLabels as error:
            by = None
            print(f"{folder}: {error}")
        scores = _floats(evaluate_model(fitted.model, fitted.data, seed, iwae_samples))
        for name in (name for name in scores if "_se[" not in name):
            error = scores.get(name.replace("[", "_se["))
            scored.add_row(*head, *_cells(name, scores[name]), "" if error is None else f"{error:.4f}")
        record = {"step": fitted.step, "images": len(fitted.data.test), "iwae_samples": iwae_samples, "seed": seed,
                  "device": str(fitted.device), "scores": scores}  # fmt: skip
        record |= {"changes": list(changes)} if changes else {}
        if by:
            record |= _judged(fitted, by, seed, inside(folder, "neighbours.png"))
            for name, x in record["measures"].items():
                judged.add_row(*head, *_cells(name, x), f"{record['floor'][name]:.4f}")
            print(f"{folder}: {by.told}", folder / "neighbours.png", sep="\n")
        write(inside(folder, "evaluation.json"), json.dumps(record, indent=2) + "\n")
        scored.add_section()
        judged.add_section()
    for table in scored, judged:
        if table.row_count:
            console.print(table)


def _judged(fitted: Fitted, judge: Judge, seed: int, picture: Path) -> dict[str, dict]:
    """What evaluation.json says of samples; the picture shows those nearest to a training image beside it."""
    images = judge.draw(fitted.model, generator(run.stream(seed, "judge"), fitted.device))
    write_sheet(picture, judge.neighbours(images, NEIGHBOURS))
    averaged = bool(getattr(fitted.model, "average", 0))
    return {"judge": judge.record | {"averaged": averaged}, "floor": _floats(judge.named(judge.floor)),
            "measures": _floats(judge.named(judge.measured(judge.see(images))))}  # fmt: skip


def _cells(name: str, x: float) -> tuple[Text, str]:
    return Text(name.removeprefix("eval/")), f"{x:.4f}"


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(x) for name, x in metrics.items()}
