"""Run folders kept at W&B: what a run sends when `checkpoint.upload=true`, and `run=wandb:...` brings back."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from rl_lab.core.errors import UserError
from rl_lab.core.tracking import reachable, ready

FILES = "config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"  # what resuming a run needs
KIND = "checkpoint"  # the artifact's type
FETCHED = Path("runs/wandb-fetched")
TIMEOUT, PATIENCE = 10, 2  # seconds, before and after a run
FORM = "run=wandb:<entity>/<project>/<run>, and :v2 behind it for an earlier version"


def send(run: Any, folder: Path, slowest: float = 1e6) -> None:
    """Sends the folder as the next version of the run's artifact; waits for it as long as a connection of `slowest`
    bytes a second would take.

    Online, wandb asks its server before it takes an artifact: where none answers, not even `wandb sync` has it later.
    """
    import wandb

    artifact = wandb.Artifact(run.id, type=KIND)
    for name in FILES:
        artifact.add_file(str(folder / name), name)
    try:
        if run.offline:
            run.log_artifact(artifact)
        elif reachable(run.settings.base_url, PATIENCE):
            run.log_artifact(artifact).wait(timeout=int(TIMEOUT + artifact.size / slowest))
        else:
            raise TimeoutError(f"no answer within {PATIENCE} s")
    except (OSError, ValueError, wandb.errors.Error) as error:
        print(
            f"W&B did not take the checkpoint ({' '.join(str(error).split())}); it is in {os.path.relpath(folder)}, "
            "and resuming that run sends it",
            file=sys.stderr,
        )


def fetch(address: str) -> Path:
    """The folder of a run at W&B, `<entity>/<project>/<run>` or its URL, fetched once for each version.

    Nothing is kept that differs from the digests the artifact was made with; nothing of it is called here. Without
    a network the newest version fetched before will do. Raises UserError.
    """
    *where, run, version = _parts(address)
    home = FETCHED.joinpath(*where)
    if version and (home / f"{run}-{version}").is_dir():
        return home / f"{run}-{version}"
    try:
        artifact = _artifact("/".join([*where, run]), version)
    except ConnectionError as error:
        known = sorted(home.glob(f"{run}-v*[0-9]"), key=lambda folder: int(folder.name.rpartition("-v")[2]))
        if version or not known:
            raise UserError(str(error)) from None
        print(f"{error}; {known[-1]} was fetched before", file=sys.stderr)
        return known[-1]
    folder = home / f"{run}-{artifact.version}"
    return folder if folder.is_dir() else _download(artifact, folder)


def _parts(address: str) -> list[str]:
    """Entity, project, run and version ("" for the latest); each will name a folder."""
    path = re.sub(r"^https?://[^/]+/", "", address).partition("?")[0].strip("/").replace("/runs/", "/")
    path, _, version = path.partition(":")
    parts = [*path.split("/"), version.removeprefix("latest")]
    if len(parts) != 4 or not all(re.fullmatch(r"\w[\w. -]*", part) for part in parts[:3]):
        raise UserError(f"wandb:{address} names no run; write {FORM}")
    if not re.fullmatch(r"(v\d+)?", parts[3]):
        raise UserError(f"wandb:{address}: '{version}' is no version; write {FORM}")
    return parts


def _artifact(path: str, version: str) -> Any:
    """The version asked for, or the last. Raises UserError, or ConnectionError where nobody answers."""
    wandb = ready()
    from wandb.apis.public.runs import RunNotFoundError

    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            f"run=wandb:{path} needs a W&B key, and none is used here; wandb login, or give WANDB_API_KEY "
            "(and no WANDB_MODE=offline)"
        )
    url = wandb.setup().settings.base_url
    if not reachable(url, TIMEOUT):
        raise ConnectionError(f"W&B did not answer at {url} within {TIMEOUT} s")
    try:
        api = wandb.Api({"entity": path.partition("/")[0]}, timeout=TIMEOUT)
        found = [artifact for artifact in api.run(path).logged_artifacts() if artifact.type == KIND]
    except wandb.errors.AuthenticationError:
        raise UserError(f"W&B at {url} refused the key; wandb login --relogin gives it another") from None
    except Exception as error:  # of several kinds, most of them wrapped
        if isinstance(getattr(error, "exc", error), RunNotFoundError):
            raise UserError(f"no run {path} at {url}, or none that this key may see") from None
        raise UserError(f"W&B at {url} did not give {path}: {' '.join(str(error).split())}") from error
    if not found:
        raise UserError(f"W&B holds no checkpoint of {path}; train with checkpoint.upload=true keeps one there")
    versions = {a.version: a for a in found}
    if version and version not in versions:
        raise UserError(f"W&B holds no {version} of {path}, only {', '.join(versions)}")
    return versions[version] if version else found[-1]


def _download(artifact: Any, folder: Path) -> Path:
    """Keeps it whole and as it was sent, or not at all."""
    digest, entries = artifact.digest, artifact.manifest.entries  # asked for first: it may not follow the manifest
    if {*entries} != {*FILES} or any(entry.ref for entry in entries.values()):
        raise UserError(f"{artifact.name} is refused: a run folder is {', '.join(FILES)}, and nothing else")
    beside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        artifact.download(root=str(beside), skip_cache=True)
        artifact.verify(root=str(beside))
        if artifact.manifest.digest() != digest:
            raise ValueError("its manifest is another")
    except (OSError, ValueError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{artifact.name} did not arrive as it was sent: {error}; try again") from None
    return beside.replace(folder)
