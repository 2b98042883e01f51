"""Films of what runs learned: the world at its true speed, and beside it what the agent thinks of the moment."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image
from rich.console import Console
from torch import Tensor

from rl_lab import pictures
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural, Positive
from rl_lab.envs.mdp import MDPEnv
from rl_lab.player import Player, load
from rl_lab.types import View

FREEZE = 0.7  # seconds on the last picture of an episode
GRIDWORLD_FPS = 6.0
GIF_FPS, GIF_FRAMES, GIF_BYTES = 20, 600, 2**28  # at most


class Moment(NamedTuple):
    """One step of a film."""

    picture: Image.Image
    view: View  # of this one observation
    action: int
    reward: float  # so far in this episode
    step: int
    episode: int
    ending: str  # why the episode is over; "" while it goes on


def render(
    runs: Sequence[Path],
    *,
    episodes: Count = 3,
    seed: Natural = 0,
    max_steps: Count = 2_000,  # of an episode
    fps: Positive | None = None,  # of a gridworld; other worlds have their own
    gif: bool = True,
    out: str | None = None,  # the mp4; None: videos/ in the first run's folder
    device: str = "auto",
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> Path:
    """Films greedy episodes of each run, side by side, as an mp4 and a gif. Raises UserError."""
    if not runs:
        raise UserError("which run? rl-lab render run=<folder>")
    with ExitStack() as stack:
        players, films = [], []
        for folder in runs:
            players.append(player := load(folder, max_envs=1, device=device, seed=seed, camera=True))
            stack.callback(player.env.close)
        rates = [getattr(p.env, "frames_per_second", None) or fps or GRIDWORLD_FPS for p in players]
        for player, rate in zip(players, rates, strict=True):
            frames = film(player, rate, episodes=episodes, seed=seed, max_steps=max_steps)
            films.append(at_rate(frames, rate, max(rates)))
        path = Path(out).with_suffix(".mp4") if out else _path(players)
        write(path, together(films), max(rates), gif=gif)
    config = {"runs": [str(p.folder) for p in players], "episodes": episodes, "seed": seed}
    if run := tracker and tracker(name=path.stem, group=players[0].group, job_type="render", config=config):
        import wandb

        run.log({"step": players[0].step, "video": wandb.Video(str(path))})
        run.finish()
    return path


def _path(players: list[Player]) -> Path:
    names = "_and_".join(dict.fromkeys(p.group for p in players)).replace("/", "_")
    return players[0].folder / "videos" / f"{names[:100]}_step{players[0].step}.mp4"


# -- from an agent to frames


def play(player: Player, *, episodes: int, seed: int, max_steps: int) -> Iterator[Moment]:
    """Greedy episodes of one environment, one after another; each ends with its last picture and its whole reward."""
    env, scene = player.env, scenery(player)
    obs = env.reset(seed)
    for episode in range(1, episodes + 1):
        reward, step, last = 0.0, 0, False
        while not last and step < max_steps:
            action = player.act(obs)
            moment = Moment(scene(obs), player.view(obs), int(action), reward, step, episode, "")
            yield moment
            answer = env.step(action)
            obs, reward, step, last = answer.obs, reward + float(answer.reward), step + 1, bool(answer.last)
        shows_next = last and hasattr(env, "picture")  # Atari and Gymnasium have begun the next episode by now
        picture = moment.picture if shows_next else scene(answer.next_obs)
        ending = f"cut at {step:,}" if not last else "time limit" if answer.discount > 0 else "terminated"
        yield moment._replace(picture=picture, reward=reward, step=step, ending=ending)
        if not last:
            obs = env.reset(seed + episode)


def scenery(player: Player) -> Callable[[Tensor], Image.Image]:
    """What draws the environment as it is now, given its observation [1, ...]."""
    env = player.env
    if hasattr(env, "picture"):
        return lambda obs: pictures.enlarged(env.picture()[0])
    if not isinstance(env, MDPEnv) or env.mdp.layout is None:
        raise UserError(f"{player.folder}: its environment has no picture to film")
    view = player.view(env.all_observations())
    board = pictures.Board(env.mdp.layout, env.spec.actions, view.value.cpu().numpy(), view.bars.cpu().numpy())
    return lambda obs: board.with_agent(int(obs.argmax(-1)))


def film(player: Player, rate: float, *, episodes: int, seed: int, max_steps: int) -> Iterator[Image.Image]:
    """Whole frames, `rate` a second: title, picture, panel. The end of an episode stands still for a while."""
    panel, subtitle = None, f"greedy after {player.step:,} {player.unit}"
    for moment in play(player, episodes=episodes, seed=seed, max_steps=max_steps):
        picture, view = moment.picture, moment.view
        facts = {"episode": f"{moment.episode} of {episodes}", "step": f"{moment.step:,}",
                 "reward so far": f"{moment.reward:,.6g}", "value": pictures.number(float(view.value))}  # fmt: skip
        panel = panel or pictures.Panel(list(facts), player.env.spec.actions, view.kind, picture.height)
        beside = panel.draw(list(facts.values()), moment.ending, view.bars[0].tolist(), moment.action)
        frame = pictures.titled(pictures.side_by_side([picture, beside]), player.name, subtitle)
        for _ in range(max(1, round(FREEZE * rate)) if moment.ending else 1):
            yield frame


def at_rate(frames: Iterable[Image.Image], rate: float, fps: float) -> Iterator[Image.Image]:
    """Frames meant for `rate` a second, repeated so that they keep their speed at `fps`."""
    shown = 0
    for i, frame in enumerate(frames, 1):
        while shown < math.ceil(i * fps / rate - 1e-9):
            yield frame
            shown += 1


def together(films: Sequence[Iterator[Image.Image]]) -> Iterator[Image.Image]:
    """Side by side until the longest ends; a shorter one stands on its last frame."""
    frames = [next(film) for film in films]
    while True:
        yield pictures.side_by_side(frames)
        following = [next(film, None) for film in films]
        if all(frame is None for frame in following):
            return
        frames = [old if new is None else new for old, new in zip(frames, following, strict=True)]


# -- from frames to files


def write(path: Path, frames: Iterable[Image.Image], fps: float, *, gif: bool) -> None:
    """An mp4, encoded as the frames come, and a gif beside it. Frames are of one, even size. Raises UserError."""
    beside, stills, every = path.with_suffix(".new"), [], math.ceil(fps / GIF_FPS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Console(stderr=True).status("filming") as status:
            for i, frame in enumerate(encoded(beside, frames, fps)):
                room = min(GIF_FRAMES, GIF_BYTES // (frame.width * frame.height))
                if gif and i % every == 0 and len(stills) < room:
                    stills.append(pictures.indexed(frame, stills[-1] if stills else None))
                status.update(f"filming: {i + 1:,} frames")
        beside.replace(path)
        print(os.path.relpath(path))
        if gif:
            write_gif(path.with_suffix(".gif"), stills, fps / every)
            cut = f" (the first {len(stills) * every / fps:.0f} s)" if len(stills) * every <= i else ""
            print(os.path.relpath(path.with_suffix(".gif")) + cut)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {path.parent}: {reason}; make room or choose another place (out=)") from error
    finally:
        if beside.exists():
            beside.unlink()


def encoded(path: Path, frames: Iterable[Image.Image], fps: float) -> Iterator[Image.Image]:
    """Passes the frames on, each as soon as it is in the video: h264 that every browser plays. Raises OSError."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
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
