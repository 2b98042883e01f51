"""VPN learning: what it learns from against figures, its random streams, and whole runs."""

import json
from functools import partial

import pytest
import torch
from stated import stated
from transitions import transition
from vpn_cases import CPU, FOUR, SMALL, Dice, agent, grid, planes, rollout

from rl_lab import losses
from rl_lab.__main__ import COMMANDS
from rl_lab.agents.vpn.baselines import ActionValue
from rl_lab.agents.vpn.learner import VPN
from rl_lab.agents.vpn.model import ValuePrediction
from rl_lab.agents.vpn.replay import Rollouts
from rl_lab.agents.vpn.walks import Walks
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.loops.judging import Judge, play
from rl_lab.playing.player import load
from rl_lab.types import Spec, Transition

Linear = stated("agent/dqn", "epsilon")
Optimal = stated("agent/optimal_collector")


@pytest.mark.parametrize(
    ("ends", "returned", "reached"),
    [
        # gamma 1/2, and what lies beyond the rollout or a cut is worth 16
        ([(1.0, False), (1.0, False), (1.0, False)], [5.0, 8.0, 12.0], [8.0, 12.0, 16.0]),
        ([(1.0, False), (0.0, True), (1.0, False)], [2.0, 2.0, 12.0], [2.0, 0.0, 16.0]),  # terminated
        ([(1.0, False), (1.0, True), (1.0, False)], [6.0, 10.0, 12.0], [10.0, 16.0, 16.0]),  # cut short
        ([(1.0, False), (0.0, False), (0.0, True)], [2.0, 2.0, 4.0], [2.0, 0.0, 0.0]),  # a life lost, then the end
        ([(1.0, False, 3.0), (1.0, False), (1.0, False, 2.0)], [1.75, 6.0, 8.0], [6.0, 8.0, 16.0]),  # options that last
    ],
)
def test_what_a_rollout_was_worth(ends, returned, reached):
    learner = agent(gamma=0.5)
    learner.q = lambda network, obs, branches: torch.full((len(obs), 4), 16.0 if network is learner.target else 1e9)
    play = learner.sequences(rollout(*ends))
    assert play.returned.flatten().tolist() == pytest.approx(returned)
    assert play.reached.flatten().tolist() == pytest.approx(reached)
    assert play.end.flatten().tolist() == [d == 0 or last for d, last, *_ in ends]
    assert play.duration.flatten().tolist() == [sum(duration) or 1.0 for _, _, *duration in ends]


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
    assert "the next 30 steps are random play" in learner.announce(4)
    dice.teach(learner, 8)
    assert learner.walks.full and learner.walks.rows == 8 and learner.steps == learner.learns == 0 and learner.settled
    assert all(torch.equal(a, b) for a, b in zip(before, learner.online.parameters(), strict=True))
    metrics = dice.teach(learner, 3)[-1]
    assert learner.steps == 12 and learner.learns == 2
    assert set(metrics) == {f"vpn/{x}" for x in ("reward_loss", "duration_loss", "value_loss", "grad_norm", "epsilon")}
    assert learner.announce(4) is None


@pytest.mark.parametrize("walks", [1, 3])
def test_every_sequence_is_learned_from_beside_its_random_walks_their_rewards_clipped_too(walks):
    learner, dice, seen = agent(random_steps=30, walks_per_sequence=walks, max_abs_reward=1.0), Dice(), []
    real, found = learner.online.losses, []

    def losses_of(play, *rest):
        seen.append(play)
        found.append(real(play, *rest))
        return found[-1]

    learner.online.losses = losses_of
    metrics = dice.teach(learner, 8 + 3)[-1]
    torch.testing.assert_close(metrics["vpn/reward_loss"], found[-1]["reward"].sum() / 2)  # of both, a sequence
    assert [play.valued.tolist() for play in seen] == [[1, 1] + [0, 0] * walks] * 2
    assert all(play.obs.shape == (3, 2 + 2 * walks, *SMALL.obs_shape) and play.reward.abs().max() == 1 for play in seen)
    assert all(not play.reached[:, 2:].any() and play.start[:, :2].all() for play in seen)


@pytest.mark.parametrize("cross_ends", [False, True])
def test_a_walk_is_learned_from_beyond_an_end_where_it_is_asked_to_be(cross_ends):
    learner = agent(random_steps=30, walks_cross_ends=cross_ends)
    Dice().teach(learner, 8)
    walk = learner.walk(200)
    over = torch.cat([torch.zeros_like(walk.end[:1]), walk.end[:-1]]).cumsum(0) > 0
    assert over.any() and (walk.start[over] == cross_ends).all() and walk.start[~over].all()


@pytest.mark.parametrize("cross_ends", [False, True])
def test_random_walks_are_pieces_of_what_was_walked(cross_ends):
    walks, dice = Walks(100, SMALL, CPU), Dice(5)
    walked = [dice.transition(torch.randint(4, (5,), generator=dice.rng)) for _ in range(20)]
    for each in walked:
        walks.add(each)
    assert walks.full and walks.nbytes == 20 * 5 * (4 * 4 + 4 * 4 + 1 + 4 + 1 + 1)  # 30 cells are four bytes
    sample = walks.sample(400, 6, torch.Generator().manual_seed(0), cross_ends)
    obs = torch.stack([t.obs for t in walked])
    found = set()
    for b in range(400):
        ((t, n),) = (obs == sample["obs"][0, b]).flatten(2).all(-1).nonzero().tolist()
        found.add((t, n))
        assert not walked[t].last[n]
        ended = False
        for i in range(6):
            true = walked[t + i]
            assert sample["start"][i, b] == (cross_ends or not ended)
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
        walks.add(transition(each, one.long(), one, one, one > 1, each))
    sample = walks.sample(50, 3, torch.Generator().manual_seed(0))
    first = sample["obs"][0, :, 0, 0, 0].long()
    assert torch.equal(sample["next_obs"][2, :, 0, 0, 0].long(), first + 3 * 18) and set(first.tolist()) == {
        0,
        9,
        18,
        27,
    }
    with pytest.raises(UserError, match="planes of one number each"):
        Walks(10, SMALL, CPU).add(transition(torch.rand(2, *SMALL.obs_shape), one.long(), one, one, one > 1, planes(2)))


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="agent.random_steps=16 must be 0, or more than 16"):
        agent(random_steps=16).announce(4)
    walks, one = Walks(8, SMALL, CPU), torch.ones(2)
    for _ in range(4):  # a world whose every step is an end
        walks.add(transition(planes(2).float(), one.long(), one, one, one > 0, planes(2).float()))
    with pytest.raises(UserError, match="agent.random_steps=8: every step of these walks ends an episode"):
        walks.sample(2, 2, torch.Generator())
    with pytest.raises(
        UserError, match=r"agent.random_steps=9 keeps frames or planes, and this world shows numbers \(4,\)"
    ):
        Walks(9, SMALL._replace(obs_shape=(4,)), CPU)
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


# -- rollouts kept, ours


def keeping(**changes) -> VPN:
    return agent(replay=partial(Rollouts, decisions=24, repeats=3), **changes)  # 2 rollouts of 3 x 4


def test_rollouts_are_read_as_they_were_lived_and_the_oldest_are_gone():
    rollouts, dice = Rollouts(CPU, decisions=20, repeats=1), Dice()
    lived = [[dice.transition(torch.full((4,), t)) for t in range(3 * r, 3 * r + 3)] for r in range(3)]
    for each in lived:
        rollouts.add(each)
    read = rollouts.sample(300, torch.Generator().manual_seed(0))
    seen = set()
    for i in range(300):
        r = int(read[0].action[i]) // 3
        env = int((lived[r][0].obs == read[0].obs[i]).flatten(1).all(1).nonzero())
        for kept, whole in zip(read, lived[r], strict=True):
            assert all(torch.equal(x[i], y[env]) for x, y in zip(kept, whole, strict=True))
        seen.add((r, env))
    assert seen == {(r, env) for r in (1, 2) for env in range(4)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout_length": 4}, "rollouts of 3 decisions do not fit agent.rollout_length=4"),
        ({"replay": partial(Rollouts, decisions=48, repeats=3)}, "2 rollouts of 3 decisions of 4 environments do not fit "
         "agent.replay.decisions=48"),
    ],
)  # fmt: skip
def test_kept_rollouts_of_other_settings_are_not_taken_up(changes, words):
    learner = keeping()
    Dice().teach(learner, 6)
    keeping().load_state_dict(learner.state_dict())
    with pytest.raises(ValueError, match=words):
        agent(**{"replay": partial(Rollouts, decisions=24, repeats=3)} | changes).load_state_dict(learner.state_dict())


def test_each_sequence_kept_is_read_so_often_and_valued_by_the_target_of_today():
    learner, dice, asked = keeping(sequences_per_update=5), Dice(), []
    planned = learner.q
    learner.q = lambda network, obs, branches: asked.append(len(obs)) or planned(network, obs, branches)
    dice.teach(learner, 6)
    assert learner.learns == 2 * 3  # of 4 sequences thrice, five at a time: 2.4, rounded up, after each rollout
    assert asked.count(5) == 6 and learner.rollouts.written == 2
    read = learner.rollouts.sample(4, torch.Generator().manual_seed(1))
    before = learner.sequences(read).returned
    torch.nn.init.constant_(learner.target.value[-1].bias, 7.0)
    assert not torch.equal(learner.sequences(read).returned, before)


def test_kept_rollouts_are_resumed_or_gathered_anew():
    whole, resumed, dice, same = keeping(), keeping(), Dice(), Dice()
    dice.teach(whole, 9)
    same.teach(resumed, 9)
    fresh = keeping(seed=5)
    fresh.load_state_dict(resumed.state_dict())
    assert dice.teach(whole, 6) == same.teach(fresh, 6)
    without = keeping(seed=5)
    without.load_state_dict(resumed.state_dict(without=without.memory))
    assert without.rollouts.written == 0 and without.steps == resumed.steps
    same.teach(without, 3)
    assert without.rollouts.written == 1


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
    took = torch.stack([7 - at, at], 1).clamp(min=1).float()
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_three_step_plans_reach_the_optimum_of_one_maze(seed):
    """Found by a dynamic programme over the sets of its goals."""
    env = stated("env/collect")(16, size=8, goals=4, holes=2, time_limit=10, mazes=8, option_gamma=1.0)
    env.start = lambda number, start=env.start: start(0 * number)._replace(number=number)  # every episode is the first
    net = partial(ValuePrediction, encoder=grid((16, 16, 24)), units=64, gate=True, joint_head=False, duration="relu")
    learner = agent(env.spec, seed, network=net, gamma=0.98, depth=3, rollout_length=10, sequences_per_update=4,
                    random_steps=1_600, epsilon=Linear(1.0, 0.1, 6_000), target_update_period=500)  # fmt: skip
    obs = env.reset(seed)
    best = Optimal(env.spec, CPU, 0, time_limit=10, goal_reward=2.0, living_reward=-0.2).view(obs).value.float()
    for _ in range(100 + 1_000):
        action = learner.act(obs)
        step = env.step(action)
        learner.update(Transition.of(obs, action, step))
        obs = step.obs
    returns, _ = play(env, partial(learner.act, greedy=True), 16, seed)
    torch.testing.assert_close(returns, best, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_learns_the_book_world(tmp_path, seed):
    player = trained(tmp_path, "vpn_russell_norvig", f"seed={seed}")
    assert Judge(player.env, 100, 1)(player.agent)["eval/regret"] < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "vpn1",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("vpn2", "vpn5", "vpn5_star")),
        "vpn3",
        "vpn_replay",
        "opn",
        "dqn_collect",
    ],
)
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
