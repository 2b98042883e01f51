"""Who plays where: what a recording needs of a run's agent in its own environment, or of a random one in any."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from rl_lab.agents.random import Random
from rl_lab.core import calls, devices
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator
from rl_lab.core.recording import Episode
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.looking import pictures, worlds
from rl_lab.memory.episodes import play_episodes
from rl_lab.types import VectorEnv


class Stage(NamedTuple):
    """An environment, who plays in it, and what recording.json says of both."""

    env: VectorEnv
    agent: object
    num_envs: int  # that the settings ask for
    settings: dict  # of the environment
    words: dict  # of the agent
    epsilon: float = 0.0
    size: tuple[int, int] | None = None  # of the pictures; None: as they are

    def episodes(self, quotas: Sequence[int], seed: int, frames: bool, tick=lambda steps: None) -> Iterator[Episode]:
        """Everything that draws begins from `seed`: the env, the exploration, and an agent that draws its actions."""
        rng = generator(seed, self.env.device)
        if isinstance(own := getattr(self.agent, "rng", None), torch.Generator):
            own.manual_seed(seed)

        def policy(obs: Tensor) -> Tensor:
            action = self.agent.act(obs, greedy=True)
            if not self.epsilon:
                return action
            noise = torch.rand(2, len(obs), generator=rng, device=obs.device)
            return torch.where(noise[0] < self.epsilon, (noise[1] * self.env.spec.num_actions).long(), action)

        picture = camera(self.env, self.size) if frames else None
        return play_episodes(self.env, policy, quotas, seed, picture, tick)


def of_world(node: Mapping, num_envs: int, device: str, frames: bool) -> Stage:
    device = devices.chosen(device)
    arguments = {"num_envs": num_envs, "device": device}
    if frames and "camera" in inspect.signature(calls.locate(node["_target_"])).parameters:
        arguments["camera"] = True
    env = hydra.utils.instantiate(node, **arguments)
    agent = Random(env.spec, env.device, seed=0)
    return Stage(env, agent, node["num_envs"], OmegaConf.to_container(node, resolve=True), {"name": "random"})


def camera(env: VectorEnv, size: tuple[int, int] | None) -> Callable[[], np.ndarray]:
    """What pictures all envs as they are now, uint8 [N, H, W, 3]. Raises UserError where there is nothing to see."""

    def fitted(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX)) if size else picture

    if hasattr(env, "picture"):
        return lambda: np.stack([fitted(picture) for picture in env.picture()])
    if not worlds.has_map(env):
        raise UserError("this environment has no picture; record it with frames=false")
    if isinstance(env, MDPEnv):  # of few states, each drawn once
        seen = lru_cache(256)(lambda state: fitted(np.asarray(pictures.world(env.mdp.layout, state))))
        return lambda: np.stack([seen(state) for state in env.state.tolist()])
    return lambda: np.stack([fitted(np.asarray(picture)) for picture in worlds.drawn(env, env.observe())])
