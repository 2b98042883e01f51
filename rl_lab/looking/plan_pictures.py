"""What a plan looks like: its values and policy, its Q-values, and a film of the sweeps that led to them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from rl_lab.envs.tabular.gridworld import MOVES
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.looking import pictures, sprites
from rl_lab.looking.panels import figures, font, side_by_side, titled
from rl_lab.planning.plan import Plan

FRAMES, NUMBERS = 120, 2**25  # snapshots of a film, and the numbers in them, at most
SECONDS, FREEZE = 8.0, 2.0  # a film takes so long if every sweep moves something, then stands on its last picture


def draw(
    layout: Layout | None, actions: Sequence[str], q: np.ndarray, value: np.ndarray, policy: np.ndarray
) -> dict[str, Image.Image]:
    """Of q [S, A], value [S] and policy [S]: `values`, a map or without a layout a chart, and `q` as `triangles`.

    Among equally good actions a chart shows the first, as Sutton and Barto do.
    """
    if layout is None:
        from rl_lab.looking.charts import Chart  # here, as matplotlib takes long to import

        good = pictures.best(q)
        first = np.where(good[np.arange(len(q)), policy], good.argmax(-1), policy)
        return {"values": Chart(actions, value, np.asarray(q.any(-1))).draw(value, first)}
    drawn = {"values": pictures.Board(layout, actions, value, q).picture, "q": triangles(layout, actions, q)}
    return {name: picture for name, picture in drawn.items() if picture}


def triangles(layout: Layout, actions: Sequence[str], q: np.ndarray) -> Image.Image | None:
    """The Q-values q [S, A] of a cell in four triangles, each on the side its move leads to, the best outlined.

    In numbers too where the cells are large enough, up to about 20 a side; None beyond 50, and where the actions are
    not the four moves.
    """
    grid = pictures.Grid(layout, 1120, largest=112)
    if sorted(actions) != sorted(MOVES) or grid.cell < pictures.ARROWS:
        return None
    q = q[grid.free][:, [list(actions).index(a) for a in MOVES]]
    scale = pictures.limits(q)
    shades = pictures.viridis(q, *scale)
    board = grid.painted(shades[:, sprites.quarters(grid.cell)])
    texts, height = figures(q.ravel(), 0.33 * grid.cell, min(15, grid.cell // 6), zero="")
    draw, cuts = ImageDraw.Draw(board), sprites.diagonals(grid.cell)
    for i, (y, x) in enumerate(grid.places):
        board.paste(pictures.WALL, (x * grid.cell, y * grid.cell), cuts)
        for a in np.flatnonzero(pictures.best(q[i])).tolist():
            board.paste(pictures.ink(shades[i, a]), (x * grid.cell, y * grid.cell), sprites.outline(grid.cell, a))
        for a, (dy, dx) in enumerate(MOVES.values() if texts else ()):
            at = (x + 0.5 + 0.31 * dx) * grid.cell, (y + 0.5 + 0.34 * dy) * grid.cell
            draw.text(at, texts[4 * i + a], pictures.ink(shades[i, a]), font(height), "mm")
    grid.mark(board)
    return pictures.framed(board, scale, "Q")[0]


class Snapshot(NamedTuple):
    """A sweep as it is kept."""

    sweep: int
    value: np.ndarray  # [S] float32
    best: np.ndarray  # what the film shows of q: bool [S, A] for arrows, int64 [S] for a chart, [0] for an image
    residual: float


class Sweeps:
    """A film of the values spreading, sweep by sweep.

    At most 120 sweeps are kept: all of the first ones, then equally many of each doubling of their number.
    """

    def __init__(self, layout: Layout | None, actions: Sequence[str]):
        self.layout, self.actions = layout, actions
        self.snapshots: list[Snapshot] = []
        self._tiny = layout is not None and pictures.Grid(layout, pictures.SIZE, largest=96).cell < pictures.ARROWS
        self._density = 64  # sweeps kept of each doubling
        self._latest: tuple[int, Plan]  # not a copy: it is the last of all once the film is written

    def add(self, sweep: int, plan: Plan) -> None:
        """Called after each sweep, counted from 1; only what is kept of the plan is looked at, and copied."""
        self._latest = sweep, plan
        if not self._keeps(sweep):
            return
        self.snapshots.append(self._snapshot(*self._latest))
        while len(self.snapshots) > min(FRAMES, NUMBERS // len(plan.value)) and self._density > 1:
            self._density //= 2
            self.snapshots = [s for s in self.snapshots if self._keeps(s.sweep)]

    def write(self, path: Path) -> None:
        """An mp4 and a gif, in the colours of one scale from the first picture to the last. Raises UserError."""
        from rl_lab.looking.films import write  # here, as the encoder takes long to import

        if self._latest[0] != self.snapshots[-1].sweep:
            self.snapshots.append(self._snapshot(*self._latest))
        fps = min(15.0, max(2.0, len(self.snapshots) / SECONDS))
        colours = pictures.palette() if self.layout else None
        write(path, self.frames(freeze=round(FREEZE * fps)), fps, gif=True, palette=colours)

    def frames(self, freeze: int = 0) -> Iterator[Image.Image]:
        """A frame for each snapshot in which something moves, and for the last, which is repeated `freeze` times."""
        scene, shown = self._scene(), None
        for snapshot in self.snapshots:
            if (picture := scene(snapshot)) is not shown or snapshot is self.snapshots[-1]:
                words = f"sweep {snapshot.sweep:,}", f"largest change {snapshot.residual:.2g}"
                frame = side_by_side([titled(picture, *words)])
                yield frame
            shown = picture
        for _ in range(freeze):
            yield frame

    def _keeps(self, sweep: int) -> bool:
        return sweep % max(1, 2 ** (sweep.bit_length() - 1) // self._density) == 0

    def _snapshot(self, sweep: int, plan: Plan) -> Snapshot:
        best = np.zeros(0, bool)
        if not self._tiny:
            best = pictures.best(plan.q.cpu().numpy())
            best = best if self.layout else best.argmax(-1)
        return Snapshot(sweep, plan.value.to("cpu", torch.float32, copy=True).numpy(), best, float(plan.residual))

    def _scene(self) -> Callable[[Snapshot], Image.Image]:
        values = [s.value for s in self.snapshots]
        if (layout := self.layout) is None:
            from rl_lab.looking.charts import Chart

            shown = np.asarray(self._latest[1].q.cpu().numpy().any(-1))
            chart = Chart(self.actions, np.stack(values), shown)
            return lambda s: chart.draw(s.value, s.best)
        free = pictures.Grid(layout, pictures.SIZE, largest=96).free
        ends = [pictures.limits(v[free]) for v in values]
        scale = min(low for low, _ in ends), max(high for _, high in ends)
        bars = lambda s: None if self._tiny else s.best.astype(float)
        board = pictures.Board(layout, self.actions, values[0], bars(self.snapshots[0]), scale=scale)

        def scene(snapshot: Snapshot) -> Image.Image:
            board.show(snapshot.value, bars(snapshot))
            return board.picture

        return scene
