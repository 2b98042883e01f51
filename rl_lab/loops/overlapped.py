"""PPO in two threads: one collects the next rollout while the other learns from the last.

The next rollout is thus of age one: acted by the parameters from before that learning. PPO's ratio is taken to the
policy that acted, so the objective holds, but its clipping would let the policy move half as far: two updates share
what one had. `agent.decoupled=true` clips around the policy of now (Hilton et al., 2022). Which thread is first never
matters: the same seed gives the same curve.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from rl_lab.agents.ppo import PPO, Acted, choose
from rl_lab.core import precision
from rl_lab.core.bookkeeping import Book
from rl_lab.core.learner import Learner
from rl_lab.core.randomness import generator
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Natural
from rl_lab.envs.abilities import alike, refuse_statistics
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.loops.training import check_alone, taken_up
from rl_lab.networks.torsos import lower
from rl_lab.types import Transition, VectorEnv


class Collector(Learner):
    """Acts in the envs by a copy of the learner's network, with a stream of its own, and holds what it collected."""

    saved = "rng", "env", "rollout"  # the network follows the learner's before it acts

    def __init__(self, learner: PPO, env: VectorEnv, seed: int):
        self.learner, self.env, self.rng = learner, env, generator(seed, env.device)
        self.network = copy.deepcopy(learner.network).requires_grad_(False)
        if precision.chosen():
            lower(self.network)
        self.rollout: list[tuple[Acted, Transition]] = []

    def reset(self, seed: int) -> None:
        self.obs, self.rollout = self.env.reset(seed), []

    def follow(self) -> None:
        """From here on it acts with the learner's present parameters."""
        self.network.load_state_dict(self.learner.network.state_dict())

    def collect(self) -> None:
        self.rollout = []
        for _ in range(self.learner.rollout_length):
            action, acted = choose(self.obs, self.network, self.rng)
            step = self.env.step(action)
            self.rollout.append((acted, Transition.of(self.obs, action, step)))
            self.obs = step.obs

    def state_dict(self, without: str | None = None) -> dict[str, Any]:
        """The rollout as a few long tensors [T * N, ...], not T times as many: a checkpoint's index stays short."""
        steps = ([*acted, *transition] for acted, transition in self.rollout)
        return super().state_dict(without) | {"rollout": [torch.cat(field) for field in zip(*steps, strict=True)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        fields = (field.to(self.env.device).split(self.env.num_envs) for field in state["rollout"])
        rollout = [(Acted(*step[:3]), Transition(*step[3:])) for step in zip(*fields, strict=True)]
        self.rollout = rollout if len(rollout) == self.learner.rollout_length else []  # it was of other settings
        if self.env.state_dict():
            self.obs = self.env.observe()


def train(
    env: VectorEnv,
    agent: Callable[..., PPO],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,  # one step is one action in one env; a rollout counts when it is learned from
    eval_every: Count | None,  # steps; None: only after the last one
    eval_episodes: Judged,
    eval_drawn: Natural,  # episodes more, of actions drawn from the policy
    log_every: Count | None,  # steps; None: 200 rows a run
    stop_at: float | None,  # the mean return of the last 20 episodes at which training ends
) -> PPO:
    """As `training.train`, a rollout at a time. Raises UserError where the agent is not PPO."""
    check_alone(agent, PPO, "overlapped", "loop=sb3")
    refuse_statistics(env, "overlapped")
    learner = agent(env.spec, device=run.device, seed=run.stream("agent"))
    learner.announce(env.num_envs)
    collector = Collector(learner, env, run.stream("collector"))
    collector.reset(run.stream("env"))
    alike(env, eval_env)
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say, eval_drawn)
    episodes = Episodes(env.num_envs, env.device)
    book = Book(
        run,
        {"agent": learner, "collector": collector},
        partial(judge, learner),
        total=total_steps,
        eval_every=eval_every,
        log_every=log_every,
        episodes=episodes,
        stop_at=stop_at,
        lanes=2,
    )
    if book.step and not taken_up([env], run):
        episodes.reset()
        collector.reset(run.stream(f"env/{book.step}"))
    with hasty_threads(), ThreadPoolExecutor(1) as other:
        for _ in book.steps(env.num_envs * learner.rollout_length):
            collector.follow()
            if not collector.rollout:
                collector.collect()
            rollout = collector.rollout
            collected = other.submit(collector.collect)
            metrics = learner.learn(rollout)
            collected.result()
            for _, transition in rollout:
                episodes.add(transition.reward, transition.last)
            book.add(metrics)
    return learner


@contextmanager
def hasty_threads() -> Iterator[None]:
    """A thread that comes back from an emulator or a kernel waits 1 ms for the interpreter instead of 5."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
