"""What there is to see of an agent at play: the world as it is drawn, the numbers of the moment, whole frames."""

import math
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rl_lab.agents.vpn.planner import Level
from rl_lab.core.errors import UserError
from rl_lab.envs.abilities import Filmed, Tabular
from rl_lab.envs.frames import FASTEST, SLOWEST
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.looking import panels, pictures, trees, worlds
from rl_lab.looking.browser import Browser
from rl_lab.looking.heat import Box, glowing
from rl_lab.looking.terminal import Terminal, Words
from rl_lab.playing.player import Player
from rl_lab.playing.saliency import Saliency, saliency_of
from rl_lab.types import Drawing, Transition, View

FREEZE = 0.7  # seconds on the last picture of an episode
GRIDWORLD_FPS = 6.0
BLANK = Image.new("RGB", (2, 2))  # of a moment that is not drawn

Where = Literal["browser", "terminal"]
Screen = Browser | Terminal


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


def play(
    player: Player,
    *,
    episodes: int,
    seed: int,
    max_steps: int,
    saliency: Saliency | None = None,
    drawn: Container[int] | None = None,  # the steps of each episode that are drawn; None: all
    tape: list[Transition] | None = None,
) -> Generator[Moment, int | None, None]:
    """Greedy episodes of one environment, one after another; each ends with its last picture and its whole reward.

    The caller may `send` the action to take instead of the moment's. Each step is added to the `tape`.
    """
    env, draw = player.env, scenery(player, saliency) if drawn is None or drawn else None
    scene = lambda obs, step: draw(obs) if draw and (drawn is None or step in drawn) else BLANK
    plain = None if isinstance(env, Tabular) else worlds.mapped(env)  # a map that shows no values
    obs = env.reset(seed)
    for episode in range(1, episodes + 1):
        reward, step, last = 0.0, 0, False
        while not last and step < max_steps:
            action, picture = player.act(obs), scene(obs, step)
            plan = None if picture is BLANK else player.plan(obs)
            if plan and plain:
                picture = trees.with_way(picture, next(plain.maps(obs)), plan, env.spec.actions)
            moment = Moment(picture, player.view(obs), int(action), reward, step, episode, "", plan)
            instead = yield moment
            action = action if instead is None else torch.full_like(action, instead)
            answer = env.step(action)
            if tape is not None:
                tape.append(Transition.of(obs, action, answer))
            obs, reward, step, last = answer.obs, reward + float(answer.reward), step + 1, bool(answer.last)
        shows_next = last and isinstance(env, Filmed)  # its picture is of the next episode already
        picture = moment.picture if shows_next else scene(answer.next_obs, step)
        ending = f"cut at {step:,}" if not last else "time limit" if answer.discount > 0 else "terminated"
        yield moment._replace(picture=picture, reward=reward, step=step, ending=ending)
        if not last:
            obs = env.reset(seed + episode)


# -- pictures of the world


def scenery(player: Player, saliency: Saliency | None = None) -> Callable[[Tensor], Image.Image]:
    """What draws the environment as it is now, given its observation [1, ...]; a map's values give way to saliency."""
    env = player.env
    if isinstance(env, Filmed):
        scene = lambda obs: panels.enlarged(env.picture()[0])
    elif (world := worlds.mapped(env)) is None:
        raise UserError(f"{player.folder}: its environment has no picture to film")
    elif saliency or player.is_random or (board := board_of(player)) is None:
        scene = lambda obs: worlds.picture(next(world.maps(obs)))
    else:
        scene = lambda obs: board.with_agent(next(world.maps(obs)).agent)
    return with_saliency(player, scene, saliency) if saliency else scene


def board_of(player: Player, size: int = panels.SIZE) -> pictures.Board | None:
    """The gridworld a run plays in, with the values and the policy it has learned; None for any other world."""
    env = player.env
    if not isinstance(env, Tabular) or env.mdp.layout is None:
        return None
    view = player.view(env.all_observations())
    value, bars = view.value.cpu().numpy(), view.bars.cpu().numpy()
    known = None if player.visited is None else player.visited.cpu().numpy()
    return pictures.Board(env.mdp.layout, env.spec.actions, value, bars, scale=player.scale, size=size, known=known)


def on_one_scale(players: Sequence[Player]) -> list[Player]:
    """With the colours of one scale where all have values on the map of one world; else as they are."""
    boards = [None if p.is_random else board_of(p, panels.SIZE) for p in players]
    worlds = [p.env.mdp for p in players if isinstance(p.env, Tabular)]
    if len(players) < 2 or None in boards or not all(same_world(worlds[0], mdp) for mdp in worlds[1:]):
        return list(players)
    scales = [board.limits for board in boards if board]
    scale = min(low for low, _ in scales), max(high for _, high in scales)
    return [p._replace(scale=scale) for p in players]


def same_world(a: MDP, b: MDP) -> bool:
    """Whether values mean the same there."""
    parts = (a.next_state, b.next_state), (a.probability, b.probability), (a.reward, b.reward)
    return a.layout == b.layout and all(torch.equal(x.cpu(), y.cpu()) for x, y in parts)


def with_saliency(player: Player, scene: Callable[[Tensor], Image.Image], method: Saliency) -> Callable:
    """The scene, and over it what counts in the agent's choice. Raises UserError where it sees no picture."""
    env, shape = player.env, player.env.spec.obs_shape
    if len(shape) != 3:
        seen = "its state's number" if not shape else f"{' x '.join(map(str, shape))} numbers"
        remedy = "; train it with env.obs=planes agent=dqn_mlp" if isinstance(env, Tabular) else ""
        raise UserError(f"saliency={method} needs an agent that sees a picture, and {player.group} sees {seen}{remedy}")

    def draw(obs: Tensor) -> Image.Image:
        picture, heat = scene(obs), saliency_of(method, player.agent.view, obs)[0].cpu().numpy()
        if not isinstance(env, Filmed):
            side = picture.width - 2 * pictures.RIM  # of the map, a bar may lie below it
            return glowing(picture, heat, Box(pictures.RIM, pictures.RIM, side, side * shape[1] // shape[2]), False)
        if not env.sees_picture():
            raise UserError(f"saliency={method}: {player.group} sees another picture than the one that is drawn")
        return glowing(picture, heat, Box(1, 1, picture.width - 2, picture.height - 2), True)

    return draw


# -- whole frames


def films(players: Sequence[Player], rates: Sequence[float], **how) -> list[Iterator[Image.Image]]:
    """A film of each, to be seen side by side: the colours and the bars of one world are on one scale. `how` goes to
    `play`.
    """
    players = on_one_scale(players)
    limits = [limits_of(player, **how) for player in players]
    known = [of for of in limits if of]
    if players[0].scale and len(known) == len(limits):
        limits = [(min(low for low, _ in known), max(high for _, high in known))] * len(known)
    each = zip(players, rates, limits, strict=True)
    return [film(p, rate, limits=of, abreast=len(players) > 1, **how) for p, rate, of in each]


def film(
    player: Player,
    rate: float,
    *,
    episodes: int,
    limits: pictures.Scale | None = None,  # of the bars; None: found by playing the episodes beforehand, undrawn
    abreast: bool = False,  # of others, and narrow
    **how,
) -> Iterator[Image.Image]:
    """Whole frames, `rate` a second; the end of an episode is shown for a while. `how` goes to `play`."""
    page = Page(player, limits or limits_of(player, episodes=episodes, **how), abreast)
    for moment in play(player, episodes=episodes, **how):
        frame = page(moment, f"{moment.episode} of {episodes}")
        for _ in range(stay(moment, rate)):
            yield frame


def stay(moment: Moment, rate: float) -> int:
    """Frames: how long it is to be seen, at `rate` a second."""
    return max(1, round(FREEZE * rate)) if moment.ending else 1


def limits_of(player: Player, **how) -> pictures.Scale | None:
    """The least and the greatest action value that `play` will show; None of probabilities."""
    low, high = math.inf, -math.inf
    with rehearsed(player):
        for moment in play(player, **how | {"saliency": None, "drawn": ()}):
            if moment.view.kind == "probabilities":
                break
            low, high = min(low, float(moment.view.bars.min())), max(high, float(moment.view.bars.max()))
    return (low, high) if low <= high else None


@contextmanager
def rehearsed(player: Player) -> Iterator[None]:
    """An agent that draws its actions draws afterwards what it has drawn within."""
    rng = player.agent.rng if isinstance(player.agent, Drawing) else None
    state = rng.get_state() if rng else None
    yield
    if rng and state is not None:
        rng.set_state(state)


class Page:
    """What draws a moment whole: title, picture, panel, and what the agent imagines if it does.

    The panel stands beside the picture; below it where there is a third thing, or another page beside this one.
    """

    def __init__(self, player: Player, limits: pictures.Scale | None = None, abreast: bool = False):
        self.player, self.limits, self.abreast = player, limits, abreast
        self.panel: panels.Panel | None = None

    def __call__(self, moment: Moment, episode: str) -> Image.Image:
        player, picture, view, facts = self.player, moment.picture, moment.view, facts_of(moment, episode)
        actions, below = player.env.spec.actions, self.abreast or moment.plan is not None
        size = {"width": picture.width} if below else {"height": picture.height}
        self.panel = self.panel or panels.Panel(list(facts), actions, view.kind, limits=self.limits, **size)
        drawn = self.panel.draw(list(facts.values()), moment.ending, view.bars[0].tolist(), moment.action)
        shown = panels.above(picture, drawn) if below else panels.side_by_side([picture, drawn])
        if moment.plan:
            shown = panels.side_by_side([shown, trees.tree(moment.plan, actions, shown.height)])
        return panels.titled(shown, player.name, player.words)


class Lines:
    """What draws a moment for a terminal: the picture, and the rest as lines of words."""

    def __init__(self, player: Player):
        self.player = player
        self.words: Words | None = None

    def __call__(self, moment: Moment, episode: str) -> tuple[Image.Image, list[str]]:
        player, view = self.player, moment.view
        words = self.words = self.words or Words(player.name, player.words, player.env.spec.actions, view.kind)
        facts = facts_of(moment, episode)
        return moment.picture, words.draw(facts, moment.ending, view.bars[0].tolist(), moment.action)


def facts_of(moment: Moment, episode: str) -> dict[str, str]:
    return {
        "episode": episode,
        "step": f"{moment.step:,}",
        "reward so far": f"{moment.reward:,.6g}",
        "value": panels.number(float(moment.view.value)),
    }


def rate_of(player: Player, fps: float | None) -> float:
    """Pictures a second: `fps`, or else the world's own speed, if it has one. Raises UserError."""
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise UserError(f"fps={fps:g} must be between {SLOWEST:g} and {FASTEST:g}")
    return fps or player.env.frames_per_second or GRIDWORLD_FPS


def at_rate(frames: Iterable[Image.Image], rate: float, fps: float) -> Iterator[Image.Image]:
    """Frames of `rate` a second, repeated so that they keep their speed at `fps`."""
    shown = 0
    for i, frame in enumerate(frames, 1):
        while shown < math.ceil(i * fps / rate - 1e-9):
            yield frame
            shown += 1


def together(films: Sequence[Iterator[Image.Image]]) -> Iterator[Image.Image]:
    """Side by side until the longest ends; a shorter one stays on its last frame."""
    return map(panels.side_by_side, abreast(films))


def abreast(films: Sequence[Iterator]) -> Iterator[list]:
    """One frame of each, until the longest ends."""
    frames = [next(film) for film in films]
    while True:
        yield frames
        following = [next(film, None) for film in films]
        if all(frame is None for frame in following):
            return
        frames = [old if new is None else new for old, new in zip(frames, following, strict=True)]


def open_screen(
    where: Where, players: Sequence[Player], *, port: int, keys: Mapping[str, Sequence[str]] | None = None
) -> Screen:
    """Where moments are shown, and where `keys` are read if there are any. Raises UserError."""
    if where == "terminal":
        return Terminal(Lines, keys=keys)
    return Browser(", ".join(dict.fromkeys(player.name for player in players)), Page, port=port, keys=keys)
