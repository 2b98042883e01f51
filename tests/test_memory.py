"""The replay against a plain list of transitions, and prioritised sampling against its formula."""

import itertools
import math
import os
import random
from functools import partial

import pytest
import torch
from stated import stated
from tiers import later
from torch import Tensor
from transitions import transition

from rl_lab.core.errors import UserError
from rl_lab.memory import replay as memory
from rl_lab.memory.priorities import SumTree
from rl_lab.memory.rollouts import take
from rl_lab.returns import discounts
from rl_lab.types import Spec, Transition

Atari = stated("env/atari")
Linear = stated("agent/dqn", "epsilon")
Priorities = stated("agent/rainbow", "replay.priorities")
Replay = stated("agent/dqn", "replay")

CPU = torch.device("cpu")
ORDINARY, TERMINATED, TRUNCATED, LIFE_LOST = (1.0, False), (0.0, True), (1.0, True), (0.0, False)
GAMMA, CLIP = 0.5, 2.0  # sums of halves are exact


class World:
    """N streams of stacks of k frames, no two frames alike, whose episodes end at random in every way."""

    def __init__(self, num_envs: int, k: int, truncated: float, seed: int = 0):
        self.n, self.k, self.rng, self.fresh = num_envs, k, random.Random(seed), itertools.count(1)
        self.weights = [0.8 - truncated, 0.1, truncated, 0.1]
        self.stacks = [[self.frame() for _ in range(k)] for _ in range(num_envs)]  # begun before the replay looked
        self.steps = [[] for _ in range(num_envs)]  # of each env: (stack, action, reward, discount, last, next stack)

    def frame(self) -> list[float]:
        number = next(self.fresh)
        return [float(number), -float(number)]

    def begin(self, i: int) -> None:
        self.stacks[i] = [[0.0, 0.0]] * (self.k - 1) + [self.frame()]

    def step(self) -> Transition:
        for i in range(self.n):
            (discount, last), = self.rng.choices([ORDINARY, TERMINATED, TRUNCATED, LIFE_LOST], self.weights)  # fmt: skip
            then = self.stacks[i][1:] + [self.frame()]
            self.steps[i].append((self.stacks[i], self.rng.randrange(9), self.rng.randint(-4, 4), discount, last, then))
            self.stacks[i] = then
            if last:
                self.begin(i)
        columns = list(zip(*(steps[-1] for steps in self.steps), strict=True))
        kinds = torch.float32, torch.int64, torch.float32, torch.float32, torch.bool, torch.float32
        fields = [torch.tensor(c, dtype=kind) for c, kind in zip(columns, kinds, strict=True)]
        fields[0], fields[5] = fields[0].flatten(1, 2), fields[5].flatten(1, 2)  # k frames of 2 -> [N, 2 k]
        return transition(*fields)

    def cut(self) -> None:
        """The process died: whatever was under way never goes on."""
        for i, steps in enumerate(self.steps):
            steps[-1] = (*steps[-1][:4], True, steps[-1][5])
            self.begin(i)

    def n_step(self, i: int, t: int, n: int) -> tuple:
        """What begins at step t of env i."""
        total, weight = 0.0, 1.0
        for j in range(n):
            _, _, reward, discount, last, then = self.steps[i][t + j]
            total += weight * max(-CLIP, min(CLIP, reward))
            if last or discount == 0:
                break
            weight *= GAMMA * discount if j < n - 1 else 1.0
        stack, action = self.steps[i][t][:2]
        return stack, action, total, weight * discount, last, then

    def eligible(self, capacity: int, n: int) -> dict[tuple, tuple]:
        """What may be sampled, by its observation: the newest `capacity` of all envs, in whole rows."""
        per_env, count = -(-capacity // self.n), len(self.steps[0])
        found = (self.n_step(i, t, n) for t in range(max(0, count - n + 1 - per_env), count - n + 1) for i in range(self.n))  # fmt: skip
        return {tuple(sum(step[0], [])): step for step in found}


def check(batch: Transition, eligible: dict[tuple, tuple]) -> Tensor:
    """Every sample is one of the eligible, to the bit; returns how often each was drawn."""
    counts, names = torch.zeros(len(eligible)), {name: i for i, name in enumerate(eligible)}
    obs, then = batch.obs.tolist(), batch.next_obs.tolist()
    rest = [batch.action.tolist(), batch.reward.tolist(), batch.discount.tolist(), batch.last.tolist()]
    for b, name in enumerate(map(tuple, obs)):
        expected = eligible[name]
        assert tuple(column[b] for column in rest) == expected[1:5]
        final = sum(expected[5], [])
        if expected[3] == 0 and expected[4]:
            final[-2:] = [0.0, 0.0]  # nothing is made of it
        assert then[b] == final
        counts[names[name]] += 1
    return counts


@pytest.mark.parametrize("by_priority", [False, True])
@pytest.mark.parametrize("truncated", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("n_step", later([1, 3, 5], 5))
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_sample_is_in_the_list_and_the_whole_list_is_sampled(num_envs, k, n_step, truncated, by_priority):
    priorities = partial(Priorities, alpha=0.0, beta=Linear(1.0, 1.0)) if by_priority else None
    settings = dict(frame_stack=k, n_step=n_step, priorities=priorities)
    world, replay = World(num_envs, k, truncated, seed=100 * num_envs + 10 * k + n_step), Replay(30, 0, CPU, **settings)
    for step in range(1, 121):
        replay.add(world.step())
        assert replay.size == min(max(0, step - n_step + 1), -(-30 // num_envs)) * num_envs
        if step % 5 == 0:
            eligible = world.eligible(30, n_step)
            check(replay.sample(60, GAMMA, CLIP), eligible)
        if step in (50, 51, 90):
            state = replay.state_dict()
            replay = Replay(30, 1, CPU, **settings)
            replay.load_state_dict(state)
            if step == 90:
                world.cut()
    counts = check(replay.sample(100 * len(eligible), GAMMA, CLIP), eligible)
    chi_square = ((counts - 100) ** 2 / 100).sum().item()
    assert chi_square < len(eligible) + 4.5 * (2 * len(eligible)) ** 0.5  # about the 99.999 % point
    assert counts.min() > 0


@pytest.mark.parametrize("by_priority", later([False, True], True))
def test_short_episodes_leave_the_replay_its_capacity(by_priority):
    """Every second step is cut short, and every final frame is there: 6,000 transitions of 3 envs, 1 to 3 steps long."""
    priorities = partial(Priorities, alpha=0.0, beta=Linear(1.0, 1.0)) if by_priority else None
    for n_step in (1, 3):
        replay = Replay(6_000, 0, CPU, n_step=n_step, priorities=priorities)
        world = World(3, 1, 0.5)
        for _ in range(2_500):
            replay.add(world.step())
        assert replay.size == 6_000
        check(replay.sample(2_000, GAMMA, CLIP), eligible := world.eligible(6_000, n_step))
        counts = check(replay.sample(60_000, GAMMA, CLIP), eligible)
        assert (counts > 0).float().mean() > 0.99 and len(counts) == 6_000


def test_the_final_frames_of_rare_cuts_take_no_more_room(monkeypatch):
    """One step in 80 is cut: within what is reserved. And where room must be made, memory is asked for first."""
    replay, world = Replay(4_000, 0, CPU), World(4, 1, 0.0125)
    for _ in range(2_000):
        replay.add(world.step())
    assert replay._ring.finals == 4_004 // 32
    while replay._ring._kept <= replay._ring.finals:
        replay.add(world.step())
    assert len(replay.state_dict()["ring"]["finals"]) == 4_004 // 32  # a checkpoint holds them without the waste
    replay, world = Replay(1_000, 0, CPU), World(4, 1, 0.8)
    replay.add(world.step())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000)
    with pytest.raises(
        UserError, match="^agent.replay.capacity=1000: more than one step in 32 is cut short, and their "
    ):
        for _ in range(300):
            replay.add(world.step())


def test_a_checkpoint_of_a_replay_that_gave_up_rows_is_still_read():
    """As written before room was made for final frames: nothing older than `lost` is drawn."""
    replay, world = Replay(300, 0, CPU), World(3, 1, 0.01)
    for _ in range(80):
        replay.add(world.step())
    state = replay.state_dict()
    state["ring"]["lost"] = torch.tensor(50)
    other = Replay(300, 0, CPU)
    other.load_state_dict(state)
    rows = other.draw(3_000)[0] // 3
    assert rows.min() == 50 and rows.max() == 79


def test_gridworlds_and_vectors_keep_their_shape_and_kind():
    for shape, kind in [((), torch.int64), ((3,), torch.float32), ((6, 2, 2), torch.uint8)]:
        obs = torch.arange(4 * torch.Size(shape).numel()).reshape(4, *shape).to(kind)
        replay = Replay(8, 0, CPU, frame_stack=2 if len(shape) == 3 else 1)
        moved = torch.cat([obs[:, 3:], obs[:, :3] + 100], 1) if len(shape) == 3 else obs + 4
        replay.add(transition(obs, torch.zeros(4, 2), torch.ones(4), torch.ones(4), torch.zeros(4).bool(), moved))
        batch = replay.sample(32)
        assert batch.obs.shape == batch.next_obs.shape == (32, *shape) and batch.obs.dtype == kind
        which = (batch.obs.reshape(32, -1)[:, :1] == obs.reshape(4, -1)[:, 0]).long().argmax(1)
        assert torch.equal(batch.obs, obs[which]) and torch.equal(batch.next_obs, moved[which])
        assert batch.action.shape == (32, 2)


def test_pongs_stacks_come_back_as_the_emulator_made_them():
    env = Atari("pong", 2, max_frames=240)
    replay, seen, obs, truncated = Replay(60, 0, CPU, frame_stack=4), set(), env.reset(0), 0
    rng = torch.Generator().manual_seed(0)
    for t in range(1, 141):
        step = env.step(action := torch.randint(6, (2,), generator=rng))
        replay.add(Transition.of(obs, action, step))
        seen |= {x.numpy().tobytes() + y.numpy().tobytes() for x, y in zip(obs, step.next_obs, strict=True)}
        obs = step.obs
        if t % 10 == 0:
            batch = replay.sample(60)
            truncated += batch.last.sum()
            for x, y in zip(batch.obs, batch.next_obs, strict=True):
                assert x.numpy().tobytes() + y.numpy().tobytes() in seen
    assert truncated > 4
    env.close()


def test_a_restored_replay_goes_on_as_if_nothing_happened():
    for priorities in (None, partial(Priorities, alpha=0.7, beta=Linear(0.4, 1.0, 100))):
        world, one = World(3, 4, 0.1), Replay(10, 0, CPU, frame_stack=4, n_step=2, priorities=priorities)
        two = Replay(10, 9, CPU, frame_stack=4, n_step=2, priorities=priorities)
        for _ in range(9):
            one.add(world.step())
        one.update_priorities(one.draw(6)[0], torch.arange(6.0))
        two.load_state_dict(one.state_dict())
        for _ in range(9):
            transition = world.step()
            one.add(transition)
            two.add(transition)
            (slots, weight), (others, other_weight) = one.draw(64), two.draw(64)
            assert torch.equal(slots, others) and torch.equal(torch.as_tensor(weight), torch.as_tensor(other_weight))
            assert all(torch.equal(a, b) for a, b in zip(one.read(slots), two.read(slots), strict=True))


def test_a_checkpoint_holds_what_is_filled():
    replay, world = Replay(10_000, 0, CPU, frame_stack=4), World(2, 4, 0.1)
    for _ in range(5):
        replay.add(world.step())
    saved = replay.state_dict()["ring"]["store"]
    assert [len(x) for x in saved] == [2 * (3 + 5 + 1)] * 7  # the first stack's past, the steps, and what came next
    assert replay.nbytes == sum(x.nbytes for x in saved) == 18 * (8 + 8 + 4 + 4 + 1 + 8 + 4)
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in saved)  # not a view that saves the whole


def test_a_replay_of_another_kind_is_refused():
    one, world = Replay(10, 0, CPU), World(1, 1, 0.1)
    one.add(world.step())
    with pytest.raises(ValueError, match="capacity 10, n_step 1, frame_stack 1 does not fit capacity 8, n_step 1"):
        Replay(8, 0, CPU).load_state_dict(one.state_dict())


def test_more_environments_than_slots_is_a_users_mistake():
    with pytest.raises(
        UserError, match="agent.replay.capacity=2 must be at least 3: one transition of each environment"
    ):
        Replay(2, seed=0, device=CPU).add(World(3, 1, 0.1).step())


def test_a_million_atari_transitions_take_seven_and_a_quarter_gigabytes(monkeypatch):
    spec, replay = Spec((4, 84, 84), torch.uint8, ("noop",)), Replay(1_000_000, 0, CPU, frame_stack=4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8_000_000_000)
    assert replay.announce(spec, 1) == "replay of 1,000,000 transitions: up to 7.31 GB on cpu"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4_000_000_000)
    with pytest.raises(UserError) as error:
        replay.announce(spec, 1)
    assert str(error.value) == (
        "agent.replay.capacity=1000000 needs 7.31 GB and 4 GB are free on cpu; agent.replay.capacity=492776 would fit"
    )


def test_free_memory_is_what_the_machine_says():
    assert 0 < memory.free_bytes(CPU) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("branches", [2, 3, 128])
def test_the_tree_finds_what_a_running_sum_finds(branches):
    rng = torch.Generator().manual_seed(0)
    tree, flat = SumTree(300, CPU, branches), torch.zeros(300, dtype=torch.float64)
    for _ in range(20):
        leaf, value = torch.randint(300, (40,), generator=rng), torch.randint(0, 4, (300,), generator=rng).double()
        tree[leaf] = value[leaf]
        flat[leaf] = value[leaf]
        assert tree.total == flat.sum()
        mass = torch.arange(2 * int(flat.sum())).double() / 2  # on the edges too
        assert torch.equal(tree.find(mass), torch.searchsorted(flat.cumsum(0), mass, right=True))
    assert flat[tree.find(tree.total.expand(1))] > 0  # rounding upwards finds no empty leaf


def test_prioritised_frequencies_and_weights_are_the_formulas():
    replay = Replay(20, 0, CPU, priorities=partial(Priorities, alpha=0.6, beta=Linear(0.4, 1.0, 40)))
    world = World(1, 1, 0.0)
    for _ in range(20):
        replay.add(world.step())
    slots = torch.arange(20)
    error = torch.linspace(-3, 3, 20)
    replay.update_priorities(slots, error)
    p = (error.double().abs() + 1e-6) ** 0.6
    p /= p.sum()
    counts, draws = torch.zeros(20), 400
    for _ in range(draws):
        drawn, weight = replay.draw(100)
        counts += drawn.bincount(minlength=20)
        expected = (20 * p[drawn]) ** -0.7  # beta is half way from 0.4 to 1 after 20 of 40 transitions
        torch.testing.assert_close(weight, (expected / expected.max()).float())
    chi_square = ((counts - 100 * draws * p) ** 2 / (100 * draws * p)).sum().item()
    assert chi_square < 43.8  # 99.9 % point of chi-square with 19 degrees of freedom


def test_an_error_that_is_not_finite_changes_no_priority():
    replay, world = (
        Replay(10, 0, CPU, priorities=partial(Priorities, alpha=0.5, beta=Linear(1.0, 1.0))),
        World(1, 1, 0.0),
    )
    for _ in range(4):
        replay.add(world.step())
    replay.update_priorities(torch.arange(4), torch.tensor([4.0, 9.0, 1.0, 1.0]))
    before = replay.priorities.tree[torch.arange(4)].clone(), replay.priorities.highest.clone()
    replay.update_priorities(torch.arange(2), torch.tensor([math.nan, math.inf]))
    assert torch.equal(replay.priorities.tree[torch.arange(4)], before[0]) and replay.priorities.highest == before[1]


def test_beta_goes_by_the_learners_steps_where_what_was_added_is_lost():
    """Steps 0 and 40 of 40: at .4 and at 1."""
    replay, world = (
        Replay(20, 0, CPU, priorities=partial(Priorities, alpha=1.0, beta=Linear(0.4, 1.0, 40))),
        World(1, 1, 0.0),
    )
    for _ in range(20):
        replay.add(world.step())
    replay.update_priorities(torch.arange(20), torch.arange(1.0, 21.0))
    for steps, beta in ((0, 0.4), (None, 0.7), (40, 1.0)):
        slots, weight = replay.draw(64, steps)
        priority = replay.priorities.tree[slots]
        torch.testing.assert_close(weight, ((priority.min() / priority) ** beta).float())


def test_strata_leave_no_part_out():
    replay = Replay(64, 0, CPU, priorities=partial(Priorities, alpha=0.5, beta=Linear(1.0, 1.0)))
    world = World(1, 1, 0.0)
    for _ in range(64):
        replay.add(world.step())
    assert replay.draw(64)[0].bincount().tolist() == [1] * 64


def test_new_transitions_come_with_the_highest_priority_ever_seen():
    replay, world = (
        Replay(10, 0, CPU, priorities=partial(Priorities, alpha=1.0, beta=Linear(1.0, 1.0))),
        World(1, 1, 0.0),
    )
    for error in (5.0, 0.1, 0.2):
        replay.add(world.step())
        replay.update_priorities(torch.tensor([len(world.steps[0]) - 1]), torch.tensor([-error]))
    replay.add(world.step())
    torch.testing.assert_close(replay.priorities.tree[torch.arange(5)].float(), torch.tensor([5.0, 0.1, 0.2, 5.0, 0.0]))


def test_an_action_that_lasts_counts_for_all_its_steps():
    """Rewards 1, 2, 4 after actions of 1, 3 and 2 primitive steps, gamma 1/2: 1 + 2 / 2 + 4 / 2^4."""
    replay, one = Replay(4, 0, CPU, n_step=3), torch.ones(1)
    for t, (reward, duration) in enumerate([(1, 1), (2, 3), (4, 2)]):
        obs = torch.full((1, 1), float(t))
        replay.add(Transition(obs, one.long(), reward * one, one, one < 0, obs + 1, duration * one))
    batch = replay.sample(1, gamma=0.5)
    assert batch.reward.item() == 1 + 2 / 2 + 4 / 16 and batch.next_obs.item() == 3
    assert discounts(0.5, batch.discount, batch.duration).item() == 0.5**6


def test_a_checkpoint_without_durations_is_of_actions_of_one_step():
    world, one = World(2, 1, 0.1), Replay(10, 0, CPU)
    for _ in range(8):
        one.add(world.step())
    state, two = one.state_dict(), Replay(10, 0, CPU)
    state["ring"]["store"] = state["ring"]["store"][:-1]
    two.load_state_dict(state)
    slots = torch.arange(6)
    assert all(torch.equal(a, b) for a, b in zip(one.read(slots), two.read(slots), strict=True))
    assert (two.read(slots).duration == 1).all()


def layouts(of: Tensor) -> list[Tensor]:
    return [of, of.contiguous(memory_format=torch.channels_last)] if of.ndim == 4 else [of]


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 5), (6, 3, 4, 5)])
def test_samples_taken_keep_their_layout(shape):
    places = torch.tensor([4, 0, 4, 1])
    for x in layouts(torch.arange(math.prod(shape)).reshape(shape)):
        assert torch.equal(take(x, places), x[places]) and take(x, places).stride() == x[places].stride()
        assert torch.equal(take(x, slice(1, 3)), x[1:3])
