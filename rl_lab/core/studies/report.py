"""What a person sees of a study: how many runs and about how long, a line as a job starts and ends, where the study
stands, failures and the best settings at the end, the table at any time.
"""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_lab.core.comparing.groups import is_of_task
from rl_lab.core.errors import counted, pasted
from rl_lab.core.folders import summary
from rl_lab.core.metrics import is_lower_better
from rl_lab.core.progress import duration
from rl_lab.core.studies.notes import STATES, Job
from rl_lab.core.studies.study import Study

POLL, QUIET = 0.3, 60.0  # seconds between looks at the files of the jobs, and without a line
NEWEST = 500  # runs that are looked through for how long they took
BESIDE = "seed=", "name=", "tracker", "hydra", "checkpoint"  # settings on which the time of a run does not depend


def announcement(study: Study, missing: list[int], total: int, at_once: int) -> str:
    """Before the start: how many runs, and about how long, by earlier runs of the same settings; `at_once` is 0 where
    the launcher does not say it.
    """
    left = total - len(study.about["jobs"]) + len(missing)
    if not left:
        return f"{counted(total, 'runs')}, and none is left to start"
    words = counted(left, "runs") if left == total else f"{left} of {counted(total, 'runs')}"
    words += f", {min(at_once, total)} at a time" if at_once > 0 else ""
    known = _earlier(study.root)
    spent = [known[key] for n in missing if (key := _settings(study.job(n).overrides)) in known]
    if not spent:
        return f"{words}; how long they take is known when the first has ended"
    each = sum(spent) / len(spent)
    about = f"about {duration(each * math.ceil(left / at_once))}, as " if at_once > 0 else ""
    return f"{words}; {about}earlier runs of these settings took {duration(each)} each, once begun"


def _earlier(root: Path) -> dict[frozenset[str], float]:
    """Seconds of the newest finished run of each settings, of those under runs/."""
    found = [summary(path.parent) for path in sorted(root.glob("*/*/summary.json"), key=_written)[-NEWEST:]]
    return {
        _settings(str(about.get("command")).split()[2:]): about["seconds"]
        for about in found
        if about.get("state") == "finished" and isinstance(about.get("seconds"), int | float)
    }


def _written(path: Path) -> float:
    """When; long ago where it is gone by now, or a link to nothing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _settings(words: Iterable[str]) -> frozenset[str]:
    """Of a command those on which its time depends."""
    return frozenset(word for word in words if "=" in word and not word.lstrip("+").startswith(BESIDE))


class Ranking:
    """Scores of a study's finished jobs by their settings, over the seeds: each job is looked at once."""

    def __init__(self, study: Study, jobs: Iterable[Job] = ()):
        self.study = study
        self._kinds: set[tuple[Any, ...]] = set()  # names of metrics, and worlds
        self._scores: dict[tuple[str, ...], list[tuple[int, float]]] = {}  # settings -> jobs and scores
        self._seeds: dict[tuple[str, ...], set[tuple[str, ...]]] = {}  # settings -> those of their jobs
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        if job.state == "finished" and job.value:
            name, score = job.value
            self._kinds.add((name, _world(self.study, job)))
            settings = tuple(o for o in job.overrides if not o.startswith("seed="))
            self._scores.setdefault(settings, []).append((job.number, score))
            self._seeds.setdefault(settings, set()).add(tuple(o for o in job.overrides if o.startswith("seed=")))

    def best(self) -> str:
        """Settings and score of the best jobs, means over the seeds; "" before there are any, and of several worlds."""
        if len(self._kinds) != 1:
            return ""
        ((name, _),) = self._kinds
        means = {settings: sum(x for _, x in jobs) / len(jobs) for settings, jobs in self._scores.items()}
        chosen = (min if is_lower_better(str(name)) else max)(means, key=means.__getitem__)
        (number, _), count = self._scores[chosen][0], len(self._seeds[chosen])
        settings = " ".join(o for o in self.study.differing(number) if not o.startswith("seed="))
        return f"{name} {means[chosen]:.4g}: {settings}".rstrip(": ") + f" ({count} seeds)" * (count > 1)


def follow(
    ranking: Ranking, numbers: list[int], total: int, already: int, start: float, out: TextIO, done: threading.Event
) -> None:
    """Says what becomes of the jobs until `done` is set; those that need nothing are not mentioned. Of `total` jobs
    `already` were done at the `start`.
    """
    study = ranking.study
    say = partial(print, file=out, flush=True)
    begun = [job for job in map(study.job, numbers) if job.state in ("finished", "running")]
    shown = {job.number: job.state for job in begun}
    for known in begun:
        ranking.add(known)
    earlier = numbers[0] if numbers else 0  # jobs of the batches before
    ended = earlier + Counter(shown.values())["finished"]
    if shown:
        say(f"{len(shown)} of these jobs {'is' if len(shown) == 1 else 'are'} finished or running")
    last, spoke = False, time.monotonic()
    while True:
        before = ended
        for number in numbers:
            job = study.job(number) if shown.get(number) != "finished" else None
            if job and job.state != shown.get(number, "waiting"):
                shown[number] = job.state
                ranking.add(job)
                ended = earlier + sum(state not in ("running", "waiting", "interrupted") for state in shown.values())
                if job.state == "running":
                    say(f"started: {study.label(number)}".rstrip(": "))
                elif not _spared(job):
                    say(f"[{ended}/{total}] {sentence(study, job)}")
        if ended < total and (ended > before or time.monotonic() - spoke > QUIET):
            spoke = time.monotonic()
            say(standing(ranking, ended, Counter(shown.values())["running"], total, already, spoke - start))
        if last:
            return
        last = done.wait(POLL)


def standing(ranking: Ranking, ended: int, running: int, total: int, already: int, seconds: float) -> str:
    """`3 of 12 done, 4 running, 5 to go; about 2 min left; best so far eval/return 0.95: agent=ppo (2 seeds)`"""
    words = f"{ended} of {total} done, {running} running, {total - ended - running} to go"
    if ended > already:
        words += f"; about {duration(seconds * (total - ended) / (ended - already))} left"
    return words + (f"; best so far {found}" if (found := ranking.best()) else "")


def _world(study: Study, job: Job) -> tuple[str, ...]:
    """The task of a job's score: scores of different worlds are not compared."""
    about = summary(study.folder / (job.folder or ""))
    keys = {o: o.lstrip("+").partition("=")[0] for o in study.differing(job.number)}
    settings = [o for o, key in keys.items() if is_of_task(key) or key.startswith("data.")]
    return str(about.get("env")), str(about.get("data")), *settings


def _spared(job: Job) -> bool:
    """Whether it never began because another job had found a mistake that every job would make."""
    return job.state == "mistake" and job.seconds is None


def sentence(study: Study, job: Job) -> str:
    """`finished in 41 s: agent=dqn seed=2  eval/return 500`"""
    spent = f" in {job.seconds:.0f} s" if job.seconds is not None else ""
    words = f"{job.state}{spent}: {study.label(job.number)}".rstrip(" :")
    return (
        words
        + (f"  {job.value[0]} {job.value[1]:.4g}" if job.value else "")
        + (f"  {reason(study, job)}" if job.reason else "")
    )


def reason(study: Study, job: Job) -> str:
    where = f"; traceback in {_near(study, study.log(job.number))}" if job.state == "crashed" else ""
    return f"{job.reason}{where}"


def account(study: Study, prog: str, forgotten: bool = False) -> tuple[str, int]:
    """How a study ended, in words, and the exit code: 0, 2 after mistakes, 1 after crashes and kills. A `forgotten` one
    began no run and leaves no folder.
    """
    jobs = study.jobs()
    counts = Counter(job.state for job in jobs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    lines = [f"{counted(len(jobs), 'jobs')}: {states}"]
    failed = [job for job in jobs if job.state in ("mistake", "crashed", "interrupted")]
    spared = Counter(job.reason for job in failed if _spared(job))
    for job in failed:
        if not _spared(job):
            more = spared.pop(job.reason, 0)
            lines.append(f"  {sentence(study, job)}" + f", as would {more} more" * (more > 0))
    if len(jobs) > 1 and (found := Ranking(study, jobs).best()):
        lines.append(f"best {found}")
    if forgotten:
        lines.append("no run began, and nothing is kept of them; type the command again without the mistake")
    elif len(jobs) == counts["finished"] + counts["mistake"] > counts["finished"]:
        lines.append("what was finished is kept; type the values that failed, set right, as a sweep of their own")
    elif len(jobs) > counts["finished"]:
        lines.append(f"{prog} study resume {_near(study, study.folder)} runs what is missing")
    else:
        near = _near(study, study.folder)
        lines.append(f"{prog} study {near} lists them, {prog} compare {near} compares them")
    bad = counts["crashed"] + counts["interrupted"] + counts["waiting"]
    return "\n".join(lines), 1 if bad else 2 if counts["mistake"] else 0


def show(runs: list[Path], *, prog: str) -> None:
    """A table of every job of the studies in these folders; without any, a line for each of the program's studies under
    runs/studies.
    """
    console = Console(highlight=False, soft_wrap=True)
    for folder in runs:
        study = Study(folder)
        console.print(f"{study.about.get('command')}   (git {study.about.get('git')})", markup=False)
        console.print(_table(study))
    if not runs:
        found = [Study(path.parent) for path in sorted(Path("runs/studies").glob("*/*/study.yaml"))]
        for study in (own := [study for study in found if study.prog == prog]):
            states = Counter(job.state for job in study.jobs())
            console.print(f"{study.folder}  " + ", ".join(f"{n} {state}" for state, n in states.items()), markup=False)
        if not own:
            begins = f"{prog} train -m seed=0,1,2 experiment=<name> begins one"
            console.print(f"no studies of {prog} under runs/studies; {begins}", markup=False)


def _table(study: Study) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "state", "steps", "seconds", "value", "settings"):
        table.add_column(heading, justify="left" if heading in ("state", "settings") else "right", overflow="fold")
    for job in study.jobs():
        value = f"{job.value[0]} {job.value[1]:.4g}" if job.value else ""
        seconds = f"{job.seconds:,.0f}" if job.seconds is not None else ""
        settings = study.label(job.number) + (f"\n{reason(study, job)}" if job.reason else "")
        table.add_row(*map(Text, (str(job.number), job.state, _steps(study, job), seconds, value, settings)))
    return table


def _steps(study: Study, job: Job) -> str:
    try:
        about = summary(study.folder / (job.folder or ""))
        return f"{about['step']:,}" + (f" of {about['total']:,}" if (about["total"] or 0) >= about["step"] else "")
    except (TypeError, ValueError, KeyError):
        return ""


def _near(study: Study, path: Path) -> str:
    """As it is typed where the command was, which a resumed study leaves for the directory that it began in."""
    return pasted(os.path.relpath(path, study.opened_in))
