"""Weights & Biases through its own library: online when it can be, offline otherwise, never a prompt or a hang."""

import errno
import hashlib
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from rl_lab.core import files
from rl_lab.core.errors import UserError, brief
from rl_lab.core.folders import summary
from rl_lab.core.rows import NAME, content, parsed

FLUSH_EVERY = 1  # seconds, of what is logged to W&B's own files
UNFLUSHED = 3.0  # seconds: of a killed process at most these rows are not in them

MODES = "online", "offline", "disabled"
REFUSED = r"error 40[0134]|verify credentials"  # in what wandb raises where its server did answer


def nothing(**_: Any) -> None:
    """`tracker=none`: the files of the run folder are all there is; wandb is not even imported."""


def wandb_run(
    *,
    name: str,
    group: str | None,
    job_type: str,
    config: dict[str, Any],
    id: str | None = None,
    project: str | None,  # None: WANDB_PROJECT, or rl-lab
    entity: str | None,  # None: WANDB_ENTITY, or the key's own
    tags: list[str] | str | None,
    notes: str | None,
    mode: Literal["online", "offline", "disabled"] | None,  # None: WANDB_MODE, or online if there is a key
    dir: str = "runs",  # one W&B folder for all runs, so that its local viewer lists them together
    init_timeout: float,  # seconds
    finish_timeout: float,  # seconds
) -> Any:
    """An open wandb.Run whose x-axis is our own `step`; the same `id` again continues it.

    Without a key, or when the server does not answer within `init_timeout`, the run is kept offline under
    `dir`/wandb for a later `wandb sync`.
    """
    wandb = ready()
    how = mode or os.environ.get("WANDB_MODE")
    settings = wandb.Settings(
        init_timeout=init_timeout, finish_timeout=finish_timeout, silent=True, console="off",
        x_transaction_log_flush_interval=FLUSH_EVERY,
    )  # fmt: skip
    project = project or os.environ.get("WANDB_PROJECT") or "rl-lab"
    tags = [tags] if isinstance(tags, str) else tags and [str(tag) for tag in tags]
    arguments = dict(project=project, entity=entity, name=name, group=group, job_type=job_type, config=config, id=id,
                     tags=tags, notes=notes, dir=os.path.abspath(dir), resume="allow",
                     reinit="create_new", settings=settings)  # fmt: skip
    if not how:
        how = "online" if wandb.login(prompt=False, verify=False) else "offline"
    if how == "online" and not reachable(wandb.setup().settings.base_url, init_timeout):
        how = _offline(init_timeout)
    try:
        run = wandb.init(mode=how, **arguments)
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        if isinstance(error, wandb.errors.UsageError) or re.search(REFUSED, str(error)):
            raise UserError(f"W&B refused the run: {' '.join(str(error).split())}; or run with tracker=none") from error
        run = wandb.init(mode=_offline(init_timeout), **arguments | {"id": f"{id}-offline"})  # `id` stays taken a while
    except (wandb.errors.Error, OSError) as error:
        reason = brief(error)
        raise UserError(f"W&B does not start ({reason}); reinstall wandb, or run with tracker=none") from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def ready() -> Any:
    """wandb, to which an empty variable is as good as none. Raises UserError where it is not there, or not whole, or
    does not take what its variables say.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    if (how := os.environ.get("WANDB_MODE", MODES[0])) not in MODES:
        raise UserError(f"WANDB_MODE={how} is none of W&B's; choose from {', '.join(MODES)}, or run with tracker=none")
    try:
        import wandb

        wandb.init, wandb.errors.UsageError  # noqa: B018 (a folder of this name would have none)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"wandb cannot be imported ({reason}); run with tracker=none, or reinstall wandb") from error
    logging.getLogger("wandb").setLevel(logging.ERROR)
    try:
        wandb.setup(wandb.Settings(silent=True))
    except ValueError as error:
        reason = brief(error)
        raise UserError(
            f"W&B does not take its settings ({reason}); correct WANDB_..., or run with tracker=none"
        ) from error
    return wandb


def identity(folder: Path, name: str) -> dict[str, str]:
    """Id and name of the W&B run that belongs to a run folder. A folder that is moved or fetched keeps them; a copy
    beside the original becomes a run of its own.
    """
    home = str(folder.resolve())
    try:
        before = summary(folder)["identity"]
        known = re.fullmatch(r"[\w.-]{1,128}", before["id"]) and before["name"].isprintable()
        if known and (before["folder"] == home or not Path(before["folder"]).exists()):
            return {"id": before["id"], "name": before["name"][:128], "folder": home}
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        pass  # a fresh run
    ident = f"{name}-{hashlib.sha256(home.encode()).hexdigest()[:8]}"
    return {"id": ident, "name": f"{name}-{folder.name}", "folder": home}


def catch_up(run: Any, folder: Path, before: dict[str, Any]) -> None:
    """Of the rows that a run taken up again has already, logs those that W&B lacks: a killed process sent no more.

    Offline nothing is known of what W&B has. There the first session's own folder holds them all, but for the last
    seconds before it was killed: those are logged again. `before` is the summary that the session left.
    """
    rows = [row for _, _, row in parsed(content(folder / NAME))[0]]
    if run.resumed:
        last = run.summary.get("step", -1)
        lacking = [row for row in rows if row["step"] > last]
    elif before.get("state") == "running" and str(before.get("wandb")).startswith("offline"):
        lacking = [row for row in rows if row["seconds"] > rows[-1]["seconds"] - UNFLUSHED]
    else:
        lacking = []
    for row in lacking:
        run.log(row)


def finish(run: Any, exit_code: int = 0, whole: bool = True) -> None:
    """Waits until what was logged has arrived, but no longer than `finish_timeout`; says what then is left to do.

    `whole`: whether it took everything that it was given.
    """
    start, folder, broken = time.monotonic(), Path(run.dir).parent, ""
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:  # of a service that is gone, of several kinds
        broken = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    shown, sync = os.path.relpath(folder), "wandb sync" if run.offline else "wandb sync --no-skip-online"
    fatal, unsaved = _refusals(folder)
    if unsaved:
        print(f"W&B lacks rows: it could not write to {shown} ({unsaved}); metrics.jsonl has all of them, and "
              f"{sync} {shown} sends those that are there", file=sys.stderr)  # fmt: skip
    elif fatal or broken or not whole:
        reason = fatal or broken or "its service ended"
        print(f"W&B lacks rows ({reason}); {sync} {shown} sends them", file=sys.stderr)
    elif not run.offline and time.monotonic() - start >= run.settings.finish_timeout:
        print(f"W&B did not take all of it within {run.settings.finish_timeout:g} s; {sync} {shown} sends the rest",
              file=sys.stderr)  # fmt: skip


def _refusals(folder: Path) -> tuple[str, str]:
    """From W&B's own log of a run: why its server takes no more rows, and why its own file of them has not all."""
    fatal = unsaved = ""
    if not folder.is_dir():  # mode=disabled keeps nothing
        return fatal, unsaved
    try:
        for line in (folder / "logs/debug-internal.log").read_bytes().splitlines():
            if found := re.search(rb"filestream: fatal error: .*?(\d{3} [A-Z][a-z]+(?: [A-Z][a-z]+)*)", line):
                fatal = found[1].decode()
            elif b"filestream: fatal error" in line:
                fatal = "an error of its server"
            elif b"writer: failed to save record" in line:
                unsaved = os.strerror(errno.ENOSPC) if b"no space left" in line else "see debug-internal.log in it"
        files.write(folder / "room", bytes(2**16))  # what its log would say may not have found room either
        (folder / "room").unlink()
    except OSError as error:
        unsaved = error.strerror or str(error)
    return fatal, unsaved


def reachable(url: str, timeout: float) -> bool:
    """Whether anything at all answers there within `timeout` seconds."""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _offline(timeout: float) -> str:
    print(
        f"W&B did not answer within {timeout:g} s; this run is kept offline (wandb sync sends it later)",
        file=sys.stderr,
    )
    return "offline"
