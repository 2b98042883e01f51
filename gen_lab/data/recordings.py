"""Frames of games as `rl-lab record` keeps them; whole episodes are held out, never single frames."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gen_lab.data.cache import kept, map_paths
from gen_lab.data.images import Binarised, Images, Levels, Protocol, quantised
from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import home
from rl_lab.core.recording import Episode, Recording
from rl_lab.core.settings import Count, Place, Size, Unit

AT_ONCE = 1_000  # frames in floating point


def recorded(
    *,
    path: Place,
    what: Literal["observations", "frames"],
    size: Count | None,  # pixels high and wide, each the mean of the area it covers; None: as they are
    grey: bool,  # luma of ITU-R BT.601
    levels: Levels,
    protocol: Protocol,
    held_out: Unit,  # of the episodes
    unique: bool,  # of equal pictures one: still screens make any model look good
    resident_gb: Size,  # more is mapped from disk
    root: Place | None,  # of the cache that holds such maps
) -> Images:
    """What the agent saw (of stacked frames the newest), or the colour frames recorded beside it.

    42 x 42 of 3 bits is the form of Bellemare et al. (2016) and Ostrovski et al. (2017).
    """
    recording = Recording(home(path))
    episodes = recording.split(held_out)
    if not all(map(len, episodes)):
        raise UserError(
            f"{path} has {recording.num_episodes} episode(s), and data.held_out={held_out:g} of them "
            "leaves none to train on or none to test; record more"
        )

    def prepared(numbers: np.ndarray) -> Iterator[np.ndarray]:
        seen: set[bytes] = set()
        for episode in recording.episodes(numbers):
            pixels = quantised(resized(pictures(episode, what, path), size, grey), levels).numpy()
            yield fresh(pixels, seen) if unique else pixels

    kind = Binarised(protocol, levels, titled(recording))
    shown = [lambda chunks, f=f: (f(torch.from_numpy(x)).numpy() for x in chunks) for f in (kind.train, kind.test)]
    digests = [shard["sha256"] for shard in recording.about["shards"]]
    what_it_is = digests, what, size, grey, levels, held_out, unique, *[protocol] * bool(kind.suffix)
    frame = next(prepared(episodes[0][:1]))[0]
    most = (recording.num_steps + recording.num_episodes) * frame.size
    if mapped := most > resident_gb * 1e9:
        counts = [sum(map(len, prepared(numbers))) for numbers in episodes]
        train, test = (
            kept(as_shown(prepared(numbers)), (count, *frame.shape), path)
            for as_shown, numbers, count, path in zip(shown, episodes, counts, map_paths(root, what_it_is), strict=True)
        )
    else:
        room.memory(2 * most, f"the frames of {path}")
        train, test = (
            torch.from_numpy(np.concatenate(list(as_shown(prepared(numbers)))))
            for as_shown, numbers in zip(shown, episodes, strict=True)
        )
    name = f"{titled(recording)}-{'x'.join(map(str, frame.shape))}-{levels}{'-unique' * unique}{kind.suffix}"
    return Images(name, train, test, kind.levels, resampled=kind.resampled, mapped=mapped)


def titled(recording: Recording) -> str:
    """The game's or the environment's own name where the recording says it, else its folder's."""
    env = recording.about.get("env", {})
    return str(env.get("game") or env.get("id") or recording.folder.resolve().name)


def pictures(episode: Episode, what: str, path: str) -> Tensor:
    """[T, C, H, W] uint8. Raises UserError where observations are no pictures, or no frames were recorded."""
    if what == "frames":
        if episode.frames is None:
            raise UserError(f"{path} holds no frames; record it with frames=true, or use data.what=observations")
        return torch.from_numpy(episode.frames).movedim(-1, 1)
    shape = episode.obs.shape[1:]
    x = torch.from_numpy(episode.obs)
    if episode.obs.dtype == np.uint8 and len(shape) == 2:
        return x.unsqueeze(1)
    if episode.obs.dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[-1]):
        return x if shape[0] == 3 else x.movedim(-1, 1)
    raise UserError(
        f"{path}: its observations are not pictures ({episode.obs.dtype} {list(shape)}); record it with "
        "frames=true and use data.what=frames"
    )


def resized(pixels: Tensor, size: int | None, grey: bool) -> Tensor:
    """uint8 [T, C, H, W] to [T, C, size, size], C = 1 if grey."""
    parts = []
    for x in pixels.split(AT_ONCE):
        if grey and x.shape[1] == 3:
            x = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        if size:
            x = F.interpolate(x.float(), (size, size), mode="area")
        parts.append(x.float().round().to(torch.uint8))
    return torch.cat(parts)


def fresh(pixels: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Those not yet among `seen`, which are added to it."""
    new = []
    for i, x in enumerate(pixels):
        key = x.tobytes()
        if key not in seen:
            seen.add(key)
            new.append(i)
    return pixels[new]
