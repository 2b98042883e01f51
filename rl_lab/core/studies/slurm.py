"""Jobs of a study under Slurm, by submitit: they stop and go on in its queue, and the launcher waits for them."""

import os
import re
import signal
import subprocess
import sys
from typing import Any

from hydra.plugins.launcher import Launcher

QUEUE = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N"]


def starts_again(stop: KeyboardInterrupt) -> bool:
    """Whether Slurm will run this job, which has saved and stopped, once more; asked in the job's own process.

    Slurm itself requeues a job that is preempted; submitit requeues one that nears its time limit, in answer to the
    signal before it, up to hydra.launcher.max_num_timeout times.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    number = getattr(stop, "number", signal.SIGTERM)
    answer = signal.getsignal(number)
    try:
        if callable(answer):
            answer(number, None)
    except SystemExit:
        return True
    except Exception as error:
        print(" ".join(str(error).split()), file=sys.stderr)
    return _restarts() > int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _restarts() -> int:
    """How often Slurm has requeued this job, this time included; 0 where it does not say."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        shown = subprocess.run(
            ["scontrol", "-o", "show", "job", job], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"\bRestarts=(\d+)", shown)
    return int(found[1]) if found else 0


def attend(launcher: Launcher) -> None:
    """Before submitit launches: it waits for each job, however that ends, and asks squeue where accounting is off."""
    if type(launcher).__name__ != "SlurmLauncher":
        return
    import submitit

    job: Any = submitit.SlurmJob
    job.results = lambda self: [self.wait()]  # what came of it stands in the study, and one that failed takes no other
    if not _accounts():
        watcher = job.watcher
        read = type(watcher).read_info
        watcher._make_command = lambda: QUEUE
        watcher.read_info = lambda text: _states(read, watcher, text)


def refusal(error: Exception, launcher: Launcher) -> str | None:
    """What Slurm has against the jobs as they were submitted, and what to do; None where it is another fault."""
    if type(launcher).__name__ != "SlurmLauncher":
        return None
    if isinstance(error, RuntimeError) and "srun" in str(error):
        return (
            "hydra/launcher=submitit_slurm needs Slurm's srun and sbatch, and they are not on PATH; start it where "
            "they are, or take hydra/launcher=processes"
        )
    if type(error).__name__ == "FailedJobError" and (found := re.findall(r"sbatch: error: (.+)", str(error))):
        return f"Slurm takes no such job: {'; '.join(found)}; change hydra.launcher's partition, mem_gb and the like"
    return None


def _accounts() -> bool:
    """Whether sacct knows of jobs."""
    try:
        return subprocess.run(["sacct", "--noheader", "--allocations"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _states(read: Any, watcher: Any, text: bytes) -> dict[str, dict[str, str]]:
    """Of each job of the watcher, by squeue's lines; one that the queue no longer has is over."""
    queued: dict[str, dict[str, str]] = read(watcher, "JobID|State|NodeList\n" + text.decode())
    return {job: {"State": "COMPLETED"} for job in watcher._registered} | queued
