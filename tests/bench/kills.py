"""Kills: every agent, planner and model is killed at random moments, taken up again, and held against a run left alone.

python tests/bench/kills.py [--kills 2] [--only dqn,vae] [--seed 0] [--keep folder]

A kill is SIGKILL, at a random moment once a checkpoint is on disk; checkpoints are written all the time. The rows of
metrics.jsonl, all but the seconds, and everything in the last checkpoint must be those of a run that was left alone,
bit for bit. Stable-Baselines3 keeps its rollouts to itself, and Gymnasium's environments their state: of those runs it
is only asked that they go on and finish. Exits with 1 where anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rl_lab.core import checkpoint
from rl_lab.core.folders import summary

COMMON = "tracker=none device=cpu threads=1 checkpoint.every=0.02"
STEPS = "loop.eval_every={every} loop.eval_episodes=8 loop.total_steps={total}"


def steps(total: int, settings: str, every: int | None = None) -> tuple[str, str]:
    """Of rl-lab."""
    return "rl_lab", f"{settings} {STEPS.format(total=total, every=every or total // 4)}"


def updates(total: int, settings: str) -> tuple[str, str]:
    """Of gen-lab."""
    return "gen_lab", f"{settings} loop.total_steps={total} loop.eval_every={total // 4} loop.pictured=4"


def gridworld(agent: str, total: int, more: str = "") -> tuple[str, str]:
    return steps(total, f"agent={agent} env=four_rooms name={agent} {more}")


PONG = "env.num_envs=2 env.num_threads=1 env.height=42 env.width=42 env.max_frames=240 loop.eval_drawn=0"
REPLAY = "agent.replay.capacity=1000 agent.learning_starts=200"
CASES = {
    # agents
    "dqn": gridworld("dqn", 20_000, REPLAY),
    "dqn double dueling n-step": gridworld("dqn", 10_000, f"{REPLAY} agent.double=true agent.dueling=true "
                                                          "agent.replay.n_step=3"),
    "dqn noisy": gridworld("dqn", 10_000, f"{REPLAY} agent.noisy=0.5 agent.zero_head=false"),
    "dqn prioritised": gridworld("dqn", 10_000, f"{REPLAY} agent/priorities=proportional"),
    "dqn quantiles": gridworld("dqn", 10_000, f"{REPLAY} agent/value=quantiles"),
    "dqn categorical": gridworld("dqn", 10_000, f"{REPLAY} agent/value=categorical"),
    "dqn_mlp": gridworld("dqn_mlp", 5_000, REPLAY),
    "dqn_collect": steps(3_000, "experiment=dqn_collect_small env.num_envs=16"),
    "a2c": gridworld("a2c", 60_000),
    "a2c_mlp": gridworld("a2c_mlp", 30_000),
    "a2c crew": gridworld("a2c", 40_000, "loop=crew"),
    "ppo": gridworld("ppo", 60_000),
    "ppo_mlp": gridworld("ppo_mlp", 30_000),
    "pqn": gridworld("pqn", 60_000),
    "pqn_mlp": gridworld("pqn_mlp", 30_000),
    "reinforce": gridworld("reinforce", 60_000),
    "reinforce_mlp": gridworld("reinforce_mlp", 30_000),
    "actor_critic": steps(40_000, "experiment=actor_critic_russell_norvig"),
    "q_learning": gridworld("q_learning", 60_000),
    "sarsa": gridworld("sarsa", 60_000),
    "expected_sarsa": gridworld("expected_sarsa", 60_000),
    "vpn": steps(4_000, "experiment=vpn_russell_norvig env.num_envs=16"),
    "vpn1 collect": steps(2_000, "experiment=vpn1_collect_small env.num_envs=16"),
    "vpn replay": steps(2_000, "experiment=vpn_replay_collect_small env.num_envs=16"),
    "opn": steps(2_000, "experiment=vpn1_collect_small agent=opn env.num_envs=16"),
    "fitted_q linear": ("rl_lab", "experiment=fitted_q_four_rooms loop.random_steps=5000 loop.iterations=300"),
    "fitted_q mlp": ("rl_lab", "agent=fitted_q_mlp env=russell_norvig loop=fit_q name=mlp loop.random_steps=1000 "
                               "loop.iterations=20"),
    "fitted_q trees": ("rl_lab", "agent=fitted_q_trees env=russell_norvig loop=fit_q name=trees "
                                 "loop.random_steps=1000 loop.iterations=20"),
    "seeds dqn": gridworld("dqn", 10_000, f"loop=seeds loop.seeds=3 {REPLAY}"),
    "seeds a2c": gridworld("a2c", 20_000, "loop=seeds loop.seeds=3"),
    # Atari, whose games are played again
    "atari a2c": steps(3_000, f"experiment=a2c_pong env.sticky=0.25 env.point_terminal=true {PONG}"),
    "atari crew": steps(3_000, f"experiment=a2c_crew_pong {PONG}"),
    "atari overlapped": steps(3_000, f"experiment=pong agent.rollout_length=32 agent.gather_steps=64 {PONG} "
                                     "env.height=60 env.width=60"),
    "atari dqn": steps(2_000, f"experiment=dqn_pong {PONG} {REPLAY}"),
    # what is not saved whole
    "sb3_ppo": steps(4_000, "experiment=sb3_ppo_cartpole"),
    "sb3_dqn": steps(3_000, "experiment=sb3_dqn_cartpole"),
    "sb3_a2c": steps(4_000, "experiment=sb3_a2c_cartpole"),
    "dqn cartpole": steps(20_000, "experiment=dqn_cartpole"),
    # planners
    **{planner: ("rl_lab", f"loop=plan planner={planner} env=four_rooms name={planner} loop.log_every=5") for planner in (
        "value_iteration", "policy_iteration", "modified_policy_iteration", "q_iteration", "prioritised_sweeping",
        "linear_programming", "policy_evaluation", "finite_horizon")},
    # models
    "autoencoder": updates(400, "experiment=autoencoder_digits"),
    "denoising autoencoder": updates(400, "experiment=denoising_autoencoder_digits"),
    "bernoulli mixture": updates(400, "experiment=bernoulli_mixture_digits"),
    "independent": updates(400, "experiment=independent_digits"),
    "vae": updates(300, "experiment=vae_digits loop.iwae_samples=0"),
    "vae conv": updates(60, "experiment=vae_conv_digits loop.iwae_samples=0"),
    "vae levels": updates(60, "experiment=vae_levels_digits loop.iwae_samples=0"),
    "iwae": updates(100, "experiment=iwae_digits loop.iwae_samples=0"),
    "vqvae": updates(60, "experiment=vqvae_digits"),
    "gan": updates(300, "experiment=gan_gaussian_ring"),
    "dcgan": updates(30, "experiment=dcgan_digits judge=none"),
    "sngan": updates(30, "experiment=sngan_digits judge=none"),
    "wgan_gp": updates(30, "experiment=wgan_gp_digits judge=none"),
    "pixelcnn": updates(20, "experiment=pixelcnn_digits"),
    "gated pixelcnn": updates(16, "experiment=gated_pixelcnn_digits"),
    "pixelcnn++": updates(12, "experiment=pixelcnnpp_digits"),
    "pixelrnn row": updates(16, "experiment=pixelrnn_row_digits"),
    "pixelrnn diagonal": updates(12, "experiment=pixelrnn_diagonal_digits"),
}  # fmt: skip
GOES_ON = {"sb3_ppo", "sb3_dqn", "sb3_a2c", "dqn cartpole"}  # but not bit for bit
ANEW = {name for name, (_, words) in CASES.items() if "loop=plan" in words}  # killed before there is a checkpoint too
SPENT = {"seconds", "bytes", "sha256", "written", "format"}  # of a checkpoint, what the clock has a part in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2, help="of each case")
    parser.add_argument("--only", default="", help="cases, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="where the runs stay")
    asked = parser.parse_args()
    chosen = asked.only.split(",") if asked.only else [*CASES]
    if unknown := {*chosen} - {*CASES}:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    root, rng, struck, bad = asked.keep or Path(tempfile.mkdtemp()), random.Random(asked.seed), 0, 0
    root.mkdir(parents=True, exist_ok=True)
    print(f"{'case':<26} {'kills':>5} {'rows':>6}  at step", flush=True)
    for name in chosen:
        place = root / name.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        at, words = case(name, place, asked.kills, rng)
        struck, bad = struck + len(at), bad + (words != "")
        count = sum(len(rows(path)) for path in place.glob("killed/**/metrics.jsonl"))
        print(f"{name:<26} {len(at):>5} {count:>6}  {', '.join(map(str, at))}  {words or 'equal'}"
              + " (finished)" * (name in GOES_ON), flush=True)  # fmt: skip
    print(f"{struck} kills of {len(chosen)} cases, {bad} differ")
    return 1 if bad or not struck else 0


def case(name: str, place: Path, kills: int, rng: random.Random) -> tuple[list[int], str]:
    """The steps of the checkpoints that the kills left, and what differs in the end."""
    lab, words = CASES[name]
    given = [*COMMON.split(), *words.split()]
    whole = start(lab, place, *given, "hydra.run.dir=whole")
    if whole.wait():
        return [], f"does not run: {(place / 'log').read_text().splitlines()[-1]}"
    seconds = json.loads((place / "whole/summary.json").read_text())["seconds"]
    at: list[int] = []
    for _ in range(4 * kills):
        begun = (place / "killed/config.yaml").exists()
        process = start(lab, place, *(["run=killed"] if begun else [*given, "hydra.run.dir=killed"]))
        was_killed = kill(process, place / "killed", name, rng.uniform(0, 0.7 * seconds / kills))
        if not was_killed or summary(place / "killed").get("state") == "finished":
            if not was_killed and process.returncode:
                return at, f"exit code {process.returncode}: {(place / 'log').read_text().splitlines()[-1]}"
            (place / "killed").rename(place / f"too late {time.monotonic():.3f}")
            at.clear()
            continue
        at.append(json.loads((place / "killed/summary.json").read_text())["step"])
        if len(at) == kills:
            break
    process = start(lab, place, "run=killed")
    if process.wait():
        return at, f"exit code {process.returncode}: {(place / 'log').read_text().splitlines()[-1]}"
    return at, differences(place / "whole", place / "killed", name)


def start(lab: str, place: Path, *arguments: str) -> subprocess.Popen:
    with open(place / "log", "a") as log:
        return subprocess.Popen([sys.executable, "-m", lab, "train", *arguments], cwd=place, stdout=log, stderr=log,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


def kill(process: subprocess.Popen, folder: Path, name: str, later: float) -> bool:
    """So many seconds after it has written a checkpoint in this sitting; False where it ended before."""
    sign = folder / ("metrics.jsonl" if name in ANEW else "checkpoint.pt")
    stamp = lambda: sign.stat().st_mtime_ns if sign.exists() else 0
    before = stamp()
    while stamp() == before and process.poll() is None:
        time.sleep(0.002)
    deadline = time.monotonic() + later
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def differences(whole: Path, killed: Path, name: str) -> str:
    """In words, "" where there are none."""
    state = json.loads((killed / "summary.json").read_text())["state"]
    if state != "finished":
        return f"it is {state}"
    if name in GOES_ON:
        ends = [rows(folder / "metrics.jsonl")[-1]["step"] for folder in (whole, killed)]
        return "" if ends[1] >= 0.9 * ends[0] else f"ends at step {ends[1]}, not {ends[0]}"
    found = []
    for path in sorted(whole.glob("**/metrics.jsonl")):
        if rows(path) != rows(killed / path.relative_to(whole)):
            found.append(f"rows of {path.relative_to(whole)}")
    for path in sorted(whole.glob("**/checkpoint.pt")):
        ours, theirs = (checkpoint.read(folder / path.relative_to(whole)) for folder in (whole, killed))
        found += [f"{path.relative_to(whole)}: {where}" for where in unlike(ours, theirs)]
    if (whole / "plan.npz").exists() and (whole / "plan.npz").read_bytes() != (killed / "plan.npz").read_bytes():
        found.append("plan.npz")
    return "; ".join(found[:4])


def rows(path: Path) -> list[dict]:
    """Everything but the seconds."""
    lines = path.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def unlike(a, b, where: str = "") -> list[str]:
    """Where two states differ, bit for bit; not in what the clock has a part in."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in a.keys() | b.keys() if key not in SPENT and "seconds" not in str(key)]
        return [x for key in sorted(keys, key=str) for x in unlike(a.get(key), b.get(key), f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [x for i, pair in enumerate(zip(a, b, strict=True)) for x in unlike(*pair, f"{where}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))
    else:
        same = type(a) is type(b) and (a == b or a != a)
    return [] if same else [where.lstrip(".")]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8) if x.numel() else x


if __name__ == "__main__":
    sys.exit(main())
