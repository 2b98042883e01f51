"""What is typed beside a run folder: single settings of its run, changed as Hydra would."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.launching.composition import GROUPS, parsed
from rl_lab.core.launching.meant import refuse_through_reference, unknown
from rl_lab.core.parts import Parts, Typed
from rl_lab.core.reading import NAMES, plain, plain_references


def changed(cfg: DictConfig, changes: Sequence[str]) -> DictConfig:
    """`cfg` with `changes` (agent.gamma=0.9, +key=value, ~key) made to it, as Hydra reads them. Raises UserError.

    A setting that is not there is looked up in the signatures that `cfg` names, so those must have been checked before.
    """
    OmegaConf.set_struct(cfg, True)
    for override in map(parsed, changes):
        key, value = override.key_or_group, None if override.is_delete() else override.value()
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} is several values, and a run folder is one run; give one of them")
        if key.startswith("hydra") or override.package is not None:
            raise UserError(
                f"{override.input_line} is for a new run; a resumed run keeps its folder and takes "
                "settings such as loop.total_steps=100_000"
            )
        if key in GROUPS and key not in cfg:
            raise UserError(
                f"{override.input_line} is for a new run, and this one keeps what it was composed of; leave out that "
                "or run="
            )
        if key == "seed":
            raise UserError("seed=... is for a new run: a resumed one keeps the seed that it began with")
        if key == "tracker" and isinstance(value, str):
            with_names = cfg.get("tracker") or {}
            cfg["tracker"] = _chosen_tracker(value, with_names)
            continue
        _change(cfg, override, key, value)
    OmegaConf.set_struct(cfg, False)
    for value in _texts(OmegaConf.to_container(cfg, resolve=False)):
        plain_references(value, next((change for change in changes if value in change), " ".join(changes)))
    return cfg


def altered(before: Mapping[str, Any], after: Mapping[str, Any]) -> frozenset[str]:
    """The settings, agent.gamma among them, that differ between two configs."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return frozenset(key for key in old.keys() | new.keys() if key not in old or key not in new or old[key] != new[key])


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def typed(changes: Sequence[str], parts: Parts) -> Typed:
    """The modules and the classes that these `changes` name. Raises UserError."""
    targets: set[str] = set()
    modules: set[str] = set()
    for override in map(parsed, changes):
        if override.is_delete() or override.is_sweep_override():
            continue
        key = override.key_or_group.rpartition(".")[2]
        node = {key: override.value()}
        targets |= {*_targets(node)}
        modules |= {module for named in parts.imports.values() for module in named(node)}
    return Typed(frozenset(targets), frozenset(modules))


def _targets(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(value)
    if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
        yield target


def _chosen_tracker(name: str, before: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    known = {path.stem: path for path in (conf_dir() / "tracker").glob("*.yaml")}
    if name not in known:
        raise UserError(f"no choice '{name}' for tracker{nearest(f'tracker={name}', (f'tracker={n}' for n in known))}")
    kind = plain(known[name])
    return kind | {key: before[key] for key in NAMES if key in kind and key in before}


def _change(cfg: DictConfig, override: Override, key: str, value: Any) -> None:
    parent, _, last = key.replace("/", ".").rpartition(".")
    adds = override.is_add() or override.is_force_add()
    if key.startswith("loop.eval_env.") and OmegaConf.is_interpolation(cfg.loop, "eval_env"):
        cfg.loop.eval_env = {name: f"${{env.{name}}}" for name in map(str, cfg.env)}  # env, but for what is changed
    refuse_through_reference(cfg, key)
    try:
        there = OmegaConf.select(cfg, parent) if parent else cfg
        known = isinstance(there, DictConfig) and last in there
        if not known and not adds:
            raise UserError(unknown(cfg, key))
        if override.is_delete():
            OmegaConf.set_struct(there, False)
            del there[last]
            OmegaConf.set_struct(there, None)
        elif (
            known
            and isinstance(there._get_node(last), DictConfig)
            and not isinstance(value, dict)
            and not OmegaConf.is_interpolation(there, last)
        ):
            raise UserError(
                f"{key}={value} would make it another run; of this one single settings may be changed, such as "
                f"{key}.{next(iter(there[last]), 'x')}=..."
            )
        else:
            OmegaConf.update(cfg, key, value, merge=True, force_add=adds)
    except OmegaConfBaseException as error:
        raise UserError(f"cannot set {override.input_line}: {str(error).strip().splitlines()[0]}") from None


def _texts(node: Any) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)
