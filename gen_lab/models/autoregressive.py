"""A model that predicts each pixel from those before it: a causal network with a likelihood head."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gen_lab.losses import bits_per_dim, pieces
from gen_lab.networks import averaging, labels
from gen_lab.networks.causal import sampling
from gen_lab.networks.causal.heads import Head, Tempered
from gen_lab.networks.causal.weight_norm import start
from gen_lab.networks.compiling import as_they_are
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import seeded
from rl_lab.core.settings import Limit, Unit


class Autoregressive(Learner):
    """log p(x) is the sum of log p(pixel | earlier pixels), exact; always computed in float32."""

    saved: tuple[str, ...] = "network", "optimizer", "learns"
    parallel = True
    temperature = 1.0  # of samples: below 1 likelier ones than the model's own
    in_parts = 1  # that a batch is learned in

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: Callable[..., nn.Module],
        head: Callable[..., Head],
        optimizer: OptimizerFn,
        conditional: bool,  # on the labels
        average: Unit,  # decay, an update, of the Polyak average that scores and samples; 0: none
        decay: Unit,  # of the learning rate, an update
        max_grad_norm: Limit,
        bf16: bool,  # in training alone; faster where the processor has it (x86: avx512_bf16, amx_bf16)
    ):
        self.spec = labels.conditioned(spec, conditional)
        self.device, self.seed, self.average, self.decay, self.bf16 = device, seed, average, decay, bf16
        self.max_grad_norm, self.learns = max_grad_norm, 0
        self.head = head(self.spec)
        with seeded(seed, device):
            self.network = network(self.spec, self.head).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.check_size(spec)
        self.optimizer = build_optimizer(optimizer, self.network.parameters())
        self.rates = Decay(self.optimizer)
        self.averaged = averaging.average_of(self.network, average)
        self.saved += ("averaged",) * bool(average)

    def check_size(self, spec: Spec) -> None:
        """Raises UserError if the images are too small for the statistics that the network starts from."""
        least, (_, h, w) = getattr(self.network, "least", 1), spec.shape
        if min(h, w) < least:
            raise UserError(
                f"PixelCNN++ cannot be trained on images of {h} x {w}: its resolutions halve them to a line or a "
                f"point; use sides of {least} pixels or more, fewer resolutions (for sides of 2 or more), or "
                "model=gated_pixelcnn"
            )

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        if not self.learns:
            with seeded(self.seed, self.device), as_they_are():  # by hooks, which a compiled network would keep
                start(self.network.train(), x, **self.condition(label))
            self.averaged.load_state_dict(self.network.state_dict())
        if self.decay != 1:
            self.rates.scale(self.decay**self.learns)
        nlls: list[Tensor] = []
        with seeded(self.seed + self.learns, self.device):  # dropout follows the update's number: nothing to save
            self.network.train()
            norm = descend(self.optimizer, self.losses(x, label, nlls), self.max_grad_norm)
        self.network.eval()
        self.learns += 1
        averaging.follow(self.averaged, self.network, self.average, self.learns)
        nll = torch.cat(nlls).mean()
        return {
            "autoregressive/nll_nats": nll, "autoregressive/bits_per_dim": bits_per_dim(nll, self.spec.shape),
            "autoregressive/grad_norm": norm,
        }  # fmt: skip

    def losses(self, x: Tensor, label: Tensor | None, nlls: list[Tensor]) -> Iterator[Tensor]:
        """Of each part of a batch, whose sum is the mean over the batch; leaves what each image costs in `nlls`."""
        for part, known, share in pieces(x, label, self.in_parts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                params = self.network(part, **self.condition(known))
            nll = self.head.nll(params.float() if self.bf16 else params, part)
            nlls.append(nll.detach())
            yield share * nll.mean()

    def part_ways(self, seed: int) -> None:
        self.seed = seed  # of dropout

    def condition(self, label: Tensor | None) -> dict[str, Tensor]:
        """The network's arguments beside x."""
        known = labels.known(self.spec, label)
        return {} if known is None else {"label": known}

    @torch.no_grad()
    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Exact: neither the generator nor `iwae_samples` is used."""
        nll = self.head.nll(self.averaged(x, **self.condition(label)), x)
        return {"nll_nats": nll, "bits_per_dim": bits_per_dim(nll, self.spec.shape)}

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """One image for each label; a conditional model without labels samples class after class in turn."""
        *_, x = self._drawn(count, generator, label)
        return x.clone()

    def draw(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Iterator[Tensor]:
        """What `sample` returns as it grows, after each pixel."""
        for x in self._drawn(count, generator, label):
            yield x.clone()

    def inpaint(self, x: Tensor, known: Tensor, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """x where `known` [H, W]; elsewhere drawn pixel by pixel, each given all before it but none after it.

        So an upper half is completed as the model would, and a lower half is as good as unknown to what is above.
        """
        *_, x = self._drawn(len(x), generator, label, sampling.Known(x, known))
        return x.clone()

    def _drawn(self, count: int, generator: torch.Generator, label: Tensor | None, known=None) -> Iterator[Tensor]:
        condition = self.condition(labels.sampled(self.spec, label, count, self.device))
        head = Tempered(self.head, self.temperature) if self.temperature != 1 else self.head
        return sampling.draw(self.averaged, head, count, generator, condition=condition, known=known)
