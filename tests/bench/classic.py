"""Seconds to a score on classic control, beside plain Stable-Baselines3 outside our harness; one thread each.

python tests/bench/classic.py [--worlds cartpole] [--agents a2c ppo dqn] [--seeds 5] [--who ours tensors zoo defaults]

The score is the mean return of the last 20 training episodes, exploration and all: 475, -100, 200 or -110; the tables'
worlds have none, there the seconds are those of the whole run. Every run is a process of its own, a copy of this one,
and the contestants take turns seed by seed. Seconds begin with the first step (imports, networks and environments are
there by then) and end where the score is reached or at the last step; nobody evaluates meanwhile. Ours then trains on to
the end of its preset (`whole_...`), and 100 greedy episodes follow, untimed. Stable-Baselines3 stops at the score, or at
`--cap` seconds of the processor, and plays 20.

`ours` is `rl-lab train experiment=<agent>_<world>`, through Gymnasium; `tensors` the same with env=<world>_tensor and
more copies (TENSORS below). `zoo` has the settings of RL Baselines3 Zoo, `defaults` the library's own.
"""

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

WINDOW, LOOK = 20, 200  # episodes; steps between looks
WORLDS = {"cartpole": ("CartPole-v1", 475), "acrobot": ("Acrobot-v1", -100), "lunar_lander": ("LunarLander-v3", 200),
          "mountain_car": ("MountainCar-v0", -110), "frozen_lake": ("FrozenLake-v1", math.inf),
          "taxi": ("Taxi-v4", math.inf), "cliff_walking": ("CliffWalking-v1", math.inf)}  # fmt: skip
FIELDS = ("who", "world", "agent", "seed", "seconds", "cpu_seconds", "steps", "reached", "greedy", "regret",
          "whole_cpu_seconds", "whole_steps", "versions")  # fmt: skip

TENSORS = {
    ("cartpole", "a2c"): "env.num_envs=16 agent.rollout_length=8",
    ("cartpole", "ppo"): "env.num_envs=32 agent.rollout_length=16 agent.minibatches=4",
    ("cartpole", "dqn"): "",
    ("acrobot", "ppo"): "env.num_envs=64 agent.rollout_length=8",
    ("acrobot", "dqn"): "",
}

WIDE = {"policy_kwargs": {"net_arch": [256, 256]}}
OFTEN = {"learning_starts": 0, "train_freq": 4, "gradient_steps": -1, "target_update_interval": 250,
         "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "exploration_fraction": 0.12,
         "exploration_final_eps": 0.1, **WIDE}  # fmt: skip
# rl-baselines3-zoo/hyperparams: environments, steps, whether observations and rewards are normalised, and the settings.
ZOO = {
    ("cartpole", "a2c"): (8, 500_000, False, {}),
    ("cartpole", "ppo"): (8, 100_000, False, {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98,
                                              "n_epochs": 20, "learning_rate": "falls from 1e-3",
                                              "clip_range": "falls from 0.2"}),
    ("cartpole", "dqn"): (1, 50_000, False, {"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
                                             "learning_starts": 1_000, "target_update_interval": 10, "train_freq": 256,
                                             "gradient_steps": 128, "exploration_fraction": 0.16,
                                             "exploration_final_eps": 0.04, **WIDE}),
    ("acrobot", "a2c"): (16, 500_000, True, {}),
    ("acrobot", "ppo"): (16, 1_000_000, True, {"n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4}),
    ("acrobot", "dqn"): (1, 100_000, False, OFTEN),
    ("mountain_car", "a2c"): (16, 1_000_000, True, {}),
    ("mountain_car", "ppo"): (16, 1_000_000, True, {"n_steps": 16, "gae_lambda": 0.98, "n_epochs": 4}),
    ("mountain_car", "dqn"): (1, 120_000, False, {"learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000,
                                                  "learning_starts": 1_000, "gamma": 0.98, "train_freq": 16,
                                                  "target_update_interval": 600, "gradient_steps": 8,
                                                  "exploration_fraction": 0.2, "exploration_final_eps": 0.07, **WIDE}),
    ("lunar_lander", "a2c"): (8, 200_000, False, {"gamma": 0.995, "learning_rate": "falls from 8.3e-4",
                                                  "ent_coef": 1e-5}),
    ("lunar_lander", "ppo"): (16, 1_000_000, False, {"n_steps": 1_024, "batch_size": 64, "gae_lambda": 0.98,
                                                     "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01}),
    ("lunar_lander", "dqn"): (1, 100_000, False, OFTEN),
}  # fmt: skip


class Clock:
    """Starts when it is made; `stop` says what a row says, and after `cap` seconds of the processor it is over."""

    cap = float("inf")

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def over(self) -> bool:
        return time.process_time() - self.cpu > self.cap

    def stop(self, steps: int, reached: bool) -> dict:
        return {"seconds": round(time.perf_counter() - self.wall, 2), "steps": steps, "reached": reached,
                "cpu_seconds": round(time.process_time() - self.cpu, 2)}  # fmt: skip


# -- ours


def ours(world: str, agent: str, seed: int, changes: list[str]) -> dict:
    import hydra

    from rl_lab.core.launching.composed import complete_eval_env
    from rl_lab.core.launching.composition import compose, conf_dir
    from rl_lab.core.run import Run

    class Timed(Run):
        """Looks for the score while it trains: the parts of its checkpoint tell."""

        found, whole, clock = None, None, None

        def pause(self, step: int, parts: dict) -> None:
            super().pause(step, parts)
            if self.clock is None:
                self.look, self.clock = 0, Clock()
            if step >= self.look:
                self.search(step, parts)

        def search(self, step: int, parts: dict) -> None:
            self.look = step + LOOK
            state = parts["episodes"].state_dict()
            count = int(state["count"])
            newest = [i % 100 for i in range(count - WINDOW, count)]
            if self.found is None and count >= WINDOW and state["latest"][newest].mean().item() >= score:
                self.found = self.clock.stop(step, True)

        def save(self, step: int, parts: dict) -> None:
            if self.whole is None:  # the last step was taken, where loop.stop_at may have seen the score first
                self.search(step, parts)
                self.whole = self.clock.stop(step, False)
            super().save(step, parts)

    score = WORLDS[world][1]
    settings = [f"experiment={agent}_{world}", f"seed={seed}", "device=cpu", "tracker=none", "loop.eval_every=null",
                "loop.eval_episodes=100", *changes]  # fmt: skip
    config = compose(conf_dir(), "rl", settings)
    complete_eval_env(config, {})
    with tempfile.TemporaryDirectory() as folder:
        run = Timed(Path(folder), seed, "cpu", names={"name": "bench"}, config={}, checkpoint_every=1e9)
        with run:
            hydra.utils.call(config.loop, _partial_=True)(run=run)
        whole = {f"whole_{name}": run.whole[name] for name in ("cpu_seconds", "steps")}
        regret = {"regret": round(run.final["eval/regret"], 4)} if "eval/regret" in run.final else {}
        return (run.found or run.whole) | whole | regret | {"greedy": round(run.final["eval/return"], 2)}


# -- Stable-Baselines3


def theirs(world: str, agent: str, seed: int, tuned: bool) -> dict:
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    id, score = WORLDS[world]

    class Until(BaseCallback):
        look, found = 0, None

        def _on_training_start(self) -> None:
            self.clock = Clock()

        def _on_step(self) -> bool:
            if self.num_timesteps < self.look:
                return True
            self.look = self.num_timesteps + LOOK
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            reached = len(returns) == WINDOW and statistics.fmean(returns) >= score
            if reached or self.clock.over():
                self.found = self.clock.stop(self.num_timesteps, reached)
                return False
            return True

    envs, steps, normalise, settings = ZOO[world, agent] if tuned else (1, 500_000, False, {})
    settings = {k: falling(float(v.split()[-1])) if isinstance(v, str) else v for k, v in settings.items()}
    limit = {"max_episode_steps": 500} if world == "cliff_walking" else {}  # of its own it has none
    env = make_vec_env(id, envs, seed=seed, env_kwargs=limit)
    if normalise:
        env = VecNormalize(env)
    kind = getattr(stable_baselines3, agent.upper())
    model, until = kind("MlpPolicy", env, seed=seed, device="cpu", stats_window_size=WINDOW, **settings), Until()
    model.learn(steps, callback=until)
    found = until.found or until.clock.stop(model.num_timesteps, False)
    fresh = make_vec_env(id, 1, seed=1_000 + seed, env_kwargs=limit)
    if normalise:
        fresh = VecNormalize(fresh, training=False, norm_reward=False)
        fresh.obs_rms = env.obs_rms
    greedy, _ = evaluate_policy(model, fresh, 20, deterministic=True)
    return found | {"greedy": round(float(greedy), 2)}


def falling(first: float):
    return lambda left: left * first


# -- the table


def one(who: str, world: str, agent: str, seed: int, changes: list[str]) -> dict:
    if who in ("zoo", "defaults"):
        found = theirs(world, agent, seed, who == "zoo")
    else:
        wider = [f"env={world}_tensor", *TENSORS[world, agent].split()] if who == "tensors" else []
        found = ours(world, agent, seed, [*wider, *changes])
    return {"who": who, "world": world, "agent": agent, "seed": seed, **found, "versions": versions()}


def versions() -> str:
    names = "torch", "gymnasium", *(["stable_baselines3"] if "stable_baselines3" in sys.modules else [])
    return " ".join(f"{name} {metadata.version(name)}" for name in names)


def imported() -> None:
    """What both sides need, torch's slower modules among it, so that no run's seconds hold imports."""
    import stable_baselines3
    import torch
    import torch._dynamo

    import rl_lab.loops.training

    torch.set_num_threads(1)
    assert stable_baselines3 and rl_lab


def apart(work, *arguments) -> dict:
    """What `work` finds in a process of its own, which this one is copied into: all is imported by then."""
    down, up = os.pipe()
    if child := os.fork():
        os.close(up)
        with open(down) as file:
            told = file.read()
        os.waitpid(child, 0)
        if not told:
            raise SystemExit(f"{work.__name__}{arguments} failed")
        return json.loads(told)
    try:
        told = json.dumps(work(*arguments))
        with open(up, "w") as file:
            file.write(told)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def table(rows: list[dict]) -> str:
    """Medians over seeds; `x` is how many times faster than the faster of Stable-Baselines3's two, wall and CPU."""
    lines = [
        "| world | agent | who | reached | seconds | CPU seconds | steps | greedy | x | x CPU |",
        "|" + "---|" * 10,
    ]
    for world, agent in dict.fromkeys((r["world"], r["agent"]) for r in rows):
        of = {}
        for r in rows:
            if (r["world"], r["agent"]) == (world, agent):
                of.setdefault(r["who"], []).append(r)
        middle = {who: {k: statistics.median(float(r[k]) for r in found) for k in ("seconds", "cpu_seconds", "steps", "greedy")}
                  for who, found in of.items()}  # fmt: skip
        hit = {who: sum(str(r["reached"]) == "True" for r in found) for who, found in of.items()}
        peers = [who for who in ("zoo", "defaults") if who in of]
        best = min(peers, key=lambda who: (hit[who] <= len(of[who]) / 2, middle[who]["cpu_seconds"]), default=None)
        for who, m in middle.items():
            ratio = ["", ""]
            if best and who not in peers:
                ratio = [f"{middle[best][k] / m[k]:.1f}" for k in ("seconds", "cpu_seconds")]
                if hit[best] <= len(of[best]) / 2:
                    ratio = [f"> {x}" for x in ratio]
            lines.append(f"| {world} | {agent} | {who} | {hit[who]} of {len(of[who])} | {m['seconds']:.1f} | "
                         f"{m['cpu_seconds']:.1f} | {m['steps']:,.0f} | {m['greedy']:.1f} | {' | '.join(ratio)} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["cartpole", "acrobot", "mountain_car"], choices=list(WORLDS))
    parser.add_argument("--agents", nargs="+", default=["a2c", "ppo", "dqn"])
    parser.add_argument("--who", nargs="+", default=["ours", "tensors", "zoo", "defaults"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cap", type=float, default=300, help="seconds of the processor, for one run")
    parser.add_argument("--core", type=int)
    parser.add_argument("--csv", type=Path, help="rows are added to it, and the table is made of all of them")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of ours, as on the command line")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    Clock.cap = arguments.cap
    imported()
    rows = list(csv.DictReader(arguments.csv.open())) if arguments.csv and arguments.csv.exists() else []
    for world in arguments.worlds:
        for agent in arguments.agents:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                for who in arguments.who:
                    if who == "tensors" and (world, agent) not in TENSORS:
                        continue
                    row = apart(one, who, world, agent, seed, arguments.set)
                    rows.append({name: row.get(name, "") for name in FIELDS})
                    print(*rows[-1].values(), flush=True)
                    if arguments.csv:
                        with arguments.csv.open("w", newline="") as file:
                            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                            writer.writeheader(), writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
