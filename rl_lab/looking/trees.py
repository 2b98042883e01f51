"""What an agent that looks ahead imagines: the tree of its plan, and the route it would take on the map."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rl_lab.agents.vpn.planner import Level, path
from rl_lab.envs.abilities import Map
from rl_lab.envs.tabular.gridworld import MOVES
from rl_lab.looking.panels import AGENT, EDGE, FAINT, INK, PAPER, SIZE, font, number
from rl_lab.looking.pictures import limits, viridis
from rl_lab.looking.worlds import board_of

FINE = 3  # lines are drawn this many times larger, then averaged
LEFT, STEP, TOP, BELOW = 26, 96, 62, 156  # pixels: of the root, between depths, above the tree, below it
LEAST = 400  # pixels high
ROWS = "option", "reward", "steps", "value then"


def tree(plan: Sequence[Level], actions: Sequence[str], height: int = SIZE) -> Image.Image:
    """The first plan's branches, from dark to bright by what each promises, and below what the best path expects."""
    chosen, height = [int(node[0]) for node in path(plan)], max(height, LEAST)
    picture = Image.new("RGB", (LEFT + STEP * len(plan) + 78, height), PAPER)
    room = height - TOP - BELOW
    picture.paste(_branches(plan, chosen, room), (0, TOP))
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT - 12, 16), "what it imagines", INK, font(16), "ls")
    _draw_key(picture, plan)
    for option, q in zip(plan[0].option[0, 0].tolist(), plan[0].q[0, 0].tolist(), strict=True):
        _name_branch(draw, plan, actions[option], q, option == _option(plan[0], chosen[0]), room)
    _draw_expected(draw, plan, actions, chosen, height)
    return picture


def _scale(plan: Sequence[Level]) -> tuple[float, float]:
    return limits(np.concatenate([level.q[0].flatten().cpu() for level in plan]))


def _draw_key(picture: Image.Image, plan: Sequence[Level]) -> None:
    """What the colours of the branches stand for."""
    draw, (low, high) = ImageDraw.Draw(picture), _scale(plan)
    x, y, width = LEFT + 200, 32, 50
    draw.text((LEFT - 12, y + 9), "branches by their value", FAINT, font(14), "ls")
    draw.text((x - 4, y + 9), number(low), FAINT, font(14), "rs")
    picture.paste(Image.fromarray(viridis(np.linspace(0, 1, width), 0, 1)[None].repeat(10, 0)), (x + 2, y))
    draw.text((x + width + 8, y + 9), number(high), FAINT, font(14), "ls")
    draw.text((x + width + 64, y + 9), "best", AGENT, font(14), "ls")


def _branches(plan: Sequence[Level], chosen: Sequence[int], room: int) -> Image.Image:
    """Every branch as a line; the best path over the others."""
    fine = Image.new("RGB", ((LEFT + STEP * len(plan) + 78) * FINE, room * FINE), PAPER)
    draw, scale = ImageDraw.Draw(fine), _scale(plan)
    lines = []  # (on the path, what it promises, its ends, its colour)
    for depth, level in enumerate(plan):
        q = level.q[0].cpu().numpy()
        shades = viridis(q.ravel(), *scale)
        for child, (promise, shade) in enumerate(zip(q.ravel().tolist(), shades, strict=True)):
            ends = _place(depth, child // q.shape[1], len(q), room), _place(depth + 1, child, q.size, room)
            lines.append((child == chosen[depth], promise, ends, tuple(shade.tolist())))
    for best, _, ends, shade in sorted(lines):
        draw.line([(FINE * x, FINE * y) for x, y in ends], AGENT if best else shade, FINE * 3 if best else 4)
    dots = [_place(0, 0, 1, room), *(e[1] for best, _, e, _ in lines if best)]
    for x, y in dots:
        draw.ellipse([FINE * z for z in (x - 4, y - 4, x + 4, y + 4)], AGENT, PAPER, FINE)
    return fine.reduce(FINE)


def _place(depth: int, node: int, of: int, room: int) -> tuple[float, float]:
    return LEFT + depth * STEP, (node + 0.5) * room / of


def _option(level: Level, child: int) -> int:
    return int(level.option[0].flatten()[child])


def _name_branch(draw: ImageDraw.ImageDraw, plan: Sequence[Level], name: str, q: float, best: bool, room: int) -> None:
    """At its first node: the option's name and Q^d."""
    options = plan[0].option[0, 0].tolist()
    child = plan[0].q[0, 0].tolist().index(q)
    x, y = _place(1, child, len(options), room)
    box = draw.textbbox((x, TOP + y - 11), text := f"{name} {number(q)}", letters := font(14), "mm")
    draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), PAPER)
    draw.text((x, TOP + y - 11), text, AGENT if best else INK, letters, "mm")


def _draw_expected(
    draw: ImageDraw.ImageDraw, plan: Sequence[Level], actions: Sequence[str], chosen: Sequence[int], height: int
) -> None:
    """A column below each depth: the option taken, its reward and steps, and the value of where it leads."""
    top = height - BELOW + 66
    draw.line((LEFT - 12, top - 52, LEFT + STEP * len(plan) + 66, top - 52), EDGE)
    draw.text((LEFT - 12, top - 28), "the best path, as its model expects it", INK, font(16), "ls")
    for row, word in enumerate(ROWS):
        draw.text((LEFT - 12, top + 22 * row), word, FAINT, font(14), "ls")
    for depth, (level, child) in enumerate(zip(plan, chosen, strict=True)):
        reward, steps, value = (float(x[0].flatten()[child]) for x in (level.reward, level.duration, level.value))
        texts = actions[_option(level, child)], f"{reward:+.2f}", f"{steps:.1f}", number(value)
        for row, text in enumerate(texts):
            at = LEFT + STEP * (depth + 1) + 20, top + 22 * row
            draw.text(at, text, INK if row else AGENT, font(14), "ms")


def way(world: Map, plan: Sequence[Level], actions: Sequence[str]) -> list[list[tuple[int, int]]]:
    """The cells (y, x) that each option of the best path would pass on the map, from the agent's own.

    Each takes as many steps as the model expects, until a wall is ahead: the world itself is not asked.
    """
    if world.agent is None:
        return []
    (y, x), legs = world.agent, []
    for level, child in zip(plan, (int(node[0]) for node in path(plan)), strict=True):
        dy, dx = MOVES.get(actions[_option(level, child)], (0, 0))
        leg = [(y, x)]
        for _ in range(round(float(level.duration[0].flatten()[child]))):
            if (y + dy, x + dx) not in world.layout.cells:
                break
            y, x = y + dy, x + dx
            leg.append((y, x))
        legs.append(leg)
    return legs


def with_way(picture: Image.Image, world: Map, plan: Sequence[Level], actions: Sequence[str]) -> Image.Image:
    """The `worlds.picture` of a map, and the way the plan means to go, paler with each depth."""
    board, fine = board_of(world), Image.new("L", (picture.width * FINE, picture.height * FINE))
    draw = ImageDraw.Draw(fine)
    if not (legs := way(world, plan, actions)):
        return picture
    for depth, leg in reversed(list(enumerate(legs))):
        shade, off = round(235 - 150 * depth / max(1, len(legs))), 3.0 * (depth - (len(legs) - 1) / 2)
        points = [(FINE * (x + off), FINE * (y + off)) for x, y in (board.centre(*cell) for cell in leg)]
        draw.line(points, shade, FINE * 5, joint="curve")
        (x, y), radius = points[-1], FINE * 6
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), shade)
    x, y = (FINE * z for z in board.centre(*legs[0][0]))
    clear = FINE * 0.31 * board.cell
    draw.ellipse((x - clear, y - clear, x + clear, y + clear), 0)  # the agent stands above it
    result = picture.copy()
    result.paste(AGENT, (0, 0), fine.reduce(FINE))
    return result
