"""A2C and DQN on Pong against Stable-Baselines3's own: equal settings and work, interleaved, each in a fresh process.

python tests/bench/atari.py [--rounds 3] [--steps 8000]      prints steps a second, peak memory, and the ratios.
SB3 runs as its users run it (pip install -e '.[bench]'): make_atari_env and VecFrameStack in a DummyVecEnv.
"""

import argparse
import csv
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from rl_lab.core import precision, room

WARM_UP = 800  # steps, not counted
A2C = {"gamma": 0.99, "max_grad_norm": 0.5}
CONTENDERS = ["sb3 a2c 16", "ours ppo 16", "ours a2c 16", "ours a2c 64", "ours a2c-bf16 64", "ours crew 16",
              "ours crew 64", "ours crew 128", "ours crew-bf16 128",
              "sb3 dqn 1", "ours dqn 1", "ours dqn 8", "ours dqn-bf16 1", "ours dqn-bf16 8"]  # fmt: skip


def ours(kind: str, num_envs: int, steps: int) -> float:
    """Steps a second of the training loop's body; `ppo` is PPO in A2C's shape: one epoch, one batch, a forward more."""
    room.keep_freed_memory()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from stated import stated

    from rl_lab.loops.crew import Crew, Member
    from rl_lab.types import Transition

    if kind == "crew":
        torch.set_num_threads(1)
    atari, a2c = stated("env/atari"), stated("agent/a2c_zoo", **A2C)
    envs = [atari("pong", num_envs // 2, num_threads=1) for _ in range(2)] if kind == "crew" else []
    env, cpu = envs[0] if envs else atari("pong", num_envs), torch.device("cpu")
    if kind in ("a2c", "crew"):
        agent = a2c(env.spec, cpu, 0)
    elif kind == "ppo":
        shape = dict(network=stated("agent/a2c_zoo", "network"), optimizer=stated("agent/a2c_zoo", "optimizer"),
                     rollout_length=5, lambda_=1.0, value_coef=0.25, entropy_coef=0.01, max_abs_reward=1.0)  # fmt: skip
        agent = stated("agent/ppo", epochs=1, minibatches=1, standardise=False)(env.spec, cpu, 0, **shape, **A2C)
    else:
        agent = stated("agent/dqn_cnn")(env.spec, cpu, 0, replay=stated("agent/dqn_cnn", "replay", capacity=20_000),
                                        learning_starts=100, epsilon=lambda step: 0.1)  # fmt: skip
    if kind == "crew":
        members = [Member(agent, env, seed) for seed, env in enumerate(envs)]
        for seed, member in enumerate(members):
            member.reset(seed)
        crew, step = Crew(agent, members), 0
        while step < WARM_UP + steps:
            if step >= WARM_UP > step - 5 * num_envs:
                start, first = time.perf_counter(), step
            crew.learn()
            step += 5 * num_envs
        return (step - first) / (time.perf_counter() - start)
    obs = env.reset(0)
    for step in range(0, WARM_UP + steps, num_envs):
        if step >= WARM_UP > step - num_envs:
            start = time.perf_counter()
        action = agent.act(obs)
        answer = env.step(action)
        agent.update(Transition.of(obs, action, answer))
        obs = answer.obs
    return steps / (time.perf_counter() - start)


def sb3(kind: str, num_envs: int, steps: int) -> float:
    import ale_py
    import gymnasium
    from stable_baselines3 import A2C as Agent
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(
        make_atari_env("PongNoFrameskip-v4", num_envs, wrapper_kwargs={"terminal_on_life_loss": False}), 4
    )
    if kind == "a2c":
        model = Agent("CnnPolicy", env, n_steps=5, vf_coef=0.25, ent_coef=0.01,
                      policy_kwargs={"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}, **A2C)  # fmt: skip
    else:
        model = DQN("CnnPolicy", env, learning_rate=1e-4, buffer_size=20_000, batch_size=32, learning_starts=100,
                    train_freq=4, gradient_steps=1, target_update_interval=1_000, exploration_fraction=1e-9,
                    exploration_final_eps=0.1)  # fmt: skip

    class Clock(BaseCallback):
        start = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps >= WARM_UP and not self.start:
                self.start, self.first = time.perf_counter(), self.num_timesteps
            return True

    clock = Clock()
    model.learn(WARM_UP + steps, callback=clock)
    return (model.num_timesteps - clock.first) / (time.perf_counter() - clock.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--csv", type=Path, help="one row a run")
    parser.add_argument("--one", nargs=3)
    arguments = parser.parse_args()
    if arguments.one:
        who, kind, num_envs = arguments.one
        kind, _, reduced = kind.partition("-")  # a2c-bf16 is A2C as precision=bf16 trains it
        precision.choose("bf16" if reduced else "fp32", torch.device("cpu"))
        with precision.training():
            speed = {"ours": ours, "sb3": sb3}[who](kind, int(num_envs), arguments.steps)
        print(json.dumps({"speed": speed, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
        return
    results = {contender: [] for contender in CONTENDERS}
    for _ in range(arguments.rounds):
        for contender in CONTENDERS:
            steps = arguments.steps // (4 if "dqn" in contender else 1)
            command = [sys.executable, __file__, "--steps", str(steps), "--one", *contender.split()]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            results[contender].append(json.loads(output.splitlines()[-1]))
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["round", "contender", "steps_per_second", "peak_gb"])
            for contender, found in results.items():
                writer.writerows([i, contender, r["speed"], r["gigabytes"]] for i, r in enumerate(found))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'who':<18}{'steps/s, median':>16}{'ratio to SB3':>14}{'peak GB':>9}")
    for contender, found in results.items():
        peer = [r["speed"] for r in results["sb3 a2c 16" if "dqn" not in contender else "sb3 dqn 1"]]
        ratios = [r["speed"] / p for r, p in zip(found, peer, strict=True)]
        speed, memory = (statistics.median(r[k] for r in found) for k in ("speed", "gigabytes"))
        print(f"{contender:<18}{speed:>16,.0f}{statistics.median(ratios):>14.2f}{memory:>9.2f}")


if __name__ == "__main__":
    main()
