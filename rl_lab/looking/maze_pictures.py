"""Collect from above: the maze, the goals that are left, the agent, and the time that is left as a bar below."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from rl_lab.envs.tabular.mdp import Layout
from rl_lab.looking import sprites
from rl_lab.looking.panels import AGENT, GROOVE, INK, PAPER, SIZE
from rl_lab.looking.pictures import GOAL, RIM, Board

GAP, BAR = 8, 10  # pixels: between maze and bar, and the bar's height


def maze(planes: np.ndarray, size: int = SIZE) -> Image.Image:
    """Of an observation [4, H, W]: walls, agent, goals and the share of time left; `size` pixels a side, about."""
    board = bare(board_rows(planes), size)
    picture = board.with_disc(*np.argwhere(planes[1])[0])
    goal = sprites.disc(max(7, int(board.cell * 0.42) // 2 * 2 + 1), INK, PAPER, GOAL)
    for place in np.argwhere(planes[2]):
        x, y = board.centre(*place)
        picture.paste(goal, (x - goal.width // 2, y - goal.height // 2), goal)
    right, top = picture.width - RIM - 1, picture.height - BAR
    for share, colour in ((1.0, GROOVE), (float(planes[3, 0, 0]), AGENT)):
        if share > 0:
            box = (RIM, top, RIM + round(share * (right - RIM)), picture.height - 1)
            ImageDraw.Draw(picture).rounded_rectangle(box, BAR // 2, colour)
    return picture


def text(planes: np.ndarray) -> str:
    """The same in letters: '#' wall, '@' agent, 'G' goal."""
    kind = (planes[:3] * np.array([1, 2, 3]).reshape(3, 1, 1)).max(0).astype(int)
    return "\n".join("".join(".#@G"[k] for k in row) for row in kind) + "\n"


def board_rows(planes: np.ndarray) -> tuple[str, ...]:
    return tuple("".join("#" if wall else "." for wall in row) for row in planes[0])


@lru_cache(64)
def bare(rows: tuple[str, ...], size: int) -> Board:
    """The maze alone, with room for the bar."""
    cells = tuple((y, x) for y, row in enumerate(rows) for x, glyph in enumerate(row) if glyph != "#")
    board = Board(Layout(rows, cells, {}), size=size)
    page = Image.new("RGB", (board.picture.width, board.picture.height + GAP + BAR), PAPER)
    page.paste(board.picture, (0, 0))
    board.picture = page
    return board
