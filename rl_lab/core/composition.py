"""Where configs come from: conf/, or the folder of an earlier run."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Natural, conform

OmegaConf.register_new_resolver("first", lambda *choices: next((c for c in choices if c not in (None, "null")), None))
OmegaConf.register_new_resolver("folder_name", lambda name: folder_name(name))
OmegaConf.register_new_resolver("natural", lambda seed: conform("seed", seed, Natural))
OmegaConf.register_new_resolver("at_once", lambda threads, device: at_once(threads, device))
WITH_VALUE = "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"
LONGEST_NAME = 120  # characters
GROUPS = "experiment", "agent", "planner", "env", "model", "data"


def at_once(threads: int, device: str, jobs_on_a_gpu: int = 4) -> int:
    """How many jobs of so many threads keep this machine busy, and no busier."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/gpus").exists()
    return max(1, min(cores // threads, jobs_on_a_gpu if gpu else cores))


def folder_name(name: str) -> str:
    """The name of a run, which is that of its folder under runs/ too. Raises UserError."""
    name = str(name)
    parts = name.split("/")
    if name in ("", "None") or len(name) > LONGEST_NAME or not name.isprintable() or {"", ".", ".."} & set(parts):
        shown = "".join(c if c.isprintable() else "?" for c in name)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise UserError(f"name={'null' if name == 'None' else shown} is no name of a run; give it letters, digits and "
                        f"_, at most {LONGEST_NAME} of them")  # fmt: skip
    return name


def groups(root: str) -> list[str]:
    """The config groups that the root's defaults choose from."""
    defaults = OmegaConf.load(conf_dir() / f"{root}.yaml").defaults
    return [group for choice in defaults if not isinstance(choice, str) for group in choice if " " not in group]


def compose(source: Path, config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(source), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def flatten(cfg: DictConfig, path: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{path}{key}"
        if (
            not OmegaConf.is_interpolation(cfg, key)
            and not OmegaConf.is_missing(cfg, key)
            and isinstance(cfg[key], DictConfig)
        ):
            yield from flatten(cfg[key], f"{path}{key}.")


def split(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Run folders (`run=X`, a bare path or glob) and the rest, which are overrides. Raises UserError.

    `run=wandb:<entity>/<project>/<run>` is fetched first; `~key` takes a setting away, `~/x` is a path.
    """
    folders, rest = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if (
            argument.startswith("-")
            or (argument.startswith("~") and not argument.startswith("~/"))
            or before in WITH_VALUE
            or (equals and key != "run" and not Path(argument).exists())
        ):
            rest.append(argument)
            continue
        pattern = os.path.expanduser(value if equals and key == "run" else argument)
        if pattern.startswith("wandb:"):
            from rl_lab.core import registry

            folders.append(registry.fetch(pattern.removeprefix("wandb:")))
            continue
        found = [Path(pattern)] if Path(pattern).exists() else sorted(Path(p) for p in glob.glob(pattern))
        if not found:
            raise UserError(f"no run folder {pattern}{_nearest_folder(pattern)}")
        folders += found
    return folders, rest


def _nearest_folder(pattern: str) -> str:
    parent = Path(pattern).parent
    names = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    return nearest(pattern, names, listing=False)
