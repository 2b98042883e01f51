"""What the tests of VPN share: small networks, observations, an agent, and a world of dice."""

from functools import partial

import torch
from stated import stated

from rl_lab.agents.vpn.learner import VPN
from rl_lab.agents.vpn.model import GridEncoder, ValuePrediction
from rl_lab.types import Spec, Transition

Linear = stated("agent/dqn", "epsilon")

CPU, FOUR = torch.device("cpu"), ("up", "right", "down", "left")
COLLECT = Spec((4, 10, 10), torch.float32, FOUR)
SMALL = Spec((4, 5, 6), torch.float32, FOUR)
GAMMA = 0.98


def grid(channels=(3, 4, 5), time_plane: bool = True) -> partial:
    return partial(GridEncoder, channels=channels, time_plane=time_plane)


def network(spec: Spec = SMALL, encoder=None, seed: int = 0, **changes) -> ValuePrediction:
    """With larger last layers than it starts from, so that options differ."""
    torch.manual_seed(seed)
    knobs = dict(units=8, gate=True, joint_head=False, duration="softplus")
    net = ValuePrediction(spec, encoder or grid(), **(knobs | changes)).double()
    for head in (net.value, net.outcome.reward, net.outcome.duration):
        if head is not None:
            torch.nn.init.normal_(head[-1].weight)
    return net


def planes(count: int, spec: Spec = SMALL, seed: int = 0) -> torch.Tensor:
    """Float64 [count, *obs_shape], each plane of one number."""
    rng = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, *spec.obs_shape, generator=rng) < 0.4).double()
    x[:, -1] = torch.randint(21, (count, 1, 1), generator=rng) / 20
    return x


def agent(spec: Spec = SMALL, seed: int = 0, **changes) -> VPN:
    net = partial(ValuePrediction, encoder=grid(), units=8, gate=True, joint_head=False, duration="relu")
    knobs = dict(
        network=net, optimizer=partial(torch.optim.Adam, lr=1e-3), depth=2, branch=4, branch_depth=3, rollout_length=3,
        sequences_per_update=2, random_steps=0, gamma=0.9, epsilon=Linear(0.5, 0.5), target_update_period=1_000,
        max_grad_norm=40.0,
    )  # fmt: skip
    return stated("agent/vpn", decay=1.0)(spec, CPU, seed, **(knobs | changes))


class Dice:
    """N walkers whose every observation, reward, duration and end is a throw of dice."""

    def __init__(self, walkers: int = 4, seed: int = 0):
        self.walkers, self.rng, self.steps = walkers, torch.Generator().manual_seed(seed), 0
        self.obs = planes(walkers).float()

    def transition(self, action: torch.Tensor) -> Transition:
        self.steps += 1
        last = torch.rand(self.walkers, generator=self.rng) < 0.3
        took = torch.randint(1, 8, (self.walkers,), generator=self.rng).float()
        reward = torch.randint(-9, 9, (self.walkers,), generator=self.rng) / 4
        before, self.obs = self.obs, planes(self.walkers, seed=self.steps).float()
        return Transition(before, action, reward, (~last).float(), last, self.obs, took)

    def teach(self, learner: VPN, steps: int) -> list[dict]:
        return [learner.update(self.transition(learner.act(self.obs))) for _ in range(steps)]


def rollout(*ends: tuple) -> list[Transition]:
    """One env; rewards 1, 2, 4, ...; of each step the discount, whether the episode ended there, and a duration."""
    obs, one = planes(len(ends) + 1).float(), torch.ones(1)
    return [
        Transition(
            obs[t : t + 1], one.long(), 2.0**t * one, discount * one, last * one > 0, obs[t + 1 : t + 2], took * one
        )
        for t, (discount, last, took) in enumerate((*end, 1.0)[:3] for end in ends)
    ]
