"""Two clips side by side, to be told apart: what a teacher of preferences has before their eyes."""

from collections.abc import Callable, Sequence
from functools import cache
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
from rl_lab.wanted.clips import Clips, unpacked

CLIP, FILM, LINE = 380, 220, 84  # pixels: of the square that a clip fills, of the film, and the height of the line
MARGIN, GAP, HEAD = 20, 28, 84
Frame = Image.Image


def painter(env: VectorEnv) -> Callable[[Tensor], Frame]:
    """What draws an observation [*obs_shape]. Raises UserError where none can be drawn from that alone."""
    if world := worlds.mapped(env):
        return lambda obs: worlds.picture(next(world.maps(obs[None])))
    if isinstance(env, Redrawn):
        return lambda obs: Image.fromarray(env.redrawn(obs))
    spec = env.spec
    channels = spec.obs_shape[0] // spec.frame_stack if len(spec.obs_shape) == 3 else 0
    if channels not in (1, 3) or spec.obs_dtype != torch.uint8:
        raise UserError("teacher=person: clips of this world cannot be shown, as its observations are no pictures and "
                        "no map; choose a gridworld, env=atari, or a world such as env=cartpole_tensor")  # fmt: skip
    return lambda obs: enlarged(np.asarray(obs[-channels:].expand(3, -1, -1).permute(1, 2, 0).cpu()))


def frames_of(clips: Clips, env: VectorEnv, paint: Callable[[Tensor], Frame]) -> list[list[Frame]]:
    """Of each clip, as long as it lasts."""
    stack = env.spec.frame_stack
    obs = unpacked(clips.obs, stack, env.spec.obs_shape[0] // stack if stack > 1 else 1)
    lengths = clips.length.tolist()
    return [[fitted(paint(x), CLIP) for x in one[: n + 1]] for one, n in zip(obs, lengths, strict=True)]


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
    """A pair, drawn moment by moment: both in step, the last picture of one that is over under a veil."""

    def __init__(self, clips: Sequence[Sequence[Frame]], believed: Sequence[Sequence[float]], film: Sequence[Frame],
                 words: Words):  # fmt: skip
        """Without clips the film alone."""
        self.clips, self.believed, self.film, self.words = clips, believed, film, words
        self.length = max([*map(len, clips), 1])
        self.high = max([p.height for frames in clips for p in frames[:1]] + [FILM])
        flat = [abs(x) for line in believed for x in line]
        self.most = max([*flat, 1e-9])

    def draw(self, step: int, time: int) -> Frame:
        """At a step of the clips; the film goes on by `time`."""
        width = 2 * MARGIN + 2 * CLIP + 2 * GAP + FILM
        page = Image.new("RGB", (width, HEAD + self.high + 2 * LINE // 2 + 60), PAPER)
        draw = ImageDraw.Draw(page)
        draw.text((MARGIN, 34), shortened(self.words.question, 24, width - 2 * MARGIN), INK, font(24), "ls")
        draw.text((MARGIN, 58), shortened(self.words.below, 14, 2 * CLIP + GAP), FAINT, font(14), "ls")
        right = MARGIN + 2 * CLIP + GAP
        draw.rounded_rectangle((MARGIN, 68, right, 72), 2, GROOVE)
        if self.words.share > 0:
            draw.rounded_rectangle((MARGIN, 68, MARGIN + max(4, self.words.share * (right - MARGIN)), 72), 2, AGENT)
        for i, frames in enumerate(self.clips):
            self._clip(page, frames, MARGIN + i * (CLIP + GAP), step, self.believed[i : i + 1])
        if self.film:
            left = right + GAP
            page.paste(fitted_film := self.film[time % len(self.film)], (left, HEAD))
            draw.text((left, 58), "the agent now", INK, font(15), "ls")
            draw.text((left, HEAD + fitted_film.height + 20), self.words.now, FAINT, font(14), "ls")
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
            draw.text((left + picture.width // 2, top + picture.height // 2), "over", INK, font(22), "mm")
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
            draw.line(places, BAR, 2, "curve")
        if len(passed := places[: step + 1]) > 1:
            draw.line(passed, AGENT, 2, "curve")
        if places:
            x, y = places[min(step, len(places) - 1)]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), AGENT)


@cache
def veil(size: tuple[int, int]) -> Frame:
    return Image.new("RGB", size, PAPER)
