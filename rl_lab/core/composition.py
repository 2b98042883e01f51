"""Where configs come from: conf/, or the folder of an earlier run."""

import glob
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Natural, conform

OmegaConf.register_new_resolver("first", lambda *choices: next((c for c in choices if c not in (None, "null")), None))
OmegaConf.register_new_resolver("folder_name", lambda name: folder_name(name))
OmegaConf.register_new_resolver("natural", lambda seed: conform("seed", seed, Natural))
OmegaConf.register_new_resolver("at_once", lambda threads, device: at_once(threads, device))
OPTIONAL = {"planner", "protocol", "experiment", "study"}
REFUSED = "config_path", "config_name", "package", "experimental_rerun"
WITH_VALUE = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--package",
    "-p",
)
LONGEST_NAME, LONGEST_KEY = 120, 200  # characters
GROUPS = "experiment", "agent", "planner", "env", "model", "data"


def at_once(threads: int, device: str, jobs_on_a_gpu: int = 4) -> int:
    """How many jobs of so many threads keep this machine busy, and no busier."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/gpus").exists()
    return max(1, min(cores // threads, jobs_on_a_gpu if gpu else cores))


def folder_name(name: str) -> str:
    """The name of a run, which is that of its folder under runs/ too. Raises UserError."""
    is_text = isinstance(name, str | int | float)
    name = " ".join(str(name).split(" "))
    parts = name.split("/")
    if (
        not is_text
        or name in ("", "None")
        or len(name) > LONGEST_NAME
        or not name.isprintable()
        or {"", ".", ".."} & set(parts)
    ):
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
            or (equals and key != "run" and not _exists(argument))
        ):
            rest.append(argument)
            continue
        pattern = os.path.expanduser(value if equals and key == "run" else argument)
        if pattern.startswith("wandb:"):
            from rl_lab.core import registry

            folders.append(registry.fetch(pattern.removeprefix("wandb:")))
            continue
        found = [Path(pattern)] if _exists(pattern) else sorted(Path(p) for p in glob.glob(pattern))
        if not found:
            shown = pattern if len(pattern) <= 120 else f"{pattern[:120]}..."
            raise UserError(f"no run folder {shown or '(run= is empty)'}{_nearest_folder(pattern)}")
        folders += found
    return folders, rest


def _nearest_folder(pattern: str) -> str:
    parent = Path(pattern).parent
    names = [str(p) for p in parent.iterdir() if p.is_dir()] if _exists(str(parent)) and parent.is_dir() else []
    return nearest(pattern, names, listing=False)


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # longer than any name, or no name at all
        return False


def checked(overrides: list[str], root: str) -> list[str]:
    """What was typed for a new run, Hydra's flags first, as it wants them. Raises UserError.

    The flags are such as Hydra knows, and a group is chosen by a name.
    """
    parser = get_args_parser()
    parser.error = lambda words: _not_read(words, overrides)
    settings = [o for before, o in zip(["", *overrides], overrides, strict=False)
                if not o.startswith("-") and before not in WITH_VALUE]  # fmt: skip
    typed = [o for o in overrides if o not in settings] + settings
    flags = parser.parse_args(typed)
    for flag in REFUSED:
        if getattr(flags, flag):
            raise UserError(f"--{flag.replace('_', '-')} is not for this lab; --config-dir=<folder> adds YAML files of "
                            "yours to conf/")  # fmt: skip
    if flags.shell_completion:
        raise UserError(f'-sc comes right after {root}-lab: eval "$({root}-lab -sc install=bash)"')
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve is for --cfg=job, which prints the settings and runs nothing; leave it out")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(
            f"--config-dir={flags.config_dir} is not a folder; give it one that holds agent/, env/ and so on"
        )
    base = OmegaConf.load(conf_dir() / f"{root}.yaml")
    check_settings(flags.overrides, {*groups(root), "study/env", "study/agent"}, {*base, *groups(root)} - OPTIONAL)
    return typed


def check_settings(typed: Sequence[str], known: set[str], needed: Container[str] = ()) -> None:
    """Each can be read, takes away nothing that is `needed`, and chooses by name of the groups `known`."""
    if flags := [words for words in typed if words.startswith("-")]:
        raise UserError(f"no flag {flags[0].partition('=')[0]} here; settings are written setting=value")
    for override in map(parsed, typed):
        key = override.key_or_group
        if max(map(len, key.split("/"))) > LONGEST_KEY:
            raise UserError(f"no setting '{key[:40]}...'")
        if override.is_delete() and (key in needed or key.endswith("._target_")):
            another = f"choose another {key}=... instead" if is_group(key) else "leave it out"
            raise UserError(f"{override.input_line} takes away what every run needs; {another}")
        if (key in known or is_group(key)) and not override.is_delete():
            _check_choice(override, key in OPTIONAL)


def is_group(key: str) -> bool:
    folder = str(conf_dir() / key)
    return _exists(folder) and os.path.isdir(folder)


def parsed(setting: str) -> Override:
    """As Hydra reads it. Raises UserError."""
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


def _check_choice(override: Override, optional: bool) -> None:
    """A name, or several in brackets or for as many jobs; of an optional group null too. Raises UserError."""
    key, value = override.key_or_group, override._value
    if override.is_sweep_override() and not isinstance(value, ChoiceSweep):
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        names = [
            x.text if isinstance(x, QuotedString) else x for x in (choice if isinstance(choice, list) else [choice])
        ]
        is_name = [isinstance(name, str) and re.fullmatch(r"[^/$]+(/[^/$]+)*", name) for name in names]
        if not (names and all(is_name)) and not (optional and choice is None):
            known = sorted(path.stem for path in (conf_dir() / key).glob("*.yaml"))
            shown = override.input_line.partition("=")[2][:40]
            raise UserError(f"{key}={shown} is no choice{nearest(shown, known) or '; --help lists them'}")


def _not_read(words: str, overrides: list[str]) -> None:
    raise UserError(f"cannot read the command line: {words}; settings are written setting=value, and rl-lab --help "
                    "lists what there is")  # fmt: skip
