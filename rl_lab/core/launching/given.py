"""What the labs' functions are given from Python, as a command line would have it: settings, changes, run folders."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rl_lab.core.calls import one_line
from rl_lab.core.errors import UserError, kind
from rl_lab.core.launching.arguments import idle, split
from rl_lab.core.launching.named import runs_below
from rl_lab.core.launching.named import runs_of as of_studies

Run = str | os.PathLike[str]


def settings(given: Sequence[object], named: Mapping[str, object] = {}) -> list[str]:
    """Those typed for a new run, or beside run=<folder>. Raises UserError where one is no text, or an empty one, or was
    given by its name.
    """
    if named:
        texts = ", ".join(f'"{word}"' for word in (*given, *(f"{key}={one_line(x)}" for key, x in named.items())))
        raise UserError(f"each setting is a text; write ({texts})")
    return [_text(word, 'each setting is a text, "setting=value"') for word in given]


def changes(given: Sequence[object], *keywords: str) -> list[str]:
    """Those of a run's settings. Raises UserError too where one sets nothing, or is among the function's `keywords`."""
    typed = settings(given)
    for word in typed:
        key, equals, _ = word.partition("=")
        if word.startswith("-") or not (equals or word.startswith("~")):
            raise UserError(f"'{word}' sets nothing; write setting=value")
        if (name := key.lstrip("+")) in keywords:
            argument = name.rpartition(".")[2]
            raise UserError(
                f"'{word}' is no setting of the run, but an argument; write {argument}=... outside the quotes"
            )
    if keywords and (ignored := idle(typed)):
        raise UserError(f"'{ignored}' would be ignored, as nothing is trained; leave it out")
    return typed


def run_of(run: Run, lab: str) -> Path:
    """One run folder, as `run=` names it on the command line: a path, a pattern or wandb:..., or that of a folder which
    holds one run of the lab. Raises UserError.
    """
    found = runs_of([run])
    if len(found) == 1:
        found = runs_below(found[0], lab)
    if len(found) > 1:
        raise UserError(f"{run} is {len(found)} folders, and this takes one run; name one of them, such as {found[0]}")
    return found[0]


def runs_of(runs: Iterable[Run]) -> list[Path]:
    """All the folders that these name, each as `run_of` has it, of a study those of its runs; at least one. Raises
    UserError.
    """
    wanted = "each run is the path of its folder, a pattern of paths or wandb:<entity>/<project>/<run>"
    named = [_text(os.fspath(run) if isinstance(run, os.PathLike) else run, wanted) for run in runs]
    if not named:
        raise UserError('which run? name its folder, such as "runs/dqn_cartpole", or one that holds several')
    folders = [folder for name in named for folder in split([name if name.startswith("run=") else f"run={name}"])[0]]
    return of_studies(folders)


def _text(word: object, wanted: str) -> str:
    if isinstance(word, list | tuple):
        raise UserError(f"{wanted}, and {word!r} is a {kind(word)}; a * before it gives them one by one")
    if not isinstance(word, str) or not word.strip():
        raise UserError(f"{wanted}, and {word!r} is not one")
    return word
