"""RMSProp as TensorFlow computes it, which the published A2C results rest on."""

import torch

from rl_lab.core.settings import NonNegative, Positive, Unit


class RMSpropTF(torch.optim.Optimizer):
    """s <- alpha s + (1 - alpha) g^2 from s = 1; p <- p - lr g / sqrt(s + eps).

    torch's own starts from s = 0 and adds eps outside the root, which takes far larger first steps. See the
    reference implementation of A2C in OpenAI Baselines.
    """

    def __init__(self, params, lr: Positive, alpha: Unit = 0.99, eps: NonNegative = 1e-5):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            squares = [self.state[p].setdefault("square", torch.ones_like(p)) for p in parameters]
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(parameters, gradients, roots, -group["lr"])
