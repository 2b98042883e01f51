"""Reproduces claims: runs what is behind a row of kept.csv once more and prints its figures beside those kept."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lab.core.errors import UserError, counted, nearest
from rl_lab.core.launching.composition import parsed
from rl_lab.core.launching.listing import Kept, experiments, kept
from rl_lab.core.progress import duration

if TYPE_CHECKING:
    from rl_lab.core.studies.study import Study

# What changes no figure, but by rounding.
ALLOWED = "hydra.", "hydra/", "device=", "tracker=", "data.root=", "data.resident_gb="


def rows(root: str) -> dict[str, Kept]:
    """The claims that a command makes again, by name: lines of kept.csv with a metric and its figure of each seed."""
    return {line.experiment: line for line in kept(root) if line.metric}


def listed(prog: str, root: str) -> str:
    """One row a line."""
    words, found = dict(experiments(root)), rows(root)
    lines = [f"{prog} reproduce <row>", ""]
    for name, row in found.items():
        lines += [f"{name}: {words[name]}", f"    {row.metric} {row.figures}; {announced(row)}"]
    return "\n".join(lines)


def announced(row: Kept) -> str:
    """How many runs there will be, and how long they took."""
    count, seconds = len(row.seeds.split()), took(row)
    return f"{counted(count, 'runs')}, seed{'s' * (count > 1)} {row.seeds}; " + (
        f"about {duration(sum(seconds))} where it was measured ({row.source})"
        if seconds
        else f"how long they took was not kept ({row.source})"
    )


def took(row: Kept) -> list[float]:
    """Seconds of each run, [] where they were not kept; one number stands for all."""
    found, count = [float(x) for x in row.seconds.split()], len(row.seeds.split())
    return found * count if len(found) == 1 else found


def reproduce(prog: str, root: str, name: str, given: Sequence[str], train: Callable[..., int]) -> int:
    """Runs a row's experiment with its seeds as a study, and prints what was kept beside what came out.

    `train` is launch.py's. Exit code 0 where both are the same, their intervals meet or none is known; 1 where they do
    not meet, or a run is missing. Raises UserError.
    """
    found = rows(root)
    if name not in found:
        if name in rows(sibling := "gen" if root == "rl" else "rl"):
            raise UserError(f"{name} is a row of {sibling}-lab: {sibling}-lab reproduce {name}")
        raise UserError(f"no row '{name}'{nearest(name, found, listing=False)}; {prog} reproduce lists them all")
    if also := [word for word in given if "=" not in word]:
        raise UserError(f"reproduce one row at a time: {prog} reproduce {name}, then {prog} reproduce {also[0]}")
    if other := [word for word in given if not word.startswith(ALLOWED)]:
        raise UserError(f"{other[0]} would make it another claim; {prog} reproduce takes hydra.*, device=, "
                        f"tracker= and where data lie; with other settings: {prog} train experiment={name} "
                        f"{other[0]}")  # fmt: skip
    from rl_lab.core import devices  # here, as torch takes long to import

    for word in given:
        if word.startswith("device="):
            devices.chosen(word.partition("=")[2])
    row = found[name]
    print(f"{name}: {announced(row)}", file=sys.stderr)
    study, code, ended = studied(row, prog, root, given, train)
    agrees = compared(row, prog, code, ended)
    sys.stdout.flush()
    if not code:
        study.reproduced()
    return agrees


def studied(
    row: Kept, prog: str, root: str, given: Sequence[str], train: Callable[..., int]
) -> tuple["Study", int, list[tuple[float, float] | None]]:
    """The study, its exit code, and of each seed the figure and the seconds; None where its run did not finish.

    One of the same revision and settings whose figures were not compared yet goes on.
    """
    from rl_lab.core.folders import summary
    from rl_lab.core.provenance import revision
    from rl_lab.core.studies.study import Study

    seeds = row.seeds.split()
    where = [str(setting.value()) for setting in map(parsed, given) if setting.key_or_group == "hydra.sweep.dir"]
    tracker = [] if any(word.startswith("tracker=") for word in given) else ["tracker=none"]
    another = any(setting.startswith("hydra/launcher=") for setting in given)
    own = [word for word in row.settings.split() if not (another and word.startswith("hydra.launcher."))]
    settings = [f"experiment={row.experiment}", f"seed={','.join(seeds)}", *own, *tracker, *given]
    home, arguments = Path(where[-1] if where else "runs"), ["-m", *settings]
    if study := stopped(home, row.experiment, arguments):
        print(f"{os.path.relpath(study.folder)} was stopped, and goes on", file=sys.stderr)
        study.stop(False)
    else:
        study = Study.begin(home, row.experiment, prog, arguments, revision())
    try:
        with study.launching():
            await_orphans(study)
            code = train(prog, root, arguments, study)
    except KeyboardInterrupt:
        print(f"the same command, {prog} reproduce {row.experiment}, goes on and then compares", file=sys.stderr)
        raise
    finally:
        if not study.about["jobs"]:  # a setting was refused
            study.forget()
    ended: list[tuple[float, float] | None] = []
    for job in study.jobs():
        about = summary(study.folder / job.folder) if job.folder and job.state == "finished" else {}
        value = figure(row.metric, about.get("final", {}))
        ended.append(None if value is None else (value, about["seconds"]))
    return study, code, ended


def stopped(root: Path, name: str, arguments: list[str]) -> "Study | None":
    """The newest study of this revision that the same arguments began in this folder, if it did not come to its end,
    and no process sees to it.
    """
    from rl_lab.core.provenance import revision
    from rl_lab.core.studies.study import Study

    wanted = {"arguments": arguments, "git": revision(), "directory": os.getcwd()}
    for folder in sorted(root.glob(f"studies/{name}/*/"), reverse=True):
        with suppress(UserError):
            study = Study(folder)
            same = all(study.about.get(key) == value for key, value in wanted.items())
            if study.ours and same and not study.is_launched:
                return None if study.is_reproduced or study.is_all("mistake") else study
    return None


def await_orphans(study: "Study") -> None:
    """Until its runs have ended that go on without the process which launched them: that one was killed."""
    if count := len(running := [job.number for job in study.jobs() if job.state == "running"]):
        go = "goes" if count == 1 else "go"
        print(f"{counted(count, 'runs')} of it still {go} on: waiting until {'it ends' if count == 1 else 'they end'}",
              file=sys.stderr)  # fmt: skip
    while any(study.job(number).state == "running" for number in running):
        time.sleep(1.0)


def figure(metric: str, final: dict[str, float]) -> float | None:
    """Of a run's last figures the one of this name, on whatever data: eval/nll_nats is eval/nll_nats[mnist], too."""
    return next((value for name, value in final.items() if metric in (name, name.partition("[")[0])), None)


def compared(row: Kept, prog: str, code: int, ended: Sequence[tuple[float, float] | None]) -> int:
    """Prints the kept figures beside those of now, rounded as they are; returns the exit code."""
    figures, seconds = row.figures.split(), took(row)
    digits = max(len(figure.partition(".")[2]) for figure in figures)
    print(f"\n{row.experiment}, {row.metric}\n{'seed':>6} {'kept':>10} {'now':>10} {'s kept':>8} {'s now':>8}")
    for i, seed in enumerate(row.seeds.split()):
        end = ended[i] if i < len(ended) else None
        value, spent = ("-", "-") if end is None else (f"{end[0]:.{digits}f}", f"{end[1]:.1f}")
        print(f"{seed:>6} {figures[i]:>10} {value:>10} {f'{seconds[i]:g}' if seconds else '-':>8} {spent:>8}")
    if code or len(ended) < len(figures) or None in ended:
        print(f"not every run finished; {prog} study says which, and how to go on")
        return code or 1
    then, now = [float(figure) for figure in figures], [round(end[0], digits) for end in ended if end]
    before, after = interval(then), interval(now)
    print(f"kept {shown(before)}, now {shown(after)}" + " (interquartile mean [95 % interval])" * (len(now) > 1))
    if then == now:
        print("the same figures, as far as they were kept")
        return 0
    if len(now) == 1:
        print("one seed has no interval: whether these agree is for you to judge")
        return 0
    meet = before[1] <= after[2] and after[1] <= before[2]
    print("the intervals meet" if meet else "the intervals do not meet: what was kept is not what comes out now")
    return 0 if meet else 1


def interval(figures: Iterable[float]) -> tuple[float, float, float]:
    """Interquartile mean and its 95 % interval, by the stratified bootstrap; of one figure the bounds are nan."""
    from rl_lab.core.comparing.statistics import stratified_bootstrap

    point, low, high = stratified_bootstrap([*figures])
    return float(point), float(low), float(high)


def shown(found: tuple[float, float, float]) -> str:
    point, low, high = (f"{x:.4g}" for x in found)
    return point if low == "nan" else f"{point} [{low}, {high}]"


def table(root: str) -> list[str]:
    """The rows of tests/bench/results/README.md."""
    words, lines = dict(experiments(root)), []
    for name, row in rows(root).items():
        figures = row.figures.split()
        score = f"{row.metric} {shown(interval(map(float, figures))) if len(figures) > 1 else row.figures}"
        source = Path(row.source).name
        lines.append(f"| `{name}` | {words[name]} | {score} | {' '.join(figures)} | {row.seeds} | {row.spent} | "
                     f"{row.beside} | [{source}]({source}) |")  # fmt: skip
    return lines
