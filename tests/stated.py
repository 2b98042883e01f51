"""Calls with the settings of their YAML in conf/, for tests that call from Python what a user calls through it."""

from functools import partial
from typing import Any

from omegaconf import OmegaConf

from rl_lab.core import calls, conf_dir


def stated(name: str, part: str | None = None, **changes: Any) -> partial:
    """The call of conf/<name>.yaml, such as data/digits, or of a part of it; a test gives what is left or differs.

    Settings that are themselves calls, or that refer to other groups, are left to the test.
    """
    node = OmegaConf.load(conf_dir() / f"{name}.yaml")
    known = OmegaConf.to_container(node[part] if part else node)
    known = {k: v for k, v in known.items() if k not in ("defaults", "_partial_") and v != "???"}
    plain: dict[str, Any] = {k: v for k, v in known.items() if not isinstance(v, dict) and not str(v).startswith("${")}
    return partial(calls.locate(plain.pop("_target_")), **plain | changes)
