"""Experiments and studies of one's own, in the folder of --config-dir."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lab.core.errors import UserError
from rl_lab.core.launching.composition import parsed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

WHOLE = "experiment", "study"


def check_own(folder: Path | None, settings: Sequence[str]) -> None:
    """An experiment or a study of one's own says in its first line that it is of the whole config. Raises UserError."""
    for override in map(parsed, settings if folder else ()):
        if override.key_or_group in WHOLE and not override.is_delete():
            there = sorted(Path(f"{folder}/{override.key_or_group}").glob("**/*.yaml"))
            for path in there if override.is_sweep_override() else _chosen(override, there):
                _check_whole(path)


def _chosen(override: "Override", there: Sequence[Path]) -> Iterator[Path]:
    """Of the YAML files that are there those whose names it has."""
    value = override.value()
    names = [str(name).removesuffix(".yaml") for name in (value if isinstance(value, list) else [value])]
    return (path for path in there if path.with_suffix("").as_posix().endswith(tuple(f"/{name}" for name in names)))


def _check_whole(path: Path) -> None:
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    head = takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines())
    if not any(re.match(r"#\s*@package\s+_global_", line) for line in head):
        raise UserError(f"{path} needs a first line: # @package _global_")
