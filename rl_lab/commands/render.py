"""Films and stills of what runs learned: the world at its true speed, and beside it what the agent thinks of it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from rl_lab.core import files
from rl_lab.core.errors import UserError
from rl_lab.core.folders import label, read_run
from rl_lab.core.joining import join
from rl_lab.core.settings import Bound, Count, Natural
from rl_lab.envs.abilities import Filmed, Tabular
from rl_lab.envs.frames import FASTEST, SLOWEST
from rl_lab.looking import panels
from rl_lab.looking.films import watched, write, write_still
from rl_lab.playing.player import Player, load
from rl_lab.playing.saliency import Saliency
from rl_lab.playing.scenes import BLANK, at_rate, board_of, films, on_one_scale, play, rate_of, rehearsed, together

STILL, PAGE = 240, 1_100  # pixels, about: a gridworld in a still of several, and the width of all
MOMENTS, MOMENT = 4, 240  # of an episode in a row, and the pixels across of each
OWN = "Each panel has a colour scale of its own: these are different worlds."


def render(
    runs: Sequence[Path],
    *,
    episodes: Count,
    seed: Natural,
    max_steps: Count,  # of an episode
    fps: Annotated[float, Bound(SLOWEST, FASTEST)] | None,  # None: the world's own, of a gridworld 6
    saliency: Saliency | None,  # what counts in the agent's choice, over the picture
    gif: bool,
    out: str | None,  # an mp4, a still that ends in .png, or a folder; None: videos/ in the first run's folder
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> Path:
    """Films greedy episodes of each run, side by side, as an mp4 and a gif; or draws a still. It joins the W&B run of
    the first, whose folder it is in. Raises UserError.
    """
    if not runs:
        raise UserError("which run? rl-lab render run=<folder>")
    with ExitStack() as stack:
        players = []
        for folder in runs:
            player = load(folder, max_envs=1, device=device, seed=seed, camera=True, changes=changes)
            players.append(player)
            stack.callback(player.env.close)
        path = place(out, players)
        if path.suffix == ".png":
            write_still(path, still(on_one_scale(players), seed, saliency, max_steps))
        else:
            rates = [rate_of(p, fps) for p in players]
            shown: dict[str, Any] = dict(episodes=episodes, seed=seed, max_steps=max_steps, saliency=saliency)
            shows = zip(films(players, rates, **shown), rates, strict=True)
            frames = together([at_rate(show, rate, max(rates)) for show, rate in shows])
            for line in write(path, watched(frames), max(rates), gif=gif):
                print(line)
    join(tracker, players[0].folder, {"picture" if path.suffix == ".png" else "video": path})
    return path


def place(out: str | None, players: list[Player]) -> Path:
    """Where the mp4 or the still goes. Raises UserError."""
    names = "_and_".join(dict.fromkeys(p.group for p in players)).replace("/", "_")
    name = f"{names[:100]}_step{players[0].step}.mp4"
    if not out:
        return files.inside(players[0].folder, f"videos/{name}")
    if out.endswith("/") or Path(out).is_dir():
        return Path(out) / name
    if not Path(out).suffix:
        out += ".mp4"
    if (kind := Path(out).suffix) not in (".mp4", ".gif", ".png"):
        raise UserError(f"out={out} must be a film (.mp4, with a .gif beside it), a still (.png) or an existing folder")
    return Path(out) if kind == ".png" else Path(out).with_suffix(".mp4")


# -- from runs to a still


def still(
    players: Sequence[Player], seed: int, saliency: Saliency | None = None, max_steps: int = 2_000
) -> Image.Image:
    """What each run has learned on its map, or moments of an episode, under the settings that distinguish it."""
    pages = []
    for player, words in zip(players, distinctions([p.folder for p in players]), strict=True):
        several = len(players) > 1
        board = None if saliency else board_of(player, STILL if several else panels.SIZE)
        if board:
            picture = board.picture
        else:
            picture = strip(player, seed, saliency, max_steps, MOMENTS if several else 2 * MOMENTS)
        below = f"{player.group}, {player.words}" if words else player.words
        pages.append(panels.titled(picture, words or player.name, below))
    own = len(players) > 1 and not any(p.scale for p in players) and not saliency
    sheet = panels.in_rows(pages, PAGE)
    return panels.noted(sheet, OWN) if own and any(isinstance(p.env, Tabular) for p in players) else sheet


def strip(player: Player, seed: int, saliency: Saliency | None, max_steps: int, count: int) -> Image.Image:
    """Up to `count` moments of an episode, evenly spaced from the first to the last."""
    how: dict[str, Any] = dict(episodes=1, seed=seed, max_steps=max_steps)
    with rehearsed(player):
        last = max(moment.step for moment in play(player, **how, drawn=()))
    if isinstance(player.env, Filmed):  # the last picture it has is of the last action
        last -= 1
    steps = {round(i * last / (count - 1)) for i in range(count)}
    found = [m for m in play(player, **how, saliency=saliency, drawn=steps) if m.picture is not BLANK]
    found = [
        m for m, after in zip(found, [*found[1:], None], strict=True) if not (after and after.picture is m.picture)
    ]
    pages = [panels.captioned(shrunk(m.picture), f"step {m.step:,}", f"reward {m.reward:,.4g}") for m in found]
    return panels.in_rows(pages, PAGE)


def shrunk(picture: Image.Image) -> Image.Image:
    height = round(picture.height * MOMENT / picture.width)
    return picture.resize((MOMENT, height), Image.Resampling.LANCZOS) if picture.width > MOMENT else picture


def distinctions(folders: Sequence[Path]) -> list[str]:
    """The settings by which each run differs from others of its name, as one would type them; "" if by none."""
    runs = [read_run(folder) for folder in folders]
    return [label(run, [r for r in runs if r.name == run.name]).removeprefix(run.name).strip() for run in runs]
