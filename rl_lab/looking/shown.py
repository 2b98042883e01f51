"""Two clips side by side for a teacher of preferences to compare."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.style import INK, PAPER
from rl_lab.envs.abilities import Redrawn
from rl_lab.looking import worlds
from rl_lab.looking.panels import AGENT, BAR, EDGE, FAINT, GROOVE, enlarged, font, number, shortened
from rl_lab.types import VectorEnv
from rl_lab.wanted.preferences.clips import Clips, unpacked

CLIP, FILM, LINE = 380, 220, 84  # pixels: of the square that a clip fills, of the film, and the height of the line
MARGIN, GAP, HEAD = 20, 28, 84
Frame = Image.Image


def painter(env: VectorEnv, side: int = CLIP) -> Callable[[Tensor], Frame | None]:
    """A function that draws an observation [*obs_shape] into a square of `side` pixels, or returns None where nothing
    on the map can be seen. Raises UserError where an observation alone cannot be drawn.
    """
    if world := worlds.mapped(env):
        drawn = lru_cache(1024)(lambda seen: fitted(worlds.picture(seen), side) if seen.agent else None)
        return lambda obs: drawn(next(world.maps(obs[None])))
    if isinstance(env, Redrawn):
        return lambda obs: fitted(Image.fromarray(env.redrawn(obs)), side)
    spec = env.spec
    channels = spec.obs_shape[0] // spec.frame_stack if len(spec.obs_shape) == 3 else 0
    if channels not in (1, 3) or spec.obs_dtype != torch.uint8:
        raise UserError("teacher=person: clips of this world cannot be shown, as its observations are no pictures and "
                        "no map; choose a gridworld, env=atari, or a world such as env=cartpole_tensor")  # fmt: skip
    pixels = lambda obs: np.asarray(obs[-channels:].expand(3, -1, -1).permute(1, 2, 0).cpu())
    return lambda obs: fitted(enlarged(pixels(obs)), side)


def frames_of(clips: Clips, env: VectorEnv, paint: Callable[[Tensor], Frame | None]) -> list[list[Frame]]:
    """The frames of each clip, as long as it lasts."""
    stack = env.spec.frame_stack
    obs = unpacked(clips.obs, stack, env.spec.obs_shape[0] // stack if stack > 1 else 1)
    return [painted(one[: int(n) + 1], paint) for one, n in zip(obs, clips.length, strict=True)]


def painted(obs: Tensor, paint: Callable[[Tensor], Frame | None]) -> list[Frame]:
    """The frames of obs [T, ...]; an agent that has left the map is shown where it was last."""
    found: list[Frame] = []
    for x in obs:
        picture = paint(x)
        found.extend([picture] if picture else found[-1:])
    return found


def fitted(picture: Frame, side: int) -> Frame:
    """As large as fits into a square."""
    scale = side / max(picture.size)
    return picture.resize((round(scale * picture.width), round(scale * picture.height)), Image.Resampling.LANCZOS)


class Words(NamedTuple):
    """What stands around the clips."""

    question: str
    below: str  # who answers, and how much
    share: float  # of the labels that are given
    now: str  # of the film


class Shown:
    """A pair drawn moment by moment, both in step; once one is over, its last picture is veiled."""

    def __init__(self, clips: Sequence[Sequence[Frame]], believed: Sequence[Sequence[float]], film: Sequence[Frame],
                 words: Words):  # fmt: skip
        """Without clips the film alone."""
        self.clips, self.believed, self.film, self.words = clips, believed, film, words
        self.length = max([*map(len, clips), 1])
        self.high = max([p.height for frames in clips for p in frames[:1]] + [FILM])
        flat = [abs(x) for line in believed for x in line]
        self.most = max([*flat, 1e-9])

    def draw(self, step: int, time: int) -> Frame:
        """The page at a step of the clips; the film moves on by `time`."""
        right = MARGIN + 2 * CLIP + GAP
        page = Image.new("RGB", (right + GAP + FILM + MARGIN, HEAD + self.high + 34 + LINE + MARGIN), PAPER)
        draw, words = ImageDraw.Draw(page), self.words
        draw.text((MARGIN, 34), shortened(words.question, 24, right), INK, font(24), "ls")
        draw.text((MARGIN, 58), shortened(words.below, 14, 2 * CLIP), FAINT, font(14), "ls")
        for share, colour in ((1.0, GROOVE), (words.share, AGENT)):
            if share > 0:
                draw.rounded_rectangle((MARGIN, 68, MARGIN + max(4, share * (right - MARGIN)), 72), 2, colour)
        for i, frames in enumerate(self.clips):
            self._clip(page, frames, MARGIN + i * (CLIP + GAP), step, self.believed[i : i + 1])
        if self.film:
            left, now = right + GAP, self.film[time % len(self.film)]
            page.paste(now, (left, HEAD))
            draw.text((left, 58), "the agent now", INK, font(15), "ls")
            draw.text((left, HEAD + now.height + 20), words.now, FAINT, font(14), "ls")
        return page

    def _clip(self, page: Frame, frames: Sequence[Frame], left: int, step: int, believed: Sequence) -> None:
        picture = frames[min(step, len(frames) - 1)]
        over = step >= len(frames) and len(frames) < self.length
        picture = Image.blend(picture, veil(picture.size), 0.7) if over else picture
        left += (CLIP - picture.width) // 2
        top = HEAD + (self.high - picture.height) // 2
        page.paste(picture, (left, top))
        draw = ImageDraw.Draw(page)
        if over:
            x, y = left + picture.width // 2, top + picture.height // 2
            draw.rounded_rectangle((x - 38, y - 18, x + 38, y + 18), 8, PAPER, EDGE)
            draw.text((x, y), "over", INK, font(20), "mm")
        for line in believed:
            box = left, HEAD + self.high + 34, left + picture.width, HEAD + self.high + 34 + LINE
            self._line(draw, box, line[: len(frames) - 1], step)

    def _line(
        self, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], rewards: Sequence[float], step: int
    ) -> None:
        """What each step is believed to pay; both clips on one scale, about 0."""
        left, top, right, bottom = box
        middle, wide = (top + bottom) / 2, (right - left) / max(1, self.length - 1)
        draw.text((left, top - 8), "what the agent believes it is worth", FAINT, font(13), "ls")
        draw.text((right, top - 8), number(sum(rewards)), INK, font(13), "rs")
        draw.rectangle(box, None, EDGE)
        draw.line((left, middle, right, middle), EDGE)
        places = [(left + (i + 0.5) * wide, middle - x / self.most * (LINE / 2 - 8)) for i, x in enumerate(rewards)]
        if len(places) > 1:
            draw.line(places, BAR, 3, "curve")
        if len(passed := places[: step + 1]) > 1:
            draw.line(passed, AGENT, 3, "curve")
        if places:
            x, y = places[min(step, len(places) - 1)]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), AGENT)


@cache
def veil(size: tuple[int, int]) -> Frame:
    return Image.new("RGB", size, PAPER)
