"""What a run folder can be asked for once a model has been fitted: samples, and scores on the whole test set."""

import json
from collections.abc import Sequence
from pathlib import Path

import hydra
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_lab.data import Images
from gen_lab.fit import evaluate as evaluate_model
from gen_lab.pictures import write_sheet
from gen_lab.types import Model
from rl_lab.core import checkpoint, launch, run, settings
from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator
from rl_lab.core.settings import Count, Natural


def sample(runs: Sequence[Path], *, count: Count = 64, seed: Natural = 0, device: str = "auto") -> None:
    """Leaves samples_seed<k>.png to look at and .npz (images [N, C, H, W] uint8, below levels) to work with."""
    device = torch.device(run.device(device))
    for folder in _some(runs, "sample"):
        model, data, _ = load(folder, device)
        images = model.sample(count, generator(seed, device))
        picture = write_sheet(folder / f"samples_seed{seed}.png", images)
        levels = (images * (data.levels - 1)).round().to(torch.uint8).cpu().numpy()
        np.savez_compressed(picture.with_suffix(".npz"), images=levels, levels=data.levels)
        print(picture, picture.with_suffix(".npz"), sep="\n")


def evaluate(runs: Sequence[Path], *, iwae_samples: Natural = 1_000, seed: Natural = 0, device: str = "auto") -> None:
    """Prints the scores of each run with their standard errors and leaves them in its evaluation.json."""
    device = torch.device(run.device(device))
    found = {}
    for folder in _some(runs, "evaluate"):
        model, data, step = load(folder, device)
        values = {name: float(x) for name, x in evaluate_model(model, data, seed, iwae_samples).items()}
        record = {"step": step, "images": len(data.test), "iwae_samples": iwae_samples, "seed": seed, "device": str(device), "scores": values}
        (folder / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
        found[folder] = values
    _show(found)


def _some(runs: Sequence[Path], command: str) -> Sequence[Path]:
    if not runs:
        raise UserError(f"which run? gen-lab {command} run=<folder>")
    return runs


def load(folder: Path, device: torch.device) -> tuple[Model, Images, int]:
    """The model of a run folder as its last checkpoint left it, its data, and the step. Raises UserError."""
    cfg = launch.read_config(folder)
    if not {"model", "data"} <= set(cfg):
        raise UserError(f"{folder} holds no model and data: it is not a run of gen-lab train")
    for part in "data", "model":
        settings.check(cfg[part], part, trusted=False)
    state = checkpoint.read(folder / "checkpoint.pt")
    data = hydra.utils.instantiate(cfg.data).to(device)
    model = hydra.utils.instantiate(cfg.model)(data.spec, device=device, seed=0)
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{folder / 'checkpoint.pt'} does not fit {folder / 'config.yaml'} ({' '.join(str(error).split())[:120]})") from error  # fmt: skip
    return model, data, state["step"]


def _show(found: dict[Path, dict[str, float]]) -> None:
    """A line for each run and score."""
    table = Table("run", "score", "mean", "standard error")
    for folder, values in found.items():
        for name, mean in values.items():
            if (error := values.get(name.replace("[", "_se["))) is not None:
                table.add_row(Text(str(folder)), Text(name.removeprefix("eval/")), f"{mean:.4f}", f"{error:.4f}")
        table.add_section()
    Console(width=max(120, Console().width)).print(table)
