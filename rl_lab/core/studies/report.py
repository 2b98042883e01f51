"""What a person sees of a study: a line as a job starts and ends, the failures at the end, the table at any time."""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_lab.core.folders import summary
from rl_lab.core.studies.study import STATES, Job, Study

POLL = 0.3  # seconds between looks at the files of the jobs


def follow(study: Study, numbers: list[int], out: TextIO, done: threading.Event) -> None:
    """Says what becomes of the jobs until `done` is set; those that need nothing are not mentioned."""
    total = len(study.about["jobs"])
    shown = {n: state for n in numbers if (state := study.job(n).state) in ("finished", "running")}
    before = numbers[0] if numbers else 0
    if shown:
        print(f"{len(shown)} of these jobs are finished or running", file=out, flush=True)
    last = False
    while True:
        for number in numbers:
            job = study.job(number) if shown.get(number) != "finished" else None
            if job and job.state != shown.get(number, "waiting"):
                shown[number] = job.state
                ended = before + sum(state not in ("running", "waiting") for state in shown.values())
                if job.state == "running":
                    print(f"started: {study.label(number)}", file=out, flush=True)
                elif not _spared(job):
                    print(f"[{ended}/{total}] {sentence(study, job)}", file=out, flush=True)
        if last:
            return
        last = done.wait(POLL)


def _spared(job: Job) -> bool:
    """Whether it never began, since another job had found a mistake that every job would make."""
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
    where = f"; traceback in {_near(study.log(job.number))}" if job.state == "crashed" else ""
    return f"{job.reason}{where}"


def account(study: Study, prog: str) -> tuple[str, int]:
    """How a study ended, in words, and the exit code: 0, 2 after mistakes, 1 after crashes and kills."""
    jobs = study.jobs()
    counts = Counter(job.state for job in jobs)
    lines = [f"{len(jobs)} jobs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]
    failed = [job for job in jobs if job.state in ("mistake", "crashed", "interrupted")]
    spared = Counter(job.reason for job in failed if _spared(job))
    for job in failed:
        if not _spared(job):
            more = spared.pop(job.reason, 0)
            lines.append(f"  {sentence(study, job)}" + f", as would {more} more" * (more > 0))
    if len(jobs) > counts["finished"]:
        lines.append(f"{prog} study resume {_near(study.folder)} runs what is missing")
    else:
        lines.append(
            f"{prog} study {_near(study.folder)} lists them, {prog} compare {_near(study.folder)} compares them"
        )
    bad = counts["crashed"] + counts["interrupted"] + counts["waiting"]
    return "\n".join(lines), 1 if bad else 2 if counts["mistake"] else 0


def show(runs: list[Path]) -> None:
    """A table of every job of the studies in these folders; without any, a line for each study under runs/studies."""
    console = Console(highlight=False, soft_wrap=True)
    for folder in runs:
        study = Study(folder)
        console.print(f"{study.about.get('command')}   (git {study.about.get('git')})", markup=False)
        console.print(_table(study))
    if not runs:
        found = sorted(path.parent for path in Path("runs/studies").glob("*/*/study.yaml"))
        for folder in found:
            states = Counter(job.state for job in Study(folder).jobs())
            console.print(f"{folder}  " + ", ".join(f"{n} {state}" for state, n in states.items()), markup=False)
        if not found:
            console.print("no studies under runs/studies; rl-lab train -m seed=0,1,2 begins one", markup=False)


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
        return f"{about['step']:,}" + (f" of {about['total']:,}" if about["total"] >= about["step"] else "")
    except (TypeError, ValueError, KeyError):
        return ""


def _near(path: Path) -> Path:
    return Path(os.path.relpath(path))
