"""Steps a second of many seeds at once beside as many runs alone, one after the other; one thread on one core.

python tests/bench/seeds.py [--seeds 64] [--rounds 3] [--core 0]

On four rooms, through the loops themselves, without evaluations and W&B. A run alone is timed two times in each round,
for other seeds, between the runs of many; ratios are within a round. Seconds are of the processor, so that a busy
machine counts less.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch

from rl_lab.core.launching.composed import complete_eval_env
from rl_lab.core.launching.composition import compose, conf_dir
from rl_lab.core.run import Run

STEPS = {  # of each seed: short, but most of them with gradient steps
    "agent=a2c": 32_000,
    "agent=a2c_mlp": 16_000,
    "agent=dqn": 9_600,
    "agent=dqn_mlp env.num_envs=4 agent.replay.capacity=10_000 agent.replay_ratio=32": 2_400,
    "agent=ppo": 16_000,
}


class Quiet(Run):
    """A run that notes how long its steps took, from the first to the last."""

    def begin(self, *arguments, **words) -> None:
        super().begin(*arguments, **words)
        self.began = time.process_time()

    def save(self, step, parts) -> None:
        self.spent = time.process_time() - self.began
        super().save(step, parts)


def seconds(words: str, loop: str, steps: int, seed: int, *more: str) -> float:
    settings = [*words.split(), "env=four_rooms", f"loop={loop}", f"loop.total_steps={steps}", "device=cpu",
                "loop.eval_every=100_000_000", "loop.eval_episodes=1", *more]  # fmt: skip
    config = compose(conf_dir(), "rl", settings)
    complete_eval_env(config, {})
    with tempfile.TemporaryDirectory() as folder:
        of_loop = {"loop": {"seeds": config.loop.get("seeds", 1)}}
        run = Quiet(Path(folder), seed, "cpu", names={"name": "bench"}, config=of_loop, written=json.dumps(of_loop),
                    checkpoint_every=1e9, max_memory_gb=0)  # fmt: skip
        with run:
            hydra.utils.call(config.loop, run=run)
        return run.spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, Python {sys.version.split()[0]}; "
          f"{arguments.seeds} seeds on four rooms")  # fmt: skip
    print(f"{'':<80}{'alone':>12}{'at once':>12}{'ratio':>8}   (steps a second)")
    for words, steps in STEPS.items():
        alone, many = [], []
        for r in range(arguments.rounds):
            first = seconds(words, "train", steps, 2 * r)
            many.append(steps * arguments.seeds / seconds(words, "seeds", steps, 0, f"loop.seeds={arguments.seeds}"))
            alone.append(2 * steps / (first + seconds(words, "train", steps, 2 * r + 1)))
        ratio = statistics.median(b / a for a, b in zip(alone, many, strict=True))
        print(
            f"{words:<80}{statistics.median(alone):>12,.0f}{statistics.median(many):>12,.0f}{ratio:>8.1f}", flush=True
        )


if __name__ == "__main__":
    main()
