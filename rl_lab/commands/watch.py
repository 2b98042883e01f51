"""Watch runs while they learn: greedy episodes of each one's latest checkpoint, until you leave."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rl_lab.core.errors import UserError
from rl_lab.core.folders import summary
from rl_lab.core.settings import Count, Natural, Positive
from rl_lab.playing.player import Player, load, settings_of
from rl_lab.playing.saliency import Saliency
from rl_lab.playing.scenes import Screen, Where, abreast, at_rate, open_screen, play, rate_of, stay

POLL = 0.5  # seconds between looks for a first checkpoint


def watch(
    runs: Sequence[Path],
    *,
    view: Where,
    episodes: Count | None,  # of each run; None: for ever
    seed: Natural,
    max_steps: Count,  # of an episode
    fps: Positive | None,  # None: the world's own, of a gridworld 6
    saliency: Saliency | None,  # what counts in the agent's choice, over the picture
    port: Natural,  # of the browser's view; 0: any that is free
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Shows the runs side by side; training is not touched. Raises UserError."""
    if not runs:
        raise UserError("which run? rl-lab watch run=<folder>")
    with ExitStack() as stack:
        channels = []
        for folder in runs:
            channels.append(channel := Channel(folder, seed, device, changes))
            stack.callback(channel.close)
        rates = [rate_of(c.player, fps) for c in channels]
        with open_screen(view, [c.player for c in channels], port=port) as screen:
            shows = [
                at_rate(c.show(screen, rate, episodes, max_steps=max_steps, saliency=saliency), rate, max(rates))
                for c, rate in zip(channels, rates, strict=True)
            ]
            for parts in paced(abreast(shows), max(rates), screen.fps):
                screen.show(parts)


class Channel:
    """A run as it plays now. Waits for the first checkpoint, which a run has after a minute or so."""

    def __init__(self, folder: Path, seed: int, device: str, changes: Sequence[str] = ()):
        settings_of(folder, changes)
        self.folder, self.seed, self.device, self.changes = folder, seed, device, changes
        self.path = folder / "checkpoint.pt"
        if self._newest() is None and _is_running(folder):
            print(f"waiting for the first checkpoint of {folder}; training writes one regularly", file=sys.stderr)
            while self._newest() is None and _is_running(folder):
                time.sleep(POLL)
        self._stamp, self.player = self._newest(), self._load()

    def _load(self) -> Player:
        how: dict[str, Any] = dict(device=self.device, seed=self.seed, changes=self.changes)
        return load(self.folder, max_envs=1, camera=True, **how)

    def tune(self) -> bool:
        """Loads the latest checkpoint if it is a new one, and returns whether it is. Raises UserError."""
        stamp = self._newest()
        if stamp in (None, self._stamp):
            return False
        player = self._load()
        self.close()
        self.player, self._stamp = player, stamp
        return True

    def show(self, screen: Screen, rate: float, episodes: int | None, **how) -> Iterator:
        """Yields what `screen` shows, `rate` a second. Each episode is played out by the checkpoint that began it."""
        draw, number = screen.draw(self.player), 0
        while episodes is None or number < episodes:
            if self.tune():
                draw = screen.draw(self.player)
            number += 1
            for moment in play(self.player, episodes=1, seed=self.seed + number - 1, **how):
                part = draw(moment, f"{number:,}")
                for _ in range(stay(moment, rate)):
                    yield part

    def close(self) -> None:
        self.player.env.close()

    def _newest(self) -> tuple | None:
        """What distinguishes a checkpoint from the one before: each is a new file that replaces the last."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _is_running(folder: Path) -> bool:
    """True also before the run has written its state."""
    return summary(folder).get("state", "running") == "running"


def paced(frames: Iterable, rate: float, most: float) -> Iterator:
    """Yields frames meant for `rate` a second when they are due, at most `most` a second; others are left out."""
    due, shown = time.monotonic(), 0.0
    for frame in frames:
        now = time.monotonic()
        time.sleep(max(0.0, due - now))
        due = max(due, now) + 1 / rate  # where drawing is too slow, it runs late rather than in leaps
        if (now := time.monotonic()) - shown > 0.9 / most:
            shown = now
            yield frame
