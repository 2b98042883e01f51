"""Which code made a run: the versions of the libraries that matter, the git revision, and the command."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "hydra-core", "wandb"
CODE = "*.py", "*.yaml", "*.toml"


def of_process() -> dict[str, Any]:
    return {
        "python": platform.python_version(), "versions": versions(), "git": revision(), "command": " ".join(sys.argv),
    }  # fmt: skip


@functools.cache
def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def revision(home: Path = Path(__file__).parent) -> str | None:
    """The git revision of the code in `home`; 1a2b3c4+dirty.5d6e7f80 where it differs, with a digest of the difference
    and of code that git does not know. None where git knows nothing of it: where it is installed, for one.
    """
    try:
        if not _git(home, "ls-files"):
            return None
        folder, head = _git(home, "rev-parse", "--show-toplevel", "--short", "HEAD").decode().splitlines()
        difference = _git(top := Path(folder), "diff", "--binary", "--no-ext-diff", "HEAD")
        new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE).split(b"\0")[:-1]
        contents = [name + b"\0" + (top / os.fsdecode(name)).read_bytes() for name in new]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    digest = hashlib.sha256(b"\0".join([difference, *contents])).hexdigest()
    return f"{head}+dirty.{digest[:8]}" if difference or new else head


def _git(folder: Path, *command: str) -> bytes:
    """What it prints. Raises OSError or SubprocessError."""
    return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, timeout=5, check=True).stdout
