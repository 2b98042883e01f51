"""What a loop leaves in its run's folder beside rows and checkpoint: arrays for NumPy, and pictures."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from rl_lab.core import files
from rl_lab.core.run import Run


def keep_arrays(run: Run, name: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Writes <name>.npz; returns what it holds."""
    found = {key: x.cpu().numpy() for key, x in tensors.items()}
    with files.replacing(run.path(f"{name}.npz")) as path:
        np.savez(path, **found)  # type: ignore[arg-type]
    return found


def keep_pictures(run: Run, stage: str, pictures: Mapping[str, Image.Image], step: int) -> None:
    """Writes pictures/<name>.png, which W&B shows as <stage>/<name>."""
    for name, picture in pictures.items():
        with files.replacing(run.path(f"pictures/{name}.png")) as path:
            picture.save(path)
        run.media(f"{stage}/{name}", run.path(f"pictures/{name}.png"), step)
