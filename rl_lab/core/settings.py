"""Signatures as schema: every setting of a config is held against the Python call it stands for.

A `_target_` node is a call, its keys are arguments. A key the signature lacks, a value of the wrong type or
outside the bounds written in the annotation, is a UserError that names the setting by its full path.
"""

import collections.abc
import importlib
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from rl_lab.core.errors import UserError, nearest


class Bound(NamedTuple):
    """Closed bounds on a number; `above` excludes the lower one."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, x: float) -> bool:
        return self.low <= x <= self.high and not (self.above and x == self.low)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if self.high == math.inf else f"between {self.low:g} and {self.high:g}"


Count = Annotated[int, Bound(1)]
Natural = Annotated[int, Bound(0)]
Positive = Annotated[float, Bound(0, above=True)]
NonNegative = Annotated[float, Bound(0)]
Unit = Annotated[float, Bound(0, 1)]  # a probability, a discount, a mixing weight

# Bounds for calls into other libraries, whose annotations carry none.
FOREIGN = {"lr": Positive, "learning_rate": Positive, "gamma": Unit, "eps": NonNegative, "batch_size": Count}
RESERVED = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
OURS = ("rl_lab.", "gen_lab.")
# Of ours, what starts runs or writes files.
OUTWARD = ("rl_lab.core.", "rl_lab.__main__.", "rl_lab.evaluate.", "rl_lab.render.", "rl_lab.looking.",
           "rl_lab.record.", "rl_lab.stage.", "rl_lab.scenes.", "rl_lab.watch.", "rl_lab.keyboard.",
           "gen_lab.__main__.", "gen_lab.commands.", "gen_lab.comparison.", "gen_lab.data.cache.", "gen_lab.latents.",
           "gen_lab.loading.", "gen_lab.pictures.")  # fmt: skip


def check(node: DictConfig, path: str = "", trusted: bool = True) -> None:
    """Holds the call at `node`, and every call inside it, against its signature; mends 1e6 to 1000000 in place.

    With `trusted=False` (a config read back from a run folder) only what the labs themselves, torch's layers and
    optimizers, and Stable-Baselines3's algorithms define may be called. Raises UserError.
    """
    target = node.get("_target_")
    if target is None:
        for key in node:
            _check_value(node[key], _join(path, key), trusted)
        return
    if not trusted and not allowed(target):
        raise UserError(f"{path}._target_={target} is refused: a run folder may call only rl_lab, gen_lab, torch.nn, "
                        "torch.optim and stable_baselines3")  # fmt: skip
    call = locate(target)
    parameters = inspect.signature(call).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(call)
    written = OmegaConf.to_container(node, resolve=False)
    for key in node:
        where = _join(path, key)
        if key in RESERVED:
            _check_value(node[key], where, trusted)
            continue
        if key not in parameters and not open_ended:
            raise UserError(f"no setting '{where}'{nearest(where, (_join(path, p) for p in parameters))}")
        reference = re.fullmatch(r"\$\{(\w+)\}", str(written[key]))
        value = node[key]
        _check_value(value, reference[1] if reference else where, trusted)
        if not isinstance(value, DictConfig):
            mended = conform(where, value, hints.get(key))
            if mended is not value and not reference:
                node[key] = mended


def _check_value(value: Any, path: str, trusted: bool) -> None:
    """Hydra calls a `_target_` wherever it meets one: in lists and in `_args_` too."""
    if isinstance(value, DictConfig):
        check(value, path, trusted)
    elif isinstance(value, ListConfig):
        for i, item in enumerate(value):
            _check_value(item, f"{path}[{i}]", trusted)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def locate(target: str) -> Callable:
    """The object at a dotted path. Raises UserError where there is none."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise UserError(f"{target} needs {error.name}; pip install {error.name}") from error
            continue
        try:
            for name in parts[cut:]:
                found = getattr(found, name)
        except AttributeError:
            raise UserError(f"no {target}{nearest(name, dir(found))}") from None
        return found
    raise UserError(f"no {target}: no module {parts[0]}")


def allowed(target: str) -> bool:
    """Whether a config from a stranger may call `target`: judged by where it is at home, not by the path alone."""
    if not target.startswith((*OURS, "torch.optim.", "torch.nn.", "stable_baselines3.")):
        return False
    found = locate(target)
    home = f"{getattr(found, '__module__', '')}."
    if home.startswith(OURS):
        return home == "rl_lab.core.tracking." or not home.startswith(OUTWARD)
    bases = {base.__name__ for base in found.__mro__} if inspect.isclass(found) else set()
    return home.startswith(("torch.", "stable_baselines3.")) and bool(bases & {"Module", "Optimizer", "BaseAlgorithm"})


def _hints(call: Callable) -> dict[str, Any]:
    if not call.__module__.startswith(OURS):
        return FOREIGN
    return get_type_hints(call.__init__ if inspect.isclass(call) else call, include_extras=True)


def conform(path: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it (an integral 1e6 becomes an int). Raises UserError where it cannot be."""
    if hint is None or hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = conform(path, value, arguments[0])
        for bound in arguments[1:]:
            if isinstance(bound, Bound) and isinstance(value, int | float) and not bound.holds(value):
                raise UserError(f"{path}={value} is impossible: it must be {bound}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return value
        options = [a for a in arguments if a is not type(None)]
        return conform(path, value, options[0]) if len(options) == 1 else value
    if origin is collections.abc.Callable and not isinstance(value, Mapping | DictConfig):
        raise UserError(f"{path}={value} is impossible: it must be a call, a mapping with _target_")
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{path}={value} is not a choice{nearest(value, arguments)}")
        return value
    if hint is float and isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    wanted = {int: int, float: int | float, bool: bool, str: str}.get(hint)
    if wanted and (not isinstance(value, wanted) or (hint is not bool and isinstance(value, bool))):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise UserError(f"{path}={'null' if value is None else value} is impossible: it must be {words[hint]}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path}=nan is impossible: it must be a number")
    return value
