"""The ground both labs stand on: the run folder, checkpoints, tracking, settings, launching. Imports neither lab."""

from pathlib import Path


def conf_dir() -> Path:
    """conf/ of the installed package, or of the checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"
