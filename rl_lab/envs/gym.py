"""Any Gymnasium environment with discrete actions, several copies side by side, behind our protocol."""

import functools
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Objects
from rl_lab.envs import frames
from rl_lab.types import Spec, Step

# Where an exception comes from, if an answer of an environment could not be used.
INTERFACE = [*(str(Path(str(module.__file__)).parent) for module in (gymnasium, np)), functools.__file__, __file__]


class Gym:
    """Observations: a Box as float32, images as uint8 with channels first, a Discrete one-hot.

    An image is a Box of uint8 with three sides; the one that is shorter than both others counts its channels, and it
    comes first or last. Its state cannot be saved in general: a resumed run starts new episodes.
    """

    def __init__(
        self,
        id: str,
        num_envs: Objects,
        *,
        options: dict | None,  # go to gymnasium.make_vec
        channels: Literal["first", "last"] | None,  # of images; None: the side that is shorter than both others
        camera: bool = False,
        device: Device,
    ):
        if ":" in id:
            raise UserError(
                f"env.id={id} is refused: it would import {id.split(':')[0]}; install a package that registers itself"
            )
        known = gymnasium.registry.get(id)
        if "world" in (options or {}) and known and "world" in known.kwargs:
            raise UserError(f"env.options.world is refused: env.id={id} names its world; choose another env.id")
        self._id = id
        self._env = made(id, num_envs, dict(options or {}), drawing(id) if camera else {})
        actions = self._env.single_action_space
        if not isinstance(actions, spaces.Discrete):
            raise UserError(
                f"env.id={id} is refused: its actions are {actions}, and the agents here need discrete ones"
            )
        self._space, self._first_action = self._env.single_observation_space, int(actions.start)
        shape = self._space.shape or ()
        self._is_image = self._space.dtype == np.uint8 and len(shape) == 3
        self._channels = channels_of(id, shape, channels) if self._is_image else None
        self.num_envs, self.device = num_envs, torch.device(device)
        self._durations = torch.ones(num_envs, device=self.device)  # every action takes one step
        self.frames_per_second = frames.speed(self._env.metadata.get("render_fps"))
        made_by = self._env.spec
        limit = made_by and made_by.kwargs.get("max_episode_steps", made_by.max_episode_steps)
        self.time_limit = limit if limit and limit > 0 else None  # steps; None: an episode may never end
        self.spec = Spec(*self._shape(id), tuple(str(a) for a in range(int(actions.n))))

    def _shape(self, id: str) -> tuple[tuple[int, ...], torch.dtype]:
        match self._space:
            case spaces.Discrete():
                return (int(self._space.n),), torch.float32
            case spaces.Box() if self._is_image:
                a, b, c = self._space.shape
                return (a, b, c) if self._channels == "first" else (c, a, b), torch.uint8
            case spaces.Box():
                return self._space.shape, torch.float32
        raise UserError(f"env.id={id} is refused: observations {self._space} are neither a Box nor a Discrete")

    def reset(self, seed: int) -> Tensor:
        with answers_checked(self._id, "reset"):
            obs, _ = self._env.reset(seed=seed)
        self._obs = self._tensor(obs.copy())
        return self._obs

    def step(self, action: Tensor) -> Step:
        with answers_checked(self._id, "step"):
            answer = self._env.step(action.cpu().numpy() + self._first_action)
        obs, reward, terminated, truncated, info = answer
        last = terminated | truncated
        self._obs = next_obs = self._tensor(obs.copy())
        if last.any():
            true = obs.copy()
            for i in np.flatnonzero(last):
                true[i] = info["final_obs"][i]
            next_obs = self._tensor(true)
        numbers = np.empty((2, self.num_envs), np.float32)
        numbers[0], numbers[1] = reward, ~terminated
        paid, discount = torch.from_numpy(numbers).to(self.device).unbind()
        return Step(paid, discount, torch.from_numpy(last).to(self.device), next_obs, self._obs, self._durations)

    def observe(self) -> Tensor:
        return self._obs

    def picture(self) -> np.ndarray:
        """uint8 [N, H, W, 3]; needs `camera`. Raises UserError where nothing is drawn."""
        with answers_checked(self._id, "render"):
            drawn: Any = self._env.render()
            return np.stack([frames.as_picture(frame, self._id) for frame in drawn])

    def sees_picture(self) -> bool:
        return self.picture().shape[1:3] == self.spec.obs_shape[1:]

    def copies(self) -> Sequence[gymnasium.Env]:
        """Without what is ours around them; none where they run in processes of their own."""
        return [env.env if isinstance(env, Own) else env for env in getattr(self._env, "envs", ())]

    def _tensor(self, obs: np.ndarray) -> Tensor:
        """Of the array's own memory where device and dtype let it."""
        x = torch.from_numpy(obs).to(self.device)
        if isinstance(self._space, spaces.Discrete):
            return F.one_hot(x - int(self._space.start), int(self._space.n)).float()
        if not self._is_image:
            return x.float()
        return x if self._channels == "first" else x.permute(0, 3, 1, 2)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def close(self) -> None:
        self._env.close()


class Own(gymnasium.Wrapper):
    """One environment whose observations are nobody's buffer, and whose infos stay with it.

    Gymnasium's vectors keep the last observation of an episode while the next one begins, and hand it on as the info
    `final_obs`: a buffer used again, or an info of that name, would take its place.
    """

    def reset(self, **how) -> tuple[Any, dict]:
        obs, _ = self.env.reset(**how)
        return np.array(obs), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        answer: tuple[Any, Any, bool, bool, dict] = self.env.step(action)
        obs, reward, terminated, truncated, _ = answer
        if not isinstance(reward, float | int | np.generic) and (reward is None or np.ndim(reward)):
            raise TypeError(f"a reward is a number, and {reward!r} is not")
        return obs.copy() if isinstance(obs, np.ndarray) else np.array(obs), reward, terminated, truncated, {}


def made(id: str, num_envs: int, options: dict, camera: dict) -> gymnasium.vector.VectorEnv:
    """Raises UserError."""
    known = gymnasium.registry.get(id)
    if (known is None or str(known.entry_point).startswith("ale_py")) and (game := game_of(id)):
        raise UserError(f"no Gymnasium environment '{id}'; Atari games are played as env=atari env.game={game}")
    vector = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}  # the vector's buffer: copied here
    how = dict(vectorization_mode="sync", vector_kwargs=vector, wrappers=[Own], **camera)
    try:
        env = gymnasium.make_vec(id, num_envs, **how, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"no Gymnasium environment '{id}'{nearest(id, gymnasium.registry)}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"env.id={id}: {' '.join(str(error).split())}") from error
    except Exception as error:
        if not options:
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"env.id={id} with env.options {options}: {words}") from error
    if (mode := env.metadata.get("autoreset_mode")) is not AutoresetMode.SAME_STEP:
        env.close()
        raise UserError(
            f"env.id={id} is refused: it is registered with autoreset_mode={getattr(mode, 'value', mode)}; "
            "it must be SAME_STEP, where an episode begins in the step that ends the one before"
        )
    return env


def game_of(id: str) -> str | None:
    """The Atari game that an id of ale-py's, or one of the names before it, stands for."""
    from ale_py import roms

    name = re.sub(r"(NoFrameskip|Deterministic)?(-ram)?(-v\d+)?$", "", id.removeprefix("ALE/")).lower()
    return {game.replace("_", ""): game for game in roms.get_all_rom_ids()}.get(name)


def channels_of(id: str, shape: tuple[int, ...], wanted: str | None) -> str:
    """Which side of an image counts its channels. Raises UserError where it could be either."""
    first, middle, last = shape
    if wanted:
        return wanted
    if min(middle, last) > first or min(first, middle) > last:
        return "first" if first < last else "last"
    raise UserError(
        f"env.id={id}: any side of its images {shape} may count the channels; "
        "set env.channels=first or env.channels=last"
    )


@contextmanager
def answers_checked(id: str, method: str) -> Iterator[None]:
    """An answer that Gymnasium cannot use is a UserError; what fails in the environment's own code stays whole."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if any(not _of_interface(file) for file in files):
            raise
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"env.id={id}: its {method}() does not return what Gymnasium {gymnasium.__version__} expects "
            f"({words}); see gymnasium.utils.env_checker"
        ) from error


def _of_interface(file: str) -> bool:
    own = f"{INTERFACE[0]}/envs/"
    return file.startswith(tuple(INTERFACE)) and (not file.startswith(own) or file == f"{own}registration.py")


def drawing(id: str) -> dict:
    """The arguments that ask for pictures, or else for text; none where the world declares neither."""
    creator: Any = None
    with suppress(gymnasium.error.Error, ImportError, AttributeError):
        creator = gymnasium.spec(id).entry_point
        creator = gymnasium.envs.registration.load_env_creator(creator) if isinstance(creator, str) else creator
    declared = (getattr(creator, "metadata", None) or {}).get("render_modes")
    modes = {"rgb_array"} if declared is None else {*declared}
    mode = "rgb_array" if {"rgb_array", "rgb_array_list"} & modes else "ansi" if "ansi" in modes else None
    unchecked = {"disable_env_checker": True}  # it would not have every kind of picture
    return unchecked | ({"render_mode": mode} if mode else {})
