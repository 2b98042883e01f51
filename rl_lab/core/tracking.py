"""Weights & Biases through its own library: online when it can be, offline otherwise, never a prompt or a hang."""

import logging
import os
import sys
import urllib.error
import urllib.request
from typing import Any, Literal

from rl_lab.core.errors import UserError


def nothing(**_: Any) -> None:
    """`tracker=none`: the files of the run folder are all there is; wandb is not even imported."""


def wandb_run(
    *,
    name: str,
    group: str,
    job_type: str,
    config: dict,
    id: str | None = None,
    tags: list[str] | None = None,
    project: str = "rl-lab",
    entity: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,  # None: WANDB_MODE, or online if there is a key
    dir: str = "runs",  # one W&B folder for all runs, so that its local viewer lists them together
    init_timeout: float = 10.0,  # seconds
    finish_timeout: float = 10.0,  # seconds
):
    """An open wandb.Run whose x-axis is our own `step`; the same `id` again continues it.

    Without a key, or when the server does not answer within `init_timeout`, the run is kept offline under
    `dir`/wandb for a later `wandb sync`.
    """
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    wandb.setup(wandb.Settings(silent=True))
    settings = wandb.Settings(
        init_timeout=init_timeout, finish_timeout=finish_timeout, silent=True, console="off",
        x_transaction_log_flush_interval=1,  # seconds: what a killed process may lose
    )  # fmt: skip
    arguments = dict(project=project, entity=entity, name=name, group=group, job_type=job_type, config=config, id=id,
                     tags=tags, dir=os.path.abspath(dir), resume="allow", settings=settings)  # fmt: skip
    mode = mode or os.environ.get("WANDB_MODE")
    if not mode:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    if mode == "online" and not reachable(wandb.setup().settings.base_url, init_timeout):
        mode = _offline(init_timeout)
    try:
        run = wandb.init(mode=mode, **arguments)
    except wandb.errors.CommError:  # it answers, but not to this; what was begun keeps the id taken for a while
        run = wandb.init(mode=_offline(init_timeout), **arguments | {"id": f"{id}-offline"})
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise UserError(f"W&B refused the run: {' '.join(str(error).split())}; or run with tracker=none") from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


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
