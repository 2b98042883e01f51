"""Independent pixels: the frequency of each level at each place, the floor that every deep model must beat."""

import torch
from torch import Tensor

from gen_lab.losses import bits_per_dim
from gen_lab.types import Spec
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.settings import Unit


class Independent(Learner):
    """Counts whatever it is shown: after whole epochs its frequencies are the training set's. It reads no labels."""

    saved = ("counts",)

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        smoothing: Unit,  # share of uniform noise mixed in, so that an unseen level has a probability above 0
    ):
        self.spec, self.device, self.smoothing = spec._replace(classes=0), device, smoothing
        self.counts = torch.full((*spec.shape, spec.levels), 1e-9, dtype=torch.double, device=device)  # [C, H, W, L]

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        nll = self.nll(x).mean()  # before these are counted
        places = torch.arange(0, self.counts.numel(), self.spec.levels, device=x.device)
        seen = (x.flatten(1) + places).flatten()
        self.counts.view(-1).scatter_add_(0, seen, torch.ones_like(seen, dtype=self.counts.dtype))
        return {"independent/nll_nats": nll}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.counts = self.counts.to(self.device)

    def probabilities(self) -> Tensor:
        """[C, H, W, L]."""
        frequencies = self.counts / self.counts.sum(-1, keepdim=True)
        return (1 - self.smoothing) * frequencies + self.smoothing / self.spec.levels

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) [B] of levels x [B, C, H, W]."""
        log_prob = self.probabilities().log().float()
        found = log_prob.expand(len(x), *log_prob.shape).gather(-1, x.long().unsqueeze(-1))
        return -found.flatten(1).sum(-1)

    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        nll = self.nll(x)
        return {"nll_nats": nll, "bits_per_dim": bits_per_dim(nll, self.spec.shape)}

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        u = torch.rand(count, *self.spec.shape, 1, generator=generator, device=self.device)
        below = self.probabilities().cumsum(-1)[..., :-1] <= u
        return below.sum(-1).to(self.spec.dtype)
