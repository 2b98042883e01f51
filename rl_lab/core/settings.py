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
from collections.abc import Callable, Mapping, Sequence
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
        if self.low == -math.inf:
            return f"at most {self.high:g}"
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if self.high == math.inf else f"between {self.low:g} and {self.high:g}"


Count = Annotated[int, Bound(1), Bound(high=2**53)]
Threads = Annotated[int, Bound(1), Bound(high=256)]  # of torch
Natural = Annotated[int, Bound(0), Bound(high=2**53)]
Positive = Annotated[float, Bound(0, above=True)]
NonNegative = Annotated[float, Bound(0)]
Unit = Annotated[float, Bound(0, 1)]  # a probability, a discount, a mixing weight

# Bounds for calls into other libraries, whose annotations carry none.
FOREIGN = {"lr": Positive, "learning_rate": Positive, "gamma": Unit, "eps": NonNegative, "batch_size": Count}
ADDED = {"": {"runs", "changes"}, "loop": {"run"}, "tracker": {"name", "job_type", "config"}}  # by those who call them
RESERVED = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
OURS = ("rl_lab.", "gen_lab.")


def check(node: DictConfig, path: str = "") -> None:
    """Holds the call at `node`, and every call inside it, against its signature; mends 1e6 to 1000000 in place.

    Raises UserError. The calls are imported for that: a config from a run
    folder goes through reading.refuse first.
    """
    target = node.get("_target_")
    if target is None:
        for key in node:
            _check_value(node[key], _join(path, key))
        return
    call = locate(target)
    parameters = inspect.signature(call).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(call)
    written = OmegaConf.to_container(node, resolve=False)
    for key in node:
        where = _join(path, key)
        if key in RESERVED:
            _check_value(node[key], where)
            continue
        if key not in parameters and not open_ended:
            raise UserError(f"no setting '{where}'{nearest(where, (_join(path, p) for p in parameters))}")
        reference = re.fullmatch(r"\$\{(\w+)\}", str(written[key]))
        value = node[key]
        _check_value(value, reference[1] if reference else where)
        if not isinstance(value, DictConfig) or "_target_" not in value:
            mended = conform(where, value, hints.get(key))
            if mended is not value and not reference:
                node[key] = mended
    for name in parameters if "_args_" not in node else ():
        if (
            name not in node
            and name not in ADDED.get(path, ())
            and _is_needed(parameters[name], bool(node.get("_partial_")))
        ):
            raise UserError(f"{_join(path, name)} is missing; give it a value: +{_join(path, name)}=...")


def _is_needed(parameter: inspect.Parameter, partial: bool) -> bool:
    """Whether a config must give it: whoever completes a partial call adds what comes before the *."""
    kinds = {parameter.KEYWORD_ONLY} if partial else {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    return parameter.default is parameter.empty and parameter.kind in kinds


def _check_value(value: Any, path: str) -> None:
    """Hydra calls a `_target_` wherever it meets one: in lists and in `_args_` too."""
    if isinstance(value, DictConfig):
        check(value, path)
    elif isinstance(value, ListConfig):
        for i, item in enumerate(value):
            _check_value(item, f"{path}[{i}]")


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
        return conform(path, value, options[0]) if len(options) == 1 else _any_of(path, value, options)
    if origin is collections.abc.Callable and not (isinstance(value, Mapping | DictConfig) and "_target_" in value):
        raise UserError(f"{path}={_shown(value)} is impossible: it must be a call, a mapping with _target_")
    if origin in (collections.abc.Sequence, list) or hint in (collections.abc.Sequence, list):
        if not isinstance(value, list | tuple | ListConfig):
            raise UserError(f"{path}={_shown(value)} is impossible: it must be a list, such as [64,64]")
        items = [conform(f"{path}[{i}]", item, arguments[0] if arguments else None) for i, item in enumerate(value)]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if origin in (collections.abc.Mapping, dict) or hint in (collections.abc.Mapping, dict):
        if not isinstance(value, Mapping | DictConfig):
            raise UserError(f"{path}={_shown(value)} is impossible: it must be a mapping, such as {{name: 1}}")
        for key in value if len(arguments) == 2 else ():
            conform(f"{path}.{key}", value[key], arguments[1])
        return value
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
        raise UserError(f"{path}={_shown(value)} is impossible: it must be {words[hint]}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path}=nan is impossible: it must be a number")
    return value


def _any_of(path: str, value: Any, options: Sequence[Any]) -> Any:
    """As the first of the options that takes it. Raises UserError, of the first, where none does."""
    faults = []
    for option in options:
        try:
            return conform(path, value, option)
        except UserError as fault:
            faults.append(fault)
    raise faults[0]


def _shown(value: Any) -> str:
    """As it would be typed, in one line."""
    text = "null" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
