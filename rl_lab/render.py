"""Films and stills of what runs learned: the world at its true speed, and beside it what the agent thinks of it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from rl_lab.agents.vpn.planner import Level
from rl_lab.core.errors import UserError
from rl_lab.core.folders import label, read_run
from rl_lab.core.settings import Count, Natural, Positive
from rl_lab.envs.collect import Collect
from rl_lab.envs.mdp import MDPEnv
from rl_lab.looking import panels, pictures, trees
from rl_lab.looking.films import watched, write, write_still
from rl_lab.looking.maze_pictures import maze
from rl_lab.player import Player, load
from rl_lab.types import View

FREEZE = 0.7  # seconds on the last picture of an episode
GRIDWORLD_FPS = 6.0
STILL, PAGE = 240, 1_200  # pixels, about: a gridworld in a still of several, and the width of all


class Moment(NamedTuple):
    """One step of a film."""

    picture: Image.Image
    view: View  # of this one observation
    action: int
    reward: float  # so far in this episode
    step: int
    episode: int
    ending: str  # why the episode is over; "" while it goes on
    plan: tuple[Level, ...] | None = None  # what the agent imagines, where it looks ahead


def render(
    runs: Sequence[Path],
    *,
    episodes: Count = 3,
    seed: Natural = 0,
    max_steps: Count = 2_000,  # of an episode
    fps: Positive | None = None,  # of a gridworld; other worlds have their own
    gif: bool = True,
    out: str | None = None,  # the mp4, or a still if it ends in .png; None: videos/ in the first run's folder
    device: str = "auto",
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> Path:
    """Films greedy episodes of each run, side by side, as an mp4 and a gif; or draws a still. Raises UserError."""
    if not runs:
        raise UserError("which run? rl-lab render run=<folder>")
    with ExitStack() as stack:
        players = []
        for folder in runs:
            players.append(player := load(folder, max_envs=1, device=device, seed=seed, camera=True))
            stack.callback(player.env.close)
        path = Path(out or _path(players))
        if path.suffix == ".png":
            write_still(path, still(players, seed))
        else:
            path = path.with_suffix(".mp4")
            rates = [getattr(p.env, "frames_per_second", None) or fps or GRIDWORLD_FPS for p in players]
            films = [at_rate(film(p, rate, episodes=episodes, seed=seed, max_steps=max_steps), rate, max(rates))
                     for p, rate in zip(players, rates, strict=True)]  # fmt: skip
            for line in write(path, watched(together(films)), max(rates), gif=gif):
                print(line)
    if tracker:
        _track(tracker, path, players, {"episodes": episodes, "seed": seed})
    return path


def _track(tracker: Callable, path: Path, players: list[Player], settings: dict) -> None:
    config = {"runs": [str(p.folder) for p in players], **settings}
    if run := tracker(name=path.stem, group=players[0].group, job_type="render", config=config):
        import wandb

        media = {"picture": wandb.Image(str(path))} if path.suffix == ".png" else {"video": wandb.Video(str(path))}
        run.log({"step": players[0].step, **media})
        run.finish()


def _path(players: list[Player]) -> Path:
    names = "_and_".join(dict.fromkeys(p.group for p in players)).replace("/", "_")
    return players[0].folder / "videos" / f"{names[:100]}_step{players[0].step}.mp4"


# -- from runs to a still


def still(players: Sequence[Player], seed: int) -> Image.Image:
    """The first picture of each run, in rows, under what tells it from the others."""
    pages = []
    for player, words in zip(players, distinctions([p.folder for p in players]), strict=True):
        board = board_of(player, STILL if len(players) > 1 else panels.SIZE)
        if board is None:
            obs = player.env.reset(seed)
        picture = board.picture if board else scenery(player)(obs)
        after = f"greedy after {player.step:,} {player.unit}"
        pages.append(panels.titled(picture, words or player.name, f"{player.group}, {after}" if words else after))
    return panels.in_rows(pages, PAGE)


def distinctions(folders: Sequence[Path]) -> list[str]:
    """The settings by which each run differs from others of its name, as one would type them; "" if by none."""
    runs = [read_run(folder) for folder in folders]
    return [label(run, [r for r in runs if r.name == run.name]).removeprefix(run.name).strip() for run in runs]


def board_of(player: Player, size: int = panels.SIZE) -> pictures.Board | None:
    """The gridworld a run plays in, with the values and the policy it has learned; None for any other world."""
    env = player.env
    if not isinstance(env, MDPEnv) or env.mdp.layout is None:
        return None
    view = player.view(env.all_observations())
    value, bars = view.value.cpu().numpy(), view.bars.cpu().numpy()
    return pictures.Board(env.mdp.layout, env.spec.actions, value, bars, size=size)


# -- from an agent to frames


def play(player: Player, *, episodes: int, seed: int, max_steps: int) -> Iterator[Moment]:
    """Greedy episodes of one environment, one after another; each ends with its last picture and its whole reward."""
    env, scene = player.env, scenery(player)
    obs = env.reset(seed)
    for episode in range(1, episodes + 1):
        reward, step, last = 0.0, 0, False
        while not last and step < max_steps:
            action, plan, picture = player.act(obs), player.plan(obs), scene(obs)
            if plan and isinstance(env, Collect):
                picture = trees.with_way(picture, obs[0].cpu().numpy(), plan, env.spec.actions)
            moment = Moment(picture, player.view(obs), int(action), reward, step, episode, "", plan)
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
        return lambda obs: panels.enlarged(env.picture()[0])
    if isinstance(env, Collect):
        return lambda obs: maze(obs[0].cpu().numpy())
    board = board_of(player)
    if board is None:
        raise UserError(f"{player.folder}: its environment has no picture to film")
    return lambda obs: board.with_agent(int(env.states(obs)))


def film(player: Player, rate: float, *, episodes: int, seed: int, max_steps: int) -> Iterator[Image.Image]:
    """Whole frames, `rate` a second: title, picture, panel. The end of an episode stands still for a while."""
    panel, subtitle = None, f"greedy after {player.step:,} {player.unit}"
    for moment in play(player, episodes=episodes, seed=seed, max_steps=max_steps):
        picture, view = moment.picture, moment.view
        facts = {"episode": f"{moment.episode} of {episodes}", "step": f"{moment.step:,}",
                 "reward so far": f"{moment.reward:,.6g}", "value": panels.number(float(view.value))}  # fmt: skip
        panel = panel or panels.Panel(list(facts), player.env.spec.actions, view.kind, picture.height)
        beside = panel.draw(list(facts.values()), moment.ending, view.bars[0].tolist(), moment.action)
        tree = [trees.tree(moment.plan, player.env.spec.actions, picture.height)] if moment.plan else []
        frame = panels.titled(panels.side_by_side([picture, *tree, beside]), player.name, subtitle)
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
        yield panels.side_by_side(frames)
        following = [next(film, None) for film in films]
        if all(frame is None for frame in following):
            return
        frames = [old if new is None else new for old, new in zip(frames, following, strict=True)]
