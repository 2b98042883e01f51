"""Pong: steps a second of the training loop's body, by each agent, with and without CUDA graphs."""

import os
from collections.abc import Callable

import torch

from gpu_parts.common import built, compiling
from gpu_parts.figures import learning
from rl_lab.core import precision

Note = Callable[..., None]


def pong(experiment: str, device: torch.device, seconds: float, note: Note, small: bool, *more: str) -> None:
    sizes = [2] if small else [32, 128]
    threads = 1 if small else max(1, min(16, (os.cpu_count() or 2) - 1))
    ways = [(kind, how) for kind in ("bf16", "fp32") for how in ("graphs", "none")]  # the most wanted first
    for size in sizes:
        for kind, how in ways[:1] if small else ways:
            precision.choose(kind, device)
            try:
                with compiling(how, device):
                    env, agent = built(device, f"experiment={experiment}", f"env.num_envs={size}",
                                       f"env.num_threads={threads}", *more)  # fmt: skip
                    with precision.training():
                        speed = learning(env, agent, env.reset(0), device, seconds / len(sizes) / len(ways))
                    note(f"{size} envs, {kind}, compile={how}", speed, "steps/s")
                    env.close()
            finally:
                precision.choose("fp32", device)


def pong_a2c(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Steps of Pong a second by A2C, with the emulator's own share."""
    few = ["agent.rollout_length=2"] * small
    pong("pong_a2c", device, seconds, note, small, "agent.network.standardise=false", *few)


def pong_pqn(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Steps of Pong a second by PQN."""
    few = ["agent.rollout_length=8", "agent.minibatches=2"] * small
    pong("pong_pqn", device, seconds, note, small, "agent.network.standardise=false", *few)


def pong_ppo(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Steps of Pong a second by PPO, acting and learning in turns."""
    few = ["agent.rollout_length=4", "agent.minibatches=1", "agent.epochs=1"] * small
    pong("pong", device, seconds, note, small, "loop=train", "agent.network.standardise=false",
         "agent.decoupled=false", *few)  # fmt: skip
