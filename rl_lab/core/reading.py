"""A run folder's config as plain data, since a stranger may have written it: reading it calls nothing.

config.yaml is one YAML mapping without anchors, tags or directives of Hydra. `${env}` and `${env.size}` stand for the
settings of those names; there is no other interpolation, neither of the environment's variables nor of files. What is
built from a config is the object that `resolved` returns and `refuse` has looked through, and no other.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_lab.core import calls, conf_dir, files, imports, ownership, permissions
from rl_lab.core.errors import UserError, brief
from rl_lab.core.parts import Parts, Typed
from rl_lab.core.settings import Natural, conform, folder_name
from rl_lab.core.yaml_events import events

LARGEST = 300_000  # bytes
MOST, LONGEST = 20_000, 4_000_000  # values, and characters once every reference is replaced
REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
HYDRAS = {"hydra", "defaults"}
CALLS = {"_target_", "_partial_", "_convert_"}  # of the keys by which Hydra calls, those that a run folder may hold
LONGEST_WORDS = 10_000  # characters of a note
PLACES = {"root", "entity"}  # where files are written, and whose account takes the runs: not for a folder to say
NAMES = "project", "group", "tags", "notes", "mode"  # what of a tracker is used; not whose account takes the runs


def plain(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its references stand as they are. Raises UserError or FileNotFoundError."""
    with files.opened(path, LARGEST) as file:
        return _parsed(file.read(), path)


def _parsed(written: bytes, path: Path) -> dict[str, Any]:
    text = written.decode(errors="replace")
    if re.search(r"^\s*#\s*@package", text, re.MULTILINE):
        raise UserError(f"{path} is refused: '# @package' is for the files of conf/, and a run's config has none")
    try:
        for event in events(text, path, MOST):
            if isinstance(event, yaml.ScalarEvent):
                plain_references(event.value, path)
        config: Any = OmegaConf.to_container(OmegaConf.create(text or "{}"), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {brief(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the config of a run")
    return dict(config)


def plain_references(text: str, path: Path | str) -> None:
    rest = REFERENCE.sub("", text)
    if "${" in rest or re.search(r"\\\$\{", text):
        shown = " ".join(text.split())[:80]
        raise UserError(f"{path} is refused: {shown!r} is more than the name of a setting, such as ${{env.size}}")


def config(folder: Path, parts: Parts, typed: Typed = Typed()) -> tuple[DictConfig, Parts | None]:
    """What a run folder holds, parts by the names they have now; of its tracker only names are used, and of where
    files go only what one's own says.

    And what it may be made of, None for anything: it is one's own, as this user's run has written it. Raises UserError.
    """
    path = folder / "config.yaml"
    try:
        with files.opened(path, LARGEST) as file:
            written = file.read()
        found, seal = _parsed(written, path), ownership.of(folder, written)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a run folder: it has no config.yaml") from None
    if refused := HYDRAS & set(found):
        raise UserError(f"{path} is refused: a run's config has no '{sorted(refused)[0]}'")
    if not {"name", "seed", "loop"} <= set(found) or not isinstance(found["loop"], dict):
        raise UserError(f"{path} is not the config of a run")
    _check_lab(folder, str(found["loop"].get("_target_")).partition(".")[0], parts)
    _rename(found, parts, found)
    ignored = list[tuple[str, Any]]()
    if not seal:
        ignored = places(found)
        _clear_places(found)
    found["name"] = folder_name(found["name"])
    found["seed"] = conform("seed", found["seed"], Natural)
    choices = found.setdefault("choices", {})
    if (
        not isinstance(choices, dict)
        or not all(isinstance(x, str) for x in (*choices, *choices.values()))
        or ({"name", "seed"} & set(choices))
    ):
        raise UserError(f"{path} is damaged: choices must be names, such as agent: dqn")
    if "tracker" in found:
        found["tracker"] = tracker(found["tracker"], path)
    for setting, place in ignored:
        print(f"{path} sets {setting}={place}, which is ignored; type {setting}=... to use it", file=sys.stderr)
    here = imports.local([*typed.modules, *(target.rpartition(".")[0] for target in typed.targets)])
    imports.place({**(seal.places if seal else {}), **here})
    return OmegaConf.create(found), None if seal else parts._replace(typed=typed)


def _check_lab(folder: Path, lab: str, parts: Parts) -> None:
    """Raises UserError where the run is of another lab than these parts are of."""
    root = lab.removesuffix("_lab")
    if not parts.home.startswith(f"{lab}/") and lab == f"{root}_lab" and (conf_dir() / f"{root}.yaml").is_file():
        other = f"{root}-lab"
        raise UserError(
            f"{folder} is a run of {other}: {other} train resumes it, {other} evaluate judges it, and from Python "
            f"{lab}.load opens it"
        )


def _rename(node: Any, parts: Parts, config: dict[str, Any]) -> None:
    for value in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
        _rename(value, parts, config)
    if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
        node["_target_"] = parts.moved.get(target, target)
        target = _followed(target, config)
        name = parts.moved.get(target, target)
        for setting in parts.gone.get(name, frozenset()) & node.keys():
            del node[setting]
        node.update({key: value for key, value in parts.younger.get(name, {}).items() if key not in node})


def _followed(target: str, config: dict[str, Any]) -> str:
    """The dotted name that a reference such as ${env._target_} leads to; any other text as it is."""
    node: Any = config
    for part in found[1].split(".") if (found := REFERENCE.fullmatch(target)) else ():
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, str) else target


def tracker(found: Any, path: Path) -> dict[str, Any]:
    """The tracker of that name as conf/ has it, and the names that the folder gives to its runs."""
    target = str(found.get("_target_")) if isinstance(found, dict) else str(found)
    kinds = {tracker["_target_"]: tracker for tracker in map(plain, sorted((conf_dir() / "tracker").glob("*.yaml")))}
    if target not in kinds:
        raise UserError(f"{path} is refused: tracker._target_={target} is not one of {', '.join(kinds)}")
    kind = kinds[target]
    names = {name: found[name] for name in NAMES if name in found and name in kind and _is_name(found[name])}
    if names.get("mode") not in ("offline", "disabled") or os.environ.get("WANDB_MODE"):
        names.pop("mode", None)  # no folder sends what its user keeps here
    return kind | names


def _is_name(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_name, value))
    return value is None or (isinstance(value, str) and len(value) <= LONGEST_WORDS)


def places(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """The settings by which a config says where files go, or whose account takes the runs, with their values."""
    if isinstance(node, list):
        return [found for i, value in enumerate(node) for found in places(value, f"{path}[{i}]")]
    if not isinstance(node, dict):
        return []
    here = {key: f"{path}.{key}" if path else str(key) for key in node}
    said = [(here[key], node[key]) for key in node if key in PLACES and node[key] is not None]
    return said + [found for key, value in node.items() for found in places(value, here[key])]


def _clear_places(node: Any) -> None:
    if isinstance(node, dict):
        node.update(dict.fromkeys(PLACES & set(node)))
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _clear_places(value)


# -- what is built


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Every reference replaced by a copy of what it names. Raises UserError where one names nothing, or itself."""
    spent = [0, 0]  # values, characters

    def of(node: Any, path: str, trail: tuple[str, ...]) -> Any:
        spent[0] += 1
        if isinstance(node, str):
            spent[1] += len(node)
        if spent[0] > MOST or spent[1] > LONGEST:
            raise UserError(f"the config grows beyond {MOST:,} values by its references; no run is that large")
        if isinstance(node, dict):
            return {key: of(value, f"{path}.{key}" if path else str(key), trail) for key, value in node.items()}
        if isinstance(node, list):
            return [of(value, f"{path}[{i}]", trail) for i, value in enumerate(node)]
        if not isinstance(node, str) or "$" not in node:
            if node == "???":
                raise UserError(f"{path} has no default; give it a value: {path}=...")
            return node
        if found := REFERENCE.fullmatch(node):
            return of(named(found[1], path, trail), path, (*trail, found[1]))
        text = REFERENCE.sub(lambda found: str(of(named(found[1], path, trail), path, (*trail, found[1]))), node)
        if "${" in text:
            raise UserError(
                f"{path}={' '.join(text.split())[:80]} is refused: it is more than the name of a setting, "
                "such as ${env.size}"
            )
        return text

    def named(name: str, path: str, trail: tuple[str, ...]) -> Any:
        if name in trail:
            raise UserError(f"{path} refers to itself, by ${{{name}}}")
        node: Any = config
        for i, part in enumerate(parts := name.split(".")):
            if i and isinstance(node, str) and (found := REFERENCE.fullmatch(node)):
                node = named(found[1], path, (*trail, name))
            if not isinstance(node, dict) or part not in node:
                raise UserError(f"{path} refers to ${{{name}}}, and there is no setting {'.'.join(parts[: i + 1])}")
            node = node[part]
        return node

    built: dict[str, Any] = of(config, "", ())
    return built


def refuse(config: dict[str, Any], parts: Parts | None) -> None:
    """Raises UserError where anything in a `resolved` config would call what is not among `parts`; None: one's own.

    Calls and arguments are checked as they stand there; the tracker comes from conf/, not from the folder. Modules that
    were typed now may be imported, and classes of them that were typed may be called.
    """
    if parts is None:
        return
    for key in permissions.in_order(config):
        _refuse(config[key], str(key), parts)
    typed, found = parts.typed, permissions.of(config, parts)
    if lacking := [w for w in found if w.name not in (typed.targets if w.is_call else typed.modules)]:
        named = ", ".join(dict.fromkeys(w.name if w.is_call else w.module for w in lacking))
        raise UserError(
            f"this run folder wants {named}, and no run of yours has written it so in this place (it was copied, "
            f"changed or sent); where you trust it, type {' '.join(permissions.words(found))}"
        )
    for want in found:
        if want.is_call:
            kind, home = calls.locate(want.name), permissions.top(want.name)
            if not isinstance(kind, type) or permissions.top(kind.__module__) != home:
                raise UserError(f"{want.path}._target_={want.name} is refused: it is no class of {home}'s")


def _refuse(node: Any, path: str, parts: Parts) -> None:
    if isinstance(node, list):
        for i, value in enumerate(node):
            _refuse(value, f"{path}[{i}]", parts)
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    is_listed = isinstance(target, str) and target in parts.allowed
    if "_target_" in node and not (is_listed or permissions.may_be(target, path)):
        raise UserError(f"{path}._target_={target} is refused: a run folder may call only what {parts.home} lists")
    for key, value in node.items():
        _refuse(value, f"{path}.{key}", parts)
        if not isinstance(key, str | int | float | bool) or (
            re.fullmatch(r"_\w*_", str(key)) and (key not in CALLS or "_target_" not in node)
        ):
            raise UserError(f"{path}.{key} is refused in a run folder; delete it")
    if isinstance(target, str) and (judge := parts.allowed.get(target)):
        for key in node.keys() - CALLS:
            if reason := judge(key, node[key]):
                raise UserError(
                    f"{path}.{key}={' '.join(str(node[key]).split())[:80]} is refused in a run folder: {reason}"
                )
