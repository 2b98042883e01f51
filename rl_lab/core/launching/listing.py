"""The names to choose from in each group, with the first line of their YAMLs, sorted by the code behind them."""

import ast
import csv
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from rl_lab.core import conf_dir
from rl_lab.core.errors import UserError
from rl_lab.core.launching.composition import names

LISTS = {"envs": "env", "agents": "agent", "models": "model", "experiments": "experiment"}
INNER = {"env": ("mdp", "physics"), "model": ("network",)}  # settings whose code says more than the choice's own


class Choice(NamedTuple):
    """One name of a group."""

    name: str
    words: str  # that open its YAML
    source: str  # the file behind it, rl_lab/agents/dqn.py, or the dotted name of what another package has
    about: str  # the sentence that opens that file, with the paper


class Kept(NamedTuple):
    """What an experiment came to when it was measured: a line of <lab>/kept.csv."""

    experiment: str
    score: str
    spent: str  # steps or updates, and seconds where they are known
    source: str  # the file that says how it was measured
    metric: str = ""  # of its last row, by which the command `reproduce` compares; "": that command does not know it
    seeds: str = ""  # with spaces between, as all that follows is
    figures: str = ""  # the metric, by seed
    seconds: str = ""  # of each run, or one number for all; "": not kept
    settings: str = ""  # beside the experiment's own
    beside: str = ""  # what others came to, and where they say so

    def __str__(self) -> str:
        return f"{self.score}{'; ' * bool(self.spent)}{self.spent} ({self.source})"


def listing(prog: str, root: str, name: str, words: Sequence[str]) -> str:
    """The text of `rl-lab agents` and its like; with `words`, of the names whose lines hold all of them.

    Raises UserError where none does.
    """
    group = LISTS[name]
    if settings := [word for word in words if "=" in word or word.startswith("-")]:
        raise UserError(
            f"{settings[0]} is not a word to look for; {prog} {name} takes words, such as {prog} {name} maze"
        )
    lines = [f"{prog} train {group}=<name>; its settings: {prog} train {group}=<name> --help", ""]
    found = list(_experiments(root, words) if group == "experiment" else _choices(group, words))
    if not found:
        raise UserError(f"no line of {prog} {name} has {' and '.join(words)}; {prog} {name} lists them all")
    return "\n".join([*lines, *found])


def _has(text: str, words: Sequence[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _choices(group: str, words: Sequence[str]) -> Iterator[str]:
    for (source, about), members in families(group).items():
        shown = [c for c in members if _has(" ".join(c), words)]
        if shown:
            width = max(len(c.name) for c in shown)
            yield f"{source}{': ' * bool(about)}{about}"
            yield from (f"  {c.name:<{width}}  {c.words}".rstrip() for c in shown)
            yield ""


def _experiments(root: str, words: Sequence[str]) -> Iterator[str]:
    known = {line.experiment: line for line in kept(root)}
    for name, sentence in experiments(root):
        measured = str(known.get(name, ""))
        if _has(f"{name} {sentence} {measured}", words):
            yield f"{name}: {sentence}"
            yield from [f"    {measured}"] * bool(measured)


def families(group: str) -> dict[tuple[str, str], list[Choice]]:
    """The names of a group by the file behind them and the sentence that opens it, in the order of the names."""
    found: dict[tuple[str, str], list[Choice]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        source, about = code(_target(path))
        found.setdefault((source, about), []).append(Choice(path.stem, opening(path.read_text()), source, about))
    return found


def kept(root: str) -> list[Kept]:
    with open(_lab(f"{root}_lab") / "kept.csv", newline="") as file:
        return [Kept(**row) for row in csv.DictReader(file, restval="")]


def experiments(root: str) -> list[tuple[str, str]]:
    """Name and opening sentence of those that choose from groups of this root alone."""
    folder = conf_dir() / "experiment"
    return [(name, opening((folder / f"{name}.yaml").read_text())) for name in names(root, "experiment")]


def opening(text: str) -> str:
    """Of the comment that a YAML opens with the first line, and what its sentence goes on with."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    comment = [line[2:] for line in lines[: next((i for i, line in enumerate(lines) if line[:2] != "# "), len(lines))]]
    while len(comment) > 1 and not comment[0].endswith((".", ":")):
        comment[:2] = [" ".join(comment[:2])]
    return comment[0] if comment else ""


def _target(path: Path) -> str:
    """The dotted name of what a choice calls, or of what makes it the one it is."""
    node = _merged(path)
    inner = [x for key in INNER.get(path.parent.name, ()) if isinstance(x := node.get(key), dict) and "_target_" in x]
    return str([*inner, node][0]["_target_"])


def _merged(path: Path) -> dict[str, Any]:
    """A YAML merged with the files of its own group that its defaults name."""
    node: Any = OmegaConf.load(path)
    found: Any = OmegaConf.create()
    for base in node.pop("defaults", []):
        if isinstance(base, str) and base != "_self_" and "@" not in base:
            found = OmegaConf.merge(found, _merged(path.parent / f"{base}.yaml"))
    merged: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(found, node), resolve=False)  # type: ignore[assignment]
    return merged


def _lab(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def code(target: str) -> tuple[str, str]:
    """The file that defines a dotted name of the labs, and its first sentence; nothing is imported."""
    lab, *parts = target.split(".")
    if f"{lab}.".startswith(tuple(f"{name}." for name in _labs())):
        home = _lab(lab)
        for path in (home.joinpath(*parts[:-1], "__init__.py"), home.joinpath(*parts[:-1]).with_suffix(".py")):
            if path.is_file():
                tree = ast.parse(path.read_text())
                for node in tree.body:
                    if isinstance(node, ast.ImportFrom) and parts[-1] in {alias.name for alias in node.names}:
                        return code(f"{node.module}.{parts[-1]}")
                return f"{lab}/{path.relative_to(home)}", _sentence(ast.get_docstring(tree) or "")
    return target, ""


def _labs() -> list[str]:
    return [f"{path.stem}_lab" for path in conf_dir().glob("*.yaml")]


def _sentence(text: str) -> str:
    """The first one, without addresses."""
    first = " ".join(text.partition("\n\n")[0].split())
    first = re.sub(r"; https?://[^\s)]+\)", ")", first)
    return re.sub(r"(?<=\w{2}[.]) .*$", "", first) if not re.search(r"et al\.", first) else first
