"""Where an agent loses on a small Collect: what its decisions give away of the exact optimum, by the time that is left.

    python tests/bench/collect_regret.py runs/vpn3_collect_small/<run> runs/dqn_collect_small/<run>

The undiscounted value of every option in every state of each maze comes of backward induction over the time left.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from rl_lab.envs.collect import SIDE, Collect, Walkers
from rl_lab.player import load


class Table:
    """Of the mazes of N walkers the value of each option, [N, cells, sets of goals, steps left, options]."""

    def __init__(self, env: Collect):
        self.ids, self.limit = torch.arange(env.num_envs), env.time_limit
        self.cells = torch.tensor([SIDE * y + x for y in range(env.width) for x in range(env.width)])
        self.goals = torch.stack([goal[goal != 0] for goal in env.walkers.goals.unsqueeze(1) & 1 << torch.arange(63)])
        subsets = torch.arange(2**env.goals).unsqueeze(1) >> torch.arange(env.goals) & 1
        sets = (self.goals.unsqueeze(1) * subsets).sum(-1)  # [N, sets]
        shape = env.num_envs, len(self.cells), sets.shape[1], env.time_limit, env.spec.num_actions
        of = lambda x, dim: x.view(*(-1 if i in dim else 1 for i in range(5))).expand(shape).flatten()
        walkers = Walkers(
            of(env.walkers.open, [0]), of(self.cells, [1]),
            sets.view(shape[0], 1, -1, 1, 1).expand(shape).flatten(), torch.zeros(math.prod(shape), 0, dtype=torch.int64),
            of(1 + torch.arange(env.time_limit), [3]), of(self.ids, [0]),
        )  # fmt: skip
        world = Collect(math.prod(shape), size=env.size, goals=env.goals, holes=env.holes, option_gamma=1.0,
                        time_limit=env.time_limit, mazes=1)  # fmt: skip
        world.seed(0)
        step = world.advance(walkers, of(torch.arange(shape[-1]), [4]), None, None)
        reward, last, after = step.reward.double().view(shape), step.last.view(shape), step.successor
        place = self.place(after._replace(left=after.left.view(shape[0], -1)), of(self.ids, [0]).view(shape[0], -1))
        self.q = torch.zeros(*shape[:3], env.time_limit + 1, shape[-1], dtype=torch.double)
        for left in range(env.time_limit):
            value = self.q.amax(-1)
            future = value[tuple(x.view(shape)[..., left, :] for x in place)]
            self.q[..., left + 1, :] = reward[..., left, :] + torch.where(last[..., left, :], 0.0, future)

    def place(self, walkers: Walkers, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where walkers [N, K] of the mazes `ids` [N, K] stand in the table."""
        cell = torch.searchsorted(self.cells, walkers.agent).view_as(ids)
        there = (walkers.goals.view_as(ids).unsqueeze(-1) & self.goals.unsqueeze(1)) != 0
        return ids, cell, (there << torch.arange(self.goals.shape[1])).sum(-1), walkers.left

    def lost(self, walkers: Walkers, action: Tensor) -> Tensor:
        """[N]: what `action` gives away where the walkers stand."""
        walkers = walkers._replace(left=walkers.left.unsqueeze(1))
        q = self.q[self.place(walkers, self.ids.unsqueeze(1))].squeeze(1)
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
        lost = table.lost(env.walkers, action).where(alive, 0.0)
        found.scatter_add_(0, env.walkers.left, lost)
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
