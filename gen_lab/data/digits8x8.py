"""Handwritten digits of 8 x 8 pixels and 17 grey levels (Alpaydin & Kaynak, 1998), in scikit-learn: no download."""

from typing import Literal

import torch

from gen_lab.data.images import CPU, Images
from rl_lab.core.learner import generator


def digits(*, protocol: Literal["binarised", "levels"]) -> Images:
    """1,500 to train on, 297 to test, with their labels.

    `binarised` is 1 where the level is 8 or more; `levels` keeps all 17.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=generator(0, CPU))
    pixels = torch.from_numpy(loaded.images).to(torch.uint8).unsqueeze(1)[order]
    labels = torch.from_numpy(loaded.target).long()[order]
    if protocol == "binarised":
        pixels = (pixels >= 8).to(torch.uint8)
    levels = 2 if protocol == "binarised" else 17
    return Images(f"digits-{protocol}", pixels[:1500], pixels[1500:], levels, labels[:1500], labels[1500:], 10)
