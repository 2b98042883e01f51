"""From a command line to one call: compose the YAML, hold it against the signatures, open the run, call the loop."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_lab.core.composition import GROUPS, compose, conf_dir, groups, read_config, split
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.explain import plain_errors


def train(prog: str, root: str, arguments: list[str]) -> None:
    """Runs the loop of the composed config in a new folder, or goes on in the one that `run=` names."""
    folders, overrides = split(arguments)
    if len(folders) > 1:
        raise UserError(f"{prog} train resumes one run at a time, not {len(folders)}")
    source, config_name = conf_dir(), root
    if folders:
        read_config(folders[0])
        source, config_name = folders[0].resolve(), "config"
        overrides += [f"hydra.run.dir={_quoted(str(folders[0]))}", "hydra.output_subdir=null",
                      "hydra/job_logging=none", "hydra/hydra_logging=none"]  # fmt: skip

    @hydra.main(version_base="1.3", config_path=str(source), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        try:
            with plain_errors(source, config_name, overrides):
                execute(cfg, prog, root, resuming=bool(folders))
        except UserError as error:  # Hydra would announce it once more, and a multirun's other jobs go on
            mistakes.append(error)

    mistakes: list[UserError] = []
    sys.argv = [f"{prog} train", *overrides]
    with plain_errors(source, config_name, overrides):
        main()
    for mistake in mistakes[:-1]:
        print(f"{prog}: {mistake}", file=sys.stderr)
    if mistakes:
        raise mistakes[-1]


def execute(cfg: DictConfig, prog: str, root: str, resuming: bool) -> None:
    """One job: checked, recorded in its folder, run."""
    from rl_lab.core import settings

    chosen = HydraConfig.get().runtime
    folder = Path(chosen.output_dir)
    try:
        if not resuming:
            if (folder / "config.yaml").exists():
                raise UserError(
                    f"{folder} holds a run already; {prog} train run={folder} resumes it, "
                    "or choose another hydra.run.dir"
                )
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"hydra.run.dir={folder} is not empty; choose a new folder")
            _check_root(cfg, root)
            _keep_what_runs(cfg, chosen.choices)
        settings.check(cfg.loop, "loop", trusted=not resuming)
        settings.check(cfg.tracker, "tracker", trusted=not resuming)
        for key, hint in {"seed": settings.Natural, "threads": settings.Count}.items():
            cfg[key] = settings.conform(key, cfg[key], hint)
        for key, hint in {"every": settings.NonNegative, "max_memory_gb": settings.NonNegative, "upload": bool}.items():
            cfg.checkpoint[key] = settings.conform(f"checkpoint.{key}", cfg.checkpoint[key], hint)
        run = _open_run(cfg, folder)
        shown = Path(os.path.relpath(folder))
        try:
            with run:
                hydra.utils.call(cfg.loop, run=run)
        except KeyboardInterrupt:
            run.say(f"stopped; {prog} train run={shown} goes on")
            raise
        run.say(f"finished: {shown}")
    except Exception:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # a mistake found before the first step leaves no litter behind
        raise


def _open_run(cfg: DictConfig, folder: Path):
    import torch

    from rl_lab.core import run

    cfg.name = str(cfg.name)
    written = OmegaConf.to_container(cfg, resolve=False) | {"name": cfg.name}
    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order} | {k: v for k, v in written.items() if k not in order}
    device = run.device(str(cfg.device))
    cfg.device = device
    torch.set_num_threads(cfg.threads)
    names = {"name": cfg.name, **OmegaConf.to_container(cfg.choices), "seed": cfg.seed}
    resolved = OmegaConf.to_container(cfg, resolve=True)
    references = [k for k, v in written["loop"].items() if str(v[0] if isinstance(v, list) else v).startswith("${")]
    resolved["loop"] = {k: v for k, v in resolved["loop"].items() if k not in references}
    return run.Run(
        folder, cfg.seed, device, names=names, config=resolved,
        written=OmegaConf.to_yaml(OmegaConf.create(written)), tracker=hydra.utils.instantiate(cfg.tracker),
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


# -- commands that read run folders


def command(root: str, name: str, arguments: list[str]) -> None:
    """Calls what conf/command/<root>/<name>.yaml says, with the folders named on the command line as `runs`."""
    from rl_lab.core import settings

    folders, overrides = split(arguments)
    config_name = f"command/{root}/{name}"
    with plain_errors(conf_dir(), config_name, overrides):
        cfg = compose(conf_dir(), config_name, overrides)
        settings.check(cfg)
        hydra.utils.call(cfg, runs=folders)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def complete(prog: str, root: str, arguments: list[str]) -> None:
    """Hydra's own tab completion over conf/."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(lambda cfg: None)
    sys.argv = [prog, *arguments]
    main()
