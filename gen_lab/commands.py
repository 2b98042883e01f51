"""What a run folder can be asked for once a model has been fitted: samples, and scores on the whole test set."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gen_lab.data import Images
from gen_lab.fit import evaluate as evaluate_model
from gen_lab.pictures import side_by_side, thinned, write_film, write_sheet
from gen_lab.types import Draughtsman, Inpainter, Model
from rl_lab.core import checkpoint, composition, run, settings
from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator
from rl_lab.core.settings import Count, Natural


class Fitted(NamedTuple):
    """A run folder's model as its checkpoint left it."""

    name: str  # of the run
    model: Model
    data: Images
    device: torch.device
    step: int  # updates


def sample(
    runs: Sequence[Path],
    *,
    count: Count = 64,
    seed: Natural = 0,
    label: Natural | None = None,  # the class to draw; None: all of them in turn, where the model knows any
    inpaint: str | None = None,  # given of test images: top, bottom, left, right, or a picture's white pixels
    film: bool = False,
    device: str = "auto",
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Leaves a sheet (png) to look at and the images [N, C, H, W] uint8, below levels, (npz) to work with.

    Named samples_seed<k>, or inpainted_seed<k>: triples of what was given, what the model made of it, and what it was.
    With `film`, a gif of the samples being drawn beside them.
    """
    if film and inpaint:
        raise UserError("film=true shows samples from scratch; leave out inpaint=")
    for folder in _some(runs, "sample"):
        fitted = load(folder, device)
        stem = "inpainted" if inpaint else "samples"
        path = folder / f"{stem}_seed{seed}{'' if label is None else f'_label{label}'}.png"
        made = [path, path.with_suffix(".npz")]
        arrays, shown, frames = _drawn(fitted, count, generator(seed, fitted.device), label, inpaint, film)
        write_sheet(path, shown, columns=9 if inpaint else 8)
        np.savez_compressed(made[1], **arrays, levels=fitted.data.levels)
        if frames:
            made.append(write_film(path.with_suffix(".gif"), frames))
        print(*made, sep="\n")
        config = {"runs": [str(folder)], "count": count, "seed": seed, "label": label, "inpaint": inpaint}
        if tracked := tracker and tracker(name=path.stem, group=fitted.name, job_type="sample", config=config):
            import wandb

            films = {"film": wandb.Video(str(made[2]))} if frames else {}
            tracked.log({"step": fitted.step, stem: wandb.Image(str(path)), **films})
            tracked.finish()


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
        with Image.open(what) as picture:
            mask = torch.from_numpy(np.array(picture.convert("L")) >= 128)
    except OSError as error:
        raise UserError(f"inpaint={what} is neither top, bottom, left or right nor a picture of a mask") from error
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


def evaluate(runs: Sequence[Path], *, iwae_samples: Natural = 1_000, seed: Natural = 0, device: str = "auto") -> None:
    """Prints the scores of each run with their standard errors and leaves them in its evaluation.json."""
    table = Table("run", "checkpoint", "score", "mean", "standard error")
    for folder in _some(runs, "evaluate"):
        fitted = load(folder, device)
        scores = {k: float(x) for k, x in evaluate_model(fitted.model, fitted.data, seed, iwae_samples).items()}
        record = {"step": fitted.step, "images": len(fitted.data.test), "iwae_samples": iwae_samples, "seed": seed,
                  "device": str(fitted.device), "scores": scores}  # fmt: skip
        (folder / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
        for name, mean in scores.items():
            if (error := scores.get(name.replace("[", "_se["))) is not None:
                table.add_row(Text(str(folder)), f"{fitted.step:,} updates", Text(name.removeprefix("eval/")),
                              f"{mean:.4f}", f"{error:.4f}")  # fmt: skip
        table.add_section()
    Console(width=max(140, Console().width)).print(table)


def _some(runs: Sequence[Path], command: str) -> Sequence[Path]:
    if not runs:
        raise UserError(f"which run? gen-lab {command} run=<folder>")
    return runs


def load(folder: Path, device: str) -> Fitted:
    """Nothing of the config is called before all that is called is checked. Raises UserError."""
    cfg, path = composition.read_config(folder), folder / "checkpoint.pt"
    if not all(isinstance(cfg.get(part), DictConfig) for part in ("model", "data")):
        raise UserError(f"{folder} holds no model and data: it is not a run of gen-lab train")
    for part in "data", "model":
        settings.check(cfg[part], part, trusted=False)
    device, state = torch.device(run.device(device)), checkpoint.read(path)
    torch.set_num_threads(settings.conform("threads", cfg.get("threads", 1), Count))
    data = hydra.utils.instantiate(cfg.data).to(device)
    model = hydra.utils.instantiate(cfg.model)
    try:
        model = model(data.spec, device=device, seed=0)
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} does not fit {folder / 'config.yaml'} ({reason})") from error
    return Fitted(str(cfg.name), model, data, device, state["step"])
