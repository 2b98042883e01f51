"""REINFORCE: the policy gradient from whole episodes (Williams, 1992; https://doi.org/10.1007/BF00992696).

Up E[ sum_t grad log pi(a_t|s_t) (psi_t - b(s_t)) ], where psi_t is what the action is credited with and the baseline b
knows earlier batches alone. See Sutton and Barto (2018), sections 13.3 and 13.4.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.core import distributed
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Limit, NonNegative, Unit
from rl_lab.networks.heads import Outputs, table
from rl_lab.networks.torsos import TorsoFn
from rl_lab.types import Spec, Transition, View

ASK_EVERY = 16  # steps between checks on a GPU whether the batch is complete; on a CPU each step checks


class Chunks:
    """The observations [M, ...] that count, some at a time, so that episodes of frames find room."""

    def __init__(self, obs: tuple[Tensor, ...], counted: Tensor, size: int):
        """obs: T times [N, ...]; counted [T, N] bool; size: samples in a chunk, at least those of one step."""
        length = max(1, size // counted.shape[1])
        parts = [(obs[i * length :][:length], part) for i, part in enumerate(counted.split(length))]
        self._sizes = torch.stack([part.sum() for _, part in parts]).tolist()
        self._parts = [part for part, n in zip(parts, self._sizes, strict=True) if n]

    def __iter__(self) -> Iterator[Tensor]:
        for rows, part in self._parts:
            yield torch.stack(rows)[part]

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """x [M] as it goes with each chunk."""
        return [part for part in x.split(self._sizes) if len(part)]


class Nothing(Learner):
    """No baseline. Each of them says what to expect (`of`) and, the advantages made, learns from the batch (`fit`)."""

    valued = False  # whether it is a state's value, which may stand for a future that was cut off

    def __init__(self, spec: Spec, device: torch.device, seed: int): ...

    def of(self, obs: Tensor) -> Tensor:
        """obs [B, ...] -> [B]."""
        return torch.zeros(len(obs), device=obs.device)

    def fit(self, chunks: Chunks, credit: Tensor) -> None: ...


class RunningMean(Nothing):
    """One number for all states: an exponential mean over the earlier batches."""

    saved = ("mean",)

    def __init__(self, spec: Spec, device: torch.device, seed: int, *, rate: Unit):
        self.rate = rate  # of the newest batch
        self.mean: Tensor | None = None  # None: there was no batch yet

    def of(self, obs: Tensor) -> Tensor:
        mean = torch.zeros((), device=obs.device) if self.mean is None else self.mean.to(obs.device)
        return mean.expand(len(obs))

    def fit(self, chunks: Chunks, credit: Tensor) -> None:
        newest = credit.mean()
        self.mean = newest if self.mean is None else torch.lerp(self.mean.to(newest.device), newest, self.rate)


class Value(Nothing):
    """A network of its own, trained on the credit by least squares."""

    saved, valued = ("network", "optimizer"), True

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        epochs: Count,  # gradient steps on each batch
        max_grad_norm: Limit,
        zero_head: bool,
    ):
        with seeded(seed, device):
            self.network = Outputs(spec, network, 1, table if zero_head else nn.Linear).to(device)
        self.optimizer = build_optimizer(optimizer, self.network.parameters())
        self.epochs, self.max_grad_norm = epochs, max_grad_norm

    def value(self, obs: Tensor) -> Tensor:
        return self.network(obs).squeeze(-1)

    @torch.no_grad()
    def of(self, obs: Tensor) -> Tensor:
        return self.value(obs)

    def fit(self, chunks: Chunks, credit: Tensor) -> None:
        for _ in range(self.epochs):
            errors = (g - self.value(obs) for obs, g in zip(chunks, chunks.split(credit), strict=True))
            parts = (losses.half_square(error).sum() / len(credit) for error in errors)
            descend(self.optimizer, parts, self.max_grad_norm)


class Row(NamedTuple):
    """What is kept of a step of all envs, [N]; of T steps [T, N], the observations as T tensors."""

    obs: Tensor | tuple[Tensor, ...]
    action: Tensor
    reward: Tensor
    discount: Tensor
    last: Tensor
    duration: Tensor
    counted: Tensor  # bool: whether it is learned from
    next_obs: Tensor | tuple[Tensor, ...] | None


class Reinforce(Learner):
    """One gradient step for each batch of whole episodes, equally many from each env.

    No bias to short ones: after a step every env first ends the episode it is in, which began under the old policy
    and does not count; then its next `episodes` count, however long they are, and nothing after them. When all envs
    have theirs, the loss is the sum over the steps of an episode, averaged over episodes; so is the entropy's.

    A truncated episode's return ends there, unless `bootstrap` closes it by the baseline's value. A lost life that
    ends the future (discount 0) ends the return, but not the episode.
    """

    saved = "network", "baseline", "optimizer", "rng", "at_start"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        baseline: Callable[..., Nothing],  # called with spec, device and seed
        credit: Literal["total_return", "reward_to_go"],
        episodes: Count,  # of each env, a gradient step
        gamma: Unit,
        exact_discount: bool,  # gamma^t on rewards to go, as the gradient has it; total returns need none
        bootstrap: bool,
        entropy_coef: NonNegative,
        standardise: bool,  # the advantages of each batch, which biases them
        max_grad_norm: Limit,
        max_abs_reward: Limit,  # rewards are clipped to this
        chunk_size: Count,  # samples that go through the network at once
        zero_head: bool,  # start uniform, without a bias: on one-hot observations, a table
        sampled_eval: bool,  # evaluate the policy itself, not its mode, which may be far worse
    ):
        with seeded(seed, device):
            self.network = Outputs(spec, network, spec.num_actions, table if zero_head else nn.Linear).to(device)
        self.optimizer = build_optimizer(optimizer, self.network.parameters())
        self.rng, self.baseline = generator(seed, device), baseline(spec, device, seed)
        if bootstrap and not (self.baseline.valued and credit == "reward_to_go"):
            raise UserError(
                "agent.bootstrap needs a value of states: take agent/baseline=value and "
                "agent.credit=reward_to_go, or set it to false"
            )
        self.episodes, self.chunk_size, self.sampled_eval = episodes, chunk_size, sampled_eval
        self.credit, self.gamma, self.exact_discount = credit, gamma, exact_discount
        self.bootstrap, self.entropy_coef, self.standardise = bootstrap, entropy_coef, standardise
        self.max_grad_norm, self.max_abs_reward = max_grad_norm, max_abs_reward
        self.at_start: Tensor | None = None  # [N] bool, whose next step is the first of an episode; None: everyone's
        self._rows: list[Row] = []
        self._episode: Tensor | None = None  # [N] int64 of this batch, from 0; -1: an old one

    @property
    def settled(self) -> bool:
        return not self._rows

    def log_probs(self, obs: Tensor) -> Tensor:
        """[B, A]."""
        return self.network(obs).log_softmax(-1)

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        log_probs = self.log_probs(obs)
        return log_probs.argmax(-1) if greedy and not self.sampled_eval else exploration.sample(log_probs, self.rng)

    @torch.no_grad()
    def probabilities(self, obs: Tensor) -> Tensor:
        log_probs = double(self.log_probs(obs))
        return log_probs.exp() if self.sampled_eval else exploration.certain(log_probs.argmax(-1), log_probs.shape[-1])

    def update(self, transition: Transition) -> Metrics:
        obs, action, reward, discount, last, next_obs, duration = transition
        if self._episode is None:
            begins = torch.ones_like(last) if self.at_start is None else self.at_start.to(last.device)
            self._episode = begins.long() - 1
        counted = (self._episode >= 0) & (self._episode < self.episodes)
        kept = next_obs if self.bootstrap else None
        self._rows.append(Row(obs, action, reward, discount, last, duration, counted, kept))
        self._episode, self.at_start = self._episode + last, last
        asked = last.is_cpu or len(self._rows) % ASK_EVERY == 0
        if not (asked and (self._episode >= self.episodes).all()):
            return {}
        rows, self._rows, self._episode = self._rows, [], None
        return self.learn(rows)

    def learn(self, rows: Sequence[Row]) -> Metrics:
        """One gradient step on the policy from T steps of N envs, then the baseline's."""
        obs, *numbers, next_obs = zip(*rows, strict=True)
        action, reward, discount, last, duration, counted = map(torch.stack, numbers)
        batch = Row(obs, action, reward, discount, last, duration, counted, next_obs)
        chunks, episodes = Chunks(obs, batch.counted, self.chunk_size), self.episodes * batch.counted.shape[1]
        credit, weight = (x[batch.counted] for x in self.credits(batch))
        advantage = credit - torch.cat([self.baseline.of(x) for x in chunks])
        spread = advantage.square().mean()
        if self.standardise:
            advantage = distributed.standardised(advantage)
        action, samples = action[counted], len(credit)
        sums: list[Tensor] = []

        def parts() -> Iterator[Tensor]:
            for x, a, psi in zip(chunks, chunks.split(action), chunks.split(weight * advantage), strict=True):
                log_probs = self.log_probs(x)
                policy = losses.policy_gradient(losses.pick(log_probs, a), psi).sum() / episodes
                entropy = losses.entropy(log_probs).sum() / episodes
                sums.append(torch.stack([policy, entropy]).detach())
                yield policy - self.entropy_coef * entropy

        norm = descend(self.optimizer, parts(), self.max_grad_norm)
        self.baseline.fit(chunks, credit)
        policy_loss, entropy = torch.stack(sums).sum(0)
        found = {
            "policy_loss": policy_loss,
            "entropy": entropy * episodes / samples,
            "advantage": spread.sqrt(),
            "grad_norm": norm,
            "length": samples / episodes,
            "counted": batch.counted.float().mean(),
        }
        return {f"reinforce/{name}": x for name, x in found.items()}

    def credits(self, batch: Row) -> tuple[Tensor, Tensor]:
        """What each action is credited with, and the weight of its term; both [T, N]."""
        reward = batch.reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        discount = returns.discounts(self.gamma, batch.discount, batch.duration)
        ends = batch.last | (batch.discount == 0)
        to_go = returns.discounted_returns(reward, discount, batch.last, self.next_values(batch))
        if self.credit == "reward_to_go" and not self.exact_discount:
            return to_go, torch.ones_like(to_go)
        total, product = since_start(to_go, discount, ends)
        return (to_go, product) if self.credit == "reward_to_go" else (total, torch.ones_like(total))

    def next_values(self, batch: Row) -> Tensor:
        """[T, N]: what follows the steps that a time limit cut off; elsewhere it is not asked for."""
        value = torch.zeros_like(batch.reward)
        cut = batch.counted & batch.last & (batch.discount > 0)
        if batch.next_obs is not None and self.bootstrap and cut.any():
            seen = torch.stack([batch.next_obs[t][i] for t, i in cut.nonzero().tolist()])
            value[cut] = self.baseline.of(seen).to(value.dtype)
        return value

    def view(self, obs: Tensor) -> View:
        return View(self.log_probs(obs).exp(), self.baseline.of(obs), "probabilities")


def since_start(x: Tensor, discount: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """For each step x at the first step of its life, and the product of the discounts since; all [T, N].

    `ends` marks the last step of a life: of an episode, or of what the learner takes for one.
    """
    first, product = torch.empty_like(x), torch.empty_like(x)
    begins = torch.ones_like(ends[0])
    for t in range(len(x)):
        first[t] = torch.where(begins, x[t], first[t - 1])
        product[t] = torch.where(begins, 1.0, product[t - 1] * discount[t - 1])
        begins = ends[t]
    return first, product
