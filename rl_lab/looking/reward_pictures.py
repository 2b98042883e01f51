"""Rewards as maps: what was inferred beside what is true, and where each of them leads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rl_lab.core.style import COLORS, STYLE
from rl_lab.envs.tabular.mdp import MDP, Layout
from rl_lab.looking.panels import in_rows, titled
from rl_lab.looking.pictures import Board
from rl_lab.wanted.reward_design import Belief
from rl_lab.wanted.tables import as_table, rewarded

WIDE = 1_100  # pixels: of a row of maps


def by_cell(mdp: MDP) -> Tensor:
    """[S], what being in a cell is worth: paid on leaving it, whatever is done, or else on average on entering it."""
    table = as_table(mdp, "state")
    error = (rewarded(mdp, table, "state").reward - mdp.reward).mul(mdp.probability > 0).abs().max()
    return table if error < 1e-9 else as_table(mdp, "entered")


def board(layout: Layout, mdp: MDP, shade: Tensor, policy: Tensor | None, word: str) -> Image.Image:
    """A map with a number [S] in every cell, ends included, and arrows of a policy [S, A]."""
    plain = layout._replace(ends=frozenset(), cell_reward={}, jumps={})
    bars = None if policy is None else policy.where(~mdp.terminal[:, None], 0.0).numpy()
    return Board(plain, mdp.actions, shade.numpy(), bars, word=word).picture


def inferred(mdp: MDP, reward: MDP | None, demonstrated: Tensor, policy: Tensor) -> dict[str, Image.Image]:
    """`wanted`: the true reward, the inferred one and its plan; `seen`: where the demonstrations went."""
    layout = mdp.layout
    assert layout is not None
    map = board(layout, mdp, demonstrated, policy, "steps")
    seen = titled(map, "demonstrated", "steps in an episode, and the policy learned")
    if reward is None:
        return {"seen": seen}
    pages = [
        titled(board(layout, mdp, by_cell(mdp), None, "reward"), "true reward", "what the world pays"),
        titled(board(layout, mdp, by_cell(reward), policy, "reward"), "inferred reward", "and the best policy for it"),
    ]
    return {"wanted": in_rows(pages, WIDE), "seen": seen}


WORDS = {
    "written for": "the proxy's way where it was written",
    "as written": "the proxy's way here",
    "maximin": "the best of the worst that may have been meant",
    "mean": "the best for the mean of what may have been meant",
    "literal": "the proxy's way here",
}


def plans(of: Mapping[str, tuple[MDP, Tensor]]) -> Image.Image:
    """Where each plan goes: its world and discounted visits [S] by name."""
    pages = []
    for name, (mdp, visited) in of.items():
        assert mdp.layout is not None
        shade = visited.clamp(max=1).numpy()  # a target that holds who enters would outshine the way to it
        picture = Board(mdp.layout, mdp.actions, shade, None, word="visits").picture
        pages.append(titled(picture, name, WORDS.get(name, "")))
    return in_rows(pages, 1_600)


def posterior(letters: Sequence[str], belief: Belief) -> Image.Image:
    """For each letter how likely each weight is, beside the prior."""
    from matplotlib import rc_context  # here, as matplotlib takes long to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = STYLE | {"font.size": 11}
    with rc_context(style):
        figure = Figure((2.4 * len(letters), 2.6), dpi=110, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(letters), sharey=True, squeeze=False)[0]
        for axis, letter, weights in zip(axes, letters, belief.weights.T, strict=True):
            values, place = weights.unique(return_inverse=True)
            share = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, belief.posterior)
            axis.bar(range(len(values)), share.numpy(), color=COLORS[0], label="posterior")
            axis.plot(range(len(values)), [1 / len(values)] * len(values), color=COLORS[1], label="prior")
            axis.set_xticks(range(len(values)), [f"{v:g}" for v in values.tolist()], rotation=60)
            axis.set_title(f"weight of {letter}")
        axes[0].set_ylabel("probability")
        axes[0].legend(frameon=False)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
