"""Worlds on a map, in pictures and in letters: agent, goals that are left, and the time that is left as a bar below."""

from functools import lru_cache

from PIL import Image, ImageDraw

from rl_lab.envs.abilities import Map, Mapped
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.looking import sprites
from rl_lab.looking.panels import AGENT, FAINT, GROOVE, INK, PAPER, SIZE, font
from rl_lab.looking.pictures import GOAL, RIM, Board
from rl_lab.types import VectorEnv

GAP, BAR, WORDS = 8, 10, 26  # pixels: between map and bar, the bar's height, and the line of words below it


def mapped(env: VectorEnv) -> Mapped | None:
    """The world itself, if there is a map of it to draw."""
    return env if isinstance(env, Mapped) and env.has_map else None


def picture(world: Map) -> Image.Image:
    board = board_of(world)
    picture = board.with_agent(world.agent)
    if world.goals:
        goal = sprites.disc(max(7, int(board.cell * 0.42) // 2 * 2 + 1), INK, PAPER, GOAL)
    for place in world.goals:
        x, y = board.centre(*place)
        picture.paste(goal, (x - goal.width // 2, y - goal.height // 2), goal)
    if world.time_left is not None:
        _draw_time(picture, world.time_left)
        _draw_words(picture, world)
    return picture


def _draw_time(picture: Image.Image, left: float) -> None:
    right, top = picture.width - RIM - 1, picture.height - BAR - WORDS
    for share, colour in ((1.0, GROOVE), (left, INK)):
        if share > 0:
            box = (RIM, top, RIM + round(share * (right - RIM)), top + BAR - 1)
            ImageDraw.Draw(picture).rounded_rectangle(box, BAR // 2, colour)


def _draw_words(picture: Image.Image, world: Map) -> None:
    """How long is left, and which disc is what."""
    draw, base = ImageDraw.Draw(picture), picture.height - 6
    draw.text((RIM, base), world.clock, INK, font(15), "ls")
    x = picture.width - RIM
    left = len(world.goals)
    for word, colour in ((f"{left} goal{'s' * (left != 1)} left", GOAL), ("agent", AGENT)):
        draw.text((x, base), word, FAINT, font(15), "rs")
        x -= int(font(15).getlength(word)) + 8
        disc = sprites.disc(13, INK, PAPER, colour)
        picture.paste(disc, (x - 13, base - 12), disc)
        x -= 28


def text(world: Map) -> str:
    """The map in letters: '#' wall, '@' agent, 'G' goal."""
    rows = [list(row) for row in world.layout.rows]
    for y, x in world.goals:
        rows[y][x] = "G"
    if world.agent:
        y, x = world.agent
        rows[y][x] = "@"
    return "\n".join(map("".join, rows)) + "\n"


def board_of(world: Map) -> Board:
    """The map alone, with room for the bar if there is one."""
    return _board(world.layout, world.time_left is not None)


@lru_cache(64)
def _board(layout: Layout, timed: bool) -> Board:
    free = ((y, x) for y, row in enumerate(layout.rows) for x, glyph in enumerate(row) if glyph != "#")
    board = Board(layout._replace(cells=tuple(free)), size=SIZE)
    if timed:
        page = Image.new("RGB", (board.picture.width, board.picture.height + GAP + BAR + WORDS), PAPER)
        page.paste(board.picture, (0, 0))
        board.picture = page
    return board
