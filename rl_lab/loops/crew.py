"""A2C with its environments in groups, each in a thread of its own: one group steps while another learns.

Every group acts with the parameters of the same step and finds the gradient of its own rollout; their mean is the
gradient of all, so this is synchronous A2C exactly, whichever thread comes first.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from rl_lab.agents.a2c import A2C
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Learner, Metrics, step
from rl_lab.core.meters import Every, Means
from rl_lab.core.randomness import generator
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged
from rl_lab.loops.bookkeeping import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.types import Transition, VectorEnv


class Member(Learner):
    """A group of envs, and the stream of random numbers by which the agent acts in it."""

    saved = "env", "rng"

    def __init__(self, agent: A2C, env: VectorEnv, seed: int):
        self.agent, self.env, self.rng = agent, env, generator(seed, env.device)

    def reset(self, seed: int) -> None:
        self.obs = self.env.reset(seed)

    def rollout(self) -> tuple[list[Tensor], Metrics, Tensor, Tensor]:
        """The gradient of a rollout for each parameter, its metrics, and its rewards and ends [T, N]."""
        rollout = []
        for _ in range(self.agent.rollout_length):
            action, acted = self.agent.choose(self.obs, self.rng)
            answer = self.env.step(action)
            rollout.append((acted, Transition.of(self.obs, action, answer)))
            self.obs = answer.obs
        loss, metrics = self.agent.loss(rollout)
        gradients = torch.autograd.grad(loss, list(self.agent.network.parameters()))
        reward, last = (torch.stack([getattr(t, name) for _, t in rollout]) for name in ("reward", "last"))
        return gradients, metrics, reward, last

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.env.state_dict():
            self.obs = self.env.observe()


class Crew:
    """`learn` from one rollout of every member at once."""

    def __init__(self, agent: A2C, members: Sequence[Member]):
        self.agent, self.members, self._pool = agent, members, ThreadPoolExecutor(len(members))

    def learn(self) -> tuple[Metrics, Tensor, Tensor]:
        """One gradient step; metrics, and the rewards and ends [T, N] of all envs."""
        agent, done = self.agent, list(self._pool.map(Member.rollout, self.members))
        gradients, metrics, rewards, lasts = zip(*done, strict=True)
        for p, parts in zip(agent.network.parameters(), zip(*gradients, strict=True), strict=True):
            p.grad = sum(parts) / len(parts)
        reward, last = torch.cat(rewards, 1), torch.cat(lasts, 1)
        agent.advance(reward.numel())
        metrics = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
        return {**metrics, "a2c/grad_norm": step(agent.optimizer, agent.max_grad_norm)}, reward, last


def train(
    envs: Sequence[VectorEnv],
    agent: Callable[..., A2C],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,  # one step is one action in one env
    eval_every: Count,  # steps
    eval_episodes: Judged,
    log_every: Count | None = None,  # steps; None: 200 rows a run
) -> A2C:
    """As `loops.train`, a rollout at a time. Raises UserError where the agent is not A2C or the groups differ."""
    if len({env.num_envs for env in envs}) > 1:
        raise UserError("loop.envs: groups of different size would not weigh the same; give each as many environments")
    if getattr(agent, "func", A2C) is not A2C:
        home, name = agent.func.__module__.partition(".")[0], agent.func.__name__
        if home != "rl_lab":
            raise UserError(f"loop=crew is for rl_lab's A2C, and this agent is {home}'s {name}; choose agent=a2c")
        raise UserError(f"loop=crew is for A2C, and this agent is {name}; choose loop=train")
    agent = agent(envs[0].spec, device=run.device, seed=run.stream("agent"))
    if not isinstance(agent, A2C):
        raise UserError(f"loop=crew is for A2C, and this agent is {type(agent).__name__}; choose loop=train")
    if agent.standardise:
        raise UserError("agent.standardise=true is beyond loop=crew, whose groups learn apart; set it to false, "
                        "or choose loop=train")  # fmt: skip
    members = [Member(agent, env, run.stream(f"agent/{i}")) for i, env in enumerate(envs)]
    crew, num_envs = Crew(agent, members), sum(env.num_envs for env in envs)
    episodes, means = Episodes(num_envs, envs[0].device), Means()
    rows, evaluations = Every(log_every or max(1, total_steps // 200)), Every(eval_every)
    rows.due(0)
    parts = {"agent": agent, "episodes": episodes, "means": means, "rows": rows, "evaluations": evaluations}
    parts |= {f"member/{i}": member for i, member in enumerate(members)}
    done = start(members, run, parts)
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say)
    run.begin(total_steps)
    while done < total_steps:
        run.pause(done, parts)
        if evaluations.due(done):
            run.log(judge(agent), done, keep=True)
        metrics, reward, last = crew.learn()
        done += reward.numel()
        try:
            means.add(metrics, done)
            for r, ends in zip(reward, last, strict=True):
                episodes.add(r, ends)
            if rows.due(done):
                run.log(means.pop() | episodes.pop(), done)
        except NotFinite as error:
            raise run.rescued(error, done, parts) from None
    run.save(done, parts)
    run.log(judge(agent), done, keep=True)
    return agent


def start(members: Sequence[Member], run: Run, parts: dict) -> int:
    """The step to go on from: of a fresh run, or of one that was stopped."""
    for i, member in enumerate(members):
        member.reset(run.stream(f"env/{i}"))
    done = run.restore(parts)
    if done and not members[0].env.state_dict():
        for i, member in enumerate(members):
            member.reset(run.stream(f"env/{i}/{done}"))
        parts["episodes"].reset()
        run.say("this environment's state cannot be saved: its episodes start anew")
    return done
