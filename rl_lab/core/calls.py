"""What the `_target_` of a config names, and what its signature says of it."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from rl_lab.core import imports
from rl_lab.core.errors import UserError, nearest

Call = Callable[..., Any]
FILLED = {
    "": {"runs", "changes", "settings", "prog"},
    "loop": {"run"},
    "tracker": {"name", "job_type", "config", "id"},
}  # by the caller
POSITION = {"params", "env", "mdp", "images"}  # filled when a partial call is completed, beside what YAML cannot hold
PLAIN = {int, float, bool, str, Path, list, tuple, dict, Sequence, Mapping, type(None)}


def is_call(node: Any) -> bool:
    return isinstance(node, Mapping | DictConfig) and "_target_" in node


def targets(node: Any) -> Iterator[str]:
    """The dotted names that a plain config calls, at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = [*node.values()]
    for value in node if isinstance(node, list) else ():
        yield from targets(value)


def called(node: Mapping[Any, Any] | DictConfig, path: str) -> Call:
    """What is called at `node`. Raises UserError."""
    target = node["_target_"]
    shown = f"{join(path, '_target_')}={one_line(target)}"
    if not isinstance(target, str) or not all(target.split(".")):
        raise UserError(f"{shown} must be the dotted name of what is called, such as torch.optim.Adam")
    call: Call = locate(target)
    if not callable(call):
        raise UserError(f"{shown} must be something that can be called")
    return call


def behind(call: Any) -> Any:
    """The class or function that a partial call is of."""
    return getattr(call, "func", call)


def built(settings: Any) -> Any:
    """What Hydra makes of them. What is raised on the way comes as it is, without Hydra's words around it."""
    import hydra

    try:
        return hydra.utils.instantiate(settings)
    except hydra.errors.InstantiationException as error:
        raise error.__cause__ or error from None


def locate(target: str) -> Any:
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
        except (Exception, SystemExit) as error:
            if parts[0] in imports.OURS:
                raise
            raise imports.failed(module, target, error) from error
        try:
            for name in parts[cut:]:
                found = getattr(found, name)
        except AttributeError:
            raise UserError(f"no {target}{nearest(name, (x for x in dir(found) if not x.startswith('_')))}") from None
        return found
    raise UserError(f"no {target}: no module {parts[0]}")


def parameters(call: Call, path: str) -> Mapping[str, inspect.Parameter]:
    """Raises UserError."""
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):  # some calls that are written in C have no signature
        shown = f"{join(path, '_target_')}={call.__module__}.{call.__qualname__}"
        raise UserError(f"{shown} is refused: it does not say which settings it takes") from None


def annotations(call: Call) -> dict[str, Any]:
    """Annotations by parameter; none where Python cannot read them."""
    try:
        return get_type_hints(call.__init__ if inspect.isclass(call) else call, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def given(call: Call) -> Any:
    """What a call returns: the class itself, or the type in its signature; Any where that is not known."""
    return call if inspect.isclass(call) else annotations(call).get("return", Any)


def fits(result: Any, wanted: Any) -> bool:
    """Whether a `result` of that type can stand where the type `wanted` is expected; if in doubt, yes."""
    if get_origin(wanted) in (Union, UnionType):
        return any(fits(result, option) for option in get_args(wanted))
    result, wanted = get_origin(result) or result, get_origin(wanted) or wanted
    known = isinstance(result, type) and isinstance(wanted, type)
    if not known or Any in (result, wanted) or (result is int and wanted is float):
        return True
    return not lacking(result, wanted) if Protocol in wanted.__bases__ else issubclass(result, wanted)


def lacking(result: type, wanted: Any) -> list[str]:
    """The methods of a protocol that a class does not have."""
    methods = [name for name in dir(wanted) if not name.startswith("_") and callable(getattr(wanted, name))]
    return [name for name in methods if not hasattr(result, name)]


def filled(of: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], path: str, partial: bool) -> set[str]:
    """The parameters that the caller fills: in a partial call those that no YAML could say, and a seed."""
    return FILLED.get(path, set()) | {
        name
        for name, p in of.items()
        if partial and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
        if name in POSITION or name not in hints or _is_made(hints[name])
    }


def _is_made(hint: Any) -> bool:
    return get_origin(hint) is tuple or hint is int or (isinstance(hint, type) and hint not in PLAIN)


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def one_line(value: Any) -> str:
    """The value on one line, as one would type it."""
    text = "null" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
