"""Handwritten digits of 8 x 8 pixels and 17 grey levels (Alpaydin & Kaynak, 1998), in scikit-learn: no download."""

from typing import Literal

import torch

from gen_lab.data.images import CPU, Images
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator
from rl_lab.core.settings import Count


def digits(*, protocol: Literal["binarised", "levels"], train: Count) -> Images:
    """The first `train` of the 1,797, shuffled, to train on and the others to test, with their labels.

    `binarised` is 1 where the level is 8 or more; `levels` keeps all 17.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    if train >= len(loaded.target):
        raise UserError(f"data.train={train} leaves nothing to test on: there are {len(loaded.target)} digits")
    order = torch.randperm(len(loaded.target), generator=generator(0, CPU))
    pixels = torch.from_numpy(loaded.images).to(torch.uint8).unsqueeze(1)[order]
    labels = torch.from_numpy(loaded.target).long()[order]
    if protocol == "binarised":
        pixels = (pixels >= 8).to(torch.uint8)
    levels = 2 if protocol == "binarised" else 17
    name = f"digits-{protocol}" + ("" if train == 1_500 else f"-{train}")
    return Images(name, pixels[:train], pixels[train:], levels, labels[:train], labels[train:], 10)
