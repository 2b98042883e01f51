"""ale-py's vector env behind our protocol (Bellemare et al., 2013): numpy and autoreset end in this file."""

import time
import zlib
from typing import Any, Literal

import numpy as np
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor

from rl_lab.core import threads
from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.randomness import generator, restore_generator
from rl_lab.core.settings import Count, Natural, Objects, PixelSide, Unit
from rl_lab.types import Spec, Step

LARGEST_SEED = 2**31 - 1  # of ale-py
UNLIMITED = 2**31 - 1  # frames: more than two years at 60 a second
CHAPTER = 600_000  # steps of all envs, after which the next game of each has a seed of its own: 3 minutes to play again


class Atari:
    """Stacks of four grey frames, uint8 [N, 4, height, width]; rewards are raw scores (agents clip).

    Episodes are cut here: ale-py's own limit stops within a step, before the true successor's last frame is taken.
    The emulators' state cannot be read, so a checkpoint holds the last seed of each env and its actions since, and a
    resumed run plays them again. With `camera` a second emulator of each env plays the same actions from the same seed
    and keeps its picture in colour.
    """

    def __init__(
        self,
        game: str,
        num_envs: Objects,
        *,
        frame_skip: Count,
        sticky: Unit,  # probability that a frame repeats the action before (Machado et al., 2018)
        noop_max: Natural,  # idle frames, at most, at the start of an episode
        fire_reset: bool,
        life_loss_terminal: bool,  # a lost life ends the future for the learner, not the episode
        point_terminal: bool,  # and so does a point, won or lost (Karpathy, 2016, "Pong from pixels")
        full_actions: bool,
        max_frames: Count,  # after the start; then the episode is truncated
        height: PixelSide,
        width: PixelSide,
        num_threads: Natural | Literal["auto"],  # auto: of this process's cores; 0: one for each of the machine's
        camera: bool = False,
        device: Device,
    ):
        if game not in roms.get_all_rom_ids():
            near = (
                nearest(game, roms.get_all_rom_ids())
                or "; their names are those of ale_py.roms.get_all_rom_ids(), such as pong"
            )
            raise UserError(f"no Atari game '{game}'{near}")
        arguments: dict[str, Any] = dict(
            game=game,
            num_envs=num_envs,
            reward_clipping=False,
            life_loss_info=life_loss_terminal,
            frameskip=frame_skip,
            repeat_action_probability=sticky,
            noop_max=noop_max,
            use_fire_reset=fire_reset,
            full_action_space=full_actions,
        )
        self._rules = arguments | dict(img_height=height, img_width=width, max_frames=max_frames)
        arguments |= dict(
            autoreset_mode=AutoresetMode.SAME_STEP,
            max_num_frames_per_episode=UNLIMITED,
            num_threads=threads.of_emulators(num_envs) if num_threads == "auto" else num_threads,
        )
        self._env = AtariVectorEnv(**arguments, img_height=height, img_width=width)
        colour: dict[str, Any] = dict(img_height=210, img_width=160, grayscale=False, stack_num=1)
        self._twin = AtariVectorEnv(**arguments, **colour) if camera else None
        self._chapter = max(1, CHAPTER // num_envs)  # steps of an env
        self._taken = np.zeros((num_envs, 2 * self._chapter), np.uint8)  # actions since the last seed
        self._known = False  # whether what was played leads to where the games stand
        self._lanes = np.arange(num_envs)
        self.replayed = 0, 0.0  # steps and seconds
        self.point_terminal = point_terminal
        self.num_envs, self.device, self.frames_per_second = num_envs, torch.device(device), 60 / frame_skip
        self.time_limit = -(-max_frames // frame_skip)  # steps
        names = tuple(action.name.lower() for action in self._env.ale.get_action_set())
        self.spec = Spec(tuple(self._env.single_observation_space.shape or ()), torch.uint8, names, frame_stack=4)

    def reset(self, seed: int) -> Tensor:
        self._rng = generator(seed, torch.device("cpu"))
        self._frame, self._steps, self._since, self._seeds = (np.zeros(self.num_envs, np.int64) for _ in range(4))
        self._known = True
        return self._begin(np.ones(self.num_envs, bool), (seed + self._lanes) % LARGEST_SEED)

    def step(self, action: Tensor) -> Step:
        actions = action.cpu().numpy()
        self._note(actions)
        obs, reward, terminated, _, info = self._env.step(actions)
        if self._twin:
            self._picture, *_ = self._twin.step(actions)
        # Under life_loss_info `terminated` marks a lost life too; only a reset turns the frame counter back.
        frame = info["episode_frame_number"].copy()
        over = terminated & (frame <= self._frame)
        self._steps += 1
        cut = ~over & (self._steps >= self.time_limit)
        self._steps[over] = 0
        self._frame, self._obs = frame, self._tensor(obs)
        next_obs = self._obs
        if over.any():  # final_obs holds uninitialised memory wherever the episode goes on
            next_obs = self._tensor(np.where(over[:, None, None, None], info["final_obs"], obs))
        last = over | cut
        seeded = last & (self._since >= self._chapter)
        if (fresh := cut | seeded).any():
            self._begin(fresh, np.where(seeded, self._drawn(), -1))
        ended = terminated | (reward != 0) if self.point_terminal else terminated
        score, discount = self._tensor(reward.astype(np.float32)), self._tensor(1.0 - ended.astype(np.float32))
        return Step(score, discount, self._tensor(last), next_obs, self._obs, torch.ones_like(score))

    def _begin(self, fresh: np.ndarray, seeds: np.ndarray) -> Tensor:
        """New games where `fresh` [N], each by its seed [N] or, where that is -1, by what came before.

        What all envs then show, uint8 [N, 4, height, width].
        """
        obs, info = self._env.reset(seed=seeds[fresh], options={"reset_mask": fresh})
        if self._twin:
            self._picture, _ = self._twin.reset(seed=seeds[fresh], options={"reset_mask": fresh})
        seeded = fresh & (seeds >= 0)
        self._seeds[seeded], self._since[seeded], self._steps[fresh] = seeds[seeded], 0, 0
        self._frame, self._obs = info["episode_frame_number"].copy(), self._tensor(obs)
        return self._obs

    def _drawn(self) -> np.ndarray:
        return torch.randint(LARGEST_SEED, (self.num_envs,), generator=self._rng).numpy()

    def _note(self, actions: np.ndarray) -> None:
        if self._since.max() == self._taken.shape[1]:
            self._taken = np.pad(self._taken, ((0, 0), (0, self._taken.shape[1])))
        self._taken[self._lanes, self._since] = actions
        self._since += 1

    def observe(self) -> Tensor:
        return self._obs

    def picture(self) -> np.ndarray:
        """uint8 [N, 210, 160, 3], in colour; needs `camera`."""
        return self._picture[:, -1]

    def sees_picture(self) -> bool:
        return True

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device, non_blocking=True)

    def state_dict(self) -> dict:
        """{} before a reset, and where a state was loaded that could not be played again."""
        if not self._known:
            return {}
        taken = self._taken[np.arange(self._taken.shape[1]) < self._since[:, None]]
        return {
            "seeds": torch.from_numpy(self._seeds.copy()),
            "steps": torch.from_numpy(self._since.copy()),
            "actions": torch.from_numpy(taken),
            "rng": self._rng.get_state(),
            "rules": self._rules,
            "seen": self._seen(),
        }

    def _seen(self) -> int:
        """A checksum of what all envs show."""
        return zlib.crc32(self._obs.cpu().numpy().tobytes())

    def load_state_dict(self, state: dict) -> None:
        """Plays again what was played; all envs stand where they stood after the same number of steps from here."""
        self._known = False
        if state.get("rules") != self._rules:  # {}, of an older version; or the games are others
            return
        start = time.monotonic()
        seeds, steps, taken = (state[name].cpu().numpy() for name in ("seeds", "steps", "actions"))
        waits = steps.max() - steps
        actions = np.zeros((self.num_envs, steps.max()), np.int64)
        actions[np.arange(steps.max()) >= waits[:, None]] = taken
        self.reset(0)
        for t in range(steps.max() + 1):
            if (fresh := waits == t).any():
                self._begin(fresh, seeds)
            if t < steps.max():
                self.step(torch.from_numpy(actions[:, t]))
        restore_generator(self._rng, state["rng"])
        self.replayed = int(steps.sum()), time.monotonic() - start
        self._known = self._seen() == state["seen"]  # not by another ale-py

    def close(self) -> None:
        self._env.close()
        if self._twin:
            self._twin.close()
