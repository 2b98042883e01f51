"""Autoencoders: plain (Hinton & Salakhutdinov, 2006) and denoising (Vincent et al., 2008).

https://doi.org/10.1126/science.1127647, https://doi.org/10.1145/1390156.1390294
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from gen_lab.losses import bernoulli_nll, pieces
from gen_lab.types import Spec
from rl_lab.core import distributed
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, NonNegative, Unit

HORIZON = 100  # updates that the running moments of the codes cover, roughly


class Autoencoder(Learner):
    """x to a code and back. With `noise` or `masked`, a spoilt x to a code and back to the clean one.

    It has no likelihood: its scores are errors. Nor does it say how its codes are distributed: to sample from it, a
    Gaussian is laid through the codes of the last updates, as Ghosh et al. (2020; https://arxiv.org/abs/1903.12436)
    do once it is trained. Codes that are not Gaussian show in the samples. Labels are left unused.
    """

    saved = "encoder", "decoder", "optimizer", "codes", "rng"
    parallel = True
    temperature = 1.0  # of samples: times the spread of the codes
    in_parts = 1  # that a batch is learned in

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        optimizer: OptimizerFn,
        latents: Count,
        loss: Literal["squared_error", "cross_entropy"],
        noise: NonNegative,  # sigma of what is added to what the encoder sees in training
        masked: Unit,  # chance that it sees a 0 instead of a pixel
    ):
        self.spec, self.device = spec._replace(classes=0), device
        self.loss, self.noise, self.masked = loss, noise, masked
        with seeded(seed, device):
            self.encoder = encoder(spec.shape, latents).to(device)  # x [B, C, H, W] -> z [B, Z]
            self.decoder = decoder(spec.shape, latents).to(device)  # z [B, Z] -> [B, C, H, W]
        self.optimizer = build_optimizer(optimizer, [*self.encoder.parameters(), *self.decoder.parameters()])
        self.codes, self.rng = Moments(latents).to(device), generator(seed + 1, device)

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        found: list[dict[str, Tensor]] = []
        norm = descend(self.optimizer, self.losses(self.spec.scaled(x), found))
        self.codes.follow(torch.cat([terms.pop("z") for terms in found]))
        metrics = {k: torch.cat([terms[k] for terms in found]).mean() for k in found[0]} | {"grad_norm": norm}
        return {f"autoencoder/{k}": e for k, e in metrics.items()}

    def losses(self, x: Tensor, found: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        """Of each part of a batch, whose sum is the mean over the batch; leaves errors and codes in `found`."""
        for part, _, share in pieces(x, None, self.in_parts):
            z = self.encoder(self.spoilt(part, self.rng))
            errors = self.errors(self.decoder(z), part)
            found.append({k: e.detach() for k, e in (errors | {"z": z}).items()})
            yield share * errors[self.figure].mean()

    def spoilt(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x [B, C, H, W] in [0, 1] as the encoder is shown it in training: with noise, or with pixels hidden."""
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if self.masked:
            x = x * (torch.rand(x.shape, generator=generator, device=x.device) >= self.masked)
        return x

    @property
    def figure(self) -> str:
        """The loss that is minimised. The cross entropy is called by its name: for grey pixels it is no likelihood."""
        return "recon_bce" if self.loss == "cross_entropy" else "squared_error"

    def errors(self, out: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Sums over an image [B], of the decoder's output and x in [0, 1]."""
        errors = {"squared_error": (self.shown(out) - x).square().flatten(1).sum(1)}
        return errors | {"recon_bce": bernoulli_nll(out, x)} if self.loss == "cross_entropy" else errors

    def shown(self, out: Tensor) -> Tensor:
        """The image that the decoder means."""
        return out.sigmoid() if self.loss == "cross_entropy" else out

    @torch.no_grad()
    def code(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Levels [B, C, H, W] to z [B, Z]."""
        return self.encoder(self.spec.scaled(x))

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """[B, C, H, W] in [0, 1]."""
        return self.shown(self.decoder(z)).clamp(0, 1)

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.decode(self.code(x))

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Codes drawn from a Gaussian fitted to those of training, decoded, rounded to the data's levels."""
        return self.spec.nearest(self.decode(self.codes.draw(count, generator, self.temperature)))

    @torch.no_grad()
    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Errors of clean images and, of a denoising autoencoder, of spoilt ones too."""
        x = self.spec.scaled(x)
        scores = self.errors(self.decoder(self.encoder(x)), x)
        if self.noise or self.masked:
            denoised = self.errors(self.decoder(self.encoder(self.spoilt(x, generator))), x)
            scores |= {f"denoised_{name}": error for name, error in denoised.items()}
        return scores


class Moments(nn.Module):
    """Running moments of vectors of Z numbers; they start as those of N(0, 1)."""

    first: Tensor  # E z [Z]
    second: Tensor  # E z z' [Z, Z]

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("first", torch.zeros(size))
        self.register_buffer("second", torch.eye(size))

    def follow(self, z: Tensor) -> None:
        """A step towards the moments of a batch [B, Z], of all ranks'."""
        self.first.lerp_(distributed.mean(z.mean(0)), 1 / HORIZON)
        self.second.lerp_(distributed.mean(z.T @ z / len(z)), 1 / HORIZON)

    def draw(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """[N, Z] of the normal distribution that has these moments, `temperature` times its spread."""
        covariance = self.second.double() - torch.outer(self.first.double(), self.first.double())
        variances, axes = torch.linalg.eigh(covariance)
        noise = torch.randn(count, len(variances), generator=generator, device=self.first.device, dtype=torch.double)
        return (self.first + noise * (temperature * variances.clamp(min=0).sqrt()) @ axes.T).to(self.first.dtype)
