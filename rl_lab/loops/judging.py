"""What an agent is worth: episodes it plays, and its exact regret where the world is known."""

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.envs.abilities import Tabular
from rl_lab.planning import Regret
from rl_lab.types import Actor, Policy, VectorEnv


class Judge:
    """Mean return and length of `play`'s episodes; where the world is a known MDP, also the policy's exact regret."""

    LARGEST = 5_000  # states, for every one of which the policy is asked

    def __init__(self, env: VectorEnv, episodes: int, seed: int, say: Callable[[str], None] = lambda text: None):
        self.env, self.episodes, self.seed, self.say, self.regret = env, episodes, seed, say, None
        if isinstance(env, Tabular) and len(env.mdp.start) <= self.LARGEST:
            try:
                self.regret = Regret(env.mdp, env.time_limit)
            except UserError as error:
                say(f"eval/regret is left out: by the world's own gamma there is no best policy ({error})")

    def __call__(self, actor: Actor) -> Metrics:
        returns, lengths = play(self.env, partial(actor.act, greedy=True), self.episodes, self.seed)
        metrics = {"eval/return": returns.mean(), "eval/length": lengths.mean()}
        return metrics | self.exact(actor)

    @torch.no_grad()
    def exact(self, actor: Actor) -> Metrics:
        """The regret of the policy that played, by the chances with which it draws; {} where it cannot be known."""
        if self.regret and not isinstance(actor, Actor):
            self.say(f"eval/regret is left out: {type(actor).__name__} does not say its probabilities")
            self.regret = None
        return {"eval/regret": self.regret(actor.probabilities(self.env.all_observations()))} if self.regret else {}


LONG, ENDLESS = 30_000, 1_000_000  # steps of an episode that are told of, and beyond which it has no end


@torch.no_grad()
def play(env: VectorEnv, policy: Policy, episodes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns and lengths, both [E], of each env's first ceil(episodes / num_envs) episodes: no bias to short ones.

    An environment without a time limit may hold a policy for ever. From 30,000 steps of an episode on (a game of Atari
    has 27,000 at most) this is told, at each doubling, and at a million it is a UserError; whatever has a limit of its
    own, `env.time_limit`, is played to it.
    """
    quota = -(-episodes // env.num_envs)
    table = torch.zeros(2, quota + 1, env.num_envs, device=env.device)  # the last row takes what is not counted
    ids = torch.arange(env.num_envs, device=env.device)
    episode = torch.zeros_like(ids)
    obs, steps, tell = env.reset(seed), 0, LONG
    look = math.inf if env.time_limit else LONG
    while (episode < quota).any():
        step = env.step(policy(obs))
        table[:, episode, ids] += torch.stack([step.reward, torch.ones_like(step.reward)])
        episode = (episode + step.last).clamp(max=quota)
        obs, steps = step.obs, steps + 1
        if steps >= look:
            longest = int((table[1, episode, ids] * (episode < quota)).max())  # of those that go on
            if longest >= min(tell, ENDLESS):
                tell_of_long(longest)
                tell *= 2
            look = steps + min(tell, ENDLESS) - longest
    returns, lengths = table[:, :quota].flatten(1)
    return returns, lengths


def tell_of_long(steps: int) -> None:
    """Raises UserError where an episode of so many is taken for one without an end."""
    limit = "of Gymnasium's: +env.options.max_episode_steps=10000"
    if steps >= ENDLESS:
        raise UserError(f"an episode has lasted {steps:,} steps, and its environment has no time limit; give it one, "
                        f"{limit}")  # fmt: skip
    words = f"an episode has lasted {steps:,} steps and goes on; without a time limit ({limit})"
    print(f"evaluation: {words} it is given up after {ENDLESS:,}", file=sys.stderr)
