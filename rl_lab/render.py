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

FREEZE = 0.7  # seconds on the last picture of an episode
GRIDWORLD_FPS = 6.0
GIF_FPS, GIF_FRAMES, GIF_BYTES = 20, 600, 2**28  # at most


class Moment(NamedTuple):
    """One step of a film."""

    picture: Image.Image
    bars: list[float]  # [A]
    value: float
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
        players = []
        for folder in runs:
            players.append(load(folder, max_envs=1, device=device, seed=seed, camera=True))
            stack.callback(players[-1].env.close)
        rates = [fps or GRIDWORLD_FPS if isinstance(p.env, MDPEnv) else p.env.frames_per_second for p in players]
        films = [film(p, rate, episodes=episodes, seed=seed, max_steps=max_steps) for p, rate in zip(players, rates, strict=True)]
        films = [at_rate(frames, rate, max(rates)) for frames, rate in zip(films, rates, strict=True)]
        path = Path(out).with_suffix(".mp4") if out else _path(players)
        write(path, together(films), max(rates), gif=gif)
    config = {"runs": [str(p.folder) for p in players], "episodes": episodes, "seed": seed}
    if run := tracker and tracker(name=path.stem, group=players[0].group, job_type="render", config=config):
        import wandb

        run.log({"step": players[0].step, "video": wandb.Video(str(path))})
        run.finish()
    return path


def _path(players: list[Player]) -> Path:
    names = "_and_".join(dict.fromkeys(p.group for p in players))[:100]
    return players[0].folder / "videos" / f"{names.replace('/', '_')}_step{players[0].step}.mp4"


# -- from an agent to frames


def play(player: Player, *, episodes: int, seed: int, max_steps: int) -> Iterator[Moment]:
    """Greedy episodes of one environment, one after another; each ends with its last picture and the whole reward."""
    env, scene = player.env, scenery(player)
    obs = env.reset(seed)
    for episode in range(1, episodes + 1):
        reward, step, last = 0.0, 0, False
        while not last and step < max_steps:
            action, view = player.act(obs), player.view(obs)
            moment = Moment(scene(obs), view.bars[0].tolist(), float(view.value[0]), int(action[0]), reward, step, episode, "")
            yield moment
            answer = env.step(action)
            reward, step, last = reward + float(answer.reward), step + 1, bool(answer.last)
            obs = answer.obs
        picture = moment.picture  # Atari and Gymnasium show the next episode by now
        if not last or isinstance(env, MDPEnv):
            picture = scene(answer.next_obs)
        ending = f"cut at {step:,}" if not last else "time limit" if answer.discount[0] > 0 else "terminated"
        yield moment._replace(picture=picture, reward=reward, step=step, ending=ending)
        if not last:
            obs = env.reset(seed + episode)


def scenery(player: Player) -> Callable[[Tensor], Image.Image]:
    """What draws the only environment as it is now, given its observation [1, ...]."""
    env = player.env
    if not isinstance(env, MDPEnv):
        return lambda obs: pictures.enlarged(env.picture()[0])
    if env.mdp.layout is None:
        raise UserError(f"{player.folder}: its environment has no picture to film")
    view = player.view(env.all_observations())
    board = pictures.Board(env.mdp.layout, env.spec.actions, view.value.cpu().numpy(), view.bars.cpu().numpy())
    return lambda obs: board.with_agent(int(obs.argmax(-1)))


def film(player: Player, rate: float, *, episodes: int, seed: int, max_steps: int) -> Iterator[Image.Image]:
    """Whole frames: title, picture, panel. A frame is repeated where the film stands still."""
    panel, actions = None, player.env.spec.actions
    for moment in play(player, episodes=episodes, seed=seed, max_steps=max_steps):
        panel = panel or pictures.Panel(actions, player.view(player.env.observe()).kind, moment.picture.height)
        facts = f"{moment.episode} of {episodes}", f"{moment.step:,}", f"{moment.reward:,.6g}", pictures.number(moment.value)
        beside = panel.draw(facts, moment.ending, moment.bars, moment.action)
        frame = pictures.titled(pictures.side_by_side([moment.picture, beside]), player.name, f"greedy after {player.step:,} {player.unit}")
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
    """h264 in mp4, encoded as the frames come; and a gif beside it. All frames are of one, even size. Raises UserError."""
    beside, stills, every = path.with_suffix(".new"), [], math.ceil(fps / GIF_FPS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Console(stderr=True).status("filming") as status:
            for count, frame in enumerate(encoded(beside, frames, fps), 1):
                if gif and (count - 1) % every == 0 and len(stills) < min(GIF_FRAMES, GIF_BYTES // (frame.width * frame.height)):
                    stills.append(pictures.indexed(frame, stills[-1] if stills else None))
                status.update(f"filming: {count:,} frames")
        beside.replace(path)
        print(os.path.relpath(path))
        if gif:
            _write_gif(path.with_suffix(".gif"), stills, fps / every)
            is_whole = len(stills) * every >= count
            print(os.path.relpath(path.with_suffix(".gif")) + ("" if is_whole else f" (the first {len(stills) * every / fps:.0f} s)"))
    except OSError as error:
        raise UserError(f"cannot write the film to {path.parent}: {error.strerror or error}; make room or choose another place with out=") from error
    finally:
        if beside.exists():
            beside.unlink()


def encoded(path: Path, frames: Iterable[Image.Image], fps: float) -> Iterator[Image.Image]:
    """Passes the frames on, each as soon as it is in the video."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.pix_fmt = "yuv420p"
        for i, frame in enumerate(frames):
            if i == 0:
                stream.width, stream.height = frame.size
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
            yield frame
        file.mux(stream.encode())


def _write_gif(path: Path, stills: list[Image.Image], fps: float) -> None:
    """A gif counts in hundredths of a second: each frame ends at the one nearest to its time."""
    ends = [round(100 * i / fps) for i in range(len(stills) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=durations, loop=0)
