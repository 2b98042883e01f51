"""Inverse reward design over random lavalands: python tests/bench/reward_design.py

30 maps of 8 x 8, a quarter lava, 15 % grass, each with a way around; what plans are truly worth, and how often they
meet lava. Prints a table, mean and standard error.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import label

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

from rl_lab.planning.soft import dynamics
from rl_lab.wanted.reward_design import (
    behaviours,
    believe,
    best_policies,
    entered,
    hypotheses,
    letter_features,
    maximin,
)

LETTERS = ["d", "g", "T", "L"]


def lavaland(rng: np.random.Generator) -> str:
    while True:
        cells = rng.choice(list("Lgd"), 64, p=[0.25, 0.15, 0.6])
        start, target = rng.choice(64, 2, replace=False)
        cells[start], cells[target] = "S", "T"
        regions, _ = label(cells.reshape(8, 8) != "L")
        if regions.flat[start] == regions.flat[target]:
            return "\n".join(map("".join, cells.reshape(8, 8)))


def main(maps: int = 30, beta: float = 5.0, samples: int = 20) -> None:
    training, world = stated("planner/reward_design", "training")(), stated("env/lavaland", "mdp")
    weights = hypotheses([-2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.5, 2.0], 4)
    truth, proxy = torch.tensor([[-0.1, -0.5, 2.0, -2.0], [-0.1, -0.5, 2.0, 0.0]], dtype=torch.float64)
    behaviour = behaviours(letter_features(training, LETTERS, "d"), weights, dynamics(training, 0.95))
    belief, rng = believe(weights, behaviour, proxy, beta), np.random.default_rng(0)
    rows = {name: [] for name in ("the truth", "the proxy", "the posterior mean", "maximin, no base", "maximin")}
    for number in range(maps):
        mdp = world(map=lavaland(rng))
        away, phi = dynamics(mdp, 0.95), letter_features(mdp, LETTERS, "d")
        some = weights[
            torch.multinomial(belief.posterior, samples, True, generator=torch.Generator().manual_seed(number))
        ]
        plans = [best_policies(phi, w[None], away)[0] for w in (truth, proxy, belief.posterior @ weights)]
        plans += [maximin(phi, some, base, away)[0] for base in (torch.zeros(samples).double(), some @ belief.proxy)]
        for name, policy in zip(rows, plans, strict=True):
            found = entered(policy, phi, away)
            rows[name].append((float(truth @ found), float(found[3])))
    print("| planned for | true value | lava entered, discounted |\n|---|---|---|")
    for name, found in rows.items():
        value, lava = np.array(found).T
        print(f"| {name} | {value.mean():.2f} ± {value.std(ddof=1) / maps**0.5:.2f} | {lava.mean():.2f} |")


if __name__ == "__main__":
    main()
