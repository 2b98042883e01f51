"""Recorded episodes as files: shards of plain arrays, and a recording.json that says where they came from.

A shard (npz) holds E whole episodes of T steps together, one after the other:

    obs       [T + E, ...]      what was seen, each episode's last successor too; of stacked frames the newest alone
    action    [T] int64         reward, discount and duration [T] float32, last [T] bool: as in `Step`
    episode   [T] int64         its number in the recording, from 0
    frames    [T, H, W, 3]      uint8, where they were asked for: the picture before each action

Numpy alone reads it, so that both labs can.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lab.core import files, room
from rl_lab.core.errors import UserError

Index = dict[str, Any]  # what recording.json says, or of one shard
FORMAT = "rl_lab recording 1"
INDEX = "recording.json"
LARGEST = 2**24  # bytes a step: what unpacks to more is no recording
LARGEST_INDEX, LARGEST_SHARD = 2**26, 2**33  # bytes that are read


class Episode(NamedTuple):
    """From the first observation to the last successor. T steps."""

    obs: np.ndarray  # [T + 1, ...]
    action: np.ndarray  # [T] int64
    reward: np.ndarray  # [T] float32
    discount: np.ndarray  # [T] float32
    last: np.ndarray  # [T] bool
    frames: np.ndarray | None = None  # [T, H, W, 3] uint8
    duration: np.ndarray | None = None  # [T] float32; None in older recordings, whose `discount` holds what it should

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self if x is not None)


class Recording:
    """A folder of shards. Raises UserError where it is none, and while reading where a shard is not what was written.

    `about` is what recording.json says.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        about = read_index(self.folder)
        if about is None:
            raise UserError(f"{folder} is not a recording: it has no {INDEX}; rl-lab record makes one")
        self.about = about

    @property
    def num_episodes(self) -> int:
        return sum(int(shard["episodes"]) for shard in self.about["shards"])

    @property
    def num_steps(self) -> int:
        return sum(int(shard["steps"]) for shard in self.about["shards"])

    @property
    def frame_stack(self) -> int:
        """How many recorded frames the agent saw at once; 1: observations are whole as they are."""
        return int(self.about["frame_stack"])

    def episodes(self, numbers: Collection[int] | None = None) -> Iterator[Episode]:
        """All of them, or those of the given numbers, in order; one shard at a time in memory."""
        wanted, first = None if numbers is None else set(map(int, numbers)), 0
        for number, shard in enumerate(self.about["shards"]):
            here = range(first, first + shard["episodes"])
            if wanted is None or not wanted.isdisjoint(here):
                for i, episode in zip(here, self._read(number), strict=True):
                    if wanted is None or i in wanted:
                        yield episode
            first = here.stop

    def frames(self, numbers: Collection[int] | None = None) -> np.ndarray:
        """uint8 [T, H, W, 3], of all episodes or some. Raises UserError where none were recorded."""
        if not self.about["frames"]:
            raise UserError(f"{self.folder} holds no frames: record it with frames=true")
        return np.concatenate([e.frames for e in self.episodes(numbers) if e.frames is not None])

    def split(self, held_out: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the episodes to learn from and of those held out: whole episodes, chosen by `seed`."""
        order = np.random.default_rng(seed).permutation(self.num_episodes)
        cut = round(held_out * len(order))
        return np.sort(order[cut:]), np.sort(order[:cut])

    def check(self) -> list[int]:
        """Numbers of the shards that are gone. Raises UserError for one that is damaged."""
        gone = [k for k in range(len(self.about["shards"])) if not shard_path(self.folder, k).exists()]
        for number in set(range(len(self.about["shards"]))) - set(gone):
            self._bytes(number)
        return gone

    def _bytes(self, number: int) -> bytes:
        path = shard_path(self.folder, number)
        if not path.exists():
            raise UserError(f"{path} is missing; the command that recorded it records it again")
        with files.opened(path, LARGEST_SHARD) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != self.about["shards"][number]["sha256"]:
            raise UserError(
                f"{path} is damaged: its checksum differs; delete it, and the command that recorded it records it again"
            )
        return data

    def _read(self, number: int) -> list[Episode]:
        data, shard = self._bytes(number), self.about["shards"][number]
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > (shard["steps"] + shard["episodes"]) * LARGEST:
                raise ValueError(f"{size / 1e9:,.3g} GB for {shard['steps']:,} steps")
            room.memory(2 * size, f"{shard_path(self.folder, number)}")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = unpacked(dict(arrays))
        except (KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{shard_path(self.folder, number)} is not a shard of episodes ({error})") from error
        if (len(found), sum(len(e.action) for e in found)) != (shard["episodes"], shard["steps"]):
            raise UserError(f"{shard_path(self.folder, number)} does not hold what {INDEX} says; record it again")
        return found


# -- the index


def read_index(folder: Path) -> Index | None:
    """What recording.json says; None where there is none. Raises UserError where it is of another kind."""
    path = folder / INDEX
    try:
        with files.opened(path, LARGEST_INDEX) as file:
            about: Index = json.loads(file.read())
        sizes = [(shard["episodes"] + shard["steps"], shard["sha256"]) for shard in about["shards"]]
        known = about["format"] == FORMAT and about["frame_stack"] >= 1 and "frames" in about
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or of something else; delete the folder to record it anew") from error
    if not known or not all(isinstance(size, int) for size, _ in sizes):
        raise UserError(f"{path} is not of the form '{FORMAT}'")
    return about


def write_index(folder: Path, about: Index) -> None:
    files.write(files.inside(folder, INDEX), json.dumps(about, indent=2) + "\n")


# -- shards


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05}.npz"


def write_shard(folder: Path, number: int, episodes: Sequence[Episode], first: int) -> Index:
    """`first` is the number of its first episode. Returns its entry in the index."""
    data = packed(episodes, first)
    files.write(files.inside(folder, shard_path(folder, number).name), data)
    total = float(sum(e.reward.sum(dtype=np.float64) for e in episodes))
    return {
        "episodes": len(episodes),
        "steps": sum(len(e.action) for e in episodes),
        "total_reward": total,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def packed(episodes: Sequence[Episode], first: int = 0) -> bytes:
    """The compressed npz; the same episodes give the same bytes."""
    fields = {name: [getattr(e, name) for e in episodes] for name in Episode._fields}
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in fields.items() if parts[0] is not None}
    lengths = [len(e.action) for e in episodes]
    arrays["episode"] = np.repeat(np.arange(first, first + len(episodes)), lengths)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unpacked(arrays: dict[str, np.ndarray]) -> list[Episode]:
    """Raises KeyError or ValueError where the arrays are no whole episodes."""
    ends = np.flatnonzero(np.diff(arrays["episode"], append=-1)) + 1
    episodes, start = [], 0
    for i, end in enumerate(map(int, ends)):
        steps = slice(start, end)
        fields = {name: arrays[name][steps] for name in ("action", "reward", "discount", "last")}
        more = {name: arrays[name][steps] for name in ("frames", "duration") if name in arrays}
        episodes.append(Episode(obs=arrays["obs"][start + i : end + i + 1], **fields, **more))
        if any(len(x) != end - start for x in fields.values()) or not fields["last"][-1] or fields["last"][:-1].any():
            raise ValueError(f"episode {i} is not whole")
        start = end
    if start + len(ends) != len(arrays["obs"]):
        raise ValueError(f"{len(arrays['obs'])} observations of {start} steps in {len(ends)} episodes")
    return episodes
