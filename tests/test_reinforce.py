"""REINFORCE against the exact gradient: by every trajectory of a small world, and by sampling; and whose steps count."""

from copy import deepcopy
from functools import partial
from itertools import product

import pytest
import torch
from exact_gradient import (
    action_values,
    finite_gradient,
    gradient,
    paths,
    undiscounted_visits_gradient,
    value,
    visits,
)
from stated import stated
from torch.nn import functional as F
from transitions import transition

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.reinforce import Nothing, Reinforce, Value
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.learner import descend
from rl_lab.envs.tabular import stepper
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.envs.tabular.tables import from_tables
from rl_lab.loops.judging import Judge
from rl_lab.networks import torsos as networks
from rl_lab.networks.tiles import constant
from rl_lab.planning import evaluate_policy
from rl_lab.playing.player import load
from rl_lab.types import Spec, Transition

MDPEnv = stated("env/base/tabular")
RunningMean = stated("agent/baseline/running_mean")
short_corridor = stated("env/short_corridor", "mdp")

CPU, HORIZON = torch.device("cpu"), 3
TABLE = stated(
    "agent/baseline/value", network=networks.linear, optimizer=partial(torch.optim.SGD, lr=0.3), zero_head=True
)
BASELINES = {"none": Nothing, "running_mean": RunningMean, "value": TABLE}
FORMS = list(product(["total_return", "reward_to_go"], BASELINES, [False, True]))  # credit, baseline, exact_discount


def world(gamma: float = 0.9) -> MDP:
    """Three states with two actions of two outcomes each, and an end; every reward its own, two first states."""
    next_state = torch.tensor([[[1, 2], [0, 3]], [[2, 3], [0, 1]], [[0, 3], [1, 2]], [[3, 3], [3, 3]]])
    p = torch.tensor([[0.7, 0.4], [0.5, 0.2], [0.9, 0.6], [1.0, 1.0]], dtype=torch.float64)
    reward = torch.tensor([[[1, -2], [3, 0.5]], [[-1, 4], [2, -3]], [[0.25, 5], [-4, 1.5]], [[0, 0], [0, 0]]])
    end, start = torch.arange(4) == 3, torch.tensor([0.75, 0.25, 0, 0], dtype=torch.float64)
    return from_tables(next_state, torch.stack([p, 1 - p], -1), reward.double(), end, start, gamma=gamma)


PREFERENCES = torch.tensor([[0.3, -0.2], [-0.5, 0.4], [0.1, 0.6], [0.0, 0.0]], dtype=torch.float64)
POLICY = PREFERENCES.softmax(-1)
EXPECTED = torch.tensor([1.5, -0.7, 2.2, 0.0], dtype=torch.float64)  # by a table, as if earlier batches had taught it


def agent(spec: Spec, lr: float = 1.0, **changes) -> Reinforce:
    """A table whose weights move by the estimate of the gradient itself."""
    knobs = dict(network=networks.linear, optimizer=partial(torch.optim.SGD, lr=lr), baseline=Nothing, gamma=0.9,
                 zero_head=True)  # fmt: skip
    made = stated("agent/reinforce", entropy_coef=0.0, zero_head=False)(spec, CPU, 0, **(knobs | changes))
    made.network.to(spec.obs_dtype)
    if isinstance(made.baseline, Value):
        made.baseline.network.to(spec.obs_dtype)
    return made


def preferences(learner: Reinforce) -> torch.Tensor:
    """[S, A]."""
    return learner.network.head.weight.detach().T


def one_hot(state: torch.Tensor, of: int = 4) -> torch.Tensor:
    return F.one_hot(state, of).double()


def taught(credit: str, baseline: str, exact: bool, **changes) -> Reinforce:
    """At PREFERENCES, with a baseline that has learned something."""
    learner = agent(Spec((4,), torch.float64, ("a", "b")), credit=credit, baseline=BASELINES[baseline],
                    exact_discount=exact, **changes)  # fmt: skip
    learner.network.head.weight.data = PREFERENCES.T.clone()
    if baseline == "running_mean":
        learner.baseline.mean = torch.tensor(0.7, dtype=torch.float64)
    elif baseline == "value":
        learner.baseline.network.head.weight.data = EXPECTED[None].clone()
    return learner


def estimates(learner: Reinforce, mdp: MDP) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability [P] of each trajectory, and what the agent makes of it alone [P, S, A]."""
    found, before, state = [], preferences(learner).clone(), deepcopy(learner.state_dict())
    for path in paths(mdp, POLICY, HORIZON):
        for step in path.transitions(one_hot):
            learner.update(step)
        found.append((torch.tensor(path.probability, dtype=torch.float64), preferences(learner) - before))
        learner.load_state_dict(deepcopy(state))
    return tuple(torch.stack(x) for x in zip(*found, strict=True))


def target(mdp: MDP, credit: str, exact: bool) -> torch.Tensor:
    """What the estimator of this form is to be in the mean."""
    of = finite_gradient if exact or credit == "total_return" else undiscounted_visits_gradient
    return of(mdp, PREFERENCES, mdp.gamma, HORIZON)


# -- the oracle itself


def test_the_exact_gradients_agree_with_each_other_and_with_differences():
    mdp = world()
    endless = gradient(partial(value, mdp, gamma=0.9), PREFERENCES)
    torch.testing.assert_close(finite_gradient(mdp, PREFERENCES, 0.9, 300), endless)
    moved = torch.zeros_like(PREFERENCES)
    moved[1, 0] = 1e-5
    slope = (value(mdp, PREFERENCES + moved, 0.9) - value(mdp, PREFERENCES - moved, 0.9)) / 2e-5
    torch.testing.assert_close(endless[1, 0], slope, atol=1e-8, rtol=0)
    undiscounted = undiscounted_visits_gradient(mdp, PREFERENCES, 1.0, HORIZON)
    torch.testing.assert_close(finite_gradient(mdp, PREFERENCES, 1.0, HORIZON), undiscounted)
    assert (target(mdp, "reward_to_go", True) - target(mdp, "reward_to_go", False)).abs().max() > 0.05


def test_every_trajectory_is_there():
    mdp = world()
    probability, back = zip(*((p.probability, sum(0.9**t * r for t, r in enumerate(p.rewards)))
                              for p in paths(mdp, POLICY, HORIZON)), strict=True)  # fmt: skip
    assert sum(probability) == pytest.approx(1, abs=1e-12)
    q = action_values(mdp, POLICY, 0.9, HORIZON)[0]
    exact = mdp.start @ (POLICY * q).sum(-1)
    assert sum(p * g for p, g in zip(probability, back, strict=True)) == pytest.approx(exact.item(), abs=1e-12)


# -- unbiased


@pytest.mark.parametrize(("credit", "baseline", "exact"), FORMS)
def test_the_mean_over_all_trajectories_is_the_exact_gradient(credit, baseline, exact):
    mdp = world()
    probability, found = estimates(taught(credit, baseline, exact), mdp)
    mean = torch.einsum("p,psa->sa", probability, found)
    torch.testing.assert_close(mean, target(mdp, credit, exact), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("credit", "baseline", "exact"), [f for f in FORMS if f[0] == "reward_to_go" or not f[2]])
def test_the_mean_over_samples_is_within_four_standard_errors(credit, baseline, exact):
    """Through the real env, whose walkers wait for one another, with a baseline that goes on learning."""
    mdp, batches = world(), []
    env = MDPEnv(mdp, 100, HORIZON)
    learner = agent(env.spec, credit=credit, baseline=BASELINES[baseline], exact_discount=exact, episodes=2)
    obs = env.reset(1)
    start = PREFERENCES.T.float()
    learner.network.head.weight.data = start.clone()
    while len(batches) < 100:
        action = learner.act(obs)
        step = env.step(action)
        if learner.update(Transition.of(obs, action, step)):
            batches.append(preferences(learner) - start.T)
            learner.network.head.weight.data = start.clone()
        obs = step.obs
    found = torch.stack(batches).double()
    error = found.std(0) / len(found) ** 0.5
    assert error[:3].min() > 0 and error.max() < 0.05
    assert ((found.mean(0) - target(mdp, credit, exact))[:3].abs() < 4 * error[:3]).all()


def test_less_noise_from_rewards_to_go_and_less_still_with_a_baseline():
    """Traces of the covariance of one trajectory's estimate, in a world that pays 3 more a step; all have one mean."""
    mdp, noise = world(), []
    mdp = mdp._replace(reward=mdp.reward + 3 * ~mdp.terminal[:, None, None])
    for credit, baseline in ("total_return", "none"), ("reward_to_go", "none"), ("reward_to_go", "value"):
        learner = taught(credit, baseline, True)
        if baseline == "value":
            weight = visits(mdp, POLICY, HORIZON) * 0.81 ** torch.arange(HORIZON).double()[:, None]
            v = (POLICY * action_values(mdp, POLICY, 0.9, HORIZON)).sum(-1)
            expected = (weight * v).sum(0) / weight.sum(0).clamp_min(1e-9)
            learner.baseline.network.head.weight.data = expected[None].clone()
        probability, found = estimates(learner, mdp)
        noise.append((probability @ found.square().sum((1, 2))) - target(mdp, credit, True).square().sum())
    assert noise[0] > 1.1 * noise[1] and noise[1] > 1.1 * noise[2]


def test_a_bandit_of_one_step_has_the_gradient_of_a_softmax():
    """pi_a (r_a - mean r): from a third each and rewards 1, 2, 4, -4/9, -1/9 and 5/9."""
    tables = (
        torch.full((2, 3, 1), 1),
        torch.ones(2, 3, 1).double(),
        torch.tensor([[1, 2, 4], [0] * 3]).double()[..., None],
    )
    mdp = from_tables(*tables, torch.tensor([False, True]), torch.tensor([1.0, 0.0]).double())
    total = torch.zeros(3).double()
    for path in paths(mdp, torch.full((2, 3), 1 / 3).double(), 1):
        learner = agent(Spec((2,), torch.float64, ("a", "b", "c")))
        for step in path.transitions(partial(one_hot, of=2)):
            learner.update(step)
        total += path.probability * preferences(learner)[0]
    torch.testing.assert_close(total.tolist(), [-4 / 9, -1 / 9, 5 / 9])


# -- whose steps count


def feed(learner: Reinforce, reward, last, discount=None, action=None, next_state=None) -> list[int]:
    """Updates with N envs from [T][N] of rewards and ends, all in state 0; says at which steps it learned."""
    reward, last = torch.tensor(reward).double(), torch.tensor(last).bool()
    discount = 1 - last.double() if discount is None else torch.tensor(discount).double()
    obs, learned = one_hot(torch.zeros(reward.shape[1], dtype=int)), []
    action = torch.zeros(reward.shape, dtype=int) if action is None else torch.tensor(action)
    next_obs = obs if next_state is None else one_hot(torch.tensor(next_state))
    for t in range(len(reward)):
        if learner.update(transition(obs, action[t], reward[t], discount[t], last[t], next_obs)):
            learned.append(t)
    return learned


def solo(**changes) -> Reinforce:
    return agent(Spec((4,), torch.float64, ("a", "b")), **changes)


def test_who_is_done_is_not_counted_and_old_episodes_end_first():
    """Env 0's episodes last 2 steps, env 1's 3: steps 0 to 2 are a batch, in which env 0 counts two.

    Then env 0 is amidst an old episode, step 3, and its next counts, steps 4 and 5, as do steps 3 to 5 of env 1.
    """
    ends = [[0, 0], [1, 0], [0, 1], [1, 0], [0, 0], [1, 1]]
    ones = [[1.0, 1.0]] * 6
    learner = solo()
    assert feed(learner, ones, ends) == [2, 5] and learner.settled
    for t, i, moves in [(0, 0, True), (1, 0, True), (2, 0, False), (3, 0, False), (4, 0, True), (5, 0, True),
                        *((t, 1, True) for t in range(6))]:  # fmt: skip
        other, reward = solo(), [list(row) for row in ones]
        reward[t][i] = 7.0
        feed(other, reward, ends)
        same = torch.equal(preferences(other), preferences(learner))
        assert same != moves, f"a reward of env {i} at step {t}"


def test_no_bias_to_short_episodes():
    """Half of the episodes last 1 step, half 9: 5 in the mean, whoever waits for whom."""
    states = torch.arange(10)
    onward = (states + 1).clamp(max=9)[:, None, None].repeat(1, 1, 2)
    onward[0, 0] = torch.tensor([1, 9])
    p = torch.full((10, 1, 2), 0.5, dtype=torch.float64)
    start = (states == 0).double()
    env = MDPEnv(from_tables(onward, p, torch.zeros(10, 1, 2).double(), states == 9, start), 8, 100)
    for episodes in 1, 3:
        learner, lengths, obs = agent(env.spec, episodes=episodes), [], env.reset(0)
        for _ in range(3_000):
            action = learner.act(obs)
            step = env.step(action)
            lengths += [
                found["reinforce/length"] for found in [learner.update(Transition.of(obs, action, step))] if found
            ]
            obs = step.obs
        lengths = torch.tensor(lengths)
        error = 4 / (8 * episodes * len(lengths)) ** 0.5  # an episode's length deviates by 4
        assert len(lengths) > 75 and (lengths.mean() - 5).abs() < 4 * error, lengths.mean()


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_a_reward_after_a_reset_never_moves_an_earlier_term(discount):
    """Two episodes of one env, over or cut off: the action's own preference tells which terms a reward reached."""
    ends, actions = [[0], [1], [0], [1]], [[0], [0], [1], [1]]
    base, moved = solo(episodes=2, gamma=0.5), solo(episodes=2, gamma=0.5)
    for learner, late in (base, 0.0), (moved, 8.0):
        feed(learner, [[1.0], [1.0], [late], [late]], ends, [[1.0], [discount]] * 2, actions)
    # From uniform: sum of psi (one_hot(a) - 1/2) / 2 episodes; psi 1.5 and 1 for a, then 12 and 8 for b.
    torch.testing.assert_close(preferences(base)[0].tolist(), [2.5 / 4, -2.5 / 4])
    torch.testing.assert_close(preferences(moved)[0].tolist(), [(2.5 - 20) / 4, (20 - 2.5) / 4])


def credit_of(learner: Reinforce, **steps) -> list[float]:
    """What each step of one env in turn is credited with: the action is b at that step and a elsewhere.

    From uniform the preference for b less that for a is psi_t less all others, so that two sums tell psi_t.
    """
    count, state = len(steps["reward"]), deepcopy(learner.state_dict())

    def lean(chosen: int | None) -> float:
        learner.load_state_dict(deepcopy(state))
        feed(learner, action=[[int(t == chosen)] for t in range(count)], **steps)
        return (preferences(learner)[0, 1] - preferences(learner)[0, 0]).item()

    return [(lean(t) - lean(None)) / 2 for t in range(count)]


ONE_LIFE_LOST = dict(reward=[[1.0], [2.0], [4.0], [8.0]], last=[[0], [0], [0], [1]], discount=[[1], [0], [1], [0]])


def test_a_lost_life_ends_the_return_but_not_the_episode():
    assert credit_of(solo(gamma=0.5), **ONE_LIFE_LOST) == pytest.approx([2, 2, 8, 8])
    assert credit_of(solo(gamma=0.5, credit="total_return"), **ONE_LIFE_LOST) == pytest.approx([2, 2, 8, 8])
    assert credit_of(solo(gamma=0.5, exact_discount=True), **ONE_LIFE_LOST) == pytest.approx([2, 1, 8, 4])
    assert feed(solo(), ONE_LIFE_LOST["reward"], ONE_LIFE_LOST["last"], ONE_LIFE_LOST["discount"]) == [3]


def test_a_return_ends_at_the_time_limit_unless_the_value_stands_for_the_rest():
    """gamma 1/2, rewards 1 and 4; the step after the limit is worth 6, the present state 0."""
    cut = dict(reward=[[1.0], [4.0]], last=[[0], [1]], discount=[[1.0], [1.0]], next_state=[2])
    for bootstrap, ends, expected in [(False, 1.0, [3, 4]), (True, 1.0, [4.5, 7]), (True, 0.0, [3, 4])]:
        learner = solo(gamma=0.5, bootstrap=bootstrap, baseline=TABLE)
        learner.baseline.network.head.weight.data = torch.tensor([[0.0, 0, 6, 0]]).double()
        assert credit_of(learner, **cut | {"discount": [[1.0], [ends]]}) == pytest.approx(expected)


def test_rewards_are_clipped_and_the_entropy_is_climbed():
    clipped = solo(gamma=0.5, max_abs_reward=1.0)
    assert credit_of(clipped, reward=[[9.0], [-3.0]], last=[[0], [1]]) == pytest.approx([0.5, -1.0])
    learner = solo(entropy_coef=0.1)
    learner.network.head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0] * 4]).double()
    feed(learner, [[0.0], [0.0], [0.0]], [[0], [0], [1]])
    x = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    entropy = -(x.softmax(-1) * x.log_softmax(-1)).sum()
    slope = torch.autograd.grad(entropy, x)[0]  # of each of three steps
    torch.testing.assert_close(preferences(learner)[0], torch.tensor([1.0, 0.0]).double() + 0.3 * slope)


def test_advantages_are_standardised_when_asked_for():
    rewards = dict(reward=[[1.0], [2.0], [6.0]], last=[[1], [1], [1]])
    psi = torch.tensor(credit_of(solo(standardise=True, episodes=3), **rewards)) * 3  # mean over three episodes
    torch.testing.assert_close(psi, torch.tensor([-2, -1, 3]) / 7**0.5, atol=1e-6, rtol=0)


# -- baselines


def test_a_running_mean_knows_earlier_batches_alone():
    learner = solo(baseline=partial(RunningMean, rate=0.25), gamma=0.0)
    expected = [1, 10 - 1, 2 - (1 + 0.25 * 9)]
    for reward, psi in zip([1.0, 10.0, 2.0], expected, strict=True):
        before = preferences(learner).clone()
        feed(learner, [[reward]], [[1]])
        chance = before[0].softmax(-1)[0]
        torch.testing.assert_close((preferences(learner) - before)[0, 0], psi * (1 - chance))


def test_a_value_is_fitted_after_it_was_subtracted():
    """Rate 1/2, two steps on half squares from 2 towards 10: to 6 and to 8; the advantage was 8."""
    learner = solo(baseline=partial(TABLE, optimizer=partial(torch.optim.SGD, lr=0.5), epochs=2))
    learner.baseline.network.head.weight.data[0, 0] = 2.0
    feed(learner, [[10.0]], [[1]])
    torch.testing.assert_close(preferences(learner)[0].tolist(), [4.0, -4.0])
    assert learner.baseline.of(one_hot(torch.tensor([0, 1]))).tolist() == [8.0, 0.0]
    assert learner.view(one_hot(torch.tensor([0]))).value.tolist() == [8.0]


def test_only_a_value_of_states_can_stand_for_what_was_cut_off():
    for changes in dict(baseline=RunningMean), dict(baseline=Nothing), dict(baseline=TABLE, credit="total_return"):
        with pytest.raises(UserError, match="agent.bootstrap needs a value of states"):
            solo(bootstrap=True, **changes)


# -- in pieces, and on from where it stopped


def walk(learner: Reinforce, env: stepper.MDPEnv, steps: int, obs: torch.Tensor) -> torch.Tensor:
    for _ in range(steps):
        action = learner.act(obs)
        step = env.step(action)
        learner.update(Transition.of(obs, action, step))
        obs = step.obs
    return obs


def test_chunks_change_nothing_but_the_room_they_take():
    env, found = MDPEnv(world(), 7, HORIZON), []
    for size in 1, 20, 100_000:
        learner = agent(env.spec, baseline=partial(TABLE, epochs=3), episodes=2, entropy_coef=0.1, chunk_size=size)
        walk(learner, env, 60, env.reset(0))
        found.append((preferences(learner), learner.baseline.network.head.weight))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_loss_in_parts_is_descended_one_graph_after_the_other():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def parts():
        yield 2 * p.sum()
        assert p.grad.tolist() == [2.0, 2.0], "the first part's gradient is there before the second is made"
        yield p.square().sum()

    norm = descend(torch.optim.SGD([p], lr=0.1), parts())
    torch.testing.assert_close(p.tolist(), [0.6, 1.4])
    assert norm.item() == pytest.approx((4**2 + 6**2) ** 0.5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_saved_agent_goes_on_as_the_one_that_was_never_stopped(baseline):
    env = MDPEnv(world(), 5, HORIZON)
    whole, saved = (agent(env.spec, lr=0.1, baseline=BASELINES[baseline]) for _ in range(2))
    for learner in saved, whole:
        obs = walk(learner, env, 30, env.reset(0))
        while not learner.settled:
            obs = walk(learner, env, 1, obs)
    assert not whole.at_start.all(), "some are amidst an episode"
    resumed = agent(env.spec, lr=0.1, baseline=BASELINES[baseline], bootstrap=False)
    resumed.load_state_dict(deepcopy(saved.state_dict()))
    state = deepcopy(env.state_dict())
    for learner in whole, resumed:
        env.load_state_dict(deepcopy(state))
        walk(learner, env, 40, env.observe())
    assert torch.equal(preferences(whole), preferences(resumed))
    assert not torch.equal(preferences(whole), preferences(saved))


def test_what_was_held_when_a_run_ended_is_not_mistaken_for_an_episode():
    """Taken up amidst an episode: its end does not count, the next episode does."""
    first, second = solo(), solo()
    feed(first, [[1.0], [1.0]], [[0], [0]])
    second.load_state_dict(first.state_dict())
    assert feed(second, [[5.0], [1.0], [1.0]], [[1], [0], [1]]) == [2]
    alone = solo()
    feed(alone, [[1.0], [1.0]], [[0], [1]])
    torch.testing.assert_close(preferences(second), preferences(alone))


# -- where theory says it ends


def test_the_blind_learn_the_coin_of_the_short_corridor():
    """P(right) = 2 - sqrt 2, worth -6 - 4 sqrt 2 (Sutton and Barto, 2018, example 13.1)."""
    env = MDPEnv(short_corridor(), 1_024, 1_000)
    learner = agent(env.spec, 0.05, network=constant, gamma=1.0, baseline=partial(TABLE, network=constant))
    walk(learner, env, 3_000, env.reset(0))
    chance = learner.view(env.all_observations()).bars.detach().double()
    assert chance[0, 1].item() == pytest.approx(2 - 2**0.5, abs=0.03)
    assert (env.mdp.start @ evaluate_policy(env.mdp, chance)).item() == pytest.approx(-6 - 4 * 2**0.5, abs=0.05)


def trained(folder, experiment: str, *arguments: str) -> dict:
    given = ["train", f"experiment={experiment}", "tracker=none", "device=cpu", f"hydra.run.dir={folder}", *arguments]
    assert cli.main("rl-lab", "rl", COMMANDS, given) == 0
    player = load(folder, max_envs=100, device="cpu")
    return Judge(player.env, 100, 1)(player.agent)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_cart_pole_is_learned(tmp_path, seed):
    assert trained(tmp_path, "reinforce_cartpole", f"seed={seed}")["eval/return"] > 475
