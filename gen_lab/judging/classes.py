"""Which classes of the data a classifier sees in samples, and how often."""

import torch
from torch import Tensor

COVERED = 0.5  # of a class's share in the data; less may be what a classifier takes for it by mistake


def class_coverage(samples: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """From the classes [N] and [M] that a classifier sees in samples and in the data.

    `classes_covered`: how many of the data's classes are at least half as frequent in the samples;
    `class_kl_nats`: KL(samples || data) of their shares, 0 where all are as frequent, ln K where one of K is all.
    """
    count = 1 + int(torch.cat([samples, reference]).max())
    p, q = (x.bincount(minlength=count).double() / len(x) for x in (samples, reference))
    q = q.clamp(min=1 / (2 * len(reference)))  # of classes that only samples show: half an image
    covered = ((p >= COVERED * q) & (reference.bincount(minlength=count) > 0)).sum()
    return {"classes_covered": covered, "class_kl_nats": (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()}
