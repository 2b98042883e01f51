"""From a command line to one call: compose the YAML, hold it against the signatures, open the run, call the loop."""

import glob
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_lab.core.errors import UserError, nearest

OmegaConf.register_new_resolver("first", lambda *choices: next((c for c in choices if c not in (None, "null")), None))
WITH_VALUE = "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"
HYDRA = "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode"
GROUPS = "experiment", "agent", "planner", "env", "model", "data"


def conf_dir() -> Path:
    """conf/ of the installed package, or of the checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def groups(root: str) -> list[str]:
    """The config groups that the root's defaults choose from."""
    defaults = OmegaConf.load(conf_dir() / f"{root}.yaml").defaults
    return [group for choice in defaults if not isinstance(choice, str) for group in choice if " " not in group]


def train(prog: str, root: str, arguments: list[str]) -> None:
    """Runs the loop of the composed config in a new folder, or goes on in the one that `run=` names."""
    folders, overrides = split(arguments)
    if len(folders) > 1:
        raise UserError(f"{prog} train resumes one run at a time, not {len(folders)}")
    source, config_name = conf_dir(), root
    if folders:
        read_config(folders[0])
        source, config_name = folders[0].resolve(), "config"
        overrides += [f"hydra.run.dir={_quoted(str(folders[0]))}", "hydra.output_subdir=null"]

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
        if not resuming:
            _remove_if_nothing_ran(folder)
        raise


def _remove_if_nothing_ran(folder: Path) -> None:
    """A mistake found before the first row leaves no litter behind."""
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else {"?"}
    rows = folder / "metrics.jsonl"
    if names <= {"config.yaml", "summary.json", "metrics.jsonl"} and not (rows.exists() and rows.stat().st_size):
        for name in names:
            (folder / name).unlink()
        folder.rmdir()


def _open_run(cfg: DictConfig, folder: Path):
    import torch

    from rl_lab.core import run

    cfg.name = str(cfg.name)
    written = OmegaConf.to_container(cfg, resolve=False) | {"name": cfg.name}
    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order} | {k: v for k, v in written.items() if k not in order}
    device = run.device(str(cfg.device))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(written)))
    cfg.device = device
    torch.set_num_threads(cfg.threads)
    names = {"name": cfg.name, **OmegaConf.to_container(cfg.choices), "seed": cfg.seed}
    resolved = OmegaConf.to_container(cfg, resolve=True)
    references = [k for k, v in written["loop"].items() if str(v).startswith("${")]
    resolved["loop"] = {k: v for k, v in resolved["loop"].items() if k not in references}
    return run.Run(
        folder, cfg.seed, device, names=names, config=resolved, tracker=hydra.utils.instantiate(cfg.tracker),
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


def compose(source: Path, config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(source), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def split(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Run folders (`run=X`, a bare path or glob) and the rest, which are overrides. Raises UserError."""
    folders, rest = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if (
            argument.startswith("-")
            or before in WITH_VALUE
            or (equals and key != "run" and not Path(argument).exists())
        ):
            rest.append(argument)
            continue
        pattern = os.path.expanduser(value if equals and key == "run" else argument)
        found = [Path(pattern)] if Path(pattern).exists() else sorted(Path(p) for p in glob.glob(pattern))
        if not found:
            raise UserError(f"no run folder {pattern}{_nearest_folder(pattern)}")
        folders += found
    return folders, rest


def _nearest_folder(pattern: str) -> str:
    parent = Path(pattern).parent
    names = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    return nearest(pattern, names, listing=False)


def read_config(folder: Path) -> DictConfig:
    """The config of a run folder. Raises UserError where it is none, or could run code when composed."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(cfg, DictConfig) or not {"name", "seed", "loop"} <= set(cfg):
        raise UserError(f"{path} is not the config of a run")
    if refused := {"hydra", "defaults"} & set(cfg):
        raise UserError(f"{path} is refused: a run's config has no '{refused.pop()}'")
    return cfg


# -- errors


class plain_errors:
    """Turns what Hydra and OmegaConf raise over a user's mistake into a UserError of one line."""

    def __init__(self, source: Path, config_name: str, overrides: list[str]):
        self.source, self.config_name, self.overrides = source, config_name, overrides

    def __enter__(self) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit

    def __exit__(self, kind, error, trace) -> None:
        for link in _chain(error):
            if isinstance(link, UserError):
                raise link from None
        for link in _chain(error):
            if isinstance(link, OSError) and link.filename is not None:
                remedy = "free or choose another place (hydra.run.dir=...)"
                raise UserError(f"cannot write {link.filename}: {link.strerror}; {remedy}") from error
            if isinstance(link, OSError) and link.errno in (27, 28, 122):  # file too large, disk full, quota
                raise UserError(f"cannot write the run: {link.strerror or link}; make room, then resume it") from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            if type(error).__name__ == "InstantiationException":
                if error.__cause__:
                    raise error.__cause__
                return
            raise UserError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if isinstance(error, MissingConfigException) and error.options:
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            options = (f"{group}={option}" for option in error.options)
            return f"no choice '{choice}' for {group}{nearest(f'{group}={choice}', options)}"
        if "Could not override" in lines[0]:
            return self._unknown(lines[0].split("'")[1])
        if type(error).__name__ == "OverrideParseException":
            return f"cannot read the setting: {lines[0]}"
        return " ".join(lines)[:300]

    def _unknown(self, key: str) -> str:
        """No such setting; or one that the signature has and the YAML leaves at its default."""
        from rl_lab.core import settings

        cfg = self._composed()
        parent, _, name = key.rpartition(".")
        target = OmegaConf.select(cfg, f"{parent}._target_") if parent else None
        if target and name in inspect.signature(settings.locate(target)).parameters:
            return f"'{key}' has its default and is not in the YAML; write +{key}=... to set it"
        known = [*_flatten(cfg), *(g for g in GROUPS if (self.source / g).is_dir()), *HYDRA]
        return f"no setting '{key}'{nearest(key, known)}"

    def _composed(self) -> DictConfig:
        """With the choices of groups alone, so that what was misspelt is not there."""
        groups = [o for o in self.overrides if "." not in o.partition("=")[0] and not o.startswith("-")]
        try:
            return compose(self.source, self.config_name, groups)
        except HydraException:
            return compose(self.source, self.config_name, [])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, each once: a cause that is raised anew points back at what it caused."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _flatten(cfg: DictConfig, path: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{path}{key}"
        if (
            not OmegaConf.is_interpolation(cfg, key)
            and not OmegaConf.is_missing(cfg, key)
            and isinstance(cfg[key], DictConfig)
        ):
            yield from _flatten(cfg[key], f"{path}{key}.")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def complete(prog: str, root: str, arguments: list[str]) -> None:
    """Hydra's own tab completion over conf/."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(lambda cfg: None)
    sys.argv = [prog, *arguments]
    main()
