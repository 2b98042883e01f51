"""Evaluation: greedy episodes, and the exact regret of the policy where the world is a known MDP."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_lab.agents import exploration
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.randomness import generator
from rl_lab.envs.abilities import Tabular
from rl_lab.types import Actor, Policy, VectorEnv, Viewed

if TYPE_CHECKING:
    from rl_lab.planning import Regret


class Judge:
    """Mean return and length of `play`'s episodes; where the world is a known MDP, also the policy's exact regret."""

    LARGEST = 5_000  # states: the policy is evaluated in every one of them

    def __init__(
        self,
        env: VectorEnv,
        episodes: int,
        seed: int,
        say: Callable[[str], None] = lambda text: None,
        drawn: int = 0,  # episodes more, whose actions are drawn from the policy
    ):
        self.env, self.episodes, self.seed, self.say, self.drawn = env, episodes, seed, say, drawn
        self.regret: Regret | None = None
        if isinstance(env, Tabular) and len(env.mdp.start) <= self.LARGEST:
            from rl_lab import planning  # with scipy, for which no other world needs to wait

            try:
                self.regret = planning.Regret(env.mdp, env.time_limit)
            except UserError as error:
                say(f"eval/regret is left out: with the world's own gamma there is no best policy ({error})")

    def __call__(self, actor: Actor) -> Metrics:
        played = play(self.env, partial(actor.act, greedy=True), self.episodes, self.seed)
        return scores(*played) | self.drawing(actor) | self.exact(actor)

    def drawing(self, actor: Actor) -> Metrics:
        """The mean return of the policy itself, where the actor has one: greedy play may go round in circles."""
        if not self.drawn:
            return {}
        if not isinstance(actor, Viewed) or actor.view(self.env.reset(self.seed)).kind != "probabilities":
            self.say(f"eval/drawn_return is left out: {type(actor).__name__} has no policy to draw from")
            self.drawn = 0
            return {}
        policy = partial(drawn_from, actor, generator(self.seed, self.env.device))
        return {"eval/drawn_return": play(self.env, policy, self.drawn, self.seed)[0].mean()}

    @torch.no_grad()
    def exact(self, actor: Actor) -> Metrics:
        """The regret of the greedy policy, from its action probabilities; {} where it is not known."""
        if self.regret is None or not isinstance(self.env, Tabular):
            return {}
        if not isinstance(actor, Actor):
            self.say(f"eval/regret is left out: {type(actor).__name__} has no probabilities")
            self.regret = None
            return {}
        return {"eval/regret": self.regret(actor.probabilities(self.env.all_observations()))}


def scores(returns: Tensor, lengths: Tensor) -> Metrics:
    """Means over episodes [E], their number, and the standard error of the return where there is more than one."""
    error = {"eval/return_se": (returns - returns[0]).std() / len(returns) ** 0.5} if len(returns) > 1 else {}
    return {"eval/return": returns.mean(), **error, "eval/length": lengths.mean(), "eval/episodes": len(returns)}


def drawn_from(actor: Viewed, rng: torch.Generator, obs: Tensor) -> Tensor:
    """Actions [N], drawn from the probabilities that the actor shows."""
    return exploration.sample(actor.view(obs).bars.log(), rng)


LONG, ENDLESS = 30_000, 1_000_000  # steps of an episode: from here on it is reported, and from here on refused


@torch.no_grad()
def play(env: VectorEnv, policy: Policy, episodes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns and lengths, both [E], of each env's first ceil(episodes / num_envs) episodes: no bias to short ones.

    In an environment without a time limit an episode may never end. Where one has lasted 30,000 steps (a game of Atari
    has 27,000 at most), and at each doubling, a line reports it; at a million steps it is a UserError. An environment
    with a limit of its own, `env.time_limit`, is played to that limit.
    """
    quota = -(-episodes // env.num_envs)
    table = torch.zeros(2, quota + 1, env.num_envs, device=env.device)  # the last row takes what is not counted
    ids = torch.arange(env.num_envs, device=env.device)
    episode = torch.zeros_like(ids)
    obs, steps, report = env.reset(seed), 0, LONG
    look = math.inf if env.time_limit else LONG
    while (episode < quota).any():
        step = env.step(policy(obs))
        table[:, episode, ids] += torch.stack([step.reward, torch.ones_like(step.reward)])
        episode = (episode + step.last).clamp(max=quota)
        obs, steps = step.obs, steps + 1
        if steps >= look:
            longest = int((table[1, episode, ids] * (episode < quota)).max())  # of those that go on
            if longest >= min(report, ENDLESS):
                report_long(longest)
                report *= 2
            look = steps + min(report, ENDLESS) - longest
    returns, lengths = table[:, :quota].flatten(1)
    return returns, lengths


def report_long(steps: int) -> None:
    """Reports an episode that may never end. Raises UserError where it has lasted too long."""
    remedy = "set one: +env.options.max_episode_steps=10000"
    if steps >= ENDLESS:
        raise UserError(f"an episode has lasted {steps:,} steps, and its environment has no time limit; {remedy}")
    print(
        f"evaluation: an episode has lasted {steps:,} steps without ending; the run stops at {ENDLESS:,}. "
        f"This environment has no time limit; {remedy}",
        file=sys.stderr,
    )
