"""What an environment costs and leaves behind: pictures, speed, memory, processes and files."""

import ctypes
import gc
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import cycle
from pathlib import Path

import numpy as np

from rl_lab.core.errors import counted
from rl_lab.core.randomness import generator
from rl_lab.doctor.report import Finding, failed, late, not_applicable, passed
from rl_lab.doctor.worlds import World, by_hand, drawn, script
from rl_lab.envs.abilities import Filmed, Mapped, has_camera
from rl_lab.envs.frames import speed as fps_of

EPISODES, LEAK = 1_000, 8.0  # MB that so many may leave behind
FEW = 20  # pictures that may all be the same
PROC = Path("/proc/self")


def pictures(world: World) -> Finding:
    """Whether it can be filmed, and whether the speed it declares is that of its physics."""
    with closing(world.built(1, **({"camera": True} if has_camera(world.node["_target_"]) else {}))) as env:
        if not isinstance(env, Filmed):
            drawn_as = "it is drawn as a map" if isinstance(env, Mapped) and env.has_map else "it has no picture"
            return not_applicable(f"{drawn_as}, and waits for each action")
        env.reset(world.seed)
        rng, shots, begun = generator(0, env.device), list[np.ndarray](), time.monotonic()
        while len(shots) < 100 and time.monotonic() < begun + world.seconds / 2:
            env.step(drawn(env, rng))
            shots.append(env.picture()[0].copy())
        rate = len(shots) / (time.monotonic() - begun)
        own = env.frames_per_second
    if any(shot.dtype != np.uint8 or shot.ndim != 3 or shot.shape[2] != 3 for shot in shots):
        return failed(f"a picture is {shots[0].dtype} {shots[0].shape}, not bytes [H, W, 3]: it cannot be filmed")
    if len(shots) < FEW:
        return late(f"there was time for {counted(len(shots), 'pictures')} alone")
    if all(np.array_equal(shots[0], shot) for shot in shots[1:]):
        return failed(f"{len(shots)} pictures of {len(shots)} steps are all the same: a film would show nothing")
    words = f"{len(shots)} pictures {shots[0].shape[0]} x {shots[0].shape[1]}, {rate:,.0f} a second"
    return passed(f"{words}; its time runs at {own or 0:g}{declared(world)}")


def declared(world: World) -> str:
    """What its metadata say about the speed, and whether its physics agree, where they state the seconds of a step."""
    with world.singles(1) as envs:
        for env in envs:
            fps, inner = env.metadata.get("render_fps"), env.unwrapped
            words = "" if fps and fps_of(fps) == fps else " (it declares none that can be shown)"
            seconds = getattr(inner, "tau", None) or getattr(inner, "dt", None)
            if isinstance(seconds, int | float) and seconds > 0 and fps and abs(1 / seconds / fps - 1) > 0.05:
                words += f" a second, though a step takes {seconds:g} s of its physics: films are not in real time"
            return words or " a second"
    return " a second"


def speed(world: World) -> Finding:
    with closing(world.built(world.num_envs)) as env:
        env.reset(world.seed)
        rng, steps, begun = generator(0, env.device), 0, time.monotonic()
        while time.monotonic() < begun + min(1.0, world.seconds):
            env.step(drawn(env, rng))
            steps += env.num_envs
        rate = steps / (time.monotonic() - begun)
    return passed(f"{rate:,.0f} steps a second of {world.num_envs} copies: {in_words(1e6 / rate)} for a million")


def in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.0f} h"


def memory(world: World) -> Finding:
    """By how much the process grows over a thousand episodes, or as many as time allows, from the first fifth on."""
    if not (PROC / "statm").exists():
        return not_applicable("this system does not say how much memory a process has")
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free pages that the process holds would hide what it grows by
    begun, count, marks = time.monotonic(), 0, [(0, resident())]
    for count in ending(world, 2 * world.seconds):
        if count >= EPISODES:
            break
        is_due = count >= len(marks) * EPISODES / 20 or time.monotonic() > begun + len(marks) * world.seconds / 10
        if is_due:  # looking takes time, too
            marks.append((count, resident()))
    marks.append((count, resident()))
    gc.unfreeze()
    if count < 5:
        return not_applicable(f"{count} episodes ended in {2 * world.seconds:.0f} s: too few to tell")
    begin = next(mark for mark in marks if mark[0] >= count / 5)
    middle = next(mark for mark in marks if mark[0] >= count * 3 / 5)
    grown, later = marks[-1][1] - begin[1], marks[-1][1] - middle[1]
    many = f"{count - begin[0]:,} episodes" + (f" (there was no time for {EPISODES:,})" if count < EPISODES else "")
    if grown > LEAK and later > 0.25 * grown:
        return failed(f"the process grows by {grown:.1f} MB in {many}, and goes on growing: long runs are killed")
    return passed(f"the process grows by {max(grown, 0.0):.1f} MB in {many}")


def ending(world: World, seconds: float) -> Iterator[int]:
    """Plays random episodes, of the bare environment where there is one; yields their number after each."""
    count = 0
    with world.singles(1) as envs:
        for env in envs:
            for row in by_hand(env, world.seed, cycle(script(world.seed, 0, env, 10_007)), seconds):
                if row.terminated or row.truncated:
                    yield (count := count + 1)
            return
    with closing(world.built(world.few)) as ours:
        ours.reset(world.seed)
        rng, end = generator(0, ours.device), time.monotonic() + seconds
        while time.monotonic() < end:
            if ended := int(ours.step(drawn(ours, rng)).last.sum()):
                yield (count := count + ended)


def resident() -> float:
    """The memory of this process, in MB."""
    gc.collect()
    return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def left_behind(world: World) -> Finding:
    """After `close`: no process, and no file that stays open."""
    if not (PROC / "task").exists():
        return not_applicable("this system does not say which processes there are")
    open_and_close(world)
    processes, files = children(), len(os.listdir(PROC / "fd"))
    for _ in range(2):
        open_and_close(world)
    end = time.monotonic() + 2
    while (more := children() - processes) and time.monotonic() < end:
        time.sleep(0.05)
    if more:
        return failed(f"{len(more)} processes are left after close() (such as {min(more)}): a study fills the machine")
    gc.collect()
    if (grown := len(os.listdir(PROC / "fd")) - files) >= 2:
        return failed(f"{grown} more files are open after two were closed: a long study runs out of them")
    return passed("no process and no open file is left after close()")


def open_and_close(world: World) -> None:
    with closing(world.built(2)) as env:
        env.reset(world.seed)
        env.step(drawn(env, generator(0, env.device)))


def children() -> set[int]:
    """Processes that this one has begun."""
    tasks = (PROC / "task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}
