"""Seconds to a score on classic control, beside plain Stable-Baselines3 outside our harness; one thread each.

python tests/bench/classic.py [--worlds cartpole] [--agents a2c ppo dqn] [--seeds 5] [--who ours tensors zoo defaults]

The score is the mean return of the last 20 training episodes, exploration and all: 475, -100 or 200. Every run is a
process of its own, and the contestants take turns seed by seed. Seconds begin with the first step (imports, networks
and environments are there by then) and end where the score is reached, at the last step, or at `--cap` seconds of the
processor; nobody evaluates meanwhile. Afterwards, untimed, 20 greedy episodes are played in Gymnasium's environment.

`ours` is `rl-lab train experiment=<agent>_<world>`, through Gymnasium; `tensors` the same with env=<world>_tensor and
more copies (TENSORS below). `zoo` has the settings of RL Baselines3 Zoo, `defaults` the library's own.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW, LOOK = 20, 200  # episodes; steps between looks
WORLDS = {"cartpole": ("CartPole-v1", 475), "acrobot": ("Acrobot-v1", -100), "lunar_lander": ("LunarLander-v3", 200)}
FIELDS = "who", "world", "agent", "seed", "seconds", "cpu_seconds", "steps", "reached", "greedy"

TENSORS = {
    ("cartpole", "a2c"): "env.num_envs=16 agent.rollout_length=8",
    ("cartpole", "ppo"): "env.num_envs=32 agent.rollout_length=16 agent.minibatches=4",
    ("cartpole", "dqn"): "",
    ("acrobot", "a2c"): "env.num_envs=64 agent.rollout_length=8",
    ("acrobot", "ppo"): "env.num_envs=32 agent.rollout_length=16",
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
    import torch

    from rl_lab.core.launching.composition import compose, conf_dir
    from rl_lab.core.run import Run
    from rl_lab.loops.judging import play

    class Reached(Exception):
        pass

    class Timed(Run):
        """Stops where the score is reached: the parts of its checkpoint tell."""

        def begin(self, *arguments, **words) -> None:
            super().begin(*arguments, **words)
            self.look, self.clock = 0, None

        def pause(self, step: int, parts: dict) -> None:
            super().pause(step, parts)
            self.agent = parts["agent"]
            if self.clock and step >= self.look:
                self.look = step + LOOK
                state = parts["episodes"].state_dict()
                count = int(state["count"])
                newest = [i % 100 for i in range(count - WINDOW, count)]
                reached = count >= WINDOW and state["latest"][newest].mean().item() >= score
                if reached or self.clock.over():
                    self.found = self.clock.stop(step, reached)
                    raise Reached

        def log(self, row: dict, step: int, keep: bool = False) -> None:
            super().log(row, step, keep)
            if keep and self.clock is None:  # the evaluation at step 0, before learning begins
                self.clock = Clock()

        def save(self, step: int, parts: dict) -> None:
            if self.clock and not hasattr(self, "found"):
                self.found = self.clock.stop(step, False)
            super().save(step, parts)

    torch.set_num_threads(1)
    score = WORLDS[world][1]
    settings = [f"experiment={agent}_{world}", f"seed={seed}", "device=cpu", "tracker=none",
                "loop.eval_every=1_000_000_000", "loop.eval_episodes=1", *changes]  # fmt: skip
    config = compose(conf_dir(), "rl", settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Timed(Path(folder), seed, "cpu", names={"name": "bench"}, config={}, checkpoint_every=1e9)
        try:
            with run:
                hydra.utils.call(config.loop, _partial_=True)(run=run)
        except Reached:
            pass
        env = hydra.utils.instantiate(compose(conf_dir(), "rl", ["env=gym", f"env.id={WORLDS[world][0]}",
                                                                 "env.num_envs=4", "device=cpu"]).env)  # fmt: skip
        greedy, _ = play(env, lambda obs: run.agent.act(obs, greedy=True), 20, 1_000 + seed)
    return run.found | {"greedy": round(greedy.mean().item(), 1)}


# -- Stable-Baselines3


def theirs(world: str, agent: str, seed: int, tuned: bool) -> dict:
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
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

    envs, steps, normalise, settings = ZOO[world, agent]
    if not tuned:
        envs, normalise, settings = 1, False, {}
    settings = {k: falling(float(v.split()[-1])) if isinstance(v, str) else v for k, v in settings.items()}
    env = make_vec_env(id, envs, seed=seed)
    if normalise:
        env = VecNormalize(env)
    kind = getattr(stable_baselines3, agent.upper())
    model, until = kind("MlpPolicy", env, seed=seed, device="cpu", stats_window_size=WINDOW, **settings), Until()
    model.learn(steps, callback=until)
    found = until.found or until.clock.stop(model.num_timesteps, False)
    fresh = make_vec_env(id, 1, seed=1_000 + seed)
    if normalise:
        fresh = VecNormalize(fresh, training=False, norm_reward=False)
        fresh.obs_rms = env.obs_rms
    greedy, _ = evaluate_policy(model, fresh, 20, deterministic=True)
    return found | {"greedy": round(float(greedy), 1)}


def falling(first: float):
    return lambda left: left * first


# -- the table


def one(who: str, world: str, agent: str, seed: int, changes: list[str]) -> dict:
    if who in ("zoo", "defaults"):
        found = theirs(world, agent, seed, who == "zoo")
    else:
        wider = [f"env={world}_tensor", *TENSORS[world, agent].split()] if who == "tensors" else []
        found = ours(world, agent, seed, [*wider, *changes])
    return {"who": who, "world": world, "agent": agent, "seed": seed, **found}


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
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--agents", nargs="+", default=["a2c", "ppo", "dqn"])
    parser.add_argument("--who", nargs="+", default=["ours", "tensors", "zoo", "defaults"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cap", type=float, default=300, help="seconds of the processor, for one run")
    parser.add_argument("--core", type=int)
    parser.add_argument("--csv", type=Path, help="rows are added to it, and the table is made of all of them")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of ours, as on the command line")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    Clock.cap = arguments.cap
    if arguments.one:
        who, world, agent, seed = arguments.one
        print(json.dumps(one(who, world, agent, int(seed), arguments.set)))
        return
    rows = list(csv.DictReader(arguments.csv.open())) if arguments.csv and arguments.csv.exists() else []
    for world in arguments.worlds:
        for agent in arguments.agents:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                for who in arguments.who:
                    if who == "tensors" and world == "lunar_lander":
                        continue
                    command = [
                        sys.executable,
                        __file__,
                        "--cap",
                        str(arguments.cap),
                        "--one",
                        who,
                        world,
                        agent,
                        str(seed),
                    ]
                    command += ["--set", *arguments.set] if arguments.set else []
                    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
                    done = subprocess.run(command, capture_output=True, text=True, env=environment)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    row = json.loads(done.stdout.splitlines()[-1])
                    rows.append({name: row[name] for name in FIELDS})
                    print(*rows[-1].values(), flush=True)
                    if arguments.csv:
                        with arguments.csv.open("w", newline="") as file:
                            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                            writer.writeheader(), writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
