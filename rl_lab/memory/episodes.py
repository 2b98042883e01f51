"""Whole episodes: played in any of our environments, and turned into transitions to learn from."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.recording import Episode
from rl_lab.types import Policy, Transition, VectorEnv


@torch.no_grad()
def play_episodes(
    env: VectorEnv,
    policy: Policy,
    quotas: Sequence[int],  # [N] how many episodes of each env
    seed: int,  # of the env
    picture: Callable[[], np.ndarray] | None = None,  # of all envs as they are now, uint8 [N, H, W, 3]
    tick: Callable[[int], None] = lambda steps: None,  # called with how many steps were added
) -> Iterator[Episode]:
    """Yields the first quotas[i] episodes of env i, as they end. Quotas do not favour short episodes."""
    left, obs = list(quotas), env.reset(seed)
    tapes: list[list[tuple]] = [[] for _ in quotas]
    while any(left):
        frames = picture() if picture else None
        action = policy(obs)
        step = env.step(action)
        rows = _numpy(newest(obs, env.spec.frame_stack), action, step.reward, step.discount, step.duration, step.last)
        tick(sum(count > 0 for count in left))
        for i, tape in enumerate(tapes):
            if not left[i]:
                continue
            tape.append((*(np.array(x[i]) for x in rows), None if frames is None else np.array(frames[i])))
            if rows[-1][i]:
                (final,) = _numpy(newest(step.next_obs[i : i + 1], env.spec.frame_stack))
                yield episode_of(tape, final[0])
                tapes[i], left[i] = [], left[i] - 1
        obs = step.obs


def quotas(episodes: int, num_envs: int) -> list[int]:
    """This many episodes shared out among the envs, [N]."""
    return [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]


def newest(obs: Tensor, frame_stack: int) -> Tensor:
    """Of stacked frames [N, K, ...] the last [N, ...], of K images of C channels, [N, K C, H, W], the last C of them;
    other observations as they are.
    """
    if frame_stack == 1:
        return obs
    channels = obs.shape[1] // frame_stack
    return obs[:, -1] if channels == 1 else obs[:, -channels:]


def episode_of(tape: list[tuple], final: np.ndarray) -> Episode:
    obs, action, reward, discount, duration, last, frames = zip(*tape, strict=True)
    return Episode(
        np.stack([*obs, final]),
        np.stack(action).astype(np.int64),
        np.stack(reward),
        np.stack(discount),
        np.stack(last),
        None if frames[0] is None else np.stack(frames),
        np.stack(duration),
    )


def transitions(episodes: Iterable[Episode], frame_stack: int = 1) -> Transition:
    """[B, ...] of every step; frames are stacked again, oldest first, with zeros from before their episode."""
    parts = []
    for episode in episodes:
        obs = stacked(episode.obs, frame_stack) if frame_stack > 1 else episode.obs
        duration = np.ones_like(episode.reward) if episode.duration is None else episode.duration
        parts.append((obs[:-1], episode.action, episode.reward, episode.discount, episode.last, obs[1:], duration))
    return Transition(*(torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True)))


def stacked(frames: np.ndarray, count: int) -> np.ndarray:
    """[T, ...] -> [T, count, ...], a view of a padded copy; images of channels, [T, C, H, W] -> [T, count C, H, W]."""
    padded = np.concatenate([np.zeros((count - 1, *frames.shape[1:]), frames.dtype), frames])
    found = np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, count, axis=0), -1, 1)
    return found.reshape(len(frames), -1, *frames.shape[2:]) if frames.ndim == 4 else found


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [x.cpu().numpy() for x in tensors]
