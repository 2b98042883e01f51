"""What a step costs at few environments, beside plain Stable-Baselines3 at the same work, one thread each.

python tests/bench/overhead.py [--agents dqn a2c ppo] [--envs 1] [--pairs 20] [--core 1]

Both train on CartPole-v1 with networks, batches and updates of the same sizes, each in a process of its own that waits
while the other one works: a pair is TURN steps of the one and TURN of the other, and its ratio is of the processor's
seconds. The first turns, with imports, random steps and memory to be touched, are not counted. Neither evaluates.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURN, FIRST = 256, 6  # steps; turns that are not counted
OURS = {
    "dqn": "agent=dqn_mlp agent.network.hidden=[64,64]",  # a batch of 128 each step of one environment
    "a2c": "agent=a2c_sb3 agent.optimizer._target_=torch.optim.RMSprop",
    "ppo": "agent=ppo_sb3 agent.rollout_length=128 agent.minibatches=2",
}
THEIRS = {
    "dqn": {"learning_rate": 5e-4, "batch_size": 128, "buffer_size": 100_000, "learning_starts": 1_000, "train_freq": 1,
            "gradient_steps": -1, "target_update_interval": 200, "exploration_fraction": 0.1},
    "a2c": {},
    "ppo": {"n_steps": 128},
}  # fmt: skip


class Turns:
    """Says what each turn took, and waits until the next one is asked for."""

    def __init__(self):
        self.due, self.begun = TURN, time.process_time()

    def at(self, step: int) -> None:
        if step >= self.due:
            print(time.process_time() - self.begun, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.due, self.begun = self.due + TURN, time.process_time()


def ours(agent: str, envs: int, changes: list[str]) -> None:
    import hydra

    from rl_lab.core.launching.composed import complete_eval_env
    from rl_lab.core.launching.composition import compose, conf_dir
    from rl_lab.core.run import Run

    class Watched(Run):
        def pause(self, step: int, parts: dict) -> None:
            super().pause(step, parts)
            turns.at(step)

    settings = ["env=cartpole", f"env.num_envs={envs}", *OURS[agent].split(), "device=cpu", "tracker=none",
                "loop.total_steps=1_000_000_000", "loop.eval_every=null", *changes]  # fmt: skip
    config = compose(conf_dir(), "rl", settings)
    complete_eval_env(config, {})
    with tempfile.TemporaryDirectory() as folder:
        run = Watched(Path(folder), 0, "cpu", names={"name": "bench"}, config={}, checkpoint_every=1e9)
        with run:
            turns = Turns()
            hydra.utils.call(config.loop, _partial_=True)(run=run)


def theirs(agent: str, envs: int) -> None:
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            turns.at(self.num_timesteps)
            return True

    kind = getattr(stable_baselines3, agent.upper())
    model = kind("MlpPolicy", make_vec_env("CartPole-v1", envs, seed=0), seed=0, device="cpu", **THEIRS[agent])
    turns = Turns()
    model.learn(1_000_000_000, callback=Watch())


def side(who: str, agent: str, envs: int, changes: list[str]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--side", who, agent, str(envs), "--set", *changes]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
                            stderr=subprocess.DEVNULL)  # fmt: skip


def turn(process: subprocess.Popen, begun: bool) -> float:
    """Seconds of the processor."""
    if begun:
        process.stdin.write("\n")
        process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--envs", nargs="+", type=int, default=[1])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--core", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="further settings of ours, as on the command line")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    if arguments.side:
        who, agent, envs = arguments.side
        ours(agent, int(envs), arguments.set) if who == "ours" else theirs(agent, int(envs))
    print("| agent | environments | ours, ms a step | Stable-Baselines3 | theirs / ours, median | from | to |")
    print("|" + "---|" * 7)
    for agent in arguments.agents:
        for envs in arguments.envs:
            both = [side(who, agent, envs, arguments.set) for who in ("ours", "theirs")]
            pairs = [[turn(x, number > 0) for x in both] for number in range(FIRST + arguments.pairs)][FIRST:]
            for x in both:
                x.stdin.close()
                x.wait()
            ratios = sorted(b / a for a, b in pairs)
            ms = [f"{1_000 / TURN * statistics.median(x):.3f}" for x in zip(*pairs, strict=True)]
            spread = [f"{x:.2f}" for x in (statistics.median(ratios), ratios[0], ratios[-1])]
            print(f"| {agent} | {envs} | {' | '.join([*ms, *spread])} |", flush=True)


if __name__ == "__main__":
    main()
