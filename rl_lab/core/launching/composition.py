"""Configs out of conf/, as Hydra composes them; Hydra is imported only where one is."""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError
from rl_lab.core.parts import Parts
from rl_lab.core.settings import Natural, conform, folder_name

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

OmegaConf.register_new_resolver("first", lambda *choices: next((c for c in choices if c not in (None, "null")), None))
OmegaConf.register_new_resolver("folder_name", lambda name: folder_name(name))
OmegaConf.register_new_resolver("natural", lambda seed: conform("seed", seed, Natural))
OmegaConf.register_new_resolver("at_once", lambda threads, device: at_once(threads, device))
GROUPS = "experiment", "agent", "planner", "env", "teacher", "model", "data"


def at_once(threads: int, device: str, jobs_on_a_gpu: int = 4) -> int:
    """How many jobs of this many threads keep this machine busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/gpus").exists()
    return max(1, min(cores // threads, jobs_on_a_gpu if gpu else cores))


def groups(root: str) -> list[str]:
    """The config groups that the root's defaults choose from."""
    defaults = OmegaConf.load(conf_dir() / f"{root}.yaml").defaults
    return [group for choice in defaults if not isinstance(choice, str) for group in choice if " " not in group]


def parts_of(prog: str) -> Parts:
    """What the lab of this program declares: rl-lab's is rl_lab/parts.py."""
    parts: Parts = importlib.import_module(f"{prog.replace('-', '_')}.parts").PARTS
    return parts


def loops(parts: Parts) -> list[str]:
    """Those of conf/loop that are a lab's own."""
    return sorted(path.stem for path in (conf_dir() / "loop").glob("*.yaml") if _target_of(path) in parts.allowed)


def _target_of(path: Path) -> str:
    """What a YAML calls, or what the first of its defaults does."""
    node: Any = OmegaConf.load(path)
    return str(node["_target_"]) if "_target_" in node else _target_of(path.with_name(f"{node.defaults[0]}.yaml"))


def is_group(key: str) -> bool:
    return os.path.isdir(conf_dir() / key)


def compose(source: Path, config_name: str, overrides: list[str]) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(source), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """References between settings stay as they are."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(plain)


def flatten(cfg: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        yield f"{path}{key}"
        if (
            not OmegaConf.is_interpolation(cfg, key)
            and not OmegaConf.is_missing(cfg, key)
            and isinstance(cfg[key], DictConfig)
        ):
            yield from flatten(cfg[key], f"{path}{key}.")


def parsed(setting: str) -> "Override":
    """As Hydra reads it. Raises UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(setting)
    except HydraException as error:
        reason = str(error).strip().splitlines()[0].partition(" expecting ")[0]
        key, equals, value = setting.partition("=")
        quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        if (
            reason.startswith(("LexerNoViableAlt", "token recognition"))
            and re.fullmatch(r"[~+]*[\w./@]+", key)
            and equals
        ):
            reason = (
                f"{' '.join(setting.split())[:80]}; a value with such signs is written in quotes: {key}={quoted[:80]}"
            )
        raise UserError(f"cannot read the setting: {reason}") from error
