"""Steps a second of Collect, one thread on one core: options and primitive actions, state only and with planes.

python tests/bench/collect.py [--rounds 5] [--seconds 0.5] [--device cpu]

All take random actions drawn beforehand; rounds are interleaved; medians. A second is one of the processor's, so that
a busy machine costs less of it. State only is `advance`, without a look at where it leads.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from stated import stated

Collect = stated("env/collect")

WORLDS = {
    "options": {},
    "primitive actions": {"options": False},
    "stochastic options": {"slip": 0.3, "drift": 0.3},
}
SIZES = 1_024, 16_384


def stepper(env: Collect, looks: bool) -> Callable[[torch.Tensor], None]:
    def advance(action: torch.Tensor) -> None:
        env.walkers = env.advance(env.walkers, action, *env.draw()).walkers

    return env.step if looks else advance


def rate(env: Collect, looks: bool, seconds: float) -> float:
    """Actions a second."""
    step, clock = stepper(env, looks), time.perf_counter if env.device.type == "cuda" else time.process_time
    actions = torch.randint(4, (8, env.num_envs), device=env.device)
    count, start = 0, clock()
    while (spent := clock() - start) < seconds:
        for action in actions:
            step(action)
        if env.device.type == "cuda":
            torch.cuda.synchronize()
        count += actions.numel()
    return count / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = {}
    for words, settings in WORLDS.items():
        for num_envs in SIZES:
            env = Collect(num_envs, device=arguments.device, **settings)
            env.reset(0)
            for looks in (False, True):
                runs[f"{words}, {num_envs:,} envs, {'planes' if looks else 'state only'}"] = env, looks
    speeds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, (env, looks) in runs.items():
            speeds[name].append(rate(env, looks, arguments.seconds))
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"{'M actions/s':>62}")
    for name, rates in speeds.items():
        print(f"{name:<52}{statistics.median(rates) / 1e6:>10.2f}")


if __name__ == "__main__":
    main()
