"""Our worlds as Gymnasium environments: one walker as an Env, many as a VectorEnv; numpy outside, torch inside."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import hydra
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from omegaconf import OmegaConf
from torch import Tensor

from rl_lab.core import checking, conf_dir
from rl_lab.core.errors import UserError, nearest
from rl_lab.envs.abilities import Functional, mixed
from rl_lab.gymnasium_api import registration
from rl_lab.looking import worlds

METADATA: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}


class World(gymnasium.Env):
    """One walker in conf/env/<world>.yaml; further keywords override that file: noise is `mdp={"noise": 0.2}`."""

    metadata = METADATA

    def __init__(self, world: str, *, obs: str | None = None, render_mode: str | None = None, **changes):
        self._env = build(world, num_envs=1, obs=obs, **changes)
        self.metadata, self.render_mode = modes(render_mode, world, self._env)
        self.observation_space, self.action_space = spaces_of(self._env)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        obs = self._env.reset(int(self.np_random.integers(2**62)))
        self._state = self._env.state
        return self._seen(obs), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        chosen = checked_actions([action], self._env.spec.num_actions)
        step = self._env.advance(self._env.walkers, chosen.to(self._env.device), *self._env.draw())
        self._env.walkers, self._state = step.walkers, step.successor
        obs, terminated, last = self._env.look(step.successor), not step.discount, bool(step.last)
        info = {} if step.duration is None else {"duration": int(step.duration)}
        return self._seen(obs), float(step.reward), terminated, last and not terminated, info

    def _seen(self, obs: Tensor) -> Any:
        """np.int64 for a Discrete, an array for a Box."""
        return obs[0].cpu().numpy()[()]

    def render(self) -> np.ndarray | str | None:
        return frames(self._env, self._state, self.render_mode)[0]


class VectorWorld(gymnasium.vector.VectorEnv):
    """Many walkers in conf/env/<world>.yaml; each `autoreset_mode` as Gymnasium's SyncVectorEnv has it.

    One random stream serves all: `seed` is a single number, and a walker's path depends on the number of walkers.
    """

    def __init__(
        self,
        world: str,
        *,
        num_envs: int = 1,
        obs: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **changes,
    ):
        self._env = build(world, num_envs=num_envs, obs=obs, **changes)
        self.num_envs, self.autoreset_mode = num_envs, AutoresetMode(autoreset_mode)
        self.metadata, self.render_mode = modes(render_mode, world, self._env)
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = spaces_of(self._env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            self._restart(torch.from_numpy(checked_mask(mask, self.num_envs)).to(self._env.device), seed)
        else:
            self._env.reset(int(self.np_random.integers(2**62) if seed is None else seed))
            self._state = self._env.state
            self._over = torch.zeros(self.num_envs, dtype=torch.bool, device=self._env.device)
        return self._seen(self._state), {}

    def _restart(self, mask: Tensor, seed: int | None) -> None:
        """New episodes for some of the walkers; the others stand, and are seen, where they are."""
        if seed is not None:
            self._env.seed(seed)
        self._env.walkers = mixed(mask, self._env.begun(), self._env.walkers)
        self._state = mixed(mask, self._env.state, self._state)
        self._over = self._over & ~mask

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """The walkers of `advance` stand at their next start already where an episode ended: a reset shows them."""
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise gymnasium.error.ResetNeeded('episodes are over: reset them with options={"reset_mask": ...}')
        before = self._env.walkers
        chosen = checked_actions(actions, self._env.spec.num_actions)
        step = self._env.advance(before, chosen.to(self._env.device), *self._env.draw())
        reward, last, terminated = step.reward.double(), step.last, step.discount == 0
        self._env.walkers, self._state, info = step.walkers, step.successor, {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:  # who ended in the last step now only begins
            begins = self._over
            self._env.walkers = mixed(begins, before, step.walkers)
            self._state = mixed(begins, self._env.state, step.successor)
            reward, last, terminated = reward.masked_fill(begins, 0.0), last & ~begins, terminated & ~begins
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            info, self._state = self._final(step.successor, last.cpu().numpy()), self._env.state
        self._over = last
        truncated = last & ~terminated
        return self._seen(self._state), reward.cpu().numpy(), terminated.cpu().numpy(), truncated.cpu().numpy(), info

    def _final(self, successor: Tensor, last: np.ndarray) -> dict:
        """The infos that SyncVectorEnv gives of the episodes that ended in this step."""
        if not last.any():
            return {}
        final_obs, seen = np.full(self.num_envs, None, dtype=object), self._seen(successor)
        for i in np.flatnonzero(last):
            final_obs[i] = seen[i]
        return {"final_obs": final_obs, "_final_obs": last, "final_info": {}, "_final_info": last.copy()}

    def _seen(self, state: Tensor) -> np.ndarray:
        return self._env.look(state).cpu().numpy().copy()

    def render(self) -> tuple[Any, ...] | None:
        if self.render_mode is None:
            return None
        return tuple(frames(self._env, self._state, self.render_mode))


# -- what both need


def build(world: str, device: str = "cpu", obs: str | None = None, **changes) -> Functional:
    """The env of conf/env/<world>.yaml with `changes` merged into it, checked. Raises UserError."""
    if world not in (names := registration.worlds()):
        raise UserError(f"no world '{world}'{nearest(world, names)}")
    written = _read(world)
    if obs or "obs" in written:
        changes["obs"] = obs or "index"
    _check_plain(changes | {"device": device}, "env")
    node = OmegaConf.merge({"device": device, "env": written}, {"env": changes}).env
    checking.check(node, "env")
    return hydra.utils.instantiate(node)


def _check_plain(value: Any, path: str) -> None:
    """Refuses changes other than numbers and words, which Hydra might call or OmegaConf resolve. Raises UserError."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in checking.RESERVED:
                raise UserError(f"{path}.{key} is refused: the parts of a world cannot be changed here")
            _check_plain(str(key), path)
            _check_plain(item, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            _check_plain(item, f"{path}[{i}]")
    elif "${" in str(value):
        raise UserError(f"{path} is refused: it holds ${{, and the settings of a world hold no references")


def _read(world: str) -> Any:
    """The file as a DictConfig, merged with those that its defaults name."""
    written: Any = OmegaConf.load(conf_dir() / "env" / f"{world}.yaml")
    bases = [_read(base) for base in written.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*bases, written)


def spaces_of(env: Functional) -> tuple[spaces.Space, spaces.Discrete]:
    """Of the observations and the actions of one walker."""
    actions = spaces.Discrete(env.spec.num_actions)
    low, high = env.bounds
    if env.spec.obs_dtype == torch.int64:
        return spaces.Discrete(int(high) + 1), actions
    return spaces.Box(low, high, env.spec.obs_shape, np.float32), actions


def modes(wanted: str | None, world: str, env: Functional) -> tuple[dict, str | None]:
    """The metadata of this world, which without a map has no picture, and the mode if it is one. Raises UserError."""
    names = METADATA["render_modes"] if worlds.mapped(env) else []
    if wanted not in (None, *names):
        there_are = f"choose {' or '.join(names)}" if names else f"{world} has no map to draw"
        raise UserError(f"render_mode={wanted} is refused: {there_are}")
    return METADATA | {"render_modes": names}, wanted


def checked_actions(actions: Any, count: int) -> Tensor:
    """int64 [N]. Raises InvalidAction: a table would read another state's row for an action that is not there."""
    chosen = torch.as_tensor(actions)
    if chosen.is_floating_point() or ((chosen < 0) | (chosen >= count)).any():
        raise gymnasium.error.InvalidAction(f"actions are whole numbers from 0 to {count - 1}, not {actions}")
    return chosen


def checked_mask(mask: np.ndarray, num_envs: int) -> np.ndarray:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (num_envs,) or not mask.any():
        raise UserError(f"options['reset_mask'] must be a numpy array of {num_envs} bools, at least one of them True")
    return mask


def frames(env: Functional, state: Tensor | tuple, mode: str | None) -> list[np.ndarray | str | None]:
    """For each walker the map with the walker on it: uint8 [H, W, 3], or text with @ for the walker."""
    if mode is None or (world := worlds.mapped(env)) is None:
        return [None] * env.num_envs
    maps = world.maps(env.look(state))
    return [worlds.text(seen) if mode == "ansi" else np.array(worlds.picture(seen)) for seen in maps]
