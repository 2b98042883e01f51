"""What a discriminator and a generator lose to each other, from logits; and what keeps a critic's slope at 1.

A logit is the log odds of "real"; hinge and Wasserstein take it as a score without a scale. Shapes: B batch.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["minimax", "non_saturating", "hinge", "wasserstein"]


def discriminator_loss(loss: Loss, real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """[B] of the logits of real and of generated images, [B] each; minimax and non_saturating differ in G alone.

    These two are -log D(x) - log(1 - D(G(z))) (Goodfellow et al., 2014, eq. 1), least at D = p_real / (p_real +
    p_fake). One-sided `smoothing` has D say "real" with 1 - smoothing only (Salimans et al., 2016, section 3.4).
    """
    match loss:
        case "hinge":  # Lim & Ye (2017)
            return F.relu(1 - real) + F.relu(1 + fake)
        case "wasserstein":  # Arjovsky et al. (2017), eq. 2: minus the distance, where slopes are at most 1
            return fake - real
        case _:
            return (1 - smoothing) * F.softplus(-real) + smoothing * F.softplus(real) + F.softplus(fake)


def generator_loss(loss: Loss, fake: Tensor) -> Tensor:
    """[B] of the logits [B] of generated images.

    `minimax` is log(1 - D(G(z))), flat where D is sure of itself; `non_saturating`, -log D(G(z)), is steep there.
    """
    match loss:
        case "minimax":
            return -F.softplus(fake)
        case "non_saturating":
            return F.softplus(-fake)
        case _:
            return -fake


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """(|slope| - 1)^2 [B] at a random point between each real image and its fake one, both [B, C, H, W].

    The slope is the gradient of one image's score with respect to all of that image, so a critic must score each
    image alone: no batch norm. See Gulrajani et al. (2017), eq. 3.
    """
    share = torch.rand(len(real), 1, 1, 1, generator=generator, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake, real, share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square()
