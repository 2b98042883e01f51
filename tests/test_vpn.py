"""VPN: its plans against a plain recursion, its losses against a double loop, and what it learns from against figures."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import ImageColor
from torch.nn import functional as F

from rl_lab import losses
from rl_lab.__main__ import COMMANDS
from rl_lab.agents.collectors import Optimal
from rl_lab.agents.vpn.baselines import ActionValue, ObservationPrediction
from rl_lab.agents.vpn.learner import VPN
from rl_lab.agents.vpn.model import FrameEncoder, GridEncoder, ValuePrediction
from rl_lab.agents.vpn.planner import Imagined, action_values, look_ahead, path, widths
from rl_lab.agents.vpn.unroll import Sequences, k_step_losses, predictable
from rl_lab.agents.vpn.walks import Walks
from rl_lab.core import cli
from rl_lab.core.errors import UserError
from rl_lab.envs.collect import Collect
from rl_lab.exploration import Linear
from rl_lab.looking import maze_pictures, panels, pictures, trees
from rl_lab.loops import Judge, play
from rl_lab.player import load
from rl_lab.types import Spec, Transition

CPU, FOUR = torch.device("cpu"), ("up", "right", "down", "left")
COLLECT = Spec((4, 10, 10), torch.float32, FOUR)
SMALL = Spec((4, 5, 6), torch.float32, FOUR)
GAMMA = 0.98


def grid(channels=(3, 4, 5), time_plane: bool = True) -> partial:
    return partial(GridEncoder, channels=channels, time_plane=time_plane)


def network(spec: Spec = SMALL, encoder=None, seed: int = 0, **changes) -> ValuePrediction:
    """With larger last layers than it starts from, so that options differ."""
    torch.manual_seed(seed)
    knobs = dict(units=8, gate=True, joint_head=False, duration="softplus")
    net = ValuePrediction(spec, encoder or grid(), **(knobs | changes)).double()
    for head in (net.value, net.outcome.reward, net.outcome.duration):
        if head is not None:
            torch.nn.init.normal_(head[-1].weight)
    return net


def planes(count: int, spec: Spec = SMALL, seed: int = 0) -> torch.Tensor:
    """Float64 [count, *obs_shape], each plane of one number."""
    rng = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, *spec.obs_shape, generator=rng) < 0.4).double()
    x[:, -1] = torch.randint(21, (count, 1, 1), generator=rng) / 20
    return x


# -- the planner


def recursive(net, state: torch.Tensor, branches: tuple[int, ...]) -> dict[int, float]:
    """Q^d(s, o) of the options worth a look in one state [1, C, H, W], by the paper's equations one at a time."""
    seen = [net.imagine(state, torch.tensor([o])) for o in range(net.num_actions)]
    one_step = [float(x.reward + GAMMA**x.duration * x.value) for x in seen]
    looked = sorted(range(net.num_actions), key=lambda o: -one_step[o])[: branches[0]]
    d, q = len(branches), {}
    for o in looked:
        if d == 1:
            q[o] = one_step[o]
            continue
        below = max(recursive(net, seen[o].state, branches[1:]).values())
        q[o] = float(seen[o].reward + GAMMA ** seen[o].duration * (seen[o].value / d + (d - 1) / d * below))
    return q


@torch.no_grad()
@pytest.mark.parametrize("branches", [(4,), (4, 4), (4, 4, 4), (4, 4, 4, 1, 1), (2, 3, 1), (1,), (9, 2)])
def test_plans_are_those_of_the_recursion(branches):
    net, obs = network(), planes(3)
    q = net.q(obs, branches, GAMMA)
    for i, state in enumerate(net.encode(obs)):
        expected = recursive(net, state[None], branches)
        assert set(torch.isfinite(q[i]).nonzero().flatten().tolist()) == set(expected)
        for option, value in expected.items():
            assert abs(q[i, option].item() - value) < 1e-9


class Constant:
    """Pays 1 for any option, lasts one step, and is worth 8 wherever it leads."""

    def imagine(self, state, option=None):
        one = torch.ones(len(state), 3, dtype=torch.float64)
        return Imagined(state.unsqueeze(1).expand(-1, 3, -1, -1, -1), one, one, 8 * one)


@pytest.mark.parametrize(("branches", "q"), [((3,), 5.0), ((3, 2), 4.25), ((3, 1, 2), 3.75)])
def test_plans_of_a_model_made_by_hand(branches, q):
    """gamma 1/2: 1 + 8/2 = 5; 1 + (8/2 + 5/2)/2 = 4.25; 1 + (8/3 + 2/3 4.25)/2 = 3.75."""
    plan = look_ahead(Constant(), torch.zeros(2, 1, 1, 1), branches, 0.5)
    torch.testing.assert_close(action_values(plan, 3), torch.full((2, 3), q, dtype=torch.float64))


class Chain:
    """Two options from a state that is one number x: 2x + 1 and 2x + 2; only some numbers pay or are worth anything."""

    pay, worth = {5: 10.0}, {1: 1.0, 2: 3.0, 12: 7.0}

    def imagine(self, state, option=None):
        x = state[:, None] * 2 + torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1)
        look = lambda table: torch.tensor([[table.get(int(v), 0.0) for v in row] for row in x.flatten(1)])
        return Imagined(x, look(self.pay), torch.ones(len(x), 2), look(self.worth))


def test_a_plan_remembers_where_its_best_path_went():
    """0 -> 2 -> 5 pays 10 at the second step, and then 11 or 12, which is worth 7."""
    plan = look_ahead(Chain(), torch.zeros(1, 1, 1, 1), (2, 2, 2), 1.0)
    assert [int(n) for n in path(plan)] == [1, 2, 5]
    # Q^1(5) = 0, 7; Q^2(2, to 5) = 10 + (0 + 7) / 2 = 13.5; Q^3(0, to 2) = (3 + 2 * 13.5) / 3 = 10
    assert plan[1].q[0].tolist() == [[0.0, 0.0], [13.5, 0.0]] and plan[0].q[0, 0].tolist() == pytest.approx(
        [1 / 3, 10.0]
    )
    narrow = look_ahead(Chain(), torch.zeros(1, 1, 1, 1), (1, 1, 1), 1.0)
    assert [int(level.option) for level in narrow] == [1, 0, 1] and [int(n) for n in path(narrow)] == [0, 0, 0]


def test_how_wide_a_plan_is():
    assert [widths(d, 4, 3) for d in (1, 3, 5)] == [(4,), (4, 4, 4), (4, 4, 4, 1, 1)]


def test_planning_from_few_roots_at_once_changes_nothing():
    net, obs = network(), planes(7)
    with torch.no_grad():
        whole = net.q(obs, (4, 2), GAMMA)
    for roots in (1, 3, 7):
        learner = agent(roots_at_once=roots, gamma=GAMMA)
        torch.testing.assert_close(learner.q(net, obs, (4, 2)), whole, atol=1e-12, rtol=0)


# -- the networks


def test_the_networks_for_collect_have_as_many_parameters_as_the_released_ones():
    count = lambda part: sum(p.numel() for p in part.parameters())
    encoder = grid((32, 32, 64))
    net = ValuePrediction(COLLECT, encoder, units=64, gate=True, joint_head=False, duration="relu")
    assert count(net) == 778_643
    assert count(net.encode) == 42_976 and count(net.transition) == 232_830 and count(net.value) == 104_129
    assert count(net.outcome) == 190_450 + 2 * 104_129
    assert count(ActionValue(COLLECT, encoder, units=64, gate=True)) == 379_935
    with torch.no_grad():
        state = net.encode(torch.ones(2, 4, 10, 10) * torch.tensor([0, 1, 0, 0.35]).view(4, 1, 1))
    assert state.shape == (2, 65, 5, 5) and torch.allclose(state[:, 64], torch.tensor(0.35))
    joint = ValuePrediction(COLLECT, encoder, units=64, gate=False, joint_head=True, duration="softplus")
    assert count(net) - count(joint) == 104_129 - 65 + 4_290


@pytest.mark.parametrize("size", [(4, 5), (8, 8), (13, 13)])
def test_the_state_is_half_as_large_rounded_up_as_same_padding_has_it(size):
    """TensorFlow's rule: 4 cells, stride 2; an even side has one cell of zeros on each end, an odd one two after."""
    net = network(Spec((3, *size), torch.float32, FOUR), grid((2, 2, 2), False))
    obs, (_, _, _, _, _, third, _) = torch.rand(1, 3, *size, dtype=torch.float64), net.encode.convolutions
    inner = F.pad(net.encode.convolutions[:4](obs), (1, 1 + size[1] % 2, 1, 1 + size[0] % 2))
    state = net.encode(obs)
    assert state.shape == (1, 2, -(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(state, F.elu(F.conv2d(inner, third.weight, third.bias, stride=2)))


@pytest.mark.parametrize("duration", ["relu", "softplus", "fixed"])
@pytest.mark.parametrize("joint_head", [True, False])
def test_one_option_is_imagined_as_among_all(duration, joint_head):
    net, option = network(joint_head=joint_head, duration=duration), torch.tensor([2, 0, 3])
    state = net.encode(planes(3))
    every, one = net.imagine(state), net.imagine(state, option)
    for of_all, of_one in zip(every, one, strict=True):
        torch.testing.assert_close(of_all[torch.arange(3), option], of_one)
    for conv in (net.transition.option, net.outcome.option):
        torch.testing.assert_close(conv.picked(state, option), conv.sorted(state, option))
    assert every.duration.shape == (3, 4) and (every.duration >= 1).all()
    assert (every.duration == 1).all() == (duration == "fixed")


def test_a_transition_is_what_the_code_released_made_of_it():
    """h = ELU(conv(ELU(conv_o(s)))), s' = ELU(s + sigmoid(gate(h)) change(h)); without a gate, ELU(s + change(h))."""
    for gate in (True, False):
        net = network(gate=gate).transition
        state = torch.randn(1, 6, 3, 3, dtype=torch.float64)
        h = F.elu(F.conv2d(state, net.option.conv.weight[12:18], net.option.conv.bias[12:18], padding=1))
        h = F.elu(F.conv2d(h, net.mix.weight, net.mix.bias, padding=1))
        u = F.conv2d(h, net.change.weight, net.change.bias, padding=1)
        if gate:
            u = u / (1 + (-F.conv2d(h, net.gate.weight, net.gate.bias)).exp())
        torch.testing.assert_close(net(state, torch.tensor([2])), F.elu(state + u))


def test_frames_of_atari_become_32_planes():
    spec = Spec((4, 84, 84), torch.uint8, FOUR, frame_stack=4)
    net = ValuePrediction(spec, FrameEncoder, units=128, gate=False, joint_head=False, duration="fixed")
    assert net.encode(torch.zeros(1, 4, 84, 84, dtype=torch.uint8)).shape == (1, 32, 9, 9)
    with pytest.raises(UserError, match="set env.obs=planes"):
        network(Spec((12,), torch.float32, FOUR))
    with pytest.raises(UserError, match="needs planes of a map"):
        network(spec)


# -- the loss


def play_of(steps: int = 10, walkers: int = 3, chance: float = 0.25, seed: int = 0) -> Sequences:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(steps, walkers, generator=rng, dtype=torch.float64)
    end = torch.rand(steps, walkers, generator=rng) < chance
    obs, next_obs = planes(2 * steps * walkers, seed=seed).unflatten(0, (2, steps, walkers))
    option = torch.randint(4, (steps, walkers), generator=rng)
    return Sequences(obs, option, draw(), draw().abs() + 1, end, torch.ones_like(end), draw(), draw(),
                     torch.ones(walkers, dtype=torch.float64), next_obs)  # fmt: skip


@pytest.mark.parametrize(("k", "terms"), [(1, 10), (2, 19), (3, 27), (5, 40), (20, 55)])
def test_a_rollout_of_ten_has_so_many_predictions(k, terms):
    never, always = torch.zeros(10, 2).bool(), torch.ones(10, 2).bool()
    assert [m.sum().item() for m in predictable(never, always, k)] == [2 * (10 - i) for i in range(min(k, 10))]
    assert sum(m[:, 0].sum().item() for m in predictable(never, always, k)) == terms


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_loss_is_that_of_a_double_loop(k):
    net, play = network(), play_of()
    play = play._replace(valued=torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    expected = {name: torch.zeros(3, dtype=torch.float64) for name in ("reward", "duration", "value")}
    for b in range(3):
        for t in range(10):
            state = net.encode(play.obs[t, b][None])
            for j in range(t, min(t + k, 10)):
                seen = net.imagine(state, play.option[j, b][None])
                state = seen.state
                expected["reward"][b] += losses.huber(seen.reward - play.reward[j, b]).item()
                expected["duration"][b] += losses.huber(seen.duration - play.duration[j, b]).item()
                expected["value"][b] += play.valued[b] * losses.huber(seen.value - play.reached[j, b]).item()
                if play.end[j, b]:
                    break
    for name, loss in k_step_losses(net, play, k, losses.huber).items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize("kind", ["value_prediction", "action_value", "observation_prediction"])
def test_nothing_leaks_across_the_end_of_an_episode(kind):
    """The next episode's data changes; the gradient of the losses of the first does not."""
    net = {"value_prediction": network, "action_value": dqn, "observation_prediction": opn}[kind]()
    play = play_of(chance=0.0)
    play.end[3] = True
    later = play_of(chance=0.0, seed=1)
    swapped = Sequences(*(torch.cat([x[:4], y[4:]]) if x.ndim > 1 else x for x, y in zip(play, later, strict=True)))
    swapped.next_obs[3] = later.next_obs[3]  # which random walks read from where the next episode begins
    before = torch.arange(10).unsqueeze(1).expand(10, 3) < 4  # only what begins there counts
    gradients = []
    for each in (play, swapped):
        loss = net.losses(each._replace(start=before, valued=0 * each.valued), 5, losses.huber)
        gradients.append(torch.autograd.grad(sum(x.sum() for x in loss.values()), list(net.parameters()),
                                             allow_unused=True, materialize_grads=True))  # fmt: skip
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def dqn() -> ActionValue:
    torch.manual_seed(0)
    return ActionValue(SMALL, grid(), units=8, gate=True).double()


def opn() -> ObservationPrediction:
    torch.manual_seed(0)
    knobs = dict(units=8, gate=True, joint_head=False, duration="relu")
    return ObservationPrediction(SMALL, grid(), **knobs).double()


def test_random_walks_teach_the_model_and_not_the_value():
    for net in (network(), opn()):
        play = play_of()
        play = play._replace(valued=0 * play.valued)
        sum(x.sum() for x in net.losses(play, 3, losses.huber).values()).backward()
        zero = lambda part: all(p.grad is None or not p.grad.any() for p in part.parameters())
        assert zero(net.value) and not zero(net.outcome) and not zero(net.transition)


def test_the_state_before_any_option_is_never_valued():
    """V is trained only on states that a transition made: with k = 1 those reached, not those encoded."""
    net, play, seen = network(), play_of(), []
    net.value.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    net.losses(play, 3, losses.huber)
    assert seen == [30, 27, 24]


def test_the_dqn_of_the_paper_regresses_on_returns():
    net, play = dqn(), play_of()
    q = net.q(play.obs.flatten(0, 1)).unflatten(0, (10, 3))
    expected = losses.huber(losses.pick(q, play.option) - play.returned).sum(0)
    torch.testing.assert_close(net.losses(play, 1, losses.huber)["value"], expected)


def test_an_imagined_observation_has_the_size_of_a_true_one_and_is_encoded_anew():
    net, obs = opn(), planes(2)
    seen = net.imagine(net.encode(obs))
    assert seen.state.shape == (2, 4, *SMALL.obs_shape)
    torch.testing.assert_close(net.value(seen.state.flatten(0, 1)).view(2, 4), seen.value)
    assert net.q(obs, (4, 2), GAMMA).isfinite().all()


# -- the learner


def agent(spec: Spec = SMALL, seed: int = 0, **changes) -> VPN:
    net = partial(ValuePrediction, encoder=grid(), units=8, gate=True, joint_head=False, duration="relu")
    knobs = dict(
        network=net, optimizer=partial(torch.optim.Adam, lr=1e-3), depth=2, branch=4, branch_depth=3, rollout_length=3,
        sequences_per_update=2, random_steps=0, gamma=0.9, epsilon=Linear(0.5, 0.5), target_update_period=1_000,
        max_grad_norm=40.0,
    )  # fmt: skip
    return VPN(spec, CPU, seed, **(knobs | changes))


class Dice:
    """N walkers whose every observation, reward, duration and end is a throw of dice."""

    def __init__(self, walkers: int = 4, seed: int = 0):
        self.walkers, self.rng, self.steps = walkers, torch.Generator().manual_seed(seed), 0
        self.obs = planes(walkers).float()

    def transition(self, action: torch.Tensor) -> Transition:
        self.steps += 1
        last = torch.rand(self.walkers, generator=self.rng) < 0.3
        took = torch.randint(1, 8, (self.walkers,), generator=self.rng)
        reward = torch.randint(-9, 9, (self.walkers,), generator=self.rng) / 4
        before, self.obs = self.obs, planes(self.walkers, seed=self.steps).float()
        return Transition(before, action, reward, torch.where(last, 0.0, 0.9 ** (took - 1.0)), last, self.obs, took)

    def teach(self, learner: VPN, steps: int) -> list[dict]:
        return [learner.update(self.transition(learner.act(self.obs))) for _ in range(steps)]


def rollout(*ends: tuple[float, bool]) -> list[Transition]:
    """One env; rewards 1, 2, 4, ..., and for each step the discount and whether the episode ended there."""
    obs = planes(len(ends) + 1).float()
    return [
        Transition(obs[t : t + 1], torch.tensor([1]), torch.tensor([2.0**t]), torch.tensor([discount]),
                   torch.tensor([last]), obs[t + 1 : t + 2], torch.tensor([3]))
        for t, (discount, last) in enumerate(ends)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "returned", "reached"),
    [
        # gamma 1/2, and what lies beyond the rollout or a cut is worth 16
        ([(1.0, False), (1.0, False), (1.0, False)], [5.0, 8.0, 12.0], [8.0, 12.0, 16.0]),
        ([(1.0, False), (0.0, True), (1.0, False)], [2.0, 2.0, 12.0], [2.0, 0.0, 16.0]),  # terminated
        ([(1.0, False), (1.0, True), (1.0, False)], [6.0, 10.0, 12.0], [10.0, 16.0, 16.0]),  # cut short
        ([(1.0, False), (0.0, False), (0.0, True)], [2.0, 2.0, 4.0], [2.0, 0.0, 0.0]),  # a life lost, then the end
        ([(0.25, False), (1.0, False), (0.5, False)], [1.75, 6.0, 8.0], [6.0, 8.0, 16.0]),  # options that last
    ],
)
def test_what_a_rollout_was_worth(ends, returned, reached):
    learner = agent(gamma=0.5)
    learner.q = lambda network, obs, branches: torch.full((len(obs), 4), 16.0 if network is learner.target else 1e9)
    play = learner.sequences(rollout(*ends))
    assert play.returned.flatten().tolist() == pytest.approx(returned)
    assert play.reached.flatten().tolist() == pytest.approx(reached)
    assert play.end.flatten().tolist() == [d == 0 or last for d, last in ends]
    assert play.duration.flatten().tolist() == [3.0] * 3


def test_rewards_are_clipped_by_the_agent_alone():
    learner = agent(max_abs_reward=3.0)
    assert learner.sequences(rollout((1.0, False), (1.0, False), (0.0, True))).reward.flatten().tolist() == [1, 2, 3]


def test_the_target_jumps_and_the_rate_decays_by_decisions():
    """4 walkers x 3 decisions a rollout: 12, 24, 36, ...; the target jumps where they pass a multiple of 30."""
    learner, dice, moved = agent(target_update_period=30, decay=0.5), Dice(), []
    for _ in range(6):
        dice.teach(learner, 3)
        pairs = zip(learner.target.parameters(), learner.online.parameters(), strict=True)
        moved.append(all(torch.equal(a, b) for a, b in pairs))
    assert moved == [False, False, True, False, True, False]
    assert learner.steps == 72 and learner.learns == 12  # two of two sequences each
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 ** (72 / 1e6))


def test_one_update_is_adam_on_the_sum_of_each_sequence():
    learner, dice = agent(sequences_per_update=9), Dice()
    twin = agent().online
    played = [dice.transition(learner.act(dice.obs)) for _ in range(3)]
    play = learner.sequences(played)
    for each in played:
        learner.update(each)
    loss = sum(x.mean() for x in twin.losses(play, 2, losses.huber).values())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 40.0)
    optimizer.step()
    for ours, theirs in zip(learner.online.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_depth_of_greedy_plans_is_free():
    trained, deeper = agent(depth=2), agent(depth=2, eval_depth=5, branch=2, branch_depth=1)
    assert trained.prediction_steps == 2 and deeper.prediction_steps == 2
    assert deeper.branches == (2, 1) and deeper.eval_branches == (2, 1, 1, 1, 1)
    assert len(deeper.plan(planes(1).float())) == 5 and len(trained.plan(planes(1).float())) == 2
    star = agent(depth=5, prediction_steps=10)
    assert star.branches == (4, 4, 4, 1, 1) and star.prediction_steps == 10
    obs = planes(200).float()
    shallow, deep = (deeper.q(deeper.online, obs, b).argmax(-1) for b in ((2, 1), (2, 1, 1, 1, 1)))
    assert torch.equal(deeper.act(obs, greedy=True), deep) and not torch.equal(shallow, deep)


def test_options_left_out_are_never_chosen_and_shown_as_the_least():
    learner, obs = agent(branch=2, depth=1), planes(50).float()
    q = learner.q(learner.online, obs, learner.branches)
    assert (q.isinf().sum(-1) == 2).all()
    assert q.gather(1, learner.act(obs, greedy=True)[:, None]).isfinite().all()
    view = learner.view(obs)
    assert view.bars.isfinite().all() and torch.equal(view.bars.amin(-1), q[q.isfinite()].view(50, 2).amin(-1))
    assert torch.equal(view.value, q.amax(-1))
    explorer = agent(branch=1, depth=1, epsilon=Linear(1.0, 1.0))
    assert set(explorer.act(planes(300).float()).tolist()) == {0, 1, 2, 3}


def test_the_first_decisions_are_random_and_kept_and_nothing_is_learned():
    learner, dice = agent(random_steps=30, epsilon=Linear(0.0, 0.0)), Dice()
    assert min(learner.act(planes(400).float()).bincount(minlength=4)) > 60
    before = [p.clone() for p in learner.online.parameters()]
    assert "the first 30 steps are random play" in learner.announce(4)
    dice.teach(learner, 8)
    assert learner.walks.full and learner.walks.rows == 8 and learner.steps == learner.learns == 0 and learner.settled
    assert all(torch.equal(a, b) for a, b in zip(before, learner.online.parameters(), strict=True))
    metrics = dice.teach(learner, 3)[-1]
    assert learner.steps == 12 and learner.learns == 2
    assert set(metrics) == {f"vpn/{x}" for x in ("reward_loss", "duration_loss", "value_loss", "grad_norm", "epsilon")}
    assert learner.announce(4) is None


def test_every_update_learns_from_as_many_random_walks_their_rewards_clipped_too():
    learner, dice, seen = agent(random_steps=30, max_abs_reward=1.0), Dice(), []
    real, found = learner.online.losses, []

    def losses_of(play, *rest):
        seen.append(play)
        found.append(real(play, *rest))
        return found[-1]

    learner.online.losses = losses_of
    metrics = dice.teach(learner, 8 + 3)[-1]
    torch.testing.assert_close(metrics["vpn/reward_loss"], found[-1]["reward"].sum() / 2)  # of both, a sequence
    assert [play.valued.tolist() for play in seen] == [[1, 1, 0, 0]] * 2
    assert all(play.obs.shape == (3, 4, *SMALL.obs_shape) and play.reward.abs().max() == 1 for play in seen)
    assert all(not play.reached[:, 2:].any() and play.start[:, :2].all() for play in seen)


def test_random_walks_are_pieces_of_what_was_walked():
    walks, dice = Walks(100, SMALL, CPU), Dice(5)
    walked = [dice.transition(torch.randint(4, (5,), generator=dice.rng)) for _ in range(20)]
    for each in walked:
        walks.add(each)
    assert walks.full and walks.nbytes == 20 * 5 * (4 * 4 + 4 * 4 + 1 + 4 + 1 + 1)  # 30 cells are four bytes
    sample = walks.sample(400, 6, torch.Generator().manual_seed(0))
    obs = torch.stack([t.obs for t in walked])
    found = set()
    for b in range(400):
        ((t, n),) = (obs == sample["obs"][0, b]).flatten(2).all(-1).nonzero().tolist()
        found.add((t, n))
        assert not walked[t].last[n]
        ended = False
        for i in range(6):
            true = walked[t + i]
            assert sample["start"][i, b] == (not ended)
            assert torch.equal(sample["obs"][i, b], true.obs[n]) and torch.equal(
                sample["next_obs"][i, b], true.next_obs[n]
            )
            assert sample["reward"][i, b] == true.reward[n] and sample["option"][i, b] == true.action[n]
            assert sample["duration"][i, b] == true.duration[n] and sample["end"][i, b] == true.last[n]
            ended |= bool(true.last[n])
    assert found == {(t, n) for t in range(14) for n in range(5) if not walked[t].last[n]}


def test_frames_are_kept_as_they_are_and_planes_of_several_numbers_not_at_all():
    spec, one = Spec((1, 3, 3), torch.uint8, FOUR), torch.ones(2)
    walks, frames = Walks(10, spec, CPU), torch.arange(5 * 2 * 9, dtype=torch.uint8).view(5, 2, 1, 3, 3)
    for each in frames:
        walks.add(Transition(each, one.long(), one, one, one > 1, each))
    sample = walks.sample(50, 3, torch.Generator().manual_seed(0))
    first = sample["obs"][0, :, 0, 0, 0].long()
    assert torch.equal(sample["next_obs"][2, :, 0, 0, 0].long(), first + 3 * 18) and set(first.tolist()) == {
        0,
        9,
        18,
        27,
    }
    with pytest.raises(UserError, match="planes of one number each"):
        Walks(10, SMALL, CPU).add(Transition(torch.rand(2, *SMALL.obs_shape), one.long(), one, one, one > 1, planes(2)))


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="agent.random_steps=16 is too few .* more than 16"):
        agent(random_steps=16).announce(4)
    with pytest.raises(UserError, match="agent.random_steps is for a network that predicts rewards"):
        agent(random_steps=50, network=partial(ActionValue, encoder=grid(), units=8, gate=True))


@pytest.mark.parametrize("after", [3, 11])  # while it walks at random, and later
def test_a_resumed_learner_goes_on_bit_for_bit(after):
    whole, resumed = (agent(random_steps=24) for _ in range(2))
    dice, same = Dice(), Dice()
    dice.teach(whole, after + (after > 6) * 1)
    same.teach(resumed, after + (after > 6) * 1)
    assert resumed.settled
    fresh = agent(seed=5, random_steps=24)
    fresh.load_state_dict(resumed.state_dict())
    assert dice.teach(whole, 12) == same.teach(fresh, 12)
    for ours, theirs in zip(whole.online.parameters(), fresh.online.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_its_walks_a_resumed_learner_walks_again():
    learner, dice = agent(random_steps=24), Dice()
    dice.teach(learner, 9)
    fresh = agent(seed=5, random_steps=24)
    fresh.load_state_dict(learner.state_dict(without="walks"))
    assert fresh.steps == 12 and not fresh.walks.full
    dice.teach(fresh, 6)
    assert fresh.steps == 12 and fresh.walks.full


def test_bfloat16_learns_about_the_same_and_plays_the_same():
    losses_of = []
    for bfloat16 in (False, True):
        learner, dice = agent(bfloat16=bfloat16), Dice()
        losses_of.append(float(dice.teach(learner, 3)[-1]["vpn/reward_loss"]))
        assert learner.q(learner.online, dice.obs, (4,)).dtype == torch.float32
    assert losses_of[0] == pytest.approx(losses_of[1], rel=0.05) and losses_of[0] != losses_of[1]


# -- whole runs


def test_durations_are_learned_exactly_where_the_world_is_certain():
    """A corridor of 8 cells: an option goes to its end, and that takes as many steps as there are cells."""
    spec = Spec((2, 1, 8), torch.float32, ("right", "left"))
    rng = torch.Generator().manual_seed(0)
    net = partial(
        ValuePrediction, encoder=grid((8, 8, 8), False), units=32, gate=True, joint_head=False, duration="relu"
    )
    learner = agent(spec, network=net, depth=1, rollout_length=1, sequences_per_update=64,
                    optimizer=partial(torch.optim.Adam, lr=0.01))  # fmt: skip
    at = torch.arange(8)
    obs = torch.zeros(8, 2, 1, 8)
    obs[at, 0, 0, at] = 1
    took = torch.stack([7 - at, at], 1).clamp(min=1)
    for _ in range(250):
        cell, action = (torch.randint(n, (64,), generator=rng) for n in (8, 2))
        one = torch.ones(64)
        learner.update(Transition(obs[cell], action, -one, 0 * one, one > 0, obs[cell], took[cell, action]))
    with torch.no_grad():
        expected = learner.online.imagine(learner.online.encode(obs)).duration
    assert (expected - took).abs().max() < 0.05


def trained(folder, experiment: str, *arguments: str):
    given = ["train", f"experiment={experiment}", "tracker=none", "device=cpu", f"hydra.run.dir={folder}", *arguments]
    assert cli.main("rl-lab", "rl", COMMANDS, given) == 0
    return load(folder, max_envs=100, device="cpu")


class OneMaze(Collect):
    """Every episode is the first."""

    def start(self, number: torch.Tensor):
        return super().start(0 * number)._replace(number=number)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_three_step_plans_reach_the_optimum_of_one_maze(seed):
    """Found by a dynamic programme over the sets of its goals."""
    env = OneMaze(16, size=8, goals=4, holes=2, time_limit=10, mazes=8, option_gamma=1.0)
    net = partial(ValuePrediction, encoder=grid((16, 16, 24)), units=64, gate=True, joint_head=False, duration="relu")
    learner = agent(env.spec, seed, network=net, gamma=0.98, depth=3, rollout_length=10, sequences_per_update=4,
                    random_steps=1_600, epsilon=Linear(1.0, 0.1, 6_000), target_update_period=500)  # fmt: skip
    obs = env.reset(seed)
    best = Optimal(env.spec, CPU, 0, time_limit=10, goal_reward=2.0, living_reward=-0.2).view(obs).value.float()
    for _ in range(100 + 1_000):
        action = learner.act(obs)
        step = env.step(action)
        learner.update(Transition(obs, action, *step[:4], step.duration))
        obs = step.obs
    returns, _ = play(env, partial(learner.act, greedy=True), 16, seed)
    torch.testing.assert_close(returns, best, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_learns_the_book_world(tmp_path, seed):
    player = trained(tmp_path, "vpn_russell_norvig", f"seed={seed}")
    assert Judge(player.env, 100, 1)(player.act)["eval/regret"] < 0.05


@pytest.mark.parametrize("name", ["vpn1", "vpn2", "vpn3", "vpn5", "vpn5_star", "opn", "dqn_collect"])
def test_presets_train_on_collect(tmp_path, name):
    tiny = [
        "agent.random_steps=200",
        "agent.branch_depth=1",
        "agent.network.encoder.channels=[4,4,4]",
        "agent.network.units=8",
    ]
    if name == "dqn_collect":
        tiny[0] = "agent.random_steps=0"
    given = ["train", "env=collect", f"agent={name}", "tracker=none", "device=cpu", f"hydra.run.dir={tmp_path}",
             "env.num_envs=4", "env.mazes=8", "loop.total_steps=240", "loop.eval_every=240", "loop.eval_episodes=1", *tiny]  # fmt: skip
    assert cli.main("rl-lab", "rl", COMMANDS, given) == 0
    final = json.loads((tmp_path / "summary.json").read_text())["final"]
    assert "vpn/value_loss" in final and "eval/return" in final


# -- the plan made visible


def hall() -> tuple[np.ndarray, tuple]:
    """An empty hall with the agent in its corner, and Chain's plan: options 1, 0, 1 of three steps each."""
    maze = np.zeros((4, 5, 7), np.float32)
    maze[0] = np.pad(np.zeros((3, 5)), 1, constant_values=1)
    maze[1, 1, 1] = 1
    plan = look_ahead(Chain(), torch.zeros(1, 1, 1, 1), (2, 2, 2), 1.0)
    return maze, tuple(level._replace(duration=3 * level.duration) for level in plan)


def test_the_way_goes_as_far_as_the_model_expects_and_never_through_walls():
    legs = trees.way(*hall(), ("down", "right"))
    assert legs == [[(1, 1), (1, 2), (1, 3), (1, 4)], [(1, 4), (2, 4), (3, 4)], [(3, 4), (3, 5)]]


def test_the_tree_shows_every_branch_and_the_best_path_over_them():
    plan = look_ahead(Chain(), torch.zeros(1, 1, 1, 1), (2, 2, 2), 1.0)
    picture = trees.tree(plan, ("down", "right"), 400)
    colours = {colour for _, colour in picture.getcolors(100_000)}
    assert picture.height == 400 and ImageColor.getrgb(panels.AGENT) in colours
    shades = pictures.viridis(torch.cat([x.q.flatten() for x in plan]).numpy(), 0.0, 13.5)
    assert {tuple(s) for s in shades[[0, 2, 3]].tolist()} <= colours  # those not on the path


def test_the_way_is_drawn_below_the_agent():
    maze, plan = hall()
    before, board = maze_pictures.maze(maze), maze_pictures.bare(maze_pictures.board_rows(maze), panels.SIZE)
    after = trees.with_way(before, maze, plan, ("down", "right"))
    changed = [c for c in np.ndindex(5, 7) if after.getpixel(board.centre(*c)) != before.getpixel(board.centre(*c))]
    assert set(changed) <= {(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (3, 5)} and {(1, 4), (3, 4), (3, 5)} <= set(changed)
