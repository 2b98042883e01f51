"""A2C with its environments in groups, each in its own thread: one group steps while another learns.

Every group acts with the parameters of the same step and computes the gradient of its own rollout; their mean is the
gradient of all, so this is exactly synchronous A2C, whichever thread comes first.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from rl_lab.agents.a2c import A2C
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, step
from rl_lab.core.randomness import generator
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Natural
from rl_lab.envs.abilities import alike, refuse_statistics
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.loops.training import check_alone, taken_up
from rl_lab.types import Transition, VectorEnv


class Member(Learner):
    """A group of envs, and the stream of random numbers by which the agent acts in it."""

    saved = "env", "rng"

    def __init__(self, agent: A2C, env: VectorEnv, seed: int):
        self.agent, self.env, self.rng = agent, env, generator(seed, env.device)

    def reset(self, seed: int) -> None:
        self.obs = self.env.reset(seed)

    def rollout(self) -> tuple[Sequence[Tensor], Metrics, Tensor, Tensor]:
        """The gradient of a rollout for each parameter, its metrics, and its rewards and ends [T, N]."""
        rollout = []
        for _ in range(self.agent.rollout_length):
            action, acted = self.agent.choose(self.obs, self.rng)
            answer = self.env.step(action)
            rollout.append((acted, Transition.of(self.obs, action, answer)))
            self.obs = answer.obs
        loss, metrics = self.agent.loss(rollout)
        gradients = torch.autograd.grad(loss, learned(self.agent.network))
        reward, last = (torch.stack([getattr(t, name) for _, t in rollout]) for name in ("reward", "last"))
        return gradients, metrics, reward, last

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.env.state_dict():
            self.obs = self.env.observe()


def learned(network: nn.Module) -> list[nn.Parameter]:
    """All but those that a pretrained encoder keeps as they are."""
    return [p for p in network.parameters() if p.requires_grad]


class Crew:
    """Learns from one rollout of every member at once."""

    def __init__(self, agent: A2C, members: Sequence[Member]):
        self.agent, self.members, self._pool = agent, members, ThreadPoolExecutor(len(members))

    def learn(self) -> tuple[Metrics, Tensor, Tensor]:
        """One gradient step; metrics, and the rewards and ends [T, N] of all envs."""
        agent, done = self.agent, list(self._pool.map(Member.rollout, self.members))
        gradients, found, rewards, lasts = zip(*done, strict=True)
        for p, parts in zip(learned(agent.network), zip(*gradients, strict=True), strict=True):
            p.grad = sum(parts) / len(parts)
        reward, last = torch.cat(rewards, 1), torch.cat(lasts, 1)
        agent.decay.to(agent.steps)
        agent.count_steps(reward.numel())
        metrics = {name: sum(m[name] for m in found) / len(found) for name in found[0]}
        return metrics | {"a2c/grad_norm": step(agent.optimizer, agent.max_grad_norm)}, reward, last


def train(
    envs: Sequence[VectorEnv],
    agent: Callable[..., A2C],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,  # one step is one action in one env
    eval_every: Count | None,  # steps; None: only after the last one
    eval_episodes: Judged,
    eval_drawn: Natural,  # episodes more, of actions drawn from the policy
    log_every: Count | None,  # steps; None: 200 rows a run
    stop_at: float | None,  # the mean return of the last 20 episodes at which training ends
) -> A2C:
    """As `training.train`, a rollout at a time. Raises UserError where the agent is not A2C or the groups differ."""
    if len({env.num_envs for env in envs}) > 1:
        raise UserError("loop.envs: groups of different sizes would count differently; give each the same num_envs")
    check_alone(agent, A2C, "crew", "agent=a2c")
    refuse_statistics(envs[0], "crew")
    learner = agent(envs[0].spec, device=run.device, seed=run.stream("agent"))
    for setting, chosen in (("standardise", learner.standardise), ("network.standardise", learner.gather_steps)):
        if chosen:
            raise UserError(f"agent.{setting}=true is not for loop=crew, whose groups learn apart; set it to false, "
                            "or choose loop=train")  # fmt: skip
    members = [Member(learner, env, run.stream(f"agent/{i}")) for i, env in enumerate(envs)]
    for i, member in enumerate(members):
        member.reset(run.stream(f"env/{i}"))
    crew, num_envs = Crew(learner, members), sum(env.num_envs for env in envs)
    alike(envs[0], eval_env)
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say, eval_drawn)
    parts = {"agent": learner} | {f"member/{i}": member for i, member in enumerate(members)}
    episodes = Episodes(num_envs, envs[0].device)
    book = Book(
        run,
        parts,
        partial(judge, learner),
        total=total_steps,
        eval_every=eval_every,
        log_every=log_every,
        episodes=episodes,
        stop_at=stop_at,
        lanes=len(members),
    )
    if book.step and not taken_up(envs, run):
        episodes.reset()
        for i, member in enumerate(members):
            member.reset(run.stream(f"env/{i}/{book.step}"))
    for _ in book.steps(num_envs * learner.rollout_length):
        metrics, reward, last = crew.learn()
        for r, ends in zip(reward, last, strict=True):
            episodes.add(r, ends)
        book.add(metrics)
    return learner
