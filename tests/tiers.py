"""Which cases of a test run each time, and which wait for `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def later(cases: Iterable[Any], *slow: Any) -> list[Any]:
    """The cases of a parameter, of which `slow` ones, where others like them stay, are marked so."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]
