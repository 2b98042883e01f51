"""Which code made a run: the versions of the libraries that matter, and the git revision."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

PACKAGES = "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "hydra-core", "wandb"


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
def revision() -> str | None:
    """The git revision of the code, marked + where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.returncode == 1 else "") if head.returncode == 0 else None
