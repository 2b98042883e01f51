"""Signatures as schema: every setting of a config is held against the Python call it stands for.

A `_target_` node is a call, its keys are arguments. A key the signature lacks, a value of the wrong type or
outside the bounds written in the annotation, is a UserError that names the setting by its full path.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf

from rl_lab.core import calls, conf_dir
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Count, Natural, NonNegative, Positive, Unit, conform

RESERVED = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}
# Bounds for calls into other libraries, whose annotations carry none.
FOREIGN = {
    **dict.fromkeys(("lr", "learning_rate"), Positive),
    **dict.fromkeys(("batch_size", "n_steps", "n_epochs", "buffer_size"), Count),
    "gamma": Unit,
    "eps": NonNegative,
    "verbose": Natural,
    "gradient_steps": int,
    "policy": str,
}
MOST = 3  # choices that a hint names


class NoSuchSetting(UserError):
    """`key` is no argument of the call that it stands beside."""

    def __init__(self, key: str, meant: str):
        super().__init__(f"no setting '{key}'{meant}")
        self.key = key


class Lacking(UserError):
    """Nothing gives a value to the argument `key`, which has no default."""

    def __init__(self, key: str):
        super().__init__(f"{key} is missing; give it a value: ++{key}=...")
        self.key = key


@contextmanager
def of_folder(folder: Path, typed: Collection[str] = ()) -> Iterator[None]:
    """Within, what does not fit is said of the run folder whose config is checked, but for the settings that were
    `typed` now.
    """
    try:
        yield
    except NoSuchSetting as error:
        raise UserError(
            f"{folder}/config.yaml has {error.key}, and there is no such setting; ~{error.key} leaves it out"
        ) from None
    except Lacking as error:
        raise UserError(f"{folder}/config.yaml lacks {error.key}; give it a value: ++{error.key}=...") from None
    except UserError as error:
        about = re.match(r"([\w.]+)(?:=| refers)", text := str(error))
        if not about or "is refused" in text or any(about[1] == key or about[1].endswith(f".{key}") for key in typed):
            raise
        raise UserError(f"{folder}/config.yaml: {text}") from error


def check(node: DictConfig, path: str = "") -> None:
    """Holds the call at `node`, and every call inside it, against its signature; mends 1e6 to 1000000 in place.

    Raises UserError. The calls are imported for that: a config from a run
    folder goes through reading.refuse first.
    """
    if "_args_" in node:
        raise UserError(f"{calls.join(path, '_args_')} is refused: settings are given by their names")
    for key in RESERVED.keys() & set(node):
        conform(calls.join(path, key), node[key], RESERVED[key])
    if "_target_" not in node:
        for name in node:
            _check_value(node[name], calls.join(path, name))
        return
    call = calls.called(node, path)
    parameters = calls.parameters(call, path)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(call)
    filled = calls.filled(parameters, hints, path, bool(node.get("_partial_")))
    written: Any = OmegaConf.to_container(node, resolve=False)
    for name in node:
        key, where = str(name), calls.join(path, name)
        if key in RESERVED:
            _check_value(node[name], where)
            continue
        if key not in parameters and not open_ended:
            settable = [calls.join(path, name) for name in parameters.keys() - filled]
            raise NoSuchSetting(where, of_another(where) or nearest(where, settable))
        if key in filled:
            raise UserError(f"{where} is set by the lab itself; leave it out")
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(written[name]))
        value = node[name]
        shown = reference[1] if reference else where
        mended = conform(shown, value, hints.get(key))
        _check_value(value if reference else mended, shown)
        if mended is not value and not reference:
            node[name] = mended
    for key in parameters.keys() - filled:
        if key not in node and _is_needed(parameters[key]):
            raise Lacking(calls.join(path, key))


def of_another(key: str, named: str = "it") -> str:
    """`; env=gym has it` for env.id, where a file in conf/env has such a setting; "" where none has. Files that name a
    `_target_` come before those that build on them.
    """
    group, _, rest = key.partition(".")
    files = sorted((conf_dir() / group).glob("*.yaml")) if rest else ()
    having = {path.stem: node for path in files if _has(node := OmegaConf.load(path), rest)}
    names = [name for name, node in having.items() if "_target_" in node] or list(having)
    if group == "loop":
        return "; the chosen loop takes no such setting; leave it out" if names else ""
    choices = ", ".join(f"{group}={name}" for name in names[:MOST]) + " and others" * (len(names) > MOST)
    return f"; {named} is a setting of {choices}" if names else ""


def _has(node: Any, key: str) -> bool:
    """References are not followed: a file by itself does not hold what they name."""
    found: Any = OmegaConf.to_container(node)
    for name in key.split("."):
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    return True


def _hints(call: calls.Call) -> dict[str, Any]:
    """Annotations by parameter; where none of them carries bounds, those of FOREIGN by the name."""
    found = calls.annotations(call)
    return found if any(map(_is_bounded, found.values())) else found | FOREIGN


def _is_bounded(hint: Any) -> bool:
    return get_origin(hint) is Annotated or any(map(_is_bounded, get_args(hint)))


def _is_needed(parameter: inspect.Parameter) -> bool:
    kinds = parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD
    return parameter.default is parameter.empty and parameter.kind in kinds


def _check_value(value: Any, path: str) -> None:
    """Hydra calls a `_target_` wherever it meets one: in lists too."""
    if isinstance(value, DictConfig):
        check(value, path)
    elif isinstance(value, ListConfig | list):
        for i, item in enumerate(value):
            _check_value(item, f"{path}[{i}]")
