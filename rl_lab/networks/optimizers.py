"""RMSProp in the forms that published results rest on; torch's own is neither of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl_lab.core.settings import NonNegative, Positive, Unit


class RMSpropTF(torch.optim.Optimizer):
    """s <- alpha s + (1 - alpha) g^2 from s = 1; p <- p - lr g / sqrt(s + eps).

    torch's own starts from s = 0 and adds eps outside the root, which takes far larger first steps. See the
    reference implementation of A2C in OpenAI Baselines.
    """

    capturable = True

    def __init__(self, params, *, lr: Positive, alpha: Unit, eps: NonNegative):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # a closure, which nobody here gives
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            squares = _kept(self, "square", parameters, torch.ones_like)
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            _follow(parameters, gradients, roots, group["lr"])


class CentredRMSprop(torch.optim.Optimizer):
    """g <- decay g + (1 - decay) d, s <- decay s + (1 - decay) d^2; p <- p - lr d / sqrt(s - g^2 + eps), from zeros.

    The form of Graves (2013, eq. 38 to 41) that Mnih et al. (2015) used, but on the mean gradient over a batch of B:
    on the sum, as theirs, eps is B^2 times as large for the same steps.
    """

    capturable = True

    def __init__(self, params, *, lr: Positive, decay: Unit, eps: Positive):
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # a closure, which nobody here gives
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            means, squares = (_kept(self, name, parameters, torch.zeros_like) for name in ("mean", "square"))
            torch._foreach_lerp_(means, gradients, 1 - group["decay"])
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["decay"])
            roots = torch._foreach_addcmul(squares, means, means, -1)
            torch._foreach_clamp_min_(roots, 0.0)  # a variance, which rounding may take below
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_sqrt_(roots)
            _follow(parameters, gradients, roots, group["lr"])


def _kept(
    optimizer: torch.optim.Optimizer, name: str, parameters: list[Tensor], first: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What the optimizer's state holds of each by this name, from the first step on."""
    states = [optimizer.state[p] for p in parameters]
    for p, state in zip(parameters, states, strict=True):
        if name not in state:
            state[name] = first(p)
    return [state[name] for state in states]


def _follow(parameters: list[Tensor], gradients: list[Tensor], roots: tuple[Tensor, ...], lr: float | Tensor) -> None:
    """p <- p - lr g / root; a rate that is a tensor is read on its device (see rl_lab.core.graphs)."""
    if isinstance(lr, Tensor):
        steps = torch._foreach_div(gradients, roots)
        torch._foreach_mul_(steps, lr)
        torch._foreach_sub_(parameters, steps)
    else:
        torch._foreach_addcdiv_(parameters, gradients, roots, -lr)
