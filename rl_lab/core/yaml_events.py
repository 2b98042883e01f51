"""YAML from elsewhere, looked through before anything is built of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from rl_lab.core.errors import UserError

DEEPEST = 32  # levels
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast


def events(text: str, path: Path, most: int) -> Iterator[yaml.Event]:
    """Of a YAML text, before anything is built of it. Raises UserError where it is more than plain data."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > most:
            raise UserError(f"{path} is refused: more than {most:,} values, or {DEEPEST} levels, are no run's config")
        if re.fullmatch(r"[-+]?[\da-fA-FxXoO_]{1000,}", getattr(event, "value", "")):
            raise UserError(f"{path} is refused: no number of a run has a thousand digits")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{path} is refused: a run's config has no anchors (&) and aliases (*)")
        if (tag := getattr(event, "tag", None)) and tag not in ("!", "tag:yaml.org,2002:str"):
            raise UserError(f"{path} is refused: a run's config has no tags, such as {tag}")
        if not getattr(event, "value", "").replace("\n", "").replace("\t", "").isprintable():
            raise UserError(f"{path} is refused: it holds characters that are not printable")
        yield event
