"""The heads that end a torso: a policy and a value, or numbers for each action."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from rl_lab.networks.torsos import TorsoFn, features_of, prepared
from rl_lab.types import Spec

HeadFn = Callable[[int, int], nn.Module]  # features, outputs -> the layers between


class PolicyValue(nn.Module):
    """A policy and the value of states: obs [B, ...] -> log-probabilities [B, A], values [B].

    separate:   the value has a torso of its own, built like the policy's;
    orthogonal: heads start orthogonal, with gains .01 and 1 and without an offset, else as torch starts them.
    """

    __call__: Callable[..., tuple[Tensor, Tensor]]

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

    def prepared(self, obs: Tensor) -> Tensor:
        """See `torsos.prepared`."""
        return prepared(self.torso, obs)

    def values(self, obs: Tensor) -> Tensor:
        """[B]."""
        return self.value((self.value_torso or self.torso)(obs)).squeeze(-1)


class Outputs(nn.Module):
    """A torso and a head of K numbers: logits or values of actions, or a state's value: obs [B, ...] -> [B, K].

    head: called with the torso's features and K, as are `table`, `layers` and torch's Linear.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, spec: Spec, torso: TorsoFn, size: int, head: HeadFn = nn.Linear):
        super().__init__()
        self.torso = torso(spec)
        self.head = head(features_of(self.torso, spec), size)
        self.register_load_state_dict_pre_hook(_renamed)

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.torso(obs))


class QNetwork(Outputs):
    """`outputs` numbers for each action: obs [B, ...] -> [B, A, Z]."""

    def __init__(self, spec: Spec, torso: TorsoFn, outputs: int = 1, head: HeadFn = nn.Linear):
        super().__init__(spec, torso, spec.num_actions * outputs, head)
        self.outputs = outputs

    def forward(self, obs: Tensor) -> Tensor:
        x = super().forward(obs)
        return x.unsqueeze(-1) if self.outputs == 1 else x.unflatten(-1, (-1, self.outputs))


class Dueling(nn.Module):
    """Two heads, V [1, Z] + A [A, Z] - the mean of A over actions (Wang et al., 2016, eq. 9): [B, ...] -> [B, A, Z]."""

    def __init__(self, spec: Spec, torso: TorsoFn, outputs: int = 1, head: HeadFn = nn.Linear):
        super().__init__()
        self.torso, self.outputs = torso(spec), outputs
        features = features_of(self.torso, spec)
        self.advantage, self.value = head(features, spec.num_actions * outputs), head(features, outputs)

    def forward(self, obs: Tensor) -> Tensor:
        features = self.torso(obs)
        advantage = self.advantage(features).unflatten(-1, (-1, self.outputs))
        return self.value(features).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)


def _renamed(network: Outputs, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """In older checkpoints every head is called `advantage`."""
    for name in [name for name in state if name.startswith(f"{prefix}advantage.")]:
        state[f"{prefix}head." + name.removeprefix(f"{prefix}advantage.")] = state.pop(name)


def table(features: int, size: int) -> nn.Linear:
    """All outputs start at 0, without a bias: on one-hot observations, a table."""
    return _head(features, size, 0.0)


def layers(features: int, size: int, hidden: int = 0, noisy: float = 0.0) -> nn.Module:
    """hidden: units of one more layer, 0 for none; noisy: sigma_0 of NoisyLinear layers, 0 for plain ones."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return NoisyLinear(inputs, outputs, noisy) if noisy else nn.Linear(inputs, outputs)

    if not hidden:
        return linear(features, size)
    return nn.Sequential(linear(features, hidden), nn.ReLU(), linear(hidden, size))


class NoisyLinear(nn.Linear):
    """y = (w + sigma_w * noise) x + b + sigma_b * noise, factorised (Fortunato et al., 2018, eq. 9 to 11).

    The noise stays as `draw_noise` left it; in `eval` mode there is none.
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(self, inputs: int, outputs: int, sigma: float = 0.5):
        super().__init__(inputs, outputs)
        bound = inputs**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.sigma_weight = nn.Parameter(torch.full_like(self.weight, sigma * bound))
        self.sigma_bias = nn.Parameter(torch.full_like(self.bias, sigma * bound))
        self.register_buffer("noise_in", torch.zeros(inputs))
        self.register_buffer("noise_out", torch.zeros(outputs))

    def draw_noise(self, rng: Generator) -> None:
        for noise in (self.noise_in, self.noise_out):
            x = torch.randn(noise.shape, generator=rng, device=noise.device)
            noise.copy_(x.sign() * x.abs().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        return y + nn.functional.linear(x * self.noise_in, self.sigma_weight, self.sigma_bias) * self.noise_out


def draw_noise(network: nn.Module, rng: Generator) -> None:
    """Anew in every noisy layer of the network."""
    for layer in network.modules():
        if isinstance(layer, NoisyLinear):
            layer.draw_noise(rng)


def _head(features: int, size: int, gain: float | None) -> nn.Linear:
    head = nn.Linear(features, size, bias=gain != 0)
    if gain == 0:
        nn.init.zeros_(head.weight)
    elif gain is not None:
        nn.init.orthogonal_(head.weight, gain)
        nn.init.zeros_(head.bias)
    return head
