"""The heads that end a torso: a policy and a value, or numbers for each action."""

import torch
from torch import Tensor, nn

from rl_lab.networks.torsos import TorsoFn, features_of
from rl_lab.types import Spec


class PolicyValue(nn.Module):
    """A policy and the value of states: obs [B, ...] -> log-probabilities [B, A], values [B].

    separate:   the value has a torso of its own, built like the policy's;
    orthogonal: heads start orthogonal, with gains .01 and 1 and without an offset, else as torch starts them.
    """

    def __init__(self, spec: Spec, torso: TorsoFn, *, separate: bool = False, orthogonal: bool = True):
        super().__init__()
        self.torso, self.value_torso = torso(spec), torso(spec) if separate else None
        features = features_of(self.torso, spec)
        self.policy = _head(features, spec.num_actions, 0.01 if orthogonal else None)
        self.value = _head(features, 1, 1.0 if orthogonal else None)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.torso(obs)
        log_probs = self.policy(features).log_softmax(-1)
        return log_probs, self.value(self.value_torso(obs) if self.value_torso else features).squeeze(-1)

    def values(self, obs: Tensor) -> Tensor:
        """[B]."""
        return self.value((self.value_torso or self.torso)(obs)).squeeze(-1)


class QNetwork(nn.Module):
    """A torso, and `outputs` numbers for each action: obs [B, ...] -> [B, A, Z].

    dueling: two streams, V [1, Z] + A [A, Z] - the mean of A over actions (Wang et al., 2016, eq. 9);
    hidden:  units of one more layer in each stream, 0 for none;
    noisy:   sigma_0 of NoisyLinear layers above the torso, 0 for plain ones;
    zero:    all values start at 0, without a bias: on one-hot observations, a table.
    """

    def __init__(self, spec: Spec, torso: TorsoFn, outputs: int = 1, *, dueling: bool = False, hidden: int = 0,
                 noisy: float = 0.0, zero: bool = False):  # fmt: skip
        super().__init__()
        self.torso, self.outputs = torso(spec), outputs
        features = features_of(self.torso, spec)

        def linear(inputs: int, size: int) -> nn.Module:
            return NoisyLinear(inputs, size, noisy) if noisy else nn.Linear(inputs, size)

        def stream(actions: int) -> nn.Module:
            if zero:
                return _head(features, actions * outputs, 0.0)
            if not hidden:
                return linear(features, actions * outputs)
            return nn.Sequential(linear(features, hidden), nn.ReLU(), linear(hidden, actions * outputs))

        self.advantage, self.value = stream(spec.num_actions), stream(1) if dueling else None

    def forward(self, obs: Tensor) -> Tensor:
        features = self.torso(obs)
        advantage = self.advantage(features).unflatten(-1, (-1, self.outputs))
        if self.value is None:
            return advantage
        return self.value(features).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)

    def draw_noise(self, rng: torch.Generator) -> None:
        for layer in self.modules():
            if isinstance(layer, NoisyLinear):
                layer.draw_noise(rng)


class NoisyLinear(nn.Linear):
    """y = (w + sigma_w * noise) x + b + sigma_b * noise, factorised (Fortunato et al., 2018, eq. 9 to 11).

    The noise stays as `draw_noise` left it; in `eval` mode there is none.
    """

    def __init__(self, inputs: int, outputs: int, sigma: float = 0.5):
        super().__init__(inputs, outputs)
        bound = inputs**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.sigma_weight = nn.Parameter(torch.full_like(self.weight, sigma * bound))
        self.sigma_bias = nn.Parameter(torch.full_like(self.bias, sigma * bound))
        self.register_buffer("noise_in", torch.zeros(inputs))
        self.register_buffer("noise_out", torch.zeros(outputs))

    def draw_noise(self, rng: torch.Generator) -> None:
        for noise in (self.noise_in, self.noise_out):
            x = torch.randn(noise.shape, generator=rng, device=noise.device)
            noise.copy_(x.sign() * x.abs().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        return y + nn.functional.linear(x * self.noise_in, self.sigma_weight, self.sigma_bias) * self.noise_out


def _head(features: int, size: int, gain: float | None) -> nn.Linear:
    head = nn.Linear(features, size, bias=gain != 0)
    if gain == 0:
        nn.init.zeros_(head.weight)
    elif gain is not None:
        nn.init.orthogonal_(head.weight, gain)
        nn.init.zeros_(head.bias)
    return head
