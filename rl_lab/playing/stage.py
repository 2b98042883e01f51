"""Who plays where: what a recording needs of a run's agent in its own environment, or of a random agent in any."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from rl_lab.agents.random import Random
from rl_lab.core import devices
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator
from rl_lab.core.recording import Episode
from rl_lab.envs.abilities import Filmed, has_camera, refuse_unlearned
from rl_lab.looking import worlds
from rl_lab.memory.episodes import play_episodes
from rl_lab.parts import PARTS
from rl_lab.types import Drawing, VectorEnv, Viewed


class Stage(NamedTuple):
    """An environment, the agent that plays in it, and what recording.json holds about both."""

    env: VectorEnv
    agent: Viewed
    num_envs: int  # that the settings ask for
    settings: dict  # of the environment
    words: dict  # of the agent
    epsilon: float = 0.0
    size: tuple[int, int] | None = None  # of the pictures; None: as they are

    def episodes(self, quotas: Sequence[int], seed: int, frames: bool, tick=lambda steps: None) -> Iterator[Episode]:
        """Everything that draws begins from `seed`: the env, the exploration, and an agent that draws its actions."""
        rng = generator(seed, self.env.device)
        if isinstance(self.agent, Drawing):
            self.agent.rng.manual_seed(seed)

        def policy(obs: Tensor) -> Tensor:
            action = self.agent.act(obs, greedy=True)
            if not self.epsilon:
                return action
            noise = torch.rand(2, len(obs), generator=rng, device=obs.device)
            return torch.where(noise[0] < self.epsilon, (noise[1] * self.env.spec.num_actions).long(), action)

        picture = camera(self.env, self.size) if frames else None
        return play_episodes(self.env, policy, quotas, seed, picture, tick)


def of_world(node: Mapping, num_envs: int, device: str, frames: bool) -> Stage:
    written: Any = OmegaConf.to_container(node, resolve=True)
    device = devices.chosen(device, config=written, exact=PARTS.exact)
    arguments = {"num_envs": num_envs, "device": device}
    if frames and has_camera(node["_target_"]):
        arguments["camera"] = True
    env = hydra.utils.instantiate(node, **arguments)
    refuse_unlearned(env, "leave out env.normalise_obs=true")
    agent = Random(env.spec, env.device, seed=0)
    return Stage(env, agent, node["num_envs"], written, {"name": "random"})


def camera(env: VectorEnv, size: tuple[int, int] | None) -> Callable[[], np.ndarray]:
    """What pictures all envs as they are now, uint8 [N, H, W, 3]. Raises UserError where there is nothing to see."""

    def resized(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX)) if size else picture

    if isinstance(env, Filmed):
        return lambda: np.stack([resized(picture) for picture in env.picture()])
    if (world := worlds.mapped(env)) is None:
        raise UserError("this environment has no picture; record it with frames=false")
    drawn = lru_cache(256)(lambda seen: resized(np.asarray(worlds.picture(seen))))  # a gridworld has few pictures
    return lambda: np.stack([drawn(seen) for seen in world.maps(env.observe())])
