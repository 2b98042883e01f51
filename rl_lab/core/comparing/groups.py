"""Which runs are compared with which: filters, tasks, groups of equal settings, and short names for them all."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rl_lab.core.errors import UserError, nearest
from rl_lab.core.folders import RunFiles, group

SAMPLING = {"env.num_envs", "env.num_threads", "env.device"}  # how a task is sampled, not what it is
SEEN = {
    f"env.{name}" for name in ("normalise_obs", "normalise_reward", "clip_obs", "frame_stack")
}  # by the agent alone
NOT_ALGORITHM = "env", "experiment"  # of the chosen names
LONGEST = 40  # characters of a value in a title
MOST = 6  # settings that a note lists with their values
TITLES = "env.id", "env.game"  # settings that say what an environment is, where its file's name does not

Groups = dict[str, list[RunFiles]]
Choices = tuple[tuple[str, str], ...]  # of Hydra's groups, by name


def known(run: RunFiles) -> dict[str, str]:
    """All by which a run may be chosen or grouped."""
    return {"name": run.name, "seed": str(run.seed), **run.choices, **run.settings}


def chosen(runs: list[RunFiles], conditions: Iterable[str]) -> list[RunFiles]:
    """The runs for which every condition holds: key:value, or -key:value for all others; * stands for any text."""
    for condition in conditions:
        key, colon, wanted = condition.removeprefix("-").partition(":")
        if not colon:
            raise UserError(f"where={condition} is not a condition; write where=agent.gamma:0.99, or -agent.gamma:0.99")
        _check(key, runs)
        kept = [run for run in runs if _equal(known(run).get(key), wanted) != condition.startswith("-")]
        if not kept:
            raise UserError(f"where={condition} leaves no run; {key} is {_listed(known(run).get(key) for run in runs)}")
        runs = kept
    return runs


def _check(key: str, runs: list[RunFiles]) -> None:
    keys = {name for run in runs for name in known(run)}
    if key not in keys:
        raise UserError(f"no setting '{key}'{nearest(key, keys)}")


def _equal(value: str | None, wanted: str) -> bool:
    if value is None:
        return False
    try:
        return float(value) == float(wanted)
    except ValueError:
        return value == wanted or fnmatchcase(value.lower(), wanted.lower())


def _listed(values: Iterable[str | None]) -> str:
    return " or ".join(sorted({" ".join((value or "none").split()) for value in values}))


def arrange(runs: list[RunFiles], by: Sequence[str], notes: list[str]) -> dict[str, Groups]:
    """Runs by task and group; a task is an environment with its settings, a group all else but the seed.

    In one task, runs are alike if their names and settings are. Over several tasks a group is an algorithm: one choice
    of agent, distinguished by the settings that differ within some task; the rest goes with the task. `by` names
    all settings that distinguish groups instead. Notes say what was left out, and what was pooled.
    """
    for key in by:
        _check(key, runs)
        if key == "seed":
            raise UserError(
                "by=seed would leave nothing to pool, as a group is made of seeds; where=seed:0 selects one"
            )
    tasks = _tasks(runs, by)
    if not by and len(set(tasks.values())) == 1:
        return {tasks[runs[0].folder]: group(runs, notes)}
    runs = _unique(runs, "name" in by, notes)
    if by:
        labels = {run.folder: " ".join(f"{key}={known(run).get(key, 'none')}" for key in by) for run in runs}
    else:
        labels = _labels(runs, tasks)
    arranged: dict[str, Groups] = {name: {} for name in sorted(set(tasks.values()), key=str.lower)}
    for run in runs:
        arranged[tasks[run.folder]].setdefault(labels[run.folder], []).append(run)
    for members in (members for groups in arranged.values() for members in groups.values()):
        members.sort(key=lambda run: run.seed)
    notes += _pooled(arranged)
    return arranged


def _unique(runs: list[RunFiles], names_count: bool, notes: list[str]) -> list[RunFiles]:
    """A seed run twice is one sample, not two: the longer run stands for both, and a note names the other."""
    found: dict[tuple[object, ...], RunFiles] = {}
    for run in sorted(runs, key=lambda run: -max(curve.steps[-1] for curve in run.curves.values())):
        choices = tuple(pair for pair in run.choices.items() if pair[0] != "experiment")
        key = (names_count and run.name, run.seed, choices, *sorted(run.settings.items()))
        if found.setdefault(key, run) is not run:
            notes.append(f"{run.folder} is left out: {found[key].folder} has its seed and settings.")
    return list(found.values())


def is_of_task(key: str) -> bool:
    return key.startswith("env.") and key not in SAMPLING | SEEN


def _tasks(runs: list[RunFiles], by: Sequence[str]) -> dict[Path, str]:
    """By folder the environment's name, and the settings in which its namesakes differ."""
    of_task = {run.folder: {k: v for k, v in run.settings.items() if is_of_task(k) and k not in by} for run in runs}
    titles = {}
    for run in runs:
        title = next((of_task[run.folder][key] for key in TITLES if key in of_task[run.folder]), None)
        titles[run.folder] = title or run.choices.get("env", "")
    names = {}
    for run in runs:
        namesakes = [of_task[other] for other, title in titles.items() if title == titles[run.folder]]
        keys = [key for key in of_task[run.folder] if len({settings.get(key) for settings in namesakes}) > 1]
        words = [f"{key}={_short(of_task[run.folder][key])}" for key in keys]
        names[run.folder] = " ".join([titles[run.folder], *words])
    return names


def _short(value: str) -> str:
    """The value on one line; of a drawn map, or what else is long, the beginning and a digest that tells it apart."""
    text = " ".join(value.split())
    if os.path.isabs(text):
        text = min(text, os.path.relpath(text), key=len)
    return text if len(text) <= LONGEST else f"{text[:12]}... ({hashlib.sha256(text.encode()).hexdigest()[:4]})"


def _labels(runs: list[RunFiles], tasks: dict[Path, str]) -> dict[Path, str]:
    """By folder the algorithm's name, and the choices and settings in which its namesakes differ."""
    alike = _algorithms(runs, tasks)
    groups: dict[frozenset[tuple[str, str]], list[RunFiles]] = {}
    for run in runs:
        groups.setdefault(frozenset(alike[run.folder].items()), []).append(run)
    titles = {key: _title(members) for key, members in groups.items()}
    labels: dict[Path, str] = {}
    for key, members in groups.items():
        namesakes = [dict(other) for other, title in titles.items() if title == titles[key]]
        mine = alike[members[0].folder]
        words = [f"{name}={mine[name]}" for name in mine if len({other.get(name) for other in namesakes}) > 1]
        labels |= {run.folder: " ".join([titles[key], *words]) for run in members}
    return labels


def _algorithms(runs: list[RunFiles], tasks: dict[Path, str]) -> dict[Path, dict[str, str]]:
    """By folder the choices, and the settings that tell apart runs of these choices within some task."""
    rivals: dict[tuple[Choices, str], list[RunFiles]] = {}  # of the same choices in the same task
    for run in runs:
        rivals.setdefault((_choices(run), tasks[run.folder]), []).append(run)
    telling: dict[Choices, set[str]] = {choices: set() for choices, _ in rivals}
    for (choices, _), members in rivals.items():
        keys = {key for run in members for key in run.settings}
        telling[choices] |= {key for key in keys if len({run.settings.get(key) for run in members}) > 1}
    return {
        run.folder: dict(_choices(run)) | {k: v for k, v in run.settings.items() if k in telling[_choices(run)]}
        for run in runs
    }


def _choices(run: RunFiles) -> Choices:
    return tuple(pair for pair in run.choices.items() if pair[0] not in NOT_ALGORITHM)


def _title(runs: list[RunFiles]) -> str:
    """The words that all names share: ppo of ppo_cartpole and ppo_pong."""
    first, *others = [run.name.split("_") for run in runs]
    shared = [word for word in first if all(word in other for other in others)]
    return "_".join(shared) or " ".join(chosen for _, chosen in _choices(runs[0])) or runs[0].name


def differing(arranged: dict[str, Groups]) -> dict[str, dict[str, list[str]]]:
    """Settings in which runs differ, but for what makes their tasks: setting -> group -> values ("": has none)."""
    members: dict[str, list[RunFiles]] = {}
    for groups in arranged.values():
        for name, runs in groups.items():
            members.setdefault(name, []).extend(runs)
    keys = dict.fromkeys(key for runs in members.values() for run in runs for key in run.settings)
    found = {}
    for key in keys:
        values = {name: sorted({run.settings.get(key, "") for run in runs}) for name, runs in members.items()}
        if len({value for of_group in values.values() for value in of_group}) > 1 and not is_of_task(key):
            found[key] = values
    return found


def _pooled(arranged: dict[str, Groups]) -> Iterator[str]:
    """What differs inside a group: within a task, where it widens the interval, or from task to task only."""
    within: dict[str, set[str]] = {}
    for groups in arranged.values():
        for runs in groups.values():
            for key in dict.fromkeys(key for run in runs for key in run.settings):
                values = {run.settings.get(key, "none") for run in runs}
                if len(values) > 1 and not is_of_task(key):
                    within.setdefault(key, set()).update(values)
    if within:
        texts = [f"{key} ({_listed(values)})" for key, values in within.items()]
        yield f"pooled in a group: {'; '.join(texts[:MOST])}{f'; and {len(texts) - MOST} more' * (len(texts) > MOST)}."
    between = [key for key, of in differing(arranged).items() if any(len(v) > 1 for v in of.values())]
    if between := [key for key in between if key not in within]:
        yield f"differs from task to task within a group: {', '.join(between)}."
