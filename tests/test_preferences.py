"""What is wanted, from which of two clips is better: literal numbers, clips that are whole, and exact regret."""

import itertools
import json
import math

import pytest
import torch
from stated import stated
from torch import tensor
from transitions import transition

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import A2C
from rl_lab.core import checkpoint
from rl_lab.core.interrupts import Stopped
from rl_lab.core.launching import cli
from rl_lab.core.randomness import generator, stream
from rl_lab.core.run import Run
from rl_lab.loops.preferences import continued, learned_world, told, watch_random
from rl_lab.planning import Regret
from rl_lab.types import Spec, Step
from rl_lab.wanted.preferences.clips import Clips, Tape, packed, unpacked
from rl_lab.wanted.preferences.learner import Preferences, poisson
from rl_lab.wanted.preferences.losses import (
    calibration,
    disagreement,
    labels_due,
    overfitted,
    preference_loss,
    preferred,
)
from rl_lab.wanted.preferences.predictors import Predictor
from rl_lab.wanted.preferences.teachers import Oracle
from rl_lab.wanted.tables import exact_plan

MDPEnv = stated("env/base/tabular")
linear = stated("agent/network/linear")
ensemble = stated("loop/preferences", "predictor", network=linear)
BOOK, ROOMS = stated("env/russell_norvig", "mdp")(), stated("env/four_rooms", "mdp")()
CPU, SPEC = torch.device("cpu"), Spec((3,), torch.float32, ("a", "b"))


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


# -- losses and schedules


def test_the_loss_of_two_clips():
    """Sums of .6 and .3."""
    d, answers = tensor([0.3] * 3).double().requires_grad_(), tensor([1.0, 0.0, 0.5]).double()
    assert d[0].sigmoid().item() == pytest.approx(0.574443, abs=1e-6)
    assert preferred(d, 0.1)[0].item() == pytest.approx(0.566998, abs=1e-6)
    losses = preference_loss(d, answers, 0.1)
    assert losses.tolist() == pytest.approx([0.567399, 0.837014, 0.702206], abs=1e-6)
    assert torch.autograd.grad(losses[0], d)[0][0].item() == pytest.approx(-0.388030, abs=1e-6)
    assert torch.autograd.grad(preference_loss(d, answers, 0.0)[0], d)[0][0].item() == pytest.approx(
        -0.425557, abs=1e-6
    )


def test_errors_of_the_teacher_bound_the_loss():
    d, left = tensor([-10.0]).double().requires_grad_(), tensor([1.0]).double()
    for error, loss, slope in ((0.1, 2.994915, -8.16e-4), (0.0, 10.000045, -0.999955)):
        found = preference_loss(d, left, error)
        assert found.item() == pytest.approx(loss, abs=1e-6)
        assert torch.autograd.grad(found, d)[0].item() == pytest.approx(slope, abs=1e-6)


def test_swapping_the_clips_and_the_answer_changes_nothing():
    d, left = torch.linspace(-3, 3, 7), torch.linspace(0, 1, 7)
    assert torch.allclose(preference_loss(d, left, 0.1), preference_loss(-d, 1 - left, 0.1))


def test_the_schedule_of_the_paper():
    due = [labels_due(step, 50_000_000, 5_500, 500) for step in range(0, 50_000_001, 5_000_000)]
    assert due == [500, 2207, 3061, 3630, 4056, 4398, 4682, 4926, 5140, 5329, 5500]
    assert labels_due(2_500_000, 50_000_000, 5_500, 500) == round(500 + 1707.08 / 2)
    assert labels_due(60_000_000, 50_000_000, 5_500, 500) == 5_500


def test_the_penalty_moves_by_what_is_foreseen():
    """Held-out losses of 2, 1.2 and 1 times the others', and none held out; the weight of an answer counts."""
    left, weight = torch.ones(3), tensor([[1.0, 3.0, 0.0]] * 3 + [[1.0, 1.0, 1.0]])
    loss = tensor([[0.4, 0.8, 1.4], [0.4, 0.8, 0.84], [0.4, 0.8, 0.7], [0.4, 0.8, 1.4]])
    assert overfitted((-loss).exp(), left, weight).tolist() == [1, 0, -1, 0]


def test_disagreement_is_about_the_probability():
    assert disagreement(tensor([[0.2], [0.5], [0.9]])).item() == pytest.approx(0.082222, abs=1e-6)


def test_calibration():
    """Two bins: .15 and .25 where half was left, .9 where all was: |.4 - 1| and |.9 - 1|, over three."""
    p, left = tensor([0.12, 0.18, 0.9]), tensor([1.0, 0.0, 1.0])
    assert calibration(p, left).item() == pytest.approx((0.7 + 0.1) / 3)


def test_a_member_holds_out_one_answer_in_e():
    weight = poisson((100_000,), generator(0, CPU))
    assert (weight == 0).double().mean().item() == pytest.approx(math.exp(-1), abs=0.005)
    assert weight.mean().item() == pytest.approx(1, abs=0.01) and weight.var().item() == pytest.approx(1, abs=0.02)


def test_the_teacher():
    left, right = tensor([1.0, 0.0, 0.5]).repeat(10_000), tensor([0.0, 1.0, 0.5]).repeat(10_000)
    exact = Oracle(error=0.0, laziness=0.0)(left, right, generator(0, CPU))
    assert exact.left[:3].tolist() == [1, 0, 0.5] and exact.given.all()
    assert (exact.left[2::3] == 0.5).all(), "as good is a third answer"
    erring = Oracle(error=0.1, laziness=0.3)(left, right, generator(0, CPU))
    assert (erring.left[::3] == 0).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (erring.left[2::3] == 0.5).all() and erring.given.double().mean().item() == pytest.approx(0.7, abs=0.01)


# -- clips


def walk(lasts: list[int], discounts: list[int]) -> Tape:
    """One env that counts its steps in the observation, and pays them."""
    tape, time = Tape(len(lasts)), torch.arange(len(lasts) + 1.0)
    for t, (last, discount) in enumerate(zip(lasts, discounts, strict=True)):
        at, after = time[t].expand(1, 3), (time[t] + 0.5).expand(1, 3)
        tape.add(
            transition(at, tensor([t % 2]), time[t : t + 1], tensor([float(discount)]), tensor([bool(last)]), after)
        )
    return tape


def test_clips_stay_in_an_episode_and_short_ones_are_filled_up():
    """Ends after step 4, for good, and after step 9, by the time limit."""
    lasts, discounts = [int(t in (4, 9)) for t in range(16)], [int(t != 4) for t in range(16)]
    clips = walk(lasts, discounts).draw(400, 3, generator(0, CPU))
    begins = clips.obs[:, 0, 0].int()
    assert {*begins.tolist()} == {0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13}, "8 and 9 would show the cut as an end"
    for begin, length, obs, true in zip(begins.tolist(), clips.length.tolist(), clips.obs, clips.true, strict=True):
        assert length == {3: 2, 4: 1}.get(begin, 3)
        assert true == sum(range(begin, begin + length))
        assert obs[:length, 0].tolist() == [*range(begin, begin + length)]
        assert obs[length, 0] == begin + length - 0.5, "the last successor, not the next episode"
    assert walk([0, 1], [1, 1]).draw(4, 3, generator(0, CPU)) is None


def test_no_clip_runs_over_a_cut():
    """After step 15, where a resumed run begins new episodes."""
    tape = walk([0] * 16, [1] * 16)
    tape.cut()
    for t in range(16, 24):
        at = tensor([float(t)]).expand(1, 3)
        tape.add(transition(at, tensor([0]), tensor([1.0]), tensor([1.0]), tensor([False]), at))
    begins = tape.draw(400, 3, generator(0, CPU)).obs[:, 0, 0]
    assert {*begins.int().tolist()} == {8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21}


def test_the_tape_keeps_the_newest():
    tape = walk([0] * 8, [1] * 8)
    for t in range(8, 13):
        at = tensor([float(t)]).expand(1, 3)
        tape.add(transition(at, tensor([0]), tensor([1.0]), tensor([1.0]), tensor([False]), at))
    begins = tape.draw(100, 2, generator(0, CPU)).obs[:, 0, 0]
    assert {*begins.int().tolist()} == {*range(5, 12)}


@pytest.mark.parametrize("length", [5, 8, 12])
def test_a_tape_of_another_length_takes_up_the_newest(length):
    tape = walk([0] * 8, [1] * 8)
    at = tensor([8.0]).expand(1, 3)
    tape.add(transition(at, tensor([0]), tensor([1.0]), tensor([1.0]), tensor([False]), at))
    other = Tape(length)
    other.load_state_dict(tape.state_dict())
    begins = other.draw(200, 2, generator(0, CPU)).obs[:, 0, 0]
    assert {*begins.int().tolist()} == {*range(9 - min(length, 8), 8)}
    for t in range(9, 22):
        at = tensor([float(t)]).expand(1, 3)
        other.add(transition(at, tensor([0]), tensor([1.0]), tensor([1.0]), tensor([False]), at))
    assert {*other.draw(200, 2, generator(0, CPU)).obs[:, 0, 0].int().tolist()} == {*range(22 - length, 21)}


@pytest.mark.parametrize("channels", [1, 3])
def test_stacked_frames_are_kept_once(channels):
    frames = torch.arange(7 * channels * 4, dtype=torch.uint8).view(1, 7, channels, 2, 2)
    stacks = torch.stack([frames[:, t : t + 3].flatten(1, 2) for t in range(5)], 1)
    kept = packed(stacks, 3)
    assert kept.shape == (1, 7 * channels, 2, 2) and torch.equal(unpacked(kept, 3, channels), stacks)


# -- predictors


def some_clips(seed: int, length: int = 4) -> Clips:
    rng = generator(seed, CPU)
    obs = torch.randn(6, 5, 3, generator=rng)
    action = torch.randint(2, (6, 4), generator=rng)
    return Clips(obs, action, torch.full((6,), length), torch.zeros(6))


def test_ends_that_are_hidden():
    """The next episode follows; an end is worth -1 to the teacher, a time limit nothing."""
    obs, following = torch.zeros(3, 3), torch.ones(3, 3)
    step = Step(tensor([0.5, 0.5, 0.5]), tensor([1.0, 0.0, 1.0]), tensor([False, True, True]), obs + 7, following,
                torch.ones(3), tensor([9.0, 9.0, 9.0]))  # fmt: skip
    t = continued(obs, tensor([0, 1, 0]), step, -1.0)
    assert t.reward.tolist() == [0.5, -0.5, 0.5] and not t.last.any() and (t.discount == 1).all()
    assert torch.equal(t.next_obs, following), "where the agent stands next"
    assert told(obs, tensor([0, 1, 0]), step).reward.tolist() == [0.5] * 3


class Paid(torch.nn.Module):
    """A member that pays the first number of an observation, and `more`."""

    def __init__(self, more: float = 0.0, times: float = 1.0):
        super().__init__()
        self.more, self.times = more, times

    def forward(self, obs, action, next_obs):
        return self.times * (next_obs[:, 0] + self.more)


def test_the_level_shows_in_clips_that_end_alone():
    """A clip's rewards are summed, not averaged; what fills it up pays nothing, whatever the predictor says."""
    model, full, short = ensemble(SPEC, CPU, 0), some_clips(0), some_clips(1, length=2)
    by_hand = short.obs[:, 1:3, 0].sum(1)
    assert torch.allclose(model.difference(Paid(), full, short), full.obs[:, 1:, 0].sum(1) - by_hand)
    assert torch.allclose(model.difference(Paid(3.0), full, some_clips(1)), model.difference(Paid(), full, some_clips(1)), atol=1e-5)  # fmt: skip
    assert torch.allclose(
        model.difference(Paid(3.0), full, short), model.difference(Paid(), full, short) + 6, atol=1e-5
    )


@pytest.mark.parametrize("input", ["entered", "state", "change", "obs_action"])
def test_what_a_reward_is_of(input):
    member = Predictor(SPEC, linear, input)
    torch.nn.init.ones_(member.head.weight)
    obs, next_obs, action = tensor([[1.0, 0, 0]]), tensor([[2.0, 2, 0]]), tensor([1])
    member.head.weight.data[0] *= 5 if input == "obs_action" else 1
    expected = {"entered": 4, "state": 1, "change": 3, "obs_action": 1}[input]
    assert member(obs, action, next_obs).item() == expected


@pytest.mark.parametrize("normalise", ["scale", "standard"])
def test_each_member_is_normalised_before_the_mean(normalise):
    model = ensemble(SPEC, CPU, 0, normalise=normalise, deviation=0.5, members=2)
    model.members = torch.nn.ModuleList([Paid(2.0), Paid(-1.0, times=100.0)])
    clips, other = some_clips(0), some_clips(1)
    steps = torch.cat([clips.obs[:, 1:, 0].flatten(), other.obs[:, 1:, 0].flatten()])
    model.renormalise(clips, other)
    next_obs, by_hand = tensor([[1.0, 0, 0]]), []
    for more, times, scale in zip((2.0, -1.0), (1.0, 100.0), model.scale.tolist(), strict=True):
        paid = times * (steps + more)
        level = paid.mean() if normalise == "standard" else 0.0
        assert scale == pytest.approx((paid - level).square().mean().sqrt().item())
        by_hand.append(0.5 * (times * (1 + more) - float(level)) / scale)
    t = transition(next_obs, tensor([0]), tensor([math.nan]), tensor([1.0]), tensor([False]), next_obs)
    assert model.rewards(t).item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_an_answer_counts_as_often_as_a_member_drew_it():
    model, (left, right), answer = (
        ensemble(SPEC, CPU, 0, penalty=0.5),
        (some_clips(0), some_clips(1)),
        tensor([1.0, 0, 0.5, 1, 0, 1]),
    )
    member = model.members[0]
    torch.nn.init.constant_(member.head.weight, 2.0)
    each = preference_loss(model.difference(member, left, right), answer, 0.1)
    found = model.loss(member, left, right, answer, tensor([2.0, 0, 1, 0, 0, 0]))
    assert found.item() == pytest.approx(((2 * each[0] + each[2]) / 3).item() + 0.25 * 3 * 4, rel=1e-6)


def test_what_a_member_holds_out_teaches_it_nothing():
    left, right, answer = some_clips(0), some_clips(1), tensor([1.0, 0, 1, 0, 1, 0]).double()
    weight = tensor([[1.0, 0], [2, 0], [0, 0], [0, 1], [0, 1], [0, 1]])
    found = []
    for held_out in (0.0, 1.0):
        model = ensemble(SPEC, CPU, 0, members=2, epochs=20)
        model.fit(left, right, answer.index_fill(0, tensor([2]), held_out), weight, generator(0, CPU))
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.allclose(found[0][0], found[0][1]) and found[0][0].any()


def test_members_disagree_about_the_probability_not_the_sums():
    """Sums of x and 50 x: the farther they are apart, the surer both members are."""
    model = Preferences(
        ensemble(SPEC, CPU, 0, members=2), Oracle(error=0.0, laziness=0.0), SPEC, 1, CPU, 0, total_steps=1, labels=40,
        first=0.5, kept=40, clip=3, recent=60, select="disagreement", candidates=80,
    )  # fmt: skip
    model.ensemble.members = torch.nn.ModuleList([Paid(), Paid(times=50.0)])
    model.tape, model.answers = walk([0] * 60, [1] * 60), {"answer": torch.ones(1)}
    left, right = model.pairs(5)
    assert (model.ensemble.difference(Paid(), left, right).abs() == 3).all(), "begun a step apart"


@pytest.mark.parametrize("adapt", [1.0, 1.5])
def test_a_penalty_that_adapts_is_part_of_the_checkpoint(adapt):
    """Answers by chance, which nobody foresees, raise it; one that stays is a setting, as before."""
    model, weight = (
        ensemble(SPEC, CPU, 0, members=2, adapt=adapt, epochs=20),
        tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3),
    )
    model.fit(some_clips(0), some_clips(1), tensor([1.0, 0, 1, 0, 1, 0]).double(), weight, generator(0, CPU))
    assert model.penalties.tolist() == pytest.approx([adapt * 5e-4] * 2)
    assert ("penalties" in model.state_dict()) == (adapt != 1)


# -- what is understood, exactly


def taught(mdp, seed: int, labels: int, clip: int, input: str) -> Preferences:
    env = MDPEnv(mdp=mdp, time_limit=200)
    model = Preferences(
        ensemble(env.spec, CPU, stream(seed, "predictor"), input=input), Oracle(error=0.0, laziness=0.0), env.spec,
        env.num_envs, CPU, stream(seed, "preferences"), total_steps=1, labels=labels, first=1.0, kept=3_000, clip=clip,
        recent=32_000, select="random", candidates=10,
    )  # fmt: skip

    class Seeds:
        stream = staticmethod(lambda name: stream(seed, name))

    watch_random(env, model, Seeds())
    return model


@pytest.mark.parametrize("seed", range(2))
def test_160_answers_about_random_play_are_enough_for_the_book(seed):
    model = taught(BOOK, seed, 160, 25, "state")
    world = learned_world(model, MDPEnv(mdp=BOOK, time_limit=200))
    assert Regret(BOOK, 200)(exact_plan(world).policy) < 1e-9
    found = model.understood()
    assert found["preferences/labels"] == 160 and found["preferences/agreement"] > 0.95
    assert found["preferences/brier"] < 0.1


# -- as a command


SMALL = ["env=russell_norvig", "agent=a2c", "loop=preferences", "loop.labels=40", "loop.total_steps=3_200",
         "loop.recent=1_600", "loop.clip=10", "loop.eval_every=1_600", "loop.eval_episodes=8", "loop.log_every=320",
         "tracker=none", "device=cpu"]  # fmt: skip


def rows(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_the_agent_never_sees_the_true_reward_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    seen, update, pause = [], A2C.update, Run.pause
    monkeypatch.setattr(A2C, "update", lambda self, t: (seen.append(t.reward), update(self, t))[1])
    assert rl_lab("train", *SMALL, f"hydra.run.dir={tmp_path / 'whole'}") == 0
    values = torch.cat(seen)
    assert len(values) == 3_200 and not any((values - x).abs().min() < 1e-6 for x in (-0.04, 1.0, -1.0))

    def stopping(run, step, parts):
        pause(run, step, parts)
        if step >= 1_500:
            run.save(step, parts)
            raise Stopped(15)

    monkeypatch.setattr(Run, "pause", stopping)
    assert rl_lab("train", *SMALL, f"hydra.run.dir={tmp_path / 'stopped'}") == 143
    monkeypatch.setattr(Run, "pause", pause)
    assert rl_lab("train", f"run={tmp_path / 'stopped'}") == 0
    whole = rows(tmp_path / "whole")
    assert rows(tmp_path / "stopped") == whole
    last = whole[-1] | whole[-2]
    assert {"wanted/plan_regret", "wanted/starc", "eval/regret", "eval/return"} <= {*last}
    labels = [row["preferences/labels"] for row in whole if "preferences/labels" in row]
    assert labels[0] < 20 and labels[-1] == 40, "those about random play, and then ever more"
    assert (tmp_path / "whole/pictures/wanted.png").stat().st_size > 1_000


def test_an_agent_that_is_told_no_end(tmp_path, monkeypatch):
    """Nor is the teacher: its clips go on through them."""
    seen, update = [], A2C.update
    monkeypatch.setattr(A2C, "update", lambda self, t: (seen.append(t), update(self, t))[1])
    hidden = ["loop.hidden_ends=true", "loop.predictor.normalise=standard", f"hydra.run.dir={tmp_path / 'run'}"]
    assert rl_lab("train", *SMALL, *hidden) == 0
    assert not any(t.last.any() or (t.discount != 1).any() for t in seen)
    assert all(torch.equal(a.next_obs, b.obs) for a, b in itertools.pairwise(seen))
    answers = checkpoint.read(tmp_path / "run/checkpoint.pt")["preferences"]["answers"]
    assert (answers["left/length"] == 10).all() and answers["left/true"].min() < -1.5, "the pit, and its end"
    assert rows(tmp_path / "run")[-1].keys() >= {"eval/regret"} and "wanted/starc" not in rows(tmp_path / "run")[-1]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "loop.clip=300",
            "loop.clip=300 is longer than an episode, which has 200 steps at most; choose a shorter clip",
        ),
        ("loop.labels=1", "asks nothing before training; raise one of them"),
        ("loop.predictor.hidden_rows=2", "loop.predictor.hidden_rows=2 hides rows of a picture"),
        ("loop.predictor.input=all", "loop.predictor.input=all is not a choice"),
        ("agent/network@loop.predictor.network=cnn", "needs frames of at least"),
        ("teacher=nobody", "no choice 'nobody' for teacher; choose from oracle, person, recorded"),
    ],
)
def test_what_cannot_be_asked(setting, words, tmp_path, capsys):
    arguments = [x for x in SMALL if not setting.startswith(x.partition("=")[0] + "=")]
    assert rl_lab("train", *arguments, setting, f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("agent=a2c_mlp env.normalise_reward=0.9", "which loop=preferences tells no agent; leave it out"),
        ("env=atari agent=a2c_cnn agent/network@loop.predictor.network=cnn loop.predictor.network.standardise=true loop.predictor.input=state",
         "loop.predictor.network.standardise=true takes statistics of frames, which predictors do not gather; leave it out"),
        ("agent=dqn_mlp env.frame_stack=2 loop.hidden_ends=true", "loop.hidden_ends=true joins episodes, and DQN's replay tells "
         "stacks of frames apart by their ends; choose agent=a2c or ppo, or loop.hidden_ends=false"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_mixed_up(settings, words, tmp_path, capsys):
    given = [x for x in SMALL if not x.startswith(("env=", "agent="))]
    assert (
        rl_lab(
            "train",
            *given,
            *["env=gym"] * ("env=" not in settings),
            *settings.split(),
            f"hydra.run.dir={tmp_path / 'run'}",
        )
        == 2
    )
    assert words in capsys.readouterr().err and not (tmp_path / "run/checkpoint.pt").exists()


def test_the_teacher_judges_by_the_games_own_reward_and_statistics_are_kept(tmp_path):
    """CartPole pays 1 a step."""
    given = [x for x in SMALL if not x.startswith(("env=", "agent="))]
    world = ["env=gym", "env.num_envs=8", "env.normalise_obs=true", "agent=a2c_mlp"]
    assert rl_lab("train", *given, *world, f"hydra.run.dir={tmp_path / 'run'}") == 0
    state = checkpoint.read(tmp_path / "run/checkpoint.pt")
    assert state["statistics"]["obs"]["count"] > 3_200
    answers = state["preferences"]["answers"]
    assert len(answers["answer"]) == 40 and torch.equal(answers["left/true"], answers["left/length"].double())
