"""How a lab declares its parts, in <lab>/parts.py: what a run folder may call, and its older names."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Judge = Callable[[str, Any], str | None] | None  # of a setting's name and value: why it is refused
Imports = Callable[[Mapping[str, Any]], Iterator[str]]  # of a part's settings: the modules that they name
OPTIMIZERS = ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
              "Rprop", "SGD")  # fmt: skip
LAYERS = ("BatchNorm1d", "BatchNorm2d", "CELU", "Conv1d", "Conv2d", "Dropout", "ELU", "Flatten", "GELU", "GroupNorm",
          "Hardswish", "Hardtanh", "Identity", "LayerNorm", "LeakyReLU", "Linear", "LogSigmoid", "Mish", "PReLU",
          "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh")  # fmt: skip


class Typed(NamedTuple):
    """What a person typed beside a run folder, and did not come from the folder itself."""

    targets: frozenset[str] = frozenset()  # of `_target_`s
    modules: frozenset[str] = frozenset()


class Parts(NamedTuple):
    """Everything that a lab's run folders are made of."""

    home: str  # the file that lists them
    allowed: Mapping[str, Judge]  # dotted names of what may be called, and who judges the arguments
    moved: Mapping[str, str]  # the dotted name a part had in older run folders -> the one it has
    gone: Mapping[str, frozenset[str]]  # settings that older run folders give a part, and it no longer takes
    younger: Mapping[str, Mapping[str, Any]]  # settings that older run folders give no value, and what they mean by it
    imports: Mapping[str, Imports] = {}  # parts that import modules which their settings name
    typed: Typed = Typed()  # allowed for this once
    then: Mapping[str, tuple[str, ...]] = {}  # what to type after a run, by what its loop is, or else under ""
    films: str = ""  # the dotted name of what says whether a world can be filmed: `render` is for no other
    captures: tuple[str, ...] = ()  # the loops that compile=graphs is for
    instead: Mapping[str, tuple[str, ...]] = {}  # settings that, where they are given, stand in place of others
    needs: Mapping[str, tuple[str, Any]] = {}  # settings that need another to be this; True: any but 0 and null
    reduced: tuple[str, ...] = ()  # the networks that precision= is for
    exact: tuple[str, ...] = ()  # how the names of those begin that compute in float64 on the device


def moved(before: str, now: str, *names: str) -> dict[str, str]:
    return {f"{before}.{name}": f"{now}.{name}" for name in names}


def parts(module: str, *names: str, judge: Judge = None) -> dict[str, Judge]:
    return {f"{module}.{name}": judge for name in names}


def plain_numbers(key: str, value: Any) -> str | None:
    """Allows numbers, true, false and null, also in lists: what a library's call would do with a text is not known."""
    if isinstance(value, list):
        return next((reason for item in value if (reason := plain_numbers(key, item))), None)
    return None if value is None or isinstance(value, int | float) else "it must be a number, true, false or null"


def word(value: Any) -> bool:
    """Whether it is a plain name: no path, no module, nothing to be looked up elsewhere."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.-]*", value)) and ".." not in value


TORCH = parts("torch.optim", *OPTIMIZERS, judge=plain_numbers) | parts("torch.nn", *LAYERS, judge=plain_numbers)
