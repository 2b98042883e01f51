"""Where an agent loses on a small Collect: what its decisions give away of the exact optimum, by the time that is left.

    python tests/bench/collect_regret.py runs/vpn3_collect_small/<run> runs/dqn_collect_small/<run>

The undiscounted value of every option in every state of each maze comes of backward induction over the time left.
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from rl_lab.envs.collect.world import SIDE, Collect, Walkers
from rl_lab.playing.player import load


class Table:
    """Of the mazes of N walkers the value of each option, [N, cells, sets of goals, steps left, options]."""

    def __init__(self, env: Collect):
        self.ids = torch.arange(env.num_envs)
        self.cells = torch.tensor([SIDE * y + x for y in range(env.width) for x in range(env.width)])
        self.goals = torch.stack([goal[goal != 0] for goal in env.walkers.goals.unsqueeze(1) & 1 << torch.arange(63)])
        subsets = torch.arange(2**env.goals).unsqueeze(1) >> torch.arange(env.goals) & 1
        sets = (self.goals * subsets.unsqueeze(1)).sum(-1)  # [sets, N]
        shape = env.num_envs, len(self.cells), len(sets), env.time_limit + 1, env.spec.num_actions
        self.q = torch.zeros(shape, dtype=torch.double)
        for left in range(1, env.time_limit + 1):
            value = self.q.amax(-1)
            for cell, some, option in product(range(len(self.cells)), range(len(sets)), range(shape[-1])):
                walkers = env.walkers._replace(agent=self.cells[cell].expand_as(self.ids), goals=sets[some],
                                               left=torch.full_like(self.ids, left))  # fmt: skip
                step = env.advance(walkers, torch.full_like(self.ids, option), None, None)
                future = value[self.place(step.successor)].where(~step.last, 0.0)
                self.q[:, cell, some, left, option] = step.reward + future

    def place(self, walkers: Walkers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the walkers stand in the table, each in its own maze."""
        there = (walkers.goals.unsqueeze(1) & self.goals) != 0
        sets = (there << torch.arange(self.goals.shape[1])).sum(-1)
        return self.ids, torch.searchsorted(self.cells, walkers.agent), sets, walkers.left

    def lost(self, walkers: Walkers, action: Tensor) -> Tensor:
        """[N]: what `action` gives away where the walkers stand."""
        q = self.q[self.place(walkers)]
        return q.amax(-1) - q[self.ids, action]


@torch.no_grad()
def losses(folder: Path, mazes: int, seed: int) -> list[float]:
    """An episode, with `time_limit`, ..., 2, 1 steps left."""
    player = load(folder, max_envs=mazes, device="cpu")
    env, obs = player.env, player.env.reset(seed)
    if not isinstance(env, Collect) or env.slip or env.drift or env.size > 7:
        raise SystemExit(f"{folder} does not play in a small Collect whose options and goals stand still")
    table, alive = Table(env), torch.ones(env.num_envs, dtype=torch.bool)
    found = torch.zeros(env.time_limit + 1, dtype=torch.double)
    while alive.any():
        action = player.act(obs)
        found.scatter_add_(0, env.walkers.left, table.lost(env.walkers, action).where(alive, 0.0))
        step = env.step(action)
        alive, obs = alive & ~step.last, step.obs
    return (found / env.num_envs).flip(0)[:-1].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--mazes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=777)
    given = parser.parse_args()
    for folder in given.runs:
        lost = losses(folder, given.mazes, given.seed)
        print(f"{folder}: {sum(lost):.4f} an episode;", " ".join(f"{x:.4f}" for x in lost))


if __name__ == "__main__":
    main()
