"""Signatures as schema: every setting of a config is held against the Python call it stands for.

A `_target_` node is a call, its keys are arguments. A key the signature lacks, a value of the wrong type or
outside the bounds written in the annotation, is a UserError that names the setting by its full path.
"""

import collections.abc
import importlib
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError, nearest


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:g}"


class Bound(NamedTuple):
    """Closed bounds on a number; `above` excludes the lower one."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, x: float) -> bool:
        return self.low <= x <= self.high and not (self.above and x == self.low)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"at most {_number(self.high)}"
        low = f"above {_number(self.low)}" if self.above else f"at least {_number(self.low)}"
        return low if self.high == math.inf else f"between {_number(self.low)} and {_number(self.high)}"


Count = Annotated[int, Bound(1), Bound(high=2**53)]
Envs = Annotated[int, Bound(1), Bound(high=2**20)]  # environments that are tensors
Objects = Annotated[int, Bound(1), Bound(high=16_384)]  # that are objects each, with memory of their own
Judged = Annotated[int, Bound(1), Bound(high=10_000_000)]  # episodes to judge by
Depth = Annotated[int, Bound(1), Bound(high=1_000)]  # of a plan that a model unrolls
Side = Annotated[int, Bound(1), Bound(high=4_001)]  # cells of a world
Seeds = Annotated[int, Bound(1), Bound(high=4_096)]  # side by side, each with a run folder of its own
Threads = Annotated[int, Bound(1), Bound(high=256)]  # of torch
Natural = Annotated[int, Bound(0), Bound(high=2**53)]
Positive = Annotated[float, Bound(0, above=True)]
NonNegative = Annotated[float, Bound(0)]
Unit = Annotated[float, Bound(0, 1)]  # a probability, a discount, a mixing weight

# Bounds for calls into other libraries, whose annotations carry none.
FOREIGN = {"lr": Positive, "learning_rate": Positive, "gamma": Unit, "eps": NonNegative, "batch_size": Count,
           "n_steps": Count, "n_epochs": Count, "verbose": Natural, "buffer_size": Count, "gradient_steps": int,
           "policy": str}  # fmt: skip
FILLED = {"": {"runs", "changes"}, "loop": {"run"},
          "tracker": {"name", "job_type", "config", "id"}}  # by those who call them  # fmt: skip
SAID = {"agent"}  # each loop says itself which agents are its own
LONGEST_NAME = 120  # characters of a run's name
RESERVED = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}
POSITION = {"params", "env", "mdp", "images"}  # filled by whoever makes a partial call, beside what no YAML could say
PLAIN = {int, float, bool, str, Path, list, tuple, dict, collections.abc.Sequence, collections.abc.Mapping, type(None)}
OURS = ("rl_lab.", "gen_lab.")


def check(node: DictConfig, path: str = "") -> None:
    """Holds the call at `node`, and every call inside it, against its signature; mends 1e6 to 1000000 in place.

    Raises UserError. The calls are imported for that: a config from a run
    folder goes through reading.refuse first.
    """
    if "_args_" in node:
        raise UserError(f"{_join(path, '_args_')} is impossible: settings are given by their names")
    for key in RESERVED.keys() & set(node):
        conform(_join(path, key), node[key], RESERVED[key])
    if "_target_" not in node:
        for key in node:
            _check_value(node[key], _join(path, key))
        return
    call = called(node, path)
    parameters = _parameters(call, path)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(call)
    filled = _filled(parameters, hints, path, bool(node.get("_partial_")))
    written = OmegaConf.to_container(node, resolve=False)
    for key in node:
        where = _join(path, key)
        if key in RESERVED:
            _check_value(node[key], where)
            continue
        if key not in parameters and not open_ended:
            settable = [_join(path, name) for name in parameters.keys() - filled]
            raise UserError(f"no setting '{where}'{nearest(where, settable)}")
        if key in filled:
            raise UserError(f"{where} is given by the lab itself, and what is set here would be ignored; leave it out")
        reference = re.fullmatch(r"\$\{(\w+)\}", str(written[key]))
        value = node[key]
        shown = reference[1] if reference else where
        mended = conform(shown, value, hints.get(key))
        _check_value(value, shown)
        if mended is not value and not reference:
            node[key] = mended
    for name in parameters.keys() - filled:
        if name not in node and _is_needed(parameters[name]):
            raise UserError(f"{_join(path, name)} is missing; give it a value: ++{_join(path, name)}=...")


def called(node: Mapping, path: str) -> Callable:
    """What is called at `node`. Raises UserError."""
    target, where = node["_target_"], _join(path, "_target_")
    if not isinstance(target, str) or not all(target.split(".")):
        raise UserError(f"{where}={_shown(target)} is impossible: it must be the dotted name of what is called, such "
                        "as rl_lab.networks.torsos.mlp")  # fmt: skip
    if not callable(call := locate(target)):
        raise UserError(f"{where}={target} is impossible: it cannot be called")
    return call


def _parameters(call: Callable, path: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):  # of some calls that are written in C
        raise UserError(f"{_join(path, '_target_')}={call.__module__}.{call.__qualname__} is impossible: it does not "
                        "say which settings it takes") from None  # fmt: skip


def _filled(parameters: Mapping[str, inspect.Parameter], hints: Mapping, path: str, partial: bool) -> set[str]:
    """The parameters that whoever makes the call fills: of a partial one what no YAML could say, and a seed."""
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and partial]
    return FILLED.get(path, set()) | {name for name in positional if parameters[name].default is inspect.Parameter.empty
                                      and (name in POSITION or name not in hints or _is_made(hints[name]))}  # fmt: skip


def _is_made(hint: Any) -> bool:
    return get_origin(hint) is tuple or hint is int or isinstance(hint, type) and hint not in PLAIN


def _is_needed(parameter: inspect.Parameter) -> bool:
    kinds = parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD
    return parameter.default is parameter.empty and parameter.kind in kinds


def _check_value(value: Any, path: str) -> None:
    """Hydra calls a `_target_` wherever it meets one: in lists too."""
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
    """Annotations by parameter; of what is not ours those that Python can read, and bounds by the name."""
    ours = f"{call.__module__}.".startswith(OURS)
    try:
        hints = get_type_hints(call.__init__ if inspect.isclass(call) else call, include_extras=True)
    except (NameError, TypeError, AttributeError):
        if ours:
            raise
        hints = {}
    return hints if ours else hints | FOREIGN


def _given(call: Callable) -> Any:
    """What a call gives: the class that it is, or what its signature says; Any where that is not known."""
    if inspect.isclass(call):
        return call
    return _hints(call).get("return", Any)


def _fits(given: Any, wanted: Any) -> bool:
    """Whether `given` is, or can stand for, what is `wanted`; in doubt it is."""
    if get_origin(wanted) in (Union, types.UnionType):
        return any(_fits(given, option) for option in get_args(wanted))
    given, wanted = get_origin(given) or given, get_origin(wanted) or wanted
    if (
        Any in (given, wanted)
        or not isinstance(given, type)
        or not isinstance(wanted, type)
        or (given is int and wanted is float)
    ):
        return True
    if not wanted.__module__.startswith(OURS):
        return issubclass(given, wanted)
    methods = [name for name in dir(wanted) if not name.startswith("_") and callable(getattr(wanted, name))]
    return all(hasattr(given, name) for name in methods)


def _is_call(node: Any) -> bool:
    return isinstance(node, Mapping | DictConfig) and "_target_" in node


def _check_call(path: str, node: Any, wanted: Any, partial: bool) -> None:
    """`node` is a call, and gives what is `wanted`, or, `partial`, a call that does. Raises UserError."""
    if not _is_call(node):
        group = path.replace(".", "/")
        by_name = f"; {group}=... chooses one by its name" if "/" in group and (conf_dir() / group).is_dir() else ""
        raise UserError(f"{path}={_shown(node)} is impossible: it must be a call, a mapping with _target_{by_name}")
    call = called(node, path)
    given, home = _given(call), str(call.__module__).partition(".")[0]
    later = conform(f"{path}._partial_", node.get("_partial_", False), bool)
    if later and not partial:
        raise UserError(f"{path}._partial_=true is impossible: the call is made at once; leave it out")
    if partial and not later:  # it must then give a call itself, such as a schedule
        filled = _filled(_parameters(call, path), _hints(call), path, partial=True)
        if filled or home in sys.stdlib_module_names or (isinstance(given, type) and "__call__" not in dir(given)):
            shown = f"{path}._partial_={_shown(node.get('_partial_'))}"
            raise UserError(f"{shown} is impossible: it must be true, since the lab completes the call")
        return
    if home in sys.stdlib_module_names or not (path in SAID or _fits(given, wanted)):
        name = getattr(wanted, "__name__", str(wanted))
        raise UserError(f"{path}._target_={node['_target_']} is impossible: it gives no {name}")


def conform(path: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it (an integral 1e6 becomes an int). Raises UserError where it cannot be.

    A function in an annotation is given the value and the path, and returns the value as it wants it.
    """
    if hint is None or hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = conform(path, value, arguments[0])
        for bound in arguments[1:]:
            if isinstance(bound, Bound) and isinstance(value, int | float) and not bound.holds(value):
                raise UserError(f"{path}={value} is impossible: it must be {bound}")
            if callable(bound):
                value = bound(value, path)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return value
        options = [a for a in arguments if a is not type(None)]
        return conform(path, value, options[0]) if len(options) == 1 else _any_of(path, value, options)
    if collections.abc.Callable in (origin, hint):
        _check_call(path, value, arguments[1] if arguments else Any, partial=True)
        return value
    is_mapping = collections.abc.Mapping in (origin, hint) or dict in (origin, hint)
    if (_is_call(value) and not is_mapping) or isinstance(hint, type) and hint not in PLAIN:
        _check_call(path, value, hint, partial=False)
        return value
    if origin is tuple and Ellipsis not in arguments:
        if not isinstance(value, list | tuple | ListConfig) or len(value) != len(arguments):
            raise UserError(f"{path}={_shown(value)} is impossible: it must be a list of {len(arguments)}")
        for i, (item, of) in enumerate(zip(value, arguments, strict=True)):
            conform(f"{path}[{i}]", item, of)
        return value
    if origin in (collections.abc.Sequence, list) or hint in (collections.abc.Sequence, list):
        if not isinstance(value, list | tuple | ListConfig):
            raise UserError(f"{path}={_shown(value)} is impossible: it must be a list, such as [64,64]")
        items = [conform(f"{path}[{i}]", item, arguments[0] if arguments else None) for i, item in enumerate(value)]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if is_mapping:
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
    wanted = {int: int, float: int | float, bool: bool, str: str, Path: str | Path}.get(hint)
    if wanted and (not isinstance(value, wanted) or (hint is not bool and isinstance(value, bool))):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
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
