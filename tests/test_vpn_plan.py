"""VPN's plans against a plain recursion, its losses against a double loop, and the plan made visible."""

import numpy as np
import pytest
import torch
from PIL import ImageColor
from torch.nn import functional as F
from vpn_cases import COLLECT, FOUR, GAMMA, SMALL, agent, grid, network, planes

from rl_lab import losses
from rl_lab.agents.vpn.baselines import ActionValue, ObservationPrediction
from rl_lab.agents.vpn.model import FrameEncoder, ValuePrediction
from rl_lab.agents.vpn.planner import Imagined, action_values, look_ahead, path, widths
from rl_lab.agents.vpn.unroll import Sequences, k_step_losses, predictable
from rl_lab.core.errors import UserError
from rl_lab.envs.abilities import Map
from rl_lab.envs.collect.world import maze_of
from rl_lab.looking import panels, pictures, trees, worlds
from rl_lab.types import Spec

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


# -- the plan made visible


def hall() -> tuple[Map, tuple]:
    """An empty hall with the agent in its corner, and Chain's plan: options 1, 0, 1 of three steps each."""
    maze = Map(maze_of(("#######", *["#.....#"] * 3, "#######")), (1, 1), time_left=0.0)
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
    before, board = worlds.picture(maze), worlds.board_of(maze)
    after = trees.with_way(before, maze, plan, ("down", "right"))
    changed = [c for c in np.ndindex(5, 7) if after.getpixel(board.centre(*c)) != before.getpixel(board.centre(*c))]
    assert set(changed) <= {(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (3, 5)} and {(1, 4), (3, 4), (3, 5)} <= set(changed)
