"""A run folder's model and data again, as its checkpoint left them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig

from gen_lab.data import Images
from gen_lab.parts import PARTS
from gen_lab.types import Model
from rl_lab.core import checking, checkpoint, devices, reading, threads
from rl_lab.core.errors import UserError
from rl_lab.core.launching.changes import changed, typed
from rl_lab.core.launching.composition import as_dict


class Trained(NamedTuple):
    """A run folder's model as its checkpoint left it."""

    name: str  # of the run
    model: Model
    data: Images
    device: torch.device
    step: int  # updates


def load(folder: Path, device: str, changes: Sequence[str] = ()) -> Trained:
    """`changes` are overrides of the run's settings, such as data.root=/data.

    Nothing of the config is called before all that is called is checked. Raises UserError.
    """
    cfg, parts = reading.config(folder, PARTS, typed(changes, PARTS))
    path = folder / "checkpoint.pt"
    if not all(isinstance(cfg.get(part), DictConfig) for part in ("model", "data")):
        raise UserError(f"{folder} holds no model and data: it is not a run of gen-lab train")
    reading.refuse(plain(cfg), parts)
    cfg = changed(cfg, changes)
    for part in "data", "model":
        checking.check(cfg[part], part)
    resolved = plain(cfg)
    reading.refuse(resolved, parts)
    chosen = torch.device(devices.chosen(device, config=resolved, exact=PARTS.exact))
    state = checkpoint.read(path)
    torch.set_num_threads(threads.kept(cfg.get("threads", 1)))
    data = hydra.utils.instantiate(resolved["data"]).to(chosen)
    model = hydra.utils.instantiate(resolved["model"])
    try:
        model = model(data.spec, device=chosen, seed=0)
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} does not fit {folder / 'config.yaml'} ({reason})") from error
    return Trained(str(cfg.name), model, data, chosen, state["step"])


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config with every interpolation resolved, as dicts."""
    return reading.resolved(as_dict(cfg))


def some(runs: Sequence[Path], command: str) -> Sequence[Path]:
    """The runs; there must be at least one. Raises UserError."""
    if not runs:
        raise UserError(f"which run? gen-lab {command} run=<folder>")
    return runs
