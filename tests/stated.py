"""Calls with the settings of their YAML in conf/, for tests that call from Python what a user calls through it."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from rl_lab.core import calls, conf_dir


def written(name: str) -> Any:
    """A DictConfig of conf/<name>.yaml, such as agent/dqn_mlp, on what its defaults name in its own group."""
    node: Any = OmegaConf.load(conf_dir() / f"{name}.yaml")
    group, found = name.rpartition("/")[0], OmegaConf.create()
    for base in node.pop("defaults", []):
        for key, choice in base.items() if OmegaConf.is_dict(base) else [("", base)]:
            key, (choice, _, place) = key.removeprefix("override "), str(choice).partition("@")
            if choice == "_self_" or key.startswith("/"):
                continue
            path = "/".join(filter(None, (group, key, choice)))
            home = re.match(r"# @package \w+\.(\S+)", (conf_dir() / f"{path}.yaml").read_text())
            if not (key or place):
                found = OmegaConf.merge(found, written(path))
            else:
                place = place or (home[1] if home else key)
                OmegaConf.update(found, place, written(path), merge=bool(home), force_add=True)
    return OmegaConf.merge(found, node)


def stated(name: str, part: str = "", **changes: Any) -> Callable[..., Any]:
    """The call of conf/<name>.yaml, such as data/digits, or of a part of it; a test gives what is left or differs.

    Settings that refer to other groups are left to the test, but for the device, which is the CPU.
    """
    node = written(name)
    root = OmegaConf.create({name.partition("/")[0]: node, "device": "cpu"})
    return partial(_made, OmegaConf.select(root, f"{name.partition('/')[0]}.{part}".rstrip(".")), **changes)


def _made(node: DictConfig, *first: Any, **given: Any) -> Any:
    call = calls.locate(node["_target_"])
    given |= dict(zip(inspect.signature(call).parameters, first, strict=False))
    for key in map(str, node):
        if key not in given and not re.fullmatch(r"_\w+_", key) and not OmegaConf.is_missing(node, key):
            try:
                given[key] = _value(node[key])
            except InterpolationKeyError:
                continue
    return call(**given)


def _value(value: Any) -> Any:
    if calls.is_call(value):
        return partial(_made, value) if value.get("_partial_") else _made(value)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
