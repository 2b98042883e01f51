"""Literal numbers, worked by hand."""

import pytest
import torch
from stated import stated
from torch import tensor

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.core import distributed
from rl_lab.core.randomness import generator

Linear = stated("agent/dqn", "epsilon")


def test_huber_clips_the_gradient_of_the_error():
    error = tensor([-3.0, -0.5, 0.25, 2.0], requires_grad=True)
    loss = losses.huber(error)
    torch.testing.assert_close(loss, tensor([2.5, 0.125, 0.03125, 1.5]))
    loss.sum().backward()
    torch.testing.assert_close(error.grad, tensor([-1.0, -0.5, 0.25, 1.0]))


def test_policy_gradient_and_entropy():
    logits = torch.zeros(1, 4, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    loss = losses.policy_gradient(losses.pick(log_probs, tensor([2])), tensor([3.0]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, tensor([[0.75, 0.75, -2.25, 0.75]]))  # -A (onehot - pi)
    assert losses.entropy(log_probs).item() == pytest.approx(1.3862944)


def test_the_clipped_policy_gradient_by_hand():
    """Ratios 1.5 and .5, clip .2, advantages +2 and -2: min(1.5 A, 1.2 A) and so on; no gradient where clipped."""
    ratio, advantage = tensor([1.5, 1.5, 0.5, 0.5, 1.1]), tensor([2.0, -2.0, 2.0, -2.0, 3.0])
    log_prob = (ratio.log() - 1.0).requires_grad_()
    loss = losses.clipped_policy_gradient(log_prob, torch.full((5,), -1.0), advantage, 0.2)
    torch.testing.assert_close(loss, tensor([-2.4, 3.0, -1.0, 1.6, -3.3]))
    loss.sum().backward()
    torch.testing.assert_close(log_prob.grad, tensor([0.0, 3.0, -1.0, 0.0, -3.3]))


def test_the_clipped_value_error_by_hand():
    """A value that acted as 1 and is now 2, held within .5: target 3 gives max(1, 2.25), target 1 gives max(1, .25)."""
    value = tensor([2.0, 2.0]).requires_grad_()
    loss = losses.clipped_value(value, tensor([1.0, 1.0]), tensor([3.0, 1.0]), 0.5)
    torch.testing.assert_close(loss, tensor([2.25, 1.0]))
    loss.sum().backward()
    torch.testing.assert_close(value.grad, tensor([0.0, 2.0]))
    free = losses.clipped_value(tensor([2.0]), tensor([1.0]), tensor([4.0]), float("inf"))
    torch.testing.assert_close(free, tensor([4.0]))


def test_standardised_by_hand():
    torch.testing.assert_close(distributed.standardised(tensor([[1.0, 2.0], [3.0, 4.0]])),
                               tensor([[-1.5, -0.5], [0.5, 1.5]]) / 1.2909944)  # fmt: skip
    assert distributed.standardised(tensor([7.0])).item() == 7.0


def test_the_future_is_discounted_by_every_primitive_step():
    found = returns.discounts(0.5, tensor([1.0, 1.0, 0.0, 1.0]), tensor([1.0, 3.0, 2.0, 2.0]))
    assert found.tolist() == [0.5, 0.125, 0.0, 0.25]
    assert returns.discounts(0.99, tensor([1.0]), tensor([1.0])).equal(tensor([0.99]))


def test_lambda_returns_literal():
    r, discount = tensor([1.0, 2.0, 3.0]), tensor([0.5, 0.5, 0.5])
    last, v = tensor([False, False, False]), tensor([10.0, 20.0, 30.0])
    # lambda 1: 3 + .5*30 = 18; 2 + .5*18 = 11; 1 + .5*11 = 6.5
    torch.testing.assert_close(returns.lambda_returns(r, discount, last, v, 1.0), tensor([6.5, 11.0, 18.0]))
    # lambda 0: one-step targets
    torch.testing.assert_close(returns.lambda_returns(r, discount, last, v, 0.0), tensor([6.0, 12.0, 18.0]))
    # lambda .5: 18; 2 + .5*(10 + 9) = 11.5; 1 + .5*(5 + 5.75) = 6.375
    torch.testing.assert_close(returns.lambda_returns(r, discount, last, v, 0.5), tensor([6.375, 11.5, 18.0]))


def test_returns_stop_at_an_episodes_end():
    r, v = tensor([1.0, 2.0, 3.0]), tensor([10.0, 20.0, 30.0])
    terminated = returns.discounted_returns(r, tensor([0.9, 0.0, 0.9]), tensor([False, True, False]), v)
    torch.testing.assert_close(terminated, tensor([1 + 0.9 * 2, 2.0, 3 + 0.9 * 30]))
    truncated = returns.discounted_returns(r, tensor([0.9, 0.9, 0.9]), tensor([False, True, False]), v)
    torch.testing.assert_close(truncated, tensor([1 + 0.9 * (2 + 0.9 * 20), 2 + 0.9 * 20, 3 + 0.9 * 30]))
    other = returns.discounted_returns(
        tensor([1.0, 2.0, 99.0]), tensor([0.9, 0.9, 0.9]), tensor([False, True, False]), v
    )
    torch.testing.assert_close(other[:2], truncated[:2])  # a reward after a reset moves nothing before it


def test_linear_schedule():
    assert [Linear(1.0, 0.2, 100)(t) for t in (0, 50, 100, 999)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_epsilon_greedy_explores_at_its_rate_and_breaks_ties_at_random():
    rng = generator(0, torch.device("cpu"))
    q = tensor([[0.0, 1.0, 0.0, 0.0]]).expand(40_000, -1)
    share = (exploration.epsilon_greedy(q, 0.4, rng) == 1).float().mean().item()
    assert share == pytest.approx(0.6 + 0.1, abs=4 * (0.21 / 40_000) ** 0.5)
    ties = exploration.epsilon_greedy(torch.zeros(40_000, 4), 0.0, rng).bincount(minlength=4) / 40_000
    torch.testing.assert_close(ties, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_sample_follows_the_probabilities():
    p = tensor([0.1, 0.2, 0.7])
    drawn = exploration.sample(p.log().expand(50_000, -1), generator(1, torch.device("cpu")))
    torch.testing.assert_close(drawn.bincount(minlength=3) / 50_000, p, atol=0.009, rtol=0)
