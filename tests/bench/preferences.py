"""What answers about clips are worth, exactly: python tests/bench/preferences.py

The plan for the learned reward plays the agent, with 30 % of random actions; a quarter of the answers is about random
play, the rest in five rounds. Prints the mean regret of the plan over five seeds, and how many lost at most .02.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

from rl_lab.agents.tabled import Tabled
from rl_lab.core.randomness import stream
from rl_lab.loops.preferences import learned_world, watch_random
from rl_lab.planning import Regret
from rl_lab.types import Transition
from rl_lab.wanted.preferences.learner import Preferences
from rl_lab.wanted.preferences.teachers import Oracle
from rl_lab.wanted.tables import exact_plan

CPU, CASES = torch.device("cpu"), [
    ("russell_norvig", "state", 25, 160, "random", True),
    ("russell_norvig", "state", 10, 40, "disagreement", False),
    ("four_rooms", "entered", 10, 400, "random", True),
    ("four_rooms", "entered", 10, 400, "random", False),
    ("four_rooms", "entered", 10, 400, "disagreement", False),
]  # fmt: skip


class Named:
    """Streams of random numbers, as a run has them."""

    def __init__(self, seed: int):
        self.seed = seed

    def stream(self, name: str) -> int:
        return stream(self.seed, name)


def taught(
    world: str, form: str, clip: int, labels: int, select: str, random_play: bool, seed: int, error=0.0
) -> float:
    mdp = stated(f"env/{world}", "mdp")()
    env = stated("env/base/tabular", mdp=mdp, time_limit=200)()
    named = Named(seed)
    ensemble = stated("loop/preferences", "predictor", network=stated("agent/network/linear"), input=form)
    model = Preferences(
        ensemble(env.spec, CPU, named.stream("predictor")), Oracle(error=error, laziness=0.0), env.spec, env.num_envs, CPU,
        named.stream("preferences"), total_steps=1, labels=labels, first=1.0 if random_play else 0.25, kept=3_000,
        clip=clip, recent=32_000, select=select, candidates=10,
    )  # fmt: skip
    watch_random(env, model, named)
    for number in range(0 if random_play else 5):
        world = learned_world(model, env)
        best = torch.nn.functional.one_hot(exact_plan(world).policy, 4)
        share = 0.7 * bool(world.reward.any())  # where all was the same, any plan is as good: play on at random
        actor = Tabled(share * best + (1 - share) / 4, env.states, CPU, named.stream(f"agent/{number}"))
        obs = env.reset(named.stream(f"env/{number}"))
        for _ in range(model.tape.length):
            action = actor.act(obs)
            step = env.step(action)
            model.tape.add(Transition.of(obs, action, step))
            obs = step.obs
        model.ask((labels - model.first) // 5)
    return Regret(mdp, 200)(exact_plan(learned_world(model, env)).policy)


def main() -> None:
    print("| world | clip | answers | pairs | mean regret | seeds within .02 |\n|---|---|---|---|---|---|")
    for world, form, clip, labels, select, random_play in CASES:
        found = torch.tensor([taught(world, form, clip, labels, select, random_play, seed) for seed in range(5)])
        pairs = f"{select}, of {'random play' if random_play else 'the current plan'}"
        print(
            f"| {world} | {clip} | {labels} | {pairs} | {found.mean():.4f} | {int((found <= 0.02).sum())} of 5 |",
            flush=True,
        )


if __name__ == "__main__":
    main()
