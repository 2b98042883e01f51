"""One run of a composed config: held against the signatures, opened in its folder, gone through."""

import json
import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_lab.core.composition import GROUPS, conf_dir, groups
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.studies.jobs import Value


def execute(cfg: DictConfig, prog: str, root: str, resuming: bool, trusted: bool = True) -> Value:
    """One run: checked, recorded in its folder, gone through."""
    from rl_lab.core import distributed, settings

    chosen = HydraConfig.get().runtime
    folder = Path(chosen.output_dir)
    try:
        if not resuming:
            if not distributed.rank():
                _check_new(prog, folder)
            _check_root(cfg, root)
            _keep_what_runs(cfg, chosen.choices)
        settings.check(cfg.loop, "loop", trusted=trusted and not resuming)
        settings.check(cfg.tracker, "tracker", trusted=trusted and not resuming)
        for key, hint in {"seed": settings.Natural, "threads": settings.Count}.items():
            cfg[key] = settings.conform(key, cfg[key], hint)
        for key, hint in {"every": settings.NonNegative, "max_memory_gb": settings.NonNegative, "upload": bool}.items():
            cfg.checkpoint[key] = settings.conform(f"checkpoint.{key}", cfg.checkpoint[key], hint)
        if not distributed.rank():
            distributed.told(str(folder))
        run = _open_run(cfg, folder)
        shown = Path(os.path.relpath(folder))
        try:
            with run:
                with distributed.in_turn():
                    loop = hydra.utils.instantiate(cfg.loop, _partial_=True)
                loop(run=run)
        except KeyboardInterrupt:
            again = f" under torchrun, again {distributed.size()} times," if distributed.size() > 1 else ""
            run.say(f"stopped; {prog} train run={shown}{again} goes on")
            raise
        run.say(f"finished: {shown}")
        return objective(run.final)
    except Exception:
        if not distributed.rank() and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # a mistake found before the first step leaves no litter behind
        raise


def objective(final: dict[str, float]) -> Value:
    """Of a run's last figures the one that a search goes by: the return, or else a likelihood."""
    from rl_lab.core.progress import SHOWN

    names = sorted(final, key=lambda name: (not name.startswith("eval/"), name))
    wanted = [name for name in names if name.split("[")[0] in SHOWN]
    return (wanted[0], final[wanted[0]]) if wanted else None


def finished(folder: Path) -> Value:
    """What a run came to that had ended before its end was noted."""
    summary = json.loads((folder / "summary.json").read_text())
    return objective(summary["final"]) if summary["state"] == "finished" else None


def _check_new(prog: str, folder: Path) -> None:
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run already; {prog} train run={folder} resumes it, "
                        "or choose another hydra.run.dir")  # fmt: skip
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"hydra.run.dir={folder} is not empty; choose a new folder")


def _open_run(cfg: DictConfig, folder: Path):
    import torch

    from rl_lab.core import devices, distributed, run

    cfg.name = str(cfg.name)
    written = OmegaConf.to_container(cfg, resolve=False) | {"name": cfg.name}
    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order} | {k: v for k, v in written.items() if k not in order}
    processes = {"processes": distributed.size()} if distributed.size() > 1 else {}
    device = devices.chosen(str(cfg.device))
    cfg.device = device
    torch.set_num_threads(cfg.threads)
    names = {"name": cfg.name, **OmegaConf.to_container(cfg.choices), "seed": cfg.seed}
    resolved = OmegaConf.to_container(cfg, resolve=True)
    references = [k for k, v in written["loop"].items() if str(v[0] if isinstance(v, list) else v).startswith("${")]
    resolved["loop"] = {k: v for k, v in resolved["loop"].items() if k not in references}
    return run.Run(
        folder, cfg.seed, device, names=names, config=resolved | processes,
        written=OmegaConf.to_yaml(OmegaConf.create(written | processes)), tracker=hydra.utils.instantiate(cfg.tracker),
        job_type=cfg.loop._target_.rsplit(".", 1)[-1], checkpoint_every=cfg.checkpoint.every,
        max_memory_gb=cfg.checkpoint.max_memory_gb, upload=cfg.checkpoint.upload,
    )  # fmt: skip


def _keep_what_runs(cfg: DictConfig, choices: dict) -> None:
    """Drops the groups that the chosen loop does not name (a planner's run has no agent) and notes the choices."""
    OmegaConf.set_struct(cfg, False)
    named = {str(v)[2:-1] for v in OmegaConf.to_container(cfg.loop, resolve=False).values() if str(v).startswith("${")}
    for group in GROUPS[1:]:
        if group not in named:
            cfg.pop(group, None)
    cfg.choices = {g: choices[g] for g in GROUPS if choices.get(g) and (g in cfg or g == "experiment")}


def _check_root(cfg: DictConfig, root: str) -> None:
    """A misspelt key at the top of a YAML would otherwise be added and never read."""
    base = OmegaConf.load(conf_dir() / f"{root}.yaml")
    known = {k for k in base if k not in ("defaults", "hydra")} | {"choices"}
    known |= {*groups(root)} - {"experiment"}
    for path, node, allowed in (("", cfg, known), ("checkpoint.", cfg.checkpoint, set(base.checkpoint))):
        for key in node:
            if key not in allowed:
                raise UserError(f"no setting '{path}{key}'{nearest(path + key, (path + k for k in allowed))}")
