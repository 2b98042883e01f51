"""What env=gym makes of observations and rewards by setting: normalised, clipped, stacked, limited; names of actions."""

import json
import shutil

import gymnasium
import pytest
import torch
from gymnasium import spaces
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.export import described
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.randomness import stream
from rl_lab.envs import abilities, naming
from rl_lab.envs.lens import Moments
from rl_lab.loops.judging import play
from rl_lab.memory import Replay
from rl_lab.memory.episodes import newest, stacked
from rl_lab.playing.player import load
from rl_lab.types import Transition

Gym = stated("env/gym")
CPU = torch.device("cpu")


def walked(env, steps: int, seed: int = 0):
    """The first observations and the answers to actions that alternate."""
    obs = env.reset(seed)
    return obs, [env.step(torch.full((env.num_envs,), t % 2)) for t in range(steps)]


# -- statistics


def test_moments_of_batches_are_those_of_all_samples():
    moments = Moments((1,), CPU)
    for batch in ([[1.0], [3.0]], [[5.0], [7.0], [9.0]]):
        moments.add(torch.tensor(batch))
    assert (moments.count, moments.mean.item()) == (5, 5.0) and moments.squares.item() == 40.0
    assert moments.deviation.item() == pytest.approx(8**0.5)


def test_observations_are_normalised_by_all_that_was_acted_on():
    plain, env = Gym("CartPole-v1", 3), Gym("CartPole-v1", 3, normalise_obs=True)
    (first, raw), (_, steps) = walked(plain, 60), walked(env, 60)
    seen = torch.cat([first, *(step.obs for step in raw)]).double()
    assert any(step.last.any() for step in raw)
    assert env.statistics.obs.count == len(seen) == 183
    torch.testing.assert_close(env.statistics.obs.mean, seen.mean(0))
    deviation = (seen.var(0, correction=0) + 1e-8).sqrt()
    for name in ("obs", "next_obs"):  # the true successor too, where an episode ended
        expected = ((getattr(raw[-1], name).double() - seen.mean(0)) / deviation).float()
        torch.testing.assert_close(getattr(steps[-1], name), expected)
    assert all(torch.equal(a.reward, b.reward) for a, b in zip(raw, steps, strict=True))


def test_rewards_to_learn_from_are_divided_by_the_deviation_of_returns_and_the_others_stay():
    env = Gym("CartPole-v1", 1, normalise_reward=0.5, time_limit=2)
    _, steps = walked(env, 3)
    assert [step.reward.item() for step in steps] == [1, 1, 1]
    # returns so far 1, 1.5, then of a new episode 1
    expected = [10, 1 / 0.25, 1 / (1 / 18) ** 0.5]  # the first is 10,000, clipped
    assert [step.signal.item() for step in steps] == pytest.approx(expected, rel=1e-5)
    learned = Transition.of(steps[1].obs, torch.zeros(1), steps[1])
    assert learned.reward.item() == pytest.approx(4)


def test_an_evaluation_sees_by_the_statistics_of_training_and_adds_nothing():
    env, eval_env = (Gym("CartPole-v1", 2, normalise_obs=True, normalise_reward=0.9) for _ in range(2))
    parts = abilities.shared(env, eval_env)
    walked(env, 5)
    before = env.statistics.obs.count
    _, (step,) = walked(eval_env, 1, seed=1)
    assert parts == {"statistics": env.statistics} and env.statistics.obs.count == before == 12
    assert step.signal is None and step.reward.tolist() == [1, 1]
    _, (raw,) = walked(Gym("CartPole-v1", 2), 1, seed=1)
    moments = env.statistics.obs
    torch.testing.assert_close(step.obs, ((raw.obs.double() - moments.mean) / moments.deviation).float())
    plain = abilities.shared(Gym("CartPole-v1", 1), Gym("CartPole-v1", 1))
    assert plain["statistics"].state_dict() == {}


def test_observations_are_clipped():
    env = Gym("CartPole-v1", 2, clip_obs=0.01)
    obs, steps = walked(env, 4)
    assert max(x.abs().max() for x in (obs, *(s.next_obs for s in steps))) == pytest.approx(0.01)


# -- stacks


@pytest.mark.parametrize("normalise", [False, True])
def test_stacks_begin_with_zeros_and_the_replay_gives_them_back(normalise):
    env = Gym("CartPole-v1", 2, frame_stack=3, time_limit=4, normalise_obs=normalise)
    obs, steps = walked(env, 12)
    assert env.spec.obs_shape == (3, 4) and env.spec.frame_stack == 3
    assert not obs[:, :2].any() and obs[:, 2].any()
    for before, step in zip([obs, *(s.obs for s in steps)], steps, strict=False):
        torch.testing.assert_close(step.next_obs[:, :2], before[:, 1:])
        begun = step.obs[step.last]
        assert not begun[:, :2].any() and torch.equal(step.obs[~step.last], step.next_obs[~step.last])
    assert sum(int(step.last.sum()) for step in steps) == 6
    replay = stated("agent/dqn_mlp", "replay")(capacity=40, frame_stack=3, seed=0, device=CPU)
    assert isinstance(replay, Replay)
    known = []
    for t, step in enumerate(steps):
        replay.add(Transition.of(obs, torch.full((2,), t % 2), step))
        known += [torch.cat([a, b]).flatten() for a, b in zip(obs, step.next_obs, strict=True)]
        obs = step.obs
    batch = replay.sample(64)
    for a, b in zip(batch.obs, batch.next_obs, strict=True):
        assert any(torch.equal(torch.cat([a, b]).flatten(), x) for x in known)


def test_bytes_are_not_clipped():
    with pytest.raises(UserError, match=r"^env\.clip_obs=10 is for numbers"):
        Gym("minigrid:MiniGrid-Empty-5x5-v0", 1, clip_obs=10.0, wrappers=[{"minigrid.wrappers.ImgObsWrapper": {}}])


def test_images_of_channels_are_stacked_and_taken_apart():
    env = Gym("minigrid:MiniGrid-Empty-5x5-v0", 2, frame_stack=2, time_limit=3,
              wrappers=[{"minigrid.wrappers.ImgObsWrapper": {}}])  # fmt: skip
    obs, steps = walked(env, 4)
    assert env.spec.obs_shape == (6, 7, 7) and env.spec.obs_dtype == obs.dtype == torch.uint8
    assert not obs[:, :3].any() and torch.equal(steps[0].next_obs[:, :3], obs[:, 3:])
    frames = torch.cat([newest(x, 2) for x in (obs[:1], *(step.next_obs[:1] for step in steps[:3]))]).numpy()
    assert frames.shape == (4, 3, 7, 7)
    assert (stacked(frames, 2)[1] == steps[0].next_obs[0].numpy()).all()


# -- limits and names


def test_a_time_limit_is_a_setting():
    env = Gym("CartPole-v1", 1, time_limit=3)
    _, steps = walked(env, 3)
    assert env.time_limit == 3 and [(s.last.item(), s.discount.item()) for s in steps] == [(False, 1)] * 2 + [(True, 1)]
    with pytest.raises(UserError, match=r"^env\.time_limit and env\.options\.max_episode_steps both set"):
        Gym("CartPole-v1", 1, time_limit=3, options={"max_episode_steps": 4})


@pytest.mark.parametrize(
    ("id", "names"),
    [
        ("CartPole-v1", "left right"),
        ("MountainCar-v0", "left none right"),
        ("FrozenLake-v1", "left down right up"),
        ("minigrid:MiniGrid-Empty-5x5-v0", "left right forward pickup drop toggle done"),
    ],
)
def test_actions_have_names(id, names):
    wrappers = ["minigrid.wrappers.ImgObsWrapper"] if "minigrid" in id else []
    assert " ".join(Gym(id, 1, wrappers=wrappers).spec.actions) == names


class Odd(gymnasium.Env):
    action_space, observation_space = spaces.Discrete(2), spaces.Box(0, 1, (1,))

    def __init__(self, meanings):
        self.get_action_meanings = meanings


def test_names_that_are_none_give_way_to_numbers():
    for meanings in (lambda: ["NOOP", "FIRE", "UP"], lambda: ["GO", "go"], lambda: 1 / 0, None):
        assert naming.of_actions(Odd(meanings), 2) == ("0", "1")
    assert naming.of_actions(Odd(lambda: ["NOOP", "FIRE"]), 2) == ("noop", "fire")
    assert naming.of_actions(Odd(lambda: ["NOOP", "FIRE"]), 3) == naming.of_actions(None, 3) == ("0", "1", "2")


# -- runs


TRAIN = ["train", "env=gym", "env.num_envs=4", "env.normalise_obs=true", "env.normalise_reward=0.99", "agent=a2c_mlp",
         "env.frame_stack=2", "loop.eval_episodes=4", "loop.eval_every=null", "tracker=none"]  # fmt: skip


def run(arguments) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, arguments)


def rows(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in row.items() if key != "seconds"} for row in read]


def test_statistics_are_checkpointed_resumed_and_seen_by_in_films(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again = tmp_path / "first", tmp_path / "again"
    assert run([*TRAIN, "loop.total_steps=400", f"hydra.run.dir={first}"]) == 0
    saved = torch.load(first / "checkpoint.pt", weights_only=True)["statistics"]
    assert saved["obs"]["count"] == 404 and saved["returns"]["count"] == 400
    player = load(first, max_envs=4, device="cpu")
    returns, _ = play(player.env, player.act, 4, stream(0, "eval"))
    assert rows(first)[-1]["eval/return"] == returns.mean().item()  # as the run itself saw it
    assert player.env.statistics.obs.count == 404
    about = described(player, None)["obs"]
    assert about["mean"] == saved["obs"]["mean"].tolist() and about["clip"] == 10
    shutil.copytree(first, again)
    for folder in (first, again):
        assert run(["train", f"run={folder}", "loop.total_steps=800"]) == 0
    assert rows(first) == rows(again) and rows(first)[-1]["step"] == 800
    resumed = torch.load(first / "checkpoint.pt", weights_only=True)["statistics"]
    assert resumed["obs"]["count"] == 404 + 404  # new episodes have begun


def test_episode_returns_are_as_the_game_gave_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*TRAIN, "loop.total_steps=400", "env.time_limit=5", "loop.log_every=100", "hydra.run.dir=run"]) == 0
    assert {row["episode/return"] for row in rows(tmp_path / "run") if "episode/return" in row} == {5.0}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["loop=crew", "agent=a2c_mlp"], "are for loop=train and loop=sb3, not for loop=crew; choose loop=train"),
        (["loop=overlapped", "agent=ppo_mlp"], "not for loop=overlapped; choose loop=train"),
        (["env.id=FrozenLake-v1", "env.normalise_reward=true"], "env.normalise_reward=True must be a number"),
        (["env.clip_obs=0"], "env.clip_obs=0 must be above 0"),
        (["env.id=minigrid:MiniGrid-Empty-5x5-v0", "env.wrappers=[minigrid.wrappers.ImgObsWrapper]"],
         "env.normalise_obs=true is for vectors of numbers, and these observations are (3, 7, 7)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(words, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*TRAIN, "env.frame_stack=1", "loop.total_steps=40", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert fault in said and "\n" not in said


def test_what_was_learned_without_statistics_is_not_judged_with_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = "experiment=ppo_cartpole", "loop.total_steps=300", "loop.eval_every=null", "loop.eval_episodes=1"
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *short, "tracker=none", "hydra.run.dir=plain"]) == 0
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", "run=plain", "env.normalise_obs=true", "episodes=2"]) == 2
    assert "has no statistics to normalise them by; leave out env.normalise_obs=true" in capsys.readouterr().err
    assert run(["train", "run=plain", "env.normalise_obs=true", "loop.total_steps=600"]) == 2
    assert "has no statistics to normalise them by; leave out env.normalise_obs=true" in capsys.readouterr().err
    for words in [["train", *short, "+loop.eval_env.normalise_obs=true", "tracker=none"],
                  ["train", "run=plain", "loop.eval_env.normalise_obs=true", "loop.total_steps=600"],
                  ["evaluate", "agent=rl_lab.agents.random:Random", "env=cartpole", "env.normalise_obs=true"],
                  ["record", "env=cartpole", "env.normalise_obs=true", "out=x"]]:  # fmt: skip
        assert run(words) == 2
        assert "normalises by what training has seen, and here there is none of it" in capsys.readouterr().err


def test_what_was_learned_with_statistics_is_not_continued_without(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*TRAIN, "loop.total_steps=400", "hydra.run.dir=run"]) == 0
    for command in (["train", "loop.total_steps=800"], ["evaluate", "episodes=2"]):
        assert run([*command, "run=run", "env.normalise_obs=false"]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said == "rl-lab: the run learned from normalised observations; leave out env.normalise_obs=false"
    assert run(["train", "run=run", "loop.total_steps=800"]) == 0, "and nothing is lost"


def test_a_setting_of_env_in_whose_place_another_stands_is_not_ignored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = "experiment=ppo_cartpole", "loop.total_steps=300", "loop.eval_every=null", "loop.eval_episodes=2"
    assert run(["train", *short, "tracker=none", "+loop.eval_env.time_limit=10", "hydra.run.dir=run"]) == 0
    assert run(["evaluate", "run=run", "env.time_limit=3"]) == 2
    assert "would be ignored, as loop.eval_env.time_limit=10 stands in its place" in capsys.readouterr().err
    assert run(["evaluate", "run=run", "loop.eval_env.time_limit=3", "episodes=2"]) == 0
    assert run(["train", "run=run", "env.time_limit=3", "loop.total_steps=600"]) == 0, "it is trained in env"


def test_a_run_that_goes_on_may_be_judged_by_another_env(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = "experiment=ppo_cartpole", "loop.total_steps=300", "loop.eval_every=null", "loop.eval_episodes=2"
    assert run(["train", *short, "tracker=none", "hydra.run.dir=run"]) == 0
    assert run(["train", "run=run", "loop.eval_env.time_limit=3", "loop.total_steps=600"]) == 0
    assert rows(tmp_path / "run")[-1]["eval/return"] == 3
    assert run(["train", "run=run", "loop.total_steps=900", "env.num_envs=8"]) == 0, "the others are still those of env"
    assert rows(tmp_path / "run")[-1]["eval/return"] == 3
    before = (tmp_path / "run/config.yaml").read_text()
    assert run(["train", "run=run", "loop.eval_env.id=MountainCar-v0", "loop.total_steps=990"]) == 2
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_fitted_q_iteration_would_not_keep_the_statistics(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "experiment=fitted_q_cartpole", "env.normalise_obs=true", "tracker=none"]) == 2
    assert "not for loop=fit_q; choose loop=train, or leave them out" in capsys.readouterr().err
