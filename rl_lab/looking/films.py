"""From pictures to files: an mp4 that every browser plays, a gif beside it, a still."""

import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from PIL import Image
from rich.console import Console

from rl_lab.core import files
from rl_lab.core.errors import UserError
from rl_lab.looking.panels import indexed

QUALITY = {"crf": "20", "preset": "veryfast"}  # as small and as good as x264's own preset here, in half the time
GIF_FPS, GIF_FRAMES, GIF_BYTES = 20, 600, 2**28  # at most


def write(
    path: Path, frames: Iterable[Image.Image], fps: float, *, gif: bool, palette: Image.Image | None = None
) -> list[str]:
    """An mp4, encoded as the frames come, and a gif beside it; returns what was written, in words.

    Frames are of one, even size; the gif has the colours of the `palette`, or looks for those of the frames.
    Raises UserError.
    """
    stills: list[Image.Image] = []
    last: Image.Image | None = None
    every, i, new = math.ceil(fps / GIF_FPS), 0, not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as beside:
            for i, frame in enumerate(encoded(beside, frames, fps)):
                room = min(GIF_FRAMES, GIF_BYTES // (frame.width * frame.height))
                if gif and i % every == 0 and len(stills) < room:
                    before = stills[-1] if stills else None
                    stills.append(before if before and frame is last else indexed(frame, before, palette))
                    last = frame
        if not gif:
            return [os.path.relpath(path)]
        with files.replacing(path.with_suffix(".gif")) as beside:
            write_gif(beside, stills, fps / every)
        cut = f" (the first {len(stills) * every / fps:.0f} s)" if len(stills) * every <= i else ""
        return [os.path.relpath(path), os.path.relpath(path.with_suffix(".gif")) + cut]
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        if new:  # and empty, where the frames never came
            files.remove_empty(path.parent, above=0)


def watched(frames: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """Counts them in the terminal."""
    with Console(stderr=True).status("filming") as status:
        for i, frame in enumerate(frames, 1):
            status.update(f"filming: {i:,} frames")
            yield frame


def write_still(path: Path, picture: Image.Image) -> None:
    """A png. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as beside:
            picture.save(beside, optimize=True)
    except OSError as error:
        raise _unwritten(path, error) from error
    print(os.path.relpath(path))


def _unwritten(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot write to {path.parent}: {reason}; make room or choose another place (out=)")


def encoded(path: Path, frames: Iterable[Image.Image], fps: float) -> Iterator[Image.Image]:
    """Passes the frames on, each as soon as it is in the video: h264 that every browser plays. Raises OSError."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=QUALITY)
        stream.pix_fmt = "yuv420p"
        for i, frame in enumerate(frames):
            if i == 0:
                stream.width, stream.height = frame.size
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
            yield frame
        file.mux(stream.encode())


def write_gif(path: Path, stills: list[Image.Image], fps: float) -> None:
    """A gif counts in hundredths of a second: each frame ends at the one nearest to its time."""
    ends = [round(100 * i / fps) for i in range(len(stills) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=durations, loop=0)
