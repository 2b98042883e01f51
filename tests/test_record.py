"""Recordings: every transition exact, every shard whole, and an interrupted one as if it never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.random import Random
from rl_lab.core import recording
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.core.recording import Episode, Recording
from rl_lab.envs.abilities import Map
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.looking import worlds
from rl_lab.memory.episodes import play_episodes, transitions
from rl_lab.playing.player import load
from rl_lab.types import Transition

Atari = stated("env/atari")
Gym = stated("env/gym")
gridworld = stated("env/base/gridworld", "mdp")

MAP = "...G\n.#.X\nS..."


def rl_lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def grid(num_envs: int = 3, time_limit: int = 6) -> MDPEnv:
    return stated("env/base/tabular")(gridworld(MAP, rewards={"G": 1.0, "X": -1.0}, noise=0.2), num_envs, time_limit)


def episode(start: float, rewards: list[float], end: float) -> Episode:
    """Of observations start, start + 1, ..."""
    steps = len(rewards)
    obs = (start + np.arange(steps + 1, dtype=np.float32))[:, None]
    discount = np.array([1.0] * (steps - 1) + [end], np.float32)
    last = np.arange(steps) == steps - 1
    return Episode(obs, np.arange(steps) % 2, np.array(rewards, np.float32), discount, last)


TWO = [episode(10.0, [1.0, 2.0], 0.0), episode(20.0, [3.0], 1.0)]


def written(folder: Path, *shards: list[Episode]) -> Recording:
    about, first = {"format": recording.FORMAT, "frame_stack": 1, "frames": None, "shards": []}, 0
    for number, shard in enumerate(shards):
        about["shards"].append(recording.write_shard(folder, number, shard, first))
        first += len(shard)
    recording.write_index(folder, about)
    return Recording(folder)


# -- the files


def test_shard_holds_each_observation_once(tmp_path):
    written(tmp_path, TWO)
    arrays = np.load(tmp_path / "shard_00000.npz", allow_pickle=False)
    assert arrays["obs"].ravel().tolist() == [10, 11, 12, 20, 21]
    assert arrays["action"].tolist() == [0, 1, 0] and arrays["reward"].tolist() == [1, 2, 3]
    assert arrays["discount"].tolist() == [1, 0, 1] and arrays["last"].tolist() == [False, True, True]
    assert arrays["episode"].tolist() == [0, 0, 1]


def test_read_back(tmp_path):
    found = written(tmp_path, TWO, [episode(30.0, [4.0], 0.0)])
    assert (found.num_episodes, found.num_steps) == (3, 4)
    assert [e.obs[0, 0] for e in found.episodes()] == [10, 20, 30]
    assert [e.obs[0, 0] for e in found.episodes([2, 0])] == [10, 30]
    batch = transitions(found.episodes())
    assert batch.obs.ravel().tolist() == [10, 11, 20, 30] and batch.next_obs.ravel().tolist() == [11, 12, 21, 31]
    assert found.about["shards"][0]["total_reward"] == 6.0


def test_split_by_episode(tmp_path):
    found = written(tmp_path, [episode(float(i), [0.0], 0.0) for i in range(10)])
    train, test = found.split(0.3, seed=1)
    assert len(test) == 3 and sorted([*train, *test]) == list(range(10))
    assert not np.array_equal(test, found.split(0.3, seed=2)[1])


def test_damage_is_named(tmp_path):
    found = written(tmp_path, TWO, TWO)
    path = tmp_path / "shard_00001.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    assert len(list(found.episodes([0, 1]))) == 2
    with pytest.raises(UserError, match="shard_00001.npz is damaged: its checksum differs"):
        list(found.episodes())
    path.unlink()
    assert found.check() == [1]
    with pytest.raises(UserError, match="shard_00001.npz is missing"):
        list(found.episodes())


@pytest.mark.parametrize("field, value", [("last", [False, False, True]), ("action", [0, 1]), ("obs", [[1.0]] * 4)])
def test_a_shard_of_no_episodes_is_refused(tmp_path, field, value):
    """Its checksum agrees: who wrote it wrote the index too."""
    found = written(tmp_path, TWO)
    arrays = dict(np.load(tmp_path / "shard_00000.npz")) | {field: np.array(value)}
    np.savez(tmp_path / "shard_00000.npz", **arrays)
    found.about["shards"][0]["sha256"] = recording.hashlib.sha256(
        (tmp_path / "shard_00000.npz").read_bytes()
    ).hexdigest()
    with pytest.raises(UserError, match="not a shard of episodes"):
        list(found.episodes())


# -- the transitions, against the plain list of what the environment said


@pytest.mark.parametrize(
    "world",
    [
        grid,
        lambda: Gym("CartPole-v1", 2),
        lambda: Atari("pong", 2, max_frames=200),
        lambda: Atari("breakout", 2, max_frames=600, life_loss_terminal=True),
    ],
    ids=["terminated and truncated", "gym", "truncated frames", "frames and lives"],
)
def test_transitions_are_the_environments_own(world):
    quotas, seed, env = [3, 2, 4][: world().num_envs], 5, world()
    policy = Random(env.spec, env.device, 1).act
    found = transitions(play_episodes(env, policy, quotas, seed), env.spec.frame_stack)

    env, policy = world(), Random(env.spec, env.device, 1).act
    own, done, obs = [[[]] for _ in quotas], [], env.reset(seed)
    while any(len(episodes) <= quota for episodes, quota in zip(own, quotas, strict=True)):
        action = policy(obs)
        step = env.step(action)
        for i, episodes in enumerate(own):
            if len(episodes) <= quotas[i]:
                episodes[-1].append(tuple(x[i].clone() for x in Transition.of(obs, action, step)))
                if step.last[i]:
                    done += episodes[-1]
                    episodes.append([])
        obs = step.obs
    expected = Transition(*(torch.stack(x) for x in zip(*done, strict=True)))
    assert int(expected.last.sum()) == sum(quotas)
    for name in Transition._fields:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_frames_are_what_was_seen(tmp_path):
    """A picture belongs to the observation before the action, in a gridworld and on Atari's second emulator."""
    common = ["device=cpu", "frames=true"]
    assert rl_lab("record", "env=russell_norvig", "episodes=3", f"out={tmp_path / 'grid'}", *common) == 0
    layout = gridworld(MAP, rewards={"G": 1.0, "X": -1.0}).layout
    for e in Recording(tmp_path / "grid").episodes():
        for frame, obs in zip(e.frames, e.obs, strict=False):
            assert np.array_equal(frame, np.asarray(worlds.picture(Map(layout, layout.cell(int(obs.argmax()))))))
    pong = ["env=atari", "env.game=pong", "env.max_frames=800", "episodes=1"]
    assert rl_lab("record", *pong, f"out={tmp_path / 'pong'}", *common) == 0
    (e,) = Recording(tmp_path / "pong").episodes()
    assert e.frames.shape == (len(e.action), 210, 160, 3)
    grey = [Image.fromarray(frame).convert("L").resize((84, 84), Image.Resampling.BOX) for frame in e.frames]
    moved = np.diff(np.stack(grey).astype(float), axis=0)
    seen = {k: np.diff(e.obs[9 + k : len(e.frames) - 9 + k].astype(float), axis=0) for k in (-1, 0, 1)}
    alike = {k: np.corrcoef(moved[9:-9].ravel(), x.ravel())[0, 1] for k, x in seen.items()}
    assert alike[0] > 0.8 and max(alike[-1], alike[1]) < 0.3
    assert rl_lab("record", *pong, f"out={tmp_path / 'small'}", *common, "frame_size=42x50") == 0
    assert Recording(tmp_path / "small").frames().shape[1:] == (42, 50, 3)


# -- the command

ROOMS = "record", "env=russell_norvig", "device=cpu", "shard_mb=0.05"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "rooms"
    assert rl_lab(*ROOMS, "episodes=500", f"out={folder}") == 0
    return folder


def test_as_many_episodes_as_asked_for(whole):
    found = Recording(whole)
    assert found.num_episodes == 500 and len(found.about["shards"]) >= 4
    assert found.about["env"]["time_limit"] == 200 and found.about["agent"] == {"name": "random"}
    starts = [tuple(e.action.tolist()) for e in found.episodes()]
    assert len(set(starts)) > 450  # short ones may be alike by chance


def test_as_many_steps_as_asked_for(tmp_path):
    assert rl_lab(*ROOMS, "steps=3000", f"out={tmp_path / 'x'}") == 0
    assert 3000 <= Recording(tmp_path / "x").num_steps < 4000


@pytest.mark.slow
def test_killed_and_continued(whole, tmp_path):
    folder = tmp_path / "x"
    command = [sys.executable, "-m", "rl_lab", *ROOMS, "episodes=500", f"out={folder}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (folder / "shard_00001.npz").exists():
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert len(Recording(folder).about["shards"]) < len(Recording(whole).about["shards"])
    assert rl_lab(*ROOMS, "episodes=500", f"out={folder}") == 0
    assert shards(folder) == shards(whole)


def test_more_episodes_go_on(whole, tmp_path):
    assert rl_lab(*ROOMS, "episodes=200", f"out={tmp_path / 'x'}") == 0
    before = shards(tmp_path / "x")
    assert rl_lab(*ROOMS, "episodes=300", f"out={tmp_path / 'x'}") == 0
    assert Recording(tmp_path / "x").num_episodes == 300
    assert before.items() <= shards(tmp_path / "x").items()


def test_a_missing_shard_is_recorded_again(whole, tmp_path, capsys):
    before = shards(whole)
    (whole / "shard_00001.npz").unlink()
    assert rl_lab(*ROOMS, "episodes=500", f"out={whole}") == 0
    assert shards(whole) == before
    assert "recording the missing shards again: 1" in capsys.readouterr().err


def test_a_full_disk_loses_nothing(whole, tmp_path):
    """No file may be larger than the limit, as if the disk had no more room."""
    folder, limit = tmp_path / "x", 2  # kB: the index fits, no shard does
    command = " ".join([sys.executable, "-m rl_lab", *ROOMS, "episodes=500", f"out={folder}"])
    answer = subprocess.run(["bash", "-c", f"ulimit -f {limit}; {command}"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "File too large; finished shards are kept: make room, then run the same command to continue" in answer.stderr
    assert {path.name for path in folder.iterdir()} == {"recording.json"}
    assert rl_lab(*ROOMS, "episodes=500", f"out={folder}") == 0
    assert shards(folder) == shards(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record"], "record one run, rl-lab record run=<folder>, or random episodes, rl-lab record env=<name>"),
        ([*ROOMS, "seed=1", "out={whole}"], "holds a recording with another seed (0, not 1); choose another out=<folder>"),
        ([*ROOMS, "env.time_limit=9", "out={whole}"], "holds a recording with another env; choose another out="),
        ([*ROOMS, "out={whole}/recording.json"], "recording.json is a file; choose a new folder"),
        ([*ROOMS, "out={whole}/.."], "holds other files and no recording.json; choose a new folder"),
        ([*ROOMS, "episodes=1000000000000"], "record fewer episodes or steps, or choose another out=<folder>"),
        ([*ROOMS, "frame_size=42x42"], "frame_size=42x42 must be height x width, such as 42x42, and needs frames=true"),
        ([*ROOMS, "frames=true", "frame_size=7"], "frame_size=7 must be height x width"),
        (["record", "env=gambler", "frames=true"], "this environment has no picture; record it with frames=false"),
    ],
)  # fmt: skip
def test_one_line_and_nothing_lost(arguments, words, whole, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = shards(whole)
    assert rl_lab(*(a.format(whole=whole) for a in arguments)) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert shards(whole) == before and not list(tmp_path.iterdir())


def test_a_damaged_shard_stops_the_command(whole, capsys):
    path = whole / "shard_00000.npz"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert rl_lab(*ROOMS, "episodes=500", f"out={whole}") == 2
    assert "shard_00000.npz is damaged: its checksum differs; delete it" in capsys.readouterr().err
    path.write_bytes(data)


def test_a_run_is_recorded_in_its_own_folder(tmp_path):
    folder = tmp_path / "run"
    tiny = ["tracker=none", "device=cpu", "loop.total_steps=320", "loop.eval_episodes=1", "agent.learning_starts=64"]
    assert rl_lab("train", "experiment=dqn_four_rooms", *tiny, f"hydra.run.dir={folder}") == 0
    for epsilon in (0, 0.5):
        assert rl_lab("record", f"run={folder}", "episodes=20", f"epsilon={epsilon}", "device=cpu") == 0
    player, shares = load(folder, max_envs=1, device="cpu"), []
    for path in sorted((folder / "recordings").iterdir()):
        found = Recording(path)
        assert path.name.startswith(f"step320_epsilon{found.about['epsilon']:g}-")
        assert found.about["agent"] == {"name": "dqn_four_rooms · seed 0", "step": 320, "unit": "steps"}
        batch = transitions(found.episodes())
        shares.append(float((player.act(batch.obs) == batch.action).float().mean()))
    assert shares[0] == 1.0 and abs(shares[1] - 0.625) < 0.05  # greedy, or one of four at random half of the time


def test_the_index_is_plain_json(whole):
    about = json.loads((whole / "recording.json").read_text())
    assert about["actions"] == ["up", "right", "down", "left"] and about["obs"] == {"shape": [12], "dtype": "float32"}
    assert about["versions"]["torch"] and about["command"]
