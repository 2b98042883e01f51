"""A run: one folder, one seed, one device, one stream of metrics, one checkpoint; what a loop may ask of the world."""

import hashlib
import io
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

from rl_lab.core import checkpoint, distributed, locks, provenance, registry, tracking
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Metrics, own_states, shared_out
from rl_lab.core.progress import Progress

ROWS_PER_SECOND, ROWS_AT_ONCE = 10, 1_000


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM: the checkpoint is written, the files are whole."""

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
        self._saved = checkpoint.read(self.path("checkpoint.pt")) if self.path("checkpoint.pt").exists() else {}
        self._step, self._total = self._saved.get("step", 0), None
        self._seconds_before, self._bytes = self._saved.get("seconds", 0.0), self._saved.get("bytes", 0)
        self._rows = None  # until `begin`: a mistake found before leaves an earlier run's files as they are
        self._signal, self._accord = None, distributed.Accord()
        self._held_by_caller = lock is not None

    # -- opening and closing

    def __enter__(self) -> "Run":
        """Raises UserError where another process trains in this folder."""
        self.dir.mkdir(parents=True, exist_ok=True)
        self._lock = locks.of_run(self.dir) if self.leads and not self._held_by_caller else None
        self._start = self._saved_at = self._refilled_at = time.monotonic()
        self._tokens = float(ROWS_AT_ONCE)
        self._attend()
        return self

    def _attend(self) -> None:
        """To the terminal and to signals."""
        self.progress = Progress(self.names["name"], quiet=not self.leads)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}

    def _open_wandb(self) -> None:
        chosen = getattr(self._tracker, "keywords", {}).get("group") or os.environ.get("WANDB_RUN_GROUP")
        self.wandb = self._tracker(name=self._identity["name"], id=self._identity["id"], job_type=self.job_type,
                                   group=chosen or self.names["name"],
                                   config={**self.names, "settings": self.config})  # fmt: skip

    def _close_wandb(self) -> None:
        if self.upload and self.path("checkpoint.pt").exists():
            registry.send(self.wandb, self.dir)
        self.wandb.summary["state"] = self.state
        tracking.finish(self.wandb, {"finished": 0, "failed": 1}.get(self.state, tracking.STOPPED))

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in getattr(self, "_handlers", {}).items():
            signal.signal(number, handler)
        self.state = "finished" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.progress.close()
        try:
            if self._rows is not None:
                self._close_files(str(error) if kind else None)
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _close_files(self, error: str | None) -> None:
        try:
            self._rows.close()
            self._write_summary(error)
        finally:
            if self.wandb:
                self._close_wandb()

    def _on_signal(self, number: int, _frame) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        self.say("stopping at the next whole step; once more stops at once")

    # -- what a loop asks for

    def path(self, name: str) -> Path:
        return self.dir / name

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
        self._identity = tracking.identity(self.dir, self.names["name"])
        if self._tracker and rows:
            self._open_wandb()  # first: where W&B refuses the run, the folder stays as it is
        self.path("config.yaml").write_text(self._written)
        self._rows = open(self.path("metrics.jsonl"), "ab") if rows else io.BytesIO()
        self._rows.truncate(self._bytes)  # rows after the checkpoint will come again
        self._rows.seek(0, os.SEEK_END)  # else `tell` would go on from where the file ended before
        if self.wandb:
            tracking.catch_up(self.wandb, self.dir)
        self._start = time.monotonic()
        self._write_summary()
        self.progress.begin(total, unit, self._step)

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

    def pause(self, step: int, parts: dict) -> None:
        """Called where everything is whole: saves when it is time, raises Stopped when a signal asked for it."""
        self._step = step
        now = time.monotonic()
        due = now - self._saved_at > self.checkpoint_every
        number, due = self._accord(self._signal, due, self.checkpoint_every)
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
        self._rows.flush()
        state = {name: self._sized(part) for name, part in parts.items()} | ({"ranks": ranks} if ranks else {})
        state |= {"step": step, "seconds": self.seconds, "bytes": self._rows.tell()}
        checkpoint.write(self.path("checkpoint.pt"), state)
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
        self._rows.write(json.dumps(row).encode() + b"\n")
        self._rows.flush()
        if self.wandb:
            self.wandb.log(row)

    def media(self, name: str, path: Path, step: int) -> None:
        """A picture or video of the folder, shown in W&B too."""
        if self.wandb:
            import wandb

            kind = wandb.Video if path.suffix in (".mp4", ".gif") else wandb.Image
            self.wandb.log({"step": step, name: kind(str(path))})

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
            "identity": self._identity,
        }  # fmt: skip
        beside = self.path("summary.new")
        beside.write_text(json.dumps(summary, indent=2, default=str) + "\n")
        beside.replace(self.path("summary.json"))


def stream(seed: int, name: str) -> int:
    """A seed of its own for each named random stream: equal seeds would make streams repeat one another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]) >> 1


def _numbers(values) -> list[float]:
    """One transfer for all tensors, not one each."""
    values = list(values)
    tensors = [v.detach().double().reshape(()) for v in values if isinstance(v, torch.Tensor)]
    moved = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(moved) if isinstance(v, torch.Tensor) else float(v) for v in values]
