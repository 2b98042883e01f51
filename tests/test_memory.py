"""The replay against a plain list of transitions."""

import pytest
import torch

from rl_lab.core.errors import UserError
from rl_lab.memory import Replay
from rl_lab.types import Transition

CPU = torch.device("cpu")


def transitions(n: int, first: int) -> Transition:
    x = torch.arange(first, first + n).float()
    return Transition(x[:, None], x.long(), x, torch.ones(n), x.long() % 2 == 0, x[:, None] + 1)


def test_ring_holds_the_newest():
    replay, seen = Replay(10, seed=0, device=CPU), []
    for i in range(7):
        replay.add(transitions(3, 3 * i))
        seen += range(3 * i, 3 * i + 3)
        batch = replay.sample(500)
        assert set(batch.reward.long().tolist()) == set(seen[-10:])
        torch.testing.assert_close(batch.next_obs, batch.obs + 1)
        torch.testing.assert_close(batch.obs[:, 0], batch.reward)
        assert torch.equal(batch.last, batch.action % 2 == 0)


def test_sampling_is_uniform():
    replay = Replay(8, seed=0, device=CPU)
    replay.add(transitions(8, 0))
    counts = replay.sample(80_000).reward.long().bincount(minlength=8)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert chi_square < 24.3  # 99.9 % point of chi-square with 7 degrees of freedom


def test_a_restored_replay_goes_on_as_if_nothing_happened():
    one = Replay(10, seed=0, device=CPU)
    for i in range(5):
        one.add(transitions(3, 3 * i))
    two = Replay(10, seed=9, device=CPU)
    two.load_state_dict(one.state_dict())
    for replay in (one, two):
        replay.add(transitions(3, 100))
    assert all(torch.equal(a, b) for a, b in zip(one.sample(64), two.sample(64), strict=True))


def test_a_replay_of_another_capacity_is_refused():
    one = Replay(10, seed=0, device=CPU)
    for i in range(5):
        one.add(transitions(3, 3 * i))
    with pytest.raises(ValueError, match="does not fit capacity 8"):
        Replay(8, seed=0, device=CPU).load_state_dict(one.state_dict())


def test_more_environments_than_slots_is_a_users_mistake():
    with pytest.raises(UserError, match="agent.replay.capacity=2 is impossible: 3 environments step at once"):
        Replay(2, seed=0, device=CPU).add(transitions(3, 0))
