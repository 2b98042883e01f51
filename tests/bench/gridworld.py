"""Steps a second of the gridworld stepper under a random policy, beside Gymnasium's vectorised FrozenLake.

python tests/bench/gridworld.py [--rounds 5]      one thread; interleaved; medians and ratios.
"""

import argparse
import platform
import statistics
import time

import gymnasium
import torch

from rl_lab.envs.gridworld import gridworld
from rl_lab.envs.mdp import MDPEnv

MAP = "SFFFFFFF FFFFFFFF FFFHFFFF FFFFFHFF FFFHFFFF FHHFFFHF FHFFHFHF FFFHFFFG".replace("F", ".")


def ours(num_envs: int, seconds: float) -> float:
    world = gridworld(MAP, rewards={"G": 1.0, "H": 0.0}, noise=2 / 3, slip="sideways")
    env = MDPEnv(world, num_envs, time_limit=100)
    env.reset(0)
    rng = torch.Generator().manual_seed(0)
    actions = torch.randint(4, (16, num_envs), generator=rng)
    for action in actions:
        env.step(action)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for action in actions:
            env.step(action)
        count += 16 * num_envs
    return count / (time.perf_counter() - start)


def gymnasium_sync(num_envs: int, seconds: float) -> float:
    env = gymnasium.make_vec("FrozenLake8x8-v1", num_envs, vectorization_mode="sync", max_episode_steps=100)
    env.reset(seed=0)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        env.step(env.action_space.sample())
        count += num_envs
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    contenders = {
        "Gymnasium sync, 64 envs": lambda s: gymnasium_sync(64, s),
        "ours, 1,024 envs": lambda s: ours(1_024, s),
        "ours, 16,384 envs": lambda s: ours(16_384, s),
    }
    results = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, run in contenders.items():
            results[name].append(run(arguments.seconds))
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, FrozenLake 8x8, one-hot observations"
    )
    base = results["Gymnasium sync, 64 envs"]
    for name, speeds in results.items():
        ratio = statistics.median(a / b for a, b in zip(speeds, base, strict=True))
        print(f"{name:<26}{statistics.median(speeds) / 1e6:>8.2f} M steps/s{ratio:>8.1f} x")


if __name__ == "__main__":
    main()
