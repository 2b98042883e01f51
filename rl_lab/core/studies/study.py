"""A study: many jobs, and one folder that says which they are and what came of each.

    study.yaml      what was asked for: the command line, the git revision, the settings of every job
    seal.json       a digest of study.yaml by the user's own key: whose study it is (see ownership.py)
    jobs/3.json     what came of job 3: its run's folder, its state, seconds, value and reason
    jobs/3.log      what it printed; locked while it runs, which shows whether the process is alive
    mistake         what one job found wrong and every other would, so that none of them tries
    stop            while this file is there, no further job begins
    launcher        locked while a process launches its jobs, or waits for them
    reproduced      the figures of its runs were compared with those kept: nothing is left to do for that

Every file has one writer at a time and is replaced whole: a study can be killed at any moment.
"""

import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rl_lab.core import files, ownership
from rl_lab.core.errors import UserError
from rl_lab.core.folders import LARGEST, plain
from rl_lab.core.launching.composition import is_group
from rl_lab.core.locks import ALONE, held_now, is_locked, lock
from rl_lab.core.studies.notes import Job, noted
from rl_lab.core.studies.replaying import is_followed


class Study:
    """The files of one study. Raises UserError where the folder holds none.

    `ours`: this user began it here, and nobody has changed what was asked for; it is repeated as it was typed then.
    """

    def __init__(self, folder: Path):
        self.folder, self.opened_in = Path(folder), Path.cwd()
        self._launches = False
        self._shared: tuple[int, set[str]] = 0, set()  # the number of jobs, and the settings that all of them have
        if not (self.folder / "study.yaml").exists():
            raise UserError(f"{folder} is not the folder of a study: it has no study.yaml")
        self.about = plain(self.folder / "study.yaml")
        self.ours = ownership.of(self.folder, _sealed(_yaml(self.about)).encode()) is not None
        jobs, texts = self.about.get("jobs"), [self.about.get("arguments"), [self.about.get("directory")]]
        texts += jobs if isinstance(jobs, list) else [None]
        if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in texts):
            raise UserError(f"{folder}/study.yaml is damaged: it does not say what the jobs are")

    @classmethod
    def begin(cls, root: Path, name: str, prog: str, arguments: list[str], revision: str | None) -> "Study":
        """A folder that no other study has: root/studies/<name>/<time>. Raises UserError where there can be none."""
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now % 1 * 1e6):06}"
        try:
            folder = files.fresh(root / "studies" / name / stamp)
            (folder / "jobs").mkdir()
        except OSError as error:
            raise files.unwritten(root, error, "hydra.sweep.dir=") from error
        about = {
            "name": name,
            "command": shlex.join([prog, "train", *arguments]),
            "arguments": arguments,
            "directory": os.getcwd(),
            "begun": folder.name,
            "git": revision,
            "jobs": [],
        }
        _write(folder, about, True)
        return cls(folder)

    @property
    def prog(self) -> str:
        """The lab's program that began it."""
        return str(self.about.get("command")).partition(" ")[0]

    @property
    def root(self) -> Path:
        """Where the runs are. Raises UserError where the study does not lie as studies do: jobs would run elsewhere."""
        if self.folder.resolve().parent.parent.name != "studies":
            raise UserError(f"{self.folder} is not in a folder studies/<name>; move it to runs/studies/<name>/<time>")
        return self.folder.parents[2]

    @property
    def directory(self) -> Path | None:
        """Where its jobs begin, if that is there and holds the study: a stranger's study starts nothing elsewhere."""
        directory = Path(self.about["directory"])
        if self.ours:
            return directory if directory.is_dir() else None
        holds = os.path.isdir(directory) and self.folder.resolve().is_relative_to(directory.resolve())
        return directory if holds else None

    def forget(self) -> None:
        """Removes a study that began no run. Its folder holds what is its own alone: runs lie elsewhere."""
        shutil.rmtree(self.folder)
        files.remove_empty(self.folder.parent, above=2)

    def replayed(self, another_launcher: bool = False) -> list[str]:
        """The recorded arguments that are used again: of a stranger's none by which Hydra could be made to run code."""
        of_launcher = ("hydra/launcher", "hydra.launcher")
        return [
            a
            for a in self.about["arguments"]
            if (self.ours or is_followed(a)) and not (another_launcher and a.startswith(of_launcher))
        ]

    # -- jobs

    def add(self, overrides: Sequence[Sequence[str]], first: int) -> list[int]:
        """The numbers of these jobs, from `first` on; a resumed study must give the same ones again."""
        standing = _yaml(self.about)
        numbers, known = range(first, first + len(overrides)), self.about["jobs"]
        for number, settings in zip(numbers, map(list, overrides), strict=True):
            if number == len(known):
                known.append(settings)
            elif known[number] != settings:
                raise UserError(
                    f"job {number} of {self.folder} was {shlex.join(known[number])} and would now be "
                    f"{shlex.join(settings)}; start a new study"
                )
        _write(self.folder, self.about, self.ours, standing)
        return list(numbers)

    def jobs(self) -> list[Job]:
        return [self.job(number) for number in range(len(self.about["jobs"]))]

    @property
    def came_to_nothing(self) -> bool:
        """Whether every job was a mistake, found before its run began."""
        return self.is_all("mistake") and bool(self.about["jobs"])

    def is_all(self, *states: str) -> bool:
        """Whether every job is in one of these states, and none has begun its run."""
        jobs = self.jobs()
        begun = [job for job in jobs if job.folder and (self.folder / job.folder / "config.yaml").exists()]
        return not begun and all(job.state in states for job in jobs)

    def job(self, number: int) -> Job:
        """What is known of it. A job that claims to run while nobody holds its log was killed."""
        for _ in range(2):  # between the two looks of the first it may have ended
            job = Job(number, self.about["jobs"][number], **self._noted(number))
            if job.state != "running" or self._held(number):
                return job
        return job._replace(state="interrupted")

    def killed(self, numbers: Iterable[int], patience: float = 5.0) -> list[int]:
        """Of these jobs those whose process ended without noting how, within seconds: of a pool that is being killed
        the last ones may still run.
        """
        until, running = time.monotonic() + patience, [n for n in numbers if self._noted(n).get("state") == "running"]
        while any(map(self._held, running)) and time.monotonic() < until:
            time.sleep(0.1)
        return [n for n in running if self._noted(n).get("state") == "running" and not self._held(n)]

    def note(self, number: int, **outcome: Any) -> None:
        """What is known of the job now; of what was known before, only its folder stays."""
        folder = {"folder": self._noted(number).get("folder")}
        path = files.inside(self.folder, f"jobs/{number}.json")
        files.write(path, json.dumps(folder | outcome, default=str) + "\n")

    def label(self, number: int) -> str:
        """The settings by which the job differs from the others, as they are typed."""
        return " ".join(self.differing(number))

    def differing(self, number: int) -> list[str]:
        jobs = self.about["jobs"]
        if self._shared[0] != len(jobs):
            self._shared = len(jobs), set(jobs[0]).intersection(*map(set, jobs)) if len(jobs) > 1 else set()
        return [o for o in jobs[number] if o not in self._shared[1]]

    def log(self, number: int) -> Path:
        return files.inside(self.folder, f"jobs/{number}.log")

    @contextmanager
    def holding(self, number: int) -> Iterator[bool]:
        """The job's lock, which dies with the process; False where another process has it."""
        with files.appending(self.log(number)) as file:
            for _ in range(20):  # who only looks holds it for an instant
                if held := lock(file, ALONE):
                    break
                time.sleep(0.05)
            yield held

    def _held(self, number: int) -> bool:
        return is_locked(self.log(number))

    def _noted(self, number: int) -> dict[str, Any]:
        return noted(self.folder / f"jobs/{number}.json")

    # -- a mistake that every job would make

    def shares(self, reason: str) -> bool:
        """Whether jobs differ in settings alone, none of which the reason of a mistake names."""
        differing = {
            setting.lstrip("+~").partition("=") for n in range(len(self.about["jobs"])) for setting in self.differing(n)
        }
        return all(
            not is_group(key) and not re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", reason) for key, _, _ in differing
        )

    def share_mistake(self, reason: str | None) -> None:
        """Makes jobs that begin from now on end with this mistake, in whatever process; None: they run."""
        path = self.folder / "mistake"
        files.write(path, reason) if reason else path.unlink(missing_ok=True)

    def shared_mistake(self) -> str | None:
        try:
            with files.opened(self.folder / "mistake", LARGEST) as file:
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return None

    # -- the process that launches

    @contextmanager
    def launching(self) -> Iterator[None]:
        """For one process at a time, as stopping it stops the jobs; it may enter again. Raises UserError where there is
        another.
        """
        if self._launches:
            yield
            return
        with files.appending(files.inside(self.folder, "launcher")) as file:
            if not held_now(file):
                raise UserError(f"the jobs of {self.folder} are launched by another process; wait until it ends, or "
                                "stop it first")  # fmt: skip
            self._launches = True
            try:
                yield
            finally:
                self._launches = False

    @property
    def is_launched(self) -> bool:
        return is_locked(files.inside(self.folder, "launcher"))

    def reproduced(self) -> None:
        files.write(files.inside(self.folder, "reproduced"), "")

    @property
    def is_reproduced(self) -> bool:
        return (self.folder / "reproduced").exists()

    # -- stopping

    @property
    def stopping(self) -> bool:
        return (self.folder / "stop").exists()

    def stop(self, stopping: bool = True) -> None:
        """Keeps further jobs from beginning, wherever they run; or allows them again."""
        path = self.folder / "stop"
        files.write(path, "") if stopping else path.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Of this machine, those whose job runs."""
        running = [job.process for job in self.jobs() if job.state == "running" and job.process]
        return [pid for host, pid in running if host == socket.gethostname()]


def _write(folder: Path, about: dict[str, Any], ours: bool, standing: str = "") -> None:
    """Whose it is, and then study.yaml, in place of what is `standing` there."""
    text = _yaml(about)
    if ours:
        ownership.seal(folder, _sealed(text), {}, _sealed(standing).encode())
    files.write(files.inside(folder, "study.yaml"), text)


def _sealed(text: str) -> str:
    """What a seal says of study.yaml can be said of no config.yaml."""
    return f"study: {text}"


def _yaml(about: dict[str, Any]) -> str:
    """A line for each job."""
    text: str = yaml.safe_dump(about, sort_keys=False, default_flow_style=None, width=1_000)
    return text
