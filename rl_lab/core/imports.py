"""Modules that a person names by hand: found among what is installed, and in the working directory."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError

OURS = frozenset(f"{path.stem}_lab" for path in conf_dir().glob("*.yaml"))  # the labs, each with its root in conf/


class Placed(MetaPathFinder):
    """Finds each module in its place, before any other of that name."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}  # the first part of a module's name -> the directory that it lies in

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self.places[name]]) if name in self.places else None


FINDER = Placed()


def local(modules: Iterable[str], directory: Path | None = None) -> dict[str, str]:
    """Those that lie in the working directory and are not installed, by the first part of their names."""
    home = str(directory or Path.cwd())
    return {top: home for top in {module.partition(".")[0] for module in modules} if _is_here(top, home)}


def _is_here(top: str, home: str) -> bool:
    if top in sys.stdlib_module_names or top in OURS or (here := PathFinder.find_spec(top, [home])) is None:
        return False
    try:
        other = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return other is None or other.origin == here.origin


def place(places: Mapping[str, str]) -> None:
    """From here on these modules are found in these directories. Raises UserError where one is not there."""
    for top, home in places.items():
        if (spec := PathFinder.find_spec(top, [home])) is None:
            raise UserError(f"no module {top} in {home}, where this run was trained; put it back")
        loaded = getattr(sys.modules.get(top), "__spec__", None)
        if loaded is not None and loaded.origin != spec.origin:
            raise UserError(f"{top} of {home} and {top} of {loaded.origin} are two modules of one name; "
                            "read the runs of one at a time")  # fmt: skip
        FINDER.places[top] = home
        if home not in sys.path:  # for what the module itself imports: after all that is installed, before what is here
            here = (i for i, path in enumerate(sys.path) if path in ("", os.getcwd()))
            sys.path.insert(next(here, len(sys.path)), home)
    if places and FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    importlib.invalidate_caches()


def placed(modules: Iterable[str]) -> dict[str, str]:
    """Those of these modules that were placed, by the first part of their names."""
    return {top: FINDER.places[top] for m in modules if (top := m.partition(".")[0]) in FINDER.places}


def named(module: str, setting: str) -> ModuleType:
    """The module that the `setting`, such as env.imports=[minigrid], names. Raises UserError of one line."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{setting}: no module {error.name}, neither installed nor in {os.getcwd()}") from error
        raise UserError(f"{setting}: {module} needs {error.name}; pip install {error.name}") from error
    except (Exception, SystemExit) as error:  # a script may end itself
        raise failed(module, setting, error) from error


def failed(module: str, setting: str, error: BaseException) -> UserError:
    """A UserError for an import that failed: what it says, and where."""
    return UserError(f"{setting}: importing {module} failed ({told(error)})")


def told(error: BaseException) -> str:
    """What somebody else's code says as it fails, and where it stands, in one line; a call of ours is no such place."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    is_theirs = frames and not Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])
    where = f", {os.path.relpath(frames[-1].filename)} line {frames[-1].lineno}" if is_theirs else ""
    if isinstance(error, SyntaxError):
        where = f", {os.path.relpath(error.filename or '')} line {error.lineno}"
    words = " ".join(f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".split())
    return f"{words[:200]}{where}"
