"""Any Gymnasium environment with discrete actions, several copies side by side, behind our protocol."""

import functools
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from rl_lab.core import imports
from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError, brief
from rl_lab.core.settings import Count, Objects, Positive, Unit
from rl_lab.envs import frames, naming, wrapping
from rl_lab.envs.lens import Lens, Statistics
from rl_lab.types import Spec, Step

# Where an exception comes from, if an answer of an environment could not be used.
INTERFACE = [*(str(Path(str(module.__file__)).parent) for module in (gymnasium, np)), functools.__file__, __file__]


class Gym:
    """Observations: a Box as float32, images with channels first, a Discrete one-hot.

    An image is a Box with three sides, uint8 where it is of bytes and else float32; the side that is shorter than both
    others counts its channels, and it comes first or last. Its state cannot be saved in general: a resumed run starts
    new episodes.
    """

    def __init__(
        self,
        id: str,
        num_envs: Objects,
        *,
        options: dict | None,  # go to gymnasium.make_vec
        channels: Literal["first", "last"] | None,  # of images; None: the side that is shorter than both others
        imports: Annotated[Any, wrapping.modules_of],  # that register environments; `<module>:<id>` names one, too
        wrappers: Annotated[Any, wrapping.named],  # around each environment, the innermost first
        planes: bool,  # whether a Box of three sides is an image even if it does not hold bytes
        time_limit: Count | None,  # steps; None: the environment's own
        normalise_obs: bool,  # by their running mean and deviation
        normalise_reward: Unit | None,  # by the running deviation of returns of this discount; None: not
        clip_obs: Positive | None,  # None: 10 where they are normalised
        frame_stack: Count,  # observations that an agent sees at once
        camera: bool = False,
        device: Device,
    ):
        id = wrapping.register(imports, id)
        options = wrapping.limited(wrapping.plain(options), time_limit)
        known = gymnasium.registry.get(id)
        if "world" in (options or {}) and known and "world" in known.kwargs:
            raise UserError(f"env.options.world is refused: env.id={id} names its world; choose another env.id")
        self._id = id
        around, how = wrapping.built(wrappers), drawing(id) if camera else {}
        self._env, limited = made(id, num_envs, dict(options or {}), how, around)
        actions: Any = self._env.single_action_space
        self._space, self._first_action = self._env.single_observation_space, int(actions.start)
        shape = self._space.shape or ()
        is_bytes = self._space.dtype == np.uint8
        self._is_image = isinstance(self._space, spaces.Box) and len(shape) == 3 and (is_bytes or planes)
        self._channels = channels_of(id, shape, channels, is_bytes) if self._is_image else None
        self._dtype = torch.uint8 if is_bytes and self._is_image else torch.float32
        self.num_envs, self.device = num_envs, torch.device(device)
        self._durations = torch.ones(num_envs, device=self.device)  # every action takes one step
        self.frames_per_second = frames.speed(self._env.metadata.get("render_fps"))
        made_by = self._env.spec
        limit = made_by and made_by.kwargs.get("max_episode_steps", made_by.max_episode_steps)
        limits = [x for x in (limit, limited) if x and x > 0]
        self.time_limit = min(limits, default=None)  # steps; None: an episode may never end
        copies = self.copies()
        names = naming.of_actions(copies[0] if copies else None, int(actions.n))
        self._lens = Lens(
            Spec(self._shape(), self._dtype, names),
            num_envs,
            self.device,
            normalise_obs=normalise_obs,
            normalise_reward=normalise_reward,
            clip_obs=clip_obs,
            frame_stack=frame_stack,
        )
        self.spec, self.statistics = self._lens.spec, self._lens.statistics

    def _shape(self) -> tuple[int, ...]:
        if isinstance(self._space, spaces.Discrete):
            return (int(self._space.n),)
        if not (shape := self._space.shape):
            raise UserError(
                f"env.id={self._id} is refused: its observations are bare numbers, and networks need a vector; "
                "env.wrappers=[FlattenObservation] makes them one"
            )
        *sides, last = shape
        return (last, *sides) if self._channels == "last" else shape

    def reset(self, seed: int) -> Tensor:
        with answers_checked(self._id, "reset"):
            obs, _ = self._env.reset(seed=seed)
        self._obs = self._lens.begin(self._tensor(obs.copy()))
        return self._obs

    def step(self, action: Tensor) -> Step:
        with answers_checked(self._id, "step"):
            answer = self._env.step(action.cpu().numpy() + self._first_action)
        obs, reward, terminated, truncated, info = answer
        last = terminated | truncated
        now = next_obs = self._tensor(obs.copy())
        if last.any():
            true = obs.copy()
            for i in np.flatnonzero(last):
                true[i] = info["final_obs"][i]
            next_obs = self._tensor(true)
        numbers = np.empty((2, self.num_envs), np.float32)
        numbers[0], numbers[1] = reward, ~terminated
        paid, discount = torch.from_numpy(numbers).to(self.device).unbind()
        step = Step(paid, discount, torch.from_numpy(last).to(self.device), next_obs, now, self._durations)
        step = self._lens(step)
        self._obs = step.obs
        return step

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
        """The environments without our wrapper; () where they run in processes of their own."""
        return [env.env if isinstance(env, Own) else env for env in getattr(self._env, "envs", ())]

    def _tensor(self, obs: np.ndarray) -> Tensor:
        """Shares the array's memory where device and dtype allow it."""
        if isinstance(self._space, spaces.Discrete):
            x = torch.from_numpy(obs).to(self.device)
            return F.one_hot(x.long() - int(self._space.start), int(self._space.n)).float()
        x = torch.from_numpy(obs).to(self.device, self._dtype)
        return x.permute(0, 3, 1, 2) if self._channels == "last" else x

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def share(self, statistics: Statistics) -> None:
        """From here on it uses these statistics, and adds nothing to them."""
        self.statistics = self._lens.statistics = statistics
        self._lens.frozen = True

    def close(self) -> None:
        self._env.close()


class Own(gymnasium.Wrapper):
    """One environment whose observations are nobody's buffer, and whose infos stay with it.

    Gymnasium's vectors keep the last observation of an episode while the next one begins, and hand it on as the info
    `final_obs`: a buffer used again, or an info of that name, would take its place.
    """

    def __init__(self, env: gymnasium.Env, id: str):
        super().__init__(env)
        wrapping.check(env, id)

    def reset(self, **how) -> tuple[Any, dict]:
        obs, _ = self.env.reset(**how)
        return np.array(obs), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        answer: tuple[Any, Any, bool, bool, dict] = self.env.step(action)
        obs, reward, terminated, truncated, _ = answer
        if not isinstance(reward, float | int | np.generic) and (reward is None or np.ndim(reward)):
            raise TypeError(f"a reward is a number, and {reward!r} is not")
        return obs.copy() if isinstance(obs, np.ndarray) else np.array(obs), reward, terminated, truncated, {}


def made(
    id: str, num_envs: int, options: dict, camera: dict, around: Sequence[tuple[str, wrapping.Wrap]] = ()
) -> tuple[gymnasium.vector.VectorEnv, int | None]:
    """Copies of an environment side by side, and the time limit of the wrappers around each. Raises UserError."""
    known = gymnasium.registry.get(id)
    if (known is None or str(known.entry_point).startswith("ale_py")) and (game := game_of(id)):
        raise UserError(f"no Gymnasium environment '{id}'; Atari games are played as env=atari env.game={game}")
    vector = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}  # the vector's buffer: copied here
    if camera and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # SDL would look for a display, and complain on the terminal
    if camera:
        os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # SDL would take SIGTERM for itself
    inside = [wrap for _, wrap in around]
    how = dict(vectorization_mode="sync", vector_kwargs=vector, wrappers=[*inside, partial(Own, id=id)], **camera)
    limit = None
    try:
        if ":" not in id:
            gymnasium.spec(id)  # refuses an old version without the warnings of `make`
        if around:
            limit = wrapping.tried(gymnasium.make(id, **camera, **options), around, id)
        env = gymnasium.make_vec(id, num_envs, **how, **options)
    except UserError:
        raise
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(wrapping.unknown(id)) from error
    except ImportError as error:  # of the module that the id names, or that its environment needs
        raise UserError(f"env.id={id}: {imports.told(error)}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"env.id={id}: {' '.join(str(error).split())}") from error
    except Exception as error:
        if not options and _of_its_own(error):
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"env.id={id}{f' with env.options {options}' if options else ''}: {words}") from error
    if (mode := env.metadata.get("autoreset_mode")) is not AutoresetMode.SAME_STEP:
        env.close()
        raise UserError(
            f"env.id={id} is refused: it is registered with autoreset_mode={getattr(mode, 'value', mode)}; "
            "it must be SAME_STEP, where an episode begins in the step that ends the one before"
        )
    return env, limit


def game_of(id: str) -> str | None:
    """The Atari game that an id of ale-py's stands for, or one of the names it had before."""
    from ale_py import roms

    name = re.sub(r"(NoFrameskip|Deterministic)?(-ram)?(-v\d+)?$", "", id.removeprefix("ALE/")).lower()
    return {game.replace("_", ""): game for game in roms.get_all_rom_ids()}.get(name)


def channels_of(id: str, shape: tuple[int, ...], wanted: str | None, is_bytes: bool) -> str:
    """Which side of an image counts its channels. Raises UserError where it could be more than one."""
    first, middle, last = shape
    if wanted:
        return wanted
    if min(middle, last) > first or min(first, middle) > last:
        return "first" if first < last else "last"
    raise UserError(
        f"env.id={id}: any side of its images {shape} may count the channels; "
        "set env.channels=first or env.channels=last" + ", or env.planes=false" * (not is_bytes)
    )


@contextmanager
def answers_checked(id: str, method: str) -> Iterator[None]:
    """An answer that Gymnasium cannot use becomes a UserError; errors of the environment itself pass through."""
    try:
        yield
    except UserError:
        raise
    except gymnasium.error.ResetNeeded as error:
        raise UserError(f"env.id={id}: reset(seed=0) comes before {method}()") from error
    except Exception as error:
        if _of_its_own(error):
            raise
        words = brief(error)
        raise UserError(
            f"env.id={id}: its {method}() does not return what Gymnasium {gymnasium.__version__} expects "
            f"({words}); see gymnasium.utils.env_checker"
        ) from error


def _of_its_own(error: Exception) -> bool:
    """Whether the error arose in the environment's own code, not in Gymnasium's, given what it cannot use."""
    return any(not _of_interface(frame.filename) for frame in traceback.extract_tb(error.__traceback__))


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
