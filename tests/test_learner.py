"""The step that every optimizer takes, against torch's own functions, bit for bit."""

import math
from functools import partial

import pytest
import torch

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, build_optimizer, descend


@pytest.mark.parametrize("max_norm", [math.inf, 1e3, 5.0, 5.0 - 1e-7, 0.1])
def test_a_step_is_that_of_torch(max_norm):
    """A gradient of norm 5: beyond the bound it is scaled, below it left alone, and so it is right at the bound."""
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    one, other = (torch.optim.Adam([p], lr=0.1, eps=0.1) for p in (ours, theirs))
    for _ in range(3):
        norm = descend(one, (ours * torch.tensor([3.0, 4.0])).sum(), max_norm)
        other.zero_grad()
        (theirs * torch.tensor([3.0, 4.0])).sum().backward()
        expected = torch.nn.utils.clip_grad_norm_([theirs], max_norm)
        other.step()
        assert norm == expected == 5.0 and torch.equal(ours.grad, theirs.grad) and torch.equal(ours, theirs)


def test_gradients_do_not_add_up_and_what_is_not_finite_is_no_step():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.5)
    for expected in (0.5, 0.0):
        assert descend(optimizer, (2 * p).sum(), 1.0) == 2.0
        assert p.item() == pytest.approx(expected, abs=1e-6)
    assert descend(optimizer, (p * math.inf).sum()).isinf() and p.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            torch.optim.LBFGS,
            "optimizer: LBFGS cannot learn here, from one dense gradient a step; choose torch.optim.Adam",
        ),
        (torch.optim.SparseAdam, "optimizer: SparseAdam cannot learn here"),
        (partial(torch.optim.Adam, foreach=True, fused=True), "optimizer: `fused` and `foreach` cannot be `True`"),
        (partial(torch.optim.Adam, lr=-1.0), "optimizer: Invalid learning rate: -1.0"),
        (partial(torch.optim.Adam, lr=math.inf), "optimizer: the learning rate lr=inf must be a finite number"),
        (
            partial(torch.optim.Adam, capturable=True),
            "optimizer: Adam as it is set cannot take a step here: If capturable",
        ),
        (
            partial(torch.optim.Adam, differentiable=True),
            "optimizer: Adam as it is set cannot take a step here: a leaf",
        ),
    ],
)
def test_what_cannot_learn_is_refused(optimizer, words):
    with pytest.raises(UserError, match=words):
        build_optimizer(optimizer, [torch.nn.Parameter(torch.ones(1))])


class Fitted(Learner):
    saved = "network", "optimizer"

    def __init__(self, optimizer):
        self.network = torch.nn.Linear(2, 1)
        self.optimizer = build_optimizer(optimizer, self.network.parameters())

    def learn(self) -> "Fitted":
        descend(self.optimizer, self.network(torch.ones(1, 2)).sum())
        return self


ADAM = torch.optim.Adam


@pytest.mark.parametrize(
    "optimizer", [torch.optim.RMSprop, torch.optim.Adamax, torch.optim.Adagrad, partial(ADAM, amsgrad=True)]
)
def test_moments_of_another_optimizer_are_not_taken_up(optimizer):
    state = Fitted(ADAM).learn().state_dict()
    with pytest.raises((ValueError, KeyError)):
        Fitted(optimizer).load_state_dict(state)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (ADAM, partial(ADAM, lr=0.5, betas=(0.5, 0.9))),
        (ADAM, partial(ADAM, fused=True)),
        (torch.optim.Adafactor, torch.optim.Adafactor),
        (partial(torch.optim.SGD, momentum=0.9), partial(torch.optim.SGD, momentum=0.5)),
        (torch.optim.SGD, partial(torch.optim.SGD, lr=0.5)),
    ],
)
def test_those_of_its_own_are_with_other_hyperparameters(before, now):
    learner = Fitted(now)
    learner.load_state_dict(Fitted(partial(before, lr=0.1)).learn().state_dict())
    learner.learn()
    assert all(p.isfinite().all() for p in learner.network.parameters())
    wanted = (
        now.keywords["lr"]
        if isinstance(now, partial) and "lr" in now.keywords
        else Fitted(now).optimizer.defaults["lr"]
    )
    assert learner.optimizer.param_groups[0]["lr"] == wanted
