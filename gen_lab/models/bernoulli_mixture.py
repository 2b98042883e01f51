"""A mixture of products of Bernoullis, trained by expectation-maximisation (Bishop, 2006, sections 9.3.3 and 9.4)."""

import torch
from torch import Tensor

from gen_lab.losses import bits_per_dim
from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.randomness import generator
from rl_lab.core.settings import Count, Positive


class BernoulliMixture(Learner):
    """p(x) = sum over k of weights[k] * prod over pixels of Bernoulli(means[k]).

    An update is the E step on its batch, and every `updates_an_m_step` updates there is an M step on what they saw.
    Where those are the whole training set (a batch as large as that, as in bernoulli_mixture_digits) this is EM for the
    maximum a posteriori: what never falls is the penalised likelihood, log p(data) + `log_prior`. The likelihood itself
    may fall, and the more so the larger `pseudo_count` is. It reads no labels.
    """

    saved = "weights", "means", "shares", "sums", "updates"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        components: Count,  # K
        pseudo_count: Positive,  # black images, and as many white ones, that each component remembers
        updates_an_m_step: Count,
    ):
        if spec.levels != 2:
            raise UserError(
                f"model=bernoulli_mixture is for binary pixels, and these have {spec.levels} levels; use "
                "data.protocol=binarised of digits, threshold or dynamic of other data"
            )
        self.spec, self.device, self.pseudo_count = spec._replace(classes=0), device, pseudo_count
        self.updates_an_m_step, self.updates = updates_an_m_step, 0
        start = torch.rand(components, *spec.shape, generator=generator(seed, torch.device("cpu")), dtype=torch.double)
        self.means = (0.25 + 0.5 * start.flatten(1)).to(device)  # [K, D]
        self.weights = torch.full((components,), 1 / components, dtype=torch.double, device=device)  # [K]
        self.shares, self.sums = torch.zeros_like(self.weights), torch.zeros_like(self.means)

    def update(self, x: Tensor, label: Tensor | None = None) -> Metrics:
        joint = self.log_joint(x)
        responsibilities = joint.softmax(1)  # [B, K]
        self.shares += responsibilities.sum(0)
        self.sums += responsibilities.T @ x.flatten(1).double()
        self.updates += 1
        if self.updates % self.updates_an_m_step == 0:
            self.maximise()
        return {"bernoulli_mixture/nll_nats": -joint.logsumexp(1).mean()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name in "weights", "means", "shares", "sums":
            setattr(self, name, getattr(self, name).to(self.device))

    def maximise(self) -> None:
        """The M step, and a fresh start for the sums."""
        self.means = (self.sums + self.pseudo_count) / (self.shares[:, None] + 2 * self.pseudo_count)
        self.weights = (self.shares + self.pseudo_count) / (self.shares + self.pseudo_count).sum()
        self.shares, self.sums = torch.zeros_like(self.shares), torch.zeros_like(self.sums)

    def log_prior(self) -> Tensor:
        """[], up to a constant: pseudo_count times sum_k (log weights[k] + sum_d log means[k, d] (1 - means[k, d]))."""
        pixels = self.means.log() + (-self.means).log1p()
        return self.pseudo_count * (self.weights.log().sum() + pixels.sum())

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, k) [B, K] of levels x [B, C, H, W]."""
        x = x.flatten(1).double()
        return x @ self.means.log().T + (1 - x) @ (-self.means).log1p().T + self.weights.log()

    def score(
        self, x: Tensor, generator: torch.Generator, iwae_samples: int = 0, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        nll = -self.log_joint(x).logsumexp(1).float()
        return {"nll_nats": nll, "bits_per_dim": bits_per_dim(nll, self.spec.shape)}

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return (
            torch.bernoulli(self.means[component], generator=generator)
            .to(self.spec.dtype)
            .unflatten(1, self.spec.shape)
        )
