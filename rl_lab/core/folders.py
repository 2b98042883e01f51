"""What run folders say, read from their files alone: settings, curves, and which runs differ by the seed only."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from rl_lab.core.errors import UserError, nearest

IGNORED = {"seed", "device", "threads", "tracker", "checkpoint", "hydra", "choices"}  # change no result
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast
LOWER_IS_BETTER = {
    "regret",
    "nll",
    "nats",
    "bits",
    "loss",
    "residual",
    "error",
    "fid",
    "kid",
    "mse",
    "mmd",
    "perplexity",
    "kl",
    "frechet",
    "distance",
}


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


def read_runs(folders: Iterable[Path], notes: list[str]) -> list[RunFiles]:
    """Every run at or below the folders, once; one without rows is noted, or a UserError if named itself."""
    found: dict[Path, RunFiles] = {}
    for folder in map(Path, folders):
        if (folder / "config.yaml").is_file() and not any(folder.glob("seed*/config.yaml")):
            runs = [read_run(folder)]
            if not runs[0].curves:
                raise UserError(f"{folder} has no rows in metrics.jsonl yet; wait for them or leave it out")
        else:
            inside = sorted(path.parent for path in folder.rglob("metrics.jsonl"))
            runs = [read_run(path) for path in inside if (path / "config.yaml").is_file()]
            if not runs:
                raise UserError(f"no run in {folder}; a run folder holds config.yaml and metrics.jsonl")
        notes += [f"{run.folder} is left out: it has no rows." for run in runs if not run.curves]
        for run in runs:
            if run.curves:
                found.setdefault(run.folder.resolve(), run)
    if not found:
        raise UserError("no runs to compare; name their folders, such as runs/dqn_four_rooms")
    return list(found.values())


def read_run(folder: Path) -> RunFiles:
    """Settings, and every metric as a curve. Raises UserError."""
    try:
        config = yaml.load((folder / "config.yaml").read_text(), LOADER)
        name, seed, choices = str(config.pop("name")), config["seed"], config.get("choices") or {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.yaml is not the config of a run; leave it out") from error
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in _objects(_text(folder / "metrics.jsonl").splitlines()):
        for metric in row.keys() - {"step", "seconds"}:
            if isinstance(row[metric], int | float) and math.isfinite(row[metric]):
                points.setdefault(metric, []).append((row["step"], row["seconds"], row[metric]))
    curves = {metric: _curve(*np.array(points[metric], float).T) for metric in sorted(points)}
    flat = _flatten({key: value for key, value in config.items() if key not in IGNORED})
    settings = {key: value for key, value in flat if not (key.endswith(".seed") and value == str(seed))}
    return RunFiles(folder, name, seed, choices, settings, curves, summary(folder).get("state") == "finished")


def summary(folder: Path) -> dict:
    """Its summary.json; empty where there is none, or none that is whole."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _objects(texts: Iterable[str]) -> Iterator[dict]:
    """From JSON; what a kill cut short is none."""
    for text in texts:
        try:
            yield json.loads(text)
        except ValueError:
            continue


def _curve(steps: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> Curve:
    """Where a step comes again, the run was taken up from there: the older points are void."""
    kept = steps < np.minimum.accumulate(np.append(steps[1:], np.inf)[::-1])[::-1]
    return Curve(steps[kept], seconds[kept], values[kept])


def _flatten(config: dict, path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


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


def is_lower_better(metric: str) -> bool:
    return bool(LOWER_IS_BETTER & set(re.split(r"[^a-z]+", metric.split("[")[0].lower())))


def group(runs: list[RunFiles], notes: list[str]) -> dict[str, list[RunFiles]]:
    """Runs alike in all but the seed, under the shortest text that tells them from the others.

    A seed run twice is one sample, not two: the longer run stands for both, and a note names the other.
    """
    alike: dict[tuple, dict[int, RunFiles]] = {}
    for run in sorted(runs, key=lambda run: -max(curve.steps[-1] for curve in run.curves.values())):
        seeds = alike.setdefault((run.name, *sorted(run.settings.items())), {})
        if seeds.setdefault(run.seed, run) is not run:
            notes.append(f"{run.folder} is left out: {seeds[run.seed].folder} has its seed and settings.")
    groups = [list(seeds.values()) for seeds in alike.values()]
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
