"""What run folders say, read from their files alone: settings, curves, and which runs differ by the seed only."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rl_lab.core import files, rows
from rl_lab.core.errors import UserError, brief, nearest, refuse_undecoded
from rl_lab.core.yaml_events import LOADER, events

LARGEST_VALUE, LONGEST_NAME = 1e100, 200  # of a metric that can be drawn; characters
LARGEST, MOST = 2**22, 1_000_000  # bytes of a config, a summary or a study, and values in it
IGNORED = {"seed", "device", "threads", "tracker", "checkpoint", "hydra", "choices"}  # change no result


class Curve(NamedTuple):
    """One metric of one run; [P] each, steps increasing."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


class RunFiles(NamedTuple):
    """What a run folder says."""

    folder: Path
    name: str
    seed: int
    choices: dict[str, str]
    settings: dict[str, str]  # dotted key -> value, of all that may change a result
    curves: dict[str, Curve]  # by metric
    finished: bool
    fault: str = ""  # what is wrong with its rows


def read_runs(folders: Iterable[Path], notes: list[str]) -> list[RunFiles]:
    """Every run at or below the folders, once; one that cannot be read is noted, and so is one without rows, or a
    UserError if named itself.
    """
    found: dict[Path, RunFiles] = {}
    refused: list[UserError] = []
    folders = [*map(Path, folders)]
    for folder in folders:
        if (folder / "config.yaml").is_file() and not any(folder.glob("seed*/config.yaml")):
            inside, named = [folder], True
        else:
            inside, named = sorted(path.parent for path in folder.rglob("metrics.jsonl")), False
            inside = [path for path in inside if (path / "config.yaml").is_file()]
            if not inside:
                refused.append(UserError(f"no run in {folder}; a run folder holds config.yaml and metrics.jsonl"))
                if len(folders) == 1:
                    raise refused[0]
        for path in inside:
            try:
                run = read_run(path)
            except UserError as error:
                refused.append(error)
                continue
            if named and not run.curves:
                raise UserError(f"{folder} has no rows in metrics.jsonl yet; wait for them or leave it out")
            notes += [f"{path} is left out: it has no rows."] * (not run.curves)
            if run.curves and found.setdefault(path.resolve(), run) is run and run.fault:
                notes.append(f"{path}/{rows.NAME} is not as it was written: {run.fault}.")
    if refused and not found:
        raise UserError(f"{refused[0]}; leave it out")
    notes += [f"left out: {error}." for error in refused]
    if not found:
        raise UserError("no runs to compare; name their folders: runs/<name>")
    return list(found.values())


def read_run(folder: Path) -> RunFiles:
    """Settings, and every metric as a curve. Raises UserError."""
    refuse_undecoded(str(folder))
    config = plain(folder / "config.yaml")
    try:
        name, seed, choices = config.pop("name"), config["seed"], config.get("choices") or {}
        flat = list(_flatten({key: value for key, value in config.items() if key not in IGNORED}))
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise _not_a_config(folder) from None
    if (
        isinstance(name, dict | list | None)
        or len(str(name)) > LONGEST_NAME
        or type(seed) is not int
        or not isinstance(choices, dict)
    ):
        raise _not_a_config(folder)
    about = summary(folder)
    mark, ended = rows.Mark.of(about.get("rows")), about.get("state") == "finished"
    read = rows.read(folder, mark, ended)
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in read.rows:
        for metric in row.keys() - {"step", "seconds"}:
            if abs(row[metric]) < LARGEST_VALUE:  # not nan either
                points.setdefault(metric, []).append((row["step"], row["seconds"], row[metric]))
    curves = {metric: _curve(*np.array(points[metric], float).T) for metric in sorted(points)}
    settings = dict(flat)
    earlier = about["rows"].get("fault") if mark else ""
    faults = [text for text in (earlier, read.fault) if isinstance(text, str) and text]
    choices = {str(key): str(value) for key, value in choices.items()}
    return RunFiles(folder, str(name), seed, choices, settings, curves, ended, "; ".join(dict.fromkeys(faults)))


def _not_a_config(folder: Path) -> UserError:
    return UserError(f"{folder}/config.yaml is not the config of a run")


def plain(path: Path) -> dict[str, Any]:
    """A YAML of a run folder as plain data. Raises UserError: aliases would let a small file fill the memory."""
    try:
        with files.opened(path, LARGEST) as file:
            text = file.read().decode(errors="replace")
        for _ in events(text, path, MOST):
            pass
        found = yaml.load(text, LOADER) or {}
    except UserError:
        raise
    except PermissionError as error:
        raise files.unread(error) from None
    except (yaml.YAMLError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {brief(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not the config of a run")
    return found


def summary(folder: Path) -> dict[str, Any]:
    """Its summary.json; {} where there is none, or a damaged one."""
    try:
        with files.opened(folder / "summary.json", LARGEST) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):  # a link is a UserError, which is a ValueError
        return {}
    return files.printable(found) if isinstance(found, dict) else {}


def _curve(steps: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> Curve:
    """Where a step comes twice, the run was resumed from there: the older points are void."""
    kept = steps < np.minimum.accumulate(np.append(steps[1:], np.inf)[::-1])[::-1]
    return Curve(steps[kept], seconds[kept], values[kept])


def _flatten(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def records(runs: Iterable[RunFiles], settings: Iterable[str] | str = ()) -> list[dict[str, Any]]:
    """A record for each step that has a row: run, name and seed, the names chosen (agent, env, ...), what an env is of
    Gymnasium's (env.id) or Atari's (env.game), the `settings` asked for, step, seconds, and the metrics of that row.
    Raises UserError where no run has such a setting.
    """
    found: list[dict[str, Any]] = []
    runs, listed = list(runs), isinstance(settings, Iterable) and not isinstance(settings, str)
    settings = [str(word) for word in settings] if listed else [str(settings)]
    for key in settings:
        if not any(key in run.settings for run in runs):
            raise UserError(f"no setting '{key}'{nearest(key, (k for run in runs for k in run.settings))}")
    for run in runs:
        head = {"run": str(run.folder), "name": run.name, "seed": run.seed, **run.choices}
        head |= {key: _value(run.settings[key]) for key in ("env.id", "env.game") if key in run.settings}
        head |= {key: _value(run.settings[key]) if key in run.settings else None for key in settings}
        rows: dict[float, dict[str, Any]] = {}
        for metric, curve in run.curves.items():
            for step, seconds, value in zip(*(x.tolist() for x in curve), strict=True):
                row = rows.setdefault(step, {"step": int(step), "seconds": seconds})
                row |= {"seconds": max(seconds, row["seconds"]), metric: value}
        found += [head | rows[step] for step in sorted(rows)]
    return found


def frame(rows: list[dict[str, Any]]) -> Any:
    """Records as a pandas.DataFrame. Raises UserError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise UserError(
            "a frame needs pandas: pip install 'rl-lab[pandas]'; metrics(...) gives the same as plain records"
        ) from None
    return pandas.DataFrame.from_records(rows)


def _value(text: str) -> Any:
    """What a setting was, before `read_run` made it a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def choose_metric(runs: list[RunFiles], metric: str | None = None) -> str:
    """The metric asked for, or the first choice of those that every run has. Raises UserError."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    if metric is None:
        order = ["eval/return", "episode/return", *(m for m in common if m.startswith("eval/"))]
        if chosen := [m for m in order if m in common] or (common if len(common) == 1 else []):
            return chosen[0]
        if not common:
            raise UserError("these runs have no metric in common; compare fewer of them")
        raise UserError(f"which metric? choose metric= from {', '.join(common)}")
    if metric not in {m for run in runs for m in run.curves}:
        raise UserError(f"no metric '{metric}'{nearest(metric, common)}")
    if metric not in common:
        without = next(run.folder for run in runs if metric not in run.curves)
        others = f" or choose from {', '.join(common)}" if common else ""
        raise UserError(f"{without} has no '{metric}'; leave it out{others}")
    return metric


def group(runs: list[RunFiles], notes: list[str]) -> dict[str, list[RunFiles]]:
    """Runs alike in all but the seed, in its order, under the shortest text that distinguishes them from the others.

    A seed run twice is one sample, not two: the longer run stands for both, and a note names the other.
    """
    alike: dict[tuple[Any, ...], dict[int, RunFiles]] = {}
    for run in sorted(runs, key=lambda run: -max(curve.steps[-1] for curve in run.curves.values())):
        seeds = alike.setdefault((run.name, *sorted(run.settings.items())), {})
        if seeds.setdefault(run.seed, run) is not run:
            notes.append(f"{run.folder} is left out: {seeds[run.seed].folder} has its seed and settings.")
    groups = [[seeds[k] for k in sorted(seeds)] for seeds in alike.values()]
    return {label(runs[0], [g[0] for g in groups if g[0].name == runs[0].name]): runs for runs in groups}


def label(run: RunFiles, namesakes: list[RunFiles]) -> str:
    """The name, and the settings that differ among namesakes; agent=a2c stands for all agent.* it implies."""
    settings = dict.fromkeys(key for other in namesakes for key in other.settings)
    differing = [key for key in settings if len({other.settings.get(key) for other in namesakes}) > 1]
    words = [run.name]
    for choice, chosen in run.choices.items():
        names = {other.choices.get(choice) for other in namesakes}
        inside = [key for key in differing if key.split(".")[0] == choice]
        pairs = {k: {(o.choices.get(choice), o.settings.get(k)) for o in namesakes} for k in inside}
        implied = [key for key in inside if len(pairs[key]) == len(names)]
        words += [f"{choice}={chosen}"] * bool(implied)
        differing = [key for key in differing if key not in implied]
    return " ".join(words + [f"{key}={run.settings[key]}" for key in differing if key in run.settings])
