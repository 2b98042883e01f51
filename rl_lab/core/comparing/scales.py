"""Scores that may be averaged over tasks: 0 and 1 mean the same in each of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rl_lab.core.comparing.groups import Groups
from rl_lab.core.comparing.statistics import Numbers, iqm
from rl_lab.core.errors import UserError
from rl_lab.core.metrics import Metric, is_lower_better

# Returns of a random policy and of a human tester after up to 30 no-ops (Mnih et al., 2015), for the 57 games of
# Wang et al., 2016, appendix; https://arxiv.org/abs/1511.06581
ATARI = {
    "alien": (227.8, 7127.7), "amidar": (5.8, 1719.5), "assault": (222.4, 742.0), "asterix": (210.0, 8503.3),
    "asteroids": (719.1, 47388.7), "atlantis": (12850.0, 29028.1), "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5), "beam_rider": (363.9, 16926.5), "berzerk": (123.7, 2630.4),
    "bowling": (23.1, 160.7), "boxing": (0.1, 12.1), "breakout": (1.7, 30.5), "centipede": (2090.9, 12017.0),
    "chopper_command": (811.0, 7387.8), "crazy_climber": (10780.5, 35829.4), "defender": (2874.5, 18688.9),
    "demon_attack": (152.1, 1971.0), "double_dunk": (-18.6, -16.4), "enduro": (0.0, 860.5),
    "fishing_derby": (-91.7, -38.7), "freeway": (0.0, 29.6), "frostbite": (65.2, 4334.7), "gopher": (257.6, 2412.5),
    "gravitar": (173.0, 3351.4), "hero": (1027.0, 30826.4), "ice_hockey": (-11.2, 0.9), "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0), "krull": (1598.0, 2665.5), "kung_fu_master": (258.5, 22736.3),
    "montezuma_revenge": (0.0, 4753.3), "ms_pacman": (307.3, 6951.6), "name_this_game": (2292.3, 8049.0),
    "phoenix": (761.4, 7242.6), "pitfall": (-229.4, 6463.7), "pong": (-20.7, 14.6), "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0), "riverraid": (1338.5, 17118.0), "road_runner": (11.5, 7845.0), "robotank": (2.2, 11.9),
    "seaquest": (68.4, 42054.7), "skiing": (-17098.1, -4336.9), "solaris": (1236.3, 12326.7),
    "space_invaders": (148.0, 1668.7), "star_gunner": (664.0, 10250.0), "surround": (-10.0, 6.5),
    "tennis": (-23.8, -8.3), "time_pilot": (3568.0, 5229.2), "tutankham": (11.4, 167.6), "up_n_down": (533.4, 11693.2),
    "venture": (0.0, 1187.5), "video_pinball": (16256.9, 17667.9), "wizard_of_wor": (563.5, 4756.5),
    "yars_revenge": (3092.9, 54576.9), "zaxxon": (32.5, 9173.3),
}  # fmt: skip


class Scale(NamedTuple):
    """What stands for 0 and what for 1 in one task."""

    zero: float = 0.0
    one: float = 1.0

    def __call__(self, score: ArrayLike) -> Numbers:
        return (np.asarray(score, float) - self.zero) / (self.one - self.zero)

    def raw(self, score: float) -> float:
        return self.zero + score * (self.one - self.zero)


def scales(tasks: dict[str, Groups], metric: str, kind: str | None, notes: list[str]) -> tuple[dict[str, Scale], str]:
    """A scale for each task that has one, and what it means in words ("": raw scores of a single task).

    kind None: raw for one task; for several `atari` if all are games of the table, else `range`.
    """
    if kind is None and len(tasks) == 1:
        return dict.fromkeys(tasks, Scale()), ""
    known = all(_game(task) in ATARI for task in tasks.values()) and metric.endswith("/return")
    if kind == "atari" or (kind is None and known):
        return {name: _human(name, task, metric) for name, task in tasks.items()}, (
            "human-normalised: 0 is a random policy, 1 a human tester (Wang et al., 2016)"
        )
    found = {name: observed(task, metric) for name, task in tasks.items()}
    for name in (name for name, scale in found.items() if scale is None):
        notes.append(f"{name} is left out of the aggregates: no group ends better than the worst begins.")
    one = "the optimum" if Metric.of(metric).known.optimum is not None else "that of the best group at its last row"
    return {name: scale for name, scale in found.items() if scale}, (
        f"normalised in each task: 0 is the interquartile mean of the worst group at its first row, 1 {one}"
    )


def _game(task: Groups) -> str | None:
    return next(iter(task.values()))[0].settings.get("env.game")


def _human(name: str, task: Groups, metric: str) -> Scale:
    if not metric.endswith("/return"):
        raise UserError(
            f"normalise=atari is for returns, not for {metric}; choose normalise=range or metric=eval/return"
        )
    game = _game(task)
    if game is None:
        raise UserError(f"normalise=atari: {name} is not an Atari game; choose normalise=range")
    if game not in ATARI:
        raise UserError(f"normalise=atari: {game} has no human score; choose normalise=range")
    return Scale(*ATARI[game])


def ends(task: Groups, metric: str) -> tuple[float, float]:
    """Interquartile means over seeds: the worst group's first value, the best group's last."""
    worst, best = (max, min) if is_lower_better(metric) else (min, max)
    curves = [[run.curves[metric].values for run in runs] for runs in task.values()]
    return worst(iqm([c[0] for c in group]) for group in curves), best(iqm([c[-1] for c in group]) for group in curves)


def observed(task: Groups, metric: str) -> Scale | None:
    """From the worst group's first value to the best group's last, or to a known optimum; None if no group improved."""
    first, final = ends(task, metric)
    if final >= first if is_lower_better(metric) else final <= first:
        return None
    optimum = Metric.of(metric).known.optimum
    return Scale(first, final if optimum is None else optimum)
