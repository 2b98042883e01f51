"""How two sets of feature vectors [N, F] differ, in float64 and in blocks: no matrix of all pairs ever exists.

Where the order matters, the first set is the reference (the data) and the second what is evaluated (the samples).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

AT_ONCE = 2**22  # pairs in a block: 32 MB
EQUAL = 1e-10  # of a squared norm: smaller squared distances are the rounding of equal images' float32 features
EDGE = 1 + 1e-6  # of a squared radius, so that the neighbour it reaches lies within, however features are rounded
TYPICAL = 1_000  # vectors that the bandwidth of `mmd` is taken from


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance [] of the Gaussians with the moments of both; see Heusel et al. (2017), eq. 6.

    Biased upwards in few vectors: compare it only with that of as many.
    """
    a, b = a.double(), b.double()
    return gaussian_frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


def gaussian_frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) [], of means [F] and covariances [F, F].

    A B and A^1/2 B A^1/2 have the same eigenvalues, and the latter is symmetric: nothing imaginary can appear.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross


def kernel_distance(a: Tensor, b: Tensor) -> Tensor:
    """The squared maximum mean discrepancy [] under (x . y / F + 1)^3: KID (Binkowski et al., 2018), unbiased."""
    return squared_mmd(a.double(), b.double(), lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3)


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """The squared maximum mean discrepancy [] under exp(-|x - y|^2 / 2 s^2), unbiased; see Gretton et al. (2012).

    The bandwidth s is the median distance within the reference alone, so that the figures of models compare, of those
    that are not the same.
    """
    a, b = a.double(), b.double()
    some = a[:TYPICAL]
    apart = squared_distances(some, some)[~torch.eye(len(some), dtype=torch.bool, device=a.device)]
    precision = 1 / apart[apart > 0].median() if apart.any() else 1.0
    return squared_mmd(a, b, lambda x, y: (-0.5 * precision * squared_distances(x, y)).exp())


Kernel = Callable[[Tensor, Tensor], Tensor]  # x [M, F], y [N, F] -> [M, N]


def squared_mmd(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    """Its unbiased estimate [], which can fall below 0; see Gretton et al. (2012), eq. 3."""
    return mean_kernel(kernel, a) + mean_kernel(kernel, b) - 2 * mean_kernel(kernel, a, b)


def mean_kernel(kernel: Kernel, a: Tensor, b: Tensor | None = None) -> Tensor:
    """Over all pairs of one vector each; of one set alone, over all pairs of two different ones."""
    total, start, others = a.new_zeros(()), 0, a if b is None else b
    for rows in blocks(a, len(others)):
        values = kernel(rows, others)
        total += values.sum() - (values.diagonal(start).sum() if b is None else 0)
        start += len(rows)
    return total / (len(a) * (len(a) - 1 if b is None else len(b)))


def precision_recall_density_coverage(reference: Tensor, samples: Tensor, k: int = 5) -> dict[str, Tensor]:
    """Four shares [], from balls around each vector that just reach its k-th neighbour in its own set.

    Precision: of samples within some ball of the reference; recall: of the reference within some ball of the samples
    (Kynkaanniemi et al., 2019). Density: how many balls of the reference hold a sample, over k, which may pass 1;
    coverage: of the reference's balls that hold any sample (Naeem et al., 2020).
    """
    reference, samples = reference.double(), samples.double()
    reach, samples_reach = radii(reference, k), radii(samples, k)
    precise, held, start = reach.new_zeros(()), reach.new_zeros(()), 0
    recalled = covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows in blocks(samples, len(reference)):
        squared = squared_distances(rows, reference)
        inside = squared <= reach  # [M, N]: sample m in the ball of n
        precise, held, covered = precise + inside.any(1).sum(), held + inside.sum(), covered | inside.any(0)
        recalled = recalled | (squared <= samples_reach[start : start + len(rows), None]).any(0)
        start += len(rows)
    return {
        "precision": precise / len(samples),
        "recall": recalled.double().mean(),
        "density": held / (k * len(samples)),
        "coverage": covered.double().mean(),
    }


def radii(x: Tensor, k: int) -> Tensor:
    """The squared distance [N], and a trifle, from each vector to its k-th neighbour, itself not counted."""
    near = [squared_distances(rows, x).topk(k + 1, dim=1, largest=False).values for rows in blocks(x, len(x))]
    return torch.cat(near)[:, -1] * EDGE


def nearest(samples: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's distance to the closest training image, and which one that is, both [N]."""
    samples, train = samples.double(), train.double()
    squared, index = zip(*(squared_distances(x, train).min(1) for x in blocks(samples, len(train))), strict=True)
    return torch.cat(squared).sqrt(), torch.cat(index)


def memorised(distances: Tensor, held_out: Tensor) -> Tensor:
    """The share [] of samples as close to a training image as one in twenty held-out images is, or closer.

    From the distances of samples [N] and of held-out images [M] to their nearest: about 0.05 where nothing is
    memorised, 1 where everything is.
    """
    return (distances <= held_out.quantile(0.05)).double().mean()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[M, N] of x [M, F] and y [N, F]; exactly 0 between equal vectors."""
    norms = x.square().sum(1, keepdim=True)
    squared = (norms + y.square().sum(1)).addmm_(x, y.T, alpha=-2)
    return squared.masked_fill_(squared < EQUAL * norms, 0)


def blocks(x: Tensor, width: int) -> Iterator[Tensor]:
    """x [N, F] in parts [M, F], M times `width` within bounds; the last part may be shorter."""
    return iter(x.split(max(1, AT_ONCE // width)))
