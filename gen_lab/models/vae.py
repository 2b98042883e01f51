"""Variational autoencoder (Kingma & Welling, 2014; https://arxiv.org/abs/1312.6114)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gen_lab.losses import bits_per_dim, gaussian_kl, gaussian_log_prob, importance_weighted_nll, pieces
from gen_lab.models.likelihoods import Likelihood
from gen_lab.networks import labels
from gen_lab.types import Spec
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Natural, NonNegative

DECODED_AT_ONCE = 2**14  # images, and
PARAMETERS_AT_ONCE = 2**24  # of their pixels: bound the memory of an importance-weighted estimate


class VAE(Learner):
    """Gaussian latents and, given them, independent pixels. One draw of z for each x learns the ELBO.

    More `importance_samples` learn the tighter bound of importance-weighted autoencoders (Burda, Grosse &
    Salakhutdinov, 2016; https://arxiv.org/abs/1509.00519). Scores are bounds on the likelihood as it is: `beta`,
    `free_nats` and `warm_up` are of training alone.
    """

    saved: tuple[str, ...] = "encoder", "decoder", "optimizer", "rng"
    parallel = True
    temperature = 1.0  # of samples: times the spread of z
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
        likelihood: Callable[..., Likelihood],
        beta: NonNegative,  # weight of the KL (Higgins et al., 2017)
        free_nats: NonNegative,  # an image: a KL below costs as much (Ha & Schmidhuber, 2018)
        warm_up: Natural,  # updates in which the weight of the KL rises from 0 (Bowman et al., 2016)
        importance_samples: Count,
        conditional: bool,  # on the labels
        bf16: bool,  # in training alone; faster where the processor has it (x86: avx512_bf16, amx_bf16)
    ):
        self.spec = labels.conditioned(spec, conditional)
        self.device, self.latents, self.importance_samples, self.bf16 = device, latents, importance_samples, bf16
        self.beta, self.free_nats, self.warm_up, self.updates = beta, free_nats, warm_up, 0
        self.likelihood = likelihood(spec).eval().to(device)
        self.check_bound()
        with seeded(seed, device):
            self.encoder = labels.labelled(encoder, self.spec, 2 * latents).to(device)  # [B, C, H, W] -> [B, 2 Z]
            maps = self.likelihood.outputs, *spec.shape[1:]
            self.decoder = decoder(maps, latents + self.spec.classes).to(device)  # z [B, Z] -> [B, P, H, W]
        parts = self.encoder, self.decoder, self.likelihood
        self.optimizer = build_optimizer(optimizer, [p for part in parts for p in part.parameters()])
        self.rng = generator(seed + 1, device)
        self.saved += ("likelihood",) * bool(self.likelihood.state_dict()) + ("updates",) * bool(warm_up)

    def check_bound(self) -> None:
        """Raises UserError if settings contradict the importance-weighted bound."""
        if self.importance_samples == 1:
            return
        setting = f"model.importance_samples={self.importance_samples}"
        if self.beta != 1 or self.free_nats or self.warm_up:
            raise UserError(
                f"{setting} is a bound without a KL to weigh; leave model.beta at 1, and free_nats and warm_up at 0"
            )
        if self.likelihood.improper:
            raise UserError(
                f"{setting} needs a likelihood, which {self.likelihood.improper} is not; "
                "choose another model/likelihood="
            )

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        found: list[dict[str, Tensor]] = []
        self.likelihood.train()
        norm = descend(self.optimizer, self.losses(x, label, found))
        self.likelihood.eval()
        self.updates += 1
        metrics = {name: torch.cat([terms[name] for terms in found]).mean() for name in found[0]}
        return {f"vae/{name}": x for name, x in (metrics | {"grad_norm": norm}).items()}

    def losses(self, x: Tensor, label: Tensor | None, found: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        """Of each part of a batch, whose sum is the mean over the batch; leaves the terms of each image in `found`."""
        loss_of = self.elbo_loss if self.importance_samples == 1 else self.iwae_loss
        for part, known, share in pieces(x, label, self.in_parts):
            loss, terms = loss_of(part, known)
            found.append({name: term.detach() for name, term in terms.items()})
            yield share * loss.mean()

    def elbo_loss(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What is descended [B], and the two terms as they are."""
        recon, kl = self.elbo_terms(x, self.rng, label)
        weight = self.beta * (min(1.0, self.updates / self.warm_up) if self.warm_up else 1.0)
        loss = recon + weight * kl.clamp(min=self.free_nats)
        bound = {} if self.likelihood.improper else {"bound_nats": recon + kl}
        return loss, {self.likelihood.improper or "recon_nats": recon, "kl_nats": kl, **bound}

    def iwae_loss(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What is descended [B], and beside it the KL."""
        mu, log_var = self.encode(x, label)
        weights = self.log_weights(x, mu, log_var, self.importance_samples, self.rng, label)
        bound = importance_weighted_nll(weights)
        return bound, {f"iwae{self.importance_samples}_nats": bound, "kl_nats": gaussian_kl(mu, log_var)}

    def elbo_terms(self, x: Tensor, generator: torch.Generator, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-log p(x|z) for a draw of z, and KL(q(z|x) || p(z)), each [B]; in expectation their sum is -ELBO."""
        mu, log_var = self.encode(x, label)
        z = draw(mu, log_var, torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype))
        return self.likelihood.nll(self.params(z, label), x, generator), gaussian_kl(mu, log_var)

    def encode(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu, log_var [B, Z] of q(z|x), of levels x [B, C, H, W]."""
        known = labels.known(self.spec, label)
        condition = () if known is None else (known,)
        mu, log_var = self.through(self.encoder, self.spec.scaled(x), *condition).chunk(2, dim=-1)
        return mu, log_var

    def params(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Of p(x|z): z [..., B, Z] -> [..., B, P, H, W]."""
        known = labels.known(self.spec, label)
        inputs = z if known is None else labels.with_one_hot(z, known, self.spec.classes)
        return self.through(self.decoder, inputs.flatten(0, -2)).unflatten(0, z.shape[:-1])

    def through(self, network: nn.Module, x: Tensor, *label: Tensor) -> Tensor:
        """The network's output, in x's dtype; with `bf16` it is computed in bfloat16 while gradients are recorded."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and torch.is_grad_enabled()):
            return network(x, *label).to(x.dtype)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """x ~ p(x|z), z ~ p(z); a conditional model without labels samples class after class in turn."""
        return self.likelihood.sample(self.drawn(count, generator, label), generator)

    @torch.no_grad()
    def pixel_means(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """The mean [N, C, H, W] of p(x|z) for the z that `sample` draws."""
        return self.likelihood.mean(self.drawn(count, generator, label))

    def drawn(self, count: int, generator: torch.Generator, label: Tensor | None) -> Tensor:
        """Of p(x|z), z ~ p(z) with `temperature` times its spread, [N, P, H, W]."""
        label = labels.sampled(self.spec, label, count, self.device)
        z = torch.randn(count, self.latents, generator=generator, device=self.device)
        return self.params(z * self.temperature, label)

    @torch.no_grad()
    def code(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, Z], the mean of q(z|x)."""
        return self.encode(x, label)[0]

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean [B, C, H, W] of p(x|z)."""
        return self.likelihood.mean(self.params(z, label))

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.decode(self.code(x, label), label)

    @torch.no_grad()
    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        recon, kl = self.elbo_terms(x, generator, label)
        if self.likelihood.improper:
            return {self.likelihood.improper: recon, "kl_prior_nats": kl}
        bound, tighter = recon + kl, {}
        if iwae_samples:
            weights = self.log_importance_weights(x, iwae_samples, generator, label)
            bound = -weights.mean(0)  # the same expectation, over many draws of z instead of one
            tighter = {f"iwae{iwae_samples}_nats": importance_weighted_nll(weights)}
        bits = bits_per_dim(bound, self.spec.shape)
        return {"nll_bound_nats": bound, "bits_per_dim_bound": bits, "kl_prior_nats": kl, **tighter}

    @torch.no_grad()
    def log_importance_weights(
        self, x: Tensor, k: int, generator: torch.Generator, label: Tensor | None = None
    ) -> Tensor:
        """log p(x, z) - log q(z|x) for k draws of z from q(z|x), [K, B]; x is encoded once, z decoded in chunks."""
        room.memory(12 * k * len(x), f"iwae_samples={k}, of {len(x)} images at once,")
        mu, log_var = self.encode(x, label)
        batch = max(1, len(x))
        parameters = batch * self.likelihood.outputs * x.shape[-2:].numel()
        rows = max(1, min(DECODED_AT_ONCE // batch, PARAMETERS_AT_ONCE // parameters))
        return torch.cat([self.log_weights(x, mu, log_var, n, generator, label) for n in chunks(k, rows)])

    def log_weights(
        self, x: Tensor, mu: Tensor, log_var: Tensor, k: int, generator: torch.Generator, label: Tensor | None
    ) -> Tensor:
        """The same [K, B] of k draws at once, given q(z|x)."""
        z = draw(mu, log_var, torch.randn(k, *mu.shape, generator=generator, device=mu.device, dtype=mu.dtype))
        nll = self.likelihood.nll(self.params(z, label), x, generator)
        prior = gaussian_log_prob(z, torch.zeros_like(mu), torch.zeros_like(mu))
        return prior - nll - gaussian_log_prob(z, mu, log_var)


def draw(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z ~ N(mu, var) as a function of standard normal noise [..., B, Z], so that gradients reach mu and log_var."""
    return mu + (0.5 * log_var).exp() * noise


def chunks(count: int, size: int) -> Iterator[int]:
    """`count` in parts of `size`, and what is left."""
    for start in range(0, count, size):
        yield min(size, count - start)
