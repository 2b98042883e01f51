"""Steps a second of the gridworld stepper, one thread on one core, beside Gymnasium, gymnax and navix.

python tests/bench/gridworld.py [--rounds 5] [--peers PYTHON] [--core 0]

All take random actions drawn beforehand; rounds are interleaved; medians, and ratios within a round. `--peers` is a
Python with gymnax and navix (and jax for the CPU).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

gridworld, MDPEnv = stated("env/base/gridworld", "mdp"), stated("env/base/tabular")

MAP = "SFFFFFFF FFFFFFFF FFFHFFFF FFFFFHFF FFFHFFFF FHHFFFHF FHFFHFHF FFFHFFFG".replace("F", ".")
SIZES = 1_024, 16_384, 262_144
BASES = ["Gymnasium sync, 16,384 envs", "gymnax, 16,384 envs"]


def rate(step: Callable, actions, seconds: float) -> float:
    """Steps a second of `step`, on each of `actions` [T, N] in turn."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for action in actions:
            step(action)
        count += actions.shape[0] * actions.shape[1]
    return count / spent


@cache
def ours(obs: str, num_envs: int) -> tuple:
    world = gridworld(MAP, rewards={"G": 1.0, "H": 0.0}, noise=2 / 3, slip="sideways")
    env = MDPEnv(world, num_envs, time_limit=200, obs=obs)
    env.reset(0)
    actions = torch.randint(4, (16, num_envs), generator=torch.Generator().manual_seed(0))
    rate(env.step, actions, 0.0)
    return env.step, actions


@cache
def gymnasium_sync(num_envs: int) -> tuple:
    env = gymnasium.make_vec("FrozenLake8x8-v1", num_envs, vectorization_mode="sync")
    env.reset(seed=0)
    return env.step, np.random.default_rng(0).integers(4, size=(max(1, 1_024 // num_envs), num_envs))


def peer(process: subprocess.Popen, who: str, num_envs: int, seconds: float) -> float:
    process.stdin.write(f"{who} {num_envs} {seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def contenders(peers: subprocess.Popen | None) -> dict[str, Callable[[float], float]]:
    """From names to what measures for so many seconds."""
    runs = {f"Gymnasium sync, {n:,} envs": lambda s, n=n: rate(*gymnasium_sync(n), s) for n in (64, 16_384)}
    if peers:
        runs |= {f"gymnax, {n:,} envs": partial(peer, peers, "gymnax", n) for n in SIZES}
        runs |= {f"navix, {n:,} envs": partial(peer, peers, "navix", n) for n in SIZES[:2]}
    runs |= {f"ours, {n:,} envs": lambda s, n=n: rate(*ours("index", n), s) for n in SIZES}
    runs |= {f"ours, {n:,} envs, one-hot": lambda s, n=n: rate(*ours("one_hot", n), s) for n in SIZES[:2]}
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {arguments.core})  # the peers inherit it
    script = [arguments.peers, str(Path(__file__).with_name("gridworld_peers.py"))]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    peers = subprocess.Popen(script, **pipes) if arguments.peers else None
    runs = contenders(peers)
    speeds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            speeds[name].append(run(arguments.seconds))
    if peers:
        peers.stdin.close()
        peers.wait()
    report(speeds)


def report(speeds: dict[str, list[float]]) -> None:
    print(f"{platform.machine()}, one core, torch {torch.__version__}, Python {sys.version.split()[0]}; "
          "FrozenLake 8x8 (navix: Empty 8x8)")  # fmt: skip
    bases = [base for base in BASES if base in speeds]
    print(f"{'':<32}{'M steps/s':>10}" + "".join(f"{'x ' + base.split(',')[0]:>20}" for base in bases))
    for name, rates in speeds.items():
        ratios = (statistics.median(a / b for a, b in zip(rates, speeds[base], strict=True)) for base in bases)
        print(f"{name:<32}{statistics.median(rates) / 1e6:>10.2f}" + "".join(f"{r:>20.2f}" for r in ratios))


if __name__ == "__main__":
    main()
