"""A trained autoencoder as the eyes of an agent: agent/network=encoded agent.network.run=<folder>.

rl_lab does not know of this module; a YAML hands it in.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gen_lab.data.images import quantised
from gen_lab.data.recordings import resized
from gen_lab.trained.loading import load
from gen_lab.types import LatentModel
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Place, placed


@runtime_checkable
class Encoder(LatentModel, Protocol):
    """An autoencoder whose codes are the first outputs of a network."""

    encoder: nn.Module  # [B, C, H, W] in [0, 1] to [B, Z], or more


class Encoded(nn.Module):
    """Frames uint8 [B, S, H, W] to what the autoencoder keeps of each of them, [B, S Z], and dense layers on all of it.

    Each frame is made what the autoencoder was trained on, as `data=recorded` makes it: the same size, the same
    levels. What the run learned is where this begins; `frozen`, it is also where it stays. The dense layers are the
    agent's own: codes say where things are, and what that is worth is no linear function of it.
    """

    def __init__(self, spec, *, run: Place, frozen: bool, hidden: Sequence[Count]):
        super().__init__()
        folder = Path(placed(run, "agent.network.run"))
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"agent.network.run={run} is not a run folder; type agent.network.run=<the autoencoder's run folder>, "
                "where it is now"
            )
        found = load(folder, "cpu")
        if not isinstance(found.model, Encoder) or found.model.spec.classes:
            raise UserError(
                f"agent.network.run={folder} is no autoencoder that goes without labels; train one of "
                "model=vae, vae_conv, vae_residual or autoencoder on data=recorded"
            )
        colours, size, width = found.spec.shape
        if spec.obs_dtype != torch.uint8 or len(spec.obs_shape) != 3 or colours != 1 or size != width:
            raise UserError(
                f"agent.network.run={folder} was trained on images of {colours} x {size} x {width}, and "
                f"the environment shows {spec.obs_dtype} of {list(spec.obs_shape)}; square grey frames are "
                "wanted on both sides (data.grey=true)"
            )
        self.encoder, self.spec = found.model.encoder.requires_grad_(not frozen), found.spec
        self.latents = found.model.code(torch.zeros(1, *found.spec.shape)).shape[1]
        sizes = pairwise([spec.obs_shape[0] * self.latents, *hidden])
        self.dense = nn.Sequential(*(part for a, b in sizes for part in (nn.Linear(a, b), nn.ReLU())))

    def forward(self, obs: Tensor) -> Tensor:
        frames = prepared(obs.flatten(0, 1).unsqueeze(1), self.spec.shape[1], self.spec.levels)
        code = self.encoder(self.spec.scaled(frames))[:, : self.latents]  # of a VAE the means; its variances come after
        return self.dense(code.unflatten(0, obs.shape[:2]).flatten(1))


def prepared(frames: Tensor, size: int, levels: int) -> Tensor:
    """Grey frames uint8 [B, 1, H, W] to levels [B, 1, size, size], as data=recorded prepares them."""
    return quantised(resized(frames, size, grey=True), levels)
