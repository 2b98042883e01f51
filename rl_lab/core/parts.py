"""How a lab says what a run folder may call: dotted names, and who judges the arguments, in PARTS of <lab>/parts.py."""

import re
from collections.abc import Callable
from typing import Any

Judge = Callable[[str, Any], str | None] | None  # of a setting's name and value: why it is refused
OPTIMIZERS = ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
              "Rprop", "SGD")  # fmt: skip
LAYERS = ("BatchNorm1d", "BatchNorm2d", "CELU", "Conv1d", "Conv2d", "Dropout", "ELU", "Flatten", "GELU", "GroupNorm",
          "Hardswish", "Hardtanh", "Identity", "LayerNorm", "LeakyReLU", "Linear", "LogSigmoid", "Mish", "PReLU",
          "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh")  # fmt: skip


def parts(module: str, *names: str, judge: Judge = None) -> dict[str, Judge]:
    return {f"{module}.{name}": judge for name in names}


def plain_numbers(key: str, value: Any) -> str | None:
    """Numbers, true, false and null, also in lists: what a library's call could do with a text is not known."""
    if isinstance(value, list):
        return next((reason for item in value if (reason := plain_numbers(key, item))), None)
    return None if value is None or isinstance(value, int | float) else "it must be a number, true, false or null"


def word(value: Any) -> bool:
    """A name: no path, no module, nothing to be looked up elsewhere."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.-]*", value)) and ".." not in value


TORCH = parts("torch.optim", *OPTIMIZERS, judge=plain_numbers) | parts("torch.nn", *LAYERS, judge=plain_numbers)
