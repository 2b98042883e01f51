"""Charts of plans for worlds without a map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rl_lab.core.style import COLORS, STYLE
from rl_lab.looking.panels import shortened


class Chart:
    """The value of each state as a line; below it the action taken there, as steps where actions are numbers.

    As in figure 4.3 of Sutton and Barto (2018). One chart draws many plans, all within the limits of `value`.
    """

    def __init__(self, actions: Sequence[str], value: np.ndarray, shown: np.ndarray):
        """`value` [..., S] of all plans to be drawn, `shown` [S] bool: states to be drawn."""
        self.shown = shown
        states, (self.levels, numeric) = np.arange(value.shape[-1]), _levels(actions)
        style: dict[Any, Any] = STYLE | {"font.size": 11}
        with rc_context(style):
            self.figure = Figure((8, 5.2), dpi=120, layout="constrained")
            self.canvas = FigureCanvasAgg(self.figure)
            above, below = self.figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            (self.line,) = above.plot(states, np.zeros(len(states)), color=COLORS[0], linewidth=1.8)
            form = {"drawstyle": "steps-mid", "linewidth": 1.4} if numeric else {"linestyle": "", "marker": "."}
            (self.steps,) = below.plot(states, np.zeros(len(states)), color=COLORS[1], markersize=4, **form)
            above.set(
                ylabel="value",
                ylim=_padded(value[..., shown].min(), value[..., shown].max()),
                xlim=_padded(0, len(states) - 1, 0.01),
            )
            below.set(ylabel="action", xlabel="state", ylim=_padded(self.levels.min(), self.levels.max(), 0.08))
            if not numeric:
                some = slice(None, None, max(1, len(actions) // 12))
                below.set_yticks(self.levels[some], [shortened(a, 11, 120) for a in actions][some])
            self.figure.align_ylabels()
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")  # laid out once, for all plans

    def draw(self, value: np.ndarray, policy: np.ndarray) -> Image.Image:
        """value [S] and the index of the action taken, policy [S]."""
        self.line.set_ydata(np.where(self.shown, value, np.nan))
        self.steps.set_ydata(np.where(self.shown, self.levels[policy], np.nan))
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def _levels(actions: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Where each action stands: at the number it is called by, if all are numbers, else in their order."""
    try:
        return np.array([float(a) for a in actions]), True
    except ValueError:
        return np.arange(len(actions), dtype=float), False


def _padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    margin = share * (high - low) or 0.5
    return low - margin, high + margin
