"""Between Hydra's sweepers and its launchers: what is launched is written down, and what is done is not launched."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import takewhile
from multiprocessing import resource_tracker
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, read_write

from rl_lab.core import interrupts
from rl_lab.core.errors import UserError
from rl_lab.core.launching.composition import is_group
from rl_lab.core.studies import report, slurm
from rl_lab.core.studies.study import Study

EndedEarly = Exception  # each launcher has errors of its own for a worker that died
PATIENCE = 10.0  # seconds without a job that begins, before the first word
TAKEN_UP = 2  # times a job is, after its process was killed; the last time it runs alone
BEGINNING = {
    "RayLauncher": "Ray starts its workers, which takes a minute or two at first",
    "SlurmLauncher": "squeue --me shows what they wait for in Slurm's queue",
}


@contextmanager
def recording(
    begin: Callable[[DictConfig], Study],
    job: Callable[..., Any],  # job(config, study=..., launcher=...) is what the launcher's processes call
    rehearse: Callable[[Callable[[list[str]], DictConfig], list[str]], None],  # raises UserError over a job's settings
    forced: Container[str],  # settings that were typed without the ++ before them
) -> Iterator[list[Study]]:
    """Within, a sweeper that asks Hydra for its launcher gets one that keeps a study and appends it to the yielded
    list.
    """
    studies, plugins = [], Plugins.instance()
    ask = plugins.instantiate_launcher

    def instantiate_launcher(
        hydra_context: HydraContext, task_function: Callable[..., Any], config: DictConfig
    ) -> Launcher:
        del vars(plugins)["instantiate_launcher"]  # asked once; what is sent to other processes is Hydra's own
        study = begin(config)
        studies.append(study)
        with read_write(config):
            config.hydra.sweep.dir = str(study.folder)  # where sweepers and launchers leave files of their own
        task = partial(job, study=study, launcher=os.getpid())
        launcher = ask(hydra_context=hydra_context, task_function=task, config=config)
        composed = partial(hydra_context.config_loader.load_sweep_config, config)
        return Recorded(launcher, study, config, partial(rehearse, composed), forced)

    vars(plugins)["instantiate_launcher"] = instantiate_launcher  # before the class's own method
    try:
        yield studies
    finally:
        vars(plugins).pop("instantiate_launcher", None)


class Recorded(Launcher):
    """Launches, of the jobs it is given, those that the study misses."""

    def __init__(
        self,
        launcher: Launcher,
        study: Study,
        config: DictConfig,
        rehearse: Callable[[list[str]], None],
        forced: Container[str],
    ):
        self.launcher, self.study, self.rehearse, self.forced = launcher, study, rehearse, forced
        self.trials: int = OmegaConf.select(config, "hydra.sweeper.n_trials") or 0  # of a search, in many batches
        one = str(OmegaConf.select(config, "hydra.launcher._target_")).endswith(".BasicLauncher")
        self.at_once: int = OmegaConf.select(config, "hydra.launcher.n_jobs") or int(one)
        self.start, self.already = 0.0, 0
        self.killed: Counter[int] = Counter()  # how often a job's process was, without a word
        self.ranking = report.Ranking(study)

    def setup(self, **_: Any) -> None: ...  # the launcher inside is set up

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What each job came to, which a search optimises; None where it failed, or still runs elsewhere.

        Raises UserError where the settings of a job that a user typed are a mistake: none of them is launched then.
        """
        numbers = self.study.add([[*map(self._as_typed, job)] for job in job_overrides], initial_job_idx)
        missing = [n for n in numbers if self.study.job(n).state not in ("finished", "running")]
        self.study.share_mistake(None)
        if self.study.ours and not self.trials:
            self._rehearse([self.study.job(number).overrides for number in missing])
        for number in missing:
            self.study.note(number, state="waiting")
        total = max(self.trials, len(self.study.about["jobs"]))
        if not self.start:
            self.start, self.already = time.monotonic(), len(numbers) - len(missing)
            print(report.announcement(self.study, missing, total, self.at_once), file=sys.stderr)
        who = BEGINNING.get(type(self.launcher).__name__, "its processes start")
        follows = _followed(self.ranking, numbers, total, self.already, self.start, who)
        with follows, _stoppable(self.study) as stopped:
            while missing and not stopped:
                batch = [n for n in missing if self.killed[n] < TAKEN_UP] or missing[:1]
                again = self._attempt(batch, stopped)
                missing = sorted({*missing} - {*batch} | {*again})
        if stopped or self.study.stopping:
            raise _interruption(stopped)
        return [self._returned(number) for number in numbers]

    def _as_typed(self, override: str) -> str:
        plain = override.removeprefix("++")
        return plain if plain.partition("=")[0] in self.forced else override

    def _rehearse(self, jobs: list[list[str]]) -> None:
        """Each choice of parts together, and each setting, in the first job that has it."""
        rehearsed: set[str | frozenset[str]] = set()
        shared = set(jobs[0]).intersection(*jobs) if jobs else set()
        for job in jobs:
            parts = frozenset(o for o in job if is_group(o.partition("=")[0]) or ".id=" in o or ".game=" in o)
            if rehearsed.issuperset({parts, *job}):
                continue
            rehearsed.update(job, {parts})
            try:
                self.rehearse(job)
            except UserError as error:
                own = " ".join(o for o in job if o not in shared)
                raise UserError(f"{error} (the run of {own[:200]}); none was started" if own else str(error)) from None

    def _attempt(self, missing: list[int], stopped: list[int]) -> list[int]:
        """Returns those to launch again: a worker that is killed takes its pool with it, the jobs in line and those
        that run beside it. Which one was meant, or is too large, shows when they run one by one.
        """
        slurm.attend(self.launcher)
        left: list[int] = []
        try:
            line = InLine(self.study, map(self._overrides, missing))
            with nullcontext() if self.at_once == 1 else _deaf_children():
                self.launcher.launch(line, initial_job_idx=missing[0])
        except EndedEarly as error:
            if words := slurm.refusal(error, self.launcher):
                raise UserError(words) from None
            left = [number for number in missing if self.study.job(number).state == "waiting"]
            if len(left) == len(missing) and not stopped:
                raise
        killed = [] if stopped else self.study.killed(missing)
        self.killed.update(killed)
        again = [number for number in killed if self.killed[number] <= TAKEN_UP]
        for number in again:
            print(f"killed, and taken up again: {self.study.label(number)}".rstrip(": "), file=sys.stderr)
        return sorted(left + again)

    def _overrides(self, number: int) -> list[str]:
        name = f"{self.study.folder.name}-{number}"
        return [
            *self.study.job(number).overrides,
            f"hydra.job.name='{name}'",
            f"hydra.sweep.dir='{self.study.root.resolve()}'",
        ]

    def _returned(self, number: int) -> JobReturn:
        job = self.study.job(number)
        return JobReturn(
            overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=job.value[1] if job.value else None
        )


class InLine(list[Sequence[str]]):
    """Jobs of which, once the study stops, none is left to take: a launcher would compose each before it is refused."""

    def __init__(self, study: Study, jobs: Iterable[Sequence[str]]):
        super().__init__(jobs)
        self.study = study

    def __iter__(self) -> Iterator[Sequence[str]]:
        return takewhile(lambda _: not self.study.stopping, super().__iter__())


@contextmanager
def _followed(
    ranking: report.Ranking, numbers: list[int], total: int, already: int, start: float, who: str
) -> Iterator[None]:
    """A line for each job that starts and ends, from this process alone, wherever the jobs run."""
    done = threading.Event()
    known = ranking, numbers, total, already, start, sys.stderr, done
    reporters = [
        threading.Thread(target=report.follow, args=known, daemon=True),
        threading.Thread(target=_reassure, args=(ranking.study, numbers, who, done), daemon=True),
    ]
    for reporter in reporters:
        reporter.start()
    try:
        yield
    finally:
        done.set()
        for reporter in reporters:
            reporter.join()


def _reassure(study: Study, numbers: list[int], who: str, done: threading.Event) -> None:
    """Says, less and less often until the first job begins, that it is still waiting."""
    begun, pause = time.monotonic(), PATIENCE
    while not done.wait(pause) and all(study.job(number).state == "waiting" for number in numbers):
        print(f"no job has begun after {time.monotonic() - begun:.0f} s: {who}", file=sys.stderr, flush=True)
        pause *= 2


@contextmanager
def _stoppable(study: Study) -> Iterator[list[int]]:
    """The first signal asks every job to save and stop; a second one does not wait for them."""
    received: list[int] = []
    outputs = interrupts.terminals()

    def on_signal(number: int, _frame: object) -> None:
        if interrupts.insists(number, received):
            raise _interruption(received)
        received.append(number)
        interrupts.leave(outputs)
        study.stop()
        for process in study.processes():
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(process, signal.SIGTERM)
        print("stopping: every job saves first; a second signal stops at once", file=sys.stderr)

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, on_signal) for s in interrupts.heard()} if main else {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that begin within hear no Ctrl-C, which reaches all of a terminal, not even while they import: those
    who report on the jobs hear it for this one, which asks the jobs to stop.
    """
    resource_tracker.ensure_running()  # until Python 3.14 the tracker, where it begins, lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interruption(received: list[int]) -> KeyboardInterrupt:
    from rl_lab.core.interrupts import Stopped

    return Stopped(received[0] if received else signal.SIGINT)
