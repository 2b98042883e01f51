"""What a run reports to W&B, to TensorBoard or to a csv, where it is tracked at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_lab.core import registry, tracking
from rl_lab.core.local_trackers import Local, summary_writer, tensorboard_run

STOPPED = 255  # the exit code by which W&B itself marks a run that was interrupted
EXIT_CODES = {"finished": 0, "failed": 1}  # of a run's state
NEEDED: dict[Any, Callable[[], Any]] = {tensorboard_run: summary_writer, tracking.wandb_run: tracking.ready}


class Tracker:
    """Where a run's rows go besides its folder, if anywhere. Whatever happens there, the run continues."""

    def __init__(self, start: Callable[..., Any] | None, say: Callable[[str], None]):
        """`start` is a partial of `wandb_run` or of one of the local trackers'; None, or one that returns None: nothing
        is tracked. Raises UserError where what it needs is not installed: before anything is built or read."""
        if needed := NEEDED.get(getattr(start, "func", None)):
            needed()
        self.start, self._say = start, say
        self._run: Any = None
        self._whole = True  # whether it took everything it was given

    def open(self, ident: dict[str, str], names: dict[str, Any], job_type: str, settings: dict[str, Any]) -> None:
        """Raises UserError where W&B refuses the run."""
        if self.start is None:
            return
        chosen = getattr(self.start, "keywords", {}).get("group") or os.environ.get("WANDB_RUN_GROUP")
        self._run = self.start(name=ident["name"], id=ident["id"], job_type=job_type, group=chosen or names["name"],
                                config={**names, "settings": settings})  # fmt: skip

    def catch_up(self, folder: Path, before: dict[str, Any]) -> None:
        if isinstance(self._run, Local):
            self._guarded(lambda: self._run.begin(folder))
        elif self._run:
            tracking.catch_up(self._run, folder, before)

    def log(self, row: dict[str, Any]) -> None:
        self._guarded(lambda: self._run.log(row))

    def _guarded(self, report: Callable[[], None]) -> None:
        if self._run and self._whole:
            try:
                report()
            except Exception as error:  # a service that is gone raises errors of several kinds
                self._whole = False
                name = type(self._run).__name__ if isinstance(self._run, Local) else "W&B"
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
                self._say(f"{name} takes no more rows ({reason}); the run continues without it")

    def media(self, name: str, path: Path, step: int) -> None:
        """A picture or a video."""
        if isinstance(self._run, Local):
            self._guarded(lambda: self._run.media(name, path, step))
        elif self._run:
            import wandb

            kind = wandb.Video if path.suffix in (".mp4", ".gif") else wandb.Image
            self.log({"step": step, name: kind(str(path))})

    @property
    def place(self) -> str | None:
        """Where W&B keeps the run: a folder or an address."""
        if not self._run or isinstance(self._run, Local):
            return None
        return f"offline: {self._run.dir}" if self._run.offline else self._run.url

    def close(self, folder: Path, state: str, upload: bool) -> None:
        if isinstance(self._run, Local):
            self._guarded(self._run.finish)
            return
        if not self._run:
            return
        if upload:
            registry.send(self._run, folder)
        if self._whole:
            self._run.summary["state"] = state
        tracking.finish(self._run, EXIT_CODES.get(state, STOPPED), self._whole)
