"""torch.compile of the networks that a learner learns, in its updates alone."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gen_lab.networks.averaging import networks
from rl_lab.core.errors import UserError

COMPILERS = "g++", "clang++"  # on a CPU torch writes C++


def compile_networks(learner: Any) -> None:
    """Each is compiled when an update first calls it. Raises UserError where that cannot be."""
    found = [*networks(learner)]
    if not found:
        raise UserError(f"loop.compile=true: {type(learner).__name__} has no network to compile; leave it out")
    if getattr(learner, "penalty", 0):
        raise UserError(
            "loop.compile=true: a gradient penalty differentiates twice, which torch.compile cannot; leave it out, or "
            "set model.penalty=0 with a loss that needs none"
        )
    if learner.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise UserError("loop.compile=true needs a C++ compiler, and none is found; install g++, or leave it out")
    for network in found:
        network.forward = compiled(network.forward)


def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Through a function of ours: torch leaves what is defined in its own files, such as nn.Sequential, as it is."""

    def forward(*given: Any, **named: Any) -> Any:
        return plain(*given, **named)

    return torch.compile(forward)


def as_they_are() -> AbstractContextManager[None]:
    """Within, compiled networks compute as those that are not: each new size of a batch would be compiled anew."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes a second and more
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
