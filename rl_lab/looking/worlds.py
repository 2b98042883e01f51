"""Worlds of ours, in pictures and in letters, by what an agent sees of them."""

from collections.abc import Iterator

from PIL import Image
from torch import Tensor

from rl_lab.envs.collect.world import Collect
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.looking import maze_pictures, pictures
from rl_lab.types import VectorEnv


def has_map(env: VectorEnv) -> bool:
    """Without one there is nothing to draw."""
    return isinstance(env, Collect) or (isinstance(env, MDPEnv) and env.mdp.layout is not None)


def drawn(env: MDPEnv | Collect, obs: Tensor) -> Iterator[Image.Image]:
    """The map around each walker, and the walker in it, of its observation [N, ...]."""
    if isinstance(env, Collect):
        return map(maze_pictures.maze, obs.cpu().numpy())
    return (pictures.world(env.mdp.layout, state) for state in env.states(obs).tolist())


def written(env: MDPEnv | Collect, obs: Tensor) -> Iterator[str]:
    """The same in letters: '#' wall, '@' the walker."""
    if isinstance(env, Collect):
        return map(maze_pictures.text, obs.cpu().numpy())
    return (in_letters(env.mdp.layout, state) for state in env.states(obs).tolist())


def in_letters(layout: Layout, state: int) -> str:
    rows = [list(row) for row in layout.rows]
    if state < len(layout.cells):
        y, x = layout.cells[state]
        rows[y][x] = "@"
    return "\n".join(map("".join, rows)) + "\n"
