"""A run: one folder, one seed, one device, one stream of metrics, one checkpoint; what a loop may ask of the world."""

import errno
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from rl_lab.core import checkpoint, distributed, files, folders, locks, provenance, registry, signals, tracking
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.progress import Progress
from rl_lab.core.randomness import stream
from rl_lab.core.ranks import own_states, shared_out
from rl_lab.core.rows import Mark, Rows, last_values, parsed

ROWS_PER_SECOND, ROWS_AT_ONCE = 10, 1_000
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # the disk, what one may have of it, what a file may be


class Stopped(KeyboardInterrupt):
    """A signal: the first time the checkpoint is written and the files are whole."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Run:
    """Open it with `with`; it closes marked finished, stopped or failed.

    The folder: config.yaml, metrics.jsonl (a row a line: step, seconds, values), summary.json, checkpoint.pt,
    pictures and videos. Without W&B it is complete; with it, W&B holds the same rows.

    Of several ranks the first writes and speaks; the others' own states (envs, random streams) are in its checkpoint.
    """

    def __init__(
        self,
        dir: Path,
        seed: int,
        device: str,
        *,
        names: dict,  # what summary.json and W&B's config begin with: experiment, agent, env, seed
        config: dict,  # resolved, for W&B
        written: str = "",  # what config.yaml will hold
        tracker=None,  # a partial of tracking.wandb_run
        job_type: str = "train",
        checkpoint_every: float = 60.0,  # seconds
        max_memory_gb: float = 2.0,  # a larger replay is left out of the checkpoint and refilled
        upload: bool = False,  # the last checkpoint goes to W&B as an artifact
        lock: int | None = None,  # of the folder, where the caller holds it already
    ):
        self.dir, self.seed, self.device = Path(dir), seed, torch.device(device)
        self.names, self.config, self._written = names, config, written
        self.leads = distributed.rank() == 0
        self.job_type, self._tracker = job_type, tracker if self.leads else None
        self.checkpoint_every, self.max_memory_gb, self.upload = checkpoint_every, max_memory_gb, upload
        self.state, self.final, self.wandb, self._identity = "running", {}, None, None
        self.before = folders.summary(self.dir)  # of the run's last sitting
        self._saved = checkpoint.read(self.path("checkpoint.pt")) if self.path("checkpoint.pt").exists() else {}
        self._take_up(self._saved)
        self._total, self._rows = None, None  # until `begin`: a mistake found before leaves the files as they are
        self._received, self._accord = [], distributed.Accord()
        self._held_by_caller, self._tracked = lock is not None, True

    def _take_up(self, saved: dict) -> None:
        """Where a checkpoint says that it stood; {}: from the start. Raises UserError where that cannot be."""
        rows, final = saved.get("written", {"bytes": saved.get("bytes", 0)}), saved.get("final", {})
        self._step, self._seconds_before, self._mark = saved.get("step", 0), saved.get("seconds", 0.0), Mark.of(rows)
        numbers = isinstance(final, dict) and all(type(x) in (int, float) for x in (*final.values(), self._step))
        numbers = numbers and all(isinstance(key, str) for key in final)
        numbers = numbers and isinstance(rows, dict) and isinstance(rows.get("fault", ""), str)
        if not (self._mark and numbers and self._step >= 0 and 0 <= self._seconds_before < math.inf):
            raise UserError(f"{self.path('checkpoint.pt')} is damaged: it does not say where the run stood; "
                            "delete it to start again")  # fmt: skip
        self.final, self._fault = dict(final), str(rows.get("fault", ""))

    # -- opening and closing

    def __enter__(self) -> "Run":
        """Raises UserError where another process trains in this folder."""
        self._lock = locks.of_run(self.dir) if self.leads and not self._held_by_caller else None
        self._start = self._saved_at = self._refilled_at = time.monotonic()
        self._tokens = float(ROWS_AT_ONCE)
        self._attend()
        return self

    def _attend(self) -> None:
        """To the terminal and to signals."""
        self.progress = Progress(self.names["name"], quiet=not self.leads)
        self._terminals = signals.terminals()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._on_signal) for s in signals.heard()}

    def _open_wandb(self) -> None:
        chosen = getattr(self._tracker, "keywords", {}).get("group") or os.environ.get("WANDB_RUN_GROUP")
        self.wandb = self._tracker(name=self._identity["name"], id=self._identity["id"], job_type=self.job_type,
                                   group=chosen or self.names["name"],
                                   config={**self.names, "settings": self.config})  # fmt: skip

    def _close_wandb(self) -> None:
        if self.upload and self.path("checkpoint.pt").exists():
            registry.send(self.wandb, self.dir)
        if self._tracked:
            self.wandb.summary["state"] = self.state
        tracking.finish(self.wandb, {"finished": 0, "failed": 1}.get(self.state, tracking.STOPPED), self._tracked)

    def __exit__(self, kind, error, trace) -> None:
        """Raises UserError, in place of the system's own error, where the disk is full."""
        self.state = "finished" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.progress.close()
        handlers = getattr(self, "_handlers", {})
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else handler)
        try:
            full = self._close_files(error)
        finally:
            if signal.SIGHUP in handlers:
                signal.signal(signal.SIGHUP, handlers[signal.SIGHUP])
            if self._lock is not None:
                locks.let_go(self._lock)
        if full:
            begun = (self.dir / "config.yaml").exists()
            remedy = f"train run={os.path.relpath(self.dir)} goes on" if begun else "start it again"
            raise UserError(
                f"cannot write to {self.dir}: {os.strerror(full.errno)}; make room, then {remedy}"
            ) from full

    def _close_files(self, error: BaseException | None) -> BaseException | None:
        """What of a full disk came of it."""
        full = _of_full_disk(error)
        try:
            if self._rows is not None:
                self._rows.close()
                self._write_summary(str(error) if error else None)
        except OSError as late:
            self.state = "failed" if error is None else self.state
            full = full or _of_full_disk(late)
            if not full:
                raise
        finally:
            if self.wandb:
                self._close_wandb()
        return full

    def _on_signal(self, number: int, _frame) -> None:
        """The first one asks; the same once more does not wait."""
        if signals.insists(number, self._received):
            raise Stopped(number)
        self._received.append(number)
        signals.leave(self._terminals)
        self.say("stopping at the next whole step; once more stops at once")

    # -- what a loop asks for

    def path(self, name: str) -> Path:
        """The place of a file of the folder, "pictures/values.png" say. Raises UserError where a link is in the way."""
        return files.inside(self.dir, name)

    def found(self, pattern: str) -> list[Path]:
        """Files of the folder, "pictures/samples_*.png" say, sorted."""
        return files.found(self.dir, pattern)

    def stream(self, name: str) -> int:
        """A seed of its own for each named random stream of this run."""
        return stream(self.seed, name)

    def own_stream(self, name: str) -> int:
        """The same, another in each rank."""
        return self.stream(name if self.leads else f"{name}/rank {distributed.rank()}")

    def begin(self, total: int, unit: str = "steps", rows: bool = True) -> None:
        """Everything is built, the first step comes next: from here on the folder and W&B know of the run.

        rows: whether it has any of its own, or leaves them to the runs within its folder.
        """
        self._total = total
        if not self.leads:
            return self.progress.begin(total, unit, self._step)
        found = self._opened(rows)
        self._identity = tracking.identity(self.dir, self.names["name"])
        if self._tracker and rows:
            self._open_wandb()  # first: where W&B refuses the run, the folder stays as it is
        self._start = time.monotonic()
        files.write(self.path("config.yaml"), self._written)
        self._rows = found
        self._write_summary()  # of rows that are there already: it holds before the others are cut off and after
        self._rows.open()
        if found.fault:
            self._note_in_checkpoint()
        if self.wandb:
            tracking.catch_up(self.wandb, self.dir, self.before)
        self.progress.begin(total, unit, self._step)

    def _opened(self, rows: bool) -> Rows:
        """The rows up to the checkpoint; says what is wrong with them. Rows after it will come again."""
        found = Rows(self.dir if rows else None, self._mark)
        if found.fault:
            self.say(f"{os.path.relpath(self.dir)}/metrics.jsonl is not as it was written: {found.fault}; "
                     "the run goes on with the rows that are whole")  # fmt: skip
        self._fault = "; ".join(filter(None, [self._fault, found.fault]))
        if not self.final:  # of a checkpoint that does not have them
            self.final = last_values(row for _, _, row in parsed(found.kept)[0])
        return found

    def _note_in_checkpoint(self) -> None:
        """Where the rows stand now that what was damaged of them is gone."""
        if (path := self.path("checkpoint.pt")).exists():
            noted = {"bytes": self._rows.mark.bytes, "written": self._noted()}
            checkpoint.write(path, checkpoint.read(path) | noted)

    def anew(self) -> None:
        """Before `begin`: nothing of what the folder holds is gone on with."""
        self._saved = {}
        self._take_up({})

    def restore(self, parts: dict) -> int:
        """Loads what the checkpoint holds of each named part; returns the step to go on from, 0 for a fresh run."""
        self._saved = shared_out(self._saved, parts, self.own_stream)
        for name, part in parts.items():
            if name in self._saved:
                try:
                    part.load_state_dict(self._saved[name])
                except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                    raise UserError(f"{self.path('checkpoint.pt')} is of another experiment: its {name} does not fit "
                                    f"this one ({' '.join(str(error).split())[:120]})") from error  # fmt: skip
        if self._step:
            self.say(f"resumed at step {self._step:,}")
        self._saved = {}
        return self._step

    def heed(self, step: int) -> None:
        """Raises Stopped when a signal asked for it, where there is nothing to save: it would be found anew."""
        self._step = step
        if self._received:
            raise Stopped(self._received[0])

    def pause(self, step: int, parts: dict) -> None:
        """Called where everything is whole: saves when it is time, raises Stopped when a signal asked for it."""
        self._step = step
        now = time.monotonic()
        due = now - self._saved_at > self.checkpoint_every
        number, due = self._accord(next(iter(self._received), None), due, self.checkpoint_every)
        if number or due:
            self.save(step, parts)
            self._saved_at = time.monotonic()
        if number:
            raise Stopped(number)
        self.progress.advance(step, now)

    def save(self, step: int, parts: dict) -> None:
        """checkpoint.pt: the parts, the step, the seconds spent, and where metrics.jsonl stood."""
        self._step = step
        ranks = distributed.gathered(own_states(parts))
        if not self.leads:
            return
        state = {name: self._sized(part) for name, part in parts.items()} | ({"ranks": ranks} if ranks else {})
        state |= {"step": step, "seconds": self.seconds, "bytes": self._rows.mark.bytes, "written": self._noted()}
        checkpoint.write(self.path("checkpoint.pt"), state | {"final": dict(self.final)})
        self._write_summary()

    def rescued(self, error: NotFinite, step: int, parts: dict) -> NotFinite:
        """Saves what was good: on a CPU the bad step was never taken; on a GPU the last checkpoint stands.

        So it does of several ranks, of which this one may be alone with its fault.
        """
        if self.device.type == "cpu" and distributed.size() == 1:
            self.save(step, parts)
        return NotFinite(f"{error}; stopped, the parameters before it are in {self.path('checkpoint.pt')} "
                         "(a smaller learning rate may help)")  # fmt: skip

    def _sized(self, part) -> dict:
        memory = getattr(part, "memory", None)
        if memory and (size := getattr(part, memory).nbytes / 1e9) > self.max_memory_gb:
            self.say(f"replay of {size:.1f} GB left out of the checkpoint (checkpoint.max_memory_gb="
                     f"{self.max_memory_gb:g}); a resumed run refills it", once=True)  # fmt: skip
            return part.state_dict(without=memory)
        return part.state_dict()

    def log(self, metrics: Metrics, step: int, keep: bool = False) -> None:
        """One row, to the file and to W&B; the only place where a metric leaves the device.

        Beyond 1,000 rows at once and 10 a second after that, rows not marked `keep` are left out of both.
        Raises NotFinite, naming metric and step.
        """
        if not self.leads:
            return
        values = dict(zip(metrics, _numbers(metrics.values()), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} is {value} at step {step:,}")
        now = time.monotonic()
        self._tokens = min(ROWS_AT_ONCE, self._tokens + (now - self._refilled_at) * ROWS_PER_SECOND)
        self._refilled_at = now
        self.final |= values
        self.progress.show(values, step)
        if self._tokens < 1 and not keep:
            self.say(
                f"rows come faster than {ROWS_PER_SECOND} a second: some are left out (raise loop.log_every)", once=True
            )
            return
        self._tokens -= 1
        row = {"step": step, "seconds": round(self.seconds, 3), **values}
        self._rows.add(row)
        self._track(row)

    def _track(self, row: dict) -> None:
        """Whatever becomes of W&B, the run goes on: at its end it is said what W&B lacks."""
        if self.wandb and self._tracked:
            try:
                self.wandb.log(row)
            except Exception as error:  # of a service that is gone, of several kinds
                self._tracked = False
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
                self.say(f"W&B takes no more rows ({reason}); the run goes on without it")

    def media(self, name: str, path: Path, step: int) -> None:
        """A picture or video of the folder, shown in W&B too."""
        if self.wandb:
            import wandb

            kind = wandb.Video if path.suffix in (".mp4", ".gif") else wandb.Image
            self._track({"step": step, name: kind(str(path))})

    def _noted(self) -> dict:
        """Of the rows, for the checkpoint and the summary."""
        return {**self._rows.mark._asdict(), "fault": self._fault}

    def say(self, text: str, once: bool = False) -> None:
        self.progress.say(text, once)

    @property
    def seconds(self) -> float:
        """Spent on this run, over all its sittings."""
        return self._seconds_before + time.monotonic() - self._start

    def _write_summary(self, error: str | None = None) -> None:
        summary = {
            **self.names, "state": self.state, "step": self._step, "total": self._total,
            "seconds": round(self.seconds, 3), "final": self.final, "error": error,
            "device": str(self.device), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "processes": distributed.size(), "versions": provenance.versions(),
            "git": provenance.revision(), "command": " ".join(sys.argv),
            "wandb": self.wandb and (f"offline: {self.wandb.dir}" if self.wandb.offline else self.wandb.url),
            "identity": self._identity, "rows": self._noted(),
        }  # fmt: skip
        files.write(self.path("summary.json"), json.dumps(summary, indent=2, default=str) + "\n")


def _of_full_disk(error: BaseException | None) -> BaseException | None:
    """What the system said, where an error came of a full disk: libraries have errors of their own for that."""
    while error and getattr(error, "errno", None) not in FULL:
        error = error.__cause__ or error.__context__
    return error


def _numbers(values) -> list[float]:
    """One transfer for all tensors, not one each."""
    values = list(values)
    tensors = [v.detach().double().reshape(()) for v in values if isinstance(v, torch.Tensor)]
    moved = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(moved) if isinstance(v, torch.Tensor) else float(v) for v in values]
