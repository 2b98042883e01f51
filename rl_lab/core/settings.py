"""Types of settings, with their bounds, and values that conform to them."""

import collections.abc
import difflib
import glob
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig

from rl_lab.core import calls, conf_dir, files
from rl_lab.core.errors import UserError, article, nearest


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
        if self.high == math.inf:
            return low
        high = _number(self.high)
        return f"{low} and at most {high}" if self.above else f"between {_number(self.low)} and {high}"


Count = Annotated[int, Bound(1), Bound(high=2**53)]
Envs = Annotated[int, Bound(1), Bound(high=2**20)]  # environments that are tensors
Objects = Annotated[int, Bound(1), Bound(high=16_384)]  # that are objects each, with memory of their own
Judged = Annotated[int, Bound(1), Bound(high=10_000_000)]  # episodes of an evaluation
Depth = Annotated[int, Bound(1), Bound(high=1_000)]  # of a plan that a model unrolls
PixelSide = Annotated[int, Bound(8), Bound(high=1_024)]  # of a frame
Side = Annotated[int, Bound(1), Bound(high=4_001)]  # cells of a world
Seeds = Annotated[int, Bound(1), Bound(high=4_096)]  # side by side, each with a run folder of its own
Threads = Annotated[int, Bound(1), Bound(high=256)]  # of torch
Precision = Literal["auto", "fp32", "bf16"]  # of training
Compile = Literal["none", "graphs"]  # of acting and learning
Natural = Annotated[int, Bound(0), Bound(high=2**53)]
Limit = Annotated[float, Bound(0, above=True)]  # infinite: none


def finite(value: float, path: str) -> float:
    """Raises UserError."""
    if not math.isfinite(value):
        raise UserError(f"{path}={value} must be finite")
    return value


Positive = Annotated[float, Bound(0, above=True), finite]
NonNegative = Annotated[float, Bound(0), finite]
Size = Annotated[float, Bound(0)]  # infinite: all there is
Unit = Annotated[float, Bound(0, 1)]  # a probability, a discount, a mixing weight


def placed(value: str, path: str) -> str:
    """The whole path of what a run reads, so that its folder can be used from any working directory; a pattern stands
    for what fits it. Raises UserError where several do.
    """
    place = str(files.home(value))
    found = [place] if os.path.exists(place) else sorted(glob.glob(place))
    if len(found) > 1:
        raise UserError(f"{path}={value} fits {len(found)} places; name one of them, such as {path}={found[0]}")
    return os.path.abspath(found[0] if found else place)


Place = Annotated[str, placed]  # a file or a folder that a run reads

FEW, ALIKE = 4, 0.8  # so few choices are all named, unless one is so much alike
LONGEST_NAME = 120  # characters of a run's name
CHOSEN_BY_LOOP = {"agent"}  # each loop checks itself which agents it can train


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
                raise UserError(f"{path}={calls.one_line(value)} must be {bound}")
            if callable(bound):
                value = bound(value, path)
        return value
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return value
        options = [a for a in arguments if a is not type(None)]
        return conform(path, value, options[0]) if len(options) == 1 else _any_of(path, value, options)
    if collections.abc.Callable in (origin, hint):
        _check_call(path, value, arguments[1] if arguments else Any, partial=True)
        return value
    is_mapping = collections.abc.Mapping in (origin, hint) or dict in (origin, hint)
    if (calls.is_call(value) and not is_mapping) or isinstance(hint, type) and hint not in calls.PLAIN:
        _check_call(path, value, hint, partial=False)
        return value
    if origin is tuple and Ellipsis not in arguments:
        if not isinstance(value, list | tuple | ListConfig) or len(value) != len(arguments):
            raise UserError(f"{path}={calls.one_line(value)} must be a list of {len(arguments)}")
        for i, (item, of) in enumerate(zip(value, arguments, strict=True)):
            conform(f"{path}[{i}]", item, of)
        return value
    if origin in (collections.abc.Sequence, list) or hint in (collections.abc.Sequence, list):
        if not isinstance(value, list | tuple | ListConfig):
            raise UserError(f"{path}={calls.one_line(value)} must be a list, such as [64,64]")
        items = [conform(f"{path}[{i}]", item, arguments[0] if arguments else None) for i, item in enumerate(value)]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if is_mapping:
        if not isinstance(value, Mapping | DictConfig):
            raise UserError(f"{path}={calls.one_line(value)} must be a mapping, such as {{name: 1}}")
        for key in value if len(arguments) == 2 else ():
            conform(f"{path}.{key}", value[key], arguments[1])
        return value
    if origin is Literal:
        if value not in arguments:
            names = [*map(str, arguments)]
            listed = len(names) <= FEW and not difflib.get_close_matches(str(value), names, cutoff=ALIKE)
            which = f"; choose from {', '.join(names)}" if listed else nearest(value, arguments)
            raise UserError(f"{path}={value} is not a choice{which}")
        return value
    if hint is float and isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())  # numpy's are too
    if hint is int and is_whole and not isinstance(value, bool):
        return int(value)
    wanted = {int: int, float: int | float, bool: bool, str: str, Path: str | Path}.get(hint)
    if wanted and (not isinstance(value, wanted) or (hint is not bool and isinstance(value, bool))):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
        is_text = isinstance(value, str) and re.fullmatch(r"[-+.\de_]+|true|false", value, re.IGNORECASE)
        raise UserError(f"{path}={repr(value) if is_text else calls.one_line(value)} must be {words[hint]}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path}=nan must be a number")
    if hint is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise UserError(f"{path}={str(value)[:20]}... must be a number below {sys.float_info.max:.0e}")
    return value


def _any_of(path: str, value: Any, options: Sequence[Any]) -> Any:
    """The value as the first option that takes it. Raises the first option's UserError where none does."""
    faults = []
    for option in options:
        try:
            return conform(path, value, option)
        except UserError as fault:
            faults.append(fault)
    raise faults[0]


def _check_call(path: str, node: Any, wanted: Any, partial: bool) -> None:
    """`node` is a call, and gives what is `wanted`, or, `partial`, a call that does. Raises UserError."""
    if not calls.is_call(node):
        group = path.replace(".", "/")
        by_name = f"; {group}=... chooses one by its name" if "/" in group and (conf_dir() / group).is_dir() else ""
        raise UserError(
            f"{path}={calls.one_line(node)} must be a call, a mapping with _target_{by_name}; its settings are changed "
            f"one by one: {path}.<name>=..."
        )
    call = calls.called(node, path)
    given, home = calls.given(call), str(call.__module__).partition(".")[0]
    later = conform(f"{path}._partial_", node.get("_partial_", False), bool)
    if later and not partial:
        raise UserError(f"{path}._partial_=true must be false, since the call is made at once; leave it out")
    if partial and not later:  # it must then give a call itself, such as a schedule
        filled = calls.filled(calls.parameters(call, path), calls.annotations(call), path, partial=True)
        if filled or home in sys.stdlib_module_names or (isinstance(given, type) and "__call__" not in dir(given)):
            shown = f"{path}._partial_={calls.one_line(node.get('_partial_'))}"
            raise UserError(f"{shown} must be true, since the lab completes the call")
        return
    if home in sys.stdlib_module_names or not (path in CHOSEN_BY_LOOP or calls.fits(given, wanted)):
        name = getattr(wanted, "__name__", str(wanted))
        raise UserError(f"{path}._target_={node['_target_']} must give {article(name)} {name}, and does not")


def folder_name(name: str) -> str:
    """A run's name, which also names its folder under runs/. Raises UserError."""
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
        raise UserError(
            f"name={'null' if name == 'None' else shown} cannot name a run, and its folder; give it letters and "
            f"digits, at most {LONGEST_NAME} of them"
        )
    return name
