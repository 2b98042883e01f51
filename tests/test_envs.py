"""Atari and Gymnasium at our border: what ended, what was truncated, what was only a lost life."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from stated import stated

from rl_lab.core.errors import UserError

Atari = stated("env/atari")
Gym = stated("env/gym")

FIRE, NOOP = 1, 0


def play(env, policy, steps: int):
    env.reset(0)
    return [env.step(policy(t)) for t in range(steps)]


def breakout(**options) -> list:
    """One ball after another is served and missed: five lives are lost, then the game is over."""
    env = Atari("breakout", 1, noop_max=0, num_threads=1, **options)
    answers = play(env, lambda t: torch.tensor([FIRE if t % 2 else NOOP]), 260)
    env.close()
    return answers


def test_a_lost_life_ends_the_future_but_not_the_episode():
    answers = breakout(life_loss_terminal=True)
    lost = [t for t, s in enumerate(answers) if s.discount.item() == 0 and not s.last.item()]
    over = [t for t, s in enumerate(answers) if s.last.item()]
    assert len(over) == 2 and len(lost) >= 8  # four lives go before the fifth ends each game
    assert all(answers[t].discount.item() == 0 for t in over)
    assert sum(t < over[0] for t in lost) == 4
    for t in lost:  # the game goes on: what follows is what was seen
        assert torch.equal(answers[t].next_obs, answers[t].obs)


def test_without_the_option_only_the_end_of_the_game_counts():
    with_option, without = breakout(life_loss_terminal=True), breakout(life_loss_terminal=False)
    assert [s.last.item() for s in with_option] == [s.last.item() for s in without]
    assert all((s.discount.item() == 0) == s.last.item() for s in without)


@pytest.mark.parametrize("point_terminal", [True, False])
def test_a_point_ends_the_future_where_it_is_told_to_but_not_the_episode(point_terminal):
    env = Atari("pong", 1, noop_max=0, fire_reset=False, num_threads=1, point_terminal=point_terminal)
    answers = play(env, lambda t: torch.full((1,), NOOP), 200)
    env.close()
    lost = [t for t, s in enumerate(answers) if s.reward.item() == -1]
    assert len(lost) >= 3 and not any(s.last.item() for s in answers)
    assert [t for t, s in enumerate(answers) if s.discount.item() == 0] == (lost if point_terminal else [])


def test_a_truncated_game_keeps_its_future_and_its_last_frames():
    env = Atari("pong", 2, max_frames=200, noop_max=0, fire_reset=False, num_threads=1)
    answers = play(env, lambda t: torch.full((2,), NOOP), 120)
    ends = [t for t, s in enumerate(answers) if s.last.any()]
    assert ends == [49, 99]  # 200 frames, 4 a step
    for t in ends:
        assert answers[t].last.all() and (answers[t].discount == 1).all()
        assert not torch.equal(answers[t].next_obs, answers[t].obs)  # the true successor, and a new game
        # The stack of the true successor continues the one before: its oldest frames are that one's newest.
        assert torch.equal(answers[t].next_obs[:, :3], answers[t - 1].obs[:, 1:])
        assert torch.equal(answers[t].obs[:, :3], torch.zeros_like(answers[t].obs[:, :3]))  # padded by black
    env.close()


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("pong", {"max_frames": 200}),  # after a step's last frame
        ("pong", {"max_frames": 201}),  # after its first
        ("breakout", {"max_frames": 102, "frame_skip": 3, "noop_max": 0}),
        ("space_invaders", {"max_frames": 150, "sticky": 0.25, "life_loss_terminal": True}),
    ],
)
def test_the_successor_at_a_truncation_is_what_the_game_without_a_limit_shows_next(game, options):
    """Reward and discount too, of two games from idle starts of their own; and a new game begins."""
    cut = Atari(game, 2, num_threads=1, camera=True, **options)
    whole = Atari(game, 2, num_threads=1, camera=True, **options | {"max_frames": 108_000})
    assert torch.equal(cut.reset(7), whole.reset(7))
    rng, open_ = torch.Generator().manual_seed(0), torch.ones(2, dtype=torch.bool)
    for _ in range(-(-options["max_frames"] // options.get("frame_skip", 4))):
        assert open_.all()
        action = torch.randint(cut.spec.num_actions, (2,), generator=rng)
        one, other = cut.step(action), whole.step(action)
        for field in ("reward", "discount", "next_obs"):
            assert torch.equal(getattr(one, field)[open_], getattr(other, field)[open_])
        ends = open_ & one.last
        assert not other.last[open_].any() and torch.equal(one.obs[open_ & ~ends], other.obs[open_ & ~ends])
        assert np.array_equal(cut.picture()[(open_ & ~ends).numpy()], whole.picture()[(open_ & ~ends).numpy()])
        for i in ends.nonzero().flatten().tolist():  # a first observation: one frame, and black before it
            assert not one.obs[i, :3].any() and one.obs[i, 3].any()
            assert not np.array_equal(cut.picture()[i], whole.picture()[i])
        open_ &= ~ends
    assert not open_.any()
    cut.close()
    whole.close()


@pytest.mark.parametrize("limit", [200, 201, 203])
def test_a_cut_game_is_as_long_as_ale_py_would_have_made_it(limit):
    """And all that follows is what would have followed, observations and idle starts too."""
    env = Atari("pong", 3, max_frames=limit, num_threads=1)
    theirs = AtariVectorEnv("pong", 3, max_num_frames_per_episode=limit, autoreset_mode="SameStep", num_threads=1)
    env.reset(1)
    theirs.reset(seed=1)
    for t in range(160):
        step = env.step(torch.full((3,), t % 6))
        obs, _, terminated, truncated, _ = theirs.step(np.full(3, t % 6))
        assert step.last.tolist() == truncated.tolist() and not terminated.any() and (step.discount == 1).all()
        assert np.array_equal(step.obs.numpy(), obs)
    env.close()
    theirs.close()


def test_any_seed_begins_a_game():
    """Those of ale-py have 31 bits."""
    large, small = Atari("pong", 2, num_threads=1), Atari("pong", 2, num_threads=1)
    large.reset(2**31 - 1 + 5), small.reset(5)
    for t in range(8):
        assert torch.equal(large.step(torch.full((2,), t % 6)).obs, small.step(torch.full((2,), t % 6)).obs)
    large.reset(2**53)
    for env in large, small:
        env.close()


def test_only_envs_that_ended_take_the_final_frames():
    """ale-py leaves uninitialised memory in the slots of the others."""
    env = Atari("breakout", 2, noop_max=0, num_threads=1)
    policy = lambda t: torch.tensor([FIRE if t % 2 else NOOP, NOOP])  # the second env never serves a ball
    answers = play(env, policy, 130)
    ends = [s for s in answers if s.last[0]]
    assert ends and not any(s.last[1] for s in answers)
    assert all(torch.equal(s.next_obs[1], s.obs[1]) for s in ends)
    env.close()


def test_rewards_are_raw_scores():
    """Top-row bricks pay 7, and ale-py would clip them to 1."""
    env = Atari("space_invaders", 4, num_threads=1)
    rng = torch.Generator().manual_seed(0)
    answers = play(env, lambda t: torch.randint(6, (4,), generator=rng), 400)
    rewards = torch.stack([s.reward for s in answers])
    assert rewards.dtype == torch.float32 and rewards.max() >= 5
    env.close()


def test_observations_are_what_ale_py_gives_and_are_not_overwritten():
    ours, theirs = Atari("pong", 2, noop_max=5, num_threads=1), AtariVectorEnv("pong", 2, noop_max=5, num_threads=1)
    first = ours.reset(3)
    kept = first.clone()
    assert np.array_equal(first.numpy(), theirs.reset(seed=3)[0])
    for t in range(20):
        step = ours.step(torch.tensor([t % 6, (t + 1) % 6]))
        obs, *_ = theirs.step(np.array([t % 6, (t + 1) % 6]))
        assert np.array_equal(step.obs.numpy(), obs)
    assert torch.equal(first, kept)
    ours.close()
    theirs.close()


def test_protocol_options_reach_the_emulator():
    full = Atari("pong", 1, full_actions=True, num_threads=1)
    assert full.spec.num_actions == 18 and full.spec.actions[:2] == ("noop", "fire")
    minimal = Atari("pong", 1, frame_skip=5, num_threads=1)
    assert minimal.spec.num_actions == 6 and minimal.frames_per_second == 12
    plain, sticky = (
        torch.stack(
            [
                s.obs
                for s in play(
                    Atari("pong", 1, sticky=p, noop_max=0, num_threads=1), lambda t: torch.tensor([2 + t // 5 % 2]), 60
                )
            ]
        )
        for p in (0.0, 0.5)
    )
    assert not torch.equal(plain, sticky)


def test_unknown_game_names_the_nearest():
    with pytest.raises(UserError) as error:
        Atari("pnog", 1)
    assert str(error.value) == "no Atari game 'pnog'; did you mean pong?"


def test_cartpole_matches_gymnasium_and_keeps_the_true_successor():
    ours, single = Gym("CartPole-v1", 1), gymnasium.make("CartPole-v1")
    obs, _ = single.reset(seed=5)
    assert np.array_equal(ours.reset(5)[0].numpy(), obs)
    for _ in range(100):
        step = ours.step(torch.tensor([1]))
        obs, reward, terminated, truncated, _ = single.step(1)
        assert np.array_equal(step.next_obs[0].numpy(), obs) and step.reward.item() == reward
        if terminated:
            break
    assert terminated and step.last.item() and step.discount.item() == 0
    assert np.abs(step.obs[0].numpy()).max() < 0.05 < np.abs(step.next_obs[0].numpy()).max()


def test_time_limits_of_gymnasium_are_truncations():
    env = Gym("CartPole-v1", 2, options={"max_episode_steps": 5})
    answers = play(env, lambda t: torch.tensor([t % 2, t % 2]), 10)
    assert [s.last.all().item() for s in answers] == ([False] * 4 + [True]) * 2
    assert all((s.discount == 1).all() for s in answers)


def test_discrete_observations_are_one_hot():
    env = Gym("FrozenLake-v1", 3)
    assert env.spec.obs_shape == (16,) and torch.equal(env.reset(0), torch.eye(16)[[0, 0, 0]])


@pytest.mark.parametrize(
    ("id", "line"),
    [
        ("CartPoel-v1", "no Gymnasium environment 'CartPoel-v1'; did you mean CartPole-v1?"),
        ("Pendulum-v1", "env.id=Pendulum-v1 is refused: its actions are Box(-2.0, 2.0, (1,), float32), and the agents here need discrete ones; 'env.wrappers=[{DiscretizeAction: {bins: 5}}]' makes them so"),
        ("Blackjack-v1", "env.id=Blackjack-v1 is refused: observations Tuple(Discrete(32), Discrete(11), Discrete(2)) are neither a Box nor a Discrete; choose env.wrappers=[FlattenObservation]"),
    ],
)  # fmt: skip
def test_environments_that_cannot_be_played(id, line):
    with pytest.raises(UserError) as error:
        Gym(id, 1)
    assert str(error.value) == line


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells there which signals are caught")
def test_a_camera_leaves_signals_to_the_process():
    """Pygame's SDL would catch SIGTERM, and a film be made to its end."""
    code = """
from pathlib import Path
from stated import stated
env = stated("env/gym")("CartPole-v1", 1, camera=True)
env.reset(0)
env.picture()
caught = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
print(int(caught.split()[1], 16) >> 14 & 1)
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert said.stdout == "0\n", said.stderr
