"""Batches a second from a million Atari frames, beside Stable-Baselines3's buffer; and of two ways to draw by priority.

python tests/bench/replay.py [--capacity 1000000] [--peer 20000] [--rounds 5] [--device cpu]      one thread; medians.
SB3 keeps whole stacks (28 kB, or 56 kB with next_obs), so its buffer is smaller and sits better in the cache.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from rl_lab.memory import Replay
from rl_lab.memory.priorities import SumTree
from rl_lab.types import Transition

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

STACK, FILL = (4, 84, 84), 512  # rows written at once while filling


def filled(capacity: int, device: torch.device) -> Replay:
    """Noise frames, an episode end in a thousand."""
    replay, rng = (
        stated("agent/dqn", "replay")(capacity, 0, device, frame_stack=4),
        torch.Generator(device).manual_seed(0),
    )
    stacks = torch.randint(256, (2, FILL, *STACK), dtype=torch.uint8, generator=rng, device=device)
    zeros = torch.zeros(FILL, device=device)
    for _ in range(-(-capacity // FILL)):
        last = torch.rand(FILL, generator=rng, device=device) < 1e-3
        replay.add(Transition(stacks[0], zeros.long(), zeros, 1.0 - last.float(), last, stacks[1], zeros + 1))
    return replay


def resident() -> int:
    """Bytes of this process that are in memory."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def peer(capacity: int, lean: bool) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, spaces.Box(0, 255, STACK, np.uint8), spaces.Discrete(6), "cpu",
                          optimize_memory_usage=lean, handle_timeout_termination=not lean)  # fmt: skip
    stack = np.random.default_rng(0).integers(256, size=(1, *STACK), dtype=np.uint8)
    for _ in range(capacity):
        buffer.add(stack, stack, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    return buffer


def rate(call: Callable[[], object], device: torch.device, seconds: float = 0.5) -> float:
    """Calls a second."""
    for _ in range(3):
        call()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    wait()
    return count / (time.perf_counter() - start)


def priorities(device: torch.device, entries: int) -> dict[str, Callable[[int], Callable[[], object]]]:
    """Ways to draw a batch and write it back."""
    p = torch.rand(entries, dtype=torch.float64, device=device)
    everyone = torch.arange(entries, device=device)

    def tree(branches: int):
        sums = SumTree(entries, device, branches)
        sums[everyone] = p

        def call(batch: int):
            mass = torch.rand(batch, dtype=torch.float64, device=device) * sums.total
            leaf = sums.find(mass)
            sums[leaf] = mass

        return lambda batch: lambda: call(batch)

    def running_sum(batch: int):
        edges = p.cumsum(0)
        leaf = torch.searchsorted(edges, torch.rand(batch, dtype=torch.float64, device=device) * edges[-1])
        p[leaf] = 0.5

    trees = {f"sum tree, {b} branches": tree(b) for b in (2, 16, 64, 128, 256, 1024)}
    return trees | {"running sum": lambda batch: lambda: running_sum(batch)}


def table(title: str, calls: dict[str, Callable], batches: list[int], rounds: int, device: torch.device) -> None:
    """Batches a second, interleaved, medians."""
    found = {(name, b): [] for name in calls for b in batches}
    for _ in range(rounds):
        for (name, b), rates in found.items():
            rates.append(rate(calls[name](b), device))
    print(f"{title:<34}" + "".join(f"{f'batch {b}':>14}" for b in batches))
    for name in calls:
        print(f"{name:<34}" + "".join(f"{statistics.median(found[name, b]):>14,.0f}" for b in batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--peer", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {device}")
    table("priorities, 1,000,000 entries", priorities(device, 1_000_000), [32, 1024], arguments.rounds, device)
    buffers = {
        f"SB3, {arguments.peer:,}": peer(arguments.peer, False),
        "SB3, the same, lean": peer(arguments.peer, True),
    }
    for capacity in (arguments.peer, arguments.capacity):
        before = resident()
        replay = buffers[f"ours, {capacity:,}"] = filled(capacity, device)
        print(f"ours, {replay.size:,} transitions: the process grew by {(resident() - before) / 1e9:.2f} GB")
    calls = {name: lambda b, buffer=buffer: lambda: buffer.sample(b) for name, buffer in buffers.items()}
    table("batches a second", calls, [32, 256], arguments.rounds, device)


if __name__ == "__main__":
    main()
