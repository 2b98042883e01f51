"""Episodes kept for later: by what a run learned or at random, as shards that the other commands and gen-lab read."""

import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rl_lab.core import files, locks, provenance, recording
from rl_lab.core.errors import FULL, UserError, counted
from rl_lab.core.launching.named import the_one
from rl_lab.core.progress import Progress
from rl_lab.core.randomness import stream
from rl_lab.core.recording import Recording
from rl_lab.core.settings import Count, Natural, Positive, Unit
from rl_lab.memory.episodes import newest, quotas
from rl_lab.playing.player import load, settings_of
from rl_lab.playing.stage import Stage, of_world

PROBE = 3  # episodes played beforehand, to say how large the recording will be
SAME = "env", "agent", "epsilon", "seed", "actions", "obs", "frames"  # in every shard of a recording
NO_COPIES = "num_envs", "device", "camera"  # of an environment's settings, what does not change its episodes


def record(
    runs: Sequence[Path],
    *,
    env: Mapping | None = None,  # of random episodes
    episodes: Count | None,
    steps: Count | None,
    epsilon: Unit,
    seed: Natural,
    frames: bool,
    frame_size: str | int | None,
    shard_mb: Positive,
    out: str | None,
    device: str,
    changes: Sequence[str] = (),  # of the run's settings
) -> Path:
    """Records, or continues the recording in the folder; returns the folder. Raises UserError."""
    usage = "record one run, rl-lab record run=<folder>, or random episodes, rl-lab record env=<name>"
    if env is None:
        the_one(runs, usage)
    elif runs:
        raise UserError(usage)
    size = dimensions(frame_size, frames)
    goal = Goal(episodes or (None if steps else 100), steps)

    def stage(num_envs: int) -> Stage:
        if env is None:
            found = of_run(runs[0], num_envs, device, frames, changes)
        else:
            found = of_world(env, num_envs, device, frames)
        return found._replace(epsilon=epsilon, size=size)

    probe = stage(1)
    try:
        about = described(probe, seed, frames)
        folder = files.folder_for(out) if out else default_folder(runs, about)
        if earlier := earlier_recording(folder, about):
            about = earlier.about
        else:
            about |= expected(probe, goal, seed, shard_mb * 1e6, frames)
    finally:
        probe.env.close()
    gone = earlier.check() if earlier else []
    if gone or goal.left(about):
        afford(folder, about, goal)
        fill(folder, about, goal, gone, stage(about["num_envs"]), frames)
    return reported(folder)


def dimensions(size: str | int | None, frames: bool) -> tuple[int, int] | None:
    """Height and width, of text such as 42x42. Raises UserError."""
    if not size:
        return None
    if not (frames and (found := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", str(size)))):
        raise UserError(f"frame_size={size} must be height x width, such as 42x42, and needs frames=true")
    return int(found[1]), int(found[2])


def of_run(folder: Path, num_envs: int, device: str, frames: bool, changes: Sequence[str]) -> Stage:
    player = load(folder, max_envs=num_envs, device=device, camera=frames, changes=changes)
    node = settings_of(folder, changes)
    words = {"name": player.name, "step": player.step, "unit": player.unit}
    words |= {"changes": list(changes)} if changes else {}
    return Stage(player.env, player.agent, node["num_envs"], node, words)


class Goal(NamedTuple):
    """When a recording is complete: a number of episodes, or at least a number of steps."""

    episodes: int | None
    steps: int | None

    def left(self, about: dict) -> int:
        """How many episodes are missing; for a number of steps, estimated from those recorded so far."""
        shards = about["shards"]
        count, steps = (sum(shard[key] for shard in shards) for key in ("episodes", "steps"))
        length = steps / count if count else about["expected"]["steps"]
        left = [self.episodes - count] if self.episodes else []
        left += [math.ceil((self.steps - steps) / length)] if self.steps else []
        return max(0, min(left))


# -- what is known beforehand


def described(stage: Stage, seed: int, frames: bool) -> dict:
    """What recording.json holds about all shards."""
    spec, env = stage.env.spec, {k: v for k, v in stage.settings.items() if k not in NO_COPIES}
    seen = torch.empty(1, *spec.obs_shape, device="meta")
    shape = list(newest(seen, spec.frame_stack).shape[1:])
    obs = {"shape": shape, "dtype": str(spec.obs_dtype).removeprefix("torch.")}
    size = "own" if stage.size is None else list(stage.size)
    return {
        "format": recording.FORMAT,
        "env": env,
        "agent": stage.words,
        "epsilon": stage.epsilon,
        "seed": seed,
        "actions": list(spec.actions),
        "frame_stack": spec.frame_stack,
        "obs": obs,
        "frames": size if frames else None,
        "versions": provenance.versions(),
        "git": provenance.revision(),
        "command": " ".join(sys.argv),
    }


def default_folder(runs: Sequence[Path], about: dict) -> Path:
    """The same command names the same folder, so that repeating it continues its recording."""
    digest = hashlib.sha256(json.dumps([about[key] for key in SAME], sort_keys=True).encode()).hexdigest()[:6]
    if runs:
        name = f"step{about['agent']['step']}_epsilon{about['epsilon']:g}-{digest}"
        return files.within(runs[0], "recordings", name)
    env = about["env"]
    world = env.get("mdp") or env
    name = next((str(world[key]) for key in ("game", "id") if key in world), world["_target_"].rsplit(".", 1)[-1])
    return Path("runs/recordings", re.sub(r"[^\w-]+", "_", name) + f"-{digest}")


def earlier_recording(folder: Path, about: dict) -> Recording | None:
    """What the folder holds of the same recording. Raises UserError where it holds something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / recording.INDEX).is_file():
        raise UserError(f"out={folder} holds other files and no {recording.INDEX}; choose a new folder")
    earlier = Recording(folder)
    for key in SAME:
        if (there := earlier.about.get(key)) != about[key]:
            words = [json.dumps(x) for x in (there, about[key])]
            shown = f" ({words[0]}, not {words[1]})" if max(map(len, words)) < 60 else ""
            raise UserError(f"{folder} holds a recording with another {key}{shown}; choose another out=<folder>")
    return earlier


def expected(stage: Stage, goal: Goal, seed: int, shard_bytes: float, frames: bool) -> dict:
    """Plays a few episodes to see how long and how large one is, how many make a shard, and in how many envs."""
    count = min(PROBE, goal.episodes or PROBE)
    probe = list(stage.episodes([count], stream(seed, "record/probe"), frames))
    steps, memory = (sum(x) / count for x in zip(*((len(e.action), e.nbytes) for e in probe), strict=True))
    packing = len(recording.packed(probe[:1])) / probe[0].nbytes
    size = {"steps": steps, "memory_bytes": memory, "disk_bytes": memory * packing}
    about = {"expected": size, "shards": []}
    per_shard = max(1, int(shard_bytes / memory))
    return {"num_envs": min(stage.num_envs, per_shard, goal.left(about)), "episodes_per_shard": per_shard, **about}


def afford(folder: Path, about: dict, goal: Goal) -> None:
    """Prints the expected size. Raises UserError where the disk has less room."""
    if not (left := goal.left(about)):
        return
    one, there = about["expected"], about["shards"]
    disk = sum(s["bytes"] for s in there) / sum(s["episodes"] for s in there) if there else one["disk_bytes"]
    shards, full = math.ceil(left / about["episodes_per_shard"]), min(left, about["episodes_per_shard"])
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if left * disk > free:
        raise UserError(
            f"{folder} needs about {left * disk / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB left; "
            "record fewer episodes or steps, or choose another out=<folder>"
        )
    print(
        f"{folder}: about {counted(left, 'episodes')} of {counted(one['steps'], 'steps')}, {left * disk / 1e6:,.3g} MB"
        f", as {counted(shards, 'shards')} of {full * disk / 1e6:,.3g} MB ({full * one['memory_bytes'] / 1e6:,.3g} MB "
        "in memory)",
        file=sys.stderr,
    )


# -- recording


def fill(folder: Path, about: dict, goal: Goal, gone: list[int], stage: Stage, frames: bool) -> None:
    """Records shard after shard; each is whole, and in the index, before the next. Raises UserError on a full disk."""
    progress, steps = Progress(folder.name), 0

    def tick(count: int) -> None:
        nonlocal steps
        steps += count
        progress.advance(steps, time.monotonic())

    if gone:
        progress.say(f"recording the missing shards again: {', '.join(map(str, gone))}")
    left = goal.left(about) + sum(about["shards"][k]["episodes"] for k in gone)
    progress.begin(max(1, round(left * about["expected"]["steps"])), "steps", 0)
    lock = None
    try:
        lock = locks.of_run(folder, "recorded")
        recording.write_index(folder, about)
        for number, count in work(about, goal, gone):
            seed = stream(about["seed"], f"record/shard {number}")
            episodes = list(stage.episodes(quotas(count, stage.env.num_envs), seed, frames, tick))
            first = sum(shard["episodes"] for shard in about["shards"][:number])
            about["shards"][number : number + 1] = [recording.write_shard(folder, number, episodes, first)]
            recording.write_index(folder, about)
    except OSError as error:
        if error.errno not in FULL:
            raise files.unwritten(folder, error, "out=") from error
        raise UserError(
            f"{folder}: {error.strerror or error}; finished shards are kept: "
            "make room, then run the same command to continue"
        ) from error
    except KeyboardInterrupt:
        kept = counted(len(about["shards"]), "finished shards")
        progress.say(
            f"stopped: {kept} kept, and the same command continues from there"
            if about["shards"]
            else "stopped before a shard was full: nothing is kept; shard_mb=1 makes smaller ones"
        )
        raise
    finally:
        progress.close()
        stage.env.close()
        if lock is not None:
            locks.let_go(lock)


def work(about: dict, goal: Goal, gone: list[int]) -> Iterator[tuple[int, int]]:
    """Numbers of the shards to record, and how many episodes in each."""
    for number in gone:
        yield number, about["shards"][number]["episodes"]
    while left := goal.left(about):
        yield len(about["shards"]), min(left, about["episodes_per_shard"])


def reported(folder: Path) -> Path:
    found = Recording(folder)
    reward, size = (sum(shard[key] for shard in found.about["shards"]) for key in ("total_reward", "bytes"))
    print(
        f"{folder}: {counted(found.num_episodes, 'episodes')}, {counted(found.num_steps, 'steps')}, mean return "
        f"{reward / found.num_episodes:,.6g}, {size / 1e6:,.3g} MB"
    )
    return folder
