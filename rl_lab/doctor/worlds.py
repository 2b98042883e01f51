"""An environment built from its settings, as often as the probes need it, and what is seen while it is played."""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_lab.core import calls
from rl_lab.core.randomness import generator
from rl_lab.envs.abilities import OfGymnasium, Tabular
from rl_lab.types import Step, VectorEnv

FEWEST, SHORT = 10, 20  # steps, however slow; steps of an episode cut short
LARGE = 10_000  # bytes of an observation from where on a few copies are enough


class World:
    """The environment under examination: its settings, the seed of the probes, and the seconds that each may play.

    It is examined as it is without statistics: what it shows would depend on all that its copies showed before.
    """

    def __init__(self, node: Mapping[str, Any], seed: int, seconds: float):
        gathered = {"normalise_obs": False, "normalise_reward": None}
        self.node = {key: gathered.get(key, value) for key, value in node.items()}
        self.seed, self.seconds = seed, seconds
        self.num_envs: int = node["num_envs"]  # as it is trained in

    def built(self, num_envs: int, **more: Any) -> VectorEnv:
        env: VectorEnv = calls.built(dict(self.node) | {"num_envs": num_envs} | more)
        return env

    @cached_property
    def few(self) -> int:
        """How many copies the probes use that do not measure speed."""
        return min(self.num_envs, 2 if self.kind.size > LARGE else 64)

    @cached_property
    def kind(self) -> "Kind":
        with closing(self.built(1)) as env:
            size = math.prod(env.spec.obs_shape) * env.spec.obs_dtype.itemsize
            return Kind(size, isinstance(env, Tabular), isinstance(env, OfGymnasium) and bool(env.copies()))

    @cached_property
    def shorter(self) -> "World | None":
        """The same with a limit of a few steps, since some episodes take long to end; None where none can be set."""
        node, steps = dict(self.node), SHORT
        if "max_frames" in node:
            node["max_frames"] = steps * node["frame_skip"]
        elif "time_limit" in node:
            node["time_limit"] = steps
        elif "options" in node:
            node["options"] = dict(node["options"] or {}) | {"max_episode_steps": steps}
        return None if node == dict(self.node) else World(node, self.seed, self.seconds)

    def ticks(self, least: int, most: int) -> Iterator[int]:
        """Numbers from 0 on for as long as a probe may play, but at least a few."""
        end = time.monotonic() + self.seconds
        yield from takewhile(lambda i: i < least or time.monotonic() < end, range(most))

    @contextmanager
    def singles(self, count: int, **more: Any) -> Iterator[Sequence[gymnasium.Env]]:
        """Fresh Gymnasium environments as they are beneath our vector; () where there are none."""
        with closing(self.built(count, **more)) as env:
            yield env.copies() if isinstance(env, OfGymnasium) else ()

    @cached_property
    def streams(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of two or three seeds, beginning with 0, what two fresh copies show."""
        return [(self.stream(seed), self.stream(seed)) for seed in self.ticks(2, 3)]

    @property
    def repeats(self) -> bool:
        """Whether the same seed gives the same."""
        return all(same(*pair) for pair in self.streams)

    def stream(self, seed: int) -> np.ndarray:
        """Everything that two fresh copies see in 100 steps."""
        with closing(self.built(2)) as env:
            return stream(played(env, seed, 100, self.seconds / 4))


class Kind(NamedTuple):
    size: int  # bytes of an observation
    is_tabular: bool
    is_gymnasium: bool  # whether single environments of Gymnasium's lie beneath it


class Moment(NamedTuple):
    obs: Tensor  # [N, ...]
    action: Tensor  # [N]
    step: Step


def drawn(env: VectorEnv, rng: torch.Generator) -> Tensor:
    """Uniformly random actions [N]."""
    return torch.randint(env.spec.num_actions, (env.num_envs,), generator=rng, device=env.device)


def played(env: VectorEnv, seed: int, steps: int, seconds: float) -> Iterator[Moment]:
    """Plays random actions from a reset, the same for every seed; fewer steps, but some, where time runs out."""
    rng, obs = generator(0, env.device), env.reset(seed)
    end = time.monotonic() + seconds
    for t in range(steps):
        if t >= FEWEST and time.monotonic() > end:
            break
        action = drawn(env, rng)
        before, step = obs.clone(), env.step(action)  # the observation may lie in a buffer
        yield Moment(before, action, step)
        obs = step.obs


def going_on(env: VectorEnv, steps: int) -> Iterator[Moment]:
    """Continues from where the env stands with a fixed sequence of actions, the same for all copies."""
    obs = env.observe()
    for t in range(steps):
        action = torch.full((env.num_envs,), t * 7 // 5 % env.spec.num_actions, device=env.device)
        before, step = obs.clone(), env.step(action)
        yield Moment(before, action, step)
        obs = step.obs


def stream(moments: Iterable[Moment]) -> np.ndarray:
    """What each copy sees, a digest a step: int64 [T, N]."""
    return np.array([[digest(x[i] for x in (m.obs, *m.step[:5])) for i in range(len(m.obs))] for m in moments])


def digest(parts: Iterable[Tensor]) -> int:
    raw = b"".join(np.ascontiguousarray(x.cpu().numpy()).tobytes() for x in parts)
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little", signed=True)


def same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether they agree as far as both go."""
    length = min(len(x), len(y))
    return np.array_equal(x[:length], y[:length])


class Row(NamedTuple):
    """A transition of one of Gymnasium's environments."""

    obs: Any
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: Any


def script(seed: int, copy: int, env: gymnasium.Env, steps: int) -> list[int]:
    """The actions of a copy, one for each of its transitions."""
    space: Any = env.action_space
    return (int(space.start) + np.random.default_rng([seed, copy]).integers(space.n, size=steps)).tolist()


def by_hand(env: gymnasium.Env, seed: int, actions: Iterable[int], seconds: float = math.inf) -> Iterator[Row]:
    """Resets only where an episode ends; observations are passed on as they are given."""
    obs, _ = env.reset(seed=seed)
    end = time.monotonic() + seconds
    for t, action in enumerate(actions):
        if t >= FEWEST and time.monotonic() > end:
            return
        answer, reward, terminated, truncated, _ = env.step(action)
        yield Row(obs, action, reward, terminated, truncated, answer)  # type: ignore[arg-type]
        obs = env.reset()[0] if terminated or truncated else answer


def difference(one: Sequence[Row], other: Sequence[Row]) -> str:
    """Where two tapes differ, in words; '' where they do not."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        for field in Row._fields:
            if not np.array_equal(np.asarray(getattr(a, field)), np.asarray(getattr(b, field)), equal_nan=True):
                return f"transition {i} differs in {field}"
    return ""
