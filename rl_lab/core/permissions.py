"""What a config would import beside the parts of the labs, and what a person types to allow it."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rl_lab.core.imports import OURS
from rl_lab.core.parts import Parts

# Nothing of these is allowed by typing it: a library's call could do anything.
LIBRARIES = {"PIL", "ale_py", "antlr4", "av", "cloudpickle", "dill", "gymnasium", "hydra", "joblib",
             "matplotlib", "numba", "numpy", "omegaconf", "pandas", "scipy", "sklearn", "stable_baselines3",
             "torch", "wandb", "yaml"}  # fmt: skip


class Want(NamedTuple):
    """A module that a config would import, beside the labs' own."""

    module: str
    name: str  # the `_target_`, or the module itself
    path: str  # of the call whose setting names it
    setting: str  # by which it is typed
    is_call: bool


def of(config: Mapping[str, Any], parts: Parts) -> list[Want]:
    """Each once, where it is named first."""
    found = (want for key in in_order(config) for want in _wants(config[key], str(key), parts))
    return list({(want.name, want.is_call): want for want in reversed([*found])}.values())[::-1]


def _wants(node: Any, path: str, parts: Parts) -> Iterator[Want]:
    if isinstance(node, list):
        for i, value in enumerate(node):
            yield from _wants(value, f"{path}[{i}]", parts)
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    if isinstance(target, str) and target in parts.imports:
        for module in parts.imports[target](node):
            yield Want(module, module, path, "imports" if "imports" in node else "id", False)
    elif isinstance(target, str) and target not in parts.allowed and _is_dotted(target):
        yield Want(target.rpartition(".")[0], target, path, "_target_", True)
    for key, value in node.items():
        yield from _wants(value, f"{path}.{key}", parts)


def words(found: list[Want]) -> list[str]:
    """What is typed to allow them."""
    typed = {}
    for want in found:
        same = [w.name for w in found if (w.path, w.setting) == (want.path, want.setting)]
        typed[want.path, want.setting] = f"{want.path}.{want.setting}=" + (
            f"[{','.join(same)}]" if want.setting == "imports" else want.name if want.is_call else f"{want.name}:..."
        )
    return list(typed.values())


def may_be(target: Any, path: str) -> bool:
    """Whether a person may allow this call by typing it: no library's that is known to the labs, or to Python."""
    return (
        isinstance(target, str)
        and _is_dotted(target)
        and top(target) not in sys.stdlib_module_names | LIBRARIES | OURS
        and "[" not in path
        and path != "loop"
    )


def _is_dotted(name: str) -> bool:
    return bool(re.fullmatch(r"(?!__)[A-Za-z_]\w*(\.(?!__)[A-Za-z_]\w*)+", name))


def top(name: str) -> str:
    return name.partition(".")[0]


def in_order(config: Mapping[str, Any]) -> list[str]:
    """Its keys but the tracker, the loop last: it refers to all else."""
    return sorted(config.keys() - {"tracker"}, key=lambda key: (key == "loop", str(key)))
