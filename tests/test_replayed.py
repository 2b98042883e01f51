"""Atari's games are taken up where they stood: by their seeds and the actions since, bit for bit."""

import io
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from stated import stated
from stopping import equal
from test_resume import COMMAND, rows, run

from rl_lab.core import checkpoint, progress
from rl_lab.core.folders import summary
from rl_lab.envs import atari
from rl_lab.types import Step

Atari = stated("env/atari")


def played(env, steps: int, seed: int) -> list[Step]:
    rng = torch.Generator().manual_seed(seed)
    return [env.step(torch.randint(env.spec.num_actions, (env.num_envs,), generator=rng)) for _ in range(steps)]


def written(state: dict) -> dict:
    """As a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("game", "steps", "settings"),
    [
        ("breakout", 220, {"sticky": 0.25, "life_loss_terminal": True, "max_frames": 700}),
        ("pong", 110, {"point_terminal": True, "max_frames": 143, "camera": True}),
        ("ms_pacman", 110, {"sticky": 0.25, "full_actions": True, "frame_skip": 5, "noop_max": 0, "max_frames": 400}),
    ],
)
def test_a_restored_state_goes_on_identically(game, steps, settings, monkeypatch):
    """In another env too, whose games were others; after games that were over, cut, and seeded again."""
    monkeypatch.setattr(atari, "CHAPTER", 2 * 60)
    env, other = (Atari(game, 2, num_threads=1, height=42, width=42, **settings) for _ in range(2))
    env.reset(7)
    ends = torch.stack([step.last for step in played(env, steps, seed=0)]).sum(0)
    state = written(env.state_dict())
    assert ends.min() > 0 and not (state["seeds"] == 7 + torch.arange(2)).any()
    assert len(set(state["steps"].tolist())) == 2 or game != "breakout"
    assert len(state["actions"]) == state["steps"].sum() < 2 * steps

    other.reset(5)
    other.load_state_dict(state)
    assert other.replayed[0] == state["steps"].sum()
    assert torch.equal(other.observe(), env.observe()) and equal(other.state_dict(), env.state_dict())
    for ours, theirs in zip(played(other, 60, seed=1), played(env, 60, seed=1), strict=True):
        assert equal(tuple(ours), tuple(theirs))
    assert not settings.get("camera") or np.array_equal(other.picture(), env.picture())
    assert equal(other.state_dict(), env.state_dict())
    env.close()
    other.close()


def test_its_past_has_room_however_long_a_game_lasts(monkeypatch):
    monkeypatch.setattr(atari, "CHAPTER", 2 * 20)  # room for 40 actions of each
    env, other = (Atari("pong", 2, num_threads=1) for _ in range(2))
    env.reset(0)
    played(env, 100, seed=0)
    state = env.state_dict()
    assert state["steps"].tolist() == [100, 100] and (state["actions"] > 0).any()
    other.load_state_dict(state)
    assert equal(tuple(played(other, 1, seed=1)[0]), tuple(played(env, 1, seed=1)[0]))
    env.close()
    other.close()


def test_what_cannot_be_played_again_is_no_state():
    """Of an older version, of other rules, of as many envs as are not there, of another ale-py: loops begin new games."""
    env, sticky = (Atari("pong", 2, num_threads=1, sticky=p) for p in (0.0, 0.1))
    three = Atari("pong", 3, num_threads=1)
    assert env.state_dict() == {}  # before a reset
    env.reset(0)
    played(env, 20, seed=0)
    state = env.state_dict()
    for world, given in ((env, {}), (sticky, state), (three, state), (env, state | {"seen": state["seen"] ^ 1})):
        world.reset(0)
        world.load_state_dict(given)
        assert world.state_dict() == {}
        world.reset(1)
        assert world.state_dict()
    env.load_state_dict(state)
    assert equal(env.state_dict(), state)
    for world in (env, sticky, three):
        world.close()


TINY = ["tracker=none", "device=cpu", "threads=1", "env.game=pong", "env.num_threads=1", "env.num_envs=2",
        "env.height=42", "env.width=42", "env.max_frames=240", "loop.eval_episodes=1", "loop.eval_drawn=0",
        "loop.eval_every=null", "checkpoint.every=0.01"]  # fmt: skip


def killed(*arguments: str, cwd: Path, at: int) -> int:
    """In a process of its own, which gets SIGKILL once a checkpoint of step `at` or later is written; its step."""
    process = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stderr=subprocess.DEVNULL)
    step = lambda: summary(cwd / "killed").get("step", 0)
    deadline = time.monotonic() + 120
    while step() < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended too soon to be killed"
    return step()


def check(place: Path, steps: int, kills: Sequence[int], *arguments: str) -> None:
    """Killed at such steps, a run has the rows and the checkpoint of one that was left alone."""
    settings = [*TINY, f"loop.total_steps={steps}", f"loop.log_every={steps // 20}", *arguments]
    code, said = run(*settings, "hydra.run.dir=whole", cwd=place)
    assert code == 0, said
    for at in kills:
        given = ["run=killed"] if (place / "killed").exists() else [*settings, "hydra.run.dir=killed"]
        assert at <= killed(*given, cwd=place, at=at) < steps
    code, said = run("run=killed", cwd=place)
    assert code == 0 and re.search(r"games taken up where they stood \([\d,]+ steps replayed in [\d.]+ s\)", said), said
    assert "anew" not in said and rows(place / "killed") == rows(place / "whole")
    ours, theirs = (checkpoint.read(place / name / "checkpoint.pt") for name in ("killed", "whole"))
    for clock in ("seconds", "bytes", "written"):
        del ours[clock], theirs[clock]
    assert equal(ours, theirs)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Sticky, and so seeded that its games differ from one another; with games cut and lives that end the future."""
    check(tmp_path, 800, [400], "experiment=a2c_pong", "env.sticky=0.25", "env.point_terminal=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=dqn_pong", "env.num_envs=2", "agent.replay.capacity=2000", "agent.learning_starts=100"],
        ["experiment=dqn_pong", "env.game=breakout", "env.life_loss_terminal=true", "protocol=machado"],
        [
            "experiment=pong",
            "agent.rollout_length=16",
            "agent.gather_steps=64",
            "env.height=60",
            "env.width=60",
            "loop.eval_env.num_envs=2",
        ],
        ["experiment=a2c_crew_pong"],
        ["experiment=pqn_pong", "agent.rollout_length=16"],
        ["experiment=ppo_pong", "agent.rollout_length=16"],
    ],
)
def test_every_loop_does(tmp_path, arguments):
    check(tmp_path, 1600, [300, 800], *arguments)


@pytest.mark.slow
def test_a_checkpoint_of_before_begins_new_games_and_says_so(tmp_path):
    settings = [*TINY, "experiment=a2c_pong", "env.num_threads=auto", "loop.total_steps=200"]
    code, said = run(*settings, "hydra.run.dir=pong", cwd=tmp_path)
    assert code == 0 and "env.num_threads=auto: " in said
    state = checkpoint.read(tmp_path / "pong/checkpoint.pt")
    checkpoint.write(tmp_path / "pong/checkpoint.pt", state | {"env": {}})
    code, said = run("run=pong", "loop.total_steps=400", cwd=tmp_path)
    assert code == 0 and "this environment's state cannot be saved: its episodes start anew" in said, said
    assert [row["step"] for row in rows(tmp_path / "pong")][-1] == 400


@pytest.mark.slow
def test_control_c_while_they_are_played_again_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    assert run(*TINY, "experiment=a2c_pong", "loop.total_steps=200", "hydra.run.dir=pong", cwd=tmp_path)[0] == 0
    before, step, played = (tmp_path / "pong/checkpoint.pt").read_bytes(), atari.Atari.step, []

    def interrupted(env, action):
        played.append(action)
        if len(played) == 3:
            time.sleep(0.05)  # longer than the wait without a line
            os.kill(os.getpid(), signal.SIGINT)
        return step(env, action)

    monkeypatch.setattr(atari.Atari, "step", interrupted)
    monkeypatch.setattr(progress, "TOLD_EVERY", 0.01)
    code, said = run("run=pong", "loop.total_steps=400", cwd=tmp_path)
    assert code == 130 and len(played) == 3, said
    assert "taking up the run where it stood" in said and "stopped; rl-lab train run=pong resumes it" in said
    assert (tmp_path / "pong/checkpoint.pt").read_bytes() == before
    monkeypatch.undo()
    code, said = run("run=pong", "loop.total_steps=400", cwd=tmp_path)
    assert code == 0 and "resumed at step 200" in said and [row["step"] for row in rows(tmp_path / "pong")][-1] == 400
