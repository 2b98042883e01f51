"""A generator and a discriminator that learn from each other, with any of the losses of gen_lab.models.gan.losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gen_lab.models.gan.losses import Loss, discriminator_loss, generator_loss, gradient_penalty
from gen_lab.networks import averaging, labels
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator as random_stream
from rl_lab.core.randomness import seeded
from rl_lab.core.settings import Count, Natural, NonNegative, Unit


class GAN(Learner):
    """x = G(z), z ~ N(0, 1): it samples, and has no likelihood. Inside, images are in [-1, 1].

    An update is a step of the discriminator; after every `critic_steps` of them comes one of the generator. With
    several ranks each has batch statistics of its own, and samples use the running averages of the first.
    """

    saved: tuple[str, ...] = (
        "generator",
        "discriminator",
        "generator_optimizer",
        "discriminator_optimizer",
        "rng",
        "updates",
    )
    parallel = True
    temperature = 1.0  # of samples: times the spread of z

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        generator: Callable[..., nn.Module],
        discriminator: Callable[..., nn.Module],
        generator_optimizer: OptimizerFn,
        discriminator_optimizer: OptimizerFn,
        latents: Count,
        loss: Loss,
        critic_steps: Count,  # updates of the discriminator for each of the generator
        penalty: NonNegative,  # weight of the critic's gradient penalty
        label_smoothing: Unit,  # real images are called real with 1 less this
        noise: NonNegative,  # standard deviation, in [-1, 1], of what is added to real and fake at first
        noise_updates: Natural,  # in which it falls to 0; 0: it stays
        conditional: bool,  # on the labels
        average: Unit,  # decay, a step of the generator, of its average that samples; 0: none
        bf16: bool,  # in training alone; faster where the processor has it (x86: avx512_bf16, amx_bf16)
    ):
        self.spec = labels.conditioned(spec, conditional)
        self.device, self.latents, self.loss, self.critic_steps = device, latents, loss, critic_steps
        self.penalty, self.label_smoothing, self.average, self.bf16 = penalty, label_smoothing, average, bf16
        self.noise, self.noise_updates, self.updates = noise, noise_updates, 0
        with seeded(seed, device):
            self.generator = generator(self.spec, latents).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.discriminator = discriminator(self.spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.check_settings()
        self.generator_optimizer = build_optimizer(generator_optimizer, self.generator.parameters())
        self.discriminator_optimizer = build_optimizer(discriminator_optimizer, self.discriminator.parameters())
        self.rng = random_stream(seed + 1, device)
        self.averaged = averaging.average_of(self.generator, average)
        self.saved += ("averaged",) * bool(average)

    @property
    def has_batch_norm(self) -> bool:
        parts = [*self.generator.modules(), *self.discriminator.modules()]
        return any(isinstance(part, nn.BatchNorm2d) for part in parts)

    def check_settings(self) -> None:
        """Raises UserError if they contradict each other."""
        layers = [*self.discriminator.modules()]
        if self.penalty and any(isinstance(layer, nn.BatchNorm2d) for layer in layers):
            raise UserError(
                f"model.penalty={self.penalty:g} needs each image scored alone, and batch norm mixes them; "
                "use model.discriminator.norm=layer or none"
            )
        if self.loss == "wasserstein" and not self.penalty and not any(map(parametrize.is_parametrized, layers)):
            raise UserError(
                "model.loss=wasserstein needs a discriminator with slopes of at most 1; set model.penalty=10 or "
                "model.discriminator.spectral=true"
            )
        if self.label_smoothing and self.loss in ("hinge", "wasserstein"):
            raise UserError(
                f"model.label_smoothing={self.label_smoothing:g} is for probabilities, and model.loss={self.loss} "
                "uses plain scores; use non_saturating"
            )

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        label = labels.known(self.spec, label)
        if len(x) == 1 and self.spec.shape[1:] == (4, 4) and self.has_batch_norm:
            raise UserError(
                "loop.batch_size must be 2 or more: on images of 4 x 4 a DCGAN's batch norm sees one number an image"
            )
        real, both = self.spec.centred(x), (self.updates + 1) % self.critic_steps == 0
        self.generator.train()
        with torch.set_grad_enabled(both), self.autocast():
            fake = self.generator(self.latent(len(x), self.rng).to(real.dtype), label).to(real.dtype)
        self.generator.eval()
        metrics = self.discriminator_step(real, fake.detach(), label)
        if both:
            metrics |= self.generator_step(fake, label)
            steps = (self.updates + 1) // self.critic_steps
            averaging.follow(self.averaged, self.generator, self.average, steps)
        self.updates += 1
        return metrics

    def discriminator_step(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Metrics:
        """A step of the discriminator; batch norm sees real and fake images apart."""
        on_real, on_fake = self.logit(real, label), self.logit(fake, label)
        loss = discriminator_loss(self.loss, on_real, on_fake, self.label_smoothing).mean()
        metrics = {
            "gan/discriminator_loss": loss.detach(),
            "gan/logit_real": on_real.detach().mean(),
            "gan/logit_fake": on_fake.detach().mean(),
        }
        if self.loss in ("minimax", "non_saturating"):  # logits of a probability
            metrics |= {"gan/D(x)": on_real.detach().sigmoid().mean(), "gan/D(G(z))": on_fake.detach().sigmoid().mean()}
        if self.penalty:  # in float32
            penalty = gradient_penalty(partial(self.discriminator, label=label), real, fake, self.rng).mean()
            loss = loss + self.penalty * penalty
            metrics["gan/penalty"] = penalty.detach()
        return {**metrics, "gan/discriminator_grad_norm": descend(self.discriminator_optimizer, loss)}

    def generator_step(self, fake: Tensor, label: Tensor | None) -> Metrics:
        """A step of the generator, through the discriminator as it now is."""
        with frozen(self.discriminator):
            loss = generator_loss(self.loss, self.logit(fake, label)).mean()
            norm = descend(self.generator_optimizer, loss)
        return {"gan/generator_loss": loss.detach(), "gan/generator_grad_norm": norm}

    def logit(self, x: Tensor, label: Tensor | None) -> Tensor:
        """[B] of images, real or not, behind the noise of this update."""
        sigma = self.noise * max(0.0, 1 - self.updates / self.noise_updates) if self.noise_updates else self.noise
        if sigma:
            x = x + sigma * torch.randn(x.shape, generator=self.rng, device=x.device, dtype=x.dtype)
        with self.autocast():
            return self.discriminator(x, label).to(x.dtype)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """One image for each label; a conditional model without labels samples class after class in turn."""
        label = labels.sampled(self.spec, label, count, self.device)
        z = self.latent(count, generator) * self.temperature
        return self.spec.nearest((self.averaged(z, label) + 1) / 2)

    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Nothing: without a likelihood there is no score."""
        return {}

    def latent(self, count: int, generator: torch.Generator) -> Tensor:
        """z [N, Z]."""
        return torch.randn(count, self.latents, generator=generator, device=self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Within, gradients flow through its layers, but none are computed for its parameters."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)
