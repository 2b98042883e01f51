"""Collect as Gymnasium, evaluation, films and recordings see it."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from collect_cases import (
    SMALL,
    board_of,
    drawn,
    walkers_of,
)
from omegaconf import OmegaConf
from PIL import ImageColor
from stated import stated, written

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.watch import Channel
from rl_lab.core.launching import cli
from rl_lab.looking import panels, pictures, worlds
from rl_lab.playing import scenes
from rl_lab.playing.player import load
from rl_lab.playing.stage import of_world

Collect = stated("env/collect")

# -- as others see it


def test_gymnasium_sees_the_same_world():
    world = {"mazes": 64, "maze_seed": 3}
    theirs, ours = gymnasium.make("rl_lab/Collect-v0", render_mode="ansi", **world), Collect(1, **world)
    seen, _ = theirs.reset(seed=5)
    seed = int(np.random.default_rng(np.random.SeedSequence(5)).integers(2**62))
    assert (seen == ours.reset(seed)[0].numpy()).all() and theirs.observation_space.contains(seen)
    assert theirs.render() == "\n".join(drawn(board_of(ours, ours.walkers, 0))) + "\n"
    over = False
    for t in range(40):
        if over:
            seen, _ = theirs.reset()
            break
        seen, reward, terminated, truncated, info = theirs.step(t % 4)
        step = ours.step(torch.tensor([t % 4]))
        assert (seen == step.next_obs[0].numpy()).all() and reward == float(step.reward) and not truncated
        assert (terminated, info) == (bool(step.last), {"duration": int(step.duration)})
        over = terminated
    assert over and seen[3].min() == 1


def test_gymnasiums_vector_resets_in_each_of_its_ways():
    world = {"mazes": 64, "time_limit": 4}
    same, later, never = (
        gymnasium.make_vec("rl_lab/Collect-v0", 6, autoreset_mode=mode, **world)
        for mode in ("SameStep", "NextStep", "Disabled")
    )
    ours = Collect(6, **world)
    obs = ours.reset(2)
    assert all((env.reset(seed=2)[0] == obs.numpy()).all() for env in (same, later, never))
    over, rng, ended = np.zeros(6, bool), np.random.default_rng(0), 0
    while ended < 20:
        action = rng.integers(4, size=6)
        step, (seen, reward, terminated, truncated, info) = ours.step(torch.from_numpy(action)), same.step(action)
        assert (seen == step.obs.numpy()).all() and (reward == step.reward.double().numpy()).all()
        assert (terminated == step.last.numpy()).all() and not truncated.any()
        for i in np.flatnonzero(terminated):
            assert (info["final_obs"][i] == step.next_obs[i].numpy()).all()
        ended += terminated.sum()
    while not over.any():
        action = rng.integers(4, size=6)
        seen, _, over, *_ = later.step(action)
        assert (seen == never.step(action)[0]).all()
    seen, reward, terminated, *_ = later.step(action)
    fresh, _ = never.reset(options={"reset_mask": over})
    assert (reward[over] == 0).all() and not terminated[over].any() and (seen[over, 3] == 1).all()
    assert (fresh[over, 3] == 1).all() and (fresh[~over, 3] < 1).all()


@pytest.fixture(scope="module")
def greedy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "greedy"
    recipe = ["experiment=greedy_collect", "env.mazes=300", "loop.eval_episodes=500", "loop.eval_env.mazes=300"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *recipe, "tracker=none", "device=cpu",
                                               f"hydra.run.dir={folder}"]) == 0  # fmt: skip
    return folder


def test_evaluation_reports_the_plain_sum_of_rewards(greedy_run):
    """Returns of k goals in all the time are 2.2 k - 4, and of all goals by time T 17.6 - 0.2 T; greedily, without bumps."""
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", f"run={greedy_run}", "episodes=500", "device=cpu"]) == 0
    returns = torch.tensor(json.loads((greedy_run / "evaluation.json").read_text())["returns"])
    sums = torch.cat([2.2 * torch.arange(8) - 4, 17.6 - 0.2 * torch.arange(8, 21)])
    assert (returns.unsqueeze(1) - sums).abs().min(1).values.max() < 1e-4
    assert 8.0 < returns.mean() < 9.2


def test_a_run_is_judged_in_another_world_than_it_learned_in(greedy_run, capsys):
    """Fewer goals, as in the paper; the folder stays as it was, and an agent's settings may be changed as well."""
    before = (greedy_run / "config.yaml").read_bytes()
    command = ["evaluate", f"run={greedy_run}", "device=cpu"]
    judge = lambda *changes: cli.main("rl-lab", "rl", COMMANDS, [*command, *changes])
    assert judge("episodes=500", "env.goals=2") == 0
    record = json.loads((greedy_run / "evaluation.json").read_text())
    returns = torch.tensor(record["returns"])
    sums = torch.cat([2.2 * torch.arange(2) - 4, 4.4 - 0.2 * torch.arange(2, 21)])  # of no or one goal, of both
    assert (returns.unsqueeze(1) - sums).abs().min(1).values.max() < 1e-4 and record["changes"] == ["env.goals=2"]
    assert "with env.goals=2" in capsys.readouterr().out
    player = load(greedy_run, max_envs=2, device="cpu", changes=["env.goals=2", "env.time_limit=7"])
    assert (player.env.num_envs, player.env.goals, player.env.time_limit) == (2, 2, 7)
    assert player.words == "greedy after 64 steps, env.goals=2, env.time_limit=7"
    assert (greedy_run / "config.yaml").read_bytes() == before
    for wrong, words in (
        ("env.goal=2", "no setting 'env.goal'; did you mean env.goals?"),
        ("env.goals=70", "env.goals=70 must be at most 63: a maze of env.size=10 has 64 cells"),
        ("agent._target_=os.system", "agent._target_=os.system is refused"),
    ):
        assert judge(wrong) == 2 and words in capsys.readouterr().err
    assert cli.main("rl-lab", "rl", COMMANDS, ["compare", str(greedy_run), "env.goals=2"]) == 2
    assert "env.goals=2 is a setting of the run, and compare changes none" in capsys.readouterr().err


def test_what_was_changed_is_recorded_and_watched(greedy_run, tmp_path):
    command = ["record", f"run={greedy_run}", "env.goals=2", "episodes=3", f"out={tmp_path}", "device=cpu"]
    assert cli.main("rl-lab", "rl", COMMANDS, command) == 0
    about = json.loads((tmp_path / "recording.json").read_text())
    assert about["agent"]["changes"] == ["env.goals=2"] and about["env"]["goals"] == 2
    channel = Channel(greedy_run, 0, "cpu", ["env.goals=3"])
    assert channel.player.env.reset(0)[0, 2].sum() == 3
    channel.close()


def test_a_film_shows_where_the_agent_is_and_what_is_left(greedy_run):
    player = load(greedy_run, max_envs=1, device="cpu", camera=True)
    moments = list(scenes.play(player, episodes=1, seed=4, max_steps=100))
    obs = player.env.reset(4)
    assert moments[-1].ending == "terminated" and len(moments) > 5
    assert moments[0].picture.tobytes() == worlds.picture(*player.env.maps(obs)).tobytes()
    assert len({moment.picture.tobytes() for moment in moments}) == len(moments)


def test_what_a_picture_shows():
    env = Collect(1, **SMALL)
    env.reset(0)
    (seen,) = env.maps(env.look(walkers_of(env, "A.g #.#", left=5)))
    board, picture = worlds.board_of(seen), worlds.picture(seen)
    colours = {place: picture.getpixel(board.centre(*place)) for place in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))}
    wanted = [panels.AGENT, pictures.FLOOR, pictures.GOAL, pictures.FLOOR, pictures.WALL]
    assert list(colours.values()) == [ImageColor.getrgb(colour) for colour in wanted]
    line = picture.height - worlds.WORDS - worlds.BAR // 2
    bar = [picture.getpixel((x, line)) for x in range(10, picture.width - 10)]
    assert bar.count(ImageColor.getrgb(panels.INK)) / len(bar) == pytest.approx(0.25, abs=0.02)
    assert seen.clock == "5 of 20 steps left"


def test_random_play_is_recorded_with_its_pictures():
    node = OmegaConf.merge(written("env/collect"), {"size": 6, "goals": 2, "mazes": 50, "device": "cpu"})
    stage = of_world(node, 2, "cpu", True)
    (episode, *_) = stage.episodes([1, 1], 0, True)
    assert episode.frames.shape[0] == len(episode.action) and episode.frames.dtype == np.uint8
    (seen,) = stage.env.maps(torch.from_numpy(episode.obs[:1]))
    assert (episode.frames[0] == np.asarray(worlds.picture(seen))).all()
