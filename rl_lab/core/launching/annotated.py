"""The composed settings as YAML, each with what the file that sets it says of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.launching.composition import composed_with_choices, searched
from rl_lab.core.launching.listing import opening

KEY = re.compile(r"( *)([^\s:#-][^:]*):(?: (.*))?$")
GLOBAL = "protocol", "experiment", "study"  # which set what others have set before
COLUMN = 36  # of the comments, at least


def annotated(root: str, overrides: list[str], own: Path | None = None) -> str:
    """What `train` would run with, and why each setting is there; `own` YAML files come beside those of conf/."""
    composed, choices = composed_with_choices(conf_dir(), root, overrides + searched(own))
    folders = [conf_dir(), *([own] if own else [])]
    notes = dict(_notes((conf_dir() / f"{root}.yaml").read_text(), ""))
    for key, choice in sorted(choices.items(), key=lambda pair: (pair[0] in GLOBAL, -pair[0].count("/"))):
        group, _, place = key.partition("@")
        path = next((path for folder in folders if (path := folder / group / f"{choice}.yaml").is_file()), None)
        if path and not group.startswith("hydra"):
            notes |= _of_file(path, place or group.replace("/", "."), [folder / group for folder in folders])
            notes |= {group: f"{choice}: {opening(path.read_text())}"} if group in composed else {}
    return "\n".join(_with(notes, OmegaConf.to_yaml(composed)))


def _of_file(path: Path, package: str, folders: list[Path]) -> dict[str, str]:
    """Of the settings of a file, and of those in the `folders` of its group that its defaults name: dotted key ->
    comment.
    """
    text, notes = path.read_text(), dict[str, str]()
    if found := re.search(r"^# @package (\S+)", text, re.MULTILINE):
        package = "" if found[1] == "_global_" else found[1]
    node: Any = OmegaConf.load(path)
    for base in node.get("defaults", []):
        name, _, place = base.partition("@") if isinstance(base, str) else ("_self_", "", "")
        there = [file for folder in folders if (file := folder / f"{name}.yaml").is_file()]
        if name != "_self_" and there:
            notes |= _of_file(there[0], ".".join(filter(None, (package, place))), folders)
    return notes | dict(_notes(text, package))


def _notes(text: str, package: str) -> Iterator[tuple[str, str]]:
    for path, line in _keys(text, package):
        if path and (found := re.search(r"\s# (.*)$", line)):
            yield path, found[1]


def _with(notes: dict[str, str], text: str) -> Iterator[str]:
    for path, line in _keys(text, ""):
        yield f"{line:<{COLUMN}}  # {notes[path]}" if path in notes else line


def _keys(text: str, package: str) -> Iterator[tuple[str, str]]:
    """Each line of a YAML with the dotted key that it sets; "" where it sets none, as in a list or a drawing."""
    above = [(-1, package)]  # indents and keys of the mappings around the line
    for line in text.splitlines():
        path = ""
        if found := KEY.match(line):
            while above[-1][0] >= len(found[1]):
                above.pop()
            path = ".".join(filter(None, (above[-1][1], found[2])))
            above.append((len(found[1]), path))
        yield path, line
