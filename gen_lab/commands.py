"""What a run folder can be asked for once a model has been fitted: samples, and scores on the whole test set."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_lab.data import Images
from gen_lab.fit import evaluate as evaluate_model
from gen_lab.pictures import write_sheet
from gen_lab.types import Model
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
    device: str = "auto",
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Leaves samples_seed<k>.png to look at and .npz (images [N, C, H, W] uint8, below levels) to work with."""
    for folder in _some(runs, "sample"):
        fitted = load(folder, device)
        images = fitted.model.sample(count, generator(seed, fitted.device))
        picture = write_sheet(folder / f"samples_seed{seed}.png", images)
        whole = (images * (fitted.data.levels - 1)).round().to(torch.uint8).cpu().numpy()
        np.savez_compressed(picture.with_suffix(".npz"), images=whole, levels=fitted.data.levels)
        print(picture, picture.with_suffix(".npz"), sep="\n")
        config = {"runs": [str(folder)], "count": count, "seed": seed}
        if tracked := tracker and tracker(name=picture.stem, group=fitted.name, job_type="sample", config=config):
            import wandb

            tracked.log({"step": fitted.step, "samples": wandb.Image(str(picture))})
            tracked.finish()


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
