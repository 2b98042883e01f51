"""Configs out of conf/, as Hydra composes them; Hydra is imported only where one is."""

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rl_lab.core import conf_dir, imports, permissions
from rl_lab.core.errors import UserError, pasted
from rl_lab.core.parts import Parts
from rl_lab.core.settings import Natural, conform, folder_name
from rl_lab.core.threads import cores

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

OmegaConf.register_new_resolver("composed", lambda *, _root_: name_of(_root_))
OmegaConf.register_new_resolver("folder_name", lambda name: folder_name(name))
OmegaConf.register_new_resolver("natural", lambda seed: conform("seed", seed, Natural))
OmegaConf.register_new_resolver("at_once", lambda threads, device: at_once(threads, device))
GROUPS = "experiment", "agent", "planner", "env", "teacher", "model", "data"
WHO = "planner", "agent", "model"
WANTED = "preferences", "demonstrated", "reward_design"  # loops in which an agent learns by another reward
WORLDS = {"gym": "id", "toy_text": "id", "atari": "game"}  # an env= that stands for any of them, and what says which


def name_of(cfg: DictConfig) -> str:
    """Of a run without a name of its own, as Hydra composed it: the experiment's, as long as no other agent or world is
    chosen beside it; otherwise who learns or plans, and where: ppo_mlp_lunar_lander, ppo_four_rooms_preferences. Where
    an experiment of another agent has that name, the network is said too: dqn_linear_cartpole.
    """
    from hydra.core.hydra_config import HydraConfig

    chosen = cfg.get("hydra") or HydraConfig.get()
    choices = {group: name for group, name in chosen.runtime.choices.items() if name not in (None, "null")}
    typed = {setting.lstrip("+").partition("=")[0] for setting in chosen.overrides.task}
    own = [group for group in GROUPS[1:] if f"{group}._target_" in typed]
    if choices.get("experiment") and not own and not typed & ({*GROUPS[1:], "env.id", "env.game"} - {"teacher"}):
        return str(choices["experiment"])
    choices |= {group: snake(str(cfg[group]["_target_"]).rpartition(".")[2]) for group in own if group in cfg}
    who = next((choices[group] for group in WHO if group in choices), None)
    where = choices.get("env", choices.get("data"))
    of_world = next((key for key in ("id", "game") if f"env.{key}" in typed), WORLDS.get(str(where)))
    where = snake(cfg.env[of_world]) if of_world else where
    name = f"{where}_{choices['loop']}" if choices.get("loop") in WANTED else str(where)
    if _is_of_another(f"{who}_{name}", choices):
        who = f"{who}_{choices.get('agent/network', 'plain')}"
    return f"{who}_{name}"


def _is_of_another(name: str, choices: Mapping[str, str]) -> bool:
    """Whether an experiment of this name has another agent, planner or model: dqn_cartpole is of agent=dqn_mlp."""
    path = conf_dir() / f"experiment/{name}.yaml"
    settings: Any = OmegaConf.load(path) if path.is_file() else {}
    entries = settings.get("defaults", [])
    own = {str(key): value for entry in entries if isinstance(entry, DictConfig) for key, value in entry.items()}
    return any(own.get(f"override /{group}", choices.get(group)) != choices.get(group) for group in WHO)


def world_key(name: str, env: Mapping[str, Any]) -> str | None:
    """What says which world it is, id or game, where the name of its YAML does not: env=gym, env=cartpole env.id=..."""
    if (key := next((key for key in ("id", "game") if key in env), None)) is None:
        return None
    path = conf_dir() / f"env/{name}.yaml"
    own: Any = OmegaConf.load(path) if path.is_file() else {}
    return key if name in WORLDS or own.get(key) != env[key] else None


def snake(id: str) -> str:
    """lunar_lander for LunarLander-v3, min_atar_breakout for MinAtar/Breakout-v1."""
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])|\W+", "_", re.sub(r"^.*:|-v\d+$", "", str(id))).lower()


def at_once(threads: int | str, device: str, jobs_on_a_gpu: int = 4) -> int:
    """How many jobs of this many threads keep this machine busy; with threads=auto each has one."""
    busy = 1 if threads == "auto" else int(threads)
    gpu = device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/proc/driver/nvidia/gpus").exists()
    return max(1, min(cores() // busy, jobs_on_a_gpu if gpu else cores()))


@cache
def base(root: str) -> DictConfig:
    """conf/<root>.yaml by itself, to be read only."""
    settings: Any = OmegaConf.load(conf_dir() / f"{root}.yaml")
    return DictConfig(settings, flags={"readonly": True})


def groups(root: str) -> list[str]:
    """The config groups that the root's defaults choose from."""
    chosen = (choice for choice in base(root).defaults if not isinstance(choice, str))
    return [group for choice in chosen for group in choice if " " not in group]


def parts_of(prog: str) -> Parts:
    """What the lab of this program declares: rl-lab's is rl_lab/parts.py."""
    parts: Parts = importlib.import_module(f"{prog.replace('-', '_')}.parts").PARTS
    return parts


def find_wanted(cfg: DictConfig, parts: Parts) -> None:
    """What was typed just now may lie in the working directory. Raises UserError."""
    imports.place(imports.local(want.module for want in permissions.of(as_dict(cfg), parts)))


def loops(parts: Parts) -> list[str]:
    """Those of conf/loop that are a lab's own."""
    return sorted(path.stem for path in (conf_dir() / "loop").glob("*.yaml") if _target_of(path) in parts.allowed)


def _target_of(path: Path) -> str:
    """What a YAML calls, or what the first of its defaults does."""
    node: Any = OmegaConf.load(path)
    return str(node["_target_"]) if "_target_" in node else _target_of(path.with_name(f"{node.defaults[0]}.yaml"))


def names(root: str, group: str) -> list[str]:
    """The choices of a group, without experiments, studies and loops of the other lab."""
    known = {*groups(root)}
    if group == "loop":
        return loops(parts_of(f"{root}-lab"))
    paths, chosen = sorted((conf_dir() / group).glob("*.yaml")), {"experiment": _chosen, "study": _swept}.get(group)
    return [path.stem for path in paths if chosen is None or chosen(path) <= known]


def _chosen(path: Path) -> set[str]:
    """The groups that an experiment chooses from, with those of the one that it rests on."""
    return {group for text in texts(path) for group in re.findall(r"^\s*- override /(\w+)", text, re.MULTILINE)}


def texts(path: Path) -> list[str]:
    """Of an experiment's YAML, and of the one that it rests on."""
    base = re.search(r"^defaults: \[(\w+), _self_\]", text := path.read_text(), re.MULTILINE)
    return [text, *(texts(path.with_name(f"{base[1]}.yaml")) if base else [])]


def _swept(path: Path) -> set[str]:
    """The groups that a study's jobs choose from, or the first experiment among them does."""
    if experiment := re.search(r"\bexperiment: (\w+)", text := path.read_text()):
        return _chosen(conf_dir() / f"experiment/{experiment[1]}.yaml")
    return {key for key in re.findall(r"^ +(\w+):", text, re.MULTILINE) if is_group(key)}


def is_group(key: str) -> bool:
    return bool(key) and os.path.isdir(conf_dir() / key)


def own_folder(words: Sequence[str]) -> Path | None:
    """That of --config-dir among what was typed."""
    for flag, following in zip(words, [*words[1:], ""], strict=True):
        if (found := re.fullmatch(r"(?:--config-dir|-cd)(=.*)?", flag)) and (path := (found[1] or "")[1:] or following):
            return Path(path).resolve()
    return None


def searched(folder: Path | None) -> list[str]:
    """The setting by which Hydra looks for YAML files there too."""
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"] if folder else []


def compose(source: Path, config_name: str, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """`with_hydra`: with Hydra's own settings, under hydra."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(source), version_base="1.3"):
        return hydra.compose(config_name, overrides, return_hydra_config=with_hydra)


def composed_with_choices(source: Path, config_name: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """And which name was chosen of each group, agent/network=mlp among them."""
    cfg = compose(source, config_name, overrides, with_hydra=True)
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items() if choice is not None}
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    return cfg, choices


def key_of(setting: str) -> str:
    """agent.gamma of ++agent.gamma=0.9."""
    return setting.lstrip("+~").partition("=")[0]


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


def quoted(text: str) -> str:
    """The text as a value that Hydra reads as it is."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parsed(setting: str) -> "Override":
    """As Hydra reads it. Raises UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(setting)
    except HydraException as error:
        reason = str(error).strip().splitlines()[0].partition(" expecting ")[0]
        key, equals, value = setting.partition("=")
        if equals and (key != key.strip() or value != value.strip()):
            raise UserError(
                f"a setting is written without spaces around the =: {key.strip()}={value.strip()}"
            ) from None
        if (
            reason.startswith(("LexerNoViableAlt", "token recognition", "mismatched input '='"))
            and re.fullmatch(r"[~+]*[\w./@]+", key)
            and equals
        ):
            shown, advice = " ".join(setting.split())[:80], pasted(f"{key}={quoted(value[:80])}")
            if re.search(r"\s[~+]*[\w./@]+=", value):
                raise UserError(
                    f"these are several settings in one: {shown}; give each as an argument of its own, or one value in "
                    f"quotes: {pasted(f'{key}={quoted(value[:80])}')}"
                ) from None
            reason = f"{shown}; a value with such signs is written in quotes: {advice}"
        elif equals:
            reason = f"{' '.join(setting.split())[:80]} ({reason}); a list is written [1,2], and a text in quotes"
        raise UserError(f"cannot read the setting: {reason}") from None
