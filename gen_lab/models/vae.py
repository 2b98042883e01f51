"""Variational autoencoder (Kingma & Welling, 2014; https://arxiv.org/abs/1312.6114)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gen_lab.losses import bernoulli_nll, bits_per_dim, gaussian_kl, gaussian_log_prob, importance_weighted_nll
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend, generator, seeded
from rl_lab.core.settings import Count, NonNegative

DECODED_AT_ONCE = 2**14  # images: bounds the memory of an importance-weighted estimate


class VAE(Learner):
    """Gaussian latents, Bernoulli pixels, one draw of z for each x; labels are left unused."""

    saved = "encoder", "decoder", "optimizer", "rng"

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
        beta: NonNegative,  # weight of the KL in training alone (Higgins et al., 2017); scores are always at 1
    ):
        if spec.levels != 2:
            raise UserError(f"model=vae has Bernoulli pixels, and on {spec.levels} grey levels their cross entropy is "
                            "no likelihood; use binary pixels (data.protocol=binarised)")  # fmt: skip
        self.spec, self.device, self.latents, self.beta = spec._replace(classes=0), device, latents, beta
        with seeded(seed, device):
            self.encoder = encoder(spec.shape, 2 * latents).to(device)  # x [B, C, H, W] -> mu, log_var [B, 2 Z]
            self.decoder = decoder(spec.shape, latents).to(device)  # z [B, Z] -> logits [B, C, H, W]
        self.optimizer = build_optimizer(optimizer, [*self.encoder.parameters(), *self.decoder.parameters()])
        self.rng = generator(seed + 1, device)

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        recon, kl = self.elbo_terms(x, self.rng)
        norm = descend(self.optimizer, (recon + self.beta * kl).mean())
        return {"vae/recon_nats": recon.detach().mean(), "vae/kl_nats": kl.detach().mean(), "vae/grad_norm": norm}

    def elbo_terms(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """-log p(x|z) for a draw of z, and KL(q(z|x) || p(z)), each [B]; in expectation their sum is -ELBO."""
        mu, log_var = self.encode(x)
        z = draw(mu, log_var, torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype))
        return bernoulli_nll(self.decoder(z), x), gaussian_kl(mu, log_var)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu, log_var [B, Z] of q(z|x)."""
        mu, log_var = self.encoder(x).chunk(2, dim=-1)
        return mu, log_var

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """x ~ p(x|z), z ~ p(z): pixels of 0 and 1."""
        z = torch.randn(count, self.latents, generator=generator, device=self.device)
        return torch.bernoulli(self.decoder(z).sigmoid(), generator=generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0]).sigmoid()

    @torch.no_grad()
    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        recon, kl = self.elbo_terms(x, generator)
        bound, tighter = recon + kl, {}
        if iwae_samples:
            weights = self.log_importance_weights(x, iwae_samples, generator)
            bound = -weights.mean(0)  # the same expectation, over many draws of z instead of one
            tighter = {f"iwae{iwae_samples}_nats": importance_weighted_nll(weights)}
        bits = bits_per_dim(bound, self.spec.shape)
        return {"nll_bound_nats": bound, "bits_per_dim_bound": bits, "kl_nats": kl, **tighter}

    @torch.no_grad()
    def log_importance_weights(self, x: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """log p(x, z) - log q(z|x) for k draws of z from q(z|x), [K, B]; x is encoded once."""
        mu, log_var = self.encode(x)
        weights, rows = [], max(1, DECODED_AT_ONCE // len(x))
        for n in [rows] * (k // rows) + [k % rows] * (k % rows > 0):
            z = draw(mu, log_var, torch.randn(n, *mu.shape, generator=generator, device=mu.device, dtype=mu.dtype))
            nll = bernoulli_nll(self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2]), x)
            prior = gaussian_log_prob(z, torch.zeros_like(mu), torch.zeros_like(mu))
            weights.append(prior - nll - gaussian_log_prob(z, mu, log_var))
        return torch.cat(weights)


def draw(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z ~ N(mu, var) as a function of standard normal noise [..., B, Z], so that gradients reach mu and log_var."""
    return mu + (0.5 * log_var).exp() * noise


def mlp_encoder(shape: tuple[int, int, int], outputs: int, *, hidden: Count) -> nn.Module:
    """One hidden layer of `hidden` units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def mlp_decoder(shape: tuple[int, int, int], inputs: int, *, hidden: Count) -> nn.Module:
    """One hidden layer of `hidden` units."""
    pixels = nn.Linear(hidden, math.prod(shape))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), pixels, nn.Unflatten(-1, shape))


def conv_encoder(shape: tuple[int, int, int], outputs: int, *, channels: Count) -> nn.Module:
    """Two strided convolutions, of `channels` and twice as many maps."""
    c, h, w = _halved_twice(shape)
    return nn.Sequential(
        nn.Conv2d(c, channels, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * channels * h * w, outputs),
    )  # fmt: skip


def conv_decoder(shape: tuple[int, int, int], inputs: int, *, channels: Count) -> nn.Module:
    """The encoder's mirror."""
    c, h, w = _halved_twice(shape)
    return nn.Sequential(
        nn.Linear(inputs, 2 * channels * h * w), nn.ReLU(), nn.Unflatten(-1, (2 * channels, h, w)),
        nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(channels, c, 4, 2, 1),
    )  # fmt: skip


def _halved_twice(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    c, h, w = shape
    if h % 4 or w % 4:
        raise UserError(f"a convolutional VAE halves images twice, and {h} x {w} cannot be; use model=vae")
    return c, h // 4, w // 4
