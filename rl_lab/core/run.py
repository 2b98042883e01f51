"""A run: one folder, one seed, one device, one stream of metrics, one checkpoint; what a loop may ask of the world."""

import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from rl_lab.core import checkpoint, distributed, provenance, threads, tracking
from rl_lab.core.devices import numbers
from rl_lab.core.errors import NoRoom, NotFinite, NothingLeft, counted
from rl_lab.core.interrupts import Interrupts, Stopped
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.progress import Progress, explained
from rl_lab.core.randomness import stream
from rl_lab.core.ranks import Missed, Part, own_states, shared_out
from rl_lab.core.rows import PER_SECOND, Allowance
from rl_lab.core.run_folder import RunFolder, last_rows, of_full_disk
from rl_lab.core.tracker import Tracker

REPLAYED = "taking up the run where it stood; Atari's games are played again for that, in minutes at most"


class Run:
    """Open it with `with`; it closes marked finished, stopped or failed.

    It is composed of its folder, a tracker (W&B holds the same rows), the signals that may stop it, and what is shown
    of it in the terminal. With several ranks the first one writes and speaks; the others' own states (envs, random
    streams) are in its checkpoint.
    """

    def __init__(
        self,
        dir: Path,
        seed: int,
        device: str,
        *,
        names: dict[str, Any],  # what summary.json and W&B's config begin with: experiment, agent, env, seed
        config: dict[str, Any],  # resolved, for W&B
        written: str = "",  # what config.yaml will hold
        places: Mapping[str, str] | None = None,  # of modules that it imports; None: it is not sealed
        tracker: Callable[..., Any] | None = None,  # a partial of tracking.wandb_run
        job_type: str = "train",
        checkpoint_every: float = 60.0,  # seconds
        max_memory_gb: float = 2.0,  # a larger replay is left out of the checkpoint and refilled
        upload: bool = False,  # the last checkpoint goes to W&B as an artifact
        lock: int | None = None,  # of the folder, where the caller holds it already
        beside: int = 1,  # runs that share this machine, this one included
        progress: Progress | None = None,  # None: a bar of its own
        interrupts: Interrupts | None = None,  # None: the signals that usually stop a run
        altered: frozenset[str] = frozenset(),  # settings of a run that is taken up which are not those of before
    ):
        self.dir, self.seed, self.device = Path(dir), seed, torch.device(device)
        self.names, self.config, self.job_type = names, config, job_type
        self.leads = distributed.rank() == 0
        self.checkpoint_every, self.max_memory_gb, self.upload = checkpoint_every, max_memory_gb, upload
        self.beside = beside * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.folder = RunFolder(self.dir, written, lock, places)
        self.progress = progress or Progress(names.get("name", ""), quiet=not self.leads)
        self.interrupts = interrupts or Interrupts(self.say)
        self.tracker = Tracker(tracker if self.leads else None, self.say)
        self._accord = distributed.Accord()
        self._saved = self.folder.checkpoint()
        self._resumes = bool(self._saved)
        self.state = "running"
        self._total: int | None = None
        self.unit = "steps"
        self.progress.holds = self.folder.before.get("state") == "finished"  # until there is something to do
        self.altered = altered
        self._identity: dict[str, str] | None = None
        self.take_up(self._saved)

    def take_up(self, saved: dict[str, Any]) -> None:
        """Goes on from where a checkpoint says that the run stood; {}: from the start. Raises UserError."""
        self.position = self.folder.position(saved)
        self.step, self.final = self.position.step, dict(self.position.final)

    # -- opening and closing

    def __enter__(self) -> "Run":
        """Raises UserError where another process trains in this folder."""
        if self.leads:
            self.folder.hold()
        self._start = self._saved_at = time.monotonic()
        self._allowance = Allowance()
        self.interrupts.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raises NoRoom, in place of the system's own error, where the disk is full."""
        self.state = "finished" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.progress.close()
        self.progress.holds = False
        try:
            with self.interrupts.closing():
                full = self._close_files(error)
        finally:
            self.folder.let_go()
        if full:
            raise NoRoom(f"cannot write to {self.dir}: {os.strerror(full.errno or 0)}; make room") from full

    def _close_files(self, error: BaseException | None) -> OSError | None:
        """The error of a full disk, if there was one, before or while the files were closed."""
        full = of_full_disk(error)
        try:
            if self.folder.rows is not None:
                self.folder.rows.close()
                self.folder.write_summary(self._summary(str(error) if error else None))
        except OSError as late:
            self.state = "failed" if error is None else self.state
            full = full or of_full_disk(late)
            if not full:
                raise
        finally:
            self.tracker.close(self.dir, self.state, self.upload and self.path("checkpoint.pt").exists())
        return full

    # -- what a loop asks for

    def path(self, name: str) -> Path:
        """The place of a file of the folder, "pictures/values.png" say. Raises UserError where a link is in the way."""
        return self.folder.path(name)

    def stream(self, name: str) -> int:
        """A seed of its own for each named random stream of this run."""
        return stream(self.seed, name)

    def own_stream(self, name: str) -> int:
        """The same, another in each rank."""
        return self.stream(name if self.leads else f"{name}/rank {distributed.rank()}")

    def choose_threads(self, weights: int, lanes: int = 1) -> None:
        """Sets torch's threads to suit networks of this many weights, computing in this many lanes, if threads=auto."""
        if self.config.get("threads") == "auto":
            torch.set_num_threads(threads.suited(weights, self.beside * lanes))
            of = counted(threads.cores(), "cores")
            self.say(f"threads=auto: {torch.get_num_threads()}, of {of}, for {counted(weights, 'weights')}")

    def begin(self, total: int | None, unit: str = "steps", rows: bool = True, *, enough: str = "") -> None:
        """Everything is built and the first step comes next: from here on the folder and W&B know of the run.

        total: how many units there will be, if that is known. rows: whether it has any of its own, or leaves them to
        the runs within its folder. enough: why no more are to come, where it is not for the total. Raises NothingLeft.
        """
        self._total, self.unit, self.progress.holds = total, unit, False
        if total is not None and self.step >= total:
            stands = f"the run stands at step {self.step:,}"
            why = f"{stands}, and {enough}" if enough else f"{stands}, of {total:,}; with a larger total it goes on"
            if self.folder.before.get("state") == "finished":
                raise NothingLeft(why)
            self.say(f"only the last evaluation is left to do: {why}")
        if self.config.get("threads") == "auto":  # the number is kept: with another the rounding would differ
            self.config = self.config | {"threads": torch.get_num_threads()}
            auto, chosen = "\nthreads: auto\n", f"\nthreads: {torch.get_num_threads()}\n"
            self.folder.written = self.folder.written.replace(auto, chosen, 1)
        if self.leads:
            self._open(rows)
        self.progress.begin(total, unit, self.step)

    def _open(self, with_rows: bool) -> None:
        rows, fault = self.folder.read(self.position, with_rows)
        if fault:
            self.say(f"{os.path.relpath(self.dir)}/metrics.jsonl is not as it was written: {fault}; "
                     "the run continues with the complete rows")  # fmt: skip
        self.final = self.final or last_rows(rows)  # older checkpoints do not hold them
        self._identity = tracking.identity(self.dir, self.names["name"])
        if with_rows:  # first: where W&B refuses the run, the folder stays as it is
            self.tracker.open(self._identity, self.names, self.job_type, self.config)
        self._start = time.monotonic()
        self.folder.open(rows, self._summary())
        if fault and self._resumes:
            self.folder.note_rows_in_checkpoint()
        self.tracker.catch_up(self.dir, self.folder.before)

    def anew(self, unit: str = "steps", whole: bool = False, free: Collection[str] = ()) -> None:
        """Before `begin`: nothing that the folder holds is resumed. Raises NothingLeft where the run has finished and
        what it made, in one go, is `whole`, or would be another by settings that are not `free`.
        """
        self.unit, self.progress.holds = unit, False
        if self.folder.before.get("state") == "finished":
            if self.altered.difference(free):
                raise NothingLeft("it was made in one go, and other settings are for a new run")
            if whole:
                raise NothingLeft("it was made in one go, and is whole")
        self._saved, self._resumes = {}, False
        self.take_up({})

    def restore(self, parts: dict[str, Part]) -> int:
        """Loads what the checkpoint holds of each named part; returns the step to go on from, 0 for a fresh run.

        Raises UserError where it does not fit, and Halted.
        """
        saved, self._saved = shared_out(self._saved, parts, self.own_stream), {}
        with self.at_once(), explained(self.progress.say_now, REPLAYED):
            for name, part in parts.items():
                if name in saved or (saved and isinstance(part, Learner)):
                    checkpoint.fit(part, name, saved, self.folder.path("checkpoint.pt"))
                elif saved and isinstance(part, Missed):
                    part.absent()
        if self.step:
            self.progress.opening.append(f"resumed at step {self.step:,}")
        elif self.folder.before and not self._resumes:
            self.folder.keep_rows()
            self.say("no checkpoint was written before the run ended: it starts anew, at step 0")
        return self.step

    def at_once(self) -> AbstractContextManager[None]:
        """Within, a signal stops the work at once, unless there are several ranks. Raises Halted."""
        return self.interrupts.at_once() if distributed.size() == 1 else nullcontext()

    def heed(self, step: int) -> None:
        """Raises Stopped when a signal asked for it; for loops with nothing to save."""
        self.step = step
        self.progress.advance(step, time.monotonic())
        if self.interrupts.asked:
            raise Stopped(self.interrupts.asked)

    def pause(self, step: int, parts: dict[str, Part]) -> None:
        """Called where everything is whole: saves when it is time, raises Stopped when a signal asked for it."""
        self.step, now = step, time.monotonic()
        due = now - self._saved_at > self.checkpoint_every
        number, due = self._accord(self.interrupts.asked, due, self.checkpoint_every)
        if number or due:
            self.save(step, parts)
            self._saved_at = time.monotonic()
        if number:
            raise Stopped(number)
        self.progress.advance(step, now)

    def save(self, step: int, parts: dict[str, Part]) -> None:
        """checkpoint.pt: the parts, the step, the seconds spent, and where metrics.jsonl stood. Raises OSError."""
        self.step = step
        ranks = distributed.gathered(own_states(parts))
        if not self.leads:
            return
        state = {name: self._sized(part) for name, part in parts.items()} | ({"ranks": ranks} if ranks else {})
        self.folder.write_checkpoint(state | {"step": step, "seconds": self.seconds, "final": dict(self.final)})
        self.folder.write_summary(self._summary())

    def rescued(self, error: NotFinite, step: int, parts: dict[str, Part]) -> NotFinite:
        """Saves the last good state: on a CPU the bad step was never taken. On a GPU, and with several ranks, where
        only this one may be at fault, the last checkpoint stands.
        """
        if self.device.type == "cpu" and distributed.size() == 1:
            self.save(step, parts)
        return NotFinite(f"{error}; stopped, the parameters before it are in {self.path('checkpoint.pt')} (a smaller "
                         "learning rate may help; in a new run, where they are spoiled already)")  # fmt: skip

    def _sized(self, part: Part) -> dict[str, Any]:
        memory = part.memory if isinstance(part, Learner) else None
        if isinstance(part, Learner) and memory and (size := getattr(part, memory).nbytes / 1e9) > self.max_memory_gb:
            self.say(f"{memory} of {size:.1f} GB left out of the checkpoint (checkpoint.max_memory_gb="
                     f"{self.max_memory_gb:g}); a resumed run refills it", once=True)  # fmt: skip
            return part.state_dict(without=memory)
        return part.state_dict()

    def log(self, metrics: Metrics, step: int, keep: bool = False) -> None:
        """One row, to the file and to W&B, where there is anything to tell; the only place where a metric leaves the
        device.

        Beyond 1,000 rows at once and 10 a second after that, rows not marked `keep` are left out of both.
        Raises NotFinite, naming metric and step.
        """
        if not self.leads or not metrics:
            return
        values = dict(zip(metrics, numbers(metrics.values()), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} is {value} at step {step:,}")
        self.final |= values
        self.progress.show(values)
        if not self._allowance.take(always=keep):
            self.say(f"more than {PER_SECOND} rows a second: some are left out (raise loop.log_every)", once=True)
            return
        row = {"step": step, "seconds": round(self.seconds, 3), **values}
        assert self.folder.rows is not None, "the run has not begun"
        self.folder.rows.add(row)
        self.tracker.log(row)

    def media(self, name: str, path: Path, step: int) -> None:
        """A picture or video of the folder, shown in W&B too."""
        self.tracker.media(name, path, step)

    def say(self, text: str, once: bool = False) -> None:
        self.progress.say(text, once)

    @property
    def seconds(self) -> float:
        """Spent on this run, over all its sessions."""
        return self.position.seconds + time.monotonic() - self._start

    def _summary(self, error: str | None = None) -> dict[str, Any]:
        return {
            **self.names, "state": self.state, "step": self.step, "total": self._total,
            "seconds": round(self.seconds, 3), "final": self.final, "error": error,
            "device": str(self.device), "threads": torch.get_num_threads(), "processes": distributed.size(),
            **provenance.of_process(), "wandb": self.tracker.place, "identity": self._identity,
        }  # fmt: skip
