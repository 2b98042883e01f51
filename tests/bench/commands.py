"""Seconds that commands take from their first byte to their last, film and pictures included.

python tests/bench/commands.py [--rounds 9] [--beside <another checkout>]      interleaved; medians and the best.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
COMMANDS = {
    "rl-lab --help": "rl_lab --help",
    "rl-lab train --help": "rl_lab train --help",
    "gen-lab --help": "gen_lab --help",
    "gen-lab train --help": "gen_lab train --help",
    "import torch": "",
    "the book's 4x3 world, planned": "rl_lab train planner=value_iteration env=russell_norvig tracker=none",
    "the same, without the film": "rl_lab train planner=value_iteration env=russell_norvig tracker=none loop.film=false",
    "a hundred steps of PPO": "rl_lab train experiment=ppo_cartpole tracker=none device=cpu loop.total_steps=100",
    "FrozenLake 8x8, planned": "rl_lab train planner=value_iteration env=frozen_lake_8x8 tracker=none",
}


def seconds(command: str, tree: Path) -> tuple[float, float]:
    """Of the clock, and of the CPU."""
    words = ["-m", *command.split()] if command else ["-c", "import torch"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True)
        spent = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--beside", type=Path, help="ratios above 1: it takes longer")
    arguments = parser.parse_args()
    trees = {"here": HERE, **({"beside": arguments.beside.resolve()} if arguments.beside else {})}
    print(
        f"{'':<32}"
        + "".join(f"{f'{name}: wall':>14}{'best':>7}{'CPU':>7}{'best':>7}" for name in trees)
        + "   ratio of CPU"
    )
    for name, command in COMMANDS.items():
        spent: dict[str, list[tuple[float, float]]] = {tree: [] for tree in trees}
        for _ in range(arguments.rounds):
            for tree, path in trees.items():
                spent[tree].append(seconds(command, path))
        line = f"{name:<32}"
        for found in spent.values():
            wall, cpu = zip(*found, strict=True)
            line += f"{statistics.median(wall):>14.2f}{min(wall):>7.2f}{statistics.median(cpu):>7.2f}{min(cpu):>7.2f}"
        if arguments.beside:
            ratios = [b[1] / a[1] for a, b in zip(spent["here"], spent["beside"], strict=True)]
            line += f"{statistics.median(ratios):>12.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
