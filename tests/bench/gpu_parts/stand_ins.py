"""Libraries too large to carry, which no part uses but some module imports: compilers and exact solvers of the CPU."""

import importlib.util
import sys
import types
from typing import Any

SCIPY = "scipy", "scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg", "scipy.stats", "scipy.ndimage"


class Absent(types.ModuleType):
    """Every name in it is a class that cannot be made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refused(*_: Any, **__: Any) -> None:
            raise ModuleNotFoundError(f"{self.__name__}.{name} is not on this machine")

        return type(name, (), {"__init__": refused})


def put() -> None:
    """In the place of those that this machine lacks. What numba would compile runs as the Python that it is."""
    if importlib.util.find_spec("scipy") is None:
        for name in SCIPY:
            module = sys.modules[name] = Absent(name)
            module.__path__ = []
        for name in SCIPY[1:]:
            parent, _, own = name.rpartition(".")
            setattr(sys.modules[parent], own, sys.modules[name])
    if importlib.util.find_spec("numba") is None:
        module = sys.modules["numba"] = types.ModuleType("numba")
        module.njit = lambda *given, **_: given[0] if given and callable(given[0]) else lambda f: f  # type: ignore[attr-defined]
        module.prange = range  # type: ignore[attr-defined]
