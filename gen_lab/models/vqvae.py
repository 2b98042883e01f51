"""VQ-VAE and a prior over its codes (van den Oord, Vinyals & Kavukcuoglu, 2017; https://arxiv.org/abs/1711.00937)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gen_lab.losses import bits_per_dim
from gen_lab.models.autoregressive import Autoregressive
from gen_lab.models.likelihoods import Likelihood
from gen_lab.networks.codebook import Codebook, straight_through
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Natural, NonNegative


class VQVAE(Learner):
    """An image is a map of codes, and the map is an image to the prior, whose levels are the codes.

    Its first `autoencoder_steps` updates learn what the codes mean; then they stand still, and the prior learns
    which maps of them there are. What an image costs is the nats of its map and those of its pixels given the map:
    a bound on -log p(x), for other maps could have meant it too.
    """

    saved: tuple[str, ...] = "encoder", "codebook", "decoder", "optimizer", "prior", "rng", "updates"
    parallel = True

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        codebook: Callable[..., Codebook],
        prior: Callable[..., Autoregressive],
        optimizer: OptimizerFn,
        dimensions: Count,  # of a code
        autoencoder_steps: Natural,  # updates; the rest are the prior's
        likelihood: Callable[..., Likelihood],
        commitment: NonNegative,  # weight of the distance, squared, to the code: what ties the encoder to it
    ):
        self.device, self.autoencoder_steps, self.commitment, self.updates = device, autoencoder_steps, commitment, 0
        self.likelihood = likelihood(spec).eval().to(device)
        with seeded(seed, device):
            self.encoder = encoder(spec.shape, dimensions).to(device)  # x [B, C, H, W] -> z [B, D, h, w]
            self.codebook = codebook(dimensions).to(device)
            maps = self.likelihood.outputs, *spec.shape[1:]
            self.decoder = decoder(maps, dimensions).to(device)  # codes [B, D, h, w] -> params [B, P, H, W]
        with torch.no_grad():
            size = self.encoder(torch.zeros(1, *spec.shape, device=device)).shape[2:]
            back = self.decoder(torch.zeros(1, dimensions, *size, device=device)).shape[2:]
        if back != spec.shape[1:]:
            raise UserError(f"model.decoder makes {' x '.join(map(str, back))} of what model.encoder makes of "
                            f"{' x '.join(map(str, spec.shape[1:]))}; give both the same halvings")  # fmt: skip
        if len(self.codebook.counts) < 2:
            raise UserError("model.codebook.codes must be at least 2")
        self.prior = prior(Spec((1, *size), len(self.codebook.counts), spec.classes), device=device, seed=seed + 2)
        self.spec = spec._replace(classes=self.prior.spec.classes)
        parts = self.encoder, self.decoder, self.likelihood
        self.optimizer = build_optimizer(optimizer, [p for part in parts for p in part.parameters()])
        self.rng = generator(seed + 1, device)
        self.saved += ("likelihood",) * bool(self.likelihood.state_dict())

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        if self.updates < self.autoencoder_steps:
            metrics = self.learn_codes(x)
        else:
            metrics = self.prior.update(self.codes(x).unsqueeze(1), label)
            metrics.pop("autoregressive/bits_per_dim")  # of codes, not of pixels
        self.updates += 1
        return metrics

    def learn_codes(self, x: Tensor) -> Metrics:
        """A step of encoder and decoder down -log p(x | codes) + commitment, and one of the codes after the encoder."""
        z = self.encoder(self.spec.scaled(x))
        flat = vectors(z.detach())
        if not self.updates:
            self.codebook.start(flat, self.rng)
        code = self.codebook.nearest(flat)
        quantised = self.quantised(code.view(len(x), *z.shape[2:]))
        self.likelihood.train()
        recon = self.likelihood.nll(self.decoder(straight_through(z, quantised)), x, self.rng)
        self.likelihood.eval()
        distance = (z - quantised).square().flatten(1).sum(1)
        norm = descend(self.optimizer, (recon + self.commitment * distance).mean())
        restarted = self.codebook.follow(flat, code, self.rng)
        return {
            f"vqvae/{self.likelihood.improper or 'recon_nats'}": recon.detach().mean(),
            "vqvae/distance": distance.detach().mean(),
            "vqvae/perplexity": self.codebook.perplexity(),
            "vqvae/restarted": restarted,
            "vqvae/grad_norm": norm,
        }

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The map of codes [B, h, w] int64 that stands for levels x [B, C, H, W]."""
        z = self.encoder(self.spec.scaled(x))
        return self.codebook.nearest(vectors(z)).view(len(x), *z.shape[2:])

    def quantised(self, code: Tensor) -> Tensor:
        """The codes [B, h, w] as what they stand for, [B, D, h, w]."""
        return self.codebook.vectors[code.long()].movedim(-1, 1)  # uint8 would be a mask

    @torch.no_grad()
    def decode(self, code: Tensor) -> Tensor:
        """Parameters [B, P, H, W] of p(x | codes [B, h, w])."""
        return self.decoder(self.quantised(code))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """x ~ p(x | codes), codes ~ the prior, pixel by pixel."""
        return self.likelihood.sample(self.drawn(count, generator, label), generator)

    @torch.no_grad()
    def pixel_means(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """The mean [N, C, H, W] of p(x | codes) for the codes that `sample` draws."""
        return self.likelihood.mean(self.drawn(count, generator, label))

    def drawn(self, count: int, generator: torch.Generator, label: Tensor | None) -> Tensor:
        """Of p(x | codes), codes ~ the prior, [N, P, H, W]."""
        return self.decode(self.prior.sample(count, generator, label).squeeze(1))

    @property
    def temperature(self) -> float:
        return self.prior.temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self.prior.temperature = temperature

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.decode(self.codes(x)))

    @torch.no_grad()
    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Without chance, unless the likelihood is a density: `iwae_samples` is not used."""
        code = self.codes(x)
        recon = self.likelihood.nll(self.decode(code), x, generator)
        codes = self.prior.score(code.unsqueeze(1), generator, label=label)["nll_nats"]
        if self.likelihood.improper:
            return {self.likelihood.improper: recon, "code_nats": codes}
        bound = recon + codes
        return {
            "nll_bound_nats": bound,
            "bits_per_dim_bound": bits_per_dim(bound, self.spec.shape),
            "recon_nats": recon,
            "code_nats": codes,
        }


def vectors(z: Tensor) -> Tensor:
    """[B, D, h, w] -> [B h w, D]."""
    return z.movedim(1, -1).flatten(0, -2)


class Residual(nn.Module):
    """x + f(x), f a 3 x 3 and a 1 x 1 convolution, each after a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.f = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def vq_encoder(
    shape: tuple[int, int, int], outputs: int, *, channels: Count, halvings: Natural, blocks: Natural
) -> nn.Module:
    """Strided 4 x 4 convolutions, then residual blocks: [B, C, H, W] -> [B, outputs, H / 2^halvings, ...]."""
    c, h, w = shape
    if h % 2**halvings or w % 2**halvings:
        raise UserError(
            f"model.encoder.halvings={halvings}: both sides must be multiples of {2**halvings}, not {h} x {w}"
        )
    inputs = [c] + [channels] * halvings
    strided = [part for i in inputs[:-1] for part in (nn.Conv2d(i, channels, 4, 2, 1), nn.ReLU())]
    first = nn.Conv2d(inputs[-1], channels, 3, padding=1)
    return nn.Sequential(*strided, first, *(Residual(channels) for _ in range(blocks)), nn.Conv2d(channels, outputs, 1))


def vq_decoder(
    shape: tuple[int, int, int], inputs: int, *, channels: Count, halvings: Natural, blocks: Natural
) -> nn.Module:
    """The encoder's mirror: [B, inputs, h, w] -> [B, C, h 2^halvings, ...]."""
    outputs = [channels] * (halvings - 1) + [shape[0]] * (halvings > 0)
    strided = [part for o in outputs for part in (nn.ReLU(), nn.ConvTranspose2d(channels, o, 4, 2, 1))]
    last = [] if halvings else [nn.ReLU(), nn.Conv2d(channels, shape[0], 3, padding=1)]
    first = nn.Conv2d(inputs, channels, 3, padding=1)
    return nn.Sequential(first, *(Residual(channels) for _ in range(blocks)), *strided, *last)
